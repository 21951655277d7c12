"""Really trained models on real and held-out text: what the methods cost, and whether thresholds hold."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tda
from tda.calibration import calibrate_all
from tda.contracts import Method, PromptMethod
from tda.engine.score import Scores
from tda.methods import METHODS, method, takes_sparsity
from tda.models.load import names
from tda.quality import Evaluation, Evaluator, calibration_batches, evaluation_documents
from tda.quality.documents import encode, read_jsonl

REFERENCES = [name for name in names() if name.startswith("ref:")]
SPARSITIES = (0.25, 0.5, 0.75)


class Stories:
    """stories260K with stories of 256 tokens: some to evaluate on, others to calibrate on."""

    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer = tda.load_model(str(folder / "stories260K"))
        self.texts = list(read_jsonl(folder / "tinystories.jsonl"))
        self.rows = torch.stack([row[:256] for row in map(self.encode, self.texts[:160]) if len(row) >= 256])
        self.scores: dict[Method, Scores] = {}

    def encode(self, text: str) -> Tensor:
        return encode(self.tokenizer, text)

    def score_all(self) -> None:
        """Score every method on 20 stories, prompt and continuation of 128 tokens each."""
        methods = [tda.Dense(), *(method(name, s) for name in METHODS for s in SPARSITIES if takes_sparsity(name))]
        calibrated = [found for found in methods if found.needs_fit]
        text = [{"input_ids": part} for part in self.rows[40:56].split(8)]
        thresholds = dict(zip(calibrated, calibrate_all(self.model, calibrated, text, progress=False), strict=True))
        prompts, continuations = self.rows[:20].split(128, dim=1)
        self.scores = {
            found: tda.score(self.model, found, prompts, continuations, thresholds.get(found)) for found in methods
        }

    def delta(self, name: str, sparsity: float) -> float:
        """Nats per sparse token more than dense."""
        dense, found = self.scores[tda.Dense()], self.scores[method(name, sparsity)]
        return float((found.nll - dense.nll)[:, 1:].double().mean())


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Stories:
    return Stories(shared_data)


@pytest.fixture(scope="module")
def scored(stories: Stories) -> Stories:
    stories.score_all()
    return stories


class TestStories260K:
    def test_dense_perplexity(self, stories: Stories) -> None:
        """4.12 by the README of that folder, whose number of stories is not told."""
        total, count = 0.0, 0
        for text in stories.texts[:60]:
            row = stories.encode(text)[:256].unsqueeze(0)
            scores = tda.score(stories.model, tda.Dense(), row[:, :1], row[:, 1:])
            total, count = total + float(scores.nll.sum()), count + scores.nll.numel()
        assert math.exp(total / count) == pytest.approx(4.12, abs=0.05)

    @pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if issubclass(kind, PromptMethod)])
    def test_prompt_wise_methods_lie_between_oracle_and_random(self, scored: Stories, name: str) -> None:
        for sparsity in SPARSITIES:
            delta = scored.delta(name, sparsity)
            assert scored.delta("oracle", sparsity) < delta
            # Beyond a half all neurons of this narrow model are needed, and weights alone tell no more than chance.
            assert delta <= scored.delta("random", sparsity) + (0.1 if name == "magnitude" else 0.0)

    @pytest.mark.parametrize("name", [name for name in METHODS if takes_sparsity(name)])
    def test_more_sparsity_never_helps(self, scored: Stories, name: str) -> None:
        deltas = [scored.delta(name, sparsity) for sparsity in SPARSITIES]
        assert 0 < deltas[0] < deltas[1] < deltas[2]

    @pytest.mark.parametrize(
        ("name", "at_a_quarter", "at_a_half"),
        [("griffin", 0.98, 2.40), ("static_mean", 0.92, 2.62), ("magnitude", 1.42, 2.91), ("random", 1.41, 2.99)],
    )
    def test_known_differences(self, scored: Stories, name: str, at_a_quarter: float, at_a_half: float) -> None:
        """The figures of an independent trial on this model, on other stories."""
        assert scored.delta(name, 0.25) == pytest.approx(at_a_quarter, abs=0.25)
        assert scored.delta(name, 0.5) == pytest.approx(at_a_half, abs=0.3)

    @pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if kind().needs_fit])
    def test_thresholds_leave_out_what_was_asked(self, scored: Stories, name: str) -> None:
        for sparsity in SPARSITIES:
            achieved = scored.scores[method(name, sparsity)].achieved_sparsity
            assert sum(achieved) / len(achieved) == pytest.approx(sparsity, abs=0.03)

    def test_generate_writes_a_story(self, stories: Stories) -> None:
        """A per-token method at a quarter is close to dense; its words are words of such stories."""
        known = set(re.findall(r"[a-z]+", " ".join(stories.texts).lower()))
        prompt = stories.encode("Once upon a time, there was a little girl").unsqueeze(0)
        chosen = tda.TT(sparsity=0.25)
        thresholds = tda.calibrate(stories.model, chosen, [{"input_ids": stories.rows[40:56]}], progress=False)
        with tda.attach(stories.model, chosen, thresholds) as run:
            output = stories.model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=100, do_sample=False
            )
            assert sum(run.achieved_sparsity()) / 5 == pytest.approx(0.25, abs=0.05)
        story = stories.tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
        words = re.findall(r"[a-z]+", story.lower())[:-1]
        assert len(words) > 25
        assert len(set(words)) > 12, story
        assert sum(word in known for word in words) > 0.9 * len(words), story


class Reference:
    """A model that ships with the package, on held-out documents of all ten kinds, two of each."""

    def __init__(self, name: str) -> None:
        self.model, self.tokenizer = tda.load_model(name)
        self.documents = evaluation_documents(self.tokenizer, 128, 96, 20)
        self.evaluator = Evaluator(self.model, self.documents, batch=10)
        self.dense = self.nll(tda.Dense())

    def nll(self, chosen: Method, **options: Any) -> float:
        values = self.evaluator.evaluate(chosen, **options).values["nll_nats"]
        return sum(values) / len(values)


@pytest.fixture(
    scope="module",
    params=[name if name == "ref:swiglu" else pytest.param(name, marks=pytest.mark.slow) for name in REFERENCES],
)
def reference(request: pytest.FixtureRequest) -> Reference:
    return Reference(request.param)


class TestReferenceModels:
    def test_a_prompt_tells_which_neurons_matter(self, reference: Reference) -> None:
        """At a half: the oracle costs nothing, Griffin little, another kind's prompt more, random neurons most."""
        oracle, griffin, random = (reference.nll(kind(sparsity=0.5)) for kind in (tda.Oracle, tda.Griffin, tda.Random))
        others = [*reference.documents[5:], *reference.documents[:5]]
        assert all(own.kind != other.kind for own, other in zip(reference.documents, others, strict=True))
        swapped = reference.nll(tda.Griffin(sparsity=0.5), select_on=others)
        dense = reference.dense
        assert dense < 0.6
        assert abs(oracle - dense) < 0.01
        assert dense < griffin
        assert griffin - dense < 0.5 * (swapped - dense)
        assert griffin - dense < 0.3 * (random - dense)

    def test_weights_are_what_the_training_says(self, reference: Reference) -> None:
        folder = Path(tda.__file__).parent / "reference" / "weights" / reference.model.config._name_or_path[4:]
        told = json.loads((folder / "training.json").read_text())
        assert told["name"] == folder.name
        assert told["steps"] <= told["planned_steps"]
        last = (folder / "training_log.csv").read_text().splitlines()[-1].split(",")
        assert int(last[0]) == told["steps"]
        assert reference.dense == pytest.approx(float(last[2]), abs=0.15), "held-out text is as hard as it was"

    @pytest.mark.slow
    @pytest.mark.parametrize("allocation", ["uniform", "equal_error"])
    def test_tda_leaves_out_what_was_asked(self, reference: Reference, allocation: Any) -> None:
        methods = [tda.TDA(sparsity=sparsity, allocation=allocation) for sparsity in SPARSITIES]
        text = calibration_batches(reference.tokenizer, 256, 40)
        for chosen, thresholds in zip(
            methods, calibrate_all(reference.model, methods, text, progress=False), strict=True
        ):
            for tokens in (64, 90, 128, 250):
                evaluation = self.evaluate(reference, chosen.with_thresholds(thresholds), tokens)
                assert self.mean(evaluation) == pytest.approx(chosen.sparsity, abs=0.03), (chosen, tokens)

    @pytest.mark.slow
    def test_without_length_buckets_the_sparsity_drifts(self, reference: Reference) -> None:
        """Cuts of 128 tokens leave out more on short prompts; the buckets are what holds it."""
        chosen = tda.TDA(sparsity=0.5, allocation="uniform")
        thresholds = tda.calibrate(reference.model, chosen, calibration_batches(reference.tokenizer, 128, 40))
        single = thresholds.model_copy(
            update={"lengths": (128,), "cuts": tuple((cuts[-1],) for cuts in thresholds.cuts)}
        )
        bucketed = self.evaluate(reference, chosen.with_thresholds(thresholds), 8)
        with pytest.warns(UserWarning, match="calibrated for 128 to 128"):
            drifting = self.evaluate(reference, chosen.with_thresholds(single), 8)
        assert self.mean(bucketed) == pytest.approx(0.5, abs=0.05)
        assert self.mean(drifting) > 0.55

    def evaluate(self, reference: Reference, chosen: Method, tokens: int) -> Evaluation:
        documents = evaluation_documents(reference.tokenizer, tokens, 4, 20)
        return Evaluator(reference.model, documents, batch=10).evaluate(chosen)

    @staticmethod
    def mean(evaluation: Evaluation) -> float:
        layers = evaluation.achieved_sparsity
        return sum(layers) / len(layers)

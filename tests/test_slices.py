"""Quality in slices against token-by-token loops over `tda.score`."""

import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

import tda
from experiments.train import BOS, byte_tokenizer
from tda.contracts import Method
from tda.quality import Document, Evaluator, calibration_batches, evaluation_documents, recall, recall_questions, slices
from tda.quality.losses import Slice
from tda.quality.slices import GROUPS, RECALL, cut, lengths, positions
from tda.reference.text import KINDS
from tda.statistics import paired_difference

PROMPT, NEW, COUNT = 70, 20, 12
GRIFFIN = tda.Griffin(sparsity=0.5)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.build("llama", vocab_size=300, max_position_embeddings=600)


@pytest.fixture(scope="module")
def documents(tokenizer: Any) -> list[Document]:
    return evaluation_documents(tokenizer, PROMPT, NEW, COUNT)


@pytest.fixture(scope="module")
def fitted(model: Any, tokenizer: Any) -> Method:
    method = tda.TDA(sparsity=0.5)
    return method.with_thresholds(tda.calibrate(model, method, calibration_batches(tokenizer, 128, 16), progress=False))


def token_nll(model: Any, method: Method, document: Document, protocol: Any = "decode") -> np.ndarray:
    """NLL of a document's tokens, the document alone: float64 [G]."""
    ids = document.prompt.unsqueeze(0), document.continuation.unsqueeze(0)
    return tda.score(model, method, *ids, protocol=protocol).nll[0].double().numpy()


def of(found: Sequence[Slice], method: str) -> dict[str, Slice]:
    return {one.value: one for one in found if one.method.name == method}


class TestPosition:
    @pytest.mark.parametrize("protocol", ["decode", "all_sparse"])
    def test_equals_a_loop_over_tokens(self, model: Any, documents: list[Document], protocol: Any) -> None:
        found = of(slices("position", model, documents, [tda.Dense(), GRIFFIN], protocol=protocol), "griffin")
        places = {"1": [0], "2-4": [1, 2, 3], "5-16": list(range(4, 16)), "17-20": [16, 17, 18, 19]}
        if protocol == "decode":
            del places["1"]  # it comes from the dense prefill
        assert list(found) == list(places)
        for value, inside in places.items():
            one = found[value]
            assert one.own.tokens == len(inside)
            assert one.own.nll.groups == one.dense.nll.groups == tuple(range(COUNT))
            for document, own, dense in zip(documents, one.own.nll.samples, one.dense.nll.samples, strict=True):
                wanted = [
                    token_nll(model, method, document, protocol)[inside].mean() for method in (GRIFFIN, tda.Dense())
                ]
                assert [own, dense] == pytest.approx(wanted, rel=1e-4)

    @pytest.mark.parametrize("protocol", ["decode", "all_sparse"])
    def test_slices_weighted_by_tokens_are_the_whole(
        self, model: Any, documents: list[Document], protocol: Any
    ) -> None:
        found = slices("position", model, documents, [GRIFFIN], protocol=protocol)
        evaluator = Evaluator(model, documents, protocol=protocol)
        whole = paired_difference(
            *(evaluator.evaluate(method).measurements()["nll_nats"] for method in (GRIFFIN, tda.Dense()))
        )
        assert whole is not None
        tokens = sum(one.own.tokens for one in found)
        assert tokens == NEW - (protocol == "decode")
        joined = sum(one.own.tokens * one.delta.value for one in found if one.delta is not None) / tokens
        assert joined == pytest.approx(whole.value, rel=1e-12)

    def test_change_is_paired_to_the_first_slice(self, model: Any, documents: list[Document]) -> None:
        first, *others = slices("position", model, documents, [GRIFFIN])
        assert first.change is None
        losses = {one.value: np.subtract(one.own.nll.samples, one.dense.nll.samples) for one in (first, *others)}
        for one in others:
            assert one.change is not None
            apart = losses[one.value] - losses[first.value]
            assert one.change.value == pytest.approx(apart.mean())
            drawn = np.random.default_rng(0).integers(0, COUNT, size=(2000, COUNT))
            bounds = np.quantile(apart[drawn].mean(1), (0.025, 0.975))
            assert [one.change.low, one.change.high] == pytest.approx(bounds)

    def test_a_protocol_with_one_sparse_token_is_refused(self, model: Any, documents: list[Document]) -> None:
        with pytest.raises(ValueError, match=r"'griffin' .*1 tokens .* 20 "):
            slices("position", model, documents, [GRIFFIN], protocol="griffin")

    @given(new_tokens=st.integers(1, 5000))
    def test_every_place_is_in_one_slice(self, new_tokens: int) -> None:
        spans = positions(new_tokens)
        assert [place for span in spans for place in span] == list(range(new_tokens))
        assert all(len(span) for span in spans)
        assert spans[0] == range(1)
        assert all(later.stop == 4 * former.stop for former, later in pairwise(spans[:-1]))
        assert spans[-1].stop <= 4 * spans[-1].start or new_tokens == 1

    def test_no_tokens_are_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one token, got 0"):
            positions(0)


class TestLength:
    def test_equals_documents_that_are_cut_by_hand(self, model: Any, documents: list[Document], fitted: Method) -> None:
        methods = [GRIFFIN, fitted]
        found = slices("length", model, documents, methods, bos=BOS)
        assert [(one.method.name, one.value) for one in found] == [
            (name, value) for name in ("griffin", "tda") for value in ("16", "64", "70")
        ]
        for one in found:
            size = int(one.value)
            for place in (0, 5):
                document = documents[place]
                tokens = [BOS, *document.prompt.tolist()[PROMPT - size + 1 :]]
                short = Document(place, "", torch.tensor(tokens), document.continuation)
                for method, samples in ((one.method, one.own.nll.samples), (tda.Dense(), one.dense.nll.samples)):
                    wanted = token_nll(model, method, short)[1:].mean()
                    assert samples[place] == pytest.approx(wanted, rel=1e-4)
            assert (one.base is None) == (one.value == "70")

    @given(prompt=st.integers(17, 10_000))
    def test_lengths_grow_to_the_whole_prompt(self, prompt: int) -> None:
        found = lengths(prompt)
        assert found[0] == 16
        assert found[-1] == prompt
        assert len(found) >= 2
        assert all(one < other <= 4 * one for one, other in pairwise(found))

    @given(tokens=st.integers(1, 30), whole=st.integers(1, 30), bos=st.booleans())
    def test_a_cut_prompt_has_its_last_tokens(self, tokens: int, whole: int, bos: bool) -> None:
        ids = [7 if bos else 8, *range(100, 99 + whole)]
        found = cut(Document(3, "x", torch.tensor(ids), torch.tensor([1])), tokens, 7)
        assert found.number == 3
        assert len(found.prompt) == min(tokens, whole)
        wanted = [7, *ids[1:][len(ids) - tokens :]] if bos and tokens < whole else ids[-tokens:]
        assert found.prompt.tolist() == wanted

    @pytest.mark.parametrize("prompt", [1, 16])
    def test_a_prompt_with_nothing_to_compare_is_refused(self, model: Any, tokenizer: Any, prompt: int) -> None:
        short = evaluation_documents(tokenizer, prompt, 4, 5)
        with pytest.raises(ValueError, match=f"16 tokens .*prompts .*got {prompt} "):
            slices("length", model, short, [GRIFFIN])


class TestBatch:
    def test_one_that_shares_with_nobody_is_as_per_row(
        self, model: Any, documents: list[Document], fitted: Method
    ) -> None:
        for method in (GRIFFIN, fitted):
            found = of(slices("batch", model, documents, [method]), method.name)
            assert list(found) == ["per_row", "shared by 1", "shared by 2", "shared by 4", "shared by 8"]
            own, alone = (found[name].own.nll.samples for name in ("per_row", "shared by 1"))
            assert alone == pytest.approx(own, rel=1e-5)
            assert all(one.base is found["per_row"] for name, one in found.items() if name != "per_row")
            assert {one.documents for one in found.values()} == {8}, "every batch of eight is full"

    def test_shared_sets_are_those_of_a_joint_pass(self, model: Any, documents: list[Document]) -> None:
        found = of(slices("batch", model, documents, [GRIFFIN]), "griffin")
        pair = [torch.stack([getattr(one, name) for one in documents[2:4]]) for name in ("prompt", "continuation")]
        scores = tda.score(model, tda.Griffin(sparsity=0.5, rows="shared"), *pair)
        wanted = scores.nll[:, 1:].double().mean(1).tolist()
        assert found["shared by 2"].own.nll.samples[2:4] == pytest.approx(wanted, rel=1e-4)
        assert found["shared by 2"].own.nll.samples != found["per_row"].own.nll.samples

    def test_a_method_of_which_each_token_chooses_has_one_slice(self, model: Any, documents: list[Document]) -> None:
        oracle = tda.Oracle(sparsity=0.5)
        (one,) = slices("batch", model, documents, [oracle])
        assert (one.value, one.base) == ("any", None)
        assert one.own.nll.samples[3] == pytest.approx(token_nll(model, oracle, documents[3])[1:].mean(), rel=1e-4)

    def test_a_single_document_is_refused(self, model: Any, documents: list[Document]) -> None:
        with pytest.raises(ValueError, match="at least 2 documents, got 1"):
            slices("batch", model, documents[:1], [GRIFFIN])


class TestKind:
    def test_kinds_groups_and_recall(self, model: Any, documents: list[Document], tokenizer: Any) -> None:
        questions = recall_questions(tokenizer, 6)
        found = slices("kind", model, documents, [GRIFFIN, tda.Oracle(sparsity=0.5)], questions=questions)
        griffin = of(found, "griffin")
        assert list(griffin) == [*KINDS, *GROUPS, RECALL]
        assert [one.method.name for one in found] == ["griffin"] * len(griffin) + ["oracle"] * len(griffin)
        assert griffin["story"].own.nll.groups == (0, 10)
        assert griffin["code-like"].own.nll.groups == (2, 4, 9)
        for name, one in griffin.items():
            if name == RECALL:
                continue
            for number, own in zip(one.own.nll.groups, one.own.nll.samples, strict=True):
                assert own == pytest.approx(token_nll(model, GRIFFIN, documents[number])[1:].mean(), rel=1e-4)
        assert griffin[RECALL].own.nll.samples == recall(model, GRIFFIN, questions)["task_recall_nll"].samples
        assert griffin[RECALL].documents == 6
        assert griffin[RECALL].own.tokens == np.mean([len(question.answer) for question in questions])
        assert all(one.change is None for one in found)

    def test_every_built_in_kind_is_in_one_group(self) -> None:
        assert sorted(kind for kinds in GROUPS.values() for kind in kinds) == sorted(KINDS)

    def test_a_text_of_ones_own_is_one_kind(self, model: Any, documents: list[Document]) -> None:
        own = [Document(one.number, "my.jsonl", one.prompt, one.continuation) for one in documents]
        (one,) = slices("kind", model, own, [GRIFFIN])
        assert (one.value, one.documents) == ("my.jsonl", COUNT)


def test_an_unknown_slicing_is_named(model: Any, documents: list[Document]) -> None:
    wrong: Any = "weekday"
    with pytest.raises(ValueError, match=r"over .*length, position, batch, kind; got 'weekday'"):
        slices(wrong, model, documents, [GRIFFIN])


def test_a_row_says_what_was_left_out_and_of_how_many(model: Any, documents: list[Document], fitted: Method) -> None:
    for one in slices("length", model, documents, [GRIFFIN, fitted]):
        row = one.row()
        assert row["documents"] == COUNT
        assert row["tokens"] == NEW - 1
        shares = []
        for document in documents:
            short = cut(document, int(one.value))
            ids = short.prompt.unsqueeze(0), short.continuation.unsqueeze(0)
            shares.append(np.mean(tda.score(model, one.method, *ids).achieved_sparsity))
        assert row["achieved_sparsity"] == pytest.approx(np.mean(shares), abs=1e-6)
        assert row["own_nll"] == pytest.approx(row["dense_nll"] + row["delta_nll"])
        assert row["own_nll"] == pytest.approx(np.mean(one.own.nll.samples))
        for what in ("own", "dense", "delta"):
            assert row[f"{what}_low"] < row[f"{what}_nll"] < row[f"{what}_high"]


class TestCommand:
    WORDS = ("eval", "-m", "ref:swiglu", "--method", "griffin", "-s", "0.5", "--calibration-documents", "4")
    KEYS = (
        *("method", "sparsity", "over", "value", "documents", "tokens", "achieved_sparsity"),
        *(f"{what}_{part}" for what in ("dense", "own", "delta", "change") for part in ("nll", "low", "high")),
    )

    @pytest.mark.parametrize(
        ("over", "values"),
        [
            ("length", ["16", "24"]),
            ("position", ["2-4", "5-6"]),
            ("batch", ["per_row", "shared by 1", "shared by 2", "shared by 4"]),
            ("kind", [*KINDS[:5], "prose", "code-like", RECALL]),
        ],
    )
    def test_a_row_for_each_slice(
        self, command: Callable[..., tuple[int, str, str]], over: str, values: list[str]
    ) -> None:
        sizes = ("--prompt-tokens", 24, "--new-tokens", 6, "--documents", 5)
        code, out, err = command(*self.WORDS, *sizes, "--over", over, "--json")
        assert code == 0, err
        rows = json.loads(out)
        assert [row["value"] for row in rows] == values
        for row in rows:
            assert tuple(row) == self.KEYS
            assert (row["method"], row["sparsity"], row["over"]) == ("griffin", 0.5, over)

    def test_people_see_bounds_in_brackets(self, command: Callable[..., tuple[int, str, str]]) -> None:
        sizes = ("--prompt-tokens", 24, "--new-tokens", 6, "--documents", 5, "--over", "length")
        code, out, err = command(*self.WORDS, *sizes)
        assert code == 0, err
        assert "ref:swiglu: protocol decode, change: to the whole prompt" in out
        rows = json.loads(command(*self.WORDS, *sizes, "--json")[1])
        shown = re.search(r" 16 +5 .* (\S+) \[(\S+), (\S+)\] +\S+ \[\S+, \S+\] *\n", out)
        assert shown is not None
        wanted = [rows[0][name] for name in ("delta_nll", "delta_low", "delta_high")]
        digits = len(shown[1].partition(".")[2])
        assert [float(text) for text in shown.groups()] == [round(value, digits) for value in wanted]

    def test_of_a_text_of_ones_own(self, command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
        text = tmp_path / "text.jsonl"
        lines = [f"{number}. The lantern keeper of Brailon wrote that the river rose again." for number in range(5)]
        text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        sizes = ("--prompt-tokens", 24, "--new-tokens", 6, "--documents", 5, "--text", text)
        for over, values in (("length", ["16", "24"]), ("kind", ["text.jsonl"])):
            code, out, err = command(*self.WORDS, *sizes, "--over", over, "--json")
            assert code == 0, err
            assert [row["value"] for row in json.loads(out)] == values

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (("--over", "length", "--prompt-tokens", 16), "prompts must be longer; got 16 tokens"),
            (("--over", "position", "--new-tokens", 3), "give more new tokens"),
            (("--over", "batch", "--documents", 1), "at least 2 documents, got 1"),
            (("--over", "weekday"), "'weekday' is not one of"),
        ],
    )
    def test_what_cannot_be_compared_is_a_sentence(
        self, command: Callable[..., tuple[int, str, str]], words: tuple[object, ...], told: str
    ) -> None:
        sizes = {"--prompt-tokens": 24, "--new-tokens": 6, "--documents": 4}
        given = dict(zip(words[::2], words[1::2], strict=True))
        code, out, err = command(*self.WORDS, *(word for pair in {**sizes, **given}.items() for word in pair))
        assert code == 2
        assert told in err
        assert not out

"""Thresholds against a brute-force float64 computation on tiny models, and the artifact that holds them."""

import importlib
import json
import math
from pathlib import Path
from typing import Any

import float64
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_state import same, state
from torch import Tensor

import tda
from tda.calibration import calibrate_all
from tda.contracts import Method
from tda.families import find_ffns
from tda.fitting.allocate import ErrorCurve, equal_error
from tda.fitting.collect import SAMPLE_PROMPTS, Batch, TokenCollector
from tda.fitting.histogram import BINS, Histogram
from tda.methods import METHODS
from tda.thresholds import SHORTEST_WINDOW, Thresholds, hash_text

BIN = 1 / 64  # relative width of a histogram's bin
CALIBRATED = [method for method in tiny.default_methods() if method.needs_fit]
CUT = [method for method in CALIBRATED if method.name not in ("static_mean", "glass")]
PROMPTS, TOKENS = 12, 8
MODELS = ("llama", "gemma2", "opt", "opt-post-norm")
CASES_WITH_CUTS = [case for case in tiny.method_cases(*MODELS) if case[1] in CUT]


def batches(prompts: int = PROMPTS, tokens: int = TOKENS, seed: int = 0) -> list[dict[str, Tensor]]:
    return [{"input_ids": part} for part in tiny.text(prompts, tokens, seed=seed).split(4)]


def calibrate(name: str, method: Method, **options: Any) -> Thresholds:
    return tda.calibrate(tiny.model(name), method, batches(), progress=False, **options)


class BruteForce:
    """All scores of all layers on the calibration text, in float64, and the error of leaving out any set."""

    def __init__(self, name: str, method: Method) -> None:
        self.method, self.reference = method, tiny.reference(name)
        rows = torch.cat([batch["input_ids"] for batch in batches()])
        self.passes = [self.reference.run(row).layers for row in rows]
        self.layers = range(len(self.reference.weights))

    def scores(self, layer: int, length: int = TOKENS) -> list[Tensor]:
        """Of each prompt: [F] for TDA, [T, F] of the tokens that could be decoded (all but the first) for others."""
        weights = self.reference.weights[layer]
        found = []
        for row in self.passes:
            a = row[layer]
            if self.method.name == "tda":
                source = a.source(self.method.source)[:length]
                found.append(float64.relative_magnitude(source, self.method.statistic, weights.down_norms))
            elif self.method.name == "tt":
                found.append(float64.contributions(a.z, weights.down_norms)[1:])
            else:
                assert a.gate is not None
                found.append(a.gate.abs()[1:])
        return found

    def values(self, layer: int, length: int = TOKENS) -> np.ndarray:
        return torch.cat([scores.flatten() for scores in self.scores(layer, length)]).numpy()

    def share(self, layer: int, cut: float, length: int = TOKENS) -> float:
        return float((self.values(layer, length) < cut).mean())

    def error(self, layer: int, cut: float) -> float:
        """Mean CETT of all tokens but each prompt's first: ‖Σ_{j left out} n_j‖ / ‖Σ_j n_j‖."""
        down = self.reference.weights[layer].down
        ratios = []
        for row, scores in zip(self.passes, self.scores(layer), strict=True):
            z = row[layer].z[1:]
            left_out = (scores < cut).expand_as(z)
            for token in range(len(z)):
                n = z[token] * down  # [D, F]
                part = n[:, left_out[token]].sum(1)
                ratios.append(float(part.norm() / n.sum(1).norm()))
        return float(np.mean(ratios))

    def grid(self, layer: int) -> list[float]:
        """The cuts at hundredths of the share."""
        values = self.values(layer)
        return [0.0, *(float(np.quantile(values, share / 100)) for share in range(1, 100))]


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("case", CASES_WITH_CUTS, ids=tiny.case_id)
def test_uniform_cuts_are_quantiles(case: tuple[str, Method], sparsity: float) -> None:
    name, method = case
    method = METHODS[method.name](sparsity=sparsity)
    thresholds, brute = calibrate(name, method), BruteForce(name, method)
    lengths = thresholds.lengths or (TOKENS,)
    assert lengths == ((1, 2, 4, 8) if method.name == "tda" else (TOKENS,))
    assert thresholds.targets == (sparsity,) * tiny.LAYERS
    for layer in brute.layers:
        for length, cut in zip(lengths, thresholds.cuts[layer], strict=True):
            values = brute.values(layer, length)
            zeros = float((values == 0).mean())
            if zeros >= sparsity:  # zeros cannot be cut apart
                assert 0 < cut < 1e-12
                continue
            exact = float(np.quantile(values, sparsity))
            gap = 2.0 / len(values) ** 0.5 if length < 4 else 0.02
            assert cut == pytest.approx(exact, rel=2 * BIN) or abs(brute.share(layer, cut, length) - sparsity) < gap
        assert thresholds.achieved_sparsity[layer] == pytest.approx(brute.share(layer, cut), abs=0.02)
        assert thresholds.cett[layer] == pytest.approx(brute.error(layer, cut), abs=0.02)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["tt", "tda"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_equal_error_is_one_level_for_all_layers(name: str, kind: str, sparsity: float) -> None:
    """Each layer has the largest cut whose error is within the level; the mean share is the target."""
    method = METHODS[kind](sparsity=sparsity, allocation="equal_error")
    thresholds, brute = calibrate(name, method), BruteForce(name, method)
    cuts = [cuts[-1] for cuts in thresholds.cuts]
    level = max(brute.error(layer, cut) for layer, cut in zip(brute.layers, cuts, strict=True))
    for layer, cut in zip(brute.layers, cuts, strict=True):
        larger = [found for found in brute.grid(layer) if found > cut * (1 + 2 * BIN) + 1e-9]
        errors = [brute.error(layer, found) for found in larger[1:]]
        assert all(error > 0.97 * level for error in errors), "a larger cut would also keep to the level"
    shares = [brute.share(layer, cut) for layer, cut in zip(brute.layers, cuts, strict=True)]
    zeros = [float((brute.values(layer) == 0).mean()) for layer in brute.layers]
    steps = 0.02 if max(zeros) == 0 else max(zeros) / 2 + 0.02  # ReLU: a layer's share jumps from 0 to its zeros
    assert np.mean(shares) == pytest.approx(sparsity, abs=steps)
    assert shares == pytest.approx(thresholds.achieved_sparsity, abs=0.02)
    assert [brute.error(layer, cut) for layer, cut in enumerate(cuts)] == pytest.approx(thresholds.cett, abs=0.03)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["tt", "tda"])
@pytest.mark.parametrize("level", [0.1, 0.2, 0.5])
def test_cett_gives_the_error_level_directly(name: str, kind: str, level: float) -> None:
    method = METHODS[kind](cett=level)
    thresholds, brute = calibrate(name, method), BruteForce(name, method)
    for layer in brute.layers:
        cut = thresholds.cuts[layer][-1]
        assert brute.error(layer, cut) <= level * 1.05
        larger = [found for found in brute.grid(layer) if found > cut * (1 + 2 * BIN) + 1e-9]
        assert all(brute.error(layer, found) > level * 0.95 for found in larger[1:])


def test_the_whole_grid_is_searched() -> None:
    """The norm of a partial sum may fall again: the largest cut within the level lies beyond a worse one."""
    shares = torch.linspace(0, 0.9, 10, dtype=torch.float64)
    bumpy = ErrorCurve(shares, torch.tensor([0, 0.1, 0.3, 0.4, 0.19, 0.15, 0.6, 0.5, 0.7, 0.8], dtype=torch.float64))
    assert bumpy.largest_share(0.2) == pytest.approx(0.5)
    assert bumpy.largest_share(0.5) == pytest.approx(0.7)
    assert bumpy.largest_share(2.0) == pytest.approx(0.9)
    assert ErrorCurve(shares, torch.ones(10, dtype=torch.float64)).largest_share(0.5) == 0


@given(
    errors=st.lists(st.lists(st.floats(0, 1), min_size=20, max_size=20), min_size=1, max_size=4),
    target=st.floats(0.05, 0.9),
)
def test_the_error_level_search_finds_the_best_level(errors: list[list[float]], target: float) -> None:
    """Against trying every level."""
    shares = torch.arange(20, dtype=torch.float64) / 20
    curves = [ErrorCurve(shares, torch.tensor([0.0, *layer[1:]], dtype=torch.float64)) for layer in errors]

    def mean_share(level: float) -> float:
        best = [max(s for s, e in zip(shares.tolist(), c.errors.tolist(), strict=True) if e <= level) for c in curves]
        return sum(best) / len(best)

    found = equal_error(curves, target)
    every = [mean_share(level) for curve in curves for level in curve.errors.tolist()]
    best = min(abs(share - target) for share in every)
    assert abs(sum(found) / len(found) - target) == pytest.approx(best)


def test_layer_sparsity_overrides_the_allocation() -> None:
    method = tda.TT(sparsity=0.5)
    thresholds, brute = calibrate("llama", method, layer_sparsity=[0.2, 0.7]), BruteForce("llama", method)
    found = [brute.share(layer, cuts[0]) for layer, cuts in enumerate(thresholds.cuts)]
    assert found == pytest.approx([0.2, 0.7], abs=0.02)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_static_mean_averages_over_prompts(name: str) -> None:
    """Prompts of unequal length count alike, and padding on either side not at all."""
    rows = tiny.prompts((5, 16, 9, 2, 7))
    scores = [
        float64.griffin_s(layer.z) / math.sqrt(len(row))
        for row in rows
        for layer in tiny.reference(name).run(row).layers
    ]
    expected = [torch.stack(scores[layer :: tiny.LAYERS]).mean(0) for layer in range(tiny.LAYERS)]
    for side in ("left", "right"):
        text = []
        for part in (rows[:2], rows[2:]):
            tokens, mask = tiny.padded(part, side)
            text.append({"input_ids": tokens, "attention_mask": mask.long()})
        thresholds = tda.calibrate(tiny.model(name), tda.StaticMean(sparsity=0.5), text, progress=False)
        found = torch.tensor(thresholds.scores, dtype=torch.float64)
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-6)
        assert thresholds.cuts == ()


@pytest.mark.parametrize("statistic", ["relative", "contribution"])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a_prior_is_the_mean_square_over_tokens(name: str, statistic: Any) -> None:
    """Tokens count alike, whatever the window that they stand in; padding on either side not at all."""
    rows = tiny.prompts((5, 16, 9, 2, 7))
    reference = tiny.reference(name)
    squares: list[list[Tensor]] = [[] for _ in range(tiny.LAYERS)]
    for row in rows:
        for layer, seen in enumerate(reference.run(row).layers):
            norms = reference.weights[layer].down_norms if statistic == "contribution" else 1.0
            squares[layer].append(float64.relative(seen.z * norms) ** 2)
    expected = torch.stack([torch.cat(layer).mean(0) for layer in squares])
    methods: list[Method] = [tda.TDA(prior_tokens=4, statistic=statistic)]
    methods += [tda.Griffin(prior_tokens=8)] if statistic == "relative" else []
    for side in ("left", "right"):
        tokens, mask = tiny.padded(rows, side)
        for made in calibrate_all(tiny.model(name), methods, [{"input_ids": tokens, "attention_mask": mask.long()}]):
            found = torch.tensor(made.prior, dtype=torch.float64)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_cuts_beside_a_prior_leave_out_what_was_asked() -> None:
    """They are cut where the prior is among the squares, at every length."""
    method = tda.TDA(sparsity=0.5, prior_tokens=8).fit(tiny.model("llama"), [{"input_ids": tiny.text(80, 32, seed=3)}])
    assert method.fitted.lengths == (1, 2, 4, 8, 16, 32)
    assert method.fitted.achieved_sparsity == pytest.approx((0.5, 0.5), abs=0.02)
    scores = tda.score(tiny.model("llama"), method, tiny.text(80, 32, seed=9), tiny.text(80, 2, seed=10))
    assert scores.achieved_sparsity == pytest.approx((0.5, 0.5), abs=0.04)


@pytest.mark.parametrize("method", CUT, ids=tiny.case_id)
def test_padding_and_batching_do_not_matter(method: Method) -> None:
    rows = tiny.prompts((8, 16, 16, 11, 9))
    alone = [{"input_ids": row.unsqueeze(0)} for row in rows]
    wanted = tda.calibrate(tiny.model("llama"), method, alone, progress=False)
    for side in ("left", "right"):
        tokens, mask = tiny.padded(rows, side)
        text = [{"input_ids": tokens, "attention_mask": mask.long()}]
        found = tda.calibrate(tiny.model("llama"), method, text, progress=False)
        assert found.lengths == wanted.lengths
        assert found.text == wanted.text
        np.testing.assert_allclose(found.cuts, wanted.cuts, rtol=3 * BIN)
        assert found.achieved_sparsity == pytest.approx(wanted.achieved_sparsity, abs=0.02)


def test_one_pass_for_several_methods_gives_what_each_gives_alone() -> None:
    """Methods that differ in their target share what they collect."""
    needy = [kind for kind in METHODS.values() if kind().needs_fit]
    methods: list[Method] = [kind(sparsity=sparsity) for sparsity in (0.25, 0.5) for kind in needy]
    methods += [tda.TEAL(allocation="uniform"), tda.TEAL(step=0.5), tda.TT(allocation="equal_error"), tda.TT(cett=0.2)]
    methods += [tda.TDA(statistic="l2"), tda.TDA(source="gate"), tda.TDA(prior_tokens=16)]
    together = calibrate_all(tiny.model("llama"), methods, batches(), progress=False)
    for method, found in zip(methods, together, strict=True):
        assert found == calibrate("llama", method)
        found.check_method(method.calibrated)


def test_calibrated_tda_leaves_out_what_was_asked() -> None:
    """On other text of its kind, in real decode steps, at lengths with and without cuts of their own."""
    model = tiny.model("llama")
    for sparsity in (0.25, 0.5, 0.75):
        method = tda.TDA(sparsity=sparsity, allocation="uniform")
        thresholds = tda.calibrate(model, method, [{"input_ids": tiny.text(80, 32, seed=3)}], progress=False)
        for length in (1, 3, 8, 23, 32):
            other, continuation = tiny.text(80, length, seed=4), tiny.text(80, 2, seed=length)
            scores = tda.score(model, method, other, continuation, thresholds)
            assert np.mean(scores.achieved_sparsity) == pytest.approx(sparsity, abs=0.03), length


@pytest.mark.parametrize("side", ["left", "right"])
def test_first_tokens_do_not_count_for_per_token_methods(side: str) -> None:
    """A row's first token is never decoded, and its activations are often far larger than all others'."""
    tokens, mask = tiny.padded(tiny.prompts((5, 3, 8)), side)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    ffn = find_ffns(tiny.model("llama"))[0]
    a = torch.full((*tokens.shape, ffn.F), 1.0)
    a[mask & (positions == 0)] = 1000.0
    a[~mask] = 1e6
    collector = TokenCollector(tda.CATS(sparsity=0.5).importance, layers=1)
    collector.observe(ffn, a, torch.zeros(*tokens.shape, ffn.D), Batch.of(mask, positions))
    assert collector.histograms[0].total == (4 + 2 + 7) * ffn.F
    assert collector.histograms[0].quantile(1.0) == pytest.approx(1.0, rel=2 * BIN)
    assert all((sample.scores == 1).all() for sample in collector.samples[0])


class TestLengths:
    def test_buckets_are_powers_of_two_that_a_quarter_of_the_prompts_reach(self) -> None:
        rows = tiny.prompts((32, 8, 8, 8, 5))
        tokens, mask = tiny.padded(rows)
        text = [{"input_ids": tokens, "attention_mask": mask.long()}]
        thresholds = tda.calibrate(tiny.model("llama"), tda.TDA(), text, progress=False)
        assert thresholds.lengths == (1, 2, 4, 8)

    def test_interpolation_is_linear_in_the_logarithm(self) -> None:
        thresholds = tiny.thresholds("llama", tda.TDA())
        assert thresholds is not None
        assert thresholds.lengths == (1, 2, 4, 8, 16, 32)
        for layer in range(tiny.LAYERS):
            for tokens in (1, 2, 3, 5, 7, 8, 11.5, 21, 32):
                assert thresholds.cut(layer, tokens) == pytest.approx(float64.cut_at(thresholds, layer, tokens))

    @pytest.mark.parametrize("tokens", [33, 500])
    def test_beyond_the_calibrated_lengths_the_nearest_holds_with_a_warning(self, tokens: int) -> None:
        thresholds = tiny.thresholds("llama", tda.TDA())
        assert thresholds is not None
        with pytest.warns(UserWarning, match=f"prompt of {tokens} tokens: .*1 to 32"):
            assert thresholds.cut(0, tokens) == thresholds.cuts[0][-1]

    def test_a_run_warns_too(self) -> None:
        method = tda.TDA()
        with pytest.warns(UserWarning, match="prompt of 40 tokens"):
            tda.score(tiny.model("llama"), method, tiny.text(1, 40), tiny.text(1, 3), tiny.thresholds("llama", method))

    def test_one_length_and_no_length(self) -> None:
        thresholds = tiny.thresholds("llama", tda.TDA())
        assert thresholds is not None
        single = thresholds.model_copy(update={"lengths": (8,), "cuts": ((0.7,), (0.6,))})
        assert single.cut(1, 8) == 0.6
        with pytest.warns(UserWarning, match="calibrated for 8 to 8"):
            assert single.cut(1, 3) == 0.6
        assert tiny.thresholds("llama", tda.TT()).cut(0, 10**6) == tiny.thresholds("llama", tda.TT()).cuts[0][0]


class TestArtifact:
    @pytest.mark.parametrize("method", CALIBRATED, ids=tiny.case_id)
    def test_round_trip(self, method: Method, tmp_path: Path) -> None:
        thresholds = tiny.thresholds("llama", method)
        assert thresholds is not None
        path = tmp_path / "deep" / "thresholds.json"
        thresholds.save(path)
        loaded = tda.Thresholds.load(path)
        assert loaded == thresholds
        assert [file.name for file in path.parent.iterdir()] == ["thresholds.json"]
        prompt = tiny.text(1, 20, seed=70)
        model = tiny.model("llama")
        one, other = (tda.score(model, method, prompt, prompt[:, :5], given) for given in (thresholds, loaded))
        assert torch.equal(one.nll, other.nll)

    def test_what_it_tells(self) -> None:
        thresholds = tiny.thresholds("llama", tda.TDA())
        assert thresholds is not None
        told = json.loads(thresholds.model_dump_json())
        assert told["method"]["name"] == "tda"
        assert told["method"]["sparsity"] == 0.5
        assert told["model"]["layers"] == tiny.LAYERS
        assert told["model"]["intermediate_size"] == tiny.F
        assert told["dtype"] == "float32"
        assert len(told["cuts"]) == len(told["achieved_sparsity"]) == len(told["cett"]) == tiny.LAYERS
        assert len(told["text"]["documents"]) == 12
        assert set(told["versions"]) == {"torch", "transformers"}

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda text: text[: len(text) // 2], "is no thresholds artifact"),
            (lambda text: "", "is no thresholds artifact"),
            (lambda text: "[1, 2]", "is no thresholds artifact"),
            (lambda text: text.replace('"format": 1', '"format": 2'), "format"),
            (lambda text: text.replace('"cuts"', '"cutz"'), "cutz"),
            (lambda text: text.replace('"layers": 2', '"layers": "many"'), "model.layers"),
        ],
    )
    def test_damaged_files_are_named(self, damage: Any, message: str, tmp_path: Path) -> None:
        path = tmp_path / "x.json"
        thresholds = tiny.thresholds("llama", tda.TT())
        assert thresholds is not None
        thresholds.save(path)
        path.write_text(damage(path.read_text()))
        with pytest.raises(ValueError, match=message) as caught:
            tda.Thresholds.load(path)
        assert str(path) in str(caught.value)

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="is a folder; thresholds are a file"):
            tda.Thresholds.load(tmp_path)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            tda.Thresholds.load(tmp_path / "none.json")

    def test_equal_configs_share_thresholds_and_unlike_ones_do_not(self) -> None:
        method = tda.TT()
        thresholds = tiny.thresholds("llama", method)
        tda.score(tiny.build("llama", seed=5), method, tiny.text(1, 9), tiny.text(1, 3), thresholds)
        for change in ({"intermediate_size": 54}, {"num_hidden_layers": 3}, {"hidden_act": "gelu"}):
            with pytest.raises(ValueError, match="belong to"):
                tda.score(tiny.build("llama", **change), method, tiny.text(1, 9), tiny.text(1, 3), thresholds)


class TestBoundedMemory:
    def held_bytes(self, monkeypatch: pytest.MonkeyPatch, prompts: int, tokens: int) -> list[int]:
        """Bytes of all storages that the collectors hold after a calibration."""
        module = importlib.import_module("tda.calibration.calibrate")
        made: list[Any] = []
        real = module.Collecting

        def noting(*parts: Any) -> Any:
            made.append(real(*parts))
            return made[-1]

        monkeypatch.setattr(module, "Collecting", noting)
        calibrate_all(tiny.model("llama"), CALIBRATED, batches(prompts, tokens), progress=False)
        monkeypatch.undo()
        return [
            sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(c)}.values())
            for c in made
        ]

    def test_more_text_holds_no_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        few = self.held_bytes(monkeypatch, SAMPLE_PROMPTS, 16)
        many = self.held_bytes(monkeypatch, 5 * SAMPLE_PROMPTS, 16)
        assert few == many
        assert sum(few) > 0

    def test_samples_are_inputs_not_activations(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for size in self.held_bytes(monkeypatch, 4 * SAMPLE_PROMPTS, 16):
            histograms = 5 * BINS * 8
            samples = SAMPLE_PROMPTS * 8 * (tiny.D + tiny.F) * 4
            assert size <= tiny.LAYERS * (histograms + samples)


def tensors(thing: Any) -> list[Tensor]:
    """All tensors that an object reaches through attributes and containers."""
    if isinstance(thing, Tensor):
        return [thing]
    if isinstance(thing, dict):
        thing = list(thing.values())
    if isinstance(thing, list | tuple):
        return [tensor for part in thing for tensor in tensors(part)]
    return tensors(vars(thing)) if hasattr(thing, "__dict__") and not isinstance(thing, Method) else []


class TestHistogram:
    positive = st.floats(2.0**-50, 2.0**25, width=32)

    @given(values=st.lists(positive, min_size=1, max_size=200), share=st.floats(0.001, 1))
    def test_quantile_lies_in_the_bin_of_the_order_statistic(self, values: list[float], share: float) -> None:
        histogram = Histogram()
        histogram.add(torch.tensor(values))
        exact = np.sort(np.float32(values))[max(math.ceil(share * len(values) - 1e-9), 1) - 1]
        assert histogram.quantile(share) == pytest.approx(float(exact), rel=1.001 * BIN)

    @given(values=st.lists(positive | st.just(0.0), min_size=1, max_size=200), cut=positive)
    def test_share_below(self, values: list[float], cut: float) -> None:
        histogram = Histogram()
        histogram.add(torch.tensor(values))
        exact = np.float32(values)
        found = histogram.share_below(cut)
        assert (
            (exact < cut * (1 - 1.001 * BIN)).mean() - 1e-12
            <= found
            <= (exact <= cut * (1 + 1.001 * BIN)).mean() + 1e-12
        )

    @given(values=st.lists(positive, min_size=1, max_size=100), places=st.integers(0, 100))
    def test_pieces_add_up(self, values: list[float], places: int) -> None:
        one, other = Histogram(), Histogram()
        one.add(torch.tensor(values))
        for part in (values[:places], values[places:]):
            other.add(torch.tensor(part).view(-1, 1))
        assert torch.equal(one.counts, other.counts)
        assert other.total == len(values)

    def test_smooth_values_are_interpolated_within_a_bin(self) -> None:
        values = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
        histogram = Histogram()
        histogram.add(values)
        for share in (0.1, 0.25, 0.5, 0.9, 0.99):
            assert histogram.quantile(share) == pytest.approx(float(np.quantile(values.numpy(), share)), rel=2e-3)
            assert histogram.share_below(share) == pytest.approx(share, abs=2e-3)

    def test_zeros_and_extremes(self) -> None:
        histogram = Histogram()
        histogram.add(torch.tensor([0.0] * 80 + [1.0] * 20))
        assert histogram.quantile(0) == 0
        assert 0 < histogram.quantile(0.5) < 1e-15
        assert histogram.share_below(histogram.quantile(0.5)) == pytest.approx(0.8)
        assert histogram.quantile(0.9) == pytest.approx(1, rel=BIN)
        assert histogram.share_below(0) == 0
        assert histogram.share_below(1e30) == 1
        histogram.add(torch.tensor([1e38, 1e-38]))
        assert histogram.total == 102

    def test_bfloat16_values_fall_in_the_same_bins(self) -> None:
        values = torch.rand(100).bfloat16()
        one, other = Histogram(), Histogram()
        one.add(values)
        other.add(values.float())
        assert torch.equal(one.counts, other.counts)


class TestWrongUse:
    @pytest.mark.parametrize("method", [tda.Dense(), tda.Griffin(), tda.Oracle(), "tda", None])
    def test_methods_that_need_none(self, llama: Any, method: Any) -> None:
        with pytest.raises(ValueError, match="needs no thresholds"):
            tda.calibrate(llama, method, batches())

    @pytest.mark.parametrize(
        ("text", "error", "message"),
        [
            ([], ValueError, "no calibration text"),
            ([tiny.text(1, 4)], TypeError, "a calibration batch is"),
            ([{"tokens": tiny.text(1, 4)}], TypeError, "a calibration batch is"),
            ([{"input_ids": tiny.text(1, 4)[0]}], TypeError, "a calibration batch is"),
            ([{"input_ids": tiny.text(1, 4), "attention_mask": torch.ones(1, 5)}], ValueError, "shape of input_ids"),
            ([{"input_ids": tiny.text(1, 4), "attention_mask": torch.zeros(1, 4)}], ValueError, "leave a token"),
        ],
    )
    def test_wrong_text(self, llama: Any, text: Any, error: type[Exception], message: str) -> None:
        before = state(llama)
        with pytest.raises(error, match=message):
            tda.calibrate(llama, tda.TDA(), text, progress=False)
        same(before, state(llama))

    @pytest.mark.parametrize("method", [tda.TT(), tda.CATS()], ids=tiny.case_id)
    def test_text_without_a_decode_token(self, llama: Any, method: Method) -> None:
        with pytest.raises(ValueError, match=r"calibration row .*second token"):
            tda.calibrate(llama, method, [{"input_ids": tiny.text(3, 1)}], progress=False)

    def test_wrong_layer_count(self, llama: Any) -> None:
        with pytest.raises(ValueError, match=r"layer_sparsity .*3 .*2 layers"):
            tda.calibrate(llama, tda.TDA(), batches(), layer_sparsity=[0.1, 0.2, 0.3])

    def test_an_interrupt_leaves_the_model_alone(self, llama: Any) -> None:
        before = state(llama)

        def interrupted() -> Any:
            yield from batches()
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tda.calibrate(llama, tda.TDA(), interrupted(), progress=False)
        same(before, state(llama))

    def test_batches_may_be_a_generator(self, llama: Any) -> None:
        assert tda.calibrate(llama, tda.TT(), iter(batches())) == calibrate("llama", tda.TT())


@given(text=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=80), min_size=1, max_size=4))
def test_hashes_name_each_document_once(text: list[list[int]]) -> None:
    hashes = hash_text([np.array(row, dtype=np.int64) for row in text])
    assert len(hashes.documents) == len({tuple(row) for row in text})
    assert len(hashes.windows) == len({tuple(row[:64]) for row in text if len(row) >= SHORTEST_WINDOW})

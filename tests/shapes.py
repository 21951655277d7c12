"""Plays the shapes of requests that `contract.py` names, and holds what came out against float64 and the token loop.

A shape gives `Row`s: the tokens of each row of its batch, what each was, the logits and the neurons that were kept.
One float64 pass over a row's whole sequence tells both what should have been kept and the logits; the token loop
decodes the row alone, a token at a time, in masked execution.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import contract
import float64
import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedTokenizerFast, pipeline
from transformers.cache_utils import QuantizedLayer

import tda
from tda.contracts import Method, PromptMethod, TokenMethod
from tda.engine.attachment import Attachment
from tda.engine.counter import SparsityCounter
from tda.engine.run import Run
from tda.engine.transformers_api import cache_keyword, given_cache, positions
from tda.selection import Selection

LENGTHS = (7, 1, 8)
NEW = 4
LOGITS = {"float32": 1e-5, "bfloat16": 5e-2, "float16": 5e-3}
"""Distance of logits from float64, as a share of the largest."""
CUT: dict[str, dict[str, Any]] = {
    "float32": {"rounding": 5e-5},
    "bfloat16": {"rounding": 5e-2, "of_largest": True},
    "float16": {"rounding": 6e-3, "of_largest": True},
}
"""Distance from the cut within which a neuron may lie on either side: a share of the cut, or of the largest score."""

Kept = list[Tensor]
"""Kept neurons of each layer: bool [F], or [B, T, F] of a forward."""


@dataclass
class Row:
    """One row of a batch, without padding.

    Attributes
    ----------
    tokens : list of int
        What was fed.
    kinds : str
        Of each token: "p" prompt, "d" decoded, "." dense and no prompt, "D" prompt that was then decoded again.
    logits : dict
        Place -> logits [V] that were seen there.
    kept : dict
        Place of a decoded token -> what was kept for it.
    foreign : int
        Tokens that were fed before the method was attached.
    """

    tokens: list[int] = field(default_factory=list)
    kinds: str = ""
    logits: dict[int, Tensor] = field(default_factory=dict)
    kept: dict[int, Kept] = field(default_factory=dict)
    foreign: int = 0

    def feed(self, kind: str, tokens: Tensor, logits: Tensor | None = None, kept: Sequence[Kept] = ()) -> None:
        """Add tokens [T], the logits [N, V] of their last N, and what was kept for the last of them."""
        self.tokens += tokens.tolist()
        self.kinds += kind * len(tokens)
        end = len(self.tokens)
        if logits is not None:
            self.logits |= {end - len(logits) + place: row for place, row in enumerate(logits)}
        self.kept |= {end - len(kept) + place: sets for place, sets in enumerate(kept)}

    @property
    def decoded(self) -> list[int]:
        """Places of the tokens that were decoded."""
        return [place for place, kind in enumerate(self.kinds) if kind in "dD"]


@dataclass
class Forward:
    """What was seen of a forward: its phase, logits [B, T, V] and, of a decode step, what was kept [B, T, F]."""

    phase: str
    logits: Tensor
    kept: Kept

    def of(self, row: int, place: int = -1) -> Kept:
        """What was kept for a token of a row."""
        return [layer[row, place] for layer in self.kept]


@contextmanager
def watched() -> Iterator[list[Forward]]:
    """Note every forward of attached models, and what is kept in it: what the engine did, not what it should."""
    forwards: list[Forward] = []
    seen: dict[int, Tensor] = {}
    layer, step, end = SparsityCounter.layer, SparsityCounter.step, Attachment.end

    def count_layer(counter: SparsityCounter, number: int, kept: Tensor, tokens: Tensor | None = None) -> None:
        seen[number] = kept.clone()
        layer(counter, number, kept, tokens)

    def count_step(counter: SparsityCounter, call: Any, kept: Selection) -> None:
        seen.update(enumerate(kept))
        step(counter, call, kept)

    def noted_end(run: Attachment, output: Any) -> None:
        call: Any = run.phases.call
        kept = [torch.ones(call.rows, call.tokens, ffn.F, dtype=torch.bool) for ffn in run.ffns]
        if isinstance(run.method, PromptMethod) and call.phase == "decode":
            kept = [sets.unsqueeze(1).expand(-1, call.tokens, -1) for sets in call.request.kept]
        elif isinstance(run.method, TokenMethod) and call.phase == "decode":
            kept = [seen[layer].view(call.rows, call.tokens, -1) for layer in range(len(run.ffns))]
        forwards.append(Forward(call.phase, output.logits.detach().clone(), kept))
        seen.clear()
        end(run, output)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SparsityCounter, "layer", count_layer)
        patch.setattr(SparsityCounter, "step", count_step)
        patch.setattr(Attachment, "end", noted_end)
        yield forwards


@functools.cache
def model_of(name: str, dtype: str) -> Any:
    """A tiny model with numbers of a type, shared by all cases: leave it as it was."""
    return tiny.build(name).to(getattr(torch, dtype))


@functools.cache
def reference_of(name: str, dtype: str, is_rounded: bool) -> float64.Float64:
    """The float64 reading of a tiny model's weights of a type; rounded to int8, a scale a row, where that is asked."""
    model = tiny.build(name).to(getattr(torch, dtype)).double()
    for linear in model.modules():
        if is_rounded and type(linear) is nn.Linear:
            scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
            linear.weight = nn.Parameter((linear.weight.detach() / scale).round() * scale)
    return float64.Float64(model)


class Play:
    """One case in play.

    Attributes
    ----------
    in_float64 : bool
        Whether float64 knows the logits; a cache that loses something has them of the token loop alone.
    achieved : list of float or None
        What the run said that it left out, where a shape asks for it.
    new_cache : callable
        Makes the cache of the token loop.
    around : callable
        What the token loop runs within.
    """

    def __init__(self, case: contract.Case) -> None:
        self.case = case
        self.model = model_of(case.model, case.dtype)
        self.method: Method = contract.built(case.method)
        self.thresholds = tiny.thresholds(case.model, self.method)
        self.reference = reference_of(case.model, case.dtype, self.method.quantization is not None)
        self.in_float64 = True
        self.achieved: list[float] | None = None
        self.new_cache: Callable[[], Any] = lambda: tiny.new_cache(self.model)
        self.around: Callable[[], Any] = nullcontext
        self.forwards: list[Forward] = []

    @contextmanager
    def attach(self, execution: str | None = None) -> Iterator[Run]:
        chosen: Any = execution or self.case.execution
        with torch.no_grad(), tda.attach(self.model, self.method, self.thresholds, execution=chosen) as run:
            yield run

    def on(self, cache: Any) -> dict[str, Any]:
        return {cache_keyword(self.model): cache}

    # Through generate.

    def generate(self, prompts: Sequence[Tensor], copies: int = 1, **options: Any) -> list[Row]:
        """Prompts through the model's generate, padded on the left."""
        tokens, mask = tiny.padded(prompts)
        rows = [Row() for _ in prompts for _ in range(copies)]
        for row, prompt in zip(rows, [prompt for prompt in prompts for _ in range(copies)], strict=True):
            row.feed("p", prompt)
        return self.go_on(rows, tokens, attention_mask=mask.long(), **options)

    def go_on(
        self,
        rows: list[Row],
        tokens: Tensor | None,
        *,
        prefills: int = 1,
        cut: int | None = None,
        picked: Callable[[Any, int, int], int] | None = None,
        every: int = 1,
        **options: Any,
    ) -> list[Row]:
        """What generate adds to rows whose prompts are fed; `picked` tells a row's place in the batch of a step."""
        before = len(self.forwards)
        output: Any = self.model.generate(
            tokens,
            **{"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, **options},
        )
        sequences = output if isinstance(output, Tensor) else output.sequences
        new = sequences[:, 0 if tokens is None else tokens.shape[1] :]
        steps = self.forwards[before:][::every][prefills - 1 :]
        assert [step.phase for step in steps] == ["prefill"] + ["decode"] * (new.shape[1] - 1)
        for number, row in enumerate(rows):
            for step, forward in enumerate(steps):
                place = number if picked is None else picked(output, number, step)
                if step == 0:
                    row.logits[len(row.tokens) - 1] = forward.logits[place, -1]
                elif cut is None or cut not in new[number, :step]:
                    row.feed("d", new[number, step - 1 : step], forward.logits[place, -1:], [forward.of(place)])
        self.new = new
        return rows

    # By hand.

    def hand(self, tokens: Tensor, mask: Tensor | None = None, cache: Any = None, rows: Any = None) -> "Hand":
        """A prompt by hand: tokens [B, T], padded where mask is false."""
        hand = Hand(self, self.new_cache() if cache is None else cache, rows or [Row() for _ in tokens])
        hand.feed(tokens, mask)
        return hand


class Hand:
    """A batch that is driven by hand on a cache."""

    def __init__(self, play: Play, cache: Any, rows: list[Row]) -> None:
        self.play, self.cache, self.rows = play, cache, rows
        self.mask = torch.ones(len(rows), len(rows[0].tokens), dtype=torch.bool)

    def feed(self, tokens: Tensor, mask: Tensor | None = None, *, call: Any = None, sees_all: bool = True) -> None:
        """A forward of tokens [B, T]; its phase is what the attached method says of it."""
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        self.mask = torch.cat([self.mask, mask], 1)
        arguments: dict[str, Any] = self.play.on(self.cache)
        if not bool(self.mask.all()):
            arguments["attention_mask"] = self.mask.long()
        if not bool(self.mask.all()) or not sees_all:
            arguments["position_ids"] = positions(self.mask)[:, -tokens.shape[1] :]
        (call or self.play.model)(tokens, **arguments)
        forward = self.play.forwards[-1]
        for number, row in enumerate(self.rows):
            inside = mask[number]
            kept = [forward.of(number, place) for place in inside.nonzero().flatten().tolist()]
            is_prompt = forward.phase == "prefill"
            row.feed(
                "p" if is_prompt else "d",
                tokens[number][inside],
                forward.logits[number][inside],
                [] if is_prompt else kept,
            )

    def steps(self, seed: int = 5, count: int = NEW, **options: Any) -> "Hand":
        """Decode some tokens, one by one; each step must have been one."""
        for token in tiny.text(len(self.rows), count, seed=seed).split(1, 1):
            self.feed(token, **options)
            assert self.play.forwards[-1].phase == "decode"
        return self


# What is held against what.


def check(play: Play, rows: Sequence[Row]) -> None:
    """Hold rows against float64 and the token loop."""
    assert rows
    for row in rows:
        check_row(play, row)
    if play.achieved is not None:
        kept = [torch.stack([row.kept[place][layer] for row in rows for place in row.decoded]) for layer in range(2)]
        found = torch.tensor(play.achieved, dtype=torch.float64)
        torch.testing.assert_close(found, torch.stack([1 - layer.double().mean() for layer in kept]), rtol=0, atol=1e-9)


def check_row(play: Play, row: Row) -> None:
    is_by_token = isinstance(play.method, TokenMethod)
    found = in_float64(play, row)
    if play.in_float64 or not is_by_token:
        check_sets(play, row, found)
    if play.in_float64:
        check_logits(play, row.logits, found.logits)
    looped = loop(play, row)
    if is_by_token and row.decoded:
        check_first(row, looped)
    if isinstance(play.method, PromptMethod) and not alike(row, looped):
        if play.method.name == "random":
            assert play.case.shape == "embeddings", "the same tokens have the same random set"
        check_sets(play, looped, in_float64(play, looped))
        looped = loop(play, row, imposed=True)
    for place, found in row.logits.items():
        if alike(row, looped, place):  # a token's own set may differ near its cut; then what follows differs too
            check_logits(play, {place: found}, looped.logits[place].double().unsqueeze(0).expand(place + 1, -1))


def check_first(row: Row, looped: Row) -> None:
    """The first decoded token's own sets are those of the token loop, but for what rounding may move."""
    place = row.decoded[0]
    for one, other in zip(row.kept[place], looped.kept[place], strict=True):
        assert int((one != other).sum()) <= len(one) // 10


def alike(row: Row, looped: Row, until: int | None = None) -> bool:
    """Whether two rows kept the same neurons up to a place."""
    places = [place for place in row.decoded if until is None or place <= until]
    return all(torch.equal(*pair) for p in places for pair in zip(row.kept[p], looped.kept[p], strict=True))


def check_logits(play: Play, found: dict[int, Tensor], expected: Tensor) -> None:
    """Logits by place, against expected ones of all places [T, V]."""
    scale = expected.abs().max()
    for place, logits in found.items():
        distance = (logits.double() - expected[place]).abs().max() / scale
        assert distance <= LOGITS[play.case.dtype], f"logits at token {place} are {distance:.1e} of their scale away"


def in_float64(play: Play, row: Row) -> float64.Pass:
    """One pass over a whole row, with what was kept in it."""

    def rule(layer: int, activations: float64.Activations) -> Tensor:
        keep = torch.ones_like(activations.z, dtype=torch.bool)
        for place in row.decoded:
            keep[place] = row.kept[place][layer]
        return keep

    sparse = torch.zeros(len(row.tokens), dtype=torch.bool)
    sparse[row.decoded] = True
    return play.reference.run(torch.tensor(row.tokens), sparse, rule)


def check_sets(play: Play, row: Row, found: float64.Pass) -> None:
    """What was kept in a row, against the formulas on the activations of a float64 pass over it."""
    method = play.method
    for layer, activations in enumerate(found.layers):
        weights = play.reference.weights[layer]
        if isinstance(method, TokenMethod):
            choices = float64.token_choices(method, weights, activations, play.thresholds, layer)
            for place in row.decoded:
                choices[place].check(row.kept[place][layer], **CUT[play.case.dtype])
            continue
        chosen: dict[int, list[int]] = {}
        for place in row.decoded:
            chosen.setdefault(_prompt_end(row, place), []).append(place)
        for end, places in chosen.items():
            kept = [row.kept[place][layer] for place in places]
            assert all(torch.equal(kept[0], other) for other in kept)
            if not isinstance(method, PromptMethod):
                assert kept[0].all()
            elif method.name == "random":
                assert int(kept[0].sum()) == weights.F - float64.left_out(0.5, weights.F)
            else:
                _prompt_choice(play, row, end, layer, activations).check(kept[0], **CUT[play.case.dtype])


def _prompt_end(row: Row, place: int) -> int:
    """Where the prompt ends that a decoded token's set is from."""
    return max((p + 1 for p, kind in enumerate(row.kinds[: place + 1]) if kind in "pD"), default=0)


def _prompt_choice(play: Play, row: Row, end: int, layer: int, activations: float64.Activations) -> float64.Choice:
    if "D" in row.kinds[:end]:  # the pass that chose was dense
        activations = play.reference.run(torch.tensor(row.tokens[:end])).layers[layer]
    prompt = [place for place in range(end) if row.kinds[place] in "pD"]
    of = [None if found is None else found[prompt] for found in (activations.z, activations.gate, activations.up)]
    own: Any = float64.Activations(*of, activations.x[prompt])  # type: ignore[arg-type]
    return float64.prompt_choices(play.method, play.reference.weights[layer], [own], play.thresholds, layer)[0]


def loop(play: Play, row: Row, *, imposed: bool = False) -> Row:
    """The token loop: a row alone, by hand, in masked execution; with what the row kept where that is imposed."""
    found, tokens = Row(), torch.tensor([row.tokens])
    ffn_cache = DynamicCache() if "D" in row.kinds else play.new_cache()
    model, on = play.model, play.on(ffn_cache)
    with torch.no_grad(), play.around():
        if row.foreign:
            model(tokens[:, : row.foreign], **on)
            found.feed(".", tokens[0, : row.foreign])
        with watched() as forwards, play.attach("masked") as run:
            for start, end, kind in _stretches(row):
                place = {"position_ids": torch.arange(start, end).unsqueeze(0)}
                if kind == "p":
                    if row.kinds[start] == ".":
                        assert run.attachment.requests.last is not None
                        run.attachment.requests.last.unfed = tokens[:, start]
                    with run.prefill():
                        model(tokens[:, start:end], **on, **place)
                    if imposed and row.decoded:
                        after = min(p for p in row.decoded if p >= end - 1)
                        run.attachment.policy.set_selection([layer.unsqueeze(0) for layer in row.kept[after]])
                    if row.kinds[end - 1] == "D":
                        run.select()
                        ffn_cache.crop(-1)
                        with run.decode():
                            model(tokens[:, end - 1 : end], **on, position_ids=torch.tensor([[end - 1]]))
                        found.feed("p", tokens[0, start : end - 1])
                        found.feed("D", tokens[0, end - 1 : end], forwards[-1].logits[0], [forwards[-1].of(0)])
                        continue
                else:
                    model(tokens[:, start:end], **on, **place)
                    assert forwards[-1].phase == "decode"
                sets = [forwards[-1].of(0)] if kind == "d" else []
                found.feed(kind, tokens[0, start:end], forwards[-1].logits[0], sets)
    found.kinds = row.kinds
    return found


def _stretches(row: Row) -> Iterator[tuple[int, int, str]]:
    """Start and end of each prompt, and of each decoded token, after the foreign ones."""
    place = row.foreign
    while place < len(row.tokens):
        end = place + 1
        if row.kinds[place] == "d":
            yield place, end, "d"
        else:
            while end < len(row.tokens) and row.kinds[end] != "d":
                end += 1
            yield place, end, "p"
        place = end


# The shapes.

RUN: dict[str, Callable[[Play], list[Row]]] = {}
"""By the names in `contract.SHAPES`."""


def shape(play: Callable[[Play], list[Row]]) -> Callable[[Play], list[Row]]:
    RUN[play.__name__] = play
    return play


@shape
def single(play: Play) -> list[Row]:
    with play.attach() as run:
        rows = play.generate(tiny.prompts((9,)))
        play.achieved = run.achieved_sparsity()
    return rows


@shape
def left(play: Play) -> list[Row]:
    with play.attach() as run:
        rows = play.generate(tiny.prompts(LENGTHS))
        play.achieved = run.achieved_sparsity()
    return rows


@shape
def right_by_hand(play: Play) -> list[Row]:
    with play.attach():
        return play.hand(*tiny.padded(tiny.prompts(LENGTHS), "right")).steps().rows


@shape
def right_generate(play: Play) -> list[Row]:
    tokens, mask = tiny.padded(tiny.prompts(LENGTHS), "right")
    with play.attach():
        play.model.generate(tokens, attention_mask=mask.long(), max_new_tokens=NEW)
    return []


@shape
def chunks(play: Play) -> list[Row]:
    tokens, mask = tiny.padded(tiny.prompts((11, 4)))
    with play.attach() as run:
        hand = play.hand(tokens[:, :5], mask[:, :5])
        for part in (slice(5, 10), slice(10, 11)):
            with run.prefill():
                hand.feed(tokens[:, part], mask[:, part])
        return hand.steps().rows


@shape
def chunks_generate(play: Play) -> list[Row]:
    with play.attach():
        return play.generate(tiny.prompts((11, 11)), prefill_chunk_size=4, prefills=3)


@shape
def teacher_forced(play: Play) -> list[Row]:
    with play.attach() as run:
        hand = play.hand(*tiny.padded(tiny.prompts(LENGTHS)))
        with run.decode():
            hand.feed(tiny.text(3, 3, seed=5))
        return hand.rows


@shape
def second_turn(play: Play) -> list[Row]:
    prompts, more, cache = tiny.prompts((6, 6)), tiny.text(2, 3, seed=6), tiny.new_cache(play.model)
    with play.attach():
        rows = play.generate(prompts, **play.on(cache))
        for number, row in enumerate(rows):
            row.feed(".", play.new[number, -1:])  # no forward of its own turn saw it
            row.feed("p", more[number])
        turn = torch.tensor([row.tokens for row in rows])  # a generated token may be that which pads
        return play.go_on(rows, turn, attention_mask=torch.ones_like(turn), **play.on(cache))


@shape
def second_turn_by_hand(play: Play) -> list[Row]:
    with play.attach() as run:
        hand = play.hand(*tiny.padded(tiny.prompts((5, 3)))).steps(count=2)
        with run.prefill():
            hand.feed(tiny.text(2, 3, seed=6))
        return hand.steps(seed=7).rows


def _prefix(play: Play, run: Run, tokens: Tensor) -> Hand:
    hand = Hand(play, tiny.new_cache(play.model), [Row() for _ in tokens])
    with run.prefill():
        hand.feed(tokens)
    return hand


@shape
def prefix(play: Play) -> list[Row]:
    with play.attach() as run:
        shared = _prefix(play, run, tiny.text(1, 5))
        one, other, through = (copy.deepcopy((shared.rows, shared.cache)) for _ in range(3))
        hands = []
        for seed, (rows, cache) in enumerate((one, other)):
            hands.append(Hand(play, cache, rows))
            with run.prefill():
                hands[-1].feed(tiny.text(1, 2 + seed, seed=10 + seed))
        for hand in (*hands, *reversed(hands)):
            hand.steps(count=2)
        rows, cache = through
        rows[0].feed("p", tiny.text(1, 3, seed=12)[0])
        play.go_on(rows, torch.tensor([rows[0].tokens]), **play.on(cache))
        return [*hands[0].rows, *hands[1].rows, *rows]


@shape
def prefix_expanded(play: Play) -> list[Row]:
    with play.attach() as run:
        shared = _prefix(play, run, tiny.text(1, 5))
        shared.cache.batch_repeat_interleave(3)
        hand = Hand(play, shared.cache, [copy.deepcopy(shared.rows[0]) for _ in range(3)])
        with run.prefill():
            hand.feed(tiny.text(3, 3, seed=11))
        return hand.steps().rows


@shape
def cropped(play: Play) -> list[Row]:
    with play.attach():
        hand = play.hand(tiny.text(2, 6)).steps(count=3)
        hand.cache.crop(-2)
        rows = [Row(row.tokens[:-2], row.kinds[:-2], row.logits, row.kept) for row in hand.rows]
        return Hand(play, hand.cache, rows).steps(seed=7, count=3).rows


@shape
def cropped_prompt(play: Play) -> list[Row]:
    with play.attach() as run:
        hand = play.hand(tiny.text(1, 6))
        hand.cache.crop(-2)
        hand = Hand(play, hand.cache, [Row(row.tokens[:-2], row.kinds[:-2]) for row in hand.rows])
        with run.prefill():
            hand.feed(tiny.text(1, 2, seed=6))
        return hand.steps(seed=7, count=2).rows


@shape
def foreign(play: Play) -> list[Row]:
    prompt, cache = tiny.text(2, 6), tiny.new_cache(play.model)
    with torch.no_grad():
        play.model(prompt, **play.on(cache))
    rows = [Row(tokens.tolist(), "." * 6, foreign=6) for tokens in prompt]
    play.in_float64 = play.method.quantization is None  # before, its weights were not rounded
    with play.attach():
        return Hand(play, cache, rows).steps().rows


@shape
def reordered(play: Play) -> list[Row]:
    with play.attach():
        hand = play.hand(*tiny.padded(tiny.prompts(LENGTHS))).steps(count=1)
        for indices, method in ([2, 0, 1], "reorder_cache"), ([2, 0, 0], "batch_select_indices"):
            getattr(hand.cache, method)(torch.tensor(indices))
            hand.rows = [copy.deepcopy(hand.rows[row]) for row in indices]
            hand.mask = hand.mask[indices]
            hand.steps(count=2)
        return hand.rows


@shape
def static(play: Play) -> list[Row]:
    with play.attach():
        return play.generate(tiny.prompts(LENGTHS), cache_implementation="static")


@shape
def beyond_window(play: Play) -> list[Row]:
    with play.attach():
        return play.generate(tiny.prompts((20, 13)), max_new_tokens=6)


class ExactLayer(QuantizedLayer):
    """A layer of a quantised cache that loses nothing."""

    def _quantize(self, tensor: Tensor, axis: int) -> Any:
        return tensor.clone()

    def _dequantize(self, q_tensor: Any) -> Any:
        return q_tensor


class EightBitLayer(QuantizedLayer):
    """A layer of a cache in int8, a scale for each head of a token."""

    def _quantize(self, tensor: Tensor, axis: int) -> Any:
        scale = tensor.float().abs().amax(-1, keepdim=True).clamp(min=1e-6) / 127
        return (tensor.float() / scale).round().to(torch.int8), scale, tensor.dtype

    def _dequantize(self, q_tensor: Any) -> Any:
        values, scale, dtype = q_tensor
        return (values * scale).to(dtype)


def _quantised(play: Play, kind: type[QuantizedLayer]) -> list[Row]:
    play.new_cache = lambda: Cache(layers=[kind(residual_length=3) for _ in range(tiny.LAYERS)])
    with play.attach():
        return play.generate(tiny.prompts((7, 5)), max_new_tokens=7, **play.on(play.new_cache()))


@shape
def quantised_exact(play: Play) -> list[Row]:
    return _quantised(play, ExactLayer)


@shape
def quantised_int8(play: Play) -> list[Row]:
    play.in_float64 = False
    return _quantised(play, EightBitLayer)


@contextmanager
def _press(model: Any) -> Iterator[None]:
    """Drop every third key of a prompt after each layer's attention, and the first never."""

    def press(index: int, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        cache = given_cache(kwargs)
        if cache is not None and output[0].shape[1] > 1:
            layer = cache.layers[index]
            kept = torch.arange(layer.keys.shape[2]) % 3 != 1
            layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]

    found = [module for module in model.modules() if hasattr(module, "q_proj")]
    hooks = [
        module.register_forward_hook(functools.partial(press, index), with_kwargs=True)
        for index, module in enumerate(found)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@shape
def compressed(play: Play) -> list[Row]:
    play.in_float64, play.around = False, functools.partial(_press, play.model)
    with play.attach(), _press(play.model):
        hand = play.hand(tiny.text(2, 8)).steps(sees_all=False)
    assert all(layer.keys.shape[2] == 5 + NEW for layer in hand.cache.layers)
    return hand.rows


@shape
def samples(play: Play) -> list[Row]:
    with play.attach():
        return play.generate(tiny.prompts((7, 3)), copies=2, num_return_sequences=2, do_sample=True, top_k=0)


@shape
def sampled(play: Play) -> list[Row]:
    with play.attach():
        torch.manual_seed(7)
        rows = play.generate(tiny.prompts((7, 3)), do_sample=True, top_k=0)
        torch.manual_seed(7)
        play.generate(tiny.prompts((7, 3)), do_sample=True, top_k=0)
    torch.manual_seed(7)
    for step in range(NEW):
        logits = torch.stack([row.logits[len(row.tokens) - NEW + step] for row in rows])
        assert torch.equal(torch.multinomial(logits.float().softmax(-1), 1)[:, 0], play.new[:, step])
    return rows


@shape
def beams(play: Play) -> list[Row]:
    options = {"num_beams": 3, "output_scores": True, "length_penalty": 0.0}
    with play.attach():
        return play.generate(
            tiny.prompts((7, 3)), picked=lambda output, row, step: int(output.beam_indices[row, step]), **options
        )


@shape
def ended(play: Play) -> list[Row]:
    with play.attach():
        play.generate(tiny.prompts((7, 3, 5)))
        end = int(play.new[0, 1])
    with play.attach() as run:
        rows = play.generate(tiny.prompts((7, 3, 5)), eos_token_id=end, cut=end)
        play.achieved = run.achieved_sparsity()
    assert len(rows[0].decoded) < NEW - 1
    return rows


@shape
def guidance(play: Play) -> list[Row]:
    (prompt,) = tiny.prompts((7,))
    asked, unasked = Row(), Row()
    asked.feed("p", prompt)
    unasked.feed("p", prompt[-1:])
    with play.attach():
        play.go_on([asked], prompt.unsqueeze(0), guidance_scale=1.5, every=2)
    for step, forward in enumerate(play.forwards[1::2]):
        if step == 0:
            unasked.logits[0] = forward.logits[0, -1]
        else:
            unasked.feed("d", play.new[0, step - 1 : step], forward.logits[0, -1:], [forward.of(0)])
    return [asked, unasked]


@shape
def assisted(play: Play) -> list[Row]:
    with play.attach():
        play.model.generate(tiny.text(1, 9), max_new_tokens=NEW, prompt_lookup_num_tokens=2)
    return []


@shape
def custom(play: Play) -> list[Row]:
    """As contrastive search: two candidates of each row are tried, and the second is gone on with."""

    def contrast(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
        cache = given_cache(kwargs)
        logits = model(input_ids, **play.on(cache)).logits[:, -1]
        for _ in range(NEW - 1):
            tried = logits.topk(2).indices.view(-1, 1)
            cache.batch_repeat_interleave(2)
            second = torch.arange(len(input_ids)) * 2 + 1
            logits = model(tried, **play.on(cache)).logits[second, -1]
            cache.batch_select_indices(second)
            input_ids = torch.cat([input_ids, tried[second]], 1)
        return torch.cat([input_ids, logits.argmax(-1, keepdim=True)], 1)

    with play.attach():
        return play.generate(
            tiny.prompts((7, 7)),
            custom_generate=contrast,
            picked=lambda _, row, step: row if step == 0 else 2 * row + 1,
        )


@shape
def continuous(play: Play) -> list[Row]:
    with play.attach():
        play.model.generate_batch(inputs=[[1, 2, 3]])
    return []


@functools.cache
def _words() -> Any:
    tokenizer = Tokenizer(models.WordLevel({f"w{token}": token for token in range(tiny.VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0")


@shape
def through_pipeline(play: Play) -> list[Row]:
    text = pipeline("text-generation", model=play.model, tokenizer=_words(), device="cpu")
    row, (prompt,) = Row(), tiny.prompts((7,))
    row.feed("p", prompt)
    with play.attach():
        asked = " ".join(f"w{token}" for token in prompt.tolist())
        found = text(asked, max_new_tokens=NEW, do_sample=False, return_tensors=True)[0]["generated_token_ids"]
    assert found[:7] == prompt.tolist()
    assert [forward.phase for forward in play.forwards] == ["prefill"] + ["decode"] * (NEW - 1)
    row.logits[6] = play.forwards[0].logits[0, -1]
    for step, forward in enumerate(play.forwards[1:]):
        row.feed("d", torch.tensor(found[7 + step : 8 + step]), forward.logits[0, -1:], [forward.of(0)])
    return [row]


@shape
def embeddings(play: Play) -> list[Row]:
    prompt = tiny.text(2, 6)
    rows = [Row() for _ in prompt]
    for row, tokens in zip(rows, prompt, strict=True):
        row.feed("p", tokens)
    with play.attach():
        embedded = play.model.get_input_embeddings()(prompt).detach()
        return play.go_on(rows, None, inputs_embeds=embedded)


@shape
def called_directly(play: Play) -> list[Row]:
    with play.attach():
        hand = Hand(play, tiny.new_cache(play.model), [Row(), Row()])
        hand.feed(tiny.text(2, 6), call=play.model.forward)
        return hand.steps(call=play.model.forward).rows


def _dense_rows(prompt: Tensor, logits: Tensor) -> list[Row]:
    rows = [Row() for _ in prompt]
    for row, tokens, found in zip(rows, prompt, logits, strict=True):
        row.feed("p", tokens, found)
    return rows


@shape
def no_cache(play: Play) -> list[Row]:
    with play.attach():
        return _dense_rows(tiny.text(2, 6), play.model(tiny.text(2, 6), use_cache=False).logits)


@shape
def perplexity(play: Play) -> list[Row]:
    rows = []
    with play.attach():
        for seed in range(2):
            rows += _dense_rows(tiny.text(1, 6, seed=seed), play.model(tiny.text(1, 6, seed=seed)).logits)
    return rows


@shape
def inner(play: Play) -> list[Row]:
    with play.attach():
        logits = play.model.lm_head(play.model.model(tiny.text(2, 6)).last_hidden_state)
    cap = getattr(play.model.config, "final_logit_softcapping", None)
    return _dense_rows(tiny.text(2, 6), logits if cap is None else cap * torch.tanh(logits / cap))


@shape
def without_cache(play: Play) -> list[Row]:
    with play.attach():
        play.model.generate(tiny.text(1, 6), max_new_tokens=NEW, use_cache=False)
    return []


def _scored(play: Play, protocol: Any) -> list[Row]:
    prompts, continuations = tiny.prompts((7, 2, 5)), tiny.prompts((4, 3, 2), seed=1)
    (prompt_ids, prompt_mask), (ids, mask) = tiny.padded(prompts), tiny.padded(continuations, "right")
    execution: Any = play.case.execution
    scores = tda.score(
        play.model,
        play.method,
        prompt_ids,
        ids,
        play.thresholds,
        prompt_mask=prompt_mask,
        continuation_mask=mask,
        protocol=protocol,
        execution=execution,
    )
    decoded, rows = play.forwards[-1], [Row() for _ in prompts]
    width = decoded.logits.shape[1]
    for number, (row, prompt, continuation) in enumerate(zip(rows, prompts, continuations, strict=True)):
        fed = torch.cat([prompt, continuation[:-1]])
        # Under "griffin" rows end together; else they begin together, and what follows their end is padding.
        sparse = 1 if protocol == "griffin" else len(continuation) - (protocol == "decode")
        kept = [decoded.of(number, place) for place in range(width)][:sparse]
        row.feed("p", fed[: len(fed) - sparse])
        row.feed("d", fed[len(fed) - sparse :], kept=kept)
        if protocol == "all_sparse":
            end = len(prompt)
            row.kinds = row.kinds[: end - 1] + "D" + row.kinds[end:]
        row.logits = {len(prompt) - 1 + g: scores.logits[number, g] for g in range(len(continuation))}
        assert scores.sparse[number, : len(continuation)].tolist() == [
            row.kinds[place] in "dD" for place in sorted(row.logits)
        ]
    play.achieved = list(scores.achieved_sparsity)
    return rows


@shape
def score_decode(play: Play) -> list[Row]:
    return _scored(play, "decode")


@shape
def score_all_sparse(play: Play) -> list[Row]:
    return _scored(play, "all_sparse")


@shape
def score_griffin(play: Play) -> list[Row]:
    return _scored(play, "griffin")

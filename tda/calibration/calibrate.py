"""Dense passes over calibration text, then thresholds for any number of methods."""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from tda.contracts import Method
from tda.contracts.options import check_sparsity
from tda.engine.attached import ATTACHED
from tda.engine.context import check_context, context_length
from tda.engine.identity import identify
from tda.engine.overrides import Overrides
from tda.engine.plain import plain
from tda.engine.rotary import Rotary
from tda.engine.selfcheck import check_family
from tda.engine.transformers_api import positions, text_config
from tda.families import check_model, find_ffns, layers_of
from tda.finite import NotFiniteError, explained
from tda.fitting.collect import Batch, BlockCall, Collector
from tda.kernels.products import widening
from tda.thresholds import TextHashes, Thresholds, hash_text
from tda.view import FFN, Handle, Place, Source, by_row

MethodT = TypeVar("MethodT", bound=Method)
BLOCK_ROWS, BLOCK_TOKENS = 4, 128
"""Documents, and tokens of each, that whole blocks are shown on: a search runs them many times."""


def calibrate(
    model: nn.Module,
    method: Method,
    batches: Iterable[dict[str, Tensor]],
    *,
    layer_sparsity: Sequence[float] | None = None,
    progress: bool = True,
) -> Thresholds:
    """Find a method's thresholds on calibration text.

    Parameters
    ----------
    model : nn.Module
        A supported decoder.
    method : Method
        A method that needs thresholds; its `sparsity` or `cett` is the target.
    batches : iterable of dict
        ``{"input_ids": [B, T], "attention_mask": [B, T]}``; a row is a document. Use text that is not evaluated on:
        its hashes are kept, and `tda.score` refuses it.
    layer_sparsity : sequence of float, optional
        The share that each layer leaves out, instead of the method's own allocation.
    progress : bool
        Whether to show a progress bar (on a terminal only).

    Returns
    -------
    Thresholds
        The artifact.

    Raises
    ------
    TypeError, ValueError
        If the method needs no thresholds, there is no text, or a batch has the wrong form or is longer than the
        model's context. NotFiniteError if what it measures on the text is not finite.
    """
    return calibrate_all(model, [method], batches, layer_sparsity=[layer_sparsity], progress=progress)[0]


def fit(model: nn.Module, method: MethodT, data: Iterable[Any], tokenizer: Any = None) -> MethodT:
    """Fit a method; see `tda.contracts.Method.fit`."""
    if isinstance(data, str | bytes | Tensor):
        raise TypeError(f"give several texts, as method.fit(model, [text, ...], tokenizer), got {type(data).__name__}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model comes first, as method.fit(model, texts, tokenizer); got {type(model).__name__}")
    batches: list[Any] = [data] if isinstance(data, Mapping) else list(data)
    if any(isinstance(one, str) for one in batches):
        batches = _batches(batches, tokenizer, context_length(text_config(model)))
    return method.with_thresholds(calibrate(model, method, batches)) if method.needs_fit else method


def _batches(texts: Sequence[Any], tokenizer: Any, most: int | None) -> list[dict[str, Tensor]]:
    """Texts as batches of one, of so many tokens at most."""
    if tokenizer is None:
        raise TypeError("texts need the model's tokenizer: method.fit(model, texts, tokenizer)")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("give texts or batches of tokens, not both")
    return [{"input_ids": torch.tensor([tokenizer(text)["input_ids"][:most]])} for text in texts]


@torch.no_grad()
def calibrate_all(
    model: nn.Module,
    methods: Sequence[Method],
    batches: Iterable[dict[str, Tensor]],
    *,
    layer_sparsity: Sequence[Sequence[float] | None] | None = None,
    progress: bool = True,
) -> list[Thresholds]:
    """As `calibrate`, for several methods in one pass over the text."""
    ffns = find_ffns(model)
    check_model(model, ffns)
    if model in ATTACHED:
        raise ValueError("a method is attached to this model; calibrate outside of that `with` block")
    for method in methods:
        if not (isinstance(method, Method) and method.needs_fit):
            raise ValueError(
                f"method {getattr(method, 'name', method)!r} needs no thresholds: it chooses without calibration text"
            )
        method.check(ffns[0])
    given = layer_sparsity or [None] * len(methods)
    for method, shares in zip(methods, given, strict=True):
        count = len(method.places(model, ffns))
        if shares is not None and len(shares) != count:
            raise ValueError(f"layer_sparsity has {len(shares)} entries for {count} layers")
        for share in shares or ():
            check_sparsity(share)
    rotary = Rotary(model)
    restore = rotary.keep()
    try:
        check_family(model, ffns)
        return _calibrate(model, ffns, methods, batches, given, rotary, progress)
    finally:
        restore()


def _calibrate(
    model: nn.Module,
    ffns: list[FFN],
    methods: Sequence[Method],
    batches: Iterable[dict[str, Tensor]],
    given: Sequence[Sequence[float] | None],
    rotary: Rotary,
    progress: bool,
) -> list[Thresholds]:
    """Pass over the text until no method lacks anything; methods that differ in their target share a collector."""
    fitted = [dataclasses.replace(method) for method in methods]  # none of them fitted yet
    text = list(batches) if isinstance(batches, Iterator) else batches
    while True:
        collecting: dict[str, Collecting] = {}
        for method in fitted:
            places = method.places(model, ffns)
            collector = method.collector(len(places))
            if collector is not None:
                collecting.setdefault(_collects(method), Collecting(collector, method.activation, places))
        if not collecting:
            return [method.fitted for method in fitted]
        try:
            hashes = _pass(model, ffns, list(collecting.values()), text, rotary, progress)
        except NotFiniteError as error:
            raise explained(model, str(error)) from None
        for place, (method, shares) in enumerate(zip(fitted, given, strict=True)):
            if (found := collecting.get(_collects(method))) is not None:
                fitted[place] = _fitted(model, ffns, method, found, hashes, shares)


class Collecting(NamedTuple):
    """A collector, the activation that it is shown, and the places whose it is."""

    collector: Collector
    source: Source
    places: Sequence[Place]


def _collects(method: Method) -> str:
    """Equal for methods that differ in their target only."""
    target = ("sparsity", "cett", "allocation")
    return repr({name: value for name, value in method.calibrated.items() if name not in target})


def _pass(
    model: nn.Module,
    ffns: list[FFN],
    collecting: Sequence[Collecting],
    batches: Iterable[dict[str, Tensor]],
    rotary: Rotary,
    progress: bool,
) -> TextHashes:
    """Run the text through the dense model, every layer shown to every collector; return the text's hashes."""
    current: list[Batch] = []
    overrides = Overrides()
    for places in {id(one.places): one.places for one in collecting}.values():
        for place in places:
            for hook in _watch(place, [one for one in collecting if one.places is places], current):
                overrides.later(hook.remove)
    rows: list[NDArray[np.int64]] = []
    try:
        for tokens, mask in _checked(batches, ffns[0].up.weight.device, progress):
            check_context(model, int(mask.sum(1).max()), 1)
            current[:] = [Batch.of(mask, positions(mask))]
            rotary.reset()
            _run(model, tokens, current[0])
            current.clear()  # nobody sees the same tokens twice
            if not rows and any(one.collector.sees_blocks for one in collecting):
                _show_blocks(model, tokens[:BLOCK_ROWS, :BLOCK_TOKENS], mask[:BLOCK_ROWS, :BLOCK_TOKENS], collecting)
            rows += [row[inside].cpu().numpy() for row, inside in zip(tokens, mask, strict=True)]
    finally:
        overrides.undo()
    if not rows:
        raise ValueError("no calibration text: `batches` is empty")
    return hash_text(rows)


def _checked(
    batches: Iterable[dict[str, Tensor]], device: torch.device, progress: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    console = Console(stderr=True)
    total = len(batches) if isinstance(batches, Sequence) else None
    with Progress(console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        for batch in bar.track(batches, total=total, description="calibrating"):
            held = batch.get("input_ids") if isinstance(batch, Mapping) else None
            if not isinstance(held, Tensor) or held.dim() != 2:
                raise TypeError(
                    f'a calibration batch is {{"input_ids": [B, T], "attention_mask": [B, T]}}, got {batch!r:.80}'
                )
            tokens, given = held.to(device), batch.get("attention_mask")
            mask = (torch.ones_like(tokens) if given is None else given.to(device)).bool()
            if mask.shape != tokens.shape or not bool(mask.any(1).all()):
                raise ValueError("attention_mask must have the shape of input_ids and leave a token in every row")
            yield tokens, mask


def _watch(place: Place, collecting: Sequence[Collecting], current: list[Batch]) -> Iterator[Handle]:
    def see(passing: Mapping[str, Tensor], tokens: Tensor | None) -> None:
        for collector, source, _ in collecting if current else ():
            a, x, batch = passing[source], passing["x"], current[0]
            if tokens is None:
                a, x = a.view(*batch.mask.shape, -1), x.view(*batch.mask.shape, -1)
            else:
                places, inside = by_row(tokens, batch.mask)
                a, x, batch = a[places], x[places], batch.part(tokens[places], inside)
            collector.observe(place, a, x, batch)

    return place.watch(see, {one.source for one in collecting}, inputs=True)


def _run(model: nn.Module, tokens: Tensor, batch: Batch) -> None:
    """Run calibration text through the dense model."""
    with plain(model), widening(model):
        model(
            input_ids=tokens,
            attention_mask=batch.mask.long(),
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=1,
        )


def _show_blocks(model: nn.Module, tokens: Tensor, mask: Tensor, collecting: Sequence[Collecting]) -> None:
    """Show every layer's call on a few tokens to the collectors that ask for it."""
    batch, overrides = Batch.of(mask, positions(mask)), Overrides()
    shown = [Collecting(one.collector, one.source, ()) for one in collecting if one.collector.sees_blocks]

    def before(number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for one in shown:
            one.collector.block(number, BlockCall(module, args, kwargs, batch))

    for number, layer in enumerate(layers_of(model)):
        hook = layer.register_forward_pre_hook(functools.partial(before, number), with_kwargs=True)
        overrides.later(hook.remove)
    try:
        _run(model, tokens, batch)
    finally:
        overrides.undo()


def _fitted(
    model: nn.Module,
    ffns: list[FFN],
    method: Method,
    collecting: Collecting,
    text: TextHashes,
    layer_sparsity: Sequence[float] | None,
) -> Method:
    found = collecting.collector.found(collecting.places, method.shares, layer_sparsity)
    if method.thresholds is not None:
        return method.with_thresholds(method.thresholds.model_copy(update=found))
    made = Thresholds(
        method=method.calibrated,
        model=identify(model, ffns),
        dtype=str(ffns[0].up.weight.dtype).removeprefix("torch."),
        text=text,
        versions={name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        **found,
    )
    return method.with_thresholds(made)

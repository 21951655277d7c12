"""Dense passes over calibration text, then thresholds for any number of methods."""

import dataclasses
import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from tda.contracts import Method
from tda.engine.context import check_context
from tda.engine.identity import identify
from tda.engine.overrides import Overrides
from tda.engine.plain import plain
from tda.engine.rotary import Rotary
from tda.engine.selfcheck import check_family
from tda.engine.transformers_api import positions
from tda.families import check_model, find_ffns
from tda.finite import NotFiniteError, explained
from tda.fitting.collect import Batch, Collector
from tda.kernels.products import widening
from tda.thresholds import TextHashes, Thresholds, hash_text
from tda.view import FFN, Handle, Source, by_row

Made = TypeVar("Made", bound=Method)


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


def fit(model: nn.Module, method: Made, data: Iterable[Any], tokenizer: Any = None) -> Made:
    """Fit a method; see `tda.contracts.Method.fit`."""
    batches = list(data)
    if any(isinstance(one, str) for one in batches):
        batches = _batches(batches, tokenizer)
    return method.with_thresholds(calibrate(model, method, batches)) if method.needs_fit else method


def _batches(texts: Sequence[Any], tokenizer: Any) -> list[dict[str, Tensor]]:
    """Texts as batches of one."""
    if tokenizer is None:
        raise TypeError("texts need the model's tokenizer: method.fit(model, texts, tokenizer)")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("give texts or batches of tokens, not both")
    return [{"input_ids": torch.tensor([tokenizer(text)["input_ids"]])} for text in texts]


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
    for method in methods:
        if not (isinstance(method, Method) and method.needs_fit):
            raise ValueError(
                f"method {getattr(method, 'name', method)!r} needs no thresholds: it chooses without calibration text"
            )
        method.check(ffns[0])
    given = layer_sparsity or [None] * len(methods)
    for shares in given:
        if shares is not None and len(shares) != len(ffns):
            raise ValueError(f"layer_sparsity has {len(shares)} entries for {len(ffns)} layers")
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
        collectors: dict[str, Collector] = {}
        sources: dict[str, Source] = {}
        for method in fitted:
            collector = method.collector(len(ffns))
            if collector is not None:
                collectors.setdefault(_collects(method), collector)
                sources[_collects(method)] = method.activation
        if not collectors:
            return [method.fitted for method in fitted]
        try:
            hashes = _pass(model, ffns, collectors, sources, text, rotary, progress)
        except NotFiniteError as error:
            raise explained(model, str(error)) from None
        for place, (method, shares) in enumerate(zip(fitted, given, strict=True)):
            if (collector := collectors.get(_collects(method))) is not None:
                fitted[place] = _fitted(model, ffns, method, collector, hashes, shares)


def _collects(method: Method) -> str:
    """Equal for methods that differ in their target only."""
    target = ("sparsity", "cett", "allocation")
    return repr({name: value for name, value in method.calibrated.items() if name not in target})


def _pass(
    model: nn.Module,
    ffns: list[FFN],
    collectors: dict[str, Collector],
    sources: dict[str, Source],
    batches: Iterable[dict[str, Tensor]],
    rotary: Rotary,
    progress: bool,
) -> TextHashes:
    """Run the text through the dense model, every layer shown to every collector; return the text's hashes."""
    current: list[Batch] = []
    overrides = Overrides()
    for ffn in ffns:
        for hook in _watch(ffn, collectors, sources, current):
            overrides.later(hook.remove)
    rows: list[NDArray[np.int64]] = []
    try:
        for tokens, mask in _checked(batches, ffns[0].up.weight.device, progress):
            check_context(model, int(mask.sum(1).max()), 1)
            current[:] = [Batch.of(mask, positions(mask))]
            rotary.reset()
            with plain(model), widening(model):
                model(
                    input_ids=tokens,
                    attention_mask=mask.long(),
                    position_ids=current[0].positions,
                    use_cache=False,
                    logits_to_keep=1,
                )
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
            if not isinstance(batch, dict) or "input_ids" not in batch or batch["input_ids"].dim() != 2:
                raise TypeError(
                    f'a calibration batch is {{"input_ids": [B, T], "attention_mask": [B, T]}}, got {batch!r:.80}'
                )
            tokens = batch["input_ids"].to(device)
            mask = batch.get("attention_mask", torch.ones_like(tokens)).to(device).bool()
            if mask.shape != tokens.shape or not bool(mask.any(1).all()):
                raise ValueError("attention_mask must have the shape of input_ids and leave a token in every row")
            yield tokens, mask


def _watch(
    ffn: FFN, collectors: dict[str, Collector], sources: dict[str, Source], current: list[Batch]
) -> Iterator[Handle]:
    def see(passing: Mapping[str, Tensor], tokens: Tensor | None) -> None:
        for key, collector in collectors.items():
            a, x = passing[sources[key]], passing["x"]
            batch = current[0]
            if tokens is None:
                a, x = a.view(*batch.mask.shape, -1), x.view(*batch.mask.shape, -1)
            else:
                places, inside = by_row(tokens, batch.mask)
                a, x, batch = a[places], x[places], batch.part(tokens[places], inside)
            collector.observe(ffn, a, x, batch)

    return ffn.watch(see, set(sources.values()), inputs=True)


def _fitted(
    model: nn.Module,
    ffns: list[FFN],
    method: Method,
    collector: Collector,
    text: TextHashes,
    layer_sparsity: Sequence[float] | None,
) -> Method:
    found = collector.found(ffns, method.shares, layer_sparsity)
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

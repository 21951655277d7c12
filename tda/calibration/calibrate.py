"""One dense pass over calibration text, then thresholds for any number of methods."""

import importlib.metadata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from tda.calibration.allocate import at_level, equal_error, error_curve
from tda.calibration.collect import Batch, Collector, MeanCollector, PromptCollector, TokenCollector
from tda.calibration.histogram import Histogram
from tda.contracts import FFN, ErrorControlled, Method, Source, TokenMethod
from tda.engine.context import check_context
from tda.engine.identity import identify
from tda.engine.overrides import Overrides
from tda.engine.plain import plain
from tda.engine.rotary import Rotary
from tda.engine.selfcheck import check_family
from tda.engine.transformers_api import positions
from tda.families import check_model, find_ffns
from tda.finite import NotFiniteError, explained
from tda.kernels.products import widening
from tda.methods.static_mean import StaticMean
from tda.methods.tda import TDA
from tda.thresholds import TextHashes, Thresholds, hash_text


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
        if not (isinstance(method, Method) and method.needs_thresholds):
            raise ValueError(f"method {getattr(method, 'name', method)!r} needs no thresholds")
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
    collectors: dict[str, Collector] = {}
    for method in methods:
        if _collects(method) not in collectors:
            collectors[_collects(method)] = _collector(method, len(ffns))
    sources = {key: next(m.activation for m in methods if _collects(m) == key) for key in collectors}
    try:
        text = _pass(model, ffns, collectors, sources, batches, rotary, progress)
    except NotFiniteError as error:
        raise explained(model, str(error)) from None
    return [
        _thresholds(model, ffns, method, collectors[_collects(method)], text, shares)
        for method, shares in zip(methods, given, strict=True)
    ]


def _collects(method: Method) -> str:
    """Equal for methods that differ in their target only."""
    target = ("sparsity", "cett", "allocation")
    return repr({name: value for name, value in method.calibrated.items() if name not in target})


def _collector(method: Method, layers: int) -> Collector:
    if isinstance(method, StaticMean):
        return MeanCollector(method, layers)
    if isinstance(method, TDA):
        return PromptCollector(method, layers)
    assert isinstance(method, TokenMethod)
    return TokenCollector(method, layers)


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
            current[:] = [Batch(mask, positions(mask))]
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


def _watch(ffn: FFN, collectors: dict[str, Collector], sources: dict[str, Source], current: list[Batch]) -> list[Any]:
    parts: dict[str, Tensor] = {}

    def entering(module: nn.Module, args: tuple[Any, ...]) -> None:
        parts["x"] = args[0]

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            parts[name] = output

        return hook

    def before_down(module: nn.Module, args: tuple[Any, ...]) -> None:
        parts["z"] = args[0]
        shape = current[0].mask.shape
        x = parts["x"].view(*shape, -1)
        for key, collector in collectors.items():
            collector.observe(ffn, parts[sources[key]].view(*shape, -1), x, current[0])
        parts.clear()

    hooks: list[Any] = [
        (ffn.block or ffn.up).register_forward_pre_hook(entering),
        ffn.down.register_forward_pre_hook(before_down),
    ]
    if "gate" in sources.values():
        hooks.append(ffn.act.register_forward_hook(keep("gate")))
    if "up" in sources.values():
        hooks.append(ffn.up.register_forward_hook(keep("up")))
    return hooks


def _thresholds(
    model: nn.Module,
    ffns: list[FFN],
    method: Method,
    collector: Collector,
    text: TextHashes,
    layer_sparsity: Sequence[float] | None,
) -> Thresholds:
    common: dict[str, Any] = {
        "method": method.calibrated,
        "model": identify(model, ffns),
        "dtype": str(ffns[0].up.weight.dtype).removeprefix("torch."),
        "text": text,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    }
    if isinstance(collector, MeanCollector):
        means = [(s / collector.prompts).tolist() for s in collector.sums if s is not None]
        return Thresholds(**common, scores=tuple(map(tuple, means)))
    lengths: list[int] = collector.lengths() if isinstance(collector, PromptCollector) else []
    per_layer = _histograms(collector, lengths)
    longest = [histograms[-1] for histograms in per_layer]
    if not longest[0].total:
        raise ValueError(
            f"method {method.name!r} chooses for decode tokens, and no calibration row has a second token; "
            "give longer text"
        )
    curves = []
    if layer_sparsity is None:
        curves = [error_curve(ffn, longest[ffn.index], collector.samples[ffn.index]) for ffn in ffns]
        if isinstance(method, ErrorControlled) and method.cett is not None:
            shares = at_level(curves, method.cett)
        elif isinstance(method, ErrorControlled) and method.allocation == "equal_error":
            assert method.sparsity is not None
            shares = equal_error(curves, method.sparsity)
        else:
            assert method.sparsity is not None
            shares = [method.sparsity] * len(ffns)
    else:
        shares = list(layer_sparsity)
    cuts = [
        tuple(histogram.quantile(share) for histogram in histograms)
        for histograms, share in zip(per_layer, shares, strict=True)
    ]
    return Thresholds(
        **common,
        lengths=tuple(lengths),
        cuts=tuple(cuts),
        targets=tuple(shares),
        achieved_sparsity=tuple(h.share_below(cut[-1]) for h, cut in zip(longest, cuts, strict=True)),
        cett=tuple(curve.error_at(share) for curve, share in zip(curves, shares, strict=bool(curves))),
    )


def _histograms(collector: Collector, lengths: list[int]) -> list[list[Histogram]]:
    """Histograms per layer, one for each length (or one)."""
    if isinstance(collector, PromptCollector):
        return [[by_length[length] for length in lengths] for by_length in collector.histograms]
    assert isinstance(collector, TokenCollector)
    return [[histogram] for histogram in collector.histograms]

"""Check a family's descriptions before they are trusted: they must compute what the model computes."""

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from tda.as_built import addition, modules_of
from tda.engine.graph import GraphStep
from tda.engine.overrides import Overrides
from tda.engine.phases import decode, prefill
from tda.engine.plain import plain
from tda.engine.transformers_api import attention_function, text_config
from tda.finite import check_weights, explained, not_finite
from tda.kernels.compact import CompactFFN
from tda.kernels.native import describe
from tda.kernels.native.step import Step
from tda.kernels.products import widening
from tda.view import FFN, Decoder, Experts, Handle

Structure = tuple[Any, ...]
_CHECKED: "weakref.WeakKeyDictionary[nn.Module, Structure]" = weakref.WeakKeyDictionary()
CheckedSteps = weakref.WeakKeyDictionary[nn.Module, tuple[Structure, str | None]]
_STEPS: CheckedSteps = weakref.WeakKeyDictionary()
_STATIC_STEPS: CheckedSteps = weakref.WeakKeyDictionary()
PROBE_TOKENS = 8
ADDED = "its modules have hooks or forwards of their own"
"""Why nothing runs in place of a whole model to which something was added."""
NOT_AS_SAID = "this model's FFN does more than its family declares; it is not supported"
VALUES = frozenset((bool, int, float, str, type(None)))
"""Types of a module's attributes that say how it computes."""


def structure(model: nn.Module) -> Structure | None:
    """What a model computes beside its weights: classes, functions and values of its modules, and its configuration.

    Checks that passed hold as long as it is the same. None where hooks or forwards were added to single modules: what
    they do is looked at anew every time.
    """
    found: list[Any] = []
    sources: dict[str, None] = {}
    for module in modules_of(model):
        if addition(module) is not None:
            return None
        kind = type(module)
        found += (kind, kind.forward)
        found += [item for item in module.__dict__.items() if type(item[1]) in VALUES]
        sources[kind.__module__] = None
    for name in sources:
        if not name.startswith("torch."):  # functions that the modules' forwards call, which some patch
            found += [value for value in vars(sys.modules[name]).values() if isinstance(value, FunctionType)]
    config: Any = model.config
    implementation = getattr(config, "_attn_implementation", None)
    device = next(model.parameters()).device.type
    casts = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return (*found, implementation, attention_function(implementation), config.to_json_string(use_diff=False), casts)


@torch.no_grad()
def check_family(model: nn.Module, ffns: list[FFN]) -> None:
    """Check that each FFN with all neurons kept, as the family describes it, equals the dense FFN.

    A probe of a few tokens runs through the model; each layer's inputs go through the fast path's own arithmetic
    with every neuron kept, and the result is compared with what the layer gave. One layer at a time, so that a
    large model needs little memory. A model that has passed is not checked again while its structure is the same.

    Raises
    ------
    ValueError
        If a layer disagrees: the model does more in its FFN than its family declares. NotFiniteError if a weight, or
        what the probe gives, is not finite.
    """
    same = structure(model)
    if same is not None and _CHECKED.get(model) == same:
        return
    check_weights(model)
    seen: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    overrides = Overrides()
    mixtures = list({id(ffn.experts): ffn.experts for ffn in ffns if ffn.experts is not None}.values())
    calls: dict[int, tuple[tuple[Tensor, ...], Tensor]] = {}
    for ffn in ffns:
        if ffn.experts is None:
            for hook in _record(ffn, seen):
                overrides.later(hook.remove)
    for number, experts in enumerate(mixtures):
        overrides.later(_record_experts(experts, number, calls).remove)
    try:
        with plain(model), widening(model):
            logits = model(input_ids=probe(model), use_cache=False).logits
            for number, experts in enumerate(mixtures):
                _compare_experts(experts, *calls[number])
            for ffn in ffns:
                if ffn.experts is not None:
                    continue
                if ffn.index not in seen:
                    raise ValueError(f"layer {ffn.index}: the model does not call its FFN's linears; {NOT_AS_SAID}")
                _check_finite(model, ffn, *seen[ffn.index])
                _compare(ffn, *seen[ffn.index])
            if found := not_finite(logits):
                raise explained(model, f"the logits of a probe of {PROBE_TOKENS} tokens hold {found}")
    finally:
        overrides.undo()
    if same is not None:
        _CHECKED[model] = same


def probe(model: nn.Module) -> Tensor:
    """Some tokens: int64 [1, T]."""
    vocabulary: int = text_config(model).vocab_size
    tokens = torch.arange(PROBE_TOKENS, device=next(model.parameters()).device) * 7 % vocabulary
    return tokens.unsqueeze(0)


@torch.no_grad()
def check_step(model: nn.Module, decoder: Decoder, ffns: list[FFN]) -> str | None:
    """Check that a whole decode step, as the family describes it, gives the model's logits.

    What was found holds while the model's structure is the same.

    Returns
    -------
    str or None
        Why the step is not to be trusted; None where it agrees.

    Raises
    ------
    UndescribedError
        If the kernels do not know something that the model computes.
    """
    return _known(_STEPS, model, lambda: _compare_steps(model, Step(decoder, [describe.feed_forward(f) for f in ffns])))


@torch.no_grad()
def check_static_step(model: nn.Module) -> str | None:
    """Check that a decode step of the model's own forward on a static cache, as it is captured, gives its logits.

    Returns
    -------
    str or None
        Why the step cannot be captured; None where it agrees.
    """

    def compare() -> str | None:
        try:
            return _compare_steps(model, GraphStep(model, capture=lambda work: work))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a forward of any model may fail there in any way
            return f"its step on a static cache fails: {type(error).__name__}: {error}"

    try:
        return _known(_STATIC_STEPS, model, compare)
    except torch.OutOfMemoryError:  # another time there may be memory
        return "there is no memory to try its step on a static cache"


def _known(found: CheckedSteps, model: nn.Module, compare: Callable[[], str | None]) -> str | None:
    """What a comparison found while the model's structure was the same; else what it finds now."""
    same = structure(model)
    if same is None:
        return ADDED
    known, reason = found.get(model, (None, None))
    if known != same:
        with plain(model), widening(model):
            reason = compare()
        found[model] = (same, reason)
    return reason


def _compare_steps(model: nn.Module, step: Any) -> str | None:
    tokens = probe(model)
    ours, theirs = (prefill(model, tokens[:, :-1]).cache for _ in range(2))
    problem: str | None = step.problem(ours, 1)
    if problem is not None:
        return problem
    for token in (tokens[:, -1:], tokens[:, :1]):
        position = torch.full_like(token, ours.get_seq_length())
        exact = decode(model, token, theirs)
        tolerance = 1e-4 if exact.dtype == torch.float32 else 5e-2
        if not _close(step(token, position, ours)[0], exact, tolerance):
            return "a whole step does not give the model's logits"
    return None


def _record(ffn: FFN, seen: dict[int, tuple[Tensor, Tensor, Tensor]]) -> Iterator[Handle]:
    """Note a layer's FFN input x, its z and its output y as they pass."""
    parts: dict[str, Tensor] = {}

    def see(passing: Mapping[str, Tensor], tokens: Tensor | None) -> None:
        parts.update(passing)

    def leaving(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if "z" in parts:
            x, z, y = (value.detach() for value in (parts["x"], parts["z"], output))
            seen[ffn.index] = x, z, y.clone()  # some models add to it in place

    yield from ffn.watch(see, inputs=True)
    yield (ffn.block or ffn.down.module).register_forward_hook(leaving)


def _record_experts(experts: Experts, number: int, calls: dict[int, tuple[tuple[Tensor, ...], Tensor]]) -> Handle:
    """Note what a layer's experts are given, and their output."""

    def leaving(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        calls[number] = args, output.detach().clone()

    handle: Handle = experts.module.register_forward_hook(leaving)
    return handle


def _compare_experts(experts: Experts, args: tuple[Tensor, ...], output: Tensor) -> None:
    tolerance = 1e-4 if output.dtype == torch.float32 else 3e-2
    if not _close(experts.compute(*args), output, tolerance):
        raise ValueError(
            f"layer {experts.ffns[0].layer}: the output of the experts with all neurons kept is not what the model "
            f"computes, so {NOT_AS_SAID}"
        )


def _check_finite(model: nn.Module, ffn: FFN, x: Tensor, z: Tensor, y: Tensor) -> None:
    for what, values in (("input", x), ("z", z), ("output", y)):
        if found := not_finite(values):
            where = f"layer {ffn.index}: the {what} of its FFN on a probe of {PROBE_TOKENS} tokens"
            raise explained(model, f"{where} holds {found}")


def _compare(ffn: FFN, x: Tensor, z: Tensor, y: Tensor) -> None:
    executor = CompactFFN(ffn)
    executor.load(torch.ones(1, ffn.F, dtype=torch.bool, device=x.device))
    tolerance = 1e-4 if y.dtype == torch.float32 else 3e-2
    for what, ours, theirs in (("z", ffn.activation(x), z), ("output", executor(x), y)):
        if ours.shape != theirs.shape or not _close(ours, theirs, tolerance):
            raise ValueError(
                f"layer {ffn.index}: the {what} of the FFN with all neurons kept is not what the model computes, so "
                f"{NOT_AS_SAID}"
            )


def _close(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    scale = theirs.double().abs().max()
    return bool((ours.double() - theirs.double()).abs().max() <= tolerance * scale + 1e-12)

"""Attach a method to a Hugging Face model, and undo it."""

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from tda.as_built import CHANGING, Addresses, NewHooks, modules_of
from tda.contracts import EXECUTIONS, Method, check_choice
from tda.device import current
from tda.engine.attached import ATTACHED
from tda.engine.attachment import Attachment
from tda.engine.backends import backend_of
from tda.engine.counter import SparsityCounter
from tda.engine.identity import identify
from tda.engine.overrides import Overrides
from tda.engine.rotary import Rotary
from tda.engine.run import Run
from tda.engine.selfcheck import check_family
from tda.engine.tracker import PhaseTracker
from tda.engine.transformers_api import by_name, cached_tokens, given_cache
from tda.engine.warm_up import warm_up
from tda.families import check_model, find_ffns
from tda.interrupts import held_back
from tda.kernels import products
from tda.names import Execution
from tda.thresholds import Thresholds
from tda.view import FFN, See


# long: its parameters are explained
@contextmanager
def attach(
    model: nn.Module, method: Method, thresholds: Thresholds | None = None, *, execution: Execution = "auto"
) -> Iterator[Run]:
    """Leave out neurons in decode, as `method` says, for as long as the context lasts.

    Prefill is dense. The model's own ``generate`` works inside. A forward on an empty cache starts a request, a
    forward on a filled one decodes; `Run.prefill` tells otherwise. A copy of a cache, as a shared prefix, continues
    its prompt. After the context, also after an exception, the model is bit for bit what it was. Change the model
    itself (adapters, types, hooks) outside the context only. On CUDA a short request is served before the context
    begins, so that the first prompt finds kernels loaded and a step of one row captured.

    Parameters
    ----------
    model : nn.Module
        A Hugging Face decoder of a supported family.
    method : Method
        E.g. ``tda.Griffin(sparsity=0.5)``.
    thresholds : Thresholds, optional
        The artifact of `tda.calibrate`, for a method that needs one and was not fitted (`method.fit`).
    execution : {"auto", "masked", "compact", "indexed"}
        "masked": dense arithmetic with left-out activations zeroed, the reference, without a speed; "compact":
        weights gathered once per prompt (methods that choose per prompt); "indexed": only kept rows are read, where
        they lie; "auto": the fastest that is right here (on a CPU, "indexed" where a neuron's weights have 4 KiB or
        more, else "compact" for methods that choose per prompt).

    Yields
    ------
    Run
        The attached method.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, the architecture unsupported, thresholds missing or foreign, or another method is
        attached; NotFiniteError if a weight or what it computes is not finite. Nothing is attached then.
    """
    if not isinstance(method, Method):
        raise TypeError(f"method must be a tda method such as tda.Griffin(sparsity=0.5), got {method!r}")
    started = time.perf_counter()
    ffns = find_ffns(model)
    if thresholds is not None and method.needs_fit:
        method = method.with_thresholds(thresholds)
    _check(model, ffns, method, execution)
    rotary, phases, overrides = Rotary(model), PhaseTracker(), Overrides()
    places = list(method.places(model, ffns))
    counter = SparsityCounter(places, phases)
    run: Attachment | None = None
    failed = True
    try:
        overrides.later(rotary.keep())  # first: what is tried below runs the model
        check_family(model, ffns)
        overrides.later(lambda: ATTACHED.discard(model))
        ATTACHED.add(model)
        with current(ffns[0].device):
            decoding = backend_of(model, ffns).prepare(method, execution, counter.layer, overrides)
        run = Attachment(model, method, places, execution, decoding, counter, phases, rotary)
        with held_back():
            _override(run, overrides)
        warm_up(run)
        run.attached_ms = 1000 * (time.perf_counter() - started)
        yield Run(run)
        failed = False
    finally:
        overrides.undo()
        if run is not None:
            run.close(failed=failed)


def _check(model: nn.Module, ffns: list[FFN], method: Method, execution: Execution) -> None:
    check_choice("execution", execution, EXECUTIONS)
    if execution != "auto" and execution not in method.executions:
        raise ValueError(f"method {method.name!r} cannot run {execution!r}; it can run {', '.join(method.executions)}")
    if model in ATTACHED:
        raise ValueError("a method is already attached to this model; leave that `with` block first")
    check_model(model, ffns)
    method.check(ffns[0])
    if method.needs_fit and not method.keeps_all:
        method.fitted.check_model(identify(model, ffns))


def _override(run: Attachment, overrides: Overrides) -> None:
    model: Any = run.model
    overrides.set(model, "generate", _generate(run, model.generate))
    overrides.set(model, "forward", _forward(run, model.forward))
    for name, reason in REFUSED.items():
        overrides.set(model, name, _refusing(reason))
    if run.method.selects:
        for place in run.ffns:
            for hook in place.watch(_seeing(run, place.index), {run.method.activation}):
                overrides.later(hook.remove)
        if run.decoding.execution != "masked":
            for ffn in run.decoding.ffns:
                _replace_forward(run, ffn, overrides)
    run.addresses = Addresses(model.parameters())
    _refuse_other_parts(model, overrides)
    if run.decoding.step is not None:
        run.new_hooks = NewHooks(modules_of(model))
    if run.decoding.executors:
        run.new_hooks_in_ffns = NewHooks(module for ffn in run.decoding.ffns for module in (*ffn.modules, ffn.act))


def _refuse_other_parts(model: nn.Module, overrides: Overrides) -> None:
    """Let nobody give a module of the model other modules or parameters, as adapting it does: before it is done."""
    own = {id(module) for module in modules_of(model)}

    def refuse(module: nn.Module, name: str, part: Any) -> None:
        if id(module) in own:
            raise ValueError(CHANGING)

    overrides.later(register_module_module_registration_hook(refuse).remove)
    overrides.later(register_module_parameter_registration_hook(refuse).remove)


BATCHING = (
    "continuous batching packs the tokens of several requests into one row, so no request has a phase or a selection "
    "of its own; use `generate` while a method is attached"
)
REFUSED = {
    **dict.fromkeys(("generate_batch", "init_continuous_batching", "continuous_batching_context_manager"), BATCHING),
    **dict.fromkeys(("_apply", "load_state_dict", "add_adapter", "load_adapter", "resize_token_embeddings"), CHANGING),
    "__deepcopy__": CHANGING,
}
"""Methods of a model that cannot be called while a method is attached, and why."""


def _refusing(reason: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ValueError(reason)

    return refuse


def _forward(run: Attachment, forward: Callable[..., Any]) -> Callable[..., Any]:
    """The model's forward: what it is part of is found out first, and a whole decode step runs where it can.

    Products are those that are right for the model's type on this processor. Where torch.compile compiles the model
    meanwhile, it leaves this alone.
    """
    widened, device = products.needed(run.model), next(run.model.parameters()).device

    def attached(*args: Any, **kwargs: Any) -> Any:
        given = by_name(run.model, args, kwargs)
        with current(device):
            run.phases.enter()
            try:
                run.begin(given)
                output = run.step(given)
                if output is None:
                    with products.WidenedProducts() if widened else nullcontext():
                        output = forward(*args, **kwargs)
                run.end(output)
                return output
            finally:
                run.leave()

    apart: Callable[..., Any] = torch.compiler.disable(attached)

    @functools.wraps(forward)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return apart(*args, **kwargs)

    return wrapper


def _seeing(run: Attachment, number: int) -> See:
    """What shows the attachment the activation that its method looks at at a place, and lets it mask z."""
    source = run.method.activation

    def see(passing: Mapping[str, Tensor], tokens: Tensor | None) -> Tensor | None:
        a = passing[source]
        run.collect(number, a, tokens)
        return run.mask(number, passing["z"], a, tokens)

    return see


def _replace_forward(run: Attachment, ffn: FFN, overrides: Overrides) -> None:
    """Let the fast path, where one runs, compute the FFN.

    Where the FFN is no module of its own, its inputs pass the first linear and the activation untouched, and the
    last linear computes the whole; the activation that the fast path itself calls is the model's own.
    """
    computing = False

    def route(module: nn.Module, *, whole: bool) -> None:
        dense = module.forward

        @functools.wraps(dense)
        def forward(x: Tensor) -> Tensor:
            nonlocal computing
            executor = None if computing else run.executor(ffn.index)
            if executor is None:
                y: Tensor = dense(x)
                return y
            if not whole:
                return x
            computing = True
            try:
                return executor(x)
            finally:
                computing = False

        overrides.set(module, "forward", forward)

    if ffn.block is not None:
        route(ffn.block, whole=True)
        return
    route(ffn.up.module, whole=False)
    route(ffn.act, whole=False)
    route(ffn.down.module, whole=True)


GUESSING = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
"""Options of generate that feed guessed tokens."""


def _generate(run: Attachment, generate: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the model's generate, so that the run knows where the prompt ends and which rows have ended."""
    model: Any = run.model

    @functools.wraps(generate)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        config = kwargs.get("generation_config", args[1] if len(args) > 1 else None)
        own_config = getattr(model, "generation_config", None)

        def option(name: str) -> Any:
            asked = (kwargs.get(name), getattr(config, name, None), getattr(own_config, name, None))
            return next((value for value in asked if value is not None), None)

        if option("use_cache") is False:
            raise ValueError("dynamic activation needs the key-value cache; generate without use_cache=False")
        guessing = [name for name in GUESSING if option(name)]
        if guessing:
            raise ValueError(
                "assisted generation feeds guessed tokens together with the prompt, so they would count as prompt; "
                f"generate without {guessing[0]} while a method is attached"
            )
        given = (*args[:1], *(kwargs.get(name) for name in ("input_ids", "inputs", "inputs_embeds")))
        prompt = next((tokens for tokens in given if tokens is not None), None)
        if prompt is None:
            raise ValueError("generate needs input_ids while a method is attached")
        mask = kwargs.get("attention_mask")
        new_tokens = _new_tokens(prompt, mask, cached_tokens(given_cache(kwargs)))
        overrides = Overrides()
        overrides.set(model, "prepare_inputs_for_generation", _noting_masks(run, model.prepare_inputs_for_generation))
        if (option("num_beams") or 1) == 1:  # beams that ended are no rows any more
            overrides.set(model, "_get_stopping_criteria", _noting_ends(run, model._get_stopping_criteria))
        try:
            with nullcontext() if option("custom_generate") else run.phases.generate(new_tokens):
                # what transformers would compile itself, with static caches on CUDA, would miss what is attached
                output = generate(*args, **{"disable_compile": True, **kwargs})
        finally:
            overrides.undo()
        sequences = output if isinstance(output, Tensor) else getattr(output, "sequences", None)
        if isinstance(sequences, Tensor):
            run.phases.note_generated(sequences)
        return output

    return wrapper


def _new_tokens(prompt: Tensor, mask: Tensor | None, cached: int) -> int:
    """Tokens of generate's prompt that the cache does not hold: the prompt goes on, or was given whole."""
    given: int = prompt.shape[1]
    is_whole = mask is None or mask.shape[1] == given
    new_tokens = given - cached if is_whole else given
    if not given:
        raise ValueError("the prompt has no tokens; generate needs at least one while a method is attached")
    if new_tokens <= 0:
        raise ValueError(
            f"the cache holds {cached} tokens and the prompt has {given}: generate needs at least one token that the "
            "cache does not hold. Pass the whole prompt, and a cache without its last token; or only new tokens, and "
            "an attention_mask over the cached and the new ones"
        )
    return new_tokens


def _noting_masks(run: Attachment, prepare: Callable[..., Any]) -> Callable[..., Any]:
    """What prepares the model's inputs, letting the run know the mask [B, T] that forwards get in another shape."""

    @functools.wraps(prepare)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        run.phases.note_mask(kwargs.get("attention_mask"))
        return prepare(*args, **kwargs)

    return wrapper


def _noting_ends(run: Attachment, criteria: Callable[..., Any]) -> Callable[..., Any]:
    """Stopping criteria that let the run know which rows have ended."""

    @functools.wraps(criteria)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        from transformers import StoppingCriteriaList

        class Noting(StoppingCriteriaList):  # type: ignore[misc]
            """The criteria of a generate, observed."""

            def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
                ended = super().__call__(input_ids, scores, **options)
                run.phases.note_ended(ended)
                return ended

        return Noting(criteria(*args, **kwargs))

    return wrapper

"""A method attached to a model: follows every forward, and answers what the model's layers ask in it."""

from typing import Any

import torch
from torch import Tensor, nn

from tda.as_built import CHANGING, Addresses, NewHooks
from tda.contracts import Executor, Method
from tda.engine.backends.decoding import Decoding
from tda.engine.counter import SparsityCounter
from tda.engine.policy import POLICIES
from tda.engine.request import Call
from tda.engine.rotary import Rotary
from tda.engine.store import RequestStore
from tda.engine.tracker import PhaseTracker
from tda.engine.transformers_api import (
    asks_for_more,
    cached_tokens,
    given_cache,
    keeps_cache,
    model_output,
    returned_cache,
)
from tda.engine.unseen import Unseen
from tda.names import Execution, Ran
from tda.selection import Selection
from tda.spans import span
from tda.view import Place, by_row


# long: all that a model asks of what is attached, from the beginning of a forward to its end
class Attachment:
    """What stands between a model and the method that is attached to it.

    Attributes
    ----------
    model, method, ffns : nn.Module, Method, list of Place
        What is attached to what, and where it leaves something out.
    decoding : Decoding
        What runs decode where it can be fast.
    phases, requests, policy, counter, unseen
        Each looks after a part of the work.
    executed : str or None
        What the last decode step ran as.
    addresses : Addresses
        Where the weights lie, which must not change.
    new_hooks, new_hooks_in_ffns : NewHooks
        Hooks that were set since the method was attached: on any module, and inside feed-forward networks.
    attached_ms : float
        What attaching took: checks, layout, kernels, and on CUDA a step captured and a first request.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        ffns: list[Place],
        execution: Execution,
        decoding: Decoding,
        counter: SparsityCounter,
        phases: PhaseTracker,
        rotary: Rotary,
    ) -> None:
        self.model = model
        self.method = method
        self.ffns = ffns
        self.decoding = decoding
        self.phases = phases
        self.counter = counter
        self.policy = POLICIES[method.kind](model, method, ffns, execution, decoding, counter)
        self._listen()
        self.attached_ms = 0.0
        self.new_hooks = self.new_hooks_in_ffns = NewHooks()
        self.addresses = Addresses()
        self._rotary = rotary

    def _listen(self) -> None:
        self.unseen = Unseen(self.method)
        self.requests = RequestStore(self.method, self.ffns, self.decoding.sweep, self.unseen)
        self.executed: Ran | None = None

    def forget(self) -> None:
        """Be as if no forward had passed yet."""
        self.requests.clear()
        self.policy.forget()
        self.counter.restart()
        self._listen()

    # A forward, from its beginning to its end.

    def begin(self, given: dict[str, Any]) -> None:
        """Find out the phase and the request of a forward, of its arguments by name."""
        if self.addresses.moved:
            raise ValueError(CHANGING)
        phases = self.phases
        tokens = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
        rows, count = tokens.shape[:2]
        self._rotary.reset()
        request = self.requests.find(
            given_cache(given), rows, tokens.device, explicit_decode=phases.explicit == "decode"
        )
        phase = phases.phase(request)
        mask = phases.mask(given.get("attention_mask"), request, count, tokens.device)
        if phase == "prefill":
            cached = keeps_cache(self.model, given)
            if phases.explicit is None and not (phases.generating and cached):
                self.unseen.forward(request, cached)
            mask = phases.read(request, tokens, mask)
        elif request.kept is None:
            self.policy.select(request)
        # tests/planted.py: every forward
        call = phases.call = Call(phase, rows, count, mask, request)
        self.requests.last = request
        if phase == "decode":
            self.unseen.used(request)
            request.unfed = None
            if phases.explicit is None and not phases.generating:
                self.unseen.guessed(count)
            call.mask = phases.unended(mask)
            call.execution = self.executed = self._possible(self.policy.begin(call), call)

    def _possible(self, execution: Ran | None, call: Call) -> Ran | None:
        """An execution, or "masked" where it would leave out a new hook, or give up quantized weights."""
        if execution in ("compact", "indexed") and self.new_hooks_in_ffns:
            return "masked"
        if self.method.quantization is not None and (self.decoding.execution == "masked" or call.mask.numel() > 1):
            return "masked"  # kernels run single tokens of such weights; torch runs what they stand for
        return execution

    def end(self, output: Any) -> None:
        """Take note of what a forward has left: the cache that it made or filled."""
        self.decoding.swept()  # before the prompt counts as passed
        call, cache = self.phases.call, returned_cache(output)
        assert call is not None
        call.passed = True
        if cache is not None:
            self.requests.passed(cache, call)

    def leave(self) -> None:
        """End a forward, also one that failed."""
        try:
            self.decoding.swept()
        finally:
            self.phases.leave()

    def close(self, *, failed: bool) -> None:
        """End the attachment."""
        self.requests.clear()
        self.unseen.close(tell=not failed)

    # What the model and its layers ask.

    def step(self, given: dict[str, Any]) -> Any:
        """Output of a whole decode step, of a forward's arguments by name; None where it cannot run."""
        call, step, token = self.phases.call, self.decoding.step, given.get("input_ids")
        if step is None or token is None or self.new_hooks:
            return None  # a whole step would leave out a hook that was set since
        if call is None or (call.phase, call.tokens, call.execution) != ("decode", 1, self.decoding.execution):
            return None
        if asks_for_more(self.model, given):
            return None
        cache, mask, position = given_cache(given), given.get("attention_mask"), given.get("position_ids")
        if step.problem(cache, call.rows, position, mask, call.request.fed + 1) is not None:
            return None
        if position is None:
            position = torch.full_like(token, cached_tokens(cache))
        logits, kept = step(token, position, cache, mask)
        if kept is not None:
            self.counter.step(call, Selection.stacked(kept))
        return model_output(logits, cache)

    def collect(self, number: int, a: Tensor, tokens: Tensor | None) -> None:
        """Add a prompt's activations to a place's statistic: [B, T, F] or [B·T, F], or [n, F] of some tokens."""
        call = self.phases.call
        if call is None:
            self.unseen.outside()
            return
        if call.phase != "prefill":
            return
        statistic = call.request.statistics[number]
        if statistic is None:
            return
        a = a.detach() if a.requires_grad else a
        with span("statistic"):
            if tokens is None:
                statistic.add(a if a.dim() == 3 else a.view(call.rows, call.tokens, -1), call.mask)
            else:
                places, inside = by_row(tokens, call.mask)
                statistic.add(a[places], inside)

    def executor(self, layer: int) -> Executor | None:
        """The fast path that runs this layer in the forward in progress; None where the model's own code does."""
        call = self.phases.call
        layers = self.decoding.layers(call.execution) if call is not None and call.phase == "decode" else ()
        return layers[layer] if layers else None

    def mask(self, number: int, z: Tensor, a: Tensor, tokens: Tensor | None) -> Tensor | None:
        """Masked execution: a place's z, [B, T, F] or [B·T, F], with left-out activations zeroed; else None.

        a is the activation that the method looks at, of z's shape; tokens as in `tda.view.See`: z is then [n, F].
        """
        call = self.phases.call
        if call is None or call.phase != "decode" or call.execution != "masked":
            return None
        return self.policy.mask(call, number, z, a, tokens)

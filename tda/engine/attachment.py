"""A method attached to a model: follows every forward, and answers what the model's layers ask in it."""

import threading
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
from tda.engine.transformers_api import cached_tokens, given_cache, model_output, returned_cache
from tda.engine.unseen import Unseen
from tda.kernels import BackendInfo
from tda.names import Execution, Ran
from tda.selection import Selection
from tda.spans import span
from tda.view import FFN


class Attachment:
    """What stands between a model and the method that is attached to it.

    Attributes
    ----------
    model : nn.Module
        The Hugging Face model.
    method : Method
        The attached method.
    ffns : list of FFN
        The model's feed-forward networks.
    decoding : Decoding
        What runs decode where it can be fast.
    phases : PhaseTracker
        Tells prefill from decode.
    requests : RequestStore
        The requests, by their caches.
    policy : Policy
        What decode steps run as and leave out.
    counter : SparsityCounter
        Counts what they left out.
    executed : str or None
        What the last decode step ran as.
    new_hooks, new_hooks_in_ffns : NewHooks
        Hooks that were set since the method was attached: on any module, and inside feed-forward networks.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        ffns: list[FFN],
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
        self.unseen = Unseen(method)
        self.requests = RequestStore(method, ffns, decoding.sweep, self.unseen)
        self.policy = POLICIES[method.kind](model, method, ffns, execution, decoding, counter)
        self.executed: Ran | None = None
        self.new_hooks = self.new_hooks_in_ffns = NewHooks()
        self.addresses = Addresses()
        self._rotary = rotary
        self._busy = threading.Lock()

    # What a caller asks.

    def select(self) -> None:
        """Make the selection of the last request, if it is still to be made."""
        request = self.requests.last
        if request is not None:
            self.unseen.used(request)
            if request.kept is None:
                self.policy.select(request)

    def selection(self) -> Selection:
        """What the last prompt keeps; of per-token methods, the last decode step."""
        if self.requests.last is None:
            raise ValueError("no prompt was prefilled yet, so nothing is selected")
        if self.method.kind == "prompt":
            self.select()
        return self.policy.selection(self.requests.last)

    @property
    def backend(self) -> BackendInfo:
        """What runs decode."""
        info = self.decoding.backend
        if self.executed == "masked" and self.decoding.execution != "masked":
            return BackendInfo("torch")
        rows = 1 if self.requests.last is None else self.requests.last.rows
        ran = self.executed or self.decoding.execution
        if rows > 1 and ran in ("dense", "compact") and info.name == "c":
            return BackendInfo("torch", f"products of {rows} rows run there")
        return info

    # A forward, from its beginning to its end.

    def enter(self) -> None:
        """A forward begins.

        Raises
        ------
        ValueError
            If another thread's is in progress: a phase and a selection are those of one forward at a time.
        """
        if not self._busy.acquire(blocking=False):
            raise ValueError(
                "another forward of this model is in progress, in another thread: while a method is attached, forwards "
                "come one after the other"
            )

    def begin(self, given: dict[str, Any]) -> None:
        """Find out the phase and the request of a forward, of its arguments by name."""
        if self.addresses.moved:
            raise ValueError(CHANGING)
        phases = self.phases
        tokens = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
        rows, count = tokens.shape[:2]
        self._rotary.reset()
        request = self.requests.find(given_cache(given), rows, tokens.device, told_decode=phases.told == "decode")
        phase = phases.phase(request)
        mask = phases.mask(given.get("attention_mask"), request, count, tokens.device)
        if phase == "prefill":
            keeps_cache = self._keeps_cache(given)
            if phases.told is None and not (phases.generating and keeps_cache):
                self.unseen.forward(request, keeps_cache)
            mask = request.read(tokens, mask, generating=phases.generating)
        elif request.kept is None:
            self.policy.select(request)
        # tests/planted.py: every forward
        call = phases.call = Call(phase, rows, count, mask, request)
        self.requests.last = request
        if phase == "decode":
            self.unseen.used(request)
            request.unfed = None
            if phases.told is None and not phases.generating:
                self.unseen.guessed(count)
            call.mask = phases.unended(mask)
            call.execution = self.policy.begin(call)
            if call.execution in ("compact", "indexed") and self.new_hooks_in_ffns:
                call.execution = "masked"  # what runs in place of the networks would leave out a new hook
            self.executed = call.execution

    def end(self, output: Any) -> None:
        """Take note of what a forward has left: the cache that it made or filled."""
        call, cache = self.phases.call, returned_cache(output)
        assert call is not None
        call.passed = True
        if cache is not None:
            self.requests.passed(cache, call)

    def leave(self) -> None:
        """A forward has ended, also with an exception: a prompt that did not pass whole has no selection."""
        call, self.phases.call = self.phases.call, None
        if call is not None and call.phase == "prefill" and not call.passed:
            call.request.owner = None
        self._busy.release()

    def close(self, *, failed: bool) -> None:
        """End the attachment."""
        self.requests.clear()
        self.unseen.close(tell=not failed)

    def _keeps_cache(self, given: dict[str, Any]) -> bool:
        """Whether a forward leaves a cache that can be gone on with."""
        asked, config = given.get("use_cache"), self.model.config
        return bool(getattr(config, "use_cache", True) if asked is None else asked)

    # What the model and its layers ask.

    def step(self, given: dict[str, Any]) -> Any:
        """Output of a whole decode step, of a forward's arguments by name; None where it cannot run."""
        call, step = self.phases.call, self.decoding.step
        if step is None or self.new_hooks:
            return None  # a whole step would leave out a hook that was set since
        if call is None or call.phase != "decode" or call.tokens != 1:
            return None
        if call.execution != self.decoding.execution or given.get("input_ids") is None:
            return None
        if self._asks_for_more(given):
            return None
        cache, mask, position = given_cache(given), given.get("attention_mask"), given.get("position_ids")
        if step.problem(cache, call.rows, position, mask, call.request.fed + 1) is not None:
            return None
        token = given["input_ids"]
        if position is None:
            position = torch.full_like(token, cached_tokens(cache))
        logits, kept = step(token, position, cache, mask)
        if kept is not None:
            self.counter.step(call, Selection.stacked(kept))
        return model_output(logits, cache)

    def _asks_for_more(self, given: dict[str, Any]) -> bool:
        """Whether a forward is to give more than logits and cache, or to drop out, as the caller or the model says."""
        if given.get("labels") is not None or self.model.training:
            return True
        config: Any = self.model.config
        asked = {name: given.get(name) for name in ("output_attentions", "output_hidden_states", "return_dict")}
        found = {name: getattr(config, name, None) if value is None else value for name, value in asked.items()}
        return bool(found["output_attentions"] or found["output_hidden_states"] or found["return_dict"] is False)

    def collect(self, layer: int, a: Tensor) -> None:
        """Add a prompt's activations, [B, T, F] or [B·T, F], to the layer's statistic."""
        call = self.phases.call
        if call is None:
            self.unseen.outside()
            return
        if call.phase != "prefill":
            return
        statistic = call.request.statistics[layer]
        if statistic is not None:
            with span("statistic"):
                statistic.add(a.detach().view(call.rows, call.tokens, -1), call.mask)

    def executor(self, layer: int) -> Executor | None:
        """The fast path that runs this layer in the forward in progress; None where the model's own code does."""
        call = self.phases.call
        layers = self.decoding.layers(call.execution) if call is not None and call.phase == "decode" else ()
        return layers[layer] if layers else None

    def mask(self, layer: int, z: Tensor, a: Tensor) -> Tensor | None:
        """Masked execution: z with left-out activations zeroed; None outside decode and in other executions.

        Parameters
        ----------
        layer : int
            Layer number.
        z : Tensor
            Neuron activation, [B, T, F] or [B·T, F].
        a : Tensor
            The activation that the method looks at, of the same shape.
        """
        call = self.phases.call
        if call is None or call.phase != "decode" or call.execution != "masked":
            return None
        return self.policy.mask(call, layer, z, a)

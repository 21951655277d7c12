"""A method attached to a model: knows the phase of every forward, and carries the selection of each request."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tda.as_built import CHANGING, Addresses, NewHooks
from tda.contracts import Executor, Method, PromptMethod, TokenMethod, WeightMethod
from tda.engine.caches import Marked
from tda.engine.executors import Executors
from tda.engine.graph import GraphStep
from tda.engine.request import PREFILL_INSIDE, Request
from tda.engine.rotary import Rotary
from tda.engine.transformers_api import cached_tokens, given_cache, model_output, returned_cache
from tda.engine.unseen import Unseen
from tda.finite import check_statistics
from tda.names import Execution, Ran
from tda.prompt_statistics import PromptSum
from tda.spans import span
from tda.view import by_row

Phase = Literal["prefill", "decode"]
WORTHWHILE_ROWS = 1.2
"""Gathered rows pay while batch rows times density stays below this; beyond, "auto" runs dense arithmetic."""


@dataclass
class Call:
    """One forward of the model in progress."""

    phase: Phase
    rows: int
    tokens: int
    mask: Tensor  # bool [B, T]
    request: Request
    execution: Ran | None = None  # of a decode step
    passed: bool = False  # to its end


class Run:
    """What `attach` yields: tells phases, holds selections, reports what was left out.

    Attributes
    ----------
    model : nn.Module
        The Hugging Face model.
    method : Method
        The attached method.
    asked_execution : str
        The execution asked for; `execution` is the one that really ran.
    fast : Executors
        What runs decode where it can be fast.
    ffns : list of Place
        Where the method leaves something out.
    rotary : Rotary
        The model's positions that depend on what it has seen.
    new_hooks, new_hooks_in_ffns : NewHooks
        Hooks that were set since the method was attached: on any module, and inside feed-forward networks.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        execution: Execution,
        ffns: list[Any],
    ) -> None:
        self.model = model
        self.method = method
        self.asked_execution = execution
        self.ffns = ffns
        self._call: Call | None = None
        self._told: Phase | None = None
        self._new_tokens: int | None = None
        self._generating: int | None = None  # the thread that generates
        self._busy = threading.Lock()
        self._known_mask: Tensor | None = None
        self._ended: Tensor | None = None  # bool [B]
        self._requests = Marked()
        self._unseen = Unseen(method)
        self.rotary = Rotary(model)
        self._request: Request | None = None
        self._loaded: dict[Ran, Request] = {}
        self._imposed: Sequence[Tensor] | None = None
        device = ffns[0].device
        self._left_out = torch.zeros(len(ffns), dtype=torch.float64, device=device)  # token-weighted, per layer
        self._decoded = torch.zeros(len(ffns), dtype=torch.float64, device=device)
        self._token_kept: list[Tensor | None] = [None] * len(ffns)
        self._sizes = torch.tensor([float(ffn.size) for ffn in ffns], dtype=torch.float64, device=device)
        self._executed: Ran | None = None
        self.fast = Executors(ffns, "masked", "torch")
        self.new_hooks = self.new_hooks_in_ffns = NewHooks()
        self.addresses = Addresses()
        self._generated: Request | None = None  # of the generate in progress

    # What a caller may ask.

    @contextmanager
    def prefill(self) -> Iterator[None]:
        """Tell that forwards inside are prompt, where the caller drives the model by hand.

        On an empty cache a new request starts; on a filled one the prompt goes on: its new tokens join the
        statistic, and the selection is renewed.
        """
        with self.tell("prefill"):
            yield

    @contextmanager
    def decode(self) -> Iterator[None]:
        """Tell that forwards inside are decode, where the caller feeds several tokens at once, as to score them."""
        with self.tell("decode"):
            yield

    def select(self) -> None:
        """Make the selection of the last request now, if it is still to be made.

        Otherwise the first decode step makes it.
        """
        if self._request is not None:
            self._unseen.used(self._request)
            if self._request.kept is None:
                self._select(self._request)

    def impose(self, kept: Sequence[Tensor] | None) -> None:
        """Use a given selection (bool [B, F] per layer) for all prompts from now on; None ends that.

        Raises
        ------
        ValueError
            If the method chooses per token.
        """
        if not isinstance(self.method, PromptMethod):
            raise ValueError(f"{self.method.name!r} has no selection per prompt that could be replaced")
        if kept is not None:
            shapes = [(layer.dtype, layer.dim(), layer.shape[-1]) for layer in kept if isinstance(layer, Tensor)]
            if shapes != [(torch.bool, 2, ffn.F) for ffn in self.ffns]:
                sizes = ", ".join(str(ffn.F) for ffn in self.ffns)
                raise ValueError(f"expected a bool tensor [B, F] for each layer, F {sizes}; got {shapes}")
        self._imposed = kept

    def selection(self) -> list[Tensor]:
        """Kept neurons per layer: bool [B, F], of the last prompt; of per-token methods, the last decode step.

        Raises
        ------
        ValueError
            If nothing was selected yet.
        """
        if self._request is None:
            raise ValueError("no prompt was prefilled yet, so nothing is selected")
        if isinstance(self.method, TokenMethod):
            kept = [layer for layer in self._token_kept if layer is not None]
            if len(kept) < len(self.ffns):
                raise ValueError(f"{self.method.name!r} selects per token, and no decode step ran yet")
            return kept
        if not isinstance(self.method, PromptMethod):
            rows, device = self._request.rows, self._request.device
            return [torch.ones(rows, ffn.F, dtype=torch.bool, device=device) for ffn in self.ffns]
        self.select()
        assert self._request.kept is not None
        return self._request.kept

    def achieved_sparsity(self) -> list[float]:
        """Share left out per layer, mean over the decode steps (and rows) so far.

        Raises
        ------
        ValueError
            If no decode step ran yet.
        """
        if not self.decoded:
            raise ValueError("no decode step ran yet, so no sparsity was achieved")
        return (self._per_layer(self._left_out) / self._per_layer(self._decoded)).tolist()

    def place_sparsity(self) -> list[float]:
        """Share left out of each place, mean over the tokens that reached it; 0 where none did."""
        return (self._left_out / self._decoded.clamp(min=1)).tolist()

    def _per_layer(self, counts: Tensor) -> Tensor:
        """Counts of the places, summed over those of each layer by their numbers of weights."""
        layers = torch.tensor([ffn.layer for ffn in self.ffns], device=counts.device)
        counts = counts * self._sizes
        return torch.zeros(int(layers[-1]) + 1, dtype=counts.dtype, device=counts.device).index_add_(0, layers, counts)

    def restart_count(self) -> None:
        """Count what is left out anew: `achieved_sparsity` is then that of the decode steps from here on."""
        self._left_out.zero_()
        self._decoded.zero_()

    @property
    def decoded(self) -> bool:
        """Whether a decode step ran yet."""
        return bool(self._per_layer(self._decoded).all())

    @property
    def execution(self) -> str | None:
        """The execution that the last decode step really ran: dense, masked, compact or indexed."""
        return self._executed

    @property
    def backend(self) -> str:
        """The kernels that run decode: "c", "triton", or "torch" with the reason."""
        if self._executed == "masked" and self.fast.execution != "masked":
            return "torch"
        rows = 1 if self._request is None else self._request.rows
        ran = self._executed or self.fast.execution
        if rows > 1 and ran in ("dense", "compact") and self.fast.backend.startswith("c"):
            return f"torch (products of {rows} rows run there)"
        return self.fast.backend

    # Phases.

    @contextmanager
    def tell(self, phase: Phase) -> Iterator[None]:
        """Tell the phase of the forwards inside."""
        before, self._told = self._told, phase
        try:
            yield
        finally:
            self._told = before

    @contextmanager
    def generating(self, new_tokens: int) -> Iterator[None]:
        """Within `generate`: the first `new_tokens` tokens that are fed are prompt."""
        if self._told is not None:
            raise ValueError("`generate` tells prompt from decode itself: call it outside of `run.prefill()`")
        thread = threading.get_ident()
        if self._generating not in (None, thread):
            raise ValueError("`generate` runs in another thread: while a method is attached, one runs at a time")
        outer = self._generating, self._new_tokens, self._known_mask, self._ended
        self._generating, self._new_tokens, self._ended = thread, new_tokens, None
        self._generated = None
        try:
            yield
        finally:
            self._generating, self._new_tokens, self._known_mask, self._ended = outer

    def note_mask(self, mask: Any) -> None:
        """Within `generate`: the tokens of the forward to come, and those before, that are no padding: [B, T]."""
        self._known_mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def note_ended(self, ended: Tensor) -> None:
        """Within `generate`: rows that have ended, bool [B]; what they go on with is padding."""
        self._ended = ended if self._ended is None else self._ended | ended

    def note_generated(self, sequences: Tensor) -> None:
        """After `generate`: remember the last generated tokens, which no forward has seen yet."""
        request, self._generated = self._generated, None
        if request is not None and len(sequences) == request.rows:
            request.unfed = sequences[:, -1]

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
        tokens = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
        rows, count = tokens.shape[:2]
        cache = given_cache(given)
        self.rotary.reset()
        request = self._find_request(cache, rows, tokens.device)
        if self._new_tokens is not None and self._told is None:
            request.prompt_end, self._new_tokens = request.fed + self._new_tokens, None
            self._generated = request
        phase = self._phase(request)
        mask = self._mask(given.get("attention_mask"), request, count, tokens.device)
        if phase == "prefill":
            keeps_cache = self._keeps_cache(given)
            if self._told is None and not (self._generating and keeps_cache):
                self._unseen.forward(request, keeps_cache)
            mask = self._read_prompt(request, tokens, mask)
        elif request.kept is None and isinstance(self.method, PromptMethod):
            self._select(request)
        self._call = Call(phase, rows, count, mask, request)
        self._request = request
        if phase == "decode":
            self._unseen.used(request)
            request.unfed = None
            if self._told is None and not self._generating:
                self._unseen.guessed(count)
            if self._ended is not None and len(self._ended) == rows:
                self._call.mask = mask & ~self._ended.unsqueeze(1)
            self._begin_decode(self._call)

    def end(self, output: Any) -> None:
        """Take note of what a forward has left: the cache that it made or filled belongs to this request."""
        call, cache = self._call, returned_cache(output)
        assert call is not None
        call.passed = True
        if cache is not None:
            self._requests.put(cache, call.request)
            call.request.passed(cache, cached_tokens(cache), call.tokens)
            self._unseen.watch(cache, call.request)

    def leave(self) -> None:
        """A forward has ended, also with an exception: a prompt that did not pass whole has no selection."""
        call, self._call = self._call, None
        if call is not None and call.phase == "prefill" and not call.passed:
            call.request.owner = None
        self._busy.release()

    def close(self, *, failed: bool) -> None:
        """End the attachment."""
        self._requests.clear()
        self._unseen.close(tell=not failed)

    def _keeps_cache(self, given: dict[str, Any]) -> bool:
        """Whether a forward leaves a cache that can be gone on with."""
        asked, config = given.get("use_cache"), self.model.config
        return bool(getattr(config, "use_cache", True) if asked is None else asked)

    def _phase(self, request: Request) -> Phase:
        if self._told is not None:
            return self._told
        if request.prompt_end is not None and self._generating:
            return "prefill" if request.fed < request.prompt_end else "decode"
        return "prefill" if request.fed == 0 else "decode"

    def _mask(self, given: Any, request: Request, count: int, device: torch.device) -> Tensor:
        """Which of a forward's tokens are no padding: bool [B, T]."""
        rows, fed = request.rows, request.fed
        if given is not None and (not isinstance(given, Tensor) or given.dim() != 2):
            if not self._generating:
                raise ValueError("attention_mask must have shape [batch, tokens] while a method is attached")
            given = self._known_mask
        if given is None:
            return torch.ones(rows, count, dtype=torch.bool, device=device)
        start = fed if given.shape[1] >= fed + count else given.shape[1] - count
        inside: Tensor = given[:, start : start + count].bool()
        return inside

    def _find_request(self, cache: Any, rows: int, device: torch.device) -> Request:
        cached = cached_tokens(cache)
        selects = isinstance(self.method, PromptMethod) and self.method.scope == "prompt"
        known: Request | None = None if cache is None else self._requests.get(cache)
        if known is not None and (cached > 0 or self._told == "decode"):
            if selects:
                known.follow(cache, cached, rows, told=self._told == "decode")
                return known
            if known.rows == rows:
                known.fed, known.length = known.fed + cached - known.length, cached
                return known
            self._unseen.used(known)  # its rows go on in a request of their own
        if selects:
            if cached > 0:
                raise ValueError(
                    f"the cache holds {cached} tokens that did not pass through this attached model, so "
                    f"{self.method.name!r} knows nothing of them to select from. {PREFILL_INSIDE}"
                )
            if self._told == "decode":
                raise ValueError(f"decode needs the key-value cache of a prompt. {PREFILL_INSIDE}")
        statistics = [
            self.method.new_statistic(ffn) if isinstance(self.method, PromptMethod) else None for ffn in self.ffns
        ]
        for statistic in statistics:
            if isinstance(statistic, PromptSum):
                statistic.sweep = self.fast.sweep
        request = Request(statistics, rows, device, fed=cached, length=cached)
        if cache is not None:
            self._requests.put(cache, request)
        return request

    def _read_prompt(self, request: Request, tokens: Tensor, mask: Tensor) -> Tensor:
        """Take note of prompt tokens; return which of them count: bool [B, T]."""
        if request.unfed is not None and tokens.dim() == 2:
            # A generated token is no prompt, though a second turn is the first to feed it.
            mask = mask.clone()
            mask[:, 0] &= tokens[:, 0] != request.unfed
            request.unfed = None
        end = request.fed + tokens.shape[1]
        if self._generating and end == request.prompt_end and not bool(mask[:, -1].all()):
            raise ValueError(
                "generation needs left padding, got a prompt that is padded on the right; "
                "set tokenizer.padding_side = 'left'"
            )
        request.read(tokens, mask)
        return mask

    # Selection and decode.

    def _select(self, request: Request) -> None:
        if not isinstance(self.method, PromptMethod):
            return
        with span("selection"):
            imposed = request.rows if self._imposed is None else len(self._imposed[0])
            if imposed != request.rows:
                raise ValueError(f"the imposed sets are of {imposed} rows, and the batch has {request.rows}")
            if self._imposed is None:
                check_statistics(self.model, request.statistics)
            kept = request.keep(self._imposed or request.choose(self.method, self.ffns))
            request.execution = self._choose_execution(request)
        self._load(request, kept)

    def _choose_execution(self, request: Request) -> Ran:
        """What decode of a prompt's sets runs as: reading each row's weights pays while rows are few."""
        if self.asked_execution != "auto" or self.fast.execution == "masked":
            return self.fast.execution
        if request.rows == 1:
            return self.fast.execution
        assert request.kept is not None
        if all(bool((layer == layer[:1]).all()) for layer in request.kept):
            return "compact"
        return self.fast.execution if self._pays(request.rows, request) else "masked"

    def _pays(self, rows: int, request: Request) -> bool:
        """Whether reading what each of some rows keeps is less work than dense arithmetic for all of them."""
        if request.left_out is not None:
            density = 1 - float(request.left_out.mean())
        else:
            density = 1 - (self.method.sparsity or 0)
        return rows == 1 or rows * density < WORTHWHILE_ROWS

    def _load(self, request: Request, kept: Sequence[Tensor]) -> None:
        if request.execution in ("compact", "indexed"):
            with span("gather"):
                self.fast.load(request.execution, kept)
            self._loaded[request.execution] = request

    def _begin_decode(self, call: Call) -> None:
        request = call.request
        if isinstance(self.method, PromptMethod):
            call.execution = request.execution
            if call.execution == "indexed" and call.tokens > 1 and self.asked_execution == "auto":
                call.execution = "indexed" if self._pays(call.rows * call.tokens, request) else "masked"
            if call.execution in ("compact", "indexed") and self._loaded.get(call.execution) is not request:
                assert request.kept is not None
                self._load(request, request.kept)
            assert request.left_out is not None
            if self.ffns[0].experts is None:  # of those it is counted which tokens reach them
                self._left_out += request.left_out @ call.mask.sum(1).double()
                self._decoded += call.mask.sum()
        elif isinstance(self.method, TokenMethod):
            if self.ffns[0].experts is not None:  # one that no token reaches leaves nothing out
                device = call.mask.device
                self._token_kept = [torch.ones(call.rows, f.F, dtype=torch.bool, device=device) for f in self.ffns]
            fast = self.asked_execution == "indexed" or self._pays(call.rows * call.tokens, request)
            call.execution = self.fast.execution if fast else "masked"
        else:
            call.execution = "dense"
            if isinstance(self.method, WeightMethod) and (self.fast.execution == "masked" or call.mask.numel() > 1):
                call.execution = "masked"  # the kernels read few bits for a single row's token
            self._decoded += call.mask.sum()
        if call.execution in ("compact", "indexed") and self.new_hooks_in_ffns:
            call.execution = "masked"  # what runs in place of the networks would leave out a hook that was set since
        self._executed = call.execution

    def observe(self, layer: int, kept: Tensor, tokens: Tensor | None = None) -> None:
        """Count what a per-token method kept: bool [N, F] of all the forward's tokens, N = B·T, or of some."""
        call = self._call
        assert call is not None
        if self.fast.graph is not None and self.fast.graph.capturing:
            return
        if tokens is None:
            self._token_kept[layer] = kept.view(call.rows, call.tokens, -1)[:, -1]
        else:
            last = torch.ones(call.rows, kept.shape[1], dtype=torch.bool, device=kept.device)
            ends = tokens % call.tokens == call.tokens - 1
            last[tokens[ends] // call.tokens] = kept[ends]
            self._token_kept[layer] = last
        self._count(layer, kept, tokens)

    def _count(self, layer: int, kept: Tensor, tokens: Tensor | None) -> None:
        """Count what was kept of the forward's tokens: bool [N, F]."""
        assert self._call is not None
        counted = self._call.mask.reshape(-1)
        counted = (counted if tokens is None else counted[tokens]).double()
        self._left_out[layer] += (1 - kept.double().mean(1)) @ counted
        self._decoded[layer] += counted.sum()

    # What the model and its layers ask.

    def step(self, given: dict[str, Any]) -> Any:
        """Output of a whole decode step, of a forward's arguments by name; None where it cannot run."""
        call, step = self._call, self.fast.step
        if self.new_hooks:
            return None  # a whole step would leave out a hook that was set since
        if call is None or call.phase != "decode" or call.tokens != 1:
            return None
        if call.execution != self.fast.execution or given.get("input_ids") is None:
            return None
        if self._asks_for_more(given):
            return None
        if self.fast.graph is not None:
            return self._replay(call, self.fast.graph, given)
        cache, mask = given_cache(given), given.get("attention_mask")
        if step is None or call.rows != 1 or step.problem(cache) is not None:
            return None
        if mask is not None and (mask.shape[-1] < call.request.fed + 1 or not bool(mask.all())):
            return None
        token, position = given["input_ids"], given.get("position_ids")
        if position is None:
            position = torch.full_like(token, cached_tokens(cache))
        logits = step(token, position, cache)
        if self.fast.kept is not None:
            self._observe_step(call, self.fast.kept.unsqueeze(1))
        return model_output(logits, cache)

    def _replay(self, call: Call, graph: GraphStep, given: dict[str, Any]) -> Any:
        """Output of a captured step; None where it cannot run."""
        cache, mask, position = given_cache(given), given.get("attention_mask"), given.get("position_ids")
        if graph.problem(cache, call.rows) is not None:
            return None
        if mask is not None and (mask.dim() != 2 or mask.shape[1] < call.request.fed + 1):
            return None
        if position is None:
            if mask is not None:  # families differ in what positions they make of a mask
                return None
            position = torch.full_like(given["input_ids"], cached_tokens(cache))
        logits, kept = graph(given["input_ids"], position, cache, mask)
        if kept is not None:
            self._observe_step(call, kept)
        return model_output(logits, cache)

    def _asks_for_more(self, given: dict[str, Any]) -> bool:
        """Whether a forward is to give more than logits and cache, or to drop out, as the caller or the model says."""
        if given.get("labels") is not None or self.model.training:
            return True
        config: Any = self.model.config
        asked = {name: given.get(name) for name in ("output_attentions", "output_hidden_states", "return_dict")}
        found = {name: getattr(config, name, None) if value is None else value for name, value in asked.items()}
        return bool(found["output_attentions"] or found["output_hidden_states"] or found["return_dict"] is False)

    def _observe_step(self, call: Call, kept: Tensor) -> None:
        """Count what a per-token method kept in a whole step: uint8 [L, B, F]."""
        inside = call.mask[:, 0].double()
        self._token_kept = list(kept.bool())
        self._left_out += (1 - kept.sum(2, dtype=torch.float64) / kept.shape[2]) @ inside
        self._decoded += inside.sum()

    def collect(self, layer: int, a: Tensor, tokens: Tensor | None) -> None:
        """Add a prompt's activations to an FFN's statistic: [B, T, F] or [B·T, F], or [n, F] of some tokens."""
        call = self._call
        if call is None:
            self._unseen.outside()
            return
        if call.phase != "prefill":
            return
        statistic = call.request.statistics[layer]
        if statistic is not None:
            with span("statistic"):
                if tokens is None:
                    statistic.add(a.detach().view(call.rows, call.tokens, -1), call.mask)
                else:
                    places, inside = by_row(tokens, call.mask)
                    statistic.add(a.detach()[places], inside)

    def executor(self, layer: int) -> Executor | None:
        """The fast path that runs this layer in the forward in progress; None where the model's own code does."""
        call = self._call
        layers = self.fast.running(call.execution) if call is not None and call.phase == "decode" else ()
        return layers[layer] if layers else None

    def mask(self, layer: int, z: Tensor, a: Tensor, tokens: Tensor | None) -> Tensor | None:
        """Masked execution: z with left-out activations zeroed; None outside decode and in other executions.

        Parameters
        ----------
        layer : int
            Number of the FFN.
        z : Tensor
            Neuron activation, [B, T, F] or [B·T, F], or [n, F] of some tokens.
        a : Tensor
            The activation that the method looks at, of the same shape.
        tokens : Tensor or None
            Which of the forward's tokens they are: int64 [n]; None is all, in order.
        """
        call = self._call
        if call is None or call.phase != "decode" or call.execution != "masked":
            return None
        if isinstance(self.method, TokenMethod):
            with span("selection"):
                kept = self.method.select(self.ffns[layer], a)
                self.observe(layer, kept.reshape(-1, kept.shape[-1]), tokens)
            return z.masked_fill(~kept, 0)
        assert call.request.kept is not None
        if tokens is not None:
            own = call.request.kept[layer][tokens // call.tokens]
            self._count(layer, own, tokens)
            return z.masked_fill(~own, 0)
        left_out = ~call.request.kept[layer].unsqueeze(1)  # [B, 1, F]
        return z.view(call.rows, call.tokens, -1).masked_fill(left_out, 0).view_as(z)

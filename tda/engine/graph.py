"""One CUDA graph of a decode step over the model's own forward: launches then cost next to nothing.

The graph is captured once for a number of rows. Everything that changes between steps and prompts (token, position,
mask, keys and values, lists of kept neurons and their counts) lies in buffers that it reads, so no prompt needs a new
capture. The buffers are tested on a CPU, with the step run anew in place of the graph. On a GPU a profiler has it run
anew too (`GraphStep.eager`), since a replay does not say which module launched which kernel.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tda.engine.caches import settle
from tda.engine.transformers_api import cache_keyword, cached_tokens
from tda.kernels.native.key_values import GROWING
from tda.spans import GRAPH, span

MOST_ROWS = 16
"""Batch rows that a step serves; beyond them, launches no longer weigh."""
CAPACITY = 1024
"""Tokens that a graph's cache has room for at first; where a request needs more, a larger one is captured."""
FIXED = "StaticLayer"

Capture = Callable[[Callable[[], None]], Callable[[], None]]


def capture_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Run some work until it is warm and its kernels are tuned, then capture it; return what replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


@dataclass(eq=False)
class Buffers:
    """What one captured step reads and writes.

    Attributes
    ----------
    token, position : Tensor
        int64 [B, 1]
    mask : Tensor
        Added to attention scores: [B, 1, 1, capacity].
    static : object
        The cache that the step writes to.
    logits : Tensor
        [B, 1, V]
    kept : Tensor or None
        What a per-token method kept: uint8 [L, B, F].
    """

    token: Tensor
    position: Tensor
    mask: Tensor
    static: Any
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    kept: Tensor | None = None
    _owner: Callable[[], Any] = lambda: None
    _count: int = 0

    @property
    def capacity(self) -> int:
        """Tokens that the cache has room for."""
        return self.mask.shape[-1]

    def holds(self, cache: Any, count: int) -> bool:
        """Whether a cache's tokens lie here as the last step left them."""
        if self._owner() is not cache or self._count != count:
            return False
        pairs = zip(cache.layers, self.static.layers, strict=True)
        return all(
            layer.keys.data_ptr() == fixed.keys.data_ptr() and layer.values.data_ptr() == fixed.values.data_ptr()
            for layer, fixed in pairs
        )

    def take(self, cache: Any, count: int, valid: Tensor | None) -> None:
        """Move a cache's tokens here; the one that was here before gets copies of its own."""
        before = self._owner()
        if before is not None and before is not cache:
            settle(before)
            for layer, fixed in zip(before.layers, self.static.layers, strict=True):
                if layer.keys.data_ptr() == fixed.keys.data_ptr():
                    layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
        for layer, fixed in zip(cache.layers, self.static.layers, strict=True):
            fixed.keys[:, :, :count] = layer.keys
            fixed.values[:, :, :count] = layer.values
            fixed.cumulative_length.fill_(count)
        lowest = torch.finfo(self.mask.dtype).min
        self.mask.fill_(lowest)
        self.mask[..., :count] = 0
        if valid is not None:
            self.mask[:, 0, 0, :count].masked_fill_(~valid[:, :count].bool(), lowest)
        self._owner, self._count = weakref.ref(cache), count
        self._show(cache)

    def advance(self, cache: Any) -> None:
        """Let the cache see the token that a step has added."""
        self._count += 1
        self._show(cache)

    def _show(self, cache: Any) -> None:
        for layer, fixed in zip(cache.layers, self.static.layers, strict=True):
            layer.keys, layer.values = fixed.keys[:, :, : self._count], fixed.values[:, :, : self._count]


class Captured(NamedTuple):
    """A step with its buffers: the work as it was captured, and what replays it."""

    buffers: Buffers
    work: Callable[[], None]
    replay: Callable[[], None]

    def run_anew(self) -> tuple[Tensor, Tensor | None]:
        """Logits and what was kept, from the work run once more; replays go on writing where they wrote."""
        buffers = self.buffers
        replayed = buffers.logits, buffers.kept
        try:
            with torch.inference_mode(False), torch.no_grad():
                self.work()
            return buffers.logits, buffers.kept
        finally:
            buffers.logits, buffers.kept = replayed


# long: a step, what it was captured with, and why it cannot run belong together
class GraphStep:
    """A decode step of up to 16 rows, captured for each number of rows and replayed.

    A cache that it serves sees views of the graph's buffers. They stay its own until another cache is served: then it
    gets copies. Tensors that a caller has taken out of the cache himself are not looked after.

    Parameters
    ----------
    model : nn.Module
        The model; its forward, as it is now, is what runs.
    kept : callable or None
        Gives the sets of the last forward, of a per-token method: uint8 [B, F] per layer.
    capture : callable
        Turns work into what repeats it; a CUDA graph by default.

    Attributes
    ----------
    captures : int
        Captures so far.
    running : bool
        Whether the work itself runs, to be captured or anew: what it kept is then told with the step's logits, if it is
        a step of a request at all.
    """

    def __init__(
        self, model: nn.Module, kept: Callable[[], Sequence[Tensor]] | None = None, capture: Capture | None = None
    ) -> None:
        self.model = model
        self.captures = 0
        self.running = False
        self._eager = False
        self._forward = model.forward
        self._kept = kept
        self._capture = capture or capture_graph
        self._steps: dict[int, Captured] = {}

    @staticmethod
    def model_problem(model: Any) -> str | None:
        """Why a model's step cannot be captured; None if it can."""
        from transformers import StaticCache

        kinds = {type(layer).__name__ for layer in StaticCache(config=model.config, max_cache_len=1).layers}
        return None if kinds == {FIXED} else "its static cache has layers with a sliding window"

    def problem(
        self, cache: Any, rows: int, position: Tensor | None = None, mask: Tensor | None = None, tokens: int = 0
    ) -> str | None:
        """Why a step cannot run; None if it can. See `tda.engine.backends.base.DecodeStep`."""
        layers = getattr(cache, "layers", ())
        if not layers or {type(layer).__name__ for layer in layers} != {GROWING} or not cached_tokens(cache):
            return "the cache is not one that grows token by token"
        if mask is not None and (mask.dim() != 2 or mask.shape[1] < tokens):
            return "the mask does not tell of every token"
        if mask is not None and position is None:
            return "families differ in what positions they make of a mask"
        if torch.is_autocast_enabled(layers[0].keys.device.type):
            return "types are cast automatically, which was not captured"
        return None if rows <= MOST_ROWS else f"more than {MOST_ROWS} rows"

    @torch.no_grad()
    def __call__(
        self, token: Tensor, position: Tensor, cache: Any, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [B, 1, V] after one more token, and what was kept (uint8 [L, B, F]); the cache grows by it.

        Parameters
        ----------
        token, position : Tensor
            int64 [B, 1] each.
        cache : object
            A cache that `problem` has nothing against.
        mask : Tensor, optional
            Cached tokens that are no padding: bool [B, at least what is cached]; None is all.
        """
        count = cached_tokens(cache)
        captured = self._step(token, count + 1, cache)
        buffers = captured.buffers
        if not buffers.holds(cache, count):
            buffers.take(cache, count, mask)
        buffers.token.copy_(token)
        buffers.position.copy_(position)
        buffers.mask[..., count] = 0
        with span(GRAPH):
            logits, kept = self._run(captured)
        buffers.advance(cache)
        return logits.clone(), kept

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Run the work of each step inside the block anew in place of its replay: the same kernels, in the same order.

        Each is a step of its request as any other. It takes longer, and shows a profiler who launches what.
        """
        before, self._eager = self._eager, True
        try:
            yield
        finally:
            self._eager = before

    def _run(self, captured: Captured) -> tuple[Tensor, Tensor | None]:
        if not self._eager:
            captured.replay()
            return captured.buffers.logits, captured.buffers.kept
        with self._running():
            return captured.run_anew()

    @contextmanager
    def _running(self) -> Iterator[None]:
        self.running = True
        try:
            yield
        finally:
            self.running = False

    def _step(self, token: Tensor, needed: int, cache: Any) -> Captured:
        rows = len(token)
        known = self._steps.get(rows)
        if known is not None and known.buffers.capacity >= needed:
            return known
        capacity = max(CAPACITY, 1 << (needed + needed // 4).bit_length())
        with torch.inference_mode(False), torch.no_grad():
            buffers = self._buffers(token, capacity, cache)
            work = self._work(buffers)
            with self._running():
                self._steps[rows] = Captured(buffers, work, self._capture(work))
        self.captures += 1
        return self._steps[rows]

    def _buffers(self, token: Tensor, capacity: int, cache: Any) -> Buffers:
        from transformers import StaticCache

        model: Any = self.model
        static = StaticCache(config=model.config, max_cache_len=capacity)
        for layer, fixed in zip(cache.layers, static.layers, strict=True):
            fixed.lazy_initialization(layer.keys[:, :, :1].clone(), layer.values[:, :, :1].clone())
        mask = torch.zeros(len(token), 1, 1, capacity, dtype=cache.layers[0].keys.dtype, device=token.device)
        return Buffers(torch.zeros_like(token), torch.zeros_like(token), mask, static)

    def _work(self, buffers: Buffers) -> Callable[[], None]:
        arguments = {
            "input_ids": buffers.token,
            "position_ids": buffers.position,
            "attention_mask": buffers.mask,
            "use_cache": True,
            cache_keyword(self.model): buffers.static,
        }

        def work() -> None:
            buffers.logits = self._forward(**arguments).logits
            if self._kept is not None:
                buffers.kept = torch.stack(list(self._kept()))

        return work

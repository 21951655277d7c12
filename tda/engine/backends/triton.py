"""Decode by the kernels in Triton, on CUDA."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from tda.as_built import modules_of
from tda.contracts import Method, Observer
from tda.engine.backends import plain
from tda.engine.backends.attachment_cache import cache_of, observe_nothing
from tda.engine.backends.base import Backend
from tda.engine.backends.decoding import Decoding
from tda.engine.graph import GraphStep
from tda.engine.overrides import Overrides
from tda.engine.rotary import is_dynamic
from tda.engine.selfcheck import ADDED, check_static_step, structure
from tda.kernels import triton
from tda.kernels.weights import Weights
from tda.view import FFN, Linear


class TritonBackend(Backend):
    """The kernels in Triton; a whole step is one CUDA graph over the model's own forward."""

    name = "triton"
    gathers = False

    @cached_property
    def missing(self) -> str | None:
        """Why the kernels cannot run the model's feed-forward networks where they lie; None if they can."""
        return triton.problem(self.ffns)

    @cached_property
    def piecewise(self) -> str | None:
        """Why the model's step cannot be captured; None if it can."""
        if structure(self.model) is None:
            return ADDED
        if any(map(is_dynamic, modules_of(self.model))):
            return "its rotary positions change with the length of the sequence"
        return GraphStep.model_problem(self.model) or check_static_step(self.model)

    def problem(self, method: Method) -> str | None:
        """Why the kernels cannot run the model as a method wants it; None if they can."""
        if self.missing is None and method.quantization is not None:
            return f"the kernels in Triton do not read {method.quantization} weights yet"
        return super().problem(method)

    def _dense(self, weights: Weights, overrides: Overrides) -> Decoding:
        reason = self.missing or self.piecewise
        if reason is not None:
            return plain.whole(self.ffns, "dense", reason)
        cache = cache_of(self.model)  # before forwards are replaced, which its state would show

        def make(observe: Observer) -> Decoding:
            return Decoding(self.ffns, "dense", self.info(None), step=GraphStep(self.model))

        decoding = make(observe_nothing) if cache is None else cache.decoding("dense", observe_nothing, make)
        self._own_linears([], weights, overrides)
        return decoding

    def _indexed(self, method: Any, weights: Weights, observe: Observer, overrides: Overrides) -> Decoding:
        cache = cache_of(self.model)
        in_rows = None if cache is None else cache.rows(self.ffns)
        if cache is None or in_rows is None:
            self._lay(method, weights, overrides)
            return self._decoding(method, self.ffns, observe)
        # lists and counts lie in buffers, so one step serves all methods that choose per prompt
        key = method.kind if method.kind == "prompt" else (method, id(method.thresholds))
        return cache.decoding(key, observe, partial(self._decoding, method, in_rows))

    def _decoding(self, method: Any, ffns: Sequence[FFN], observe: Observer) -> Decoding:
        """Executors of networks whose down projections lie in rows, and the step over them."""
        from tda.kernels.triton import ffn as kernels
        from tda.kernels.triton.statistic import SquaresKernel

        graph: GraphStep | None = None

        def counted(layer: int, kept: Tensor) -> None:
            if graph is None or not graph.running:
                observe(layer, kept)

        info = self.info(self.piecewise)
        if method.kind == "prompt":
            listed = [kernels.TritonListedFFN(ffn) for ffn in ffns]
            graph = GraphStep(self.model) if self.piecewise is None else None
            squares = SquaresKernel()
            return Decoding(self.ffns, "indexed", info, listed, graph, sweep=squares, swept=squares.finish)
        layers = [kernels.TritonThresholdFFN(ffn, method, counted) for ffn in ffns]
        graph = GraphStep(self.model, lambda: [layer.kept for layer in layers]) if self.piecewise is None else None
        return Decoding(self.ffns, "indexed", info, layers, graph)

    def _own_forward(self, linear: Any, weights: Weights) -> Callable[[Tensor], Tensor]:
        from tda.kernels.triton.rows import own_forward

        triton.check_linear(Linear(linear))
        return own_forward(linear, linear.forward)

"""Decode by the kernels in C, on a CPU."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tda.contracts import Method, Observer
from tda.engine.backends import plain
from tda.engine.backends.base import Backend, in_rows
from tda.engine.backends.decoding import Decoding
from tda.engine.overrides import Overrides
from tda.engine.selfcheck import check_step
from tda.families import family_of
from tda.kernels import native
from tda.kernels.activations import UndescribedError
from tda.kernels.native import describe
from tda.kernels.native.ffn import GatheredFFN, ListedFFN, NativeFFN, ThresholdFFN
from tda.kernels.native.linear import NativeLinear
from tda.kernels.native.step import Step
from tda.kernels.weights import AS_BUILT, Weights
from tda.names import Execution
from tda.view import FFN, Linear

SHORT = 4096
"""Bytes of a neuron's weights below which "auto" copies what a prompt keeps.

At every jump over neurons a processor has fetched about 1 KiB in vain, which it expected to be read next: much of a
short neuron, little of a long one.
"""


class NativeBackend(Backend):
    """The kernels in C."""

    name = "c"
    gathers = True

    @cached_property
    def missing(self) -> str | None:
        """Why the kernels cannot run the model's feed-forward networks where they lie; None if they can."""
        return native.problem(self.ffns)

    @cached_property
    def piecewise(self) -> str | None:
        """Why the kernels do not run the model's whole step in one call; None if they do."""
        return self._undescribed or self._step([describe.feed_forward(ffn) for ffn in self.ffns], AS_BUILT)[1]

    @cached_property
    def _undescribed(self) -> str | None:
        """Why there is no description of the model's whole step; None where there may be one."""
        family = family_of(self.model)
        if family.decoder is None:
            return f"family {family.name!r} does not describe its decoder"
        return "its layers differ in size" if len({ffn.F for ffn in self.ffns}) > 1 else None

    def prefers_copies(self, method: Method) -> bool:
        """Whether reading neurons where they lie would mean jumping over short ones."""
        ffn = self.ffns[0]
        each = ffn.up.weight.element_size() if method.quantizer is None else method.quantizer.bytes_per_weight
        return (len(ffn.inputs) + 1) * ffn.D * each < SHORT

    def _beside(self, ffn: FFN, method: Method) -> list[Linear]:
        gate_decides = method.activation == "gate" and ffn.gate is not None
        beside = ffn.inputs if method.kind == "prompt" else [ffn.up] if gate_decides else []
        return [linear for linear in beside if linear.is_module]

    def _dense(self, weights: Weights, overrides: Overrides) -> Decoding:
        if self.missing is not None:
            return plain.whole(self.ffns, "dense", self.missing)
        in_rows((linear for ffn in self.ffns for linear in ffn.inputs), overrides)
        step, reason = self._step([describe.feed_forward(ffn, weights) for ffn in self.ffns], weights)
        if not self._own_linears([], weights, overrides) and reason is not None:
            return plain.whole(self.ffns, "dense", reason)
        return Decoding(self.ffns, "dense", self.info(reason), step=step)

    def _gathered(self, weights: Weights) -> Decoding:
        return self._loading("compact", weights, [GatheredFFN(ffn, weights) for ffn in self.ffns])

    def _indexed(self, method: Any, weights: Weights, observe: Observer, overrides: Overrides) -> Decoding:
        self._lay(method, weights, overrides)
        if method.kind == "prompt":
            return self._loading("indexed", weights, [ListedFFN(ffn, weights) for ffn in self.ffns])
        with torch.inference_mode(False):
            kept = torch.zeros(len(self.ffns), max(ffn.F for ffn in self.ffns), dtype=torch.uint8)
        layers = [ThresholdFFN(ffn, method, observe, kept[ffn.index], weights) for ffn in self.ffns]
        step, reason = self._step([layer.description for layer in layers], weights, kept)
        return Decoding(self.ffns, "indexed", self.info(reason), layers, step)

    def _own_forward(self, linear: Any, weights: Weights) -> Callable[[Tensor], Tensor]:
        return NativeLinear(linear, linear.forward, weights)

    def _loading(self, execution: Execution, weights: Weights, layers: Sequence[NativeFFN]) -> Decoding:
        """A decode on executors that take a prompt's sets."""
        step, reason = self._step([layer.description for layer in layers], weights)

        def loaded() -> None:
            if step is not None:
                step.load([layer.description for layer in layers])

        return Decoding(self.ffns, execution, self.info(reason), layers, step, loaded, gathering=GatheredFFN)

    def _step(
        self, ffns: Sequence[Any], weights: Weights, kept: Tensor | None = None
    ) -> tuple[Step | None, str | None]:
        """The model's whole step over descriptions of its feed-forward networks, or why there is none."""
        declared = family_of(self.model).decoder
        if declared is None or self._undescribed is not None:
            return None, self._undescribed
        try:
            decoder = declared(self.model)
            reason = check_step(self.model, decoder, self.ffns)
            return (None, reason) if reason is not None else (Step(decoder, ffns, weights, kept), None)
        except UndescribedError as error:
            return None, str(error)

"""Decode by the kernels in C, on a CPU."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tda.contracts import Method, Observer, WeightMethod
from tda.engine.backends import plain
from tda.engine.backends.base import Backend, in_rows
from tda.engine.backends.decoding import Decoding
from tda.engine.overrides import Overrides
from tda.engine.rounding import RoundedLinears
from tda.engine.selfcheck import check_step
from tda.families import family_of
from tda.kernels import native
from tda.kernels.native import describe
from tda.kernels.native.describe import UndescribedError
from tda.kernels.native.ffn import GatheredFFN, ListedFFN, NativeFFN, ThresholdFFN
from tda.kernels.native.linear import NativeLinear
from tda.kernels.native.step import Step
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
        return self._step([describe.feed_forward(ffn) for ffn in self.ffns])[1]

    @property
    def prefers_copies(self) -> bool:
        """Whether reading neurons where they lie would mean jumping over short ones."""
        ffn = self.ffns[0]
        return (len(ffn.inputs) + 1) * ffn.D * ffn.up.weight.element_size() < SHORT

    def _beside(self, ffn: FFN, method: Method) -> list[Linear]:
        gate_decides = method.activation == "gate" and ffn.gate is not None
        beside = ffn.inputs if method.kind == "prompt" else [ffn.up] if gate_decides else []
        return [linear for linear in beside if linear.is_module]

    def _dense(self, overrides: Overrides) -> Decoding:
        if self.missing is not None:
            return plain.whole(self.ffns, "dense", self.missing)
        in_rows((linear for ffn in self.ffns for linear in ffn.inputs), overrides)
        step, reason = self._step([describe.feed_forward(ffn) for ffn in self.ffns])
        if not self._own_linears([], overrides) and reason is not None:
            return plain.whole(self.ffns, "dense", reason)
        return Decoding(self.ffns, "dense", self.info(reason), step=step)

    def _few_bits(self, method: WeightMethod, asked: Execution, overrides: Overrides) -> Decoding:
        reason = "" if asked == "masked" else self.missing
        linears = RoundedLinears(self.model, method, overrides, hold=reason is None)
        if reason is not None:
            if asked == "indexed":
                raise ValueError(
                    f"execution 'indexed' of {method.name!r} needs kernels of our own: {reason}; use 'masked'"
                )
            return plain.whole(self.ffns, "masked", reason)
        descriptions = [describe.feed_forward(ffn, linears.matrix) for ffn in self.ffns]
        step, reason = self._step(descriptions, linears.matrix)
        self._own_linears([], overrides, lambda linear: NativeLinear(linear, linear.forward, linears.matrix))
        return Decoding(self.ffns, "dense", self.info(reason), step=step)

    def _gathered(self) -> Decoding:
        return self._loading("compact", [GatheredFFN(ffn) for ffn in self.ffns])

    def _indexed(self, method: Any, observe: Observer) -> Decoding:
        if method.kind == "prompt":
            return self._loading("indexed", [ListedFFN(ffn) for ffn in self.ffns])
        with torch.inference_mode(False):
            kept = torch.zeros(len(self.ffns), max(ffn.F for ffn in self.ffns), dtype=torch.uint8)
        layers = [ThresholdFFN(ffn, method, observe, kept[ffn.index]) for ffn in self.ffns]
        step, reason = self._step([layer.description for layer in layers], kept=kept)
        return Decoding(self.ffns, "indexed", self.info(reason), layers, step)

    def _own_forward(self, linear: Any) -> Callable[[Tensor], Tensor]:
        return NativeLinear(linear, linear.forward)

    def _loading(self, execution: Execution, layers: Sequence[NativeFFN]) -> Decoding:
        """A decode on executors that take a prompt's sets."""
        step, reason = self._step([layer.description for layer in layers])

        def loaded() -> None:
            if step is not None:
                step.load([layer.description for layer in layers])

        return Decoding(self.ffns, execution, self.info(reason), layers, step, loaded, gathering=GatheredFFN)

    def _step(
        self, ffns: Sequence[Any], matrices: describe.Matrices = describe.matrix, kept: Tensor | None = None
    ) -> tuple[Step | None, str | None]:
        """The model's whole step over descriptions of its feed-forward networks, or why there is none."""
        family = family_of(self.model)
        if family.decoder is None:
            return None, f"family {family.name!r} does not describe its decoder"
        if len({ffn.F for ffn in self.ffns}) > 1:
            return None, "its layers differ in size"
        try:
            decoder = family.decoder(self.model)
            reason = check_step(self.model, decoder, self.ffns)
            return (None, reason) if reason is not None else (Step(decoder, ffns, matrices, kept), None)
        except UndescribedError as error:
            return None, str(error)

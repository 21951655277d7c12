"""TEAL: small inputs of every linear are left out, token by token."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from tda.contracts import TokenMethod, check_choice, check_number
from tda.families import find_inputs
from tda.fitting.collect import Batch, Call, Collector, Shares
from tda.fitting.histogram import Histogram
from tda.methods import METHODS
from tda.view import FFN, Place


@METHODS.register("teal")
@dataclass(frozen=True, kw_only=True)
class TEAL(TokenMethod):
    """Leave out, for each decode token, the inputs x_i of each linear whose magnitude is small.

    Kept where abs(x_i) > τ of that linear, of attention and FFN alike; a left-out input skips column i of the weight.
    Source: TEAL, arXiv 2408.14690. Unlike its public code, the whole prompt is dense. In masked execution only, so far.

    Attributes
    ----------
    sparsity : float
        Share of the *weights* of each block that is left out, on average.
    allocation : {"greedy", "uniform"}
        How the linears of a block share it: step by step to the one whose next step changes the block's output least,
        or the same share for each.
    step : float
        A step of the greedy search, 0 < step <= 1: the share by which a linear of D x D weights grows; others take
        steps of as many weights.
    """

    name: ClassVar[str] = "teal"
    fast: ClassVar[bool] = False
    in_presets: ClassVar[bool] = False  # its greedy search takes minutes

    allocation: Literal["greedy", "uniform"] = "greedy"
    step: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("allocation", self.allocation, ("greedy", "uniform"))
        if not 0 < check_number("step", self.step) <= 1:
            raise ValueError(f"step is a share of a linear's weights, 0 < step <= 1; got {self.step}")

    def check(self, ffn: FFN) -> None:
        """Raise ValueError if this method is not defined for such an FFN."""
        if ffn.experts is not None:
            raise ValueError(
                f"inputs of experts are not known to method {self.name!r} yet; it needs a model without experts"
            )

    def places(self, model: nn.Module, ffns: Sequence[FFN]) -> Sequence[Place]:
        """The inputs of every linear."""
        return find_inputs(model)

    def importance(self, place: Place, a: Tensor) -> Tensor:
        """abs(x): float32."""
        return a.abs().float()

    def keep(self, place: Place, importance: Tensor) -> Tensor:
        """What is above the linear's threshold; a nan is kept, so that logits tell of it."""
        return ~(importance <= self.fitted.cut(place.index))

    def collector(self, layers: int) -> Collector | None:
        """Magnitudes of every linear's inputs, and what some documents give each block."""
        if self.thresholds:
            return None
        return InputCollector(layers, self.sparsity or 0.0, None if self.allocation == "uniform" else self.step)


class InputCollector(Collector):
    """Histograms of abs(x) for each linear, and what one batch of documents gives each block.

    Parameters
    ----------
    linears : int
        Linears of the model.
    target : float
        Share of a block's weights to leave out.
    step : float or None
        Step of the greedy search; None is the same share for each linear.
    """

    def __init__(self, linears: int, target: float, step: float | None) -> None:
        self.histograms = [Histogram() for _ in range(linears)]
        self._calls: dict[int, Call] = {}
        self._target = target
        self._step = step
        self.sees_blocks = step is not None

    def observe(self, place: Place, a: Tensor, x: Tensor, batch: Batch) -> None:
        """Count the inputs of all tokens but each row's first, which is never decoded."""
        decodable = batch.mask & (batch.positions > 0)
        self.histograms[place.index].add(self._checked(place, a[decodable]).abs())

    def block(self, layer: int, call: Call) -> None:
        """Keep a block's call."""
        self._calls[layer] = call

    def found(self, places: Sequence[Place], shares: Shares, given: Sequence[float] | None) -> dict[str, Any]:
        """A threshold for each linear."""
        targets = list(self._shares(places) if given is None else given)
        cuts = [histogram.quantile(share) for histogram, share in zip(self.histograms, targets, strict=True)]
        return {
            "cuts": tuple((cut,) for cut in cuts),
            "targets": tuple(targets),
            "achieved_sparsity": tuple(h.share_below(cut) for h, cut in zip(self.histograms, cuts, strict=True)),
        }

    def _shares(self, places: Sequence[Place]) -> list[float]:
        if self._step is None:
            return [self._target] * len(places)
        found = []
        for layer in sorted({place.layer for place in places}):
            own = [place for place in places if place.layer == layer]
            call, histograms = self._calls[layer], [self.histograms[place.index] for place in own]
            dense = call()

            error = partial(_error, own, histograms, call, dense)
            found += greedy([place.size for place in own], own[0].F ** 2, self._target, self._step, error)
        return found


def _error(
    places: Sequence[Place], histograms: Sequence[Histogram], call: Call, dense: Tensor, shares: Sequence[float]
) -> float:
    """Error of a block's output where each linear leaves out a share of its inputs."""
    with ExitStack() as masks:
        for place, histogram, share in zip(places, histograms, shares, strict=True):
            for handle in place.watch(partial(_cut, histogram.quantile(share))):
                masks.callback(handle.remove)
        return call.distance(call(), dense)


def _cut(cut: float, passing: Mapping[str, Tensor], tokens: Tensor | None) -> Tensor:
    return passing["z"].masked_fill(passing["z"].abs() <= cut, 0)


def greedy(
    sizes: Sequence[int], unit: int, target: float, step: float, error: Callable[[Sequence[float]], float]
) -> list[float]:
    """Shares of a block's linears, found step by step: each goes to the linear that makes the block's error least.

    Parameters
    ----------
    sizes : sequence of int
        Weights of each linear.
    unit : int
        Weights of a linear of D x D; a step is as many weights as `step` of them.
    target : float
        Share of all weights to leave out.
    step : float
        Share of the unit.
    error : callable
        Error of the block's output at shares of the linears.
    """
    shares = [0.0] * len(sizes)
    grown = [min(step * unit / size, 1.0) for size in sizes]
    while True:
        reached = sum(share * size for share, size in zip(shares, sizes, strict=True)) / sum(sizes)
        if reached >= target:
            return shares
        tries = {
            place: [*shares[:place], min(share + grown[place], 1.0), *shares[place + 1 :]]
            for place, share in enumerate(shares)
            if share < 1
        }
        left = (target - reached) * sum(sizes)
        for place, tried in tries.items():  # the last step goes as far as is asked, and no farther
            tried[place] = min(tried[place], shares[place] + left / sizes[place])
        shares = min(tries.values(), key=error)

"""TEAL: small inputs of every linear are left out, token by token."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from tda.contracts import TokenMethod, check_choice, check_number
from tda.families import find_inputs
from tda.fitting.collect import Batch, BlockCall, Collector, Shares
from tda.fitting.histogram import Histogram
from tda.methods import METHODS
from tda.view import FFN, Place, Site


@METHODS.register("teal")
@dataclass(frozen=True, kw_only=True)
class TEAL(TokenMethod):
    """Leave out, for each decode token, the inputs x_i of each linear whose magnitude is small.

    Kept where abs(x_i) > τ of that linear, of attention and FFN alike; a left-out input skips column i of the weight.
    Source: TEAL, arXiv 2408.14690. Unlike its public code, the whole prompt is dense. In masked execution only, so far.

    Attributes
    ----------
    sparsity : float
        Fraction of the *weights* of each block that is left out, on average.
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
            raise ValueError(f"step is a fraction of a linear's weights, 0 < step <= 1; got {self.step}")

    def check(self, ffn: FFN) -> None:
        """Raise ValueError if this method is not defined for such an FFN."""
        if ffn.experts is not None:
            raise ValueError(
                f"inputs of experts are not known to method {self.name!r} yet; it needs a model without experts"
            )

    def places(self, model: nn.Module, ffns: Sequence[FFN]) -> Sequence[Place]:
        """The inputs of every linear."""
        return find_inputs(model)

    def sites(self, place: Place) -> tuple[Site, ...]:
        """The place itself: inputs of its linear."""
        return place.sites

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
        return InputCollector(layers)

    def shares(self, curves: Sequence["BlockOutput"]) -> list[float]:
        """Shares of every linear, block by block."""
        target = self.sparsity or 0.0
        if self.allocation == "uniform":
            return [target for block in curves for _ in block.sizes]
        return [share for block in curves for share in greedy(block, target, self.step)]


@dataclass(frozen=True)
class BlockOutput:
    """What leaving inputs out of a block's linears does to its output.

    Attributes
    ----------
    sizes : sequence of int
        Weights of each linear.
    unit : int
        Weights of a linear of D x D.
    error : callable
        Error of the block's output at shares of the linears' inputs.
    """

    sizes: Sequence[int]
    unit: int
    error: Callable[[Sequence[float]], float]


class InputCollector(Collector):
    """Histograms of abs(x) for each linear, and what one batch of documents gives each block.

    Parameters
    ----------
    linears : int
        Linears of the model.
    """

    sees_blocks = True

    def __init__(self, linears: int) -> None:
        self.histograms = [Histogram() for _ in range(linears)]
        self._calls: dict[int, BlockCall] = {}

    def observe(self, place: Place, a: Tensor, x: Tensor, batch: Batch) -> None:
        """Count the inputs of all tokens but each row's first, which is never decoded."""
        decodable = batch.mask & (batch.positions > 0)
        self.histograms[place.index].add(self._checked(place, a[decodable]).abs())

    def block(self, layer: int, call: BlockCall) -> None:
        """Keep a block's call."""
        self._calls[layer] = call

    def found(self, places: Sequence[Place], shares: Shares, given: Sequence[float] | None) -> dict[str, Any]:
        """A threshold for each linear."""
        targets = list(shares(self._blocks(places)) if given is None else given)
        cuts = [histogram.quantile(share) for histogram, share in zip(self.histograms, targets, strict=True)]
        return {
            "cuts": tuple((cut,) for cut in cuts),
            "targets": tuple(targets),
            "achieved_sparsity": tuple(h.share_below(cut) for h, cut in zip(self.histograms, cuts, strict=True)),
        }

    def _blocks(self, places: Sequence[Place]) -> list[BlockOutput]:
        found = []
        for layer in sorted({place.layer for place in places}):
            own = [place for place in places if place.layer == layer]
            histograms = [self.histograms[place.index] for place in own]
            error = Error(own, histograms, self._calls[layer])
            found.append(BlockOutput([place.size for place in own], own[0].F ** 2, error))
        return found


class Error:
    """Error of a block's output where each linear leaves out a share of its inputs."""

    def __init__(self, places: Sequence[Place], histograms: Sequence[Histogram], call: BlockCall) -> None:
        self._places = places
        self._histograms = histograms
        self._call = call

    @cached_property
    def _dense(self) -> Tensor:
        return self._call()

    def __call__(self, shares: Sequence[float]) -> float:
        """L2 distance to the dense output, by token."""
        dense = self._dense
        with ExitStack() as masks:
            for place, histogram, share in zip(self._places, self._histograms, shares, strict=True):
                for handle in place.watch(partial(_cut, histogram.quantile(share))):
                    masks.callback(handle.remove)
            return self._call.distance(self._call(), dense)


def _cut(cut: float, passing: Mapping[str, Tensor], tokens: Tensor | None) -> Tensor:
    return passing["z"].masked_fill(passing["z"].abs() <= cut, 0)


def greedy(block: BlockOutput, target: float, step: float) -> list[float]:
    """Shares of a block's linears, found step by step: each goes to the linear that makes the block's error least.

    Parameters
    ----------
    block : BlockOutput
        The block.
    target : float
        Share of all weights to leave out.
    step : float
        Share of the unit: a step is as many weights.
    """
    sizes, whole = block.sizes, sum(block.sizes)
    shares = [0.0] * len(sizes)
    grown = [min(step * block.unit / size, 1.0) for size in sizes]
    while True:
        reached = sum(share * size for share, size in zip(shares, sizes, strict=True)) / whole
        if reached >= target:
            return shares
        tries = {
            place: [*shares[:place], min(share + grown[place], 1.0), *shares[place + 1 :]]
            for place, share in enumerate(shares)
            if share < 1
        }
        left = (target - reached) * whole
        for place, tried in tries.items():  # the last step goes as far as is asked, and no farther
            tried[place] = min(tried[place], shares[place] + left / sizes[place])
        shares = min(tries.values(), key=block.error)

"""How much an attached method left out in decode."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tda.engine.request import Call
from tda.engine.tracker import PhaseTracker
from tda.selection import Selection
from tda.view import Place


class SparsityCounter:
    """Counts what every kind of execution leaves out, and holds what a per-token method kept last.

    Parameters
    ----------
    places : sequence of Place
        Where the method leaves something out.
    phases : PhaseTracker
        Knows the forward in progress, which is what is counted.

    Attributes
    ----------
    routed : bool
        Whether the places are experts: which tokens reach them is seen in masked execution only.
    tokens : Tensor
        Tokens that were decoded, of an expert those that reached it: float64 [L].
    """

    def __init__(self, places: Sequence[Place], phases: PhaseTracker) -> None:
        device = places[0].device
        self.routed = places[0].experts is not None
        self.tokens = torch.zeros(len(places), dtype=torch.float64, device=device)
        self._sizes = torch.tensor([float(place.size) for place in places], dtype=torch.float64, device=device)
        self._layers = torch.tensor([place.layer for place in places], device=device)
        self._widths = [place.F for place in places]
        self._left_out = torch.zeros_like(self.tokens)  # shares, summed over tokens
        self._phases = phases
        self._kept: list[Tensor | None] = [None] * len(places)

    def whole(self, call: Call) -> None:
        """Count a step that leaves nothing out."""
        self.tokens += call.mask.sum()

    def prompt(self, call: Call, kept: Selection) -> None:
        """Count a step in which every row keeps what its prompt keeps."""
        if self.routed:
            return
        self._left_out += kept.left_out @ call.mask.sum(1).double()
        self.tokens += call.mask.sum()

    def begin(self, call: Call) -> None:
        """A step of a per-token method begins: an expert that no token reaches leaves nothing out."""
        if self.routed:
            device = call.mask.device
            self._kept = [torch.ones(call.rows, width, dtype=torch.bool, device=device) for width in self._widths]

    def layer(self, number: int, kept: Tensor, tokens: Tensor | None = None) -> None:
        """Count what a place keeps of tokens, one by one: bool [N, F] of all of a step's, N = B·T, or of some."""
        call = self._phases.call
        assert call is not None
        if tokens is None:
            self._kept[number] = kept.view(call.rows, call.tokens, -1)[:, -1]
        else:
            ends, last = tokens % call.tokens == call.tokens - 1, self._kept[number]
            assert last is not None
            last[tokens[ends] // call.tokens] = kept[ends]
        self.count(number, kept, tokens)

    def count(self, number: int, kept: Tensor, tokens: Tensor | None) -> None:
        """Count what a place keeps of tokens, one by one: bool [N, F]."""
        call = self._phases.call
        assert call is not None
        counted = call.mask.reshape(-1)
        counted = (counted if tokens is None else counted[tokens]).double()
        self._left_out[number] += (1 - kept.double().mean(1)) @ counted
        self.tokens[number] += counted.sum()

    def step(self, call: Call, kept: Selection) -> None:
        """Count what a whole step keeps of each row's token."""
        inside = call.mask[:, 0].double()
        self._kept = list(kept)
        self._left_out += kept.left_out @ inside
        self.tokens += inside.sum()

    @property
    def last(self) -> Selection | None:
        """What a per-token method kept of each row's last token; None where no step ran yet."""
        kept = [layer for layer in self._kept if layer is not None]
        return Selection(kept) if len(kept) == len(self._kept) else None

    @property
    def started(self) -> bool:
        """Whether a decode step was counted."""
        return bool(self._of_layers(self.tokens).all())

    def mean(self) -> list[float]:
        """Share left out per layer, mean over what was counted; its places count by their numbers of weights."""
        return (self._of_layers(self._left_out) / self._of_layers(self.tokens)).tolist()

    def of_places(self) -> list[float]:
        """Share left out of each place, mean over the tokens that reached it; 0 where none did."""
        return (self._left_out / self.tokens.clamp(min=1)).tolist()

    def _of_layers(self, counts: Tensor) -> Tensor:
        if len(self._layers) == int(self._layers[-1]) + 1:
            return counts
        layers = torch.zeros(int(self._layers[-1]) + 1, dtype=counts.dtype, device=counts.device)
        return layers.index_add_(0, self._layers, counts * self._sizes)

    def restart(self) -> None:
        """Count anew."""
        self._kept = [None] * len(self._kept)
        self._left_out.zero_()
        self.tokens.zero_()

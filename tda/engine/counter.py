"""How much an attached method left out in decode."""

import torch
from torch import Tensor

from tda.engine.request import Call
from tda.engine.tracker import PhaseTracker
from tda.selection import Selection
from tda.view import FFN


class SparsityCounter:
    """Counts what every kind of execution leaves out, and holds what a per-token method kept last.

    Parameters
    ----------
    ffns : list of FFN
        The model's feed-forward networks.
    phases : PhaseTracker
        Knows the forward in progress, which is what is counted.

    Attributes
    ----------
    tokens : Tensor
        Tokens that were decoded: float64 [L].
    """

    def __init__(self, ffns: list[FFN], phases: PhaseTracker) -> None:
        device = ffns[0].up.weight.device
        self.tokens = torch.zeros(len(ffns), dtype=torch.float64, device=device)
        self._left_out = torch.zeros_like(self.tokens)  # shares, summed over tokens
        self._phases = phases
        self._kept: list[Tensor | None] = [None] * len(ffns)

    def whole(self, call: Call) -> None:
        """Count a step that leaves nothing out."""
        self.tokens += call.mask.sum()

    def prompt(self, call: Call, kept: Selection) -> None:
        """Count a step in which every row keeps what its prompt keeps."""
        self._left_out += kept.left_out @ call.mask.sum(1).double()
        self.tokens += call.mask.sum()

    def layer(self, number: int, kept: Tensor) -> None:
        """Count what a layer keeps of the tokens of a step, one by one: bool [N, F], N = B·T."""
        call = self._phases.call
        assert call is not None
        self._kept[number] = kept.view(call.rows, call.tokens, -1)[:, -1]
        share = 1 - kept.double().mean(1)
        self._left_out[number] += share @ call.mask.reshape(-1).double()
        self.tokens[number] += call.mask.sum()

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
        return bool(self.tokens.all())

    def mean(self) -> list[float]:
        """Share left out per layer, mean over what was counted."""
        return (self._left_out / self.tokens).tolist()

    def restart(self) -> None:
        """Count anew."""
        self._left_out.zero_()
        self.tokens.zero_()

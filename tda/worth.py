"""What counts as worth it: the two numbers that a user may set."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class WorthRule:
    """When a method is worth it.

    Attributes
    ----------
    max_loss_nats : float
        ΔNLL in nats per token that is accepted.
    min_speedup : float
        Speed-up of a decode step, beyond the A/A noise, that is asked for.

    Raises
    ------
    ValueError
        If one is not finite, the loss is negative, or the speed-up is not positive.
    """

    max_loss_nats: float = 0.05
    min_speedup: float = 1.05

    def __post_init__(self) -> None:
        """Check both."""
        if not 0 <= self.max_loss_nats < math.inf:
            raise ValueError(f"an accepted loss is 0 nats per token or more; got {self.max_loss_nats}")
        if not 0 < self.min_speedup < math.inf:
            raise ValueError(f"a speed-up is more than 0; got {self.min_speedup}")


DEFAULT = WorthRule()

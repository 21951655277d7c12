"""The time that an examination may take."""

import time
from dataclasses import dataclass, field


@dataclass
class Budget:
    """Seconds from now, and what they were not enough for.

    Attributes
    ----------
    seconds : float
        All of them.
    unfinished : list of str
        A sentence for each part that was cut short.
    """

    seconds: float
    unfinished: list[str] = field(default_factory=list)
    _begin: float = field(default_factory=lambda: time.monotonic(), init=False)

    @property
    def spent(self) -> float:
        """Seconds that are gone."""
        return time.monotonic() - self._begin

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return max(self.seconds - self.spent, 0.0)

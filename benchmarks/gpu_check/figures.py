"""A figure of the check, and the goal that it is held against."""

from tda.cases import Frozen

NONE = "-"
"""In place of a goal, a value or a verdict that is not there."""


class FigureBound(Frozen):
    """A bound that a figure must not cross: the least that it may be, or the most."""

    bound: float
    most: bool

    def __str__(self) -> str:
        return f"at {'most' if self.most else 'least'} {self.bound:g}"

    def holds(self, value: float) -> bool:
        """Whether a value is within it."""
        return value <= self.bound if self.most else value >= self.bound


def at_least(bound: float) -> FigureBound:
    """The goal of a figure that should be large."""
    return FigureBound(bound=bound, most=False)


def at_most(bound: float) -> FigureBound:
    """The goal of a figure that should be small."""
    return FigureBound(bound=bound, most=True)


class Figure(Frozen):
    """One row of the table.

    Attributes
    ----------
    name : str
        What it is.
    value : float or None
        None where it could not be measured; `note` says why.
    unit : str
        Of the value; empty for a ratio or a count.
    goal : FigureBound or None
        What it is held against.
    note : str
        What a reader needs beside it.
    """

    name: str
    value: float | None
    unit: str = ""
    goal: FigureBound | None = None
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the goal is reached; None without a goal or a value."""
        return None if self.goal is None or self.value is None else self.goal.holds(self.value)

    @property
    def text(self) -> str:
        """The value with its unit."""
        return NONE if self.value is None else f"{self.value:.4g} {self.unit}".strip()

    @property
    def verdict(self) -> str:
        """How the goal came out, in words."""
        if self.goal is None:
            return NONE
        return {True: "holds", False: "falls short", None: "not measured"}[self.holds]

"""What a night found: changes with their size, place and cause, and the alarms that they become."""

import hashlib
from typing import Literal

from pydantic import Field

from tda.cases import Case, Frozen

Split = Literal["prefill", "select", "decode", "memory", "quality", "failure"]
FindingScope = Literal["everything", "dense", "method"]
"""What moved: all cases alike, dense alone (so every ratio to it), or the named cases."""
Shape = Literal["step", "drift"]
FindingVerdict = Literal["alarm", "warning", "improvement"]
"""A confirmed change for the worse; a candidate that fresh data did not confirm; a confirmed change for the better."""
State = Literal["open", "acknowledged", "accepted", "fixed", "reopened"]


def former_label(case: Case) -> str:
    """What nights of before findings held cases called one."""
    dial = "" if case.method == "dense" or case.sparsity is None else f" {case.sparsity:.3g}"
    told = " with another kind's selection" if case.control == "cross_domain" else ""
    return f"{case.method}{dial}{told} on {case.model}"


class Finding(Frozen):
    """One change between two commits.

    `size` is relative to the older commit (.10 is 10% more) for times and memory, in nats a token for quality; `low`
    and `high` bound its 95% interval. The change lies after `good`, up to and including `commit`.
    """

    verdict: FindingVerdict
    split: Split
    scope: FindingScope
    shape: Shape
    machine: str = Field(description="fingerprint")
    grid: str | None = Field(default=None, description="in which they moved; null where an older night does not tell")
    cases: tuple[Case, ...] = Field(description="the cases that moved")
    good: str
    commit: str
    size: float | None
    unit: Literal["ratio", "nats/token", "sets", "cases"]
    low: float | None = None
    high: float | None = None
    p: float | None = Field(default=None, description="after correction for all series of the night")
    floor: float | None = Field(default=None, description="between-process A/A floor of this series, relative")
    night: str
    back: str | None = Field(default=None, description="earlier commit whose quality it is again, exactly")
    sentence: str = Field(description="what a person reads first")
    reproduce: str = Field(description="the command that reproduces it")

    @property
    def key(self) -> str:
        """Name that is equal for the same change found again: commit, split, scope, grid, cases and machine.

        Without a grid it is what the older night called it, so that what was decided about it holds.
        """
        cases = (self.grid, *(case.key for case in self.cases)) if self.grid else map(former_label, self.cases)
        text = "|".join((self.machine, self.commit, self.split, self.scope, self.shape, *cases))
        return hashlib.sha256(text.encode()).hexdigest()[:10]


class Alarm(Frozen):
    """A finding of verdict "alarm" with its life: what it is now, since which night, and why."""

    id: str
    finding: Finding
    state: State
    since: str = Field(description="night in which it got this state")
    reason: str | None = Field(default=None, description="as the accepting or acknowledging person gave it")
    fixed_by: str | None = None
    remains: float | None = Field(
        default=None, description="of its size, in the same unit, where a part was given back"
    )


class Alarms(Frozen):
    """All alarms of a history, newest finding first: ``HISTORY/alarms.json``."""

    alarms: tuple[Alarm, ...] = ()

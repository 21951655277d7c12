"""The parts of the check, in order of worth: what comes last is left out first where time is short."""

from dataclasses import dataclass

PYTEST, TRITON = "pytest", "triton"


@dataclass(frozen=True)
class Part:
    """One part, run in a process of its own.

    Attributes
    ----------
    name : str
        What it is called.
    call : str
        ``module:function``, called with a `Setting`; it yields figures. A module with a leading dot is one of this
        package.
    limit_s : float
        It is ended after so many seconds; it is not begun where less than half of that is left.
    packages : tuple of str
        What it needs beyond what tda imports.
    dry : bool
        Whether it can run without a card.
    gate : bool
        Whether nothing after it is worth trying where it fails.
    """

    name: str
    call: str
    limit_s: float
    packages: tuple[str, ...] = ()
    dry: bool = True
    gate: bool = False


PARTS = (
    Part("machine", ".machine:facts", 30, gate=True),
    Part("kernels", ".suites:kernels", 75, (PYTEST, TRITON)),
    Part("methods", ".suites:methods", 50, (PYTEST, TRITON)),
    Part("tune", ".tuning:tune", 60, (TRITON,), dry=False),
    Part("bench", ".benches:preset", 95),
    Part("prefill", ".prefill:prefill", 35),
    Part("peer", ".peer:peer", 100),
    Part("profile", ".profiles:profile", 60),
    Part("batch", ".benches:batches", 40),
    Part("context", ".benches:contexts", 50),
    Part("telemetry", ".machine:telemetry", 20),
)
"""The limits sum to more than there is: a part takes its limit where something is wrong, and costs those after it."""

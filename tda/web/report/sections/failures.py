"""What failed: every failed line by name, how it ended, and whether it was measured in the end."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tda.cases import describe
from tda.records import FAILURES, NOT_ITS_FAULT, Record
from tda.web.report.gather import Group
from tda.web.report.sections import Content, section
from tda.web.theme.formatting import counted, listed

COUNTED: Mapping[str, str] = {
    "oom": "did not fit into memory",
    **{kind: meaning.counted for kind, meaning in FAILURES.items()},
}
"""What is counted, by kind of a failure, or by status where an older record tells no kind; in this order."""
MEASURED, GIVEN_UP, ONCE = "repeated, and measured", "given up", "not measured"


@dataclass(frozen=True)
class Failed:
    """A failed line as it is shown.

    Attributes
    ----------
    case : str
        What people call it.
    round : int
        Its round.
    what : str
        How it ended, in words.
    reason : str
        First line of the reason; empty where none was given.
    tries : int
        Lines of the same series and round, failed ones and good ones.
    became : str
        What came of it.
    stderr : str or None
        The end of what its process wrote to stderr.
    """

    case: str
    round: int
    what: str
    reason: str
    tries: int
    became: str
    stderr: str | None


@section("failures", 12, "What failed")
def failures_section(group: Group) -> Content | None:
    """Shown where some line of the group failed."""
    failed = failures(group.lines)
    if not failed:
        return None
    return Content(_lead(group.lines), template="failures.html", values={"failures": failed})


def failures(lines: Sequence[Record]) -> list[Failed]:
    """Every failed line, in the order of the file."""
    tries: dict[tuple[object, ...], list[Record]] = defaultdict(list)
    for line in lines:
        tries[_place(line)].append(line)
    among = list(dict.fromkeys(line.case for line in lines))
    return [_failed(line, tries[_place(line)], describe(line.case, among)) for line in lines if line.status != "ok"]


def _place(line: Record) -> tuple[object, ...]:
    """What is measured once: a series in a round."""
    return *line.series, line.round


def _failed(line: Record, tries: Sequence[Record], case: str) -> Failed:
    became = MEASURED if any(one.status == "ok" for one in tries) else GIVEN_UP if len(tries) > 1 else ONCE
    reason = (line.reason or "").strip().splitlines()[:1]
    stderr = line.failure.stderr if line.failure is not None else None
    return Failed(case, line.round, line.outcome, "".join(reason), len(tries), became, stderr or None)


def _lead(lines: Sequence[Record]) -> str:
    """How many cases failed, and how."""
    failed = [line for line in lines if line.status != "ok"]
    ways = {(line.series, _way(line)) for line in failed}
    counts = Counter(way for _, way in ways)
    counted_ways = listed([f"{counts[way]} {words}" for way, words in COUNTED.items() if counts[way]])
    cases, every = len({line.series for line in failed}), len({line.series for line in lines})
    sentences = [f"{cases} of {every} cases failed in some round: {counted_ways}."]
    missing = {_place(line) for line in failed} - {_place(line) for line in lines if line.status == "ok"}
    left = len({place[:-1] for place in missing})
    sentences.append(
        f"In the end rounds of {counted(left, 'case')} are missing." if left else "All was measured when repeated."
    )
    if counts.keys() & NOT_ITS_FAULT:
        sentences.append("To be killed from outside, or lost with a machine, says nothing of a case.")
    return " ".join(sentences)


def _way(line: Record) -> str:
    return line.failure.kind if line.failure is not None else line.status

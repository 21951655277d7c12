"""Sentences about changes."""

from collections.abc import Iterable, Mapping, Sequence

from tda.cases import Case, describe
from tda.changes.detect import Candidate, Change, Pair
from tda.changes.quality import QualityMove
from tda.history.repository import short
from tda.records import NOT_ITS_FAULT, FailureKind, Record, Status

WHAT = {"prefill": "Prefill", "select": "Selection", "decode": "Decode", "memory": "Peak memory"}


def named(cases: Iterable[Case], among: Iterable[Case] = ()) -> str:
    """Cases as people call them, told from one another and from others."""
    cases = tuple(cases)
    among = (*cases, *among)
    return ", ".join(describe(case, among) for case in cases)


def relative(size: float) -> str:
    """A relative change in words: "10.2% slower" needs the verb, so this gives "+10.2%"."""
    return f"{size:+.1%}"


def where(pair: Pair) -> str:
    """The commit, or the range."""
    if pair.shape == "drift":
        return f"slowly over {short(pair.old)}..{short(pair.new)}"
    return f"at {short(pair.new)}"


def speed_sentence(change: Change, subject: str, among: Iterable[Case]) -> str:
    """What moved, by how much, where, and what did not; `among` are all cases that were measured."""
    low, high = change.effect.bounds()
    size = f"{relative(change.effect.size)} [{relative(low)}, {relative(high)}]"
    worse = change.effect.log_ratio > 0
    direction = ("more" if worse else "less") if change.split == "memory" else ("slower" if worse else "faster")
    head = f"{WHAT[change.split]} {direction} {where(change.pair)} ({subject}): {size}"
    if change.scope == "everything":
        along = " and prefill" if "prefill" in change.along else ""
        return f"{head}, in all cases{along and f' ({change.split}{along})'}."
    if change.scope == "dense":
        note = "ratios to dense look worse" if not worse else "ratios to dense look better"
        return f"{head}, dense only; methods did not change, and their {note} for that reason."
    return f"{head}, only {named(change.cases, among)}."


def warning_sentence(candidate: Candidate, among: Iterable[Case]) -> str:
    """A candidate that was not confirmed; `among` as for `speed_sentence`."""
    size = relative(candidate.effect.size)
    return (
        f"{WHAT[candidate.key.split]} of {named([candidate.key.case], among)} changed by {size} "
        f"{where(candidate.pair)} in the first blocks; new blocks did not confirm it."
    )


FAILS = "fails"
_VERBS: Mapping[FailureKind | Status, str] = {
    "host_memory": "does not fit{} (host memory)",
    "gpu_memory": "does not fit{} (GPU memory)",
    "oom": "does not fit{} (memory)",
    "crash": "crashes",
    "hang": "hangs",
    "timeout": "does not end in its time{}",
}
_LOST: Mapping[FailureKind, str] = {"killed": "its process was killed from outside", "lost": "its worker was lost"}


def says_nothing(record: Record) -> bool:
    """Whether a record failed in a way that says nothing of the code: its process was killed, or its worker lost."""
    return record.failure is not None and record.failure.kind in NOT_ITS_FAULT


def fails(record: Record, *, ran: bool) -> str:
    """What a failed case does, e.g. ``"does not fit any more (GPU memory)"``; `ran`: whether it was measured before."""
    kind = record.failure.kind if record.failure is not None else record.status
    return _VERBS.get(kind, FAILS).format(" any more" if ran else "")


def why_failed(record: Record) -> str:
    """The reason of a failure; of one that the verb says nothing of, the status too."""
    reason = record.reason or "no reason given"
    return f"{record.status}: {reason}" if fails(record, ran=False) == FAILS else reason


def why_lost(record: Record) -> str:
    """What became of a case of which a failure says nothing."""
    assert record.failure is not None
    return f"was not measured: {_LOST[record.failure.kind]}"


def failure_sentence(pair: Pair, cases: Sequence[Case], told: tuple[str, str] | None, subject: str) -> str:
    """What fails: `told` are the verb, as of `fails`, and the reason; without them: what runs again."""
    if told is None:
        return f"Runs again since {short(pair.new)} ({subject}): {named(cases)}."
    (verb, reason), at = told, f"at {short(pair.new)} ({subject})"
    return f"{verb[0].upper()}{verb[1:]} {at}, and ran at {short(pair.old)}: {named(cases)}: {reason}."


def quality_sentence(
    pair: Pair, worst: QualityMove, moves: Sequence[QualityMove], back: str | None, subject: str, among: Sequence[Case]
) -> str:
    """What changed in the text; `among` as for `speed_sentence`."""
    parts = []
    if worst.nll is not None:
        parts.append(f"{named([worst.case], among)} by {worst.nll.value:+.3g} nats a token" + _interval(worst))
    sets = [f"{named([m.case], among)} ({m.sets} of {m.documents} documents)" for m in moves if m.sets]
    if sets:
        parts.append(f"other neurons are kept: {', '.join(sets)}")
    head = f"Quality moved at {short(pair.new)} ({subject})"
    if back is not None:
        head = f"Quality of what moved is again what it was at {short(back)} since {short(pair.new)} ({subject})"
    return f"{head}: {'; '.join(parts)}."


def _interval(move: QualityMove) -> str:
    if move.nll is None or move.nll.low is None or move.nll.high is None:
        return ""
    return f" [{move.nll.low:+.3g}, {move.nll.high:+.3g}]"

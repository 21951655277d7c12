"""Quality from commit to commit: kept sets compared exactly, likelihoods document by document.

Both repeat bit for bit on one machine, so one measurement of a commit is enough and no change point is asked:
a changed hash of the sets, or a likelihood that moved by more than rounding, is a change.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from tda.cases import Case, taken_for
from tda.history.findings import FindingScope
from tda.records import Record
from tda.statistics import Estimate, by_group, paired_difference

ROUNDING = 1e-4
"""Nats a token: a document's likelihood may move this much with another order of sums."""


@dataclass(frozen=True)
class QualityMove:
    """What changed in the text of a method between two commits.

    Attributes
    ----------
    case : Case
        Whose.
    nll : Estimate or None
        Change of the mean negative log likelihood in nats a token, paired by document; None where it is only rounding.
    sets : int
        Documents whose kept sets differ, of `documents` (0 for methods that choose per token).
    documents : int
        Documents that both commits scored.
    """

    case: Case
    nll: Estimate | None
    sets: int
    documents: int


def quality_moves(new: Iterable[Record], old: Iterable[Record]) -> list[QualityMove]:
    """Compare the records of two commits, case by case; cases that only one of them has are left out."""
    before: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in _scored(old):
        before[record.case.key][record.inputs.data] = record
    found = []
    for record in _scored(new):
        held = before[record.case.key]
        other = held.get(taken_for(record.inputs.data, held))
        move = _move(record, other) if other is not None else None
        if move is not None:
            found.append(move)
    return found


def same_text(new: Iterable[Record], old: Iterable[Record], cases: Collection[Case]) -> bool:
    """Whether these cases are in both commits, and none of them moved."""
    after, before = ([one for one in _scored(records) if one.case in cases] for records in (new, old))
    return {one.case.key for one in after} <= {one.case.key for one in before} and not quality_moves(after, before)


def _scored(records: Iterable[Record]) -> list[Record]:
    return [
        record
        for record in records
        if record.status == "ok" and record.case.control != "a_a" and record.samples("nll_nats")
    ]


def _move(new: Record, old: Record) -> QualityMove | None:
    one, other = by_group(new.measurements["nll_nats"]), by_group(old.measurements["nll_nats"])
    common = one.keys() & other.keys()
    moved = any(abs(one[document] - other[document]) > ROUNDING for document in common)
    nll = paired_difference(new.measurements["nll_nats"], old.measurements["nll_nats"]) if moved else None
    sets = _changed_sets(new, old)
    return QualityMove(new.case, nll, sets, len(common)) if nll is not None or sets else None


def _changed_sets(new: Record, old: Record) -> int:
    if not (new.samples("selection_digest") and old.samples("selection_digest")):
        return 0
    one, other = (by_group(record.measurements["selection_digest"]) for record in (new, old))
    return sum(one[document] != other[document] for document in one.keys() & other.keys())


def scope_of(moves: Sequence[QualityMove], records: Iterable[Record]) -> FindingScope:
    """Whether dense moved (then the model or the text did), or methods alone."""
    if any(move.case.method == "dense" for move in moves):
        return "everything" if len(moves) == len(_scored(records)) else "dense"
    return "method"

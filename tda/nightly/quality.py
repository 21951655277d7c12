"""Texts of a night's commits that are scored otherwise than at the commit before."""

import itertools
from collections.abc import Mapping, Sequence

from tda.changes.detect import Pair
from tda.changes.messages import quality_sentence
from tda.changes.quality import QualityMove, quality_moves, same_text, scope_of
from tda.history.findings import Finding
from tda.nightly.data import NightData, ran_on
from tda.records import Record


def quality_findings(data: NightData) -> list[Finding]:
    """A finding for each grid and step whose texts moved."""
    texts: dict[str, dict[str, list[Record]]] = {grid.name: {} for grid in data.config.grids if not grid.repeated}
    for unit in itertools.chain(*data.earlier_units, data.units()):
        if unit.grid in texts and unit.status == "ok" and ran_on(unit, data.machine):
            texts[unit.grid][unit.commit] = list(unit.records)
    found = []
    for (grid, held), pair in itertools.product(texts.items(), data.pairs):
        moves = quality_moves(held.get(pair.new, []), held.get(pair.old, []))
        if moves:
            found.append(_finding(data, pair, grid, moves, held))
    return found


def _finding(
    data: NightData, pair: Pair, grid: str, moves: Sequence[QualityMove], texts: Mapping[str, list[Record]]
) -> Finding:
    """The case that moved most speaks for all; text that was there first, and is no worse, is mended."""
    cases = [move.case for move in moves]
    line = [commit for commit in data.line[: data.line.index(pair.new)] if commit in texts]
    since, held = (
        next((place for place, known in enumerate(line) if same_text(texts[end], texts[known], cases)), len(line))
        for end in (pair.new, pair.old)
    )
    back = line[since] if since < len(line) else None
    worst = max(moves, key=lambda move: move.nll.value if move.nll is not None else 0.0)
    nll = worst.nll
    shifts = [move.nll.value if move.nll is not None and not move.sets else 0.0 for move in moves]
    better, worse = max(shifts) < 0, min(shifts) > 0
    return data.finding(
        pair,
        grid,
        cases,
        verdict="improvement" if (since < held and not worse) or better else "alarm",
        split="quality",
        scope=scope_of(moves, texts[pair.new]),
        size=nll.value if nll is not None else None,
        unit="nats/token" if nll is not None else "sets",
        low=nll.low if nll is not None else None,
        high=nll.high if nll is not None else None,
        back=back,
        sentence=quality_sentence(
            pair, worst, moves, back, data.subject(pair.new), [record.case for record in texts[pair.new]]
        ),
    )

"""Machines side by side: the same cases of one commit, as each machine measured them."""

from collections.abc import Sequence

from tda.web.report.gather import Group
from tda.web.report.machines import SideBySide, SideBySideRow, differing_facts, names_of, side_by_side
from tda.web.report.sections import Content, section_of_all
from tda.web.report.table import Cell, Column, named
from tda.web.theme.formatting import MISSING

LEAD = (
    "Cases that several machines measured with one state of the code. Every speed-up is over dense of the same "
    "machine. Rounds of two machines are not paired, so a ratio between them has Welch's interval on logarithms, over "
    "the rounds of each; what differs between processes of one machine is not in it. The ratio of the dense step is "
    "the machine's. A method is shown as “method × machine” where the interval of the ratio of its speed-ups excludes "
    "1, at a level that holds for all such ratios of a table together (Bonferroni). Documents and items are the same "
    "everywhere, so quality must be equal up to rounding."
)
COLUMNS: tuple[Column, ...] = (
    Column("decode_ms", "decode step (ms)", lambda case: case.decode_ms, lambda case: case.missing("decode_ms")),
    *named("speedup", "mbu"),
)


@section_of_all("machines", 85, "Machines side by side")
def machines_section(groups: Sequence[Group]) -> Content | None:
    """Shown where two machines or more share cases of one commit."""
    tables = side_by_side(groups)
    if not tables:
        return None
    shown, held = {name for table in tables for name in table.names}, names_of(groups)
    machines = {name: group.machine for group in groups if (name := held[group.machine.fingerprint]) in shown}
    values = {
        "names": list(machines),
        "facts": differing_facts(list(machines.values())),
        "columns": COLUMNS,
        "tables": [(table, [(row, _cells(row, table)) for row in table.rows]) for table in tables],
    }
    return Content(LEAD, template="machines.html", values=values)


def _cells(row: SideBySideRow, table: SideBySide) -> list[Cell]:
    """Every column of every machine; a machine without the case says so."""
    return [
        column.cell(row.cases[name]) if name in row.cases else Cell(MISSING, None, f"not measured on {name}", True)
        for name in table.names
        for column in COLUMNS
    ]

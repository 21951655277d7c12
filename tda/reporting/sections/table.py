"""The table of all cases, sortable."""

from tda.reporting.gather import Group
from tda.reporting.sections import Content, section
from tda.reporting.table import columns


@section("table", 80, "All cases")
def table_section(group: Group) -> Content:
    """Every case with every number; a missing one says why."""
    cases = [case for setting in group.settings for case in setting.cases]
    shown = columns(cases)
    rows = [(case.record.status, [column.cell(case) for column in shown]) for case in cases]
    lead = (
        "Click a heading to sort. Times are medians over rounds (percentiles: over all steps); brackets are 95% "
        "intervals. “–” is missing, never zero: hover over it or tap it for the reason. The same numbers in base units "
        "are in table.csv."
    )
    return Content(lead, template="table.html", values={"columns": shown, "rows": rows})

"""The table of all cases, sortable."""

from tda.web.report.gather import Group
from tda.web.report.sections import Content, Table, section
from tda.web.report.table import columns


@section("table", 80, "All cases")
def table_section(group: Group) -> Content:
    """Every case with every number; a missing one says why."""
    cases = [case for setting in group.settings for case in setting.cases]
    shown = columns(cases)
    rows = [(case.record.status, [column.cell(case) for column in shown]) for case in cases]
    lead = (
        "Click a heading to sort. A number with brackets is a mean with its 95% interval over rounds, documents or "
        "items; a time or size without them is the median of all samples (percentiles: of all steps). “–” is missing, "
        "never zero: hover over it or tap it for the reason, as over a ratio between unlike kernels. The same numbers "
        "in base units are in table.csv."
    )
    return Content(lead, template="table.html", values={"table": Table("All cases", shown, rows)})

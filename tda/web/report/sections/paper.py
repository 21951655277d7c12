"""The paper's tables: tasks by model and method, and latencies beside the published ones."""

from collections.abc import Sequence

from tda.web.report.gather import Group
from tda.web.report.paper import Paper
from tda.web.report.sections import Content, section_of_all

LEAD = (
    "Rows are tasks, columns models, and within a model dense, TT, Griffin and TDA (ours: a reconstruction) at each "
    "sparsity. A score is a mean over items with its 95% interval; the average is over all tasks, and stands only "
    "where all were scored. Models may have run on machines of their own: a score is paired with dense of the same "
    "machine, and so is a latency. No score of a paper stands here. The same numbers are in paper.csv."
)


@section_of_all("paper", 28, "The paper's tables")
def paper_section(groups: Sequence[Group]) -> Content | None:
    """Shown where at least two trained models were scored on one task."""
    paper = Paper.of(groups)
    if paper is None:
        return None
    values = {"paper": paper, "rows": paper.rows(), "latency": paper.latency()}
    return Content(LEAD, template="paper.html", values=values)

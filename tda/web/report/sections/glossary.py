"""What each number means, and how it was made."""

from collections.abc import Sequence

from tda.derived import DERIVED
from tda.records import MEASUREMENTS
from tda.statistics import MIN_GROUPS, RESAMPLES
from tda.web.report.gather import Group
from tda.web.report.sections import Content, section_of_all


@section_of_all("glossary", 90, "What the numbers mean")
def glossary_section(groups: Sequence[Group]) -> Content:
    """Measurements by name, and the method of the estimates."""
    return Content(
        template="glossary.html",
        values={"measurements": {**MEASUREMENTS, **DERIVED}, "min_groups": MIN_GROUPS, "resamples": RESAMPLES},
    )

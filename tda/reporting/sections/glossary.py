"""What each number means, and how it was made."""

from tda.derived import DERIVED
from tda.records import MEASUREMENTS
from tda.reporting.gather import Group
from tda.reporting.sections import Content, section
from tda.statistics import MIN_GROUPS, RESAMPLES


@section("glossary", 90, "What the numbers mean", once=True)
def glossary_section(group: Group) -> Content:
    """Measurements by name, and the method of the estimates."""
    return Content(
        template="glossary.html",
        values={"measurements": {**MEASUREMENTS, **DERIVED}, "min_groups": MIN_GROUPS, "resamples": RESAMPLES},
    )

"""In which order groups are handed over to workers that pull the next one when they are free.

The longest first is the rule of list scheduling that ends early (LPT, Graham 1969): what is short fills the gaps at the
end. One group, the cheapest, goes before all others, so that a first result tells within minutes whether the sweep
measures what was meant; the end comes later by no more than that group takes.
"""

from collections.abc import Sequence

from tda.sweep.groups import SweepGroup


def handed_over(groups: Sequence[SweepGroup]) -> list[SweepGroup]:
    """Groups in the order in which they are handed over.

    Parameters
    ----------
    groups : sequence of SweepGroup
        In the plan's order, which decides where hours are equal.

    Returns
    -------
    list of SweepGroup
        The cheapest of known hours, then the longest first; unknown hours count as the longest.
    """
    known = [(group.hours, place) for place, group in enumerate(groups) if group.hours is not None]
    first = min(known)[1] if known else None
    rest = [group for place, group in enumerate(groups) if place != first]
    rest.sort(key=lambda group: (group.hours is not None, -(group.hours or 0.0)))
    return rest if first is None else [groups[first], *rest]

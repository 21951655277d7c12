"""Sections of the report: one file each, found by discovery and shown in the order of their numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from tda.web.navigation import Navigation
from tda.web.report.gather import Group
from tda.web.report.table import Cell, Column


@dataclass(frozen=True)
class Table:
    """A table that can be sorted.

    Attributes
    ----------
    label : str
        What it holds, for those who do not see it.
    columns : sequence of Column
        The headings.
    rows : sequence of (str, sequence of Cell)
        A case's status and its cells, one a column.
    """

    label: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Plot:
    """A figure with what stands below it.

    Attributes
    ----------
    name : str
        File name without suffix, unique in the section's block.
    figure : Figure
        Drawn but not rendered.
    caption : str
        What it shows and how to read it; also its text alternative.
    variant : str or None
        The setting of the block's switch under which it is shown; None: always.
    """

    name: str
    figure: Figure
    caption: str
    variant: str | None = None


@dataclass(frozen=True)
class Block:
    """Figures that belong together, e.g. those of one setting, and a table above them.

    Attributes
    ----------
    title, note : str
        Heading, and a sentence below it.
    plots : tuple of Plot
        Side by side where there is room.
    projection : bool
        Whether numbers of two models are joined: it is marked as such.
    table : Table or None
        What stands between note and figures.
    remarks : tuple of str
        Sentences below the figures.
    """

    title: str
    note: str = ""
    plots: tuple[Plot, ...] = ()
    projection: bool = False
    table: Table | None = None
    remarks: tuple[str, ...] = ()

    @property
    def variants(self) -> list[str]:
        """Settings of the switch, in order."""
        return list(dict.fromkeys(plot.variant for plot in self.plots if plot.variant is not None))


@dataclass(frozen=True)
class Content:
    """What a section says about one group: a lead, blocks of figures, and optionally a template of its own."""

    lead: str = ""
    blocks: tuple[Block, ...] = ()
    template: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


RenderGroup = Callable[[Group], Content | None]
RenderAll = Callable[[Sequence[Group]], Content | None]


@dataclass(frozen=True)
class OfEachGroup:
    """A section that is shown for each group by itself; one of all groups stands at the page's end."""

    render: RenderGroup

    def __call__(self, groups: Sequence[Group]) -> Content | None:
        """Content for the only group."""
        (group,) = groups
        return self.render(group)


SECTIONS: Navigation[RenderAll] = Navigation("report section", "tda.web.report.sections", group="tda.sections")
section_of_all = SECTIONS.add
"""Decorator of a function that makes a section of all groups; None where it has nothing to say."""


def section(name: str, order: int, title: str, question: str = "") -> Callable[[RenderGroup], RenderGroup]:
    """Return a decorator of a function that makes a section of each group; None where it has nothing to say."""

    def file(render: RenderGroup) -> RenderGroup:
        SECTIONS.add(name, order, title, question)(OfEachGroup(render))
        return render

    return file

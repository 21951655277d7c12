"""Sections of the report: one file each, found by discovery and shown in the order of their numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from tda.registry import Registry
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
class Section:
    """A part of the page.

    Attributes
    ----------
    order : int
        Its place.
    title : str
        Its heading.
    render : callable
        Its content for groups of records; None where it has nothing to say.
    once : bool
        Whether it is shown once at the page's end, for all groups, instead of for each.
    """

    order: int
    title: str
    render: RenderAll
    once: bool


SECTIONS: Registry[Section] = Registry("report section", "tda.web.report.sections", group="tda.sections")


def section(name: str, order: int, title: str) -> Callable[[RenderGroup], RenderGroup]:
    """Return a decorator that makes a function of a group a section of the report."""

    def file(render: RenderGroup) -> RenderGroup:
        SECTIONS.register(name)(Section(order, title, lambda groups: render(groups[0]), once=False))
        return render

    return file


def section_of_all(name: str, order: int, title: str) -> Callable[[RenderAll], RenderAll]:
    """Return a decorator that makes a function of all groups a section at the page's end."""

    def file(render: RenderAll) -> RenderAll:
        SECTIONS.register(name)(Section(order, title, render, once=True))
        return render

    return file

"""Sections of the report: one file each, found by discovery and shown in the order of their numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from tda.registry import Registry
from tda.reporting.gather import Group


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
    """Figures that belong together, e.g. those of one setting.

    Attributes
    ----------
    title, note : str
        Heading, and a sentence below it.
    plots : tuple of Plot
        Side by side where there is room.
    projection : bool
        Whether numbers of two models are joined: it is marked as such.
    """

    title: str
    note: str = ""
    plots: tuple[Plot, ...] = ()
    projection: bool = False

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


Render = Callable[[Group], Content | None]


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
        Its content for a group of records; None where it has nothing to say.
    once : bool
        Whether it is shown once at the page's end instead of for every group.
    """

    order: int
    title: str
    render: Render
    once: bool = False


SECTIONS: Registry[Section] = Registry("report section", "tda.reporting.sections")


def section(name: str, order: int, title: str, *, once: bool = False) -> Callable[[Render], Render]:
    """Return a decorator that makes a function a section of the report."""

    def file(render: Render) -> Render:
        SECTIONS.register(name)(Section(order, title, render, once))
        return render

    return file

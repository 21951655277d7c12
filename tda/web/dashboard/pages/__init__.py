"""Pages of the dashboard: one file each, found by discovery, with one question to answer."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tda.registry import Registry
from tda.web.dashboard.evidence import Evidence


@dataclass(frozen=True)
class Sheet:
    """One HTML file.

    Attributes
    ----------
    path : str
        Below the pages' folder, with slashes.
    title : str
        Its heading.
    template : str
        Name of the template that shows it.
    values : Mapping
        What the template is filled with, beside the evidence.
    """

    path: str
    title: str
    template: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class File:
    """A file that sheets link to.

    Attributes
    ----------
    path : str
        Below the pages' folder, with slashes.
    content : bytes or Path
        What it holds, or the file that it is a copy of.
    """

    path: str
    content: bytes | Path


Render = Callable[[Evidence], Iterable[Sheet | File]]


@dataclass(frozen=True)
class Page:
    """A kind of page, with an entry in the navigation that leads to its first sheet.

    Attributes
    ----------
    order : int
        Its place in the navigation.
    label : str
        Its name there.
    question : str
        What it answers, as its tooltip.
    path : str
        The sheet that the navigation leads to.
    render : callable
        All its sheets, and the files that they link to.
    """

    order: int
    label: str
    question: str
    path: str
    render: Render


PAGES: Registry[Page] = Registry("dashboard page", "tda.web.dashboard.pages", group="tda.pages")


def page(name: str, order: int, label: str, question: str) -> Callable[[Render], Render]:
    """Return a decorator that makes a function a page, whose first sheet is ``<name>.html``."""

    def file(render: Render) -> Render:
        PAGES.register(name)(Page(order, label, question, f"{name}.html", render))
        return render

    return file


def navigation() -> list[Page]:
    """All pages in the order of the navigation."""
    return sorted(PAGES.values(), key=lambda entry: entry.order)

"""Pages of the dashboard: one file each, found by discovery, with one question to answer."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tda.web.dashboard.evidence import Evidence
from tda.web.navigation import Navigation


@dataclass(frozen=True)
class HtmlPage:
    """One HTML file.

    Attributes
    ----------
    path : str
        Below the pages' folder, with slashes.
    title : str
        Its heading.
    template : str
        Name of the template that shows it; ``sheet.html`` shows a `markupsafe.Markup` called ``content``.
    values : Mapping
        What the template is filled with, beside the evidence.
    """

    path: str
    title: str
    template: str = "sheet.html"
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


PAGES: Navigation[Callable[[Evidence], Iterable[HtmlPage | File]]] = Navigation(
    "dashboard page", "tda.web.dashboard.pages", group="tda.pages"
)
page = PAGES.add
"""Decorator of a function that makes a page's sheets, ``<name>.html`` first, and the files that they link to."""

"""asv's plugin: its own page made to work offline, and our pages beside it with links both ways."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from asv.console import log
from asv.publishing import OutputPublisher
from asv.util import UserError

from tda.web.asv_libraries import copy_libraries
from tda.web.dashboard.pages import PAGES
from tda.web.dashboard.settings import load_dashboard
from tda.web.dashboard.site import FOLDER
from tda.web.publish import write_dashboard
from tda.web.theme.npm import PackageError

LIBRARIES = "vendor"
HERE = Path()
"""asv works in the folder of its settings."""
_OUTSIDE = re.compile(r'<(?:script|link)\b[^>]*\b(?:src|href)="(?P<address>https?://[^"]*)"[^>]*>')
_FOR_CDN = re.compile(r' (?:integrity|crossorigin|referrerpolicy)="[^"]*"')
_LAST_ENTRY = re.compile(r'\s*<li id="nav-li-graphdisplay">')
STYLE = """
    <style>
      #nav ul { float: none; display: flex; margin: 0; overflow-x: auto; white-space: nowrap; }
      #nav li { flex: none; }
      #nav .navbar-text { margin: 15px 6px; }
      #nav .nav > li > a { padding: 15px 8px; }
      @media (max-width: 1240px) { #nav .navbar-text { display: none; } }
    </style>
"""
"""More entries than asv made room for: its greeting gives way first, then the row scrolls."""


class Dashboard(OutputPublisher):  # type: ignore[misc]
    """Makes what asv published work without a network, and adds our pages."""

    name = "tda"
    button_label = "Dashboard"
    description = "Alarms, frontier and methods across commits"
    order = 10

    @classmethod
    def publish(cls, conf: Any, repo: Any, benchmarks: Any, graphs: Any, revisions: Any) -> None:
        """Write into ``conf.html_dir``; the history is the folder that holds ``conf.results_dir``."""
        html = Path(conf.html_dir)
        try:
            libraries, settings = copy_libraries(html / LIBRARIES), load_dashboard(HERE)
        except (PackageError, ValueError) as error:
            raise UserError(str(error)) from None
        index = html / "index.html"
        index.write_text(linked(offline(index.read_text(), libraries), settings.pages))
        write_dashboard(
            HERE,
            Path(conf.results_dir).parent,
            html,
            settings,
            repo=_checkout(conf.repo),
            order=_line(conf, repo),
            tags=repo.get_tags(),
            letters=conf.hash_length,
            warn=log.warning,
            asv=True,
        )


def _checkout(repo: str) -> Path | None:
    """The repository if it is one on this disk, whose commits can then be looked up."""
    path = Path(repo)
    return path if (path / ".git").exists() else None


def _line(conf: Any, repo: Any) -> list[str]:
    """Commits of the published branches, oldest first."""
    lines = [list(reversed(repo.get_branch_commits(branch))) for branch in conf.branches]
    return list(dict.fromkeys(commit for line in lines for commit in line))


def offline(html: str, libraries: Iterable[str]) -> str:
    """Let a page load our copies of its libraries.

    Raises
    ------
    UserError
        If it loads a file from elsewhere of which there is no copy: this asv is another one than we know.
    """
    copies = {_plain(path.rsplit("/", 1)[-1]): path for path in libraries}

    def local(found: re.Match[str]) -> str:
        name = _plain(found["address"].rsplit("/", 1)[-1])
        if name not in copies:
            raise UserError(f"asv's page loads {found['address']}, which tda/web/asv_libraries.json does not hold")
        return _FOR_CDN.sub("", found[0]).replace(found["address"], f"{LIBRARIES}/{copies[name]}")

    return _OUTSIDE.sub(local, html)


def _plain(name: str) -> str:
    """A library's file name, minified or not and with or without its version."""
    return re.sub(r"-[\d.]+(?=\.)|\.min(?=\.)", "", name)


def linked(html: str, pages: Sequence[str] = ()) -> str:
    """Add our pages, all unless some are named, to the navigation of asv's page.

    Raises
    ------
    UserError
        If its navigation is not where it was.
    """
    entries = "".join(
        f'\n\t<li id="nav-li-{FOLDER}-{page.name.replace("_", "-")}">'
        f'<a href="{FOLDER}/{page.name}.html" title="{escape(page.question)}">{escape(page.title)}</a></li>'
        for page in PAGES.entries(pages)
    )
    html, done = _LAST_ENTRY.subn(lambda found: entries + found[0], html, count=1)
    if not done:
        raise UserError("asv's navigation is not where it was: tda/web/asv_plugin.py knows another version of asv")
    return html.replace("</head>", f"{STYLE}</head>", 1)

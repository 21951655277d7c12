"""Pages rendered into a folder that asks nothing of a network."""

from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import matplotlib
from jinja2 import Environment

from tda.results import write_whole
from tda.web.dashboard.evidence import Evidence
from tda.web.dashboard.pages import PAGES, File, HtmlPage
from tda.web.dashboard.settings import DashboardConfig
from tda.web.theme.figures import STYLE
from tda.web.theme.formatting import number
from tda.web.theme.pages import environment

STATIC = {
    "tda.web.theme": ("templates/style.css", "templates/sort.js"),
    "tda.web.dashboard": ("static/dashboard.css", "static/dashboard.js"),
}
FOLDER = "tda"
"""Name of the pages' folder beside asv's own page."""


def write_site(
    evidence: Evidence, folder: Path, settings: DashboardConfig | None = None, *, asv: bool = False
) -> list[Path]:
    """Write the pages of the navigation, and those beside it that they link to: all that are built in.

    Parameters
    ----------
    evidence : Evidence
        What is shown; with nothing in it the pages say so.
    folder : Path
        Where to write.
    settings : DashboardConfig, optional
        What is shown; else all pages.
    asv : bool
        Whether asv's page is ``../index.html``, so that the navigation leads there too.

    Returns
    -------
    list of Path
        The sheets, in the order of the navigation.
    """
    made, written = environment("tda.web.dashboard", moment=_moment, number=number), []
    settings = settings or DashboardConfig()
    shown = PAGES.entries(settings.pages)
    beside = [entry for entry in PAGES.entries() if entry not in shown and PAGES.plug_in(entry.render) is None]
    made.globals |= {"pages": shown, "asv": asv, "site_title": settings.title}
    with matplotlib.rc_context(STYLE):
        for entry in (*shown, *beside):
            for part in entry.render(evidence):
                path = folder / part.path
                if isinstance(part, File):
                    write_whole(path, part.content if isinstance(part.content, bytes) else part.content.read_bytes())
                else:
                    write_whole(path, _render(made, part, evidence, entry.name))
                    written.append(path)
    for package, names in STATIC.items():
        for name in names:
            write_whole(folder / "static" / Path(name).name, (files(package) / name).read_bytes())
    return written


def _moment(text: str) -> str:
    """A moment that a night wrote, shorter; whatever is no moment stays as it is."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return text


def _render(made: Environment, sheet: HtmlPage, evidence: Evidence, here: str) -> str:
    """A page's HTML; `home` leads from it to the pages' folder."""
    home = "../" * sheet.path.count("/")
    return made.get_template(sheet.template).render(
        evidence=evidence, title=sheet.title, here=here, home=home, **sheet.values
    )

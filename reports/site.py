"""Pages rendered into a folder that asks nothing of a network."""

from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import matplotlib
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined

from reports.evidence import Evidence
from reports.pages import File, Sheet, navigation
from tda.reporting.figures import STYLE
from tda.reporting.text import number
from tda.results import write_whole

HOME = Path(__file__).resolve().parent
FOLDER = "tda"
"""Name of the pages' folder beside asv's own page."""


def environment() -> Environment:
    """Templates of the pages, and those of the report that they share."""
    made = Environment(
        loader=ChoiceLoader([FileSystemLoader(HOME / "templates"), PackageLoader("tda.reporting")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["pages"] = navigation()
    made.filters |= {"moment": _moment, "number": number}
    return made


def write_site(evidence: Evidence, folder: Path) -> list[Path]:
    """Write every page.

    Parameters
    ----------
    evidence : Evidence
        What is shown; with nothing in it the pages say so.
    folder : Path
        Where to write; ``../vendor`` must hold the libraries and ``../index.html`` asv's page.

    Returns
    -------
    list of Path
        The sheets, in the order of the navigation.
    """
    made, written = environment(), []
    with matplotlib.rc_context(STYLE):
        for page in navigation():
            for part in page.render(evidence):
                path = folder / part.path
                if isinstance(part, File):
                    write_whole(path, part.content if isinstance(part.content, bytes) else part.content.read_bytes())
                else:
                    write_whole(path, _render(made, part, evidence, page.path))
                    written.append(path)
    for source in sorted((HOME / "static").iterdir()):
        write_whole(folder / "static" / source.name, source.read_bytes())
    write_whole(folder / "static" / "sort.js", (files("tda.reporting") / "templates" / "sort.js").read_bytes())
    return written


def _moment(text: str) -> str:
    """A moment that a night wrote, shorter; whatever is no moment stays as it is."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return text


def _render(made: Environment, sheet: Sheet, evidence: Evidence, here: str) -> str:
    """A sheet's HTML; `home` leads from it to the pages' folder."""
    home = "../" * sheet.path.count("/")
    return made.get_template(sheet.template).render(
        evidence=evidence, title=sheet.title, here=here, home=home, **sheet.values
    )

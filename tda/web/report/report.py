"""From folders of results to a folder with page, figures and table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from tda.results import write_whole
from tda.web.report.gather import gather
from tda.web.report.page import ReportPage, items_page
from tda.web.report.paper import paper_frame
from tda.web.report.table import frame
from tda.web.theme.figures import STYLE
from tda.worth import DEFAULT, WorthRule


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes
    ----------
    index : Path
        The page.
    problems : tuple of str
        One sentence for everything that was left out: damaged lines, refused or repeated records.
    """

    index: Path
    problems: tuple[str, ...]


def build_report(folders: Sequence[Path], out: Path, rule: WorthRule = DEFAULT) -> Report:
    """Write ``index.html``, ``figures/*.svg``, ``figures/*.png`` and ``table.csv``.

    Where tasks were scored, ``items.html`` holds what was answered, item by item, and ``paper.csv`` the paper's table
    of two models or more. Pages work offline and hold their figures themselves; equal records give equal bytes.
    Records of unlike machines or commits are shown one after the other, and never in one figure.

    Parameters
    ----------
    folders : sequence of Path
        Results folders, or results files.
    out : Path
        Where to write; made if it is not there. Files of other names in it are left alone.
    rule : WorthRule
        What counts as worth it.

    Returns
    -------
    Report
        The page's path, and what was left out.

    Raises
    ------
    ValueError
        If no folder is given, or no record can be used.
    FileNotFoundError
        If a folder holds no results.
    """
    groups = gather(folders)
    with matplotlib.rc_context(STYLE):
        page = ReportPage(groups, rule)
        html = page.render()
    for name, content in page.files.items():
        write_whole(out / "figures" / name, content)
    write_whole(out / "table.csv", frame(groups).to_csv(index=False))
    paper, items = paper_frame(groups), items_page(groups)
    if paper is not None:
        write_whole(out / "paper.csv", paper.to_csv(index=False))
    if items is not None:
        write_whole(out / "items.html", items)
    write_whole(out / "index.html", html)
    return Report(out / "index.html", groups[0].problems)

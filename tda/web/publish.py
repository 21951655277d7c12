"""Publish a history as the pages of a dashboard: with asv's own pages where a repository has its settings, or alone."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from tda import git
from tda.history.repository import Repository
from tda.web.dashboard.evidence import Evidence
from tda.web.dashboard.settings import DashboardConfig, load_dashboard
from tda.web.dashboard.site import FOLDER, write_site
from tda.web.profile.viewer import speedscope
from tda.web.theme.npm import PackageError

ASV = "asv.conf.json"
HTML = Path("reports/out/html")
BY_HAND = Path("profiles/out")
"""Profiles of a checkout that were captured by hand; those of nights are in the history."""
Warn = Callable[[str], object]
START = (
    '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{1}</title>'
    '<meta http-equiv="refresh" content="0; url={0}"><a href="{0}">Dashboard</a></html>\n'
)


def publish(repo: Path, history: Path, html: Path, warn: Warn) -> None:
    """Publish a history without asv.

    Parameters
    ----------
    repo : Path
        A checkout whose commits are shown, as its `reports/dashboard.toml` says.
    history, html : Path
        Folder of the history, and where to write.
    warn : callable
        Gets a sentence for everything that could not be read.

    Raises
    ------
    ValueError
        If there is no history yet, `repo` is no whole git checkout, or its settings are wrong.
    """
    repository = Repository(repo)
    if not history.is_dir():
        raise ValueError(f"no history at {history} yet: `tda nightly` writes one")
    settings = load_dashboard(repo)
    order, tags = repository.line("HEAD"), repository.tags()
    pages = write_dashboard(repo, history, html, settings, repo=repo, order=order, tags=tags, warn=warn)
    (html / "index.html").write_text(START.format(pages[0].relative_to(html).as_posix(), escape(settings.title)))


def write_dashboard(
    root: Path,
    history: Path,
    html: Path,
    settings: DashboardConfig,
    *,
    repo: Path | None,
    order: Sequence[str],
    tags: Mapping[str, str],
    warn: Warn,
    letters: int = 8,
    asv: bool = False,
) -> list[Path]:
    """Write our pages into ``html/tda``.

    Parameters are those of `Evidence.load`, the folder `root` whose ``profiles/out`` is read too, what is shown, and
    whether asv's page is beside them.
    """
    found = Evidence.load(history, repo=repo, order=order, tags=tags, letters=letters, stores=(root / BY_HAND,))
    for problem in found.problems:
        warn(problem)
    viewer = None
    if any(kept.trace for kept in found.profiles.kept):
        try:
            viewer = speedscope(fetch=True)
        except PackageError as error:
            warn(f"traces are published without a viewer: {error}")
    return write_site(replace(found, speedscope=viewer), html / FOLDER, settings, asv=asv)


def publish_with_asv(config: Path) -> Path:
    """Run ``asv publish``, whose plugin (`tda.web.asv_plugin`) adds our pages; the folder that it wrote.

    Raises
    ------
    ValueError
        If the repository does not hold what asv would publish.
    subprocess.CalledProcessError
        If asv fails; it has written why.
    """
    from asv.benchmarks import Benchmarks
    from asv.config import Config

    conf = Config.load(str(config))
    if (config.parent / conf.repo / ".git").exists():  # else asv makes a clone of its own
        _check(Repository(config.parent / conf.repo), conf.branches)
    conf.results_dir = str(config.parent / conf.results_dir)
    if not Path(conf.results_dir, "benchmarks.json").is_file():
        Benchmarks(conf, []).save()  # lets asv publish a history that its own suite has not run on yet
    command = [sys.executable, "-m", "asv", "--config", str(config), "publish", "--no-pull"]
    subprocess.run(command, check=True, env=git.environment())
    return config.parent / str(conf.html_dir)


def html_of_asv(config: Path) -> Path:
    """Folder into which asv publishes."""
    from asv.config import Config

    return config.parent / str(Config.load(str(config)).html_dir)


def _check(repository: Repository, branches: Iterable[str | None]) -> None:
    """Refuse what asv would end at with a traceback, or leave commits out for."""
    repository.check_whole()
    for branch in filter(None, branches):
        try:
            repository.resolve(branch)
        except ValueError as error:
            raise ValueError(f"{error}: asv publishes the branches that its settings name") from None
        if repository.has(f"refs/heads/{branch}") and repository.has(f"refs/tags/{branch}"):
            raise ValueError(f"{repository.folder} has a tag {branch!r} too, which asv takes for the branch: rename it")

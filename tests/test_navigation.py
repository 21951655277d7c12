"""What readers can go to: the order of sections and pages, those of plug-ins, and what a repository shows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from tda.web.asv_plugin import linked
from tda.web.dashboard.evidence import Evidence
from tda.web.dashboard.pages import PAGES
from tda.web.dashboard.settings import SETTINGS, DashboardConfig, load_dashboard
from tda.web.dashboard.site import write_site
from tda.web.navigation import Navigation
from tda.web.publish import BY_HAND, publish
from tda.web.report.sections import SECTIONS
from tests import profiles
from tests.nights import FakeRepository

NAMES = ("alarms", "frontier", "over_time", "methods", "profiles", "commits")
PLUG_IN = """
from markupsafe import Markup
from tda.web.dashboard.pages import HtmlPage, page
from tda.web.report.sections import Content, section

@page("load", 35, "Load & more", "Was the machine busy?")
def load_page(evidence):
    yield HtmlPage("load.html", "Load", values={"content": Markup("<p>idle</p>")})

@section("load", 15, "Load")
def load_section(group):
    return Content("idle")
"""
SCRIPT = """
import json, sys, warnings
from pathlib import Path
from tda.web.dashboard.evidence import Evidence
from tda.web.dashboard.settings import DashboardConfig
from tda.web.dashboard.site import write_site
from tda.web.report.sections import SECTIONS

out = Path(sys.argv[1])
evidence = Evidence.load(out / "none")
write_site(evidence, out / "all")
write_site(evidence, out / "listed", DashboardConfig(pages=("load", "alarms")))
write_site(evidence, out / "unlisted", DashboardConfig(pages=("alarms",)))
print(json.dumps([entry.name for entry in SECTIONS.entries()]))
"""


def save(root: Path, text: str) -> Path:
    """Write the settings of a repository."""
    path = root / SETTINGS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return root


def shown(page: Path) -> list[str]:
    """Pages that the navigation of one leads to."""
    (navigation,) = re.findall(r"<nav.*?</nav>", page.read_text(), re.DOTALL)
    return re.findall(r'href="(\w+)\.html"', navigation)


@pytest.mark.parametrize("entries", [PAGES, SECTIONS])
def test_entries_are_ordered_by_their_numbers(entries: Navigation) -> None:
    found = entries.entries()
    orders = [entry.order for entry in found]
    assert orders == sorted(set(orders))
    assert {entry.name: entry for entry in found} == dict(entries)
    assert entries.entries([found[2].name, found[0].name]) == [found[2], found[0]]


def test_a_repository_without_settings_shows_all_pages(tmp_path: Path) -> None:
    assert load_dashboard(tmp_path) == DashboardConfig(title="tda", pages=NAMES)


def test_this_repository_shows_all_of_its_pages() -> None:
    assert (ROOT / SETTINGS).is_file()
    assert load_dashboard(ROOT).pages == NAMES


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('pages = ["alarm"]', f"pages: unknown dashboard page 'alarm'; known: {', '.join(sorted(NAMES))}"),
        ('pages = ["alarms", "alarms"]', "pages: a page is named twice: alarms, alarms"),
        ("pages = []", "pages: Tuple should have at least 1 item"),
        ('page = ["alarms"]', "page: Extra inputs are not permitted"),
        ("pages = alarms", "is no TOML"),
    ],
)
def test_wrong_settings_are_one_sentence(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(why)) as said:
        load_dashboard(save(tmp_path, text))
    assert str(tmp_path / SETTINGS) in str(said.value)
    assert "\n" not in str(said.value)


def test_the_list_is_the_navigation_and_links_of_its_pages_lead_somewhere(tmp_path: Path) -> None:
    settings = DashboardConfig(title="Sine & co", pages=("commits", "alarms"))
    written = write_site(Evidence.load(tmp_path / "none"), tmp_path, settings)
    assert written[0] == tmp_path / "commits.html"
    assert {path.stem for path in written} == set(NAMES), "others link to them"
    assert shown(written[0]) == ["commits", "alarms"]
    assert "<title>Commits – Sine &amp; co</title>" in written[0].read_text()
    html = linked('<head></head><nav><ul>\n  <li id="nav-li-graphdisplay"></li></ul></nav>', settings.pages)
    assert re.findall(r'href="tda/(\w+)\.html"', html) == ["commits", "alarms"]


def test_a_repository_is_published_from_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings and the profiles that were made by hand are its own, not those of the current folder."""
    repository, here = FakeRepository(tmp_path / "repository"), tmp_path / "here"
    mine, other = (repository.commit(subject) for subject in ("Mine", "Other"))
    for root, commit in ((repository.folder, mine), (here, other)):
        profiles.shelve(root / BY_HAND, commit, [profiles.profile("dense", commit=commit)], traced=False)
    save(repository.folder, 'title = "Sine"\npages = ["profiles", "alarms"]')
    save(here, "pages = 1")
    (tmp_path / "history").mkdir()
    monkeypatch.chdir(here)
    publish(repository.folder, tmp_path / "history", tmp_path / "html", pytest.fail)
    page = (tmp_path / "html" / "tda" / "profiles.html").read_text()
    assert re.findall(r'<a class="hash" href="profile/(\w+)/', page) == [mine[:8]]
    start = (tmp_path / "html" / "index.html").read_text()
    assert 'href="tda/profiles.html"' in start
    assert "<title>Sine</title>" in start


def test_plug_ins_add_sections_and_pages_alike(tmp_path: Path) -> None:
    """One that does not load is skipped with the same warning by both; a page is shown where a list names it."""
    (tmp_path / "load_of_tests.py").write_text(PLUG_IN)
    for name, module in (("load", "load_of_tests"), ("lost", "lost_of_tests")):
        facts = tmp_path / f"{name}-1.2.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        groups = "".join(f"[tda.{group}]\n{name} = {module}\n" for group in ("sections", "pages"))
        (facts / "entry_points.txt").write_text(groups)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("plug-in lost 1.2 is skipped: ModuleNotFoundError: No module named 'lost_of_tests'") == 2
    assert json.loads(done.stdout)[:3] == ["conditions", "failures", "load"]
    assert shown(tmp_path / "all" / "alarms.html") == ["alarms", "frontier", "over_time", "load", *NAMES[3:]]
    assert shown(tmp_path / "listed" / "load.html") == ["load", "alarms"]
    assert "<p>idle</p>" in (tmp_path / "listed" / "load.html").read_text()
    assert shown(tmp_path / "unlisted" / "alarms.html") == ["alarms"]
    assert not (tmp_path / "unlisted" / "load.html").exists()

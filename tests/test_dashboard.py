"""The published dashboard in a real browser without a network: data is shown, nothing complains, nothing leaves."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asv import util
from asv.benchmarks import Benchmarks
from asv.config import Config
from asv.results import Results
from asv.runner import BenchmarkResult
from test_reports_pages import (
    CPU,
    EVIL,
    GPU,
    NEWER,
    Effect,
    a_case,
    a_finding,
    a_record,
    an_alarm,
    cases,
    night_of,
    told,
    units,
)

from tda.history.findings import Alarms
from tda.history.nights import History, Night
from tda.results import append, write_whole
from tda.web.publish import publish_with_asv
from tests import profiles
from tests.browser import Browser, opened, serving, watching

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
COMMITS, BROKEN, SLOWER, WORSE, DIRTY = 14, 5, 8, 11, 12
"""How many commits, and which of them did not build, slowed Griffin, harmed TDA, and was measured on a dirty tree."""
EFFECTS = (Effect(SLOWER, {"griffin": 1.15}, {}), Effect(WORSE, {}, {"tda": 0.05}))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened(tmp_path_factory.mktemp("profile")) as started:
        yield started


# What is published: a scratch repository, nights on two machines, asv results with a step.


@dataclass(frozen=True)
class Site:
    """A published dashboard being served."""

    address: str
    hashes: tuple[str, ...]

    def short(self, place: int) -> str:
        """Hash of a commit as pages show it."""
        return self.hashes[place][:8]


def scratch_repository(folder: Path) -> list[str]:
    """Make real commits, with two tags; return their hashes."""

    def git(*words: str, day: int = 1) -> str:
        moment = f"2026-01-{day:02d}T12:00:00+00:00"
        dates = {"GIT_COMMITTER_DATE": moment, "GIT_AUTHOR_DATE": moment}
        person = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
        command = ["git", "-C", str(folder), *person, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **dates})
        return done.stdout.strip()

    folder.mkdir()
    git("init", "--quiet", "--initial-branch", "main")
    hashes = []
    for place in range(COMMITS):
        (folder / "file").write_text(str(place))
        git("add", "file")
        git("commit", "--quiet", "--message", subject(place), day=day_of(place))
        hashes.append(git("rev-parse", "HEAD"))
    for tag, place in (("v0.1", 2), ("v0.2", 9)):
        git("tag", tag, hashes[place])
    return hashes


def day_of(place: int) -> int:
    """Day of January of a commit: a day after the one before, but for one that was written before its parent."""
    return 3 if place == 4 else place + 1


def subject(place: int) -> str:
    return f"Change {place} {EVIL}" if place == BROKEN else f"Change {place}"


def write_nights(history: Path, hashes: list[str]) -> None:
    """Two nights on the desk with a change of torch between, one on the server; alarms on both."""
    slower, worse, elsewhere = (
        a_finding(CPU, hashes[7], hashes[SLOWER], night="2026-01-11", size=0.15, low=0.14, high=0.16,
                  sentence="Decode of griffin 0.5 on shape:25m became 15% slower."),
        a_finding(NEWER, hashes[10], hashes[WORSE], night="2026-01-15", split="quality", unit="nats/token", size=0.05,
                  low=0.049, high=0.051, cases=(a_case("ref:swiglu", "tda", 0.5),),
                  sentence=f"TDA's text is worse. {EVIL}"),
        a_finding(GPU, hashes[7], hashes[SLOWER], night="2026-01-16", size=0.151, low=0.14, high=0.16),
    )  # fmt: skip
    plans = (
        ("2026-01-11", range(11), CPU, "cpu", ()),
        ("2026-01-15", range(10, COMMITS), NEWER, "cpu", ()),
        ("2026-01-16", range(COMMITS), GPU, "cuda", (DIRTY,)),
    )
    held = History(history)
    for name, places, machine, device, dirty in plans:
        built = [(place, hashes[place]) for place in places if place != BROKEN]
        for unit in units(name, built, machine, effects=EFFECTS, blocks=5, dirty=dirty, device=device,
                          sparsities=(0.25, 0.5)):  # fmt: skip
            held.keep(unit)
        held.write(night(name, places, machine, hashes))
    alarms = (an_alarm(slower), an_alarm(worse, "acknowledged", reason="being looked at"), an_alarm(elsewhere))
    write_whole(history / "alarms.json", Alarms(alarms=alarms).model_dump_json())
    planted = {"griffin": {"extra": [profiles.row("decode", "ffn", "aten::mm", EVIL, 0.9)]}}
    profiles.session(history / "profiles", {hashes[7]: {}, hashes[SLOWER]: planted}, machine=CPU)
    bench = history / "bench" / "by-hand"
    bench.mkdir(parents=True)
    append(bench, [a_record(case, hashes[-1], COMMITS - 1, machine=NEWER, seed=9, effects=EFFECTS, dirty=True,
                            scored=True, rounds=6) for case in cases("ref:swiglu", (0.5,))])  # fmt: skip


def night(name: str, places: range, machine: Any, hashes: list[str]) -> Night:
    failed = {"status": "build failed", "reason": f"SyntaxError on line 3 {EVIL}"}
    return night_of(name, [told(place, hashes[place], subject(place), parent=hashes[place - 1] if place else None,
                                date=f"2026-01-{day_of(place):02d}T12:00:00+00:00",
                                **(failed if place == BROKEN else {})) for place in places], machine)  # fmt: skip


def write_asv(config: Config, hashes: list[str]) -> None:
    """Results of a suite over models, methods and sparsities, as asv itself writes them."""
    choices = [["'ref:swiglu'"], ["'dense'", "'griffin'", "'tda'"], ["0.0", "0.5"]]
    benchmarks = [
        {"name": f"suite.Suite.track_{metric}", "params": choices, "param_names": ["model", "method", "sparsity"],
         "version": "1", "unit": unit, "type": "track", "code": "", "pretty_name": None}
        for metric, unit in (("decode_ms", "ms"), ("decode_to_dense", "ratio"), ("perplexity", "ratio"))
    ]  # fmt: skip
    Benchmarks(config, benchmarks).save()
    facts = {"machine": "desk", "os": "Linux", "arch": "x86_64", "cpu": "Desk CPU", "num_cpu": "2", "ram": "24 GB"}
    util.write_json(f"{config.results_dir}/desk/machine.json", facts, 1)
    noise = np.random.default_rng(0)
    for place, commit in enumerate(hashes):
        if place == BROKEN:
            continue
        moment = 1_767_268_800_000 + place * 86_400_000
        results = Results({**facts, "python": "3.12"}, {}, commit, moment, "3.12", "virtualenv-py3.12", {})
        for benchmark in benchmarks:
            samples = [asv_samples(str(benchmark["name"]), method, sparsity, place, noise)
                       for method in choices[1] for sparsity in choices[2]]  # fmt: skip
            values = [float("nan") if held is None else float(np.median(held)) for held in samples]
            numbers = [None if held is None else 1 for held in samples]
            result = BenchmarkResult(values, samples, numbers, 0, "", None)
            results.add_result(benchmark, result, record_samples=True)
        results.save(config.results_dir)


def asv_samples(name: str, method: str, sparsity: str, place: int, noise: np.random.Generator) -> list[float] | None:
    """Samples of one cell; None for a choice that is no cell."""
    if (method == "'dense'") != (sparsity == "0.0"):
        return None
    slow = 1.15 if method == "'griffin'" and place >= SLOWER and "decode" in name else 1.0
    level = {"decode_ms": 20.0, "decode_to_dense": 1.0, "perplexity": 3.3}[name.split("track_")[1]]
    share = 1.0 if method == "'dense'" else 1.1 if "perplexity" in name else 0.7
    return (level * share * slow * (1 + 0.002 * noise.normal(size=9))).tolist()


def write_settings(folder: Path) -> Path:
    path = folder / "asv.conf.json"
    settings = {"version": 1, "project": "tda", "project_url": "#", "repo": "repo", "branches": ["main"],
                "show_commit_url": "tda/commit/", "results_dir": "history/asv", "html_dir": "html",
                "benchmark_dir": "suite", "plugins": [".tda.web.asv_plugin"]}  # fmt: skip
    path.write_text(json.dumps(settings))
    return path


def publish_here(config: Path) -> None:
    """Publish with the plugin of this checkout, which does not lie beside the scratch settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        publish_with_asv(config)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("dashboard")
    hashes = scratch_repository(folder / "repo")
    path = write_settings(folder)
    (folder / "reports").mkdir()
    (folder / "reports" / "dashboard.toml").write_text('title = "Desk"\n')
    config = Config.load(str(path))
    config.results_dir = str(folder / "history" / "asv")
    write_nights(folder / "history", hashes)
    write_asv(config, hashes)
    publish_here(path)
    with serving(folder / "html") as address:
        yield Site(address, tuple(hashes))


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Browser]:
    """The browser, watched while it shows the site."""
    with watching(browser, site.address):
        yield browser


# asv's own pages.


def test_grid(page: Browser, site: Site) -> None:
    page.open(f"{site.address}/index.html")
    page.until("document.querySelectorAll('#summarygrid-display canvas.flot-base').length === 3")
    for words in ("track_decode_ms", "track_decode_to_dense", "track_perplexity", "Alarms", "Over time"):
        assert words in page.text()


def test_graph(page: Browser, site: Site) -> None:
    choice = "p-model='ref%3Aswiglu'&p-method='griffin'&p-sparsity=0.5"
    page.open(f"{site.address}/index.html#suite.Suite.track_decode_ms?{choice}")
    page.find("#main-graph canvas.flot-base")
    values = "$('#main-graph').data('plot').getData()[0].data.map((point) => point[1]).filter((value) => value)"
    assert page.until(f"{values}.length") == COMMITS - 1
    assert page.ask(f"Math.max(...{values})") == pytest.approx(20 * 0.7 * 1.15, rel=0.01)


def test_regressions_lead_to_our_commit_page(page: Browser, site: Site) -> None:
    page.open(f"{site.address}/index.html#/regressions")
    page.until("document.querySelectorAll('#regressions-body tbody tr').length === 2")
    told_text = page.text("#regressions-body")
    for words in ("track_decode_ms('ref:swiglu', 'griffin', 0.5)", "1.15x", site.short(SLOWER)):
        assert words in told_text
    page.click("a", site.short(SLOWER))
    page.find(".subject")
    assert page.text(".subject") == f"Change {SLOWER}"


def test_navigation_leads_there_and_back(page: Browser, site: Site) -> None:
    page.open(f"{site.address}/index.html")
    page.find("#summarygrid-display canvas")
    page.click("#nav-li-tda-alarms a", "Alarms")
    page.find(".headline")
    assert page.ask("document.title") == "Alarms – Desk"
    page.click("#nav a", "Regressions")
    page.until("document.querySelectorAll('#regressions-body tbody tr').length === 2")


# Our pages.


def test_alarms(page: Browser, site: Site) -> None:
    page.open(f"{site.address}/tda/alarms.html")
    shown = page.text()
    for words in ("3 alarms to look at: 2 open and 1 acknowledged.",
                  "Decode of griffin 0.5 on shape:25m became 15% slower.",
                  "+15% [+14, +16]", "+0.050 [+0.049, +0.051] nats per token", "being looked at", "build failed",
                  "SyntaxError on line 3 <script>alert(1)</script>", "a night is missing"):  # fmt: skip
        assert words in shown
    page.click(".finding a", "Figure over time")
    page.find("figure:target svg")
    assert page.ask("document.querySelector('figure:target').getBoundingClientRect().height") > 100


def test_frontier_moves_by_keyboard(page: Browser, site: Site) -> None:
    page.open(f"{site.address}/tda/frontier.html")
    parts = page.ask("[...document.querySelectorAll('section.frontier h2')].map((h) => h.innerText)")
    assert len(parts) == 5
    assert len({"Desk CPU, 2 cores, torch 2.13", "Desk CPU, 2 cores, torch 2.14", "Server GPU, 16 cores, torch 2.13",
                "desk"} & {part.split("\n")[0] for part in parts}) == 4  # fmt: skip
    section = "[...document.querySelectorAll('section.frontier')].find((s) => s.innerText.includes('Server GPU'))"
    visible = f"{section}.querySelector('p.stop:not([hidden])').innerText"
    layer = f"[...new Set([...{section}.querySelectorAll('svg [data-stop]:not([hidden])')].map((g) => g.dataset.stop))]"
    last = COMMITS - 2
    assert site.short(COMMITS - 1) in page.ask(visible)
    assert page.ask(layer) == [str(last)]
    page.ask(f"{section}.querySelector('input[type=range]').focus()")
    page.press("ArrowLeft", 37)
    assert site.short(DIRTY) in page.until(visible)
    assert page.ask(layer) == [str(last - 1)]
    assert "DIRTY TREE" in page.ask(f"{section}.querySelector('.variant svg').textContent")
    assert "dirty tree" in page.ask(visible)
    page.press("Home", 36)
    assert site.short(0) in page.ask(visible)
    assert page.ask(f"{section}.querySelector('input').getAttribute('aria-valuetext')").startswith(site.short(0))
    page.press("End", 35)
    assert page.ask(layer) == [str(last)]
    page.ask(f"{section}.querySelector('[data-go]').click()")
    assert "v0.1" in page.ask(visible)
    assert page.ask(f"{section}.querySelector('.variants figure').getBoundingClientRect().height") > 200
    shown, hidden = (f"[...{section}.querySelectorAll('.variants .v0 [data-stop]{which}')]"
                     for which in (":not([hidden])", "[hidden]"))  # fmt: skip
    assert page.ask(f"{shown}.filter((layer) => layer.getBBox().width > 0).length") > 10
    assert page.ask(f"{hidden}.length > 0 && {hidden}.every((layer) => !layer.getClientRects().length)")


def test_frontier_shows_what_asv_measured(page: Browser, site: Site) -> None:
    """One model's time and text: a mark for each method, where it was before, and the numbers beside them."""
    page.open(f"{site.address}/tda/frontier.html")
    section = "[...document.querySelectorAll('section.frontier')].find((s) => s.innerText.startsWith('desk'))"
    assert "ref:swiglu" in page.ask(f"{section}.querySelector('h2').innerText")
    rows = page.ask(f"[...{section}.querySelectorAll('div[data-stop]:not([hidden]) tbody tr')].map((r) => r.innerText)")
    assert [row.split("\n")[0].split("\t")[0] for row in rows] == ["dense", "griffin 0.5", "tda 0.5"]
    shown = f"[...{section}.querySelectorAll('.v0 svg [data-stop]:not([hidden]) use')]"
    wide = f"{shown}.filter((mark) => mark.getBoundingClientRect().width > 3)"
    places = page.ask(f"{wide}.map((mark) => mark.getBoundingClientRect()).map((r) => [r.x, r.y])")
    assert len({(round(x), round(y)) for x, y in places}) >= 3, places


def test_frontier_without_scripts_shows_the_newest_and_all_side_by_side(page: Browser, site: Site) -> None:
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(f"{site.address}/tda/frontier.html")
        shown = page.text()
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
    assert "Side by side: the newest 12 commits" in shown
    assert site.short(COMMITS - 1) in shown
    assert "Arrow keys" not in shown, "what needs scripts is not shown"


def test_over_time(page: Browser, site: Site) -> None:
    page.open(f"{site.address}/tda/over_time.html")
    shown = page.text()
    for words in ("Desk CPU, 2 cores, torch 2.14", "Server GPU, 16 cores, torch 2.13", "Break: torch 2.13 → 2.14",
                  "Decode, relative to dense", f"Ringed: measured on a dirty tree ({site.short(DIRTY)})"):  # fmt: skip
        assert words in shown
    figure = "[...document.querySelectorAll('figure')].find((f) => f.id.endsWith('-decode_ms'))"
    labels = page.ask(f"{figure}.querySelector('svg').textContent")
    for words in ("griffin 0.5", "tda 0.5", "torch 2.13", site.short(COMMITS - 1)):
        assert words in labels
    assert page.ask(f"{figure}.querySelectorAll('svg a').length") == 4 * (COMMITS - 1 + 1), "one twice: at the break"
    assert page.ask(f"{figure}.getBoundingClientRect().width") > 300
    folded = page.ask("document.querySelector('details.trend:not([open]) figure').id")
    page.ask(f"location.hash = {json.dumps(folded)}")
    page.until(f"document.getElementById({json.dumps(folded)}).getBoundingClientRect().height > 100")


def test_methods_can_be_sorted(page: Browser, site: Site) -> None:
    page.open(f"{site.address}/tda/methods.html")
    assert site.short(COMMITS - 1) in page.text()
    first = "document.querySelector('table.sortable tbody th').innerText"
    assert page.ask(first) == "dense"
    page.click("table.sortable button", "Decode step")
    assert page.ask(first) == "tda 0.5"


def test_commit_pages(page: Browser, site: Site) -> None:
    page.open(f"{site.address}/tda/commits.html")
    listed = page.ask("[...document.querySelectorAll('table.commits td:first-child')].map((cell) => cell.innerText)")
    assert listed == [site.short(place) for place in reversed(range(COMMITS))], (
        "in the order of the branch, not of dates"
    )
    page.click("a.hash", site.short(SLOWER))
    page.find(".subject")
    shown = page.text()
    for words in ("measured", "Decode of griffin 0.5 on shape:25m became 15% slower.", f"change since {site.short(7)}"):
        assert words in shown
    page.click("a[rel=prev]", site.short(7))
    page.until("document.querySelector('.subject').innerText === 'Change 7'")
    page.open(f"{site.address}/tda/commit/{site.short(BROKEN)}/")
    shown = page.text()
    for words in ("build failed", "Build failed", "SyntaxError on line 3 <script>", "This commit was not measured"):
        assert words in shown


def test_an_alarm_leads_to_its_kernels_and_to_a_trace(page: Browser, site: Site) -> None:
    page.open(f"{site.address}/tda/alarms.html")
    assert "appeared, which is" in page.text(".kernels")
    page.click(".finding a.pair", "What changed in its kernels")
    page.find(".compared svg")
    first = page.text(".compared")
    assert first.startswith("griffin 0.5 on shape:25m 2 and 2 processes in turn")
    assert "appeared <script>alert(1)</script>" in first
    page.click(".files a", "open the trace")
    page.until("document.title.startsWith('griffin 0.5 on shape:25m') && document.title.endsWith('speedscope')")


@pytest.mark.parametrize("name", ["alarms", "frontier", "over_time", "methods", "profiles", "commits"])
def test_pages_fit_a_phone(page: Browser, site: Site, name: str) -> None:
    fits(page, f"{site.address}/tda/{name}.html")


def test_pages_of_a_profile_fit_a_phone(page: Browser, site: Site) -> None:
    for name in ("index", f"since-{site.short(7)}"):
        fits(page, f"{site.address}/tda/profile/{site.short(SLOWER)}/{name}.html")


def fits(page: Browser, address: str) -> None:
    """Nothing of a page is wider than a phone."""
    size: dict[str, Any] = {"height": 800, "deviceScaleFactor": 1}
    page.call("Emulation.setDeviceMetricsOverride", width=390, mobile=True, **size)
    try:
        page.open(address)
        assert page.ask("document.documentElement.scrollWidth") <= 390
    finally:
        page.call("Emulation.setDeviceMetricsOverride", width=1280, mobile=False, **size)


def test_a_history_without_anything_is_published_too(browser: Browser, tmp_path: Path) -> None:
    scratch_repository(tmp_path / "repo")
    publish_here(write_settings(tmp_path))
    with serving(tmp_path / "html") as address, watching(browser, address):
        browser.open(f"{address}/index.html")
        browser.find("#nav-li-tda-alarms")
        for name in ("alarms", "frontier", "over_time", "methods", "profiles", "commits"):
            browser.open(f"{address}/tda/{name}.html")
            assert "yet" in browser.text(".empty")


# The check itself.


def test_the_check_sees_complaints_and_foreign_requests(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        "<script src='http://libraries.example/x.js'></script><script>console.error('told'); missing();</script>"
    )
    browser.complaints.clear()
    browser.requests.clear()
    with serving(tmp_path) as address:
        browser.open(f"{address}/index.html")
        browser.ask("1")
    assert "http://libraries.example/x.js" in browser.requests
    for words in ("told", "missing is not defined", "ERR_NAME_NOT_RESOLVED"):
        assert any(words in complaint for complaint in browser.complaints), words

"""Pages of the dashboard, rendered from synthetic histories: what they say, what they must not, and how they move."""

import base64
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import geometric_mean as gmean
from typing import Any

import matplotlib
import numpy as np
import pytest
from asv.util import UserError
from matplotlib.text import Annotation

from tda.cases import Case
from tda.history.findings import Alarm, Alarms, Finding
from tda.history.nights import History, Night, NightCommit, Unit
from tda.history.profiles import ProfileStore
from tda.history.table import HistoryTable, load_history
from tda.records import Commit, Machine, Measurement, Record
from tda.results import append, write_whole
from tda.statistics import Estimate
from tda.web import asv_libraries
from tda.web import asv_plugin as publisher
from tda.web.dashboard import profiled as profiled_module
from tda.web.dashboard.blocks import DELTA, RATIO, SETS, CaseFacts, Level, MetricRun, SettingHistory, Stop, is_quality
from tda.web.dashboard.evidence import Evidence
from tda.web.dashboard.formatting import change_text, level_text
from tda.web.dashboard.pages import PAGES
from tda.web.dashboard.pages import frontier as frontier_module
from tda.web.dashboard.pages import over_time as over_time_module
from tda.web.dashboard.pages.frontier import VIEWS, FrontierHistory, FrontierPoint, dominator, frontiers
from tda.web.dashboard.site import write_site
from tda.web.dashboard.trends import shows_in, trends
from tda.web.theme.figures import STYLE
from tda.web.theme.npm import PackageError
from tests import profiles
from tests.nights import FakeRepository
from tests.test_night import older_night

CPU = Machine(
    cpu="Desk CPU", cores=2, threads=2, memory_bytes=24_000_000_000, python="3.12", torch="2.13", transformers="5.24",
    tda="0.1.0", system="Linux",
)  # fmt: skip
NEWER = CPU.model_copy(update={"torch": "2.14"})
GPU = CPU.model_copy(update={"cpu": "Server CPU", "cores": 16, "gpu": "Server GPU", "driver": "600.1"})
EVIL = "<script>alert(1)</script> & \"$x^2$\" '{{ 7 * 7 }}'"
METHODS = ("griffin", "tda", "tt")
GAINS = {"griffin": 0.62, "tda": 0.55, "tt": 0.22}
"""Share of the dense decode step that a method saves per share left out."""
HARM = {"griffin": 0.22, "tda": 0.16, "tt": 0.02}


@dataclass(frozen=True)
class Effect:
    """What is planted at a commit and holds from there on: factors of times, and nats added to a method."""

    place: int
    decode: dict[str, float]
    nats: dict[str, float]


def hashes(count: int) -> list[str]:
    """Commit hashes that differ in their first letters."""
    return [f"{number:02d}{'c0ffee' * 7}"[:40] for number in range(count)]


def a_case(model: str, method: str, sparsity: float, device: str = "cpu") -> Case:
    dtype = "bfloat16" if model.startswith("shape:") else "float32"
    told = {"model": model, "method": method, "sparsity": sparsity, "device": device, "dtype": dtype}
    return Case(**told, prompt_tokens=64, new_tokens=16)


def cases(model: str, sparsities: Iterable[float], device: str = "cpu") -> list[Case]:
    return [a_case(model, "dense", 0.0, device)] + [
        a_case(model, name, share, device) for name in METHODS for share in sparsities
    ]


def a_record(
    case: Case, commit: str, place: int, *, machine: Machine, seed: int, effects: Sequence[Effect] = (),
    dirty: bool = False, scored: bool = False, rounds: int = 3,
) -> Record:  # fmt: skip
    """One case as a process of a commit would give it; equal arguments give equal records."""
    noise = np.random.default_rng([seed, place, len(case.method), int(100 * (case.sparsity or 0))])
    held = [effect for effect in effects if place >= effect.place]
    step = 20.0 * (1 - GAINS.get(case.method, 0.0) * (case.sparsity or 0.0))
    for effect in held:
        step *= effect.decode.get(case.method, 1.0)
    speed = 1 + 0.006 * noise.normal()
    drawn = (step * speed * (1 + 0.02 * noise.normal(size=(rounds, 5)))).round(4)
    numbers = [number for number in range(1, rounds + 1) for _ in range(5)]
    select = [] if case.method == "dense" else (6.0 * (1 + 0.02 * noise.normal(size=rounds))).round(4).tolist()
    measured = {
        "decode_ms": Measurement.of("decode_ms", drawn.ravel().tolist(), numbers),
        "prefill_ms": Measurement.of("prefill_ms", (80 * (1 + 0.01 * noise.normal(size=rounds))).tolist()),
        "peak_memory_bytes": Measurement.of("peak_memory_bytes", [3.1e8]),
        "energy_j_per_token": Measurement.absent("energy_j_per_token", "no NVIDIA driver"),
    }
    if select:
        measured["selection_ms"] = Measurement.of("selection_ms", select)
    if scored:
        measured |= quality(case, sum(effect.nats.get(case.method, 0.0) for effect in held))
    return Record(
        case=case, round=0, commit=Commit(hash=commit, dirty=dirty), machine=machine, status="ok",
        measurements=measured, started="2026-01-01T00:00:00+00:00", seconds=1.0,
    )  # fmt: skip


def quality(case: Case, extra: float, documents: int = 12) -> dict[str, Measurement]:
    """Likelihoods by document: exact, so that equal cases agree to the bit."""
    noise = np.random.default_rng([7, len(case.method)])
    sparsity = case.sparsity or 0.0
    harm = HARM.get(case.method, 0.0) * 8 * sparsity**3 * (1 + 0.2 * noise.normal(size=documents)) + extra * (
        sparsity > 0
    )
    nll = 1.2 + np.linspace(-0.4, 0.4, documents) + harm
    values = {"nll_nats": nll, "perplexity": np.exp(nll), "kl_to_dense_nats": np.abs(harm) * 0.9,
              "top1_disagreement": np.clip(np.abs(harm) * 0.3, 0, 1)}  # fmt: skip
    measured = {name: Measurement.of(name, given.tolist(), range(documents)) for name, given in values.items()}
    if case.method in ("griffin", "tda"):
        digests = [float(100 + number + (1000 if extra else 0)) for number in range(documents)]
        measured["selection_digest"] = Measurement.of("selection_digest", digests, range(documents))
    return measured


def units(
    night: str, commits: Sequence[tuple[int, str]], machine: Machine, *, effects: Sequence[Effect] = (),
    blocks: int = 6, dirty: Iterable[int] = (), device: str = "cpu", sparsities: Sequence[float] = (0.25, 0.5, 0.75),
) -> Iterator[Unit]:  # fmt: skip
    """Speed in every block, quality in the first."""
    for place, commit in commits:
        told: dict[str, Any] = {"machine": machine, "effects": effects, "dirty": place in dirty}
        for block in range(1, blocks + 1):
            for grid, model, shares in (("speed", "shape:25m", (0.5,)), ("quality", "ref:swiglu", sparsities)):
                if grid == "quality" and block > 1:
                    continue
                records = tuple(
                    a_record(case, commit, place, seed=block, scored=grid == "quality",
                             rounds=7 if grid == "quality" else 3, **told)
                    for case in cases(model, shares, device)
                )  # fmt: skip
                yield Unit(night=night, commit=commit, grid=grid, block=block, order=place, status="ok",
                           records=records, started="2026-01-01T00:00:00+00:00", seconds=9.0)  # fmt: skip


def night_of(night: str, commits: Sequence[NightCommit], machine: Machine | None, **changes: Any) -> Night:
    told = {
        "started": "2026-01-15T01:00:00+00:00",
        "finished": "2026-01-15T02:10:00+00:00",
        "baseline_commit": commits[0].hash,
    }
    return Night(id=night, machine=machine, commits=tuple(commits), **{**told, **changes})


def told(place: int, commit: str, subject: str = "", **changes: Any) -> NightCommit:
    date = f"2026-01-{place + 1:02d}T12:00:00+00:00"
    values = {"hash": commit, "date": date, "subject": subject or f"Change {place}", "status": "measured"}
    return NightCommit(**values | changes)


def a_finding(machine: Machine, good: str, commit: str, **changes: Any) -> Finding:
    values: dict[str, Any] = {
        "verdict": "alarm",
        "split": "decode",
        "scope": "method",
        "shape": "step",
        "machine": machine.fingerprint,
        "cases": (a_case("shape:25m", "griffin", 0.5, "cuda" if machine.gpu else "cpu"),),
        "good": good,
        "commit": commit,
        "size": 0.12,
        "low": 0.1,
        "high": 0.14,
        "unit": "ratio",
        "p": 0.0004,
        "floor": 0.02,
        "night": "2026-01-11",
        "sentence": "Decode of griffin 0.5 on shape:25m became 12% slower.",
        "reproduce": f"tda compare {good[:10]} {commit[:10]} --method griffin",
    }
    return Finding(**values | changes)


def an_alarm(finding: Finding, state: str = "open", **changes: Any) -> Alarm:
    return Alarm(id=finding.key, finding=finding, state=state, since=finding.night, **changes)


# A small history that has one of everything.

HASHES = hashes(5)
A, BROKEN, B, C, D = HASHES
"""Commits in order; the second did not build."""
SLOWER = Effect(2, {"griffin": 1.25}, {})
WORSE = Effect(3, {}, {"tda": 0.05})
REASON = "error: <b>SyntaxError</b>\n  in line 3 " + EVIL


def write_history(folder: Path) -> Path:
    """Two kinds of hardware, one with a change of torch; a failed build, a dirty tree, alarms in most states."""
    history = History(folder)
    commits = [told(place, commit, f"Change {place} {EVIL}") for place, commit in enumerate(HASHES)]
    commits[1] = told(1, BROKEN, f"Breaks {EVIL}", status="build failed", reason=REASON)
    plans = (
        ("2026-01-03", (0, 1, 2), CPU, "cpu", ()),
        ("2026-01-05", (2, 3, 4), NEWER, "cpu", ()),
        ("2026-01-06", (0, 1, 2, 3), GPU, "cuda", (3,)),
    )
    for night, places, machine, device, dirty in plans:
        built = [(place, HASHES[place]) for place in places if place != 1]
        told_units = units(night, built, machine, effects=(SLOWER, WORSE), blocks=2, dirty=dirty, device=device,
                           sparsities=(0.25, 0.5))  # fmt: skip
        for unit in told_units:
            history.keep(unit)
        finished = None if machine is GPU else f"{night}T02:10:00+00:00"
        found = tuple(finding for finding in FINDINGS if finding.night == night)
        history.write(night_of(night, [commits[place] for place in places], machine, findings=found, finished=finished))
    history.keep(Unit(night="2026-01-05", commit=C, grid="speed", block=3, order=1, status="crash",
                      reason=f"signal 9 {EVIL}", started="2026-01-05T01:00:00+00:00", seconds=2.0))  # fmt: skip
    write_whole(folder / "alarms.json", Alarms(alarms=ALARMS).model_dump_json())
    write_profiles(folder / "profiles")
    return folder


def write_profiles(store: Path) -> None:
    """Two commits on the desk in turn, the later with a product more; one on newer software; one that is too old."""
    planted = {"griffin": {"extra": [profiles.row("decode", "ffn", "aten::mm", EVIL, 0.9)]}}
    profiles.session(store, {A: {}, B: planted}, machine=CPU)
    alone = [profiles.profile(method, commit=D, machine=NEWER) for method in ("dense", "griffin")]
    profiles.shelve(store, D, alone, session="cases-11111111", traced=False)
    old = Unit(night="cases-22222222", commit=C, grid="cases", block=1, order=0, status="error", seconds=0.0,
               reason=f"too old {EVIL}", started="2026-01-05T01:00:00+00:00")  # fmt: skip
    ProfileStore(store).keep(old)


FINDINGS = (
    a_finding(CPU, A, B, size=0.25, low=0.23, high=0.27, night="2026-01-03", sentence=f"Griffin is slower. {EVIL}"),
    a_finding(GPU, A, B, size=0.24, low=0.22, high=0.26, night="2026-01-06"),
    a_finding(NEWER, B, C, split="quality", unit="nats/token", size=0.05, low=0.049, high=0.051, floor=None, p=None,
              cases=tuple(a_case("ref:swiglu", "tda", share) for share in (0.25, 0.5)), night="2026-01-05"),
    a_finding(NEWER, B, D, verdict="warning", split="prefill", scope="everything", size=0.02, low=-0.01, high=0.05,
              cases=(a_case("shape:25m", "dense", 0.0),), night="2026-01-05", sentence="Prefill may be slower."),
)  # fmt: skip
ALARMS = (
    an_alarm(a_finding(CPU, A, B, split="memory", night="2026-01-02", sentence="Memory rose."), "fixed", fixed_by=C),
    an_alarm(FINDINGS[2], "acknowledged", reason="being looked at"),
    an_alarm(FINDINGS[0], "accepted", reason=f"wanted {EVIL}"),
    an_alarm(FINDINGS[1], remains=0.12),
)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    folder = write_history(tmp_path_factory.mktemp("history"))
    return Evidence.load(folder, order=HASHES, tags={"v1": B})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, evidence: Evidence) -> Path:
    folder = tmp_path_factory.mktemp("html") / "tda"
    write_site(evidence, folder)
    return folder


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self._silent = 0
        self.source = source
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    def values(self, name: str, tag: str | None = None) -> list[str]:
        return [value for found, held in self.tags if tag in (None, found) and (value := held.get(name)) is not None]


def block_of(evidence: Evidence, machine: Machine, model: str) -> SettingHistory:
    return next(block for block in evidence.blocks
                if block.machine == machine.fingerprint and block.setting.startswith(model))  # fmt: skip


def series(block: SettingHistory, label: str) -> str:
    """The series that people call so."""
    (found,) = [series for series, facts in block.cases.items() if facts.label == label]
    return found


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """All pages by their path below the site."""
    return {str(path.relative_to(site)): Page(path.read_text()) for path in sorted(site.rglob("*.html"))}


# What is read.


def test_machines_and_sources_are_never_in_one_block(evidence: Evidence, tmp_path: Path) -> None:
    machines = [block.machine for block in evidence.blocks]
    assert sorted(machines) == sorted(2 * [machine.fingerprint for machine in (CPU, NEWER, GPU)])
    frame = load_history(write_history(tmp_path)).frame
    for block in evidence.blocks:
        here = frame[(frame.machine == block.machine) & frame.case.notna() & ~frame.control]
        assert {stop.commit for stop in block.stops} <= set(here.commit)


def test_level_is_the_mean_over_processes(evidence: Evidence) -> None:
    block = block_of(evidence, CPU, "shape:25m")
    case = series(block, "griffin 0.5 on shape:25m")
    level = block.level(case, "decode_ms", Stop(B, False))
    steps = [
        np.array(a_record(a_case("shape:25m", "griffin", 0.5), B, 2, machine=CPU, seed=block_number,
                          effects=(SLOWER,)).samples("decode_ms")).reshape(3, 5)
        for block_number in (1, 2)
    ]  # fmt: skip
    assert level.estimate is not None
    assert level.estimate.value == pytest.approx(gmean([gmean(np.median(one, 1)) for one in steps]))
    assert (level.estimate.groups, level.estimate.low) == (2, None), "two processes give no interval"


def test_levels_of_one_process_are_those_of_the_loader(tmp_path: Path) -> None:
    record = a_record(a_case("m", "tda", 0.5), A, 0, machine=CPU, seed=1, scored=True, rounds=7)
    extra = {
        "task_recall_accuracy": Measurement.of("task_recall_accuracy", [1.0] * 7 + [0.0] * 5, range(12)),
    }
    folder = tmp_path / "bench"
    folder.mkdir()
    append(folder, [record.model_copy(update={"measurements": record.measurements | extra})])
    table = load_history(tmp_path)
    (block,) = Evidence.of(table).blocks
    for row in table.frame.itertuples():
        level = block.level(row.series, row.metric, Stop(A, False))
        if np.isfinite(row.value):
            assert level.estimate is not None
            assert (level.estimate.value, level.unit) == (row.value, row.unit)
            assert [level.estimate.low, level.estimate.high] == [None if np.isnan(bound) else bound
                                                                 for bound in (row.low, row.high)]  # fmt: skip
        else:
            assert level.estimate is None, row.metric
    accuracy = block.level(series(block, "tda 0.5 on m"), "task_recall_accuracy", Stop(A, False)).estimate
    assert accuracy is not None
    assert accuracy.value == pytest.approx(7 / 12)


def test_ratio_to_dense_is_paired_by_round_of_one_process(evidence: Evidence) -> None:
    block, stop = block_of(evidence, CPU, "shape:25m"), Stop(A, False)
    values = []
    for number in (1, 2):
        griffin, dense = (
            np.median(np.reshape(a_record(a_case("shape:25m", method, sparsity), A, 0, machine=CPU, seed=number)
                                 .samples("decode_ms"), (3, 5)), 1)
            for method, sparsity in (("griffin", 0.5), ("dense", 0.0))
        )  # fmt: skip
        values.append(gmean(griffin / dense))
    level = block.level(series(block, "griffin 0.5 on shape:25m"), RATIO, stop)
    assert level.estimate is not None
    assert level.estimate.value == pytest.approx(gmean(values))
    assert block.level(series(block, "dense on shape:25m"), RATIO, stop).estimate is None


def test_quality_is_paired_by_document_and_comes_from_perplexity_too(tmp_path: Path) -> None:
    def without_nll(record: Record) -> Record:
        measured = {name: given for name, given in record.measurements.items() if name != "nll_nats"}
        return record.model_copy(update={"measurements": measured})

    records = [a_record(case, A, 0, machine=CPU, seed=1, scored=True) for case in cases("m", (0.5,))]
    expected = np.mean(np.subtract(records[1].samples("nll_nats"), records[0].samples("nll_nats")))
    for number, held in enumerate((records, list(map(without_nll, records)))):
        folder = tmp_path / str(number) / "bench"
        folder.mkdir(parents=True)
        append(folder, held)
        (block,) = Evidence.load(folder.parent).blocks
        level = block.level(series(block, "griffin 0.5 on m"), DELTA, Stop(A, False))
        assert level.estimate is not None
        assert level.estimate.value == pytest.approx(expected)
        assert level.estimate.low is not None


def test_change_is_paired_by_process(evidence: Evidence) -> None:
    block = block_of(evidence, CPU, "shape:25m")
    case = series(block, "griffin 0.5 on shape:25m")
    change = block.change(case, "decode_ms", Stop(B, False), Stop(A, False))
    new, old = ({run.process: run.estimate.value for run in block.runs(case, "decode_ms", Stop(commit, False))}
                for commit in (B, A))  # fmt: skip
    assert change is not None
    assert change.value == pytest.approx(gmean([new[process] / old[process] for process in new]) - 1)
    assert change.groups == 2
    assert change.value == pytest.approx(0.25, abs=0.03)


def test_what_follows_from_samples_is_shown_beside_them(tmp_path: Path) -> None:
    """It has no samples of its own."""
    folder = tmp_path / "bench"
    folder.mkdir()
    read = {"dense": 2e6, "griffin": 1e6}
    append(folder, [
        one.model_copy(update={"measurements": one.measurements
                               | {"bytes_per_token": Measurement.of("bytes_per_token", [read[one.case.method]])}})
        for one in (a_record(case, A, 0, machine=CPU, seed=1, rounds=7) for case in cases("m", (0.5,)))
        if one.case.method in read
    ])  # fmt: skip
    (block,) = Evidence.load(tmp_path).blocks
    assert "speedup_efficiency" in block.metrics
    assert block.unit("speedup_efficiency") == "ratio"
    assert block.level(series(block, "griffin 0.5 on m"), "speedup_efficiency", Stop(A, False)).estimate is not None
    assert block.level(series(block, "dense on m"), "speedup_efficiency", Stop(A, False)).missing == "not measured"


def test_change_of_a_time_that_may_be_zero_is_relative_to_the_median() -> None:
    block = SettingHistory("nightly", "m", "m", "m")
    for stop, values in ((Stop(A, False), (0.0, 2.0, 2.0)), (Stop(B, False), (1.0, 3.0, 3.0))):
        for number, value in enumerate(values):
            measurement = Measurement(unit="ms", better="lower", samples=(value,))
            block.add(
                "c", "prefill_overhead_ms", stop, MetricRun((number,), measurement, Estimate(value, None, None, 1))
            )
    change = block.change("c", "prefill_overhead_ms", Stop(B, False), Stop(A, False))
    assert change is not None
    assert change.value == 0.5


def test_change_without_a_shared_process_has_no_interval(evidence: Evidence) -> None:
    block = block_of(evidence, CPU, "shape:25m")
    case = series(block, "griffin 0.5 on shape:25m")
    apart = SettingHistory(block.source, block.machine, block.machine_label, block.setting)
    for stop, process in ((Stop(A, False), 2), (Stop(B, False), 1)):
        for run in block.runs(case, "decode_ms", stop):
            if run.process[3] == process:
                apart.add(case, "decode_ms", stop, run)
    change = apart.change(case, "decode_ms", Stop(B, False), Stop(A, False))
    assert change is not None
    assert (change.low, change.groups) == (None, 0)
    assert change.value == pytest.approx(0.25, abs=0.05)


def test_dirty_and_clean_numbers_of_a_commit_are_apart(tmp_path: Path) -> None:
    folder = tmp_path / "bench"
    folder.mkdir()
    for dirty, slow in ((False, 1.0), (True, 2.0)):
        effects = (Effect(0, {"griffin": slow}, {}),)
        append(folder, [a_record(case, A, 0, machine=CPU, seed=1, effects=effects, dirty=dirty)
                        for case in cases("m", (0.5,))])  # fmt: skip
    (block,) = Evidence.load(tmp_path).blocks
    assert block.stops == [Stop(A, False), Stop(A, True)]
    clean, dirty = (block.level(series(block, "griffin 0.5 on m"), "decode_ms", stop).estimate for stop in block.stops)
    assert clean is not None
    assert dirty is not None
    assert dirty.value == pytest.approx(2 * clean.value, rel=1e-3)
    assert block.newest() == Stop(A, False)
    assert block.before(Stop(A, True)) is None, "a commit is not what was before itself"


def test_control_runs_are_no_levels(tmp_path: Path) -> None:
    dense = a_record(a_case("m", "dense", 0.0), A, 0, machine=CPU, seed=1)
    slow = {"decode_ms": Measurement.of("decode_ms", [99.0])}
    again = dense.case.model_copy(update={"control": "a_a"})
    control = dense.model_copy(update={"case": again, "measurements": slow})
    second = Unit(night="n", commit=A, role="control", grid="g", block=1, order=0, status="ok", seconds=1.0,
                  records=(dense.model_copy(update={"measurements": slow}),),
                  started="2026-01-01T00:00:00+00:00")  # fmt: skip
    history = History(tmp_path)
    history.keep(second)
    history.keep(second.model_copy(update={"role": "commit", "order": 1, "records": (dense, control)}))
    (block,) = Evidence.load(tmp_path).blocks
    level = block.level(series(block, "dense on m"), "decode_ms", Stop(A, False))
    assert level.estimate is not None
    assert level.estimate.value < 30
    assert len(block.runs(series(block, "dense on m"), "decode_ms", Stop(A, False))) == 1


def test_a_ratio_is_paired_where_rounds_hold_every_case_alone(tmp_path: Path) -> None:
    folder = tmp_path / "bench"
    folder.mkdir()
    append(folder, [a_record(case, A, 0, machine=CPU, seed=1) for case in cases("m", (0.5,))])
    table = load_history(tmp_path)
    ratios = {}
    for source in ("bench", "micro"):
        (block,) = Evidence.of(HistoryTable(table.frame.assign(source=source))).blocks
        ratios[source] = block.level(series(block, "griffin 0.5 on m"), RATIO, Stop(A, False)).estimate
    assert ratios["bench"] is not None
    assert ratios["micro"] is None


def test_masked_runs_have_no_speed(tmp_path: Path) -> None:
    record = a_record(a_case("m", "griffin", 0.5), A, 0, machine=CPU, seed=1, scored=True)
    folder = tmp_path / "bench"
    folder.mkdir()
    append(folder, [record.model_copy(update={"execution": "masked"})])
    (block,) = Evidence.load(tmp_path).blocks
    assert "skip nothing" in block.level(series(block, "griffin 0.5 on m"), "decode_ms", Stop(A, False)).missing
    assert block.level(series(block, "griffin 0.5 on m"), "nll_nats", Stop(A, False)).estimate is not None


def test_history_goes_along_the_branch_whatever_dates_say(tmp_path: Path) -> None:
    history = History(tmp_path)
    dates = ("2026-01-05", "2026-01-02", "2026-01-03")
    listed = [told(0, commit).model_copy(update={"date": f"{date}T00:00:00+00:00"})
              for commit, date in zip((A, B, C), dates, strict=True)]  # fmt: skip
    beside = told(0, D).model_copy(update={"date": "2026-01-04T00:00:00+00:00"})
    history.write(night_of("n", [*listed, beside], CPU))
    found = Evidence.load(tmp_path, order=[A, B, C]).commits
    assert [commit.hash for commit in found] == [D, A, B, C]


def test_commits_of_one_second_stand_as_nights_listed_them(tmp_path: Path) -> None:
    History(tmp_path).write(night_of("n", [told(0, commit) for commit in (C, A, B)], CPU))
    for order in ((), (D,)):
        assert [commit.hash for commit in Evidence.load(tmp_path, order=order).commits] == [C, A, B]


def test_a_later_night_decides_unless_it_skipped(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.write(night_of("1", [told(0, A, status="build failed", reason="no"), told(1, B)], CPU))
    history.write(night_of("2", [told(0, A), told(1, B, status="skipped", reason="no time")], CPU))
    assert [commit.status for commit in Evidence.load(tmp_path).commits] == ["measured", "measured"]


def test_short_hashes_are_unique(tmp_path: Path) -> None:
    twins = [f"{'ab' * 10}{end * 20}" for end in "01"]
    History(tmp_path).write(night_of("n", [told(place, commit) for place, commit in enumerate(twins)], CPU))
    assert [commit.short for commit in Evidence.load(tmp_path).commits] == ["abababab", twins[1]]


def test_alarms_of_an_older_history_are_those_of_its_nights(tmp_path: Path) -> None:
    """Their findings hold labels: the night's own units tell the cases. One that none has is named and left out."""
    (night,), _ = older_night(tmp_path, ("griffin 0.5 on shape:25m",)).nights()
    (finding,) = night.findings
    told = json.loads(Alarms(alarms=(an_alarm(finding, "accepted", reason="wanted"),)).model_dump_json())
    told["alarms"][0]["finding"]["cases"] = ["griffin 0.5 on shape:25m"]
    lost = {**told["alarms"][0], "id": "0123456789"}
    write_whole(tmp_path / "alarms.json", json.dumps({"alarms": [*told["alarms"], lost]}))
    evidence = Evidence.load(tmp_path)
    assert [(alarm.id, alarm.state, alarm.finding) for alarm in evidence.alarms] == [(finding.key, "accepted", finding)]
    assert evidence.states[finding.key].reason == "wanted"
    (problem,) = (problem for problem in evidence.problems if "alarms.json" in problem)
    assert "alarm 0123456789 skipped" in problem


def test_damaged_alarms_are_named(tmp_path: Path) -> None:
    write_whole(tmp_path / "alarms.json", "{broken")
    evidence = Evidence.load(tmp_path)
    assert evidence.alarms == ()
    assert any("alarms.json skipped" in problem for problem in evidence.problems)


# The frontier.


def a_spot(method: str, x: float, y: float, sparsity: float = 0.5) -> FrontierPoint:
    facts = CaseFacts("", None, "", f"{method} {sparsity} on m", f"{method} {sparsity}", method, sparsity)
    return FrontierPoint(facts, *(Estimate(value, None, None, 1) for value in (x, y)))


def test_dominated_points() -> None:
    dense, fast, slow, twin = (
        a_spot("dense", 1, 0),
        a_spot("tda", 0.7, 0.1),
        a_spot("tt", 0.8, 0.2),
        a_spot("tt", 0.7, 0.1),
    )
    worse = a_spot("griffin", 1.1, 0.01)
    found = [dense, fast, slow, twin, worse]
    assert [dominator(spot, found) for spot in found] == [None, None, fast, None, dense]


def test_frontier_of_a_method_leaves_its_own_dominated_points_out_alone() -> None:
    own = [a_spot("tda", 0.9, 0.01, 0.25), a_spot("tda", 0.95, 0.1, 0.5), a_spot("tda", 0.6, 0.5, 0.75)]
    found = frontiers([*own, a_spot("dense", 1, 0), a_spot("tt", 0.5, 0.4)])
    assert [spot.facts.sparsity for spot in found["tda"]] == [0.75, 0.25], "what another method beats is on it still"


def test_dominated_points_are_grey(evidence: Evidence) -> None:
    block = block_of(evidence, CPU, "ref:swiglu")
    journey = FrontierHistory(block, VIEWS[0], tuple(block.stops))
    with matplotlib.rc_context(STYLE):
        axes = frontier_module.draw(evidence, journey).axes[0]
    newest = journey.spots(1)
    drawn = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])): line.get_color() for line in axes.lines
             if len(line.get_xdata()) == 1 and str(line.get_gid()).startswith("stop1-")
             and line.get_markerfacecolor() != "white"}  # fmt: skip
    grey = {spot.facts.label for spot in newest if drawn[spot.at] == frontier_module.GREY}
    assert grey == {spot.facts.label for spot in newest if dominator(spot, newest) is not None}
    assert "griffin 0.25 on ref:swiglu" in grey
    assert "dense on ref:swiglu" not in grey


def test_arrows_lead_from_the_previous_commit(evidence: Evidence) -> None:
    block = block_of(evidence, CPU, "ref:swiglu")
    journey = FrontierHistory(block, VIEWS[0], tuple(block.stops))
    with matplotlib.rc_context(STYLE):
        axes = frontier_module.draw(evidence, journey).axes[0]
    arrows = [text for text in axes.texts if isinstance(text, Annotation) and text.arrow_patch is not None]
    moved = {(tuple(arrow.xyann), tuple(arrow.xy)) for arrow in arrows}
    by_label = [{spot.facts.label: spot.at for spot in journey.spots(place)} for place in (0, 1)]
    slower = "griffin 0.5 on ref:swiglu"
    assert (by_label[0][slower], by_label[1][slower]) in moved
    assert by_label[1][slower][0] > by_label[0][slower][0] + 0.1
    still = next(label for label in by_label[0] if label.startswith("tda 0.5"))
    assert abs(by_label[1][still][0] - by_label[0][still][0]) < 0.02
    assert (by_label[0][still], by_label[1][still]) not in moved, "what did not move has no arrow"
    assert {str(arrow.get_gid()).split("-")[0] for arrow in arrows} == {"stop1"}, "the oldest has nothing before it"


def test_a_dirty_tree_is_nothing_to_come_from(evidence: Evidence) -> None:
    stops = (Stop(A, False), Stop(B, False), Stop(B, True), Stop(C, False))
    journey = FrontierHistory(evidence.blocks[0], VIEWS[0], stops)
    assert [journey.before(place) for place in range(4)] == [None, 0, 0, 1]


def test_frontier_has_a_part_per_machine_and_shows_the_newest(pages: dict[str, Page]) -> None:
    parts = re.findall(r'<section class="frontier".*?</section>', pages["frontier.html"].source, re.DOTALL)
    labels = ("Desk CPU, 2 cores, torch 2.13", "Desk CPU, 2 cores, torch 2.14", "Server GPU, 16 cores, torch 2.13")
    assert sorted(label for part in parts for label in labels if label in part) == sorted(labels)
    for part in parts:
        layers = re.findall(r'<g id="[^"]*-stop(\d+)-\d+" data-stop="(\d+)"( hidden)?', part)
        last = max(int(number) for number, _, _ in layers)
        assert last >= 1
        assert all(number == named and (int(number) == last) == (not hidden) for number, named, hidden in layers)


def test_frontier_says_how_each_case_moved(evidence: Evidence) -> None:
    block = block_of(evidence, NEWER, "ref:swiglu")
    (sheet,) = frontier_module.frontier_page(evidence)
    (part,) = [
        one for one in sheet.values["parts"] if (one["machine"], one["title"]) == (block.machine_label, block.title)
    ]
    rows = {row["facts"].label: row for row in part["stops"][1]["rows"]}
    (ratio, _), _, (delta, change), _ = rows["tda 0.5 on ref:swiglu"]["cells"]
    assert change.startswith("+0.050")
    assert delta.startswith("+0.")
    assert ratio.startswith("0.7")
    assert [text for text, _ in rows["dense on ref:swiglu"]["cells"]][::2] == ["1", "0"]


# Over time.


def trend_of(evidence: Evidence, machine: Machine, model: str) -> Any:
    wanted = block_of(evidence, machine, model)
    return next(trend for trend in trends(evidence) if wanted in trend.blocks)


def test_software_of_one_machine_is_one_trend_with_a_break(evidence: Evidence) -> None:
    trend = trend_of(evidence, CPU, "shape:25m")
    assert [block.machine for block in trend.blocks] == [CPU.fingerprint, NEWER.fingerprint]
    assert [slot.commit.hash for slot in trend.slots] == [A, BROKEN, B, B, C, D], "on both sides of the break"
    assert trend.breaks == [(2.5, "torch 2.13 → 2.14")]
    assert trend_of(evidence, GPU, "shape:25m").breaks == []


def test_no_line_crosses_a_break_or_a_failed_commit(evidence: Evidence) -> None:
    trend = trend_of(evidence, CPU, "shape:25m")
    with matplotlib.rc_context(STYLE):
        figure = over_time_module.draw(trend, "decode_ms")
    for axes in figure.axes:
        lines = [line for line in axes.lines if line.get_marker() == "None" and len(line.get_xdata()) > 1
                 and line.get_transform() == axes.transData]  # fmt: skip
        for line in lines:
            xs, ys = (np.asarray(data, dtype=float) for data in (line.get_xdata(), line.get_ydata()))
            assert max(xs) < 2.5 or min(xs[np.isfinite(ys)]) > 2.5
            assert np.isnan(ys[xs == 1]).all()


def test_findings_stand_at_their_commit_in_the_panels_of_their_cases(evidence: Evidence) -> None:
    trend = trend_of(evidence, CPU, "shape:25m")
    slower, fixed = FINDINGS[0], ALARMS[0].finding
    facts = {one.label: one for block in trend.blocks for one in block.cases.values()}
    assert trend.findings(facts["griffin 0.5 on shape:25m"], "decode_ms") == [slower]
    assert trend.findings(facts["griffin 0.5 on shape:25m"], RATIO) == [slower]
    assert trend.findings(facts["griffin 0.5 on shape:25m"], "peak_memory_bytes") == [fixed]
    assert trend.findings(facts["tda 0.5 on shape:25m"], "decode_ms") == []
    assert trend.findings(facts["dense on shape:25m"], "prefill_ms") == [FINDINGS[3]]
    with matplotlib.rc_context(STYLE):
        axes = over_time_module.draw(trend, "decode_ms").axes[1]
    marks = {(float(line.get_xdata()[0]), line.get_marker(), line.get_markerfacecolor()) for line in axes.lines
             if line.get_marker() in "^v"}  # fmt: skip
    assert marks == {(2.0, "^", "white")}, "an accepted alarm is hollow, at its own machine's slot"
    assert "+25%" in {text.get_text() for text in axes.texts}


def test_what_moves_dense_too_is_no_change_of_the_ratio() -> None:
    everything = a_finding(CPU, A, B, scope="everything")
    assert shows_in(everything, "decode_ms")
    assert not shows_in(everything, RATIO)


def test_kept_sets_step_where_they_change(evidence: Evidence) -> None:
    trend = trend_of(evidence, NEWER, "ref:swiglu")
    newer = block_of(evidence, NEWER, "ref:swiglu")
    assert [dot.text for dot in trend.dots(newer, series(newer, "tda 0.5 on ref:swiglu"), SETS)] == [
        "set 1",
        "set 2",
        "set 2",
    ]
    assert {dot.text for dot in trend.dots(newer, series(newer, "griffin 0.5 on ref:swiglu"), SETS)} == {"set 1"}


# Pages.


def test_every_link_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    ids = {name: page.values("id") for name, page in pages.items()}
    for name, page in pages.items():
        assert len(ids[name]) == len(set(ids[name])), name
        for link in page.values("href") + page.values("src") + page.values("xlink:href"):
            target, _, anchor = link.partition("#")
            where = os.path.normpath(Path(name).parent / target) if target else name
            if where.startswith("../"):  # asv's own page
                assert where == "../index.html"
                continue
            assert target == "data:," or (site / where).is_file(), f"{name}: {link}"
            assert not anchor or anchor in ids[where], f"{name}: {link}"


def test_hostile_text_is_inert(pages: dict[str, Page]) -> None:
    for page in pages.values():
        assert "<script>alert" not in page.source
        assert "<b>Syntax" not in page.source
        assert all("src" in held for tag, held in page.tags if tag == "script")
    showing = [name for name, page in pages.items() if EVIL in page.text]
    assert {"alarms.html", "commits.html", "commit/01c0ffee/index.html", "commit/03c0ffee/index.html", "profiles.html",
            "profile/02c0ffee/index.html", "profile/02c0ffee/since-00c0ffee.html"} <= set(showing)  # fmt: skip


def test_pages_ask_nothing_of_a_network(pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        links = page.values("href") + page.values("src") + page.values("xlink:href")
        assert not [link for link in links if "//" in link], name
        assert "default-src 'none'" in page.source


def test_a_dirty_tree_is_marked_on_every_page_and_figure_it_touches(pages: dict[str, Page]) -> None:
    parts = re.findall(r'<section class="frontier".*?</section>', pages["frontier.html"].source, re.DOTALL)
    (touched,) = [part for part in parts if "DIRTY TREE" in part]
    assert "Server GPU" in touched
    figures = re.findall(r'<figure class="single variant.*?</figure>', touched, re.DOTALL)
    assert [figure.count("DIRTY TREE") for figure in figures] == [1] * len(VIEWS)
    small = re.findall(r"<figure data-open.*?</figure>", touched, re.DOTALL)
    assert [("DIRTY TREE" in figure, "03c0ffee" in figure) for figure in small] == [(False, False)] * 2 + [(True, True)]
    over_time = pages["over_time.html"].source
    gpu = next(part for part in over_time.split('<section class="machine">') if "Server GPU" in part)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", gpu, re.DOTALL)
    assert len(captions) > 10
    assert all("dirty tree (03c0ffee)" in caption for caption in captions)
    assert over_time.count("dirty tree (") == len(captions)
    dirty = {name for name, page in pages.items() if "dirty tree" in page.text}
    assert dirty == {"frontier.html", "over_time.html", "commits.html", "commit/03c0ffee/index.html"}


def test_dirty_dots_are_ringed_and_joined_with_nothing(evidence: Evidence) -> None:
    trend = trend_of(evidence, GPU, "shape:25m")
    with matplotlib.rc_context(STYLE):
        axes = over_time_module.draw(trend, "decode_ms").axes[0]
    place = trend.places[GPU.fingerprint, C]
    line = next(line for line in axes.lines if line.get_marker() == "None" and len(line.get_xdata()) > 2)
    assert place not in line.get_xdata()
    ringed = [held for held in axes.collections if len(held.get_offsets()) and held.get_edgecolors().size
              and tuple(np.round(held.get_edgecolors()[0][:3], 2)) == (0.79, 0.19, 0.17)]  # fmt: skip
    assert [held.get_offsets()[0][0] for held in ringed] == [place]


def test_alarms_are_sorted_by_what_they_want(pages: dict[str, Page]) -> None:
    page = pages["alarms.html"]
    assert "2 alarms to look at: 1 open and 1 acknowledged." in page.text
    states = re.findall(r'<article class="finding (\w+)"', page.source)
    assert states == ["open", "acknowledged", "warning", "accepted", "fixed"]
    for words in ("+24% [+22, +26]", "what remains +12%", "after 00c0ffee , up to and including 02c0ffee",
                  "decode of the named cases, a step",
                  "+0.050 [+0.049, +0.051] nats per token", "tda compare 00c0ffeec0 02c0ffeec0 --method griffin",
                  "being looked at", "fixed by 03c0ffee", "A/A noise floor of this machine 2.0%"):  # fmt: skip
        assert words in page.text, words


def test_last_night_is_told_per_machine(pages: dict[str, Page]) -> None:
    page = pages["alarms.html"]
    nights = re.findall(r'<article class="night">.*?</article>', page.source, re.DOTALL)
    assert len(nights) == 2, "the older night of the same desk is not its last"
    assert "Server GPU" in nights[0]
    assert "it has not finished" in nights[0]
    assert "did not finish" not in nights[1]
    assert "2026-01-15 01:00 UTC" in nights[1]
    assert "build failed" in nights[0]
    assert "&lt;b&gt;SyntaxError&lt;/b&gt;" in nights[0]
    assert 'data-late-hours="36"' in nights[0]


def test_commit_pages_tell_status_differences_and_neighbours(pages: dict[str, Page]) -> None:
    broken = pages["commit/01c0ffee/index.html"]
    for words in ("build failed", "Build failed", "in line 3", "This commit was not measured"):
        assert words in broken.text
    neighbours = [held["href"] for tag, held in broken.tags if held.get("rel") in ("prev", "next")]
    assert neighbours == ["../../commit/00c0ffee/index.html", "../../commit/02c0ffee/index.html"]
    second = pages["commit/02c0ffee/index.html"].text
    assert "v1" in second
    assert "change since 00c0ffee" in second
    assert re.search(r"griffin 0\.5 0\.\d+ \+2[2-8]%", second)
    third = pages["commit/03c0ffee/index.html"].text
    for words in (
        "signal 9",
        "12 of 12 differ",
        "as before",
        "Changes in a range with this commit",
        "Prefill may be slower.",
    ):
        assert words in third
    assert "Changes in a range" not in second, "the last good commit is not in the range"


def test_methods_shows_the_newest_clean_commit_of_each_machine(pages: dict[str, Page]) -> None:
    page = pages["methods.html"]
    shown = re.findall(
        r'<section>\s*<h2>([^<]*)<small>([^<]*)</small></h2>\s*<p><a class="hash"[^>]*>(\w+)<', page.source
    )
    found = {(machine.strip(), setting.split(" ")[0]): commit for machine, setting, commit in shown}
    assert len(found) == 6
    assert found["Desk CPU, 2 cores, torch 2.14", "shape:25m"] == "04c0ffee"
    assert found["Server GPU, 16 cores, torch 2.13", "ref:swiglu"] == "02c0ffee", "03 is dirty"
    assert "no NVIDIA driver" not in page.source, "a metric that nobody has is no column"


def test_an_empty_history_says_so(tmp_path: Path) -> None:
    evidence = Evidence.load(tmp_path / "none")
    written = write_site(evidence, tmp_path / "html" / "tda")
    assert len(written) == len(PAGES)
    for path in written:
        assert "yet" in Page(path.read_text()).text, path
    assert "no history at" in (tmp_path / "html" / "tda" / "alarms.html").read_text()


def test_one_commit_alone_has_no_course(tmp_path: Path) -> None:
    folder = tmp_path / "bench"
    folder.mkdir()
    append(folder, [a_record(a_case("m", "dense", 0.0), A, 0, machine=CPU, seed=1)])
    write_site(Evidence.load(tmp_path), tmp_path / "html")
    page = Page((tmp_path / "html" / "over_time.html").read_text())
    assert "Measured at one commit only" in page.text
    assert "Desk CPU, 2 cores, torch 2.13: m · cpu, float32" in page.text
    assert "<svg" not in page.source


@pytest.mark.parametrize(
    ("value", "unit", "text"), [(1.3e-9, "nats/token", "<0.000001"), (0.0, "nats/token", "0"), (3.1e8, "B", "310")]
)
def test_levels_in_words(value: float, unit: str, text: str) -> None:
    assert level_text(Level(Estimate(value, None, None, 1), unit)) == text


def test_tasks_and_likelihoods_are_paired_by_document() -> None:
    assert [is_quality(name) for name in ("task_recall_accuracy", "perplexity", "nll_nats", DELTA)] == [True] * 4
    assert [is_quality(name) for name in ("decode_ms", RATIO, "made_up", "selection_digest")] == [False] * 4


def test_changes_in_words() -> None:
    assert change_text(Estimate(0.1, 0.08, 0.123, 5), relative=True) == "+10% [+8.0, +12]"
    assert change_text(Estimate(0.0, 0.0, 0.0, 5), relative=True) == "same"
    assert change_text(Estimate(-0.02, None, None, 0), relative=False) == "-0.020"
    assert change_text(None, relative=True) == "–"


def test_failed_cases_are_shown_with_their_reason(tmp_path: Path) -> None:
    folder = tmp_path / "bench"
    folder.mkdir()
    good = a_record(a_case("m", "dense", 0.0), A, 0, machine=CPU, seed=1)
    case = a_case("m", "tda", 0.5)
    bad = good.model_copy(update={"case": case, "status": "oom", "reason": f"too large {EVIL}", "measurements": {}})
    append(folder, [good, bad])
    write_site(Evidence.load(tmp_path), tmp_path / "html")
    assert "too large <script>" in Page((tmp_path / "html" / "commit/00c0ffee/index.html").read_text()).text
    methods = (tmp_path / "html" / "methods.html").read_text()
    assert '<tr class="failed">' in methods
    assert "oom: too large &lt;script&gt;" in methods


def test_one_file_is_one_page() -> None:
    files = {path.stem for path in Path(frontier_module.__file__).parent.glob("*.py")} - {"__init__"}
    assert {entry.name for entry in PAGES.entries()} == files
    assert [entry.title for entry in PAGES.entries()] == [
        "Alarms",
        "Frontier",
        "Over time",
        "Methods",
        "Profiles",
        "Commits",
    ]


# Profiles.


def test_commits_and_pairs_have_a_page(evidence: Evidence, pages: dict[str, Page]) -> None:
    made = sorted(name for name in pages if name.startswith("profile/"))
    assert made == [
        *("profile/00c0ffee/index.html", "profile/02c0ffee/index.html"),
        *("profile/02c0ffee/since-00c0ffee.html", "profile/04c0ffee/index.html"),
    ]
    listed = pages["profiles.html"]
    assert re.findall(r'<a class="hash" href="profile/(\w+)/', listed.source) == ["04c0ffee", "02c0ffee", "00c0ffee"]
    for words in ("since 00c0ffee alarm", "dense on shape:25m, griffin 0.5 on shape:25m", "too old <script>"):
        assert words in listed.text, words
    assert "No older profile can be compared" in pages["profile/04c0ffee/index.html"].text, "it ran on newer software"
    assert "What changed since 00c0ffee" in pages["profile/02c0ffee/index.html"].text
    assert "What changed from here to 02c0ffee" in pages["profile/00c0ffee/index.html"].text
    assert "Its profile" in pages["commit/02c0ffee/index.html"].text
    assert "Its profile" not in pages["commit/03c0ffee/index.html"].text


def test_a_profile_says_where_a_step_spends_its_time(pages: dict[str, Page]) -> None:
    page = pages["profile/00c0ffee/index.html"]
    for words in ("Desk CPU, 2 cores, torch 2.13", "shape:25m · cpu, bfloat16, batch 1, 64 prompt, 16 new tokens",
                  "instead of", "is in FFN projections", "aten::mm", "kernels.csv",
                  "no viewer: speedscope could not be had"):  # fmt: skip
        assert words in page.text, words
    heads = re.findall(r"<summary><h3>([^<]+)</h3>", page.source)
    assert heads == ["dense", "griffin 0.5", "tda 0.5"]
    old = pages["profile/04c0ffee/index.html"]
    assert "no trace is kept here: old ones are deleted" in old.text
    assert not [link for link in old.values("href") if link.endswith(".gz")]


def test_a_difference_names_what_appeared_first(evidence: Evidence, pages: dict[str, Page]) -> None:
    page = pages["profile/02c0ffee/since-00c0ffee.html"]
    sections = re.findall(r'<section class="compared".*?</section>', page.source, re.DOTALL)
    assert [re.search(r"<h2>([^<]+?) <", part)[1] for part in sections] == [  # type: ignore[index]
        "griffin 0.5 on shape:25m",  # what the alarm is about comes first
        "dense on shape:25m",
        "tda 0.5 on shape:25m",
    ]
    assert "2 and 2 processes in turn" in sections[0]
    first = Page(sections[0]).text
    assert re.search(r"appeared <script>alert\(1\)</script>.* in ffn: (9[5-9]|10[0-5])% of it", first)
    assert "<svg" in sections[0]
    assert "<svg" not in sections[1], "nothing of dense changed"
    assert "nothing beyond the noise" in sections[1]
    assert "Griffin is slower." in page.text
    assert "did not run in turn" not in page.text


def test_alarms_lead_to_what_explains_them(pages: dict[str, Page]) -> None:
    cards = re.findall(r'<article class="finding.*?</article>', pages["alarms.html"].source, re.DOTALL)
    led = {card for card in cards if "What changed in its kernels" in card}
    assert len(led) == 2, "the desk's alarms of time and memory; not the GPU's, nor the one of quality"
    slower = next(card for card in led if "Griffin is slower" in card)
    assert "in ffn appeared, which is" in slower
    assert 'href="profile/02c0ffee/since-00c0ffee.html"' in slower


def test_profiles_of_two_requests_are_told_apart(tmp_path: Path) -> None:
    for batch in (1, 4):
        profiles.session(tmp_path / "profiles", {A: {}, B: {}}, name=f"cases-{batch}", machine=CPU, methods=("tda",),
                         batch=batch)  # fmt: skip
    write_site(Evidence.load(tmp_path, order=HASHES), tmp_path / "html")
    names = ["tda 0.5 (batch 1) on shape:25m", "tda 0.5 (batch 4) on shape:25m"]
    difference = (tmp_path / "html" / "profile" / "02c0ffee" / "since-00c0ffee.html").read_text()
    assert re.findall(r"<h2>([^<]+?) <small>", difference) == names
    assert ", ".join(names) in (tmp_path / "html" / "profiles.html").read_text()


def test_commits_that_did_not_run_in_turn_are_compared_with_a_warning(tmp_path: Path) -> None:
    for number, commit in enumerate((A, B)):
        profiles.session(tmp_path / "profiles", {commit: {}}, name=f"cases-{number}", machine=CPU, methods=("dense",))
    write_site(Evidence.load(tmp_path, order=HASHES), tmp_path / "html")
    page = Page((tmp_path / "html" / "profile" / "02c0ffee" / "since-00c0ffee.html").read_text())
    assert "These did not run in turn" in page.text


@pytest.mark.slow
def test_old_profiles_have_no_page_unless_an_alarm_leads_there(
    evidence: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiled_module, "NEWEST", 1)
    assert [commit.hash for commit in profiled_module.shown(evidence)] == [A, B, D]
    quiet = replace(evidence, alarms=(), nights=())
    assert [commit.hash for commit in profiled_module.shown(quiet)] == [D]
    assert profiled_module.pairs(quiet) == []
    write_site(quiet, tmp_path)
    assert sorted(path.parent.name for path in tmp_path.glob("profile/*/index.html")) == ["04c0ffee"]


@pytest.mark.slow
def test_tables_traces_and_viewers_are_published(evidence: Evidence, tmp_path: Path) -> None:
    write_site(replace(evidence, speedscope=profiles.viewer_package(tmp_path)), tmp_path / "html")
    kept = next(one for one in evidence.profiles.by_commit[B] if one.profile.case.method == "griffin")
    home = tmp_path / "html" / "profile" / "02c0ffee"
    (folder,) = {path.parent for path in home.rglob("trace.html") if path.parent.name == kept.folder.name
                 and path.parent.parent.name == kept.folder.parent.name}  # fmt: skip
    for name in ("kernels.csv", "modules.csv", "trace.pt.trace.json.gz"):
        assert (folder / name).read_bytes() == (kept.folder / name).read_bytes()
    assert "<title>griffin 0.5 on shape:25m, 02c0ffee</title>" in (folder / "trace.html").read_text()
    page = Page((home / "index.html").read_text())
    links = [link for link in page.values("href") if link.endswith("trace.html")]
    assert len(links) == 3
    assert all((home / link).resolve().is_file() for link in links)


def test_a_damaged_trace_is_said(tmp_path: Path) -> None:
    profiles.session(tmp_path / "profiles", {A: {}}, machine=CPU, methods=("dense",), processes=1)
    for trace in tmp_path.rglob("*.gz"):
        trace.write_bytes(b"broken")
    write_site(replace(Evidence.load(tmp_path), speedscope=profiles.viewer_package(tmp_path)), tmp_path / "html")
    (page,) = (tmp_path / "html").glob("profile/*/index.html")
    assert "is no gzipped Chrome trace" in Page(page.read_text()).text


def test_commits_beside_all_nights_are_looked_up(tmp_path: Path) -> None:
    repository = FakeRepository(tmp_path / "repository")
    commit = repository.commit(f"Change {EVIL}")
    gone = "f" * 40
    profiles.session(tmp_path / "store", {commit: {}, gone: {}}, machine=CPU, methods=("dense",), processes=1)
    evidence = Evidence.load(tmp_path / "none", repo=repository.folder, stores=[tmp_path / "store"])
    known = evidence.by_hash[commit]
    assert (known.subject, known.status, bool(known.day)) == (f"Change {EVIL}", "profiled", True)
    assert (evidence.by_hash[gone].subject, evidence.by_hash[gone].day) == ("", "")
    write_site(evidence, tmp_path / "html")


# Publishing.

CDN = (
    '<script src="https://one.example/jquery-3.3.1.min.js" integrity="sha256-x=" crossorigin="anonymous" '
    'onerror="js_load_failure()"></script>\n<link rel="stylesheet" href="https://two.example/a/bootstrap.min.css" '
    'integrity="sha256-y=" crossorigin="anonymous">\n<script src="asv.js"></script>'
    '<a href="https://asv.example/">asv</a>'
)


def test_libraries_come_from_beside_the_page() -> None:
    html = publisher.offline(CDN, ["js/jquery.min.js", "css/bootstrap.min.css"])
    assert '<script src="vendor/js/jquery.min.js" onerror="js_load_failure()"></script>' in html
    assert '<link rel="stylesheet" href="vendor/css/bootstrap.min.css">' in html
    assert '<a href="https://asv.example/">' in html, "a link is no request"


def test_a_library_without_a_copy_is_an_error() -> None:
    with pytest.raises(UserError, match=r"https://two\.example/a/bootstrap\.min\.css"):
        publisher.offline(CDN, ["js/jquery.min.js"])


def test_our_pages_stand_in_the_navigation_of_asv() -> None:
    html = publisher.linked('<head></head><nav><ul>\n  <li id="nav-li-graphdisplay"></li></ul></nav>')
    assert re.findall(r'href="(tda/\w+\.html)"', html) == [f"tda/{entry.name}.html" for entry in PAGES.entries()]
    with pytest.raises(UserError, match="navigation"):
        publisher.linked("<head></head>")


def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes = b"1") -> Path:
    """A cache with one tarball that is as pinned."""
    cache = tmp_path / "tda" / "npm"
    cache.mkdir(parents=True)
    (tmp_path / "x.js").write_bytes(content)
    with tarfile.open(cache / "lib-1.0.tgz", "w:gz") as archive:
        archive.add(tmp_path / "x.js", "package/dist/x.js")
    digest = base64.b64encode(hashlib.sha512((cache / "lib-1.0.tgz").read_bytes()).digest()).decode()
    package = {"name": "lib", "version": "1.0", "integrity": f"sha512-{digest}", "files": {"dist/x.js": "js/x.js"}}
    (tmp_path / "pins.json").write_text(json.dumps({"packages": [package]}))
    monkeypatch.setattr(asv_libraries, "PINS", tmp_path / "pins.json")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    return cache


def test_a_kept_package_needs_no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned(tmp_path, monkeypatch)
    assert asv_libraries.copy_libraries(tmp_path / "out") == ["js/x.js"]
    assert (tmp_path / "out" / "js" / "x.js").read_bytes() == b"1"


def test_other_contents_than_pinned_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = pinned(tmp_path, monkeypatch)
    (cache / "lib-1.0.tgz").write_bytes((cache / "lib-1.0.tgz").read_bytes() + b"0")
    with pytest.raises(PackageError, match=r"not what is pinned for lib@1\.0"):
        asv_libraries.copy_libraries(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_npm_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = pinned(tmp_path, monkeypatch)
    (cache / "lib-1.0.tgz").unlink()
    with pytest.raises(PackageError, match=r"npm .*lib@1\.0.*tarball .*lib-1\.0\.tgz"):
        asv_libraries.copy_libraries(tmp_path / "out")


def test_npm_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = pinned(tmp_path, monkeypatch)
    (cache / "lib-1.0.tgz").unlink()
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'no such package' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(PackageError, match=r"lib@1\.0: no such package"):
        asv_libraries.copy_libraries(tmp_path / "out")


def test_every_pin_is_exact() -> None:
    for package in asv_libraries.packages():
        assert re.fullmatch(r"\d+\.\d+\.\d+", package.version)
        assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", package.integrity)
        assert package.files

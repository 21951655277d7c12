"""The report: numbers, honesty, escaping, files. Records are made by code; no model runs here."""

import csv
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from statistics import geometric_mean as gmean
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from tda.bench.outcome import UNDONE
from tda.cases import Case, Inputs
from tda.derived import DERIVED, NO_DENSE, Missing, derive, unlike_kernels
from tda.records import Commit, Flag, Machine, Measurement, Record, merge
from tda.results import append
from tda.statistics import Estimate, bootstrap, paired_difference, speedup
from tda.web.report import Report, build_report, summary_rows, warning_lines
from tda.web.report.comparison import ComparedCase
from tda.web.report.curves import draw_curves, over_sparsity
from tda.web.report.gather import gather
from tda.web.report.sections import SECTIONS
from tda.web.report.setting import settings
from tda.web.report.table import COLUMNS
from tda.web.report.tradeoff import tradeoffs
from tda.web.theme.figures import case_axes, handle, label_axes, legend, settle
from tda.web.theme.formatting import interval, number, size
from tda.web.theme.style import look

MACHINE = Machine(
    cpu="Test CPU",
    cores=2,
    threads=2,
    memory_bytes=24_000_000_000,
    cache_bytes=32_000_000,
    python="3.12",
    torch="2.12",
    transformers="5.10",
    tda="0.1.0",
    system="Linux",
)
COMMIT = Commit(hash="0123456789abcdef", dirty=False)
LIMITS = {"griffin": 0.60, "tda": 0.60, "cats": 0.45, "tt": 0.22}
HARM = {"oracle": 0.004, "cats": 0.02, "tt": 0.006, "griffin": 0.22, "tda": 0.19, "static_mean": 0.25, "magnitude": 0.5}
EVIL = "<script>alert(1)</script>&$x^2$\"'"
TIMES = ("prefill_ms", "selection_ms", "ttft_ms", "decode_ms", "generation_ms")


def a_case(model: str, method: str, sparsity: float | None, **changes: Any) -> Case:
    return Case(**{
        "model": model,
        "method": method,
        "sparsity": sparsity,
        "prompt_tokens": 128,
        "new_tokens": 17,
        "options": {"rows": "per_row"} if method in ("griffin", "tda") else {},
        **changes,
    })  # fmt: skip


def a_line(case: Case, number: int, measurements: dict[str, Measurement], **changes: Any) -> Record:
    sparsity = case.sparsity or 0.0
    spread = np.linspace(-0.08, 0.08, 6) * {"tda": 1.0, "tt": -0.6}.get(case.method, 0.0)
    return Record(**{
        "case": case,
        "round": number,
        "commit": COMMIT,
        "machine": MACHINE,
        "status": "ok",
        "measurements": measurements,
        "achieved_sparsity": tuple(np.clip(sparsity + spread, 0, 0.99).tolist()) if sparsity else (0.0,) * 6,
        "execution": "masked" if number == 0 else ("dense" if case.method == "dense" else "compact"),
        "backend": "torch",
        "conditions": {"threads": 2.0, "load_average": 0.1 * number},
        "started": f"2026-01-01T00:00:{number:02d}+00:00",
        "seconds": 1.0,
        **changes,
    })  # fmt: skip


def scored(case: Case, documents: int = 12, **changes: Any) -> Record:
    """Round 0 of a trained model."""
    noise = np.random.default_rng([len(case.method), int(100 * (case.sparsity or 0))])
    harm = HARM.get(case.method, 0.9) * 8 * (case.sparsity or 0.0) ** 3 * (1 + 0.3 * noise.normal(size=documents))
    if case.method == "dense":
        harm = np.zeros(documents)
    if case.control == "cross_domain":
        harm = harm * 1.6
    nll = 1.2 + np.linspace(-0.5, 0.5, documents) + harm
    values = {
        "nll_nats": nll,
        "perplexity": np.exp(nll),
        "kl_to_dense_nats": np.abs(harm),
        "top1_disagreement": np.clip(np.abs(harm) * 0.4, 0, 1),
    }
    measured = {name: Measurement.of(name, samples.tolist(), range(documents)) for name, samples in values.items()}
    reason = "not timed: only its quality is measured here"
    if case.method == "oracle":
        reason = "no kernel skips what it leaves out: masked execution has no speed"
    measured |= {name: Measurement.absent(name, reason) for name in TIMES}
    return a_line(case, 0, measured, **changes)


def again(case: Case) -> Case:
    """Its A/A control."""
    return case.model_copy(update={"control": "a_a"})


def timed(case: Case, number: int, *, slow: float = 1.0, **changes: Any) -> Record:
    """One timed round."""
    noise = np.random.default_rng([number, len(case.method), int(100 * (case.sparsity or 0)), bool(case.control) * 2])
    saved = LIMITS.get(case.method, 0.0) * (case.sparsity or 0.0)
    dense_ms, weights = 40.0 * slow, 600e6
    step = dense_ms * (1 - 0.8 * saved) * (1 + 0.02 * noise.normal()) * (1 + 0.05 * noise.exponential(size=16))
    prefill = slow * 300.0 * (1 + 0.01 * noise.normal())
    prompt_wise = case.method in ("griffin", "tda")
    select = 60.0 * slow if prompt_wise else 0.0
    values: dict[str, Sequence[float]] = {
        "prefill_ms": [prefill, prefill * 1.01],
        "ttft_ms": [prefill + 0.1, prefill * 1.01 + 0.1],
        "statistic_ms": [slow * 2.0] if prompt_wise else (),
        "selection_ms": [select] if prompt_wise else (),
        "decode_ms": step.tolist(),
        "generation_ms": [prefill + select + float(step.sum())],
        "stream_gb_per_s": [20.0],
        "weight_bytes_per_token": [weights * (1 - saved)],
        "bytes_per_token": [weights * (1 - saved)],
    }
    measured = {
        name: Measurement.of(name, samples) if samples else Measurement.absent(name, UNDONE[name])
        for name, samples in values.items()
    }
    if number == 1:
        measured["peak_memory_bytes"] = Measurement.of("peak_memory_bytes", [1.2e9 - 2e8 * saved])
    return a_line(case, number, measured, **changes)


def quality_lines(
    model: str = "ref:swiglu", sparsities: Iterable[float] = (0.25, 0.5, 0.75), methods: Iterable[str] = tuple(HARM)
) -> Iterator[Record]:
    yield scored(a_case(model, "dense", 0.0))
    for sparsity in sparsities:
        for method in methods:
            yield scored(a_case(model, method, sparsity))
        yield scored(a_case(model, "griffin", sparsity, control="cross_domain"))


def speed_lines(
    model: str = "shape:0.3b",
    sparsities: Iterable[float] = (0.25, 0.5, 0.75),
    rounds: int = 7,
    profile: str | None = "ref:swiglu",
    methods: Iterable[str] = tuple(LIMITS),
    **changes: Any,
) -> Iterator[Record]:
    dense = a_case(model, "dense", 0.0)
    for round_number in range(1, rounds + 1):
        yield timed(dense, round_number, **changes)
        yield timed(again(dense), round_number, **changes)
        for sparsity in sparsities:
            for method in methods:
                own = profile if method != "griffin" else None
                yield timed(a_case(model, method, sparsity, layer_sparsity_from=own), round_number, **changes)


def two_models() -> list[Record]:
    return [*quality_lines(), *speed_lines()]


def one_model(model: str = "m") -> list[Record]:
    methods = ("griffin", "cats")
    quality = list(quality_lines(model, (0.5,), (*methods, "oracle")))
    return [*quality, *speed_lines(model, (0.5,), profile=None, methods=methods)]


def dense_only() -> list[Record]:
    """Enough for a page, without a figure."""
    return [scored(a_case("m", "dense", 0.0))]


def write(folder: Path, records: Iterable[Record]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    append(folder, records)
    return folder


def report_of(tmp_path: Path, records: Iterable[Record]) -> tuple[Report, str]:
    report = build_report([write(tmp_path / "in", records)], tmp_path / "out")
    return report, report.index.read_text()


def case_of(records: Iterable[Record], method: str, sparsity: float | None = None) -> ComparedCase:
    cases = [case for setting in settings(records) for case in setting.cases]
    return next(case for case in cases if case.method == method and sparsity in (None, case.record.case.sparsity))


def texts(svg: Path) -> str:
    return " ".join(text for node in ET.parse(svg).iter() if (text := (node.text or "").strip()))


class Tags(HTMLParser):
    """Every tag with its attributes, ids, and the text of the table's cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def text(self) -> str:
        """Everything that is shown or told."""
        return " ".join([*self.words, *self.values("title")])

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


@pytest.fixture(scope="module")
def two_model_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    return build_report([write(folder / "in", two_models())], folder / "out").index.parent


@pytest.fixture(scope="module")
def one_model_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    return build_report([write(folder / "in", one_model())], folder / "out").index.parent


# Numbers.


def test_table_equals_an_independent_computation(one_model_report: Path) -> None:
    table = pd.read_csv(one_model_report / "table.csv")
    (row,) = table[table.method == "griffin"].itertuples()
    lines = [record for record in one_model() if record.case.control is None]
    griffin = [record for record in lines if record.case.method == "griffin"]
    dense = [record for record in lines if record.case.method == "dense"]
    steps = np.array([record.samples("decode_ms") for record in griffin if record.round])
    dense_steps = np.array([record.samples("decode_ms") for record in dense if record.round])
    assert row.decode_ms_p50 == pytest.approx(np.median(steps))
    assert row.decode_ms_p99 == pytest.approx(np.percentile(steps, 99))
    assert row.speedup == pytest.approx(gmean(np.median(dense_steps, 1) / np.median(steps, 1)))
    nll, dense_nll = (np.array(part[0].samples("nll_nats")) for part in (griffin, dense))
    assert row.delta_nll_nats == pytest.approx(np.mean(nll - dense_nll))
    assert row.perplexity == pytest.approx(np.exp(nll.mean()))
    assert row.kl_to_dense_nats == pytest.approx(np.mean(griffin[0].samples("kl_to_dense_nats")))
    assert row.roofline_speedup == pytest.approx(1 / (1 - 0.3))
    assert row.weight_bytes_per_token == pytest.approx(600e6 * 0.7)
    assert row.peak_memory_bytes == pytest.approx(1.2e9 - 6e7)
    assert (row.rounds, row.documents) == (7, 12)


def test_intervals_are_those_of_the_statistics_module(one_model_report: Path) -> None:
    merged = {record.case.method: record for record in merge(one_model()) if record.case.control is None}
    griffin, dense = (merged[name] for name in ("griffin", "dense"))
    ratio = speedup(griffin, dense)
    delta = paired_difference(griffin.measurements["nll_nats"], dense.measurements["nll_nats"])
    table = pd.read_csv(one_model_report / "table.csv")
    (row,) = table[table.method == "griffin"].itertuples()
    assert ratio is not None
    assert delta is not None
    assert (row.speedup_low, row.speedup_high) == pytest.approx((ratio.low, ratio.high))
    assert (row.delta_nll_nats_low, row.delta_nll_nats_high) == pytest.approx((delta.low, delta.high))


def test_perplexity_is_over_documents_that_all_cases_share() -> None:
    records = [scored(a_case("m", "dense", 0.0), 20), scored(a_case("m", "griffin", 0.5), 12)]
    dense = case_of(records, "dense")
    assert dense.perplexity == pytest.approx(np.exp(np.mean(dense.record.samples("nll_nats")[:12])))


def test_a_case_shows_what_follows_from_its_samples() -> None:
    lines = list(speed_lines(sparsities=(0.5,)))
    griffin, cats, dense = (case_of(lines, name) for name in ("griffin", "cats", "dense"))
    for name in DERIVED:
        assert griffin.estimate(name) == derive(name, griffin.record, dense.record)
    assert cats.derived("break_even_tokens") != Missing("selection_ms was not recorded")
    assert dense.derived("break_even_tokens") == Missing("nothing is left out, so there is nothing to repay")
    assert case_of(lines[2:], "griffin").derived("speedup_efficiency") != Missing(
        "no dense run of this setting succeeded"
    )
    assert (
        case_of([line for line in lines if line.case.method != "dense"], "griffin").derived("speedup_efficiency")
        == NO_DENSE
    )


def test_a_step_that_saves_nothing_is_not_repaid(tmp_path: Path) -> None:
    slow = [timed(a_case("m", "griffin", 0.5), number, slow=2.0) for number in range(1, 8)]
    dense = [timed(a_case("m", "dense", 0.0), number) for number in range(1, 8)]
    report, html = report_of(tmp_path, [*dense, *slow])
    assert 'title="decode is not faster than dense here"' in html
    (figure,) = report.index.parent.glob("figures/*first-step*.svg")
    assert "not repaid" in texts(figure)


def test_own_dense_kernel_is_no_baseline_while_the_models_own_is_there() -> None:
    lines = [
        timed(a_case("m", "dense", 0.0, options={"dense_kernel": kernel}), number)
        for number in range(1, 6)
        for kernel in ("own", "torch")
    ]
    (setting,) = settings(lines)
    assert setting.baseline is not None
    assert setting.baseline.record.case.options == {"dense_kernel": "torch"}
    assert {case.label for case in setting.cases} == {"dense (dense_kernel=own)", "dense (dense_kernel=torch)"}


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (1234.5, "1,230"), (0.00123, "0.00123"), (9.996, "10.0"), (-0.5, "-0.500")]
)
def test_numbers_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert number(value) == text


def test_estimates_and_sizes_as_text() -> None:
    assert interval(Estimate(1.5, 1.25, 1.75, 7), unit="×") == "1.50× [1.25, 1.75]"
    assert interval(bootstrap([1.0, 2.0]), signed=True) == "+1.50"
    assert interval(Estimate(12.0, 3.0, math.inf, 7)) == "12.0 [3.00, ∞]"
    assert interval(Estimate(1.6, 1.5999, 1.6001, 7), unit="×") == "1.60×"
    assert [size(count) for count in (1.5e9, 144e6, 12.0)] == ["1.50 GB", "144 MB", "12.0 B"]


# Missing is not zero, and what skips nothing has no speed.


def test_missing_is_a_dash_with_its_reason(two_model_report: Path) -> None:
    html = (two_model_report / "index.html").read_text()
    assert re.search(r'<td class="number" title="not timed: only its quality is measured here">–</td>', html)
    table = pd.read_csv(two_model_report / "table.csv")
    assert table[table.model == "ref:swiglu"].decode_ms_p50.isna().all()
    assert table[table.model == "shape:0.3b"].delta_nll_nats.isna().all()


def test_masked_runs_and_the_oracle_have_no_speed() -> None:
    dense = [timed(a_case("m", "dense", 0.0), number) for number in (1, 2)]
    masked = [timed(a_case("m", "griffin", 0.5), number, execution="masked") for number in (1, 2)]
    asked = [timed(a_case("m", "tda", 0.5, execution="masked"), number) for number in (1, 2)]
    oracle = [timed(a_case("m", "oracle", 0.5), number) for number in (1, 2)]
    (setting,) = settings([*dense, *masked, *asked, *oracle])
    assert [case.method for case in setting.timed] == ["dense"]
    for row in summary_rows([*dense, *masked, *asked, *oracle]):
        assert (row["decode p50 (ms)"] == "–") == (row["method"] != "dense")
        assert (row["speed-up (×)"] == "–") == (row["method"] != "dense")


def test_oracle_and_controls_are_on_no_speed_axis(two_model_report: Path, one_model_report: Path) -> None:
    speed = [
        path
        for folder in (two_model_report, one_model_report)
        for path in (folder / "figures").glob("*.svg")
        if re.search(r"tradeoff-(joint|projection|latency|speedup|bytes)|latency-|first|saved|memory", path.name)
    ]
    assert len(speed) > 12
    for path in speed:
        assert not re.search("oracle|another kind|static_mean", texts(path)), path.name
    assert "oracle" in texts(two_model_report / "figures" / "tradeoff-1-1-tradeoff-quality.svg")


def test_failed_case_is_shown_with_its_reason(tmp_path: Path) -> None:
    failed = a_line(a_case("m", "griffin", 0.9), 1, {}, status="oom", reason="tried to allocate 3 GB")
    report, html = report_of(tmp_path, [*dense_only(), failed])
    row = pd.read_csv(report.index.parent / "table.csv").query("status != 'ok'").iloc[0]
    assert row.status == "oom: tried to allocate 3 GB"
    assert 'title="oom: tried to allocate 3 GB">–</td>' in html


def test_what_has_no_sparsity_says_why(tmp_path: Path) -> None:
    """int8 leaves nothing out; nobody asked it for an error level."""
    rounded = scored(a_case("m", "int8", None), achieved_sparsity=())
    _, html = report_of(tmp_path / "int8", [*dense_only(), rounded])
    assert 'title="nothing is left out">–</td>' in html
    assert "error level" not in html
    asked = scored(a_case("m", "tt", None, options={"cett": 0.2}))
    _, html = report_of(tmp_path / "cett", [*dense_only(), asked])
    assert 'title="it has an error level instead">–</td>' in html
    assert "tt (cett=0.2)" in html


def test_error_level_instead_of_a_sparsity_is_a_dash_in_the_table() -> None:
    case = a_case("m", "tt", None, options={"cett": 0.2})
    record = scored(case, achieved_sparsity=(0.4, 0.6))
    (_, row) = summary_rows([scored(a_case("m", "dense", 0.0)), record])
    assert row["asked sparsity"] == "–"
    assert case_of([record], "tt").sparsity == pytest.approx(0.5)


# Which quality goes with which speed.


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({"batch": 1}, {"batch": 4}, ["batch 1", "batch 4"]),
        ({"dtype": "float32"}, {"dtype": "bfloat16"}, ["float32", "bfloat16"]),
        ({"prompt_tokens": 64}, {"prompt_tokens": 128}, ["64 prompt", "128 prompt"]),
        ({"seed": 0}, {"seed": 1}, ["seed 0", "seed 1"]),
        ("mine.jsonl", "yours.jsonl", ["mine.jsonl", "yours.jsonl"]),
    ],
)
def test_what_differs_is_a_setting_of_its_own_and_says_in_what(one: Any, other: Any, told: list[str]) -> None:
    """Each method is held against the dense run of its own request and text."""
    lines = []
    for part, slow in ((one, 1.0), (other, 3.0)):
        changes = part if isinstance(part, dict) else {}
        inputs = Inputs(text=part, text_name=part) if isinstance(part, str) else Inputs(text="t", text_name="t")
        for method, sparsity in (("dense", 0.0), ("griffin", 0.5)):
            case = a_case("m", method, sparsity, **changes)
            lines += [timed(case, number, slow=slow, inputs=inputs) for number in range(1, 6)]
            lines.append(scored(case, inputs=inputs))
    found = settings(lines)
    speedups = [case.speedup.value for setting in found for case in setting.cases if case.method == "griffin"]
    assert speedups == [pytest.approx(speedups[0], rel=0.01)] * 2
    assert all(word in setting.title for setting, word in zip(found, told, strict=True))


def test_joint_curve_only_where_one_model_has_both(two_model_report: Path, one_model_report: Path) -> None:
    joint = {path.name for path in (one_model_report / "figures").glob("*joint*.svg")}
    assert joint == {f"tradeoff-1-1-tradeoff-joint-{axis}.svg" for axis in ("latency", "speedup", "bytes")}
    assert not list((one_model_report / "figures").glob("*projection*"))
    assert not list((two_model_report / "figures").glob("*joint*"))
    assert (two_model_report / "figures" / "tradeoff-1-1-tradeoff-quality.svg").exists()


def test_projection_is_marked_everywhere(two_model_report: Path) -> None:
    words = "PROJECTION: quality of ref:swiglu, speed of shape:0.3b"
    html = (two_model_report / "index.html").read_text()
    assert '<div class="block projection">' in html
    assert html.count(words) >= 4
    projections = list((two_model_report / "figures").glob("*projection*.svg"))
    assert len(projections) == 3
    for path in projections:
        assert words in texts(path)
        assert "shape:0.3b" in texts(path)


def test_axes_name_model_and_unit(one_model_report: Path) -> None:
    words = texts(one_model_report / "figures" / "tradeoff-1-1-tradeoff-joint-latency.svg")
    for part in ("Decode latency of m (ms per token)", "ΔNLL of m to dense (nats per token)", "dense", "roofline"):
        assert part in words


def test_pairs_ignore_the_layer_profile_and_nothing_else() -> None:
    (tradeoff,) = tradeoffs(settings(two_models()))
    assert not tradeoff.joint
    assert {timed.series for timed, _ in tradeoff.pairs} == {"griffin", "tda", "cats", "tt"}
    assert all(not scored.from_other_kind for _, scored in tradeoff.pairs)


def test_speed_without_any_quality_is_shown_alone(tmp_path: Path) -> None:
    report, html = report_of(tmp_path, speed_lines(sparsities=(0.5,), rounds=2, profile=None))
    assert "fewer than 5 rounds: no interval" in html
    assert not list((report.index.parent / "figures").glob("*projection*"))


def test_warnings_for_a_terminal() -> None:
    """The rounds of a case are one case of it."""
    flag = {"cache_resident": Flag(raised=True, detail="9 MB of weights"), "clocks": Flag(raised=False, detail="")}
    lines = [a_line(a_case("m", "griffin", 0.5), number_, {}, flags=flag) for number_ in (1, 2)]
    others = [a_line(a_case("m", "dense", 0.0), 1, {})]
    assert warning_lines([*others, *lines]) == ["cache resident in 1 of 2 cases, e.g. m, griffin 0.5: 9 MB of weights"]
    assert warning_lines(others) == []


# Conditions.


def test_conditions_are_said(tmp_path: Path) -> None:
    flag = {"foreign_load": Flag(raised=True, detail="others used 20%")}
    dirty = [
        record.model_copy(update={"commit": Commit(hash="feed" * 4, dirty=True), "flags": flag if record.round else {}})
        for record in [*dense_only(), *speed_lines("m", (), methods=())]
    ]
    _, html = report_of(tmp_path, dirty)
    for words in ("Test CPU, 2 cores, 2 threads", "torch 2.12", "feedfeedfe", "dirty tree", "0 to 0.70",
                  "20 to 20 GB/s", "others used 20%",
                  "m, dense (A/A control)", "±"):  # fmt: skip
        assert words in html


def test_one_thread_is_one(tmp_path: Path) -> None:
    alone = MACHINE.model_copy(update={"threads": 1})
    _, html = report_of(tmp_path, [record.model_copy(update={"machine": alone}) for record in dense_only()])
    assert "Test CPU, 2 cores, 1 thread, " in html


def test_unlike_machines_and_commits_are_never_mixed(tmp_path: Path) -> None:
    first = list(speed_lines("alpha", (), 2, None, ()))
    other = MACHINE.model_copy(update={"cpu": "Other CPU"})
    second = list(speed_lines("beta", (), 2, None, (), machine=other))
    third = list(speed_lines("gamma", (), 2, None, (), commit=Commit(hash="77", dirty=True)))
    folders = [write(tmp_path / str(place), part) for place, part in enumerate((first, second, third))]
    report = build_report(folders, tmp_path / "out")
    html = report.index.read_text()
    assert "3 groups." in html
    assert "Group 2 of 3" in html
    for path in (tmp_path / "out" / "figures").glob("*.svg"):
        assert sum(name in texts(path) for name in ("alpha", "beta", "gamma")) <= 1, path.name
    assert pd.read_csv(tmp_path / "out" / "table.csv").groupby(["machine", "commit"]).ngroups == 3


def test_fake_gpus_are_refused(tmp_path: Path) -> None:
    fake = MACHINE.model_copy(update={"gpu": "FAKE H100"})
    lines = [timed(a_case("fake-model", "dense", 0.0), 1, machine=fake), *dense_only()]
    report, html = report_of(tmp_path, lines)
    assert ["1 records refused" in problem for problem in report.problems] == [True]
    assert "fake-model" not in html
    with pytest.raises(ValueError, match=r"no readable record.*\n.*FAKE H100"):
        build_report([write(tmp_path / "fake", lines[:1])], tmp_path / "none")


def test_damaged_line_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", dense_only())
    with open(folder / "results.jsonl", "a") as file:
        file.write('{"version": 1, "case": {"mod')
    report = build_report([folder], tmp_path / "out")
    (problem,) = report.problems
    assert "line 2 skipped" in problem
    assert "line 2 skipped" in report.index.read_text()


def test_repeated_records_are_named(tmp_path: Path) -> None:
    report, _ = report_of(tmp_path / "torn", [*dense_only(), *dense_only()])
    assert report.problems == ()  # a round that was measured again
    folders = [write(tmp_path / name, dense_only()) for name in ("one", "other")]
    assert "1 records repeat a case" in build_report(folders, tmp_path / "out").problems[0]


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no results folder"):
        build_report([], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no results at"):
        build_report([tmp_path], tmp_path / "out")
    with pytest.raises(ValueError, match="no readable record"):
        build_report([write(tmp_path / "empty", [])], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The page.


def test_names_from_records_are_inert(tmp_path: Path) -> None:
    report, html = report_of(tmp_path, one_model(EVIL))
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert [tag for tag, _ in Tags(html).tags].count("script") == 1
    figures = list((report.index.parent / "figures").glob("*.svg"))
    assert any(EVIL in texts(path) for path in figures)
    assert all("<script" not in path.read_text() for path in figures)


def test_page_asks_nothing_of_a_network(two_model_report: Path) -> None:
    html = (two_model_report / "index.html").read_text()
    assert "://" not in html
    tags = Tags(html)
    assert not tags.values("src")
    links = tags.values("href") + tags.values("xlink:href")
    for link in links:
        local = link in ("data:,", "table.csv", "figures/") or link.startswith(("#", "figures/"))
        assert local, link
    for link in links:
        if link.startswith("figures/"):
            assert (two_model_report / link).exists()


def test_ids_are_unique_and_anchors_resolve(two_model_report: Path) -> None:
    tags = Tags((two_model_report / "index.html").read_text())
    ids = tags.values("id")
    assert len(ids) == len(set(ids))
    anchors = [link[1:] for link in tags.values("href") + tags.values("xlink:href") if link.startswith("#")]
    assert set(anchors) <= set(ids)


def test_every_figure_is_there_twice_and_its_svg_is_xml(two_model_report: Path) -> None:
    figures = two_model_report / "figures"
    stems = {path.stem for path in figures.iterdir()}
    assert len(stems) > 15
    for stem in stems:
        assert ET.parse(figures / f"{stem}.svg").getroot().tag.endswith("svg")
        assert (figures / f"{stem}.png").read_bytes().startswith(b"\x89PNG")


def test_equal_records_give_equal_bytes(tmp_path: Path, one_model_report: Path) -> None:
    one, other = one_model_report, report_of(tmp_path, one_model())[0].index.parent
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_table_headings_can_be_sorted_by_keyboard(one_model_report: Path) -> None:
    html = (one_model_report / "index.html").read_text()
    headings = re.findall(r'<th scope="col"(?: class="number")? aria-sort="none"><button type="button">', html)
    assert len(headings) > 20


def test_recall_has_a_section_where_it_was_measured(tmp_path: Path, one_model_report: Path) -> None:
    def recalling(record: Record) -> Record:
        if record.round:
            return record
        right = [1.0] * 6 + [0.0] * (6 if record.case.sparsity else 1)
        recall = {"task_recall_accuracy": Measurement.of("task_recall_accuracy", right, range(len(right)))}
        return record.model_copy(update={"measurements": record.measurements | recall})

    report, html = report_of(tmp_path, map(recalling, quality_lines("m", (0.5,), ("cats",))))
    assert "Recall over a distance" in html
    assert "Recall over a distance" not in (one_model_report / "index.html").read_text()
    table = pd.read_csv(report.index.parent / "table.csv")
    assert table[table.method == "cats"].task_recall_accuracy.iloc[0] == 0.5


def test_sections_are_found_by_discovery() -> None:
    orders = [entry.order for entry in SECTIONS.values()]
    assert len(orders) == len(set(orders))
    assert {"conditions", "tradeoff", "latency", "first_step", "layers", "memory", "quality", "recall", "table"} <= set(
        SECTIONS
    )


def shown(report: Report) -> str:
    """What a page says, but for the names of what was left out."""
    text = Tags(report.index.read_text()).text()
    for problem in report.problems:
        text = text.replace(problem, "")
    return text


def test_a_likelihood_that_is_no_number_is_a_gap_and_no_record(tmp_path: Path) -> None:
    broken = Measurement.of("nll_nats", [float("nan")] * 12, range(12))
    lines = [
        record.model_copy(update={"measurements": record.measurements | {"nll_nats": broken}})
        if record.case.method == "cats" and not record.round
        else record
        for record in one_model()
    ]
    assert "nan" not in str(summary_rows(lines, [column.name for column in COLUMNS]))
    report, _ = report_of(tmp_path, [record for record in lines if not record.round])
    (problem,) = report.problems
    assert "line 3 skipped: nll_nats is nan" in problem
    assert "nan" not in shown(report)
    assert set(pd.read_csv(report.index.parent / "table.csv").method) >= {"dense", "griffin", "oracle"}


def with_broken(method: str, names: Iterable[str]) -> list[Record]:
    """Records of which one round's samples are no numbers."""
    broken = {name: Measurement.of(name, [float("nan")]) for name in names}
    return [
        record.model_copy(update={"measurements": record.measurements | broken})
        if record.case.method == method and record.round == 3
        else record
        for record in one_model()
    ]


@pytest.mark.parametrize("name", ["decode_ms", "prefill_ms", "selection_ms", "bytes_per_token"])
@pytest.mark.parametrize("method", ["griffin", "dense"])
def test_a_time_that_is_no_number_is_a_gap(name: str, method: str) -> None:
    names = [column.name for column in COLUMNS]
    assert "nan" not in str(summary_rows(with_broken(method, [name]), names))


def test_figures_leave_out_a_time_that_is_no_number(tmp_path: Path) -> None:
    report, _ = report_of(tmp_path, with_broken("griffin", ["prefill_ms", "selection_ms", "generation_ms"]))
    assert len(report.problems) == 1
    assert "nan" not in shown(report)
    assert not any("nan" in texts(figure) for figure in report.index.parent.glob("figures/*.svg"))


def test_a_missing_case_is_a_gap_in_its_curve() -> None:
    lines = [record for record in speed_lines(methods=("cats",)) if record.case.sparsity != 0.5]
    case = a_case("shape:0.3b", "cats", 0.5, layer_sparsity_from="ref:swiglu")
    failed = a_line(case, 1, {}, status="oom", reason="too large")
    (setting,) = settings([*lines, failed])
    cases = setting.with_gaps(case for case in setting.timed if not case.is_dense)
    points = over_sparsity(cases, lambda case: case.speedup)
    assert [point.present for point in points] == [True, False, True]
    axes = Figure().add_subplot()
    draw_curves(axes, points)
    assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False, True, False]


def test_failed_dense_leaves_no_ratio(tmp_path: Path) -> None:
    lines = [record for record in speed_lines(sparsities=(0.5,), rounds=2) if record.case.method != "dense"]
    failed = a_line(a_case("shape:0.3b", "dense", 0.0), 1, {}, status="error", reason="ValueError: no")
    report, html = report_of(tmp_path, [*lines, failed])
    assert "no dense run succeeded" in html
    assert pd.read_csv(report.index.parent / "table.csv").speedup.isna().all()
    assert not list((report.index.parent / "figures").glob("*speedup*"))


def test_quality_alone_makes_a_report(tmp_path: Path) -> None:
    _, html = report_of(tmp_path, quality_lines(sparsities=(0.5,), methods=("griffin",)))
    assert "not: ΔNLL above 0.05" in html


def test_summary_rows_for_a_terminal() -> None:
    rows = summary_rows(two_models())
    assert len({tuple(row) for row in rows}) == 1
    assert all(isinstance(text, str) for row in rows for text in row.values())
    assert list(summary_rows(one_model(), ["model", "speedup"])[0]) == ["model", "speed-up (×)"]
    with pytest.raises(ValueError, match="unknown columns nonsense"):
        summary_rows(one_model(), ["nonsense"])


def test_groups_hold_lines_of_one_machine(tmp_path: Path) -> None:
    (group,) = gather([write(tmp_path / "in", one_model())])
    assert (group.machine, group.commit) == (MACHINE, COMMIT)
    assert json.loads(group.lines[0].model_dump_json())["version"] == 3


def test_import_needs_no_torch() -> None:
    code = "import sys, tda.web.report; assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


IN_C, TORCH_ROWS = "c", "torch (products of 4 rows run there)"


@pytest.mark.parametrize(
    ("own", "dense", "words"),
    [
        ("c", "c", ()),
        ("torch (no compiler)", "torch", ()),
        ("torch (no compiler)", TORCH_ROWS, ()),
        ("c", None, ()),
        ("triton", "triton", ()),
        ("c", TORCH_ROWS, ("dense ran on torch's kernels (products of 4 rows run there) and this on kernels in C,",)),
        ("torch (no rule (yet))", "c", ("dense ran on kernels in C and this on torch's kernels (no rule (yet)),",)),
        ("triton, without a graph (a hook)", "torch (a hook)", ("on kernels in Triton, without a graph (a hook),",)),
        ("c, layer by layer (a bias)", "c", ("dense ran on kernels in C and this on kernels in C, layer by layer",)),
    ],
)
def test_a_ratio_between_unlike_kernels_names_both(own, dense, words):
    found = unlike_kernels(own, dense)
    assert (found is not None) == bool(words)
    assert all(part in str(found) for part in words)


def of_kernels(dense: str, sparse: str) -> list[Record]:
    """A scored setting in which dense and its control ran on some kernels and griffin on others, seven rounds each."""
    base, griffin = a_case("ref:swiglu", "dense", 0.0), a_case("ref:swiglu", "griffin", 0.5)
    lines = [scored(base), scored(griffin)]
    for place in range(1, 8):
        lines += [timed(case, place, backend=dense) for case in (base, again(base))]
        lines.append(timed(griffin, place, backend=sparse))
    return lines


def test_a_speed_up_between_unlike_kernels_is_in_doubt_wherever_it_is_shown(tmp_path):
    build_report([write(tmp_path / "mixed", of_kernels(TORCH_ROWS, IN_C))], tmp_path / "page")
    rows = {row["method"]: row for row in summary_rows(of_kernels(TORCH_ROWS, IN_C))}
    assert rows["griffin"]["speed-up (×)"].endswith(", not trusted")
    assert rows["griffin"]["break-even (tokens)"].endswith(", not trusted")
    assert "trusted" not in rows["griffin"]["roofline speed-up (×)"] + rows["dense"]["speed-up (×)"]
    (doubt,) = [line for line in warning_lines(of_kernels(TORCH_ROWS, IN_C)) if line.startswith("unlike kernels")]
    assert "in 1 of 3 cases" in doubt
    assert "products of 4 rows" in doubt
    assert "kernels in C" in doubt
    with (tmp_path / "page" / "table.csv").open() as file:
        told = {(row["method"], row["control"]): row["unlike_kernels"] for row in csv.DictReader(file)}
    assert "kernels in C" in told["griffin", ""]
    assert not told["dense", ""]
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Grey, since it cannot be trusted (see the flags): griffin 0.5" in page
    assert "Flag raised: <strong>unlike kernels</strong>" in page
    assert page.count("so a ratio of the two is of kernels too") >= 2  # the flag and a tooltip


def test_a_table_of_like_kernels_says_nothing_of_them(tmp_path):
    records = of_kernels(IN_C, IN_C)
    build_report([write(tmp_path / "alike", records)], tmp_path / "page")
    assert "unlike" not in str(summary_rows(records)) + str(warning_lines(records))
    assert "unlike kernels:" not in (tmp_path / "page" / "index.html").read_text()


def test_options_of_a_method_share_its_colour_and_no_marker() -> None:
    options = [{"rows": "per_row"}, {"rows": "shared"}, {"rows": "shared", "statistic": "max"}]
    cases = [a_case("m", "tda", sparsity, options=own) for own in options for sparsity in (0.25, 0.5)]
    (setting,) = settings([scored(case) for case in [*cases, a_case("m", "griffin", 0.5)]])
    found = {case.series: look(case.method, variant=case.variant) for case in setting.cases}
    assert len(found) == 4
    mine = [drawn for series, drawn in found.items() if series.startswith("tda")]
    assert len({drawn.colour for drawn in mine}) == 1
    assert len({(drawn.marker, drawn.line) for drawn in mine}) == 3
    assert found["griffin"] == look("griffin")


def test_names_beside_figures_fit() -> None:
    path = "/".join(["some", "very", "long", "folder", "of", "models", "Model-7B-Instruct"])
    figure, axes = case_axes(f"Peak memory of {path}", ["tda 0.25 (rows=per_row, statistic=max)"])
    label_axes(axes, f"Peak memory of {path} (MB)")
    handles = [handle(f"tda (rows=per_row, statistic={number_})", "tda") for number_ in range(3)]
    legend(figure, handles)
    settle(figure)
    texts_ = [axes.get_yticklabels()[0], axes.xaxis.label, axes.title, figure.legends[0]]
    boxes = [one.get_window_extent() for one in texts_]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert "Model-7B-Instruct" in axes.get_xlabel()

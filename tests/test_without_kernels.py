"""Where the kernels in C cannot run, commands say so once, and every record holds why."""

import logging
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

import tda.kernels
from tda import limits
from tda.bench import profile
from tda.bench.plan import Plan, Subject
from tda.bench.run import Bench
from tda.changes.workbench import NotMeasuredError
from tda.cli import main as cli
from tda.doctor import checkup
from tda.kernels.native import library
from tda.results import load
from tda.web.report.gather import gather
from tda.web.report.sections.conditions import conditions_section

REASON = "/opt/[cc]/cc: no [/space] left"
NOTICE = f"the kernels in C cannot run here: {REASON}; torch runs instead, slower"
PLAN = Plan(
    (Subject("ref:swiglu", prompt_tokens=16, new_tokens=4),),
    methods=("griffin", "tt", "int8"),
    sparsities=(0.5,),
    speed_methods=("griffin", "tt", "int8"),
    rounds=1,
    documents=1,
    calibration_documents=1,
)


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "problem", lambda: REASON)


def test_a_bench_says_it_once_and_records_it(
    tmp_path: Path, no_kernels: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "stream_gb_per_s", lambda device: 1.0)  # takes half of the test's time
    Bench(PLAN, tmp_path, console=Console(quiet=True)).run()
    assert [record.levelno for record in caplog.records if record.getMessage() == NOTICE] == [logging.WARNING]
    records = load(tmp_path).records
    assert {record.conditions["kernels"] for record in records} == {str(tda.kernels.backend())}
    assert all(REASON in str(record.conditions["kernels"]) for record in records)
    content = conditions_section(gather([tmp_path])[0])
    assert ("Kernels", str(tda.kernels.backend())) in content.values["facts"]
    timed = {(record.case.method, record.execution, record.backend) for record in records if record.round}
    assert timed == {
        ("dense", "dense", f"torch ({REASON})"),
        ("griffin", "compact", f"torch ({REASON})"),
        ("tt", "indexed", f"torch ({REASON})"),
        ("int8", "masked", f"torch ({REASON})"),
    }


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tda", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize(
    "words",
    [
        ("generate", "--prompt", "The river", "--new-tokens", "2"),
        ("eval", "--prompt-tokens", "16", "--new-tokens", "4", "--documents", "1", "--method", "griffin"),
    ],
    ids=lambda words: words[0],
)
def test_commands_say_it_once(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, *words, "--model", "ref:swiglu") == 0
    assert capsys.readouterr().err.count(f"tda: {NOTICE}\n") == 1


def test_a_profile_says_it(
    tmp_path: Path, no_kernels: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(profile, "prepare", lambda *args, **options: sys.exit())
    monkeypatch.setattr(profile, "measure_overhead", lambda: None)
    with pytest.raises(SystemExit):
        profile.run_profile(tmp_path)
    assert caplog.messages == [NOTICE]


def test_a_doctor_says_it(
    no_kernels: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_processes(*args: object) -> None:
        raise NotMeasuredError("not in this test")

    monkeypatch.setattr(checkup, "measure_noise", no_processes)
    monkeypatch.setattr(checkup, "LOOK_S", 0.1)
    assert command(monkeypatch, "doctor") == 0
    out = capsys.readouterr().out
    assert NOTICE in out.splitlines()
    assert re.search(r"kernels +torch \(the kernels in C cannot run here", out)


def test_a_wrong_instruction_set_is_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TDA_ISA", "sse9")
    library.library.cache_clear()
    library.problem.cache_clear()
    assert command(monkeypatch, "bench", "--preset", "smoke", "--out", str(tmp_path)) == 2
    assert "tda: TDA_ISA must be one of" in capsys.readouterr().err
    assert not (tmp_path / "results.jsonl").exists()

"""What the package logs: nothing is shown by the library but warnings, a command shows all of it once."""

import io
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tda.cli.logs import told_on
from tda.logs import log_again

OWN = logging.getLogger("tda.bench.stage")


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a handler of the root logger prints, as another library may have set one up."""
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    logging.getLogger().addHandler(handler)
    yield told
    logging.getLogger().removeHandler(handler)


def test_a_command_prints_each_record_once(command, root: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_up(device: str) -> None:
        OWN.info("100% of [it]")
        raise ValueError("enough")

    monkeypatch.setattr("tda.doctor.check_up", check_up)
    code, out, err = command("doctor")
    assert (code, out, root.getvalue()) == (2, "", "")
    assert re.fullmatch(r"\d\d:\d\d:\d\d 100% of \[it\]\ntda: enough\n", err)
    assert (logging.getLogger("tda").handlers, logging.getLogger("tda").propagate) == ([], True)


def test_lines_on_a_console_have_the_colour_of_their_level(root: io.StringIO) -> None:
    told = io.StringIO()
    console = Console(file=told, force_terminal=True, color_system="standard", width=80)
    with told_on(console):
        OWN.info("[it] is so")
        OWN.warning("[it] may be so")
        OWN.error("[it] failed")
    lines = told.getvalue().splitlines()
    assert [re.sub(r"\x1b\[[\d;]*m", "", line) for line in lines] == ["[it] is so", "[it] may be so", "[it] failed"]
    assert ["\x1b[33m" in line for line in lines] == [False, True, False]
    assert ["\x1b[31m" in line for line in lines] == [False, False, True]
    assert root.getvalue() == ""


def test_a_record_of_another_process_is_taken_as_an_own_one(caplog: pytest.LogCaptureFixture) -> None:
    there = [logging.makeLogRecord({"name": OWN.name, "levelno": level, "msg": "100%"}) for level in (20, 30)]
    for record in there:
        log_again(record)
    assert caplog.record_tuples == [(OWN.name, logging.WARNING, "100%")]
    caplog.set_level(logging.INFO, "tda")
    log_again(there[0])
    assert caplog.record_tuples[1:] == [(OWN.name, logging.INFO, "100%")]


def test_the_library_shows_warnings_alone(tmp_path: Path) -> None:
    """In a process of its own, where nobody has set up logging."""
    code = (
        "import tda, sys; tda.run_bench(sys.argv[1], models=['ref:swiglu'], methods=['griffin'], sparsities=[0.5],"
        "rounds=0, documents=1, prompt_tokens=16, new_tokens=4, calibration_documents=2)"
    )
    (tmp_path / "results.jsonl").write_text("{damaged\n")
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.endswith("what it held is measured again")

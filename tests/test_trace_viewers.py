"""Traces open elsewhere: in speedscope within a browser, and in TensorBoard's own loader; neither asks a network."""

import base64
import gzip
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tda.profiler.store import TRACE
from tda.web.profile import viewer
from tda.web.profile.viewer import SPEEDSCOPE, VIEWER, speedscope_file, viewer_page, write_viewer
from tda.web.theme.npm import Package, PackageError, archives, fetched
from tests import profiles
from tests.browser import Browser, opened, serving, watching

PLUGIN = "/data/plugin/pytorch_profiler"


# What speedscope is told.


def stacks(profile: dict[str, Any], frames: list[dict[str, str]]) -> list[tuple[str, ...]]:
    """Names of open frames after each opening; closings must match."""
    held: list[int] = []
    found = []
    for event in profile["events"]:
        if event["type"] == "O":
            held.append(event["frame"])
            found.append(tuple(frames[frame]["name"] for frame in held))
        else:
            assert held.pop() == event["frame"]
    assert not held
    return found


def test_a_trace_becomes_nested_ranges(tmp_path: Path) -> None:
    profiles.write_trace(tmp_path / TRACE, steps=1, on_gpu=True)
    told = speedscope_file(tmp_path / TRACE, "griffin")
    assert (told["name"], told["activeProfileIndex"]) == ("griffin", 0)
    assert [one["name"] for one in told["profiles"]] == ["griffin · host, thread 4711", "griffin · device 0, stream 7"]
    host, device = told["profiles"]
    found = stacks(host, told["shared"]["frames"])
    gate = ("decode", "gate: model.layers.0.mlp.gate_proj", "aten::linear", "aten::mm")
    assert [gate[: depth + 1] in found for depth in range(4)] == [True] * 4
    assert max(map(len, found)) == 4, "an operator that outlasts its parent by a rounding still lies in it"
    assert {stack[0] for stack in found} == {"prefill", "selection", "decode"}
    assert set(stacks(device, told["shared"]["frames"])) == {("gemvx::kernel<bf16>",)}
    assert host["events"][0]["at"] == 0


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 40)), min_size=1, max_size=12))
def test_whatever_overlaps_is_nested_in_order(bars: list[tuple[int, int]]) -> None:
    events = [
        {"ph": "X", "cat": "cpu_op", "pid": 1, "tid": 1, "name": f"b{place}", "ts": start, "dur": long}
        for place, (start, long) in enumerate(bars)
    ]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / TRACE).write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode(), 1))
        told = speedscope_file(Path(folder) / TRACE, "x")
    (thread,) = told["profiles"]
    assert len(stacks(thread, told["shared"]["frames"])) == len(bars)
    moments = [event["at"] for event in thread["events"]]
    assert moments == sorted(moments)
    assert thread["startValue"] == 0
    assert thread["endValue"] <= max(start + long for start, long in bars) - min(start for start, _ in bars)


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"no json", mtime=0), gzip.compress(b"{}", mtime=0), gzip.compress(b"[1]", mtime=0)],
)
def test_no_trace_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / TRACE).write_bytes(content)
    with pytest.raises(ValueError, match="is no gzipped Chrome trace"):
        speedscope_file(tmp_path / TRACE, "x")


def test_an_empty_trace_is_said(tmp_path: Path) -> None:
    (tmp_path / TRACE).write_bytes(gzip.compress(b'{"traceEvents": []}', mtime=0))
    with pytest.raises(ValueError, match="holds no complete events"):
        speedscope_file(tmp_path / TRACE, "x")


# The page.


def test_the_page_holds_everything_and_nothing_ends_it_early(tmp_path: Path) -> None:
    profiles.write_trace(tmp_path / TRACE)
    page = viewer_page(tmp_path / TRACE, profiles.viewer_package(tmp_path), "griffin <0.5>")
    assert "<title>griffin &lt;0.5&gt;</title>" in page
    assert f"url(data:font/woff2;base64,{base64.b64encode(b'font').decode()})" in page
    assert 'var end = "<\\/script><\\!--";' in page
    assert "sourceMappingURL" not in page
    assert page.count("-->") == 1
    assert page.count("</script>") == 3
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "default-src 'none'" in page
    packed = re.search(r'id="trace">([^<]+)<', page)
    assert packed is not None
    assert json.loads(gzip.decompress(base64.b64decode(packed[1])))["name"] == "griffin <0.5>"
    assert viewer_page(tmp_path / TRACE, profiles.viewer_package(tmp_path), "griffin <0.5>") == page, (
        "equal traces give equal pages"
    )


def test_without_the_package_it_is_said_how_to_look_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(PackageError, match=r"no viewer: .*--viewer` .*Perfetto"):
        viewer.speedscope()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageError, match=r"no viewer: npm .*Perfetto"):
        viewer.speedscope(fetch=True)


def test_a_package_by_hand_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = archives() / SPEEDSCOPE.tarball
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"something else")
    with pytest.raises(PackageError, match=r"no viewer: .*pinned for speedscope@"):
        viewer.speedscope()


def test_pages_for_a_folder_of_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert viewer.page_writer()(tmp_path) is None
    assert "no viewer" in caplog.messages[0]
    monkeypatch.setattr(viewer, "speedscope", lambda fetch: profiles.viewer_package(tmp_path))
    write = viewer.page_writer(fetch=True)
    assert write(tmp_path) is None, "no trace there"
    profiles.write_trace(tmp_path / "case" / TRACE)
    assert write(tmp_path / "case") == VIEWER
    assert "<title>case</title>" in (tmp_path / "case" / VIEWER).read_text()
    assert len(caplog.messages) == 1


def test_the_pin_is_exact() -> None:
    assert isinstance(SPEEDSCOPE, Package)
    assert re.fullmatch(r"\d+\.\d+\.\d+", SPEEDSCOPE.version)
    assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", SPEEDSCOPE.integrity)


# Real traces in real viewers.


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tda.run_profile` writes for a small model."""
    import tda

    folder = tmp_path_factory.mktemp("traces")
    tda.run_profile(
        folder, models=["ref:swiglu"], methods=["griffin"], sparsities=[0.5], prompt_tokens=16, new_tokens=9
    )
    return folder


@pytest.fixture(scope="module")
def package() -> Path:
    try:
        return fetched(SPEEDSCOPE)
    except PackageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def viewers(traces: Path, package: Path) -> list[Path]:
    """A page beside each trace."""
    found = []
    for trace in sorted(traces.rglob(TRACE)):
        write_viewer(trace, trace.with_name(VIEWER), package, f"trace of {trace.parent.name}")
        found.append(trace.with_name(VIEWER))
    (traces / "index.html").touch()  # a server asks whether anything is published
    assert len(found) == 2
    return found


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["file", "http"])
def test_speedscope_shows_our_ranges(
    browser: Browser, viewers: list[Path], traces: Path, scheme: str, tmp_path: Path
) -> None:
    with serving(traces) as address:
        for page in viewers:
            alone = tmp_path / page.parent.name / VIEWER
            alone.parent.mkdir()
            alone.write_bytes(page.read_bytes())
            place = f"file://{alone.parent}" if scheme == "file" else f"{address}/{page.parent.name}"
            with watching(browser, place):
                browser.open(f"{place}/{VIEWER}")
                browser.until(f"document.title.startsWith('trace of {page.parent.name}')")
                assert browser.ask("document.querySelectorAll('canvas').length") >= 1
                browser.press("3", 51)  # the table of all frames, of which the page holds what is in view
                browser.resize(1280, 4000)
                shown = browser.until("document.body.innerText.includes('aten::mm') && document.body.innerText")
                for words in ("decode", "prefill", "aten::mm", "mlp.down_proj"):
                    assert words in shown


@contextmanager
def tensorboard(folder: Path, log: Path) -> Iterator[str]:
    """TensorBoard with the plugin, on loopback, for as long as it is asked."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--load_fast", "false"]
    with open(log, "wb") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def asked(address: str, seconds: float = 120.0) -> Any:
    """JSON of an address, once the server is up."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                content = answer.read()
            return json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.3)


def loaded(address: str, expected: set[str], seconds: float = 120.0) -> list[str]:
    """Runs of the plugin once those expected are read; it says "not loading" between the end of one and the next."""
    end = time.monotonic() + seconds
    while True:
        told = asked(f"{address}{PLUGIN}/runs")
        if expected <= set(told["runs"]) or time.monotonic() > end:
            return list(told["runs"])
        time.sleep(0.3)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torch_tb_profiler") is None, reason="needs the extra: pip install tda-bench[viewers]")
def test_tensorboard_reads_our_traces(traces: Path, tmp_path: Path) -> None:
    """Its own loader, by the endpoints that its page asks: runs, views, overview, operators and the trace itself."""
    with tensorboard(traces, tmp_path / "log") as address:
        expected = sorted(path.parent.name for path in traces.rglob(TRACE))
        runs = loaded(address, set(expected))
        assert sorted(runs) == expected
        for run in runs:
            views = asked(f"{address}{PLUGIN}/views?run={run}")
            assert {"Overview", "Operator", "Trace"} <= set(views)
            (worker,) = asked(f"{address}{PLUGIN}/workers?run={run}&view=Overview")
            (span,) = asked(f"{address}{PLUGIN}/spans?run={run}&worker={worker}")
            what = f"run={run}&worker={worker}&span={span}"
            overview = asked(f"{address}{PLUGIN}/overview?{what}&view=Overview")
            assert {"title": "Device Type", "value": "CPU"} in overview["environments"]
            table = asked(f"{address}{PLUGIN}/operation/table?{what}&view=Operator&group_by=Operation")
            assert "aten::mm" in {row["name"] for row in table["data"]}
            told = asked(f"{address}{PLUGIN}/trace?{what}&view=Trace")
            assert {"prefill", "decode"} <= {event["name"] for event in told["traceEvents"]}

"""Workers that are killed, crash, hang, grow or raise: each fault happens to a real process, and the matrix goes on."""

import os
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from tda.bench.messages import Message, Order
from tda.bench.plan import Plan, Subject
from tda.bench.store import RecordPlace
from tda.bench.supervisor import supervised
from tda.bench.worker import order_of
from tda.bench.worker_limits import Limits
from tda.records import FAILURES, Record
from tests.faults import plant

PLAN = Plan(
    (Subject("ref:swiglu", prompt_tokens=16, new_tokens=4),),
    methods=("griffin", "magnitude"),
    sparsities=(0.5,),
    speed_methods=("griffin",),
    rounds=2,
    documents=4,
    calibration_documents=2,
    recall=False,
)
Fault = Callable[[int, RecordPlace], None]


def orders(folder: Path, plan: Plan = PLAN) -> list[Order]:
    return [order_of(plan, number, folder, "tda bench") for number in range(len(plan.subjects))]


class Watched:
    """What was heard of supervised workers, and faults that happen to them while a case runs."""

    def __init__(self, folder: Path, limits: Limits = Limits(), plan: Plan = PLAN) -> None:  # noqa: B008
        self.records: list[Record] = []
        self.pids: list[int] = []
        self.told: list[str] = []
        self.left_out: list[Any] = []
        self.stderr = b""
        self.raised: list[Exception] = []
        self._messages = supervised(orders(folder, plan), [], limits)

    def run(self, fault: Fault | None = None, when: Callable[[RecordPlace], bool] = lambda place: True) -> None:
        """Hear all; the first time that a case runs which is meant, the fault happens to its process."""
        with closing(self._messages) as messages:
            for message in messages:
                self._hear(message)
                place = message.value
                if fault is not None and message.kind == "running" and place is not None and when(place):
                    fault(self.pids[-1], place)
                    fault = None

    def _hear(self, message: Message) -> None:
        kind, value = message
        if kind == "hello":
            self.pids.append(value[2])
        elif kind == "records":
            self.records += value
        elif kind == "log":
            self.told.append(value.getMessage())
        elif kind == "stderr":
            self.stderr += value
        elif kind == "raised":
            self.raised.append(value)
        elif kind == "left_out":
            self.left_out.append(value)

    @property
    def good(self) -> Counter[tuple[str, str, int]]:
        return Counter((*one.series, one.round) for one in self.records if one.status == "ok")

    @property
    def failed(self) -> list[Record]:
        return [one for one in self.records if one.status != "ok"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    watched = Watched(tmp_path_factory.mktemp("undisturbed"))
    watched.run()
    return watched


def send(number: int) -> Fault:
    return lambda pid, place: os.kill(pid, number)


def timed(place: RecordPlace) -> bool:
    return place.round == 2 and place.case.method == "griffin"


def scored(place: RecordPlace) -> bool:
    return place.round == 0 and place.case.method == "magnitude"


def test_a_worker_says_all_that_a_bench_in_this_process_says(undisturbed: Watched, tmp_path: Path) -> None:
    from tda.bench.run import Bench
    from tda.results import load

    Bench(PLAN, tmp_path).run()
    here = Counter((*one.series, one.round) for one in load(tmp_path).records)
    assert undisturbed.good == here
    assert not undisturbed.failed
    assert undisturbed.pids[0] != os.getpid()
    assert not psutil.pid_exists(undisturbed.pids[0])


@pytest.mark.slow
@pytest.mark.parametrize("when", [timed, scored])
@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (signal.SIGKILL, "killed", "ended by SIGKILL"),
        (signal.SIGSEGV, "crash", "ended by SIGSEGV"),
        (signal.SIGABRT, "crash", "ended by SIGABRT"),
    ],
)
def test_a_signal_ends_one_cell_and_no_other(
    undisturbed: Watched, tmp_path: Path, number: int, kind: str, words: str, when: Callable[[RecordPlace], bool]
) -> None:
    watched = Watched(tmp_path)
    watched.run(send(number), when)
    assert watched.good == undisturbed.good
    (failed,) = watched.failed
    assert when(RecordPlace(failed.case, failed.inputs, failed.round))
    assert (failed.failure.kind, failed.status) == (kind, FAILURES[kind].status)
    assert words in failed.reason
    assert len(watched.pids) == 2
    if kind == "crash":  # Python tells where it was
        assert "Fatal Python error" in failed.failure.stderr
        assert "most recent call first" in failed.failure.stderr


@pytest.mark.slow
def test_a_stopped_worker_is_a_hang(undisturbed: Watched, tmp_path: Path) -> None:
    watched = Watched(tmp_path, Limits(silence_s=20.0))
    watched.run(send(signal.SIGSTOP), timed)
    assert watched.good == undisturbed.good
    (failed,) = watched.failed
    assert (failed.status, failed.failure.kind) == ("timeout", "hang")
    assert "no sign of progress" in failed.reason
    assert not any(map(psutil.pid_exists, watched.pids))


def in_magnitude(what: str) -> str:
    """Code that does something where Magnitude is scored the first time in a process."""
    return f"""
import tda.quality.evaluate as quality

real = quality.Evaluator.add


def add(self, result, number, method, *rest):
    if method.name == "magnitude":
        {what}
    return real(self, result, number, method, *rest)


quality.Evaluator.add = add
"""


FAULTS = {
    "deadlock": ("import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()", "hang", "timeout"),
    "endless": ("while True: pass", "timeout", "timeout"),
    "exit": ("import os, sys; print('the last word', file=sys.stderr, flush=True); os._exit(3)", "crash", "crash"),
    "overflow": ("import ctypes; ctypes.string_at(0)", "crash", "crash"),
    "grows": ("hold = [bytearray(1 << 24) for _ in range(1000)]", "host_memory", "oom"),
    "memory": ("raise MemoryError('planted')", "host_memory", "oom"),
    "gpu": ("import torch; raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate')", "gpu_memory", "oom"),
    "raises": ("raise RuntimeError('planted')", "error", "error"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_case_that_fails_again_is_given_up_and_the_others_go_on(
    fault: str, undisturbed: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, kind, status = FAULTS[fault]
    plant(tmp_path / "fault", monkeypatch, in_magnitude(code))
    silence_s = 25.0 if fault in ("deadlock", "endless") else None
    watched = Watched(tmp_path, Limits(silence_s=silence_s, memory_bytes=4 << 30))
    watched.run()
    assert {(one.case.method, one.status, one.failure.kind) for one in watched.failed} == {("magnitude", status, kind)}
    others = Counter(dict.fromkeys(undisturbed.good, 1))
    for one in undisturbed.records:
        if one.case.method == "magnitude":
            del others[(*one.series, one.round)]
    assert watched.good == others
    ended = kind != "error" and fault not in ("memory", "gpu")
    assert len(watched.pids) == (3 if ended else 1)
    if fault in ("deadlock", "endless"):  # where it stood, told by the process itself
        assert "sitecustomize.py" in watched.failed[0].failure.stderr
    if fault == "exit":
        assert "exit code 3" in watched.failed[0].reason
        assert watched.failed[0].failure.stderr.endswith("the last word")


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_a_worker_that_ends_before_any_case(
    times: int, undisturbed: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is replaced; twice, its model is given up, and the next model is measured."""
    count = tmp_path / "count"
    plant(
        tmp_path / "fault",
        monkeypatch,
        f"""
import os, pathlib
import tda.bench.prepare as prepare
real = prepare.load_model


def load_model(name, **options):
    seen = pathlib.Path({str(count)!r})
    before = len(seen.read_text()) if seen.exists() else 0
    if name == "ref:relu" and before < {times}:
        seen.write_text("." * (before + 1))
        os._exit(9)
    return real(name, **options)


prepare.load_model = load_model
""",
    )
    plan = replace(PLAN, subjects=(replace(PLAN.subjects[0], model="ref:relu"), *PLAN.subjects))
    watched = Watched(tmp_path, plan=plan)
    watched.run()
    assert len(watched.failed) == times
    assert all("before any case began" in one.reason for one in watched.failed)
    assert all((one.case.model, one.case.method) == ("ref:relu", "dense") for one in watched.failed)
    models = Counter(one.case.model for one in watched.records if one.status == "ok")
    assert models["ref:swiglu"] == len(undisturbed.good)
    assert (models["ref:relu"] > 0) == (times == 1)


@pytest.mark.slow
def test_a_worker_that_cannot_begin_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path / "fault", monkeypatch, "import sys\nif sys.argv[0] == '-m': raise SystemExit('no torch here')")
    watched = Watched(tmp_path)
    watched.run()
    assert not watched.records
    assert "no torch here" in str(watched.raised[0])


@pytest.mark.slow
def test_a_worker_killed_before_it_says_where_it_is_is_replaced(
    undisturbed: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"""
import os, pathlib, sys
seen = pathlib.Path({str(tmp_path / "seen")!r})
if "tda.bench.worker" in sys.orig_argv and not seen.exists():
    seen.touch()
    os.kill(os.getpid(), 35)  # a signal without a name
"""
    plant(tmp_path / "fault", monkeypatch, code)
    watched = Watched(tmp_path)
    watched.run()
    assert watched.good == undisturbed.good
    assert not watched.raised
    assert any("ended by signal 35" in said for said in watched.told)


@pytest.mark.slow
def test_a_killed_worker_whose_child_lives_on_is_noticed(
    undisturbed: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child holds the worker's socket, so that does not close."""
    seen = tmp_path / "seen"
    code = f"""
        import os, pathlib, signal, time
        seen = pathlib.Path({str(seen)!r})
        if not seen.exists():
            child = os.fork()
            if child == 0:
                time.sleep(600)
            seen.write_text(str(child))
            os.kill(os.getpid(), signal.SIGKILL)
"""
    plant(tmp_path / "fault", monkeypatch, in_magnitude("").replace("        \n", code))
    watched = Watched(tmp_path, Limits(silence_s=60.0))
    watched.run()
    assert [one.failure.kind for one in watched.failed] == ["killed"]
    assert watched.good == undisturbed.good
    child = int(seen.read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_worker_that_closes_stderr_costs_its_supervisor_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor does not turn in circles beside what is timed."""
    code = "import os, sys\nif 'tda.bench.worker' in sys.orig_argv: os.close(2); os.open(os.devnull, os.O_WRONLY)"
    plant(tmp_path / "fault", monkeypatch, f"{code}\n{in_magnitude('import time; time.sleep(5)')}")
    watched = Watched(tmp_path)
    begin = time.process_time()
    watched.run()
    assert not watched.failed
    assert time.process_time() - begin < 3


@pytest.mark.slow
def test_time_that_is_over_ends_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path / "fault", monkeypatch, in_magnitude("while True: pass"))
    watched = Watched(tmp_path, Limits(seconds=20.0, late_s=5.0))
    begin = time.monotonic()
    watched.run()
    assert time.monotonic() - begin < 90
    assert {one.failure.kind for one in watched.failed} == {"timeout"}
    assert "after its time was over" in watched.failed[0].reason


@pytest.mark.slow
def test_the_budget_of_a_bench_reaches_its_workers(tmp_path: Path) -> None:
    import tda

    begin = time.monotonic()
    tda.run_bench(
        tmp_path, models=["ref:swiglu"], methods=["griffin"], sparsities=[0.5], prompt_tokens=16, new_tokens=4,
        documents=4, calibration_documents=2, rounds=100_000, budget="15s", isolate=True,
    )  # fmt: skip
    assert time.monotonic() - begin < 60
    assert (tmp_path / "left_out.jsonl").read_text()


@pytest.mark.slow
def test_a_relative_path_is_of_the_folder_that_a_worker_runs_in(tmp_path: Path) -> None:
    """A machine of a cluster has another working folder than the sweep."""
    import tda

    model, tokenizer = tda.load_model("ref:swiglu")
    model.save_pretrained(tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "own")
    watched = Watched(tmp_path, Limits(folder=tmp_path), replace(PLAN, subjects=(Subject("own", speed=False),)))
    watched.run()
    assert watched.good
    assert not watched.failed


def test_closing_ends_the_worker(tmp_path: Path) -> None:
    messages = supervised(orders(tmp_path), [], Limits())
    pid = next(message.value[2] for message in messages if message.kind == "hello")
    assert psutil.pid_exists(pid)
    messages.close()
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_worker_does_not_outlive_its_supervisor(tmp_path: Path) -> None:
    import subprocess
    import sys

    task = tmp_path / "orders"
    task.write_bytes(pickle.dumps(orders(tmp_path)))
    script = (
        "import pickle, sys\nfrom tda.bench.supervisor import Limits, supervised\n"
        "for message in supervised(pickle.load(open(sys.argv[1], 'rb')), [], Limits()):\n"
        "    if message.kind == 'hello': print(message.value[2], flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(task)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        worker = psutil.Process(pid)
        parent.kill()
    worker.wait(20)


def test_an_order_that_no_process_understands_is_refused(tmp_path: Path) -> None:
    import tda

    class Own(tda.Griffin):
        name: ClassVar[str] = "own"

    with pytest.raises(TypeError, match="name methods by their specs"):
        order_of(replace(PLAN, methods=(Own(sparsity=0.5),)), 0, tmp_path, "")


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before + 1

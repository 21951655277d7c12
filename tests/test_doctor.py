"""The doctor: what it says of noise, load and limits, and that it says so in sentences."""

import contextlib
import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tda.changes.alternate import Task
from tda.changes.effects import TRIM
from tda.changes.floor import Floor
from tda.changes.workbench import NotMeasuredError
from tda.doctor import Checkup, checkup, rows, verdict
from tda.doctor import budget as budget_module
from tda.doctor.budget import Budget
from tda.doctor.noise import BLOCKS, Noise, measure_noise, noise_of
from tda.history.nights import Unit
from tda.limits import Scaling
from tda.records import Flag
from tda.telemetry.cpu import BackgroundProcess
from tests import nights
from tests.busy import half_of_the_cores
from tests.nights import MACHINE


def floor(variance: float, dof: int = 7) -> Floor:
    named = {"source": "doctor", "machine": "m", "case": "c", "label": "dense on shape:25m", "split": "decode"}
    return Floor(**named, relative=False, variance=variance, dof=dof)


def test_single_processes_differ_by_twice_the_variance_of_one() -> None:
    found = noise_of(floor(1e-4))
    assert (found.processes, found.case, found.split) == (8, "dense on shape:25m", "decode")
    assert found.spread == pytest.approx(0.01)
    assert found.single == pytest.approx(np.expm1(stats.t.ppf(0.995, 7) * np.sqrt(2e-4)))
    assert found.resolved < found.single


def test_what_is_resolved_holds_for_builds_that_are_alike() -> None:
    """Builds of equal processes differ by more than that in 1% of comparisons, by the estimator that compare uses."""
    spread, trials, draw = 0.03, 20_000, np.random.default_rng(0)
    found = noise_of(floor(spread**2, dof=100_000))
    differences = np.sort(draw.normal(0, spread, (trials, BLOCKS)) - draw.normal(0, spread, (trials, BLOCKS)))
    cut = int(TRIM * BLOCKS)
    seen = np.abs(differences[:, cut : BLOCKS - cut].mean(1)) > np.log1p(found.resolved)
    assert 0.005 < seen.mean() < 0.02


NOISE = Noise(case="dense on shape:25m", split="decode", processes=8, spread=0.01, single=0.05, resolved=0.02)
QUIET = Flag(raised=False, detail="other processes used 1% of the cores")


def found(**changes: object) -> Checkup:
    flags = {
        "foreign_load": QUIET,
        "oversubscribed": Flag(raised=False, detail="2 on 2"),
        "throttling": Flag(raised=False, detail="no"),
        "clocks": Flag(raised=False, detail="3 GHz"),
    }
    told = {
        "machine": MACHINE,
        "device": "cpu",
        "kernels": "c (kernels in C)",
        "driver": "no driver: NVML Shared Library Not Found",
        "gpus": (),
        "flags": flags,
        "foreign_percent": 1.0,
        "neighbours": (BackgroundProcess(name="cron", share=0.001),),
        "stream_gb_per_s": 20.0,
        "matmul_tflop_per_s": {"float32": 0.1, "bfloat16": 0.2},
        "scaling": (
            Scaling(threads=1, stream_gb_per_s=10.0, matmul_tflop_per_s=0.1),
            Scaling(threads=2, stream_gb_per_s=15.0, matmul_tflop_per_s=0.2),
        ),
        "noise": (NOISE,),
    }
    return Checkup(**{**told, **changes, "flags": {**flags, **changes.pop("flags", {})}})


def test_a_quiet_machine_is_fit_and_says_for_what() -> None:
    load, gpu, threads, fit = verdict(found())
    assert re.match("quiet: .* 1% ", load)
    assert gpu.startswith("no GPU: no driver: ")
    assert re.search(r"2 threads .*1\.5 times the bandwidth .*2\.0 times the matmul rate .*uses 2$", threads)
    assert re.match(r"fit .*2\.0% .*8 processes each, 5\.0% .*single processes \(dense on shape:25m, .*8 ", fit)


def test_without_a_gpu_it_says_why() -> None:
    hidden = found(driver="580.65.06", gpus_missing="CUDA_VISIBLE_DEVICES='' leaves none of 2")
    assert "no GPU: CUDA_VISIBLE_DEVICES='' leaves none of 2" in verdict(hidden)
    machine = MACHINE.model_copy(update={"torch": "2.13.0+cpu"})
    told = verdict(found(gpus=({"name": "FAKE H100"},), driver="FAKE.1", machine=machine))
    assert any(re.search(r"GPUs .*\(1\).* without CUDA", sentence) for sentence in told)


def test_a_loaded_machine_names_who_loads_it() -> None:
    busy = Flag(raised=True, detail="other processes used 48% of the cores")
    people = tuple(
        BackgroundProcess(name=name, share=share) for name, share in (("python", 0.47), ("sshd", 0.01), ("x", 0.001))
    )
    first = verdict(found(flags={"foreign_load": busy}, neighbours=people))[0]
    assert re.match(r"loaded: .*48% .*\(python 47%, sshd 1%\); .*flagged$", first)


def test_what_cannot_be_told_is_said() -> None:
    hidden = Flag(raised=None, detail="the clock is not observable: a virtual machine")
    slow = Flag(raised=True, detail="heat slowed cores 3 times")
    many = Flag(raised=True, detail="8 on 1")
    flags = {"clocks": hidden, "throttling": slow, "oversubscribed": many}
    told = verdict(found(flags=flags, noise=(), noise_missing="it died", unfinished=("no time for it",)))
    assert "clocks: the clock is not observable: a virtual machine" in told
    assert "throttling: heat slowed cores 3 times" in told
    assert "oversubscribed: 8 on 1" in told
    assert "no time for it" in told
    assert told[-1].endswith(": it died")


def test_a_noisy_machine_is_not_fit() -> None:
    noisy = NOISE.model_copy(update={"resolved": 0.4, "single": 0.9})
    assert re.match(r"not fit for speed .*40\.0%", verdict(found(noise=(NOISE, noisy)))[-1])


def test_gpus_are_told_in_words() -> None:
    gpu = {"name": "FAKE H100", "MIG": "off"}
    told = found(gpus=(gpu,), driver="FAKE.1")
    assert any(re.search(r"GPUs .*\(1\) .*not tried: --device cuda ", sentence) for sentence in verdict(told))
    table = {row["what"]: row["value"] for row in rows(told)}
    assert table["GPU 0"] == "FAKE H100, MIG off"
    assert table["NVIDIA driver"] == "FAKE.1"
    assert "20.0 GB/s" in table["stream bandwidth, cpu"]
    assert "2.0% with 8 of each" in table["A/A decode of dense on shape:25m"]


@pytest.fixture
def tda(command: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    return functools.partial(command, "doctor")


def no_processes(device: str, budget: Budget) -> tuple[Noise, ...]:
    raise NotMeasuredError("not in this test")


def test_beside_a_busy_loop_it_says_that_the_machine_is_loaded(tda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "measure_noise", no_processes)
    with half_of_the_cores():
        code, out, _ = tda("--json")
    told = json.loads(out)
    assert code == 0
    assert told["verdict"][0].startswith("loaded: other processes used")
    assert "python" in told["verdict"][0]
    assert told["flags"]["foreign_load"]["raised"] is True
    assert told["stream_gb_per_s"] > 0
    assert set(told["matmul_tflop_per_s"]) == {"float32", "bfloat16"}
    assert told["noise_missing"] == "not in this test"


def test_it_prints_a_table_and_sentences(tda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tda.doctor.check_up", lambda device: found())
    code, out, _ = tda()
    assert code == 0
    assert "stream bandwidth, cpu" in out
    assert "fit to see decode change by 2.0%" in out


def test_an_unknown_device_is_wrong_use(tda) -> None:
    code, _, err = tda("--device", "warp")
    assert code == 2
    assert "unknown device 'warp'" in err


@pytest.mark.slow
def test_the_whole_of_it_with_real_processes() -> None:
    """On a slow or loaded machine it does less, and says so."""
    command = [sys.executable, "-m", "tda.cli.main", "doctor", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert "fit" in told["verdict"][-1]
    if told["noise_missing"] is not None:
        assert "of 8 processes ended well" in told["noise_missing"] or "no end after" in told["noise_missing"]
        return
    series = {(one["split"], one["case"]) for one in told["noise"]}
    assert ("decode", "dense on shape:25m") in series
    assert all(0 < one["resolved"] < one["single"] for one in told["noise"])
    (processes,) = {one["processes"] for one in told["noise"]}
    assert 4 <= processes <= 8
    assert (processes < 8) == any("the noise is learnt from" in sentence for sentence in told["unfinished"])


# The time that it takes, by a clock of the test.


class Clock:
    """A clock that goes when the test says so."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(budget_module, "time", made)
    return made


class Processes:
    """Processes that take these seconds by the clock, and are ended at the end of their time."""

    def __init__(self, clock: Clock, takes_s: Iterable[float], fails: int | None = None) -> None:
        self.clock = clock
        self.takes_s = iter(takes_s)
        self.fails = fails
        self.ran = 0

    def runner(self, night: str, work: object, timeout_s: float) -> "Processes":
        self.night, self.timeout_s = night, timeout_s
        return self

    def run(self, task: Task) -> Unit:
        self.ran += 1
        seconds = next(self.takes_s)
        self.clock.now += min(seconds, self.timeout_s)
        place = {
            "night": self.night,
            "grid": task.grid.name,
            "role": task.role,
            "block": task.block,
            "order": task.order,
        }
        if seconds > self.timeout_s:
            return nights.unit(task.build.commit, [], status="timeout", reason="no end", **place)
        if self.ran == self.fails:
            return nights.unit(task.build.commit, [], status="crash", reason="boom", **place)
        return nights.unit(task.build.commit, [nights.record(decode_ms=8.0 + 0.01 * self.ran)], **place)


def seek(monkeypatch: pytest.MonkeyPatch, played: Processes) -> tuple[Budget, tuple[Noise, ...]]:
    monkeypatch.setattr("tda.changes.workbench.Runner", played.runner)
    budget = Budget(100.0)
    return budget, measure_noise("cpu", budget)


@pytest.mark.parametrize(
    ("takes_s", "processes", "unfinished"),
    [
        (6.0, 8, []),
        (12.5, 8, []),
        (
            20.0,
            4,
            ["the noise is learnt from 4 processes, not from 8: a pair takes 40 s here, and 20 s of 100 were left"],
        ),
    ],
)
def test_slow_processes_are_fewer(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, takes_s: float, processes: int, unfinished: list[str]
) -> None:
    budget, noise = seek(monkeypatch, Processes(clock, repeat(takes_s)))
    assert {one.processes for one in noise} == {processes}
    assert budget.spent == processes * takes_s
    assert budget.unfinished == unfinished


@pytest.mark.parametrize(
    ("takes_s", "fails", "reason"),
    [
        (30.0, None, "2 of 8 processes ended well, and 4 are needed: a pair takes 60 s here, and 40 s of 100 were"),
        (60.0, None, "timeout: no end"),
        (9.0, 3, "3 of 8 processes ended well, and 4 are needed: crash: boom"),
    ],
)
def test_too_few_processes_tell_nothing(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, takes_s: float, fails: int | None, reason: str
) -> None:
    with pytest.raises(NotMeasuredError, match=reason):
        seek(monkeypatch, Processes(clock, repeat(takes_s), fails))
    assert clock.now <= 1100.0


def test_one_that_fails_late_is_told(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    budget, noise = seek(monkeypatch, Processes(clock, repeat(9.0), fails=6))
    assert {one.processes for one in noise} == {5}
    (unfinished,) = budget.unfinished
    assert re.search("noise .* 5 processes, .* 8: crash: boom$", unfinished)


@given(takes_s=st.lists(st.floats(0.1, 1000), min_size=8, max_size=8))
def test_however_long_processes_take_the_time_is_kept(takes_s: list[float]) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(budget_module, "time", clock)
        with contextlib.suppress(NotMeasuredError):
            seek(monkeypatch, Processes(clock, takes_s))
    assert clock.now <= 1100.0 + 1e-6


@pytest.mark.parametrize(("takes_s", "threads"), [(1.0, [1, 2, 4]), (20.0, [1, 2]), (60.0, [1])])
def test_slow_limits_leave_time_for_the_noise(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, takes_s: float, threads: list[int]
) -> None:
    ended = []

    def scaling() -> Iterator[Scaling]:
        try:
            for count in (1, 2, 4):
                clock.now += takes_s
                yield Scaling(threads=count, stream_gb_per_s=1.0, matmul_tflop_per_s=1.0)
        finally:
            ended.append(True)

    monkeypatch.setattr(checkup, "thread_scaling", scaling)
    monkeypatch.setattr(checkup, "machine", lambda device: MACHINE.model_copy(update={"cores": 4}))
    budget = Budget(100.0)
    assert [one.threads for one in checkup.limits_by_threads(budget)] == threads
    assert ended == [True]
    told = [
        f"more than {threads[-1]} threads were not tried: the limits took {takes_s * len(threads):.0f} s until there"
    ]
    assert budget.unfinished == (told if threads[-1] < 4 else [])

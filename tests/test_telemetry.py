"""What the machine does while work runs: sampled, read before and after, and what that says against numbers."""

import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tda.cores import control_groups
from tda.records import Flag
from tda.telemetry import ConditionChange, ConditionMonitor, Sampler, Telemetry, cpu, flags_of, sampler
from tda.telemetry.cpu import BackgroundProcesses, CpuUse, frequency_mhz, thermal_events, throttled_s
from tda.telemetry.fields import CPU_FIELDS, GPU_FIELDS, Field
from tda.telemetry.source import NotReadableError, Reader, TelemetrySource, one
from tests.busy import half_of_the_cores

CPU = torch.device("cpu")
FIELDS = {name: Field("things", "a field of a test") for name in ("quick", "slow", "bad")}


# Sources.


def fails(error: Exception) -> Callable[[], float]:
    def read() -> float:
        raise error

    return read


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotReadableError("it is not told here"), "it is not told here"),
        (FileNotFoundError(2, "No such file"), "FileNotFoundError: [Errno 2] No such file"),
        (RuntimeError("planted"), "RuntimeError: planted"),
    ],
)
def test_a_field_that_fails_is_given_up_with_its_reason(error: Exception, reason: str) -> None:
    tries: list[int] = []

    def read() -> float:
        tries.append(1)
        return fails(error)()

    source = TelemetrySource("cpu", FIELDS, [one("bad", read), one("quick", lambda: 7.0)])
    assert [dict(source.read()) for _ in range(3)] == [{"quick": 7.0}] * 3
    assert source.missing == {"bad": reason}
    assert len(tries) == 1


def test_one_of_several_fields_may_fail_alone() -> None:
    values: Mapping[str, Any] = {"quick": 1.0, "bad": NotReadableError("not this one")}
    source = TelemetrySource("cpu", FIELDS, [Reader(("quick", "bad"), lambda: values)])
    assert [dict(source.read()) for _ in range(2)] == [{"quick": 1.0}] * 2
    assert source.missing == {"bad": "not this one"}


# The CPU.


def test_every_field_of_the_cpu_has_a_value_or_a_reason() -> None:
    with Sampler(CPU) as sampled:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
    series = sampled.telemetry.series
    assert set(series) == {f"cpu/{name}" for name in CPU_FIELDS}
    for name, told in series.items():
        assert told.samples or told.missing, name
    assert series["cpu/rss_bytes"].samples[-1] > 1 << 20
    assert series["cpu/minor_faults"].samples[-1] > 0
    assert max(series["cpu/own_percent"].samples) > 0


ACCOUNT = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
TICK = os.sysconf("SC_CLK_TCK")


def account(*cores: Mapping[str, float], numbers: Sequence[int] | None = None) -> str:
    """What the system tells of its cores' seconds, after the line of all of them."""
    rows = [" ".join(str(round(core.get(name, 0) * TICK)) for name in ACCOUNT) for core in cores]
    lines = [f"cpu{number} {row}" for number, row in zip(numbers or range(len(rows)), rows, strict=True)]
    return "\n".join(["cpu  " + " ".join("9" * 3 for _ in ACCOUNT), *lines, "intr 5 0 0", "ctxt 7"])


def use_of(
    monkeypatch: pytest.MonkeyPatch, stat: Path, ours: set[int], before: str, after: str, own: float = 0.0
) -> dict[str, float]:
    """Shares that are told where the system says this before and after, and `own` seconds are this process's."""
    used = iter([0.0, own])
    monkeypatch.setattr(cpu, "time", SimpleNamespace(process_time=lambda: next(used)))
    monkeypatch.setattr(cpu, "allowed_cores", lambda: frozenset(ours))
    stat.write_text(before)
    use = CpuUse(stat)
    stat.write_text(after)
    return use.read()


seconds = st.integers(0, 10**4)


@given(
    user=seconds,
    system=seconds,
    idle=seconds,
    iowait=seconds,
    steal=seconds,
    guest=st.floats(0, 1),
    own=st.floats(0, 1),
)
def test_shares_of_the_cores_add_up(
    tmp_path_factory: pytest.TempPathFactory,
    user: int,
    system: int,
    idle: int,
    iowait: int,
    steal: int,
    guest: float,
    own: float,
) -> None:
    """Own and foreign share and idleness make a whole; waiting for a disk is idle, stolen time is foreign."""
    row = {"user": user, "system": system, "idle": idle, "iowait": iowait, "steal": steal, "guest": guest * user}
    total, busy = user + system + idle + iowait + steal, user + system + steal
    stat = tmp_path_factory.getbasetemp() / "stat"
    with pytest.MonkeyPatch.context() as monkeypatch:
        told = use_of(monkeypatch, stat, {0}, account({}), account(row), own * busy)
    if total == 0:
        assert told == {}
        return
    assert told["own_percent"] == pytest.approx(100 * own * busy / total, abs=1e-6)
    assert told["own_percent"] + told["foreign_percent"] == pytest.approx(100 * busy / total, abs=1e-6)


RESTS, WORKS, HALF = {"idle": 10}, {"user": 10}, {"user": 5, "idle": 5}


@pytest.mark.parametrize(
    ("cores", "ours", "foreign"),
    [
        ([HALF] + 63 * [RESTS], {0}, 50),  # a neighbour takes half of our core, less than a hundredth of all 64
        ([RESTS, WORKS], {0}, 0),  # work on the core that is not ours is none of our business
        ([RESTS, WORKS, HALF, WORKS], {0, 2}, 25),
        ([RESTS, WORKS], {0, 1}, 50),
    ],
)
def test_load_is_that_of_the_cores_that_are_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cores: list[dict[str, float]], ours: set[int], foreign: float
) -> None:
    told = use_of(monkeypatch, tmp_path / "stat", ours, account(*len(cores) * [{}]), account(*cores))
    assert told == {"own_percent": 0, "foreign_percent": foreign}


def test_cores_that_rest_for_ever_shift_no_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A core that is switched off has no line of its own."""
    before, after = (account(*rows, numbers=[0, 5]) for rows in ([{}, {}], [WORKS, HALF]))
    assert use_of(monkeypatch, tmp_path / "stat", {5}, before, after)["foreign_percent"] == 50
    with pytest.raises(NotReadableError, match="does not tell the times of the cores"):
        use_of(monkeypatch, tmp_path / "stat", {0, 1}, before, after)


def test_where_the_system_keeps_no_account_all_cores_count(tmp_path: Path) -> None:
    assert len(cpu.core_times(tmp_path / "none")) == len(cpu.core_times(cpu.STAT))


def test_a_neighbour_that_cannot_run_on_our_cores_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with half_of_the_cores():
        monkeypatch.setattr(cpu, "affinity", lambda process: frozenset({10_000}))
        neighbours = BackgroundProcesses()
        assert neighbours.read() == []


def test_own_threads_are_not_foreign() -> None:
    def work() -> None:
        end = time.thread_time() + 0.5
        while time.thread_time() < end:
            torch.ones(1 << 16).sum()

    neighbours, use, begin = BackgroundProcesses(), CpuUse(), time.process_time()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told, others = use.read(), sum(one.share for one in neighbours.read())
    assert time.process_time() - begin >= 1.0
    assert told["own_percent"] > 0
    assert told["foreign_percent"] <= 100 * others + 25  # the processes that the system lists, and its own work


def test_a_busy_process_is_foreign_load_and_has_a_name() -> None:
    with half_of_the_cores():
        monitor, neighbours = ConditionMonitor(CPU), BackgroundProcesses()
        time.sleep(1.0)
        change, found = monitor.read(), neighbours.read()
    flag = flags_of(change)["foreign_load"]
    assert flag.raised
    assert "other processes used" in flag.detail
    assert "python" in found[0].name
    assert found[0].share > 0.1


def tree(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_clock_is_that_of_the_fastest_core(tmp_path: Path) -> None:
    own = sorted(os.sched_getaffinity(0))
    cores = {f"cpu{core}/cpufreq/scaling_cur_freq": f"{2_000_000 + core}\n" for core in own}
    assert frequency_mhz(tree(tmp_path, cores)) == (2_000_000 + own[-1]) / 1000
    with pytest.raises(NotReadableError, match="no clock of its cores"):
        frequency_mhz(tmp_path / "none")


def test_heat_is_counted_over_cores(tmp_path: Path) -> None:
    counts = {f"cpu{core}/thermal_throttle/core_throttle_count": f"{core + 1}\n" for core in range(3)}
    assert thermal_events(tree(tmp_path, counts)) == 6
    with pytest.raises(NotReadableError, match="does not count what heat slows"):
        thermal_events(tmp_path / "none")


V1, V2 = "nr_periods 5\nnr_throttled 2\nthrottled_time 1500000000\n", "usage_usec 9\nthrottled_usec 1500000\n"
GROUPS = {
    "version 2": ("0::/user/job\n", {"user/job/cpu.stat": V2, "cpu.stat": "usage_usec 9\n"}),
    "a group above": ("0::/user/job\n", {"user/job/cpu.stat": V2.replace("15", "0"), "user/cpu.stat": V2}),
    "version 2, in a container": ("0::/user/job\n", {"cpu.stat": V2}),
    "version 1": (
        "4:memory:/x\n3:cpu,cpuacct:/job\n0::/\n",
        {"cpu/job/cpu.stat": V1, "cpu/cpu.stat": V1.replace("15", "0")},
    ),
    "version 1, in a container": ("3:cpuacct,cpu:/job\n", {"cpu/cpu.stat": V1}),
}


@pytest.mark.parametrize("where", GROUPS)
def test_a_cpu_quota_is_found_in_either_version_of_control_groups(tmp_path: Path, where: str) -> None:
    own, files = GROUPS[where]
    (tmp_path / "own").write_text(own)
    assert throttled_s(control_groups(tree(tmp_path / "groups", files), tmp_path / "own")) == 1.5


def test_a_root_group_has_no_quota(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("4:memory:/x\n0::/\n")
    with pytest.raises(NotReadableError, match=r"control group .*CPU quota"):
        throttled_s(control_groups(tree(tmp_path / "groups", {"cpu.stat": "usage_usec 9\n"}), tmp_path / "own"))


# The sampler.


def play(monkeypatch: pytest.MonkeyPatch, *readers: Reader) -> None:
    monkeypatch.setattr(sampler, "sources", lambda *devices: [TelemetrySource("cpu", FIELDS, readers)])


def counter() -> Callable[[], float]:
    values = iter(range(10**6))
    return lambda: float(next(values))


def test_samples_come_before_and_after_the_block_with_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, one("quick", counter()), one("bad", fails(NotReadableError("none here"))))
    with Sampler(CPU) as sampled:
        assert any(thread.name == "tda-telemetry" for thread in threading.enumerate())
    assert not any(thread.name == "tda-telemetry" for thread in threading.enumerate())
    told = sampled.telemetry
    quick = told.series["cpu/quick"]
    assert quick.samples == tuple(map(float, range(len(quick.samples))))
    assert len(quick.samples) >= 2
    assert list(quick.stamps) == sorted(quick.stamps)
    assert told.increase("cpu/quick") == len(quick.samples) - 1
    assert told.increase("cpu/bad") is None
    assert (told.series["cpu/bad"].samples, told.series["cpu/bad"].missing) == ((), "none here")
    assert quick.missing is None
    assert Telemetry.model_validate_json(told.model_dump_json()) == told


def test_the_rate_is_the_one_that_was_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round takes longer than the interval: the rate says so, and nothing is made up for."""
    clock, enough = SimpleNamespace(now=0.0), threading.Event()

    def read() -> float:
        clock.now += 0.02
        if clock.now > 0.2:
            enough.set()
        return 1.0

    monkeypatch.setattr(sampler, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(sampler, "INTERVAL_S", 0.01)
    play(monkeypatch, one("quick", read))
    with Sampler(CPU) as sampled:
        assert enough.wait(300)
    assert sampled.telemetry.rate_hz == pytest.approx(1 / 0.02)


def test_a_slow_field_delays_no_last_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, over = threading.Event(), threading.Event()

    def slow() -> float:
        inside.set()
        return float(over.wait(20))  # 1 if the last quick sample came while this one was being read

    def quick() -> float:
        if inside.is_set():
            over.set()
        return 0.0

    monkeypatch.setattr(sampler, "INTERVAL_S", 60.0)
    play(monkeypatch, one("quick", quick), one("slow", slow, slow=True))
    with Sampler(CPU) as sampled:
        assert inside.wait(20)
    assert sampled.telemetry.series["cpu/slow"].samples == (1.0,)


def test_a_field_with_nothing_to_tell_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, Reader(("quick",), dict))
    with Sampler(CPU) as sampled:
        pass
    assert sampled.telemetry.series["cpu/quick"].missing == sampler.NOTHING_YET


def test_an_error_inside_the_block_ends_the_thread_and_keeps_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, one("quick", counter()))
    sampled = Sampler(CPU)
    with pytest.raises(ZeroDivisionError), sampled:
        1 / 0  # noqa: B018
    assert not any(thread.name == "tda-telemetry" for thread in threading.enumerate())
    assert len(sampled.telemetry.series["cpu/quick"].samples) >= 2


# Two readings, and what they say.


def change(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    gpu: bool = False,
    seconds: float = 10.0,
    quota: float | None = None,
    cores: int = 2,
    threads: int = 2,
) -> ConditionChange:
    return ConditionChange(seconds, before, after, {"thermal_events": "no heat here"}, gpu, cores, quota, threads)


def raised(flags: Mapping[Any, Flag]) -> dict[str, bool | None]:
    return {name: flag.raised for name, flag in flags.items()}


def test_a_watch_tells_of_the_time_between_its_readings() -> None:
    monitor = ConditionMonitor(CPU)
    block = torch.ones(1 << 22)
    told = monitor.read()
    assert told.seconds > 0
    assert told.increase("minor_faults") is not None
    assert told.increase("nothing") is None
    assert (told.maximum("rss_bytes") or 0) > block.nbytes
    assert CPU_FIELDS.keys() - {"own_percent", "foreign_percent"} <= told.missing.keys() | told.after.keys()
    assert not told.on_gpu


QUIET = {"foreign_percent": 1.0, "quota_throttled_s": 3.0, "thermal_events": 5.0, "frequency_mhz": 3000.0}
CALM = {"foreign_load": False, "oversubscribed": False, "throttling": False, "clocks": False}
CPU_CASES = {
    "quiet": ({}, CALM),
    "others": ({"foreign_percent": 9.0}, {**CALM, "foreign_load": True}),
    "a quota": ({"quota_throttled_s": 4.0}, {**CALM, "throttling": True}),
    "a quota, hardly": ({"quota_throttled_s": 3.05}, CALM),
    "heat": ({"thermal_events": 6.0}, {**CALM, "throttling": True}),
    "a slower clock": ({"frequency_mhz": 2700.0}, {**CALM, "clocks": True}),
    "nearly the same clock": ({"frequency_mhz": 2900.0}, CALM),
}


@pytest.mark.parametrize("case", CPU_CASES)
def test_flags_on_a_cpu(case: str) -> None:
    moved, expected = CPU_CASES[case]
    flags = flags_of(change(QUIET, {**QUIET, **moved}))
    assert raised(flags) == expected
    assert all(flag.detail for flag in flags.values())


def test_what_cannot_be_seen_is_neither_raised_nor_cleared() -> None:
    assert raised(flags_of(change({}, {}))) == {**dict.fromkeys(CALM), "oversubscribed": False}
    part = {"quota_throttled_s": 0.0}
    flag = flags_of(change(part, part))["throttling"]
    assert flag.raised is None
    assert re.fullmatch(r".*quota .*0\.00 s; heat .*: no heat here", flag.detail)
    assert flags_of(change(part, {"quota_throttled_s": 9.0}))["throttling"].raised  # one reason is enough


@pytest.mark.parametrize(
    ("threads", "cores", "quota", "told"),
    [
        (3, 2, None, "torch's threads: 3 on 2 cores; OMP_NUM_THREADS=2 avoids it"),
        (2, 1, None, "torch's threads: 2 on 1 core; OMP_NUM_THREADS=1 avoids it"),
        (2, 2, 1.5, "torch's threads: 2 on 1.5 of 2 cores, by a CPU quota; OMP_NUM_THREADS=1 avoids it"),
    ],
)
def test_more_threads_than_cores_are_flagged(threads: int, cores: int, quota: float | None, told: str) -> None:
    flag = flags_of(change(QUIET, QUIET, quota=quota, cores=cores, threads=threads))["oversubscribed"]
    assert flag == Flag(raised=True, detail=told)


@pytest.mark.parametrize(
    ("threads", "quota", "told"),
    [
        (2, None, "torch's threads: 2 on 2 cores"),
        (2, 4.0, "torch's threads: 2 on 2 cores"),
        (1, 0.5, "torch's threads: 1 on 0.5 of 2 cores, by a CPU quota"),  # it cannot be fewer
    ],
)
def test_as_many_threads_as_cores_are_well(threads: int, quota: float | None, told: str) -> None:
    flag = flags_of(change(QUIET, QUIET, quota=quota, threads=threads))["oversubscribed"]
    assert flag == Flag(raised=False, detail=told)


def test_ticks_of_the_timer_are_no_foreign_load() -> None:
    """In a short block a share of a few ticks is rounding; over a long one it is load."""
    share = {"foreign_percent": 15.0}
    assert flags_of(change({}, share, seconds=0.1))["foreign_load"].raised is False
    assert flags_of(change({}, share, seconds=1.0))["foreign_load"].raised is True


values = st.dictionaries(st.sampled_from([*CPU_FIELDS, *GPU_FIELDS]), st.floats(0, 1e12))


@given(before=values, after=values, gpu=st.booleans(), length=st.floats(1e-3, 1e4))
def test_any_readings_give_the_same_flags(
    before: dict[str, float], after: dict[str, float], gpu: bool, length: float
) -> None:
    flags = flags_of(change(before, after, gpu=gpu, seconds=length))
    assert set(flags) == set(CALM)
    assert all(flag.detail for flag in flags.values())
    clock = "sm_clock_mhz" if gpu else "frequency_mhz"
    assert (flags["clocks"].raised is None) == (clock not in before or clock not in after)

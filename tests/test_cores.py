"""The cores that are ours, by affinity and by quota, as files of a system tell them and as this one does."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tda import cores
from tda.cores import affinity, all_cores, allowed_cores, control_groups, cpu_quota, last_level_cache
from tda.device import machine

ROOT = Path(__file__).parent.parent


def tree(folder: Path, own: str, files: Mapping[str, str]) -> tuple[Path, Path]:
    """A folder of control groups, and the file that tells this process's own."""
    for name, text in files.items():
        (folder / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name).write_text(text)
    (folder / "own").write_text(own)
    return folder / "groups", folder / "own"


QUOTAS: Mapping[str, tuple[str, Mapping[str, str], float | None]] = {
    "version 2": ("0::/user/job\n", {"user/job/cpu.max": "150000 100000\n", "user/cpu.max": "max 100000\n"}, 1.5),
    "version 2, the group above has less": (
        "0::/pod/job\n",
        {"pod/job/cpu.max": "400000 100000\n", "pod/cpu.max": "100000 50000\n"},
        2.0,
    ),
    "version 2, only a group above has one": ("0::/pod/job\n", {"pod/cpu.max": "50000 100000\n"}, 0.5),
    "version 2, in a container": ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
    "version 2, in a container that is told its path": ("0::/pod/job\n", {"cpu.max": "200000 100000\n"}, 2.0),
    "version 2, without a limit": ("0::/job\n", {"job/cpu.max": "max 100000\n"}, None),
    "version 2, at the root": ("0::/\n", {"cpu.stat": "usage_usec 9\n"}, None),
    "version 1": (
        "4:memory:/x\n3:cpu,cpuacct:/job\n0::/\n",
        {"cpu/job/cpu.cfs_quota_us": "50000\n", "cpu/job/cpu.cfs_period_us": "100000\n", "cpu/cpu.stat": "x 1\n"},
        0.5,
    ),
    "version 1, without a limit": (
        "3:cpuacct,cpu:/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    "another controller's group": ("4:cpuset:/x\n", {"cpu/x/cpu.cfs_quota_us": "1\n", "x/cpu.max": "1 2\n"}, None),
    "nonsense": ("0::/job\n", {"job/cpu.max": "many\n", "cpu.max": "300000 100000\n"}, 3.0),
}


@pytest.mark.parametrize("where", QUOTAS)
def test_a_quota_is_the_least_of_all_groups(tmp_path: Path, where: str) -> None:
    own, files, quota = QUOTAS[where]
    assert cpu_quota(*tree(tmp_path, own, files)) == quota


def test_what_cannot_be_read_is_no_limit(tmp_path: Path) -> None:
    groups, own = tree(tmp_path, "0::/job\n", {"job/cpu.max/file": "a folder in place of a file"})
    assert cpu_quota(groups, own) is None
    assert cpu_quota(groups, tmp_path / "none") is None


def test_groups_come_from_the_own_one_upwards(tmp_path: Path) -> None:
    groups, own = tree(tmp_path, "0::/user/job\n", {})
    assert list(control_groups(groups, own)) == [groups / "user" / "job", groups / "user", groups]


def test_all_threads_of_a_process_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """OpenMP binds each thread to a core: the first one's affinity says nothing of the others'."""
    for thread in ("11", "12"):
        (tmp_path / thread).mkdir()
    monkeypatch.setattr(cores, "THREADS", tmp_path)
    monkeypatch.setattr(cores, "affinity", lambda thread: frozenset({thread % 10}))
    assert allowed_cores() == {1, 2}
    monkeypatch.setattr(cores, "THREADS", tmp_path / "none")
    assert allowed_cores() == {0}


def test_where_nothing_binds_processes_all_cores_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert affinity(0) == allowed_cores() == all_cores()


def test_threads_wait_briefly_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen, found in (({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, None)):
        for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in chosen.items():
            monkeypatch.setenv(name, value)
        cores.wait_briefly()
        assert os.environ.get("GOMP_SPINCOUNT") == found


def test_a_command_says_so_before_torch_is_there() -> None:
    """OpenMP's runtime reads it once, when torch loads it."""
    script = """if True:
        import os, sys
        from tda.cli import main
        main.app = lambda: print("torch" in sys.modules, os.environ["GOMP_SPINCOUNT"])
        main.main()
    """
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert told.stdout == "False 10000\n"


def test_a_thread_that_has_ended_adds_no_cores() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert affinity(process.pid) == frozenset()


# This system.

LOOK = """
import json, os, sys, time
os.sched_setaffinity(0, json.loads(sys.argv[1]))
import torch
from tda.device import machine
from tda.telemetry import ConditionMonitor, flags_of
from tests.busy import half_of_the_cores
found = machine("cpu")
torch.ones(1 << 22).sum()
with half_of_the_cores():  # they run where this process may
    monitor = ConditionMonitor(torch.device("cpu"))
    time.sleep(0.5)
    change = monitor.read()
flags = {name: flag.raised for name, flag in flags_of(change).items()}
told = {"machine": found.model_dump(), "fingerprint": found.fingerprint, "flags": flags}
print(json.dumps({**told, "threads": torch.get_num_threads()}))
"""


def look(ours: frozenset[int], **environment: str) -> dict[str, Any]:
    """What a process of these cores says of them, while others work there."""
    command = [sys.executable, "-c", LOOK, json.dumps(sorted(ours))]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=inherited | environment)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
class TestThisSystem:
    """Processes that are bound to cores, as a user binds them."""

    def test_a_process_of_one_core(self) -> None:
        ours = frozenset({max(allowed_cores())})
        told = look(ours, OMP_NUM_THREADS="8")
        threads = told["threads"]
        assert told["machine"]["threads"] == threads
        assert told["machine"]["allowed_cores"] == (1 if len(all_cores()) > 1 else None)
        assert told["flags"]["oversubscribed"] == (threads > 1)
        assert told["flags"]["foreign_load"] is True
        free = machine("cpu").model_copy(update={"threads": threads})
        assert (told["fingerprint"] == free.fingerprint) == (len(allowed_cores()) == 1)

    def test_threads_that_openmp_binds_leave_all_cores_ours(self) -> None:
        told = look(allowed_cores(), OMP_PROC_BIND="true")
        assert told["machine"]["allowed_cores"] == machine("cpu").allowed_cores


def caches(folder: Path, shared: Mapping[int, str], level: int, size: str) -> None:
    """Caches of cores as Linux tells them: two private ones, and one that some cores share."""
    for core, cores_of_it in shared.items():
        for index, (one, cpus, amount) in enumerate(((1, core, "48K"), (2, core, "1024K"), (level, cores_of_it, size))):
            place = folder / f"cpu{core}" / "cache" / f"index{index}"
            place.mkdir(parents=True)
            for name, value in (("level", one), ("shared_cpu_list", cpus), ("size", amount)):
                (place / name).write_text(f"{value}\n")


def test_the_last_level_cache_is_that_of_our_cores(tmp_path: Path) -> None:
    """Of two complexes of cores with a cache each: one's is ours where our cores are in one, else both."""
    caches(tmp_path, {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, 3, "32768K")
    assert last_level_cache([0, 1], tmp_path) == 32 << 20
    assert last_level_cache([2], tmp_path) == 32 << 20
    assert last_level_cache([1, 2], tmp_path) == 64 << 20
    assert last_level_cache([7], tmp_path) is None, "the system tells nothing of such a core"
    (tmp_path / "cpu0/cache/index2/size").write_text("")
    assert last_level_cache([0], tmp_path) == 1 << 20, "what can be read"


def test_a_cache_in_megabytes(tmp_path: Path) -> None:
    caches(tmp_path, {0: "0"}, 4, "1M")
    assert last_level_cache([0], tmp_path) == 1 << 20

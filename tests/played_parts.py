"""Parts of a played GPU check, for the tests of what runs them: no torch, so that their processes take no time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_check.figures import Figure, at_least, at_most
from benchmarks.gpu_check.setting import CheckSetting

GOOD = Figure(name="step", value=2.0, unit="ms", goal=at_most(3))


def well(setting: CheckSetting) -> Iterator[Figure]:
    (setting.folder / "results.jsonl").write_text("{}\n")
    yield GOOD


def short(setting: CheckSetting) -> Iterator[Figure]:
    yield Figure(name="speed-up", value=1.24, goal=at_least(1.3), note="1.24 [1.2, 1.28] | told")
    yield Figure(name="width", value=None, goal=at_most(0.2), note="2 rounds")
    yield Figure(name="bandwidth", value=3030.0, unit="GB/s")


def raises(setting: CheckSetting) -> Iterator[Figure]:
    yield GOOD
    raise ValueError("no device 'cuda'")


def crashes(setting: CheckSetting) -> Iterator[Figure]:
    yield GOOD
    print("launching", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(setting: CheckSetting) -> Iterator[Figure]:
    """Waits for ever, and so does a process that it started; both write down who they are."""
    yield GOOD
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path("pids.part").write_text(f"{os.getpid()} {other.pid}")
    os.rename("pids.part", "pids")
    time.sleep(600)


def traces(setting: CheckSetting) -> Iterator[Figure]:
    """Leaves twenty megabytes of traces that cannot be packed any smaller, and what torch compiled."""
    for name, size in {"one": 9 << 20, "other": 11 << 20}.items():
        (setting.folder / name).mkdir()
        (setting.folder / name / "trace.pt.trace.json.gz").write_bytes(os.urandom(size))
        (setting.folder / name / "profile.json").write_text("{}")
    (setting.folder / "inductor").mkdir()
    (setting.folder / "inductor" / "code.py").write_text("")
    yield GOOD

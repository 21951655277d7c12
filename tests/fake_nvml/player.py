"""Python with a played NVIDIA driver: a child process whose real pynvml loads the library that is built from nvml.c."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("nvml.c")
LIBRARY = "libnvidia-ml.so.1"
ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import json, os, sys, traceback
import torch
torch.cuda.is_available = lambda: False  # what a real GPU here says must not mix with what is played
from tda.telemetry import nvml
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    order = json.loads(line)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"):
        os.environ.pop(name, None)
    os.environ.update(order["environment"])
    nvml.library.cache_clear()  # opened anew, the played time begins anew
    held = {}
    try:
        exec(order["code"], held)
        told = {"result": held.get("result")}
    except Exception:
        told = {"error": traceback.format_exc()}
    print(json.dumps(told), file=answers, flush=True)
"""


def build(folder: Path, *options: str) -> Path:
    """Compile the library into a folder; the folder."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise FileNotFoundError("no C compiler: cc or gcc")
    folder.mkdir(parents=True, exist_ok=True)
    command = [compiler, "-shared", "-fPIC", *options, f"-Wl,-soname,{LIBRARY}", "-o", str(folder / LIBRARY)]
    subprocess.run([*command, str(SOURCE)], check=True, capture_output=True)
    return folder


class Player:
    """Runs code in the child, each time before a driver in the state that is told.

    Parameters
    ----------
    folder : Path
        Where the library is.
    """

    def __init__(self, folder: Path) -> None:
        self._state = folder / "state"
        paths = [str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        self._child = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(paths), "FAKE_NVML": str(self._state)},
        )

    def run(self, code: str, *state: str, **environment: str) -> Any:
        """What the code leaves in `result`, with these lines of nvml.c's state and these variables."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._state.write_text("".join(f"{line}\n" for line in state))
        print(json.dumps({"code": code, "environment": environment}), file=self._child.stdin, flush=True)
        told = json.loads(self._child.stdout.readline())
        if "error" in told:
            raise AssertionError(told["error"])
        return told["result"]

    @property
    def pid(self) -> int:
        """Number of the child."""
        return self._child.pid

    def close(self) -> None:
        """End the child."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait(30)
        self._child.stdout.close()

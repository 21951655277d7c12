"""Setting up: the Makefile says what comes, takes an environment that has torch, and leaves what it holds as it is."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from tools import environment

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
FAKE_PYTHON = f"""#!/bin/sh
case "$*" in
    *"pip list"*) echo "torch==2.12.1+cpu\nPyYAML==5.1\npip==20.0\nsetuptools==65.5.0" ;;
    *find_spec*) ls -d "${{0%/bin/python}}"/lib/*/site-packages/torch > /dev/null 2>&1 && echo 1 ;;
    *"pip install"*) echo "$@" >> "${{0%/bin/python}}/pip.log" ;;
    *) exec "{sys.executable}" "$@" ;;
esac
"""
"""Answers what it is, lists its packages and notes what pip is asked for."""


def an_environment(folder: Path, *, torch: bool = True) -> Path:
    """An environment whose pip installs nothing."""
    packages = folder / "lib" / f"python{VERSION}" / "site-packages"
    (packages / "torch" if torch else packages).mkdir(parents=True)
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    return folder


def make(*words: str, **environ: str) -> list[str]:
    """Lines that make prints."""
    command = ["make", "--no-print-directory", *words]
    clean = {"PATH": os.environ["PATH"], **environ}
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def program(*words: str, **environ: str) -> str:
    """Environment that `make bench` would run in."""
    last = make("--dry-run", "bench", *words, **environ)[-1]
    return last.partition("/bin/tda bench")[0]


def test_an_active_environment_is_taken_if_it_has_torch(tmp_path: Path) -> None:
    venv, conda = an_environment(tmp_path / "venv"), an_environment(tmp_path / "conda")
    bare = an_environment(tmp_path / "bare", torch=False)
    assert program() == ".venv"
    assert program(VIRTUAL_ENV=str(venv), CONDA_PREFIX=str(conda)) == str(venv)
    assert program(VIRTUAL_ENV=str(bare), CONDA_PREFIX=str(conda)) == str(conda)
    assert program(VIRTUAL_ENV=str(bare)) == ".venv"
    assert program(f"VENV={bare}", VIRTUAL_ENV=str(venv)) == str(bare)


@pytest.mark.parametrize("target", ["bench", "test"])
def test_the_first_line_says_what_comes_and_how_long_it_takes(tmp_path: Path, target: str) -> None:
    venv = an_environment(tmp_path / "venv")
    first, *_ = make("--dry-run", target, f"VENV={venv}")
    assert f"make {target}: first completes {venv} (once; a minute or two" in first
    (venv / ".ready").touch()
    first, *_ = make("--dry-run", target, f"VENV={venv}")
    assert "completes" not in first
    assert "in about 5 minutes" in first


def test_what_an_environment_held_stays(tmp_path: Path) -> None:
    venv = an_environment(tmp_path / "venv")
    make(str(venv / ".ready-bench"), f"VENV={venv}")
    assert (venv / ".ready-bench").exists()
    fixed = (venv / ".tda-constraints.txt").read_text().splitlines()
    assert {"torch==2.12.1+cpu", "PyYAML==5.1"} <= set(fixed)
    names = [environment.name_of(line) for line in fixed]
    assert names.count("torch") == names.count("pyyaml") == 1
    assert not {"pip==20.0", "setuptools==65.5.0"} & set(fixed)
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert {line for line in pins if line.startswith(("transformers==", "scipy=="))} <= set(fixed)
    asked = (venv / "pip.log").read_text().splitlines()
    assert [line.split()[-1] for line in asked] == ["torch", "."]
    assert all(f"-c {venv / '.tda-constraints.txt'}" in line for line in asked)


def test_what_we_installed_follows_our_pins(tmp_path: Path) -> None:
    """Held is what was there when we first came: later pins reach what is ours."""
    venv = an_environment(tmp_path / "venv")
    (venv / ".tda-kept.txt").write_text("pip==20.0\n")
    make(str(venv / ".ready"), f"VENV={venv}")
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert (venv / ".tda-constraints.txt").read_text().splitlines() == pins
    asked = (venv / "pip.log").read_text().splitlines()
    assert [line.split()[-1] for line in asked] == ["torch", ".[dev]", "torchao", "triton==3.6.0"]


def test_torchao_and_the_older_triton_lie_apart(tmp_path: Path) -> None:
    """Where it lies among an environment's packages, transformers imports it into every process."""
    venv = an_environment(tmp_path / "venv")
    make(str(venv / ".ready"), f"VENV={venv}")
    *others, torchao, triton = (venv / "pip.log").read_text().splitlines()
    assert f"--no-deps --upgrade --target {venv}/misuse -c constraints.txt torchao" in torchao
    assert f"--no-deps --upgrade --target {venv}/triton-3.6 triton==3.6.0" in triton
    assert "torchao" not in [line.split()[-1] for line in others]


def test_a_python_that_is_too_old_is_told_so() -> None:
    with pytest.raises(SystemExit, match=r"Python 3\.11 .*/usr/bin/python3 is 3\.9"):
        environment.check((3, 9), "/usr/bin/python3")
    environment.check((3, 14), "python3")


def test_a_python_without_venv_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="install the package python3-venv"):
        environment.python_of(tmp_path / "none")


def test_a_failed_install_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no way"):
        environment.run([sys.executable, "-c", "raise SystemExit(1)"], "no way")

"""The wheel in a clean environment, beside a method of another distribution, by a user who may write almost nowhere."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks.asv.environment import LENT, packages
from tda.history.nights import History
from tda.nightly.config import load_config
from tda.results import load

pytestmark = pytest.mark.slow
BOUND = "--bounding-set=-dac_override,-dac_read_search"
"""Without these capabilities modes of files hold for root too."""
PLUG_IN = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "tda-sine"
version = "1.2"
[project.entry-points."tda.methods"]
sine = "tda_sine"
lost = "tda_sine_lost"
[project.entry-points."tda.metrics"]
entropy = "tda_sine_entropy"
[tool.setuptools]
py-modules = ["tda_sine", "tda_sine_entropy"]
""",
    "tda_sine.py": '''
from dataclasses import dataclass
from typing import ClassVar

import tda
import torch


@tda.METHODS.register("sine")
@dataclass(frozen=True, kw_only=True)
class Sine(tda.PromptMethod):
    """Keep the neurons whose number has the largest sine."""

    name: ClassVar[str] = "sine"
    phase: float = 0.0

    def scores(self, ffn, statistic, prompt):
        return torch.sin(torch.arange(ffn.F) + self.phase)[None]
''',
    "tda_sine_entropy.py": '''
import tda


@tda.metric("entropy_nats", tda.MeasurementKind(unit="nats/token", better="lower", meaning="entropy of the next token"))
def entropy_nats(method, dense):
    """Mean entropy of the next token."""
    log = method.logits.double().log_softmax(-1)
    return tda.document_mean(-(log.exp() * log).sum(-1), method)
''',
}
"""A distribution with a method, a metric, and an entry point that leads nowhere."""


def wheel(source: Path, folder: Path) -> Path:
    words = ("wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "pip", *words, "-w", str(folder), str(source)], check=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of this module; what is in it can be deleted in the end."""
    folder = tmp_path_factory.mktemp("wheel")
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


@pytest.fixture(scope="module")
def own_wheel(place: Path) -> Path:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (place / "source").mkdir(exist_ok=True)
        shutil.copy(ROOT / name, place / "source" / name)
    shutil.copytree(ROOT / "tda", place / "source" / "tda", ignore=shutil.ignore_patterns("__pycache__"))
    return wheel(place / "source", place / "own")


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def run(place: Path, own_wheel: Path) -> Run:
    """Run a program of the environment in a folder, and with a home, that the user may not write."""
    plug_in = place / "sine"
    plug_in.mkdir()
    for name, text in PLUG_IN.items():
        (plug_in / name).write_text(text)
    environment, here = place / "environment", place / "here"
    venv.create(environment, symlinks=True)
    python, site = environment / "bin" / "python", packages(environment)
    wheels = [str(own_wheel), str(wheel(plug_in, place / "other"))]
    words = ("install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *words, *wheels], check=True)
    (site / LENT).write_text(f"{packages(Path(sys.prefix))}\n")
    here.mkdir()
    (place / "out").mkdir()
    for folder in (here, site, *(path for path in site.rglob("*") if path.is_dir())):
        folder.chmod(0o555)
    user = ["setpriv", BOUND] if os.geteuid() == 0 else []
    if user and (shutil.which("setpriv") is None or subprocess.run([*user, "true"]).returncode):
        pytest.skip("root may write everywhere, and setpriv cannot take that right away here")
    variables = {"PATH": os.environ["PATH"], "HOME": str(here), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def call(program: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [*user, str(environment / "bin" / program), *map(str, arguments)]
        return subprocess.run(command, cwd=here, env=variables, capture_output=True, text=True)

    return call


@pytest.fixture(scope="module")
def results(run: Run, place: Path) -> Path:
    out = place / "out" / "bench"
    sizes = ("--prompt-tokens", 16, "--new-tokens", 4, "--documents", 2, "--rounds", 1, "--batch", 1)
    done = run("tda", "bench", "-m", "ref:swiglu", "--method", "sine:phase=1", "-s", 0.5, *sizes, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_the_wheel_is_the_package_and_nothing_else(own_wheel: Path) -> None:
    held = set(zipfile.ZipFile(own_wheel).namelist())
    source = own_wheel.parents[1] / "source"
    wanted = {str(path.relative_to(source)) for path in (source / "tda").rglob("*") if path.is_file()}
    assert {name for name in held if ".dist-info/" not in name} == wanted
    assert own_wheel.name.startswith("tda_bench-")


def test_methods_are_those_built_in_and_those_of_plug_ins(run: Run) -> None:
    done = run("tda", "methods", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert (rows["griffin"]["from"], rows["sine"]["from"]) == ("tda", "tda-sine 1.2")
    assert "phase" in rows["sine"]["options"]
    assert done.stderr.count("plug-in tda-sine 1.2 is skipped: ModuleNotFoundError") == 1


def test_a_method_of_a_plug_in_is_measured_in_a_worker(results: Path) -> None:
    records = [record for record in load(results).records if record.case.method == "sine"]
    assert {record.status for record in records} == {"ok"}
    assert {record.inputs.plug_in for record in records} == {"tda-sine 1.2"}
    assert {record.case.options["phase"] for record in records} == {1}
    assert any(record.samples("decode_ms") for record in records)
    assert any(record.samples("entropy_nats") for record in records)
    dense = [record for record in load(results).records if record.case.method == "dense"]
    assert {record.inputs.plug_in for record in dense} == {None}


def test_results_become_a_page_and_a_table(run: Run, results: Path) -> None:
    done = run("tda", "report", results, "--out", results.parent / "report")
    assert done.returncode == 0, done.stderr
    assert "sine" in (results.parent / "report" / "index.html").read_text()
    code = f"import tda; frame = tda.load_results({str(results)!r}); print(tda.__file__); print(set(frame.method))"
    done = run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    file, methods = done.stdout.splitlines()
    assert not Path(file).is_relative_to(ROOT)
    assert "'sine'" in methods


def test_other_commands_start(run: Run) -> None:
    assert run("tda", "doctor", "--help").returncode == 0
    assert run("tda", "--version").stdout.startswith("tda ")


def test_a_folder_that_cannot_be_written_is_named(run: Run, place: Path) -> None:
    for words in (["bench"], ["calibrate", "-s", 0.5, "--out", "thresholds.json"]):
        done = run("tda", *words, "-m", "ref:swiglu")
        assert done.returncode == 2
        assert f"{place / 'here'} cannot be written by this user" in done.stderr.splitlines()[-1]


NIGHT = """
blocks = 4
confirm_blocks = 4
[[grids]]
name = "quality"
repeated = false
options = {models = ["ref:swiglu"], methods = ["sine"], sparsities = [0.5], prompt_tokens = 32, new_tokens = 8, rounds = 1, documents = 8}
[[grids]]
name = "speed"
options = {models = ["ref:swiglu"], methods = ["sine"], sparsities = [0.5], prompt_tokens = 16, new_tokens = 4, rounds = 1, documents = 2}
"""  # noqa: E501


def committed(folder: Path, subject: str) -> str:
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for words in (["add", "--all"], ["commit", "--quiet", "--message", subject]):
        subprocess.run([*git, *words], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def test_nights_over_a_repository_of_another_package(run: Run, place: Path) -> None:
    """A package with a method, whose second commit keeps other neurons: the night names that commit."""
    repository, out = place / "repository", place / "out" / "nights"
    repository.mkdir()
    subprocess.run(["git", "init", "--quiet", "--initial-branch", "main", str(repository)], check=True)
    for name, text in PLUG_IN.items():
        (repository / name).write_text(text.replace('version = "1.2"', 'version = "2.0"'))
    done = run("tda", "nightly", "--init", "--repo", repository)
    assert done.returncode == 0, done.stderr
    assert len(load_config(repository / "benchmarks" / "nightly.toml").grids) == 2
    assert run("tda", "nightly", "--init", "--repo", repository).returncode == 2, "nothing is overwritten"
    (repository / "benchmarks" / "nightly.toml").write_text(NIGHT)
    first = committed(repository, "Keep by the sine")
    method = repository / "tda_sine.py"
    method.write_text(method.read_text().replace("torch.sin", "torch.cos"))
    second = committed(repository, "Keep by the cosine")
    words = ["--repo", repository, "--history", out / "history"]
    settings = ["--config", repository / "benchmarks" / "nightly.toml", "--work", out / "work", "--out", out]
    done = run("tda", "nightly", *words, *settings, "--since", first)
    assert done.returncode == 1, done.stderr
    (night,), problems = History(out / "history").nights()
    assert not problems
    assert [commit.status for commit in night.commits] == ["measured", "measured"], done.stderr
    alarms = [one for one in night.findings if one.verdict == "alarm" and one.split == "quality"]
    assert [one.commit for one in alarms] == [second]
    units, _ = History(out / "history").units(night.id)
    sine = [record for unit in units for record in unit.records if record.case.method == "sine"]
    assert {record.inputs.plug_in for record in sine} == {"tda-sine 2.0"}, "not the one that is installed"
    assert {record.commit.hash for record in sine} == {first, second}
    done = run("tda", "dashboard", *words, "--out", out / "html", "--no-serve")
    assert done.returncode == 0, done.stderr
    assert second[:8] in (out / "html" / "tda" / "alarms.html").read_text()

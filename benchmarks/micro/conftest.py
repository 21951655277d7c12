"""pytest-benchmark suite: one request of a small model, and the pieces that it is made of.

    python -m pytest benchmarks/micro --benchmark-json FILE

keeps raw samples, which `tda.history.table` reads; machine and commit are those of the tda that was measured. For
an installed build, put its site folder into PYTHONPATH and call ``python -P -m pytest``: without -P this tree comes
first. Nothing fails for being slow.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import DTYPE, MODEL, PROMPT_TOKENS, Clock, MicroModel

import tda
from tda import device as facts


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add the facts that a record keeps of its machine; leave out the machine's name."""
    machine_info["tda"] = facts.machine(str(_device())).model_dump(mode="json")
    del machine_info["node"]


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    """Put the measured package's commit in the place of the suite's."""
    measured = facts.commit()
    if measured.hash != commit_info["id"]:
        commit_info.update(dict.fromkeys(("time", "author_time", "branch")))
    commit_info.update(id=measured.hash, dirty=measured.dirty)


@pytest.fixture(scope="session")
def subject() -> MicroModel:
    """The measured model, loaded once; a commit that does not know it is skipped."""
    device = _device()
    try:
        loaded: Any = tda.load_model(MODEL, dtype=DTYPE, device=device)
    except ValueError as error:
        pytest.skip(f"this commit has no {MODEL}: {error}")
    generator = torch.Generator().manual_seed(0)
    model, _ = loaded
    prompt = torch.randint(1, model.config.vocab_size, (1, PROMPT_TOKENS), generator=generator)
    return MicroModel(model, prompt.to(device))


def pytest_addoption(parser: pytest.Parser) -> None:
    """With it each benchmark runs once; the file is for `tools.forecast`."""
    parser.addoption("--pilot", metavar="FILE", help="write seconds of one round, and rounds, of each benchmark")


@pytest.fixture(scope="session")
def pieces(request: pytest.FixtureRequest) -> Iterator[list[tuple[float, int]] | None]:
    """Where a pilot notes what it timed; None in a real run."""
    path = request.config.getoption("--pilot")
    noted: list[tuple[float, int]] = []
    yield noted if path else None
    if path:
        Path(path).write_text(json.dumps(noted))


@pytest.fixture
def clock(benchmark: Any, pieces: list[tuple[float, int]] | None) -> Clock:
    """What times."""
    return Clock(benchmark, _device(), pieces)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield

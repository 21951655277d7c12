"""What a night measures and how it judges: a TOML file in the repository."""

import os
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError, field_validator

from tda.bench.planning import only
from tda.cases import Case, Frozen, first_problem
from tda.changes.detect import Pair
from tda.changes.effects import MIN_BLOCKS
from tda.config import BenchConfig
from tda.history.repository import short
from tda.results import write_whole

Settings = TypeVar("Settings", bound=Frozen)


class GridConfig(Frozen):
    """One grid: what is asked of `tda.run_bench`, once in every block (speed) or once a commit (quality)."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    repeated: bool = True
    options: BenchConfig


class Extra(Frozen):
    """A command that is run for a commit when the gating grids are done and time is left.

    ``{python}``, ``{commit}``, ``{parent}`` (the measured commit that it is compared with, or itself), ``{site}`` (the
    installed build) and ``{history}`` are filled in. `produces` is a glob pattern: where it matches, the command has
    been run for the commit already.
    """

    name: str
    command: tuple[str, ...]
    produces: str
    minutes: float = Field(gt=0, description="what it is expected to take, for the time cap")


class NightlyConfig(Frozen):
    """All settings of a night."""

    blocks: int = Field(default=8, ge=MIN_BLOCKS)
    confirm_blocks: int = Field(default=8, ge=MIN_BLOCKS)
    smallest_change: float = Field(default=0.01, gt=0, lt=1)
    cap_minutes: float = Field(default=240.0, gt=0)
    unit_timeout_s: float = Field(default=900.0, gt=0)
    keep_nights: int = Field(default=60, ge=1, description="nights whose raw units are kept; their accounts stay")
    alarm_processes: int = Field(
        default=0, ge=0, description="processes that profile either commit of an alarm of time or memory; 0: none"
    )
    grids: tuple[GridConfig, ...] = Field(min_length=1)
    extras: tuple[Extra, ...] = ()

    @field_validator("grids")
    @classmethod
    def _distinct(cls, grids: tuple[GridConfig, ...]) -> tuple[GridConfig, ...]:
        names = [grid.name for grid in grids]
        if len(set(names)) < len(names):
            raise ValueError(f"two grids have one name: {names}")
        return grids


class ProfilesConfig(Frozen):
    """What is profiled of every commit, and how long its traces are kept."""

    processes: int = Field(default=2, ge=1, description="of each commit, in turn, where several are compared")
    timeout_s: float = Field(default=900.0, gt=0)
    keep_traces: int = Field(default=10, ge=1, description="commits that keep their traces: those profiled last")
    options: BenchConfig = BenchConfig()


class Decision(Frozen):
    """What a person decided about an alarm; an accepted one is the new baseline."""

    alarm: str
    state: Literal["acknowledged", "accepted"]
    reason: str = Field(min_length=1)


class Decisions(Frozen):
    """The file of decisions: `[[decision]]` tables."""

    decision: tuple[Decision, ...] = ()


def write_settings(nightly: Path, cases: Path) -> None:
    """Write settings to begin with: what nights measure, and what is profiled.

    Raises
    ------
    ValueError
        If one of the files is there already; nothing is written then.
    """
    files = {nightly: "nightly.toml", cases: "cases.toml"}
    if found := [str(path) for path in files if os.path.lexists(path)]:
        raise ValueError(f"there already: {' and '.join(found)}, which `tda nightly` reads")
    for path in files:
        if path.parent.exists() and not path.parent.is_dir():
            raise ValueError(f"{path.parent} is a file; `tda nightly` keeps settings in a folder of that name")
        path.parent.mkdir(parents=True, exist_ok=True)
    for path, name in files.items():
        write_whole(path, (resources.files("tda.nightly") / "templates" / name).read_text())


def reproduce(pair: Pair, config: NightlyConfig, grid: str, cases: Sequence[Case]) -> str:
    """A command that compares the two commits on a grid; on the first case alone where the settings lost the grid."""
    options = next((one.options for one in config.grids if one.name == grid), None) or only(BenchConfig(), cases[:1])
    asked = options.model_copy(update={"budget": None, "precision": None})  # a comparison has blocks instead
    return f"tda compare {short(pair.old)} {short(pair.new)} {asked.arguments()}"


def load_config(path: Path) -> NightlyConfig:
    """Read the settings of a night. Raises as `read_settings`."""
    return read_settings(path, NightlyConfig)


def load_profiles(path: Path) -> ProfilesConfig:
    """Read what is profiled. Raises as `read_settings`."""
    return read_settings(path, ProfilesConfig)


def load_decisions(path: Path) -> tuple[Decision, ...]:
    """Read the committed decisions about alarms; no file means none. Raises as `read_settings`."""
    return read_settings(path, Decisions).decision if path.is_file() else ()


def read_settings(path: Path, kind: type[Settings]) -> Settings:
    """Read a TOML file of settings.

    Raises
    ------
    ValueError
        If there is no such file, it is no TOML or a field is wrong; the sentence names it.
    OSError
        If it cannot be read.
    """
    try:
        return kind.model_validate(tomllib.loads(path.read_text()))
    except FileNotFoundError:
        raise ValueError(f"no settings at {path}; `tda nightly --init` writes some into the checkout") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML: {error}") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {first_problem(error)}") from None

"""The results file: lines appended and fsynced as they come, read back tolerantly, written whole atomically."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from tda.cases import Frozen, first_problem
from tda.records import LeftOut, Record

RESULTS = "results.jsonl"
LEFT_OUT = "left_out.jsonl"
"""What a budget left no time for: a `LeftOut` a line, beside the results."""
Line = TypeVar("Line", bound=Frozen)


@dataclass(frozen=True)
class Loaded:
    """What a results folder held.

    Attributes
    ----------
    records : list of Record
        In the order of the file.
    problems : list of str
        One sentence for each line that could not be read.
    left_out : list of LeftOut
        What the budget of the bench left no time for.
    """

    records: list[Record]
    problems: list[str]
    left_out: list[LeftOut] = field(default_factory=list)


def results_path(folder: Path) -> Path:
    """Path of the results file for a folder (or of the file itself)."""
    return folder if folder.suffix == ".jsonl" else folder / RESULTS


def check_folder(folder: Path) -> None:
    """Raise ValueError if a results folder cannot be at a path."""
    if folder.suffix == ".jsonl" or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"results are written to a folder, which is made if it is not there; got {folder}")


def load(folder: Path) -> Loaded:
    """Read a results file, and what was left out beside it; a damaged line is skipped and named.

    Raises
    ------
    FileNotFoundError
        If there is no results file.
    """
    path = results_path(folder)
    if not path.is_file():
        raise FileNotFoundError(f"no results at {path}; `tda bench --out {folder}` writes them")
    records, problems = read_lines(path, Record)
    layers: dict[tuple[object, ...], int] = {}
    good = []
    for record in records:
        count, place = len(record.achieved_sparsity), (record.commit, record.machine.fingerprint, record.series)
        if count and layers.setdefault(place, count) != count:
            told = f"{count} layers, and {layers[place]} in an earlier round"
            problems.append(f"{path}: round {record.round} of {record.case} skipped: {told}")
        else:
            good.append(record)
    beside = path.with_name(LEFT_OUT)
    left_out, damaged = read_lines(beside, LeftOut) if beside.is_file() else ([], [])
    return Loaded(good, [*problems, *damaged], left_out)


def read_lines(path: Path, kind: type[Line]) -> tuple[list[Line], list[str]]:
    """Parse each line of a file; a damaged line is skipped, and a sentence names it."""
    found: list[Line] = []
    problems: list[str] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append(kind.model_validate_json(line))
        except ValidationError as error:
            problems.append(f"{path}, line {number} skipped: {first_problem(error)}")
    return found, problems


def append(folder: Path, records: Iterable[Record]) -> None:
    """Append records to a folder's results file, one line each, and fsync."""
    append_lines(results_path(folder), [record.model_dump_json() for record in records])


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines and fsync.

    A last line that a kill left unfinished is closed first, so that it stays a line of its own.
    """
    text = "".join(line + "\n" for line in lines).encode()
    with naming(path), open(path, "a+b", buffering=0) as file:
        size = file.tell()
        if size > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text = b"\n" + text
        try:
            written = 0
            while written < len(text):
                written += file.write(text[written:])
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)  # lines that belong together stand there whole, or not at all
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of writing name the file, and say how to go on."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror}: what is done is kept; mend that, and the same command goes on"
        raise OSError(error.errno, reason, str(path)) from error


def check_writable(path: Path) -> None:
    """Raise OSError now rather than later if a file cannot be written at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a file's name")
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is either the old one or the new one at any moment."""
    with replacing(path) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Let a file be written under another name, which takes the place of `path` once the block has ended well."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            yield Path(name)
            os.fsync(descriptor)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

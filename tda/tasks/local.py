"""Local JSONL in place of a data set of the hub.

A line is an item, in one of two shapes; the first line says which, and all others have it too.

The simple shape is one for all tasks of a kind, ready to be asked:

* choice: ``{"query": "...", "choices": ["...", "..."], "gold": 0}``. Each choice follows the query and a space.
* generation: ``{"prompt": "...", "answers": ["...", "..."]}``. Any of the answers is right.

Otherwise a line has the fields of the hub's data set (``Dataset.to_json`` writes them), and the task makes its prompt
from them as it does online. Fields that a task does not read may be there or not; where it is not known which it reads,
all lines have the first one's.

Few-shot examples are lines of the same shape in a second file beside it: ``NAME.train.jsonl`` beside ``NAME.jsonl``.
Where there is none, they are drawn from the other items of the file. An item that is there twice counts once: its copy
is no evidence of its own.
"""

import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tda.quality.documents import check_characters, json_lines
from tda.tasks.catalogue import Spec, TaskKind

SIMPLE: Mapping[TaskKind, tuple[str, Mapping[str, Spec]]] = {
    "choice": ('{"query": "...", "choices": ["...", "..."], "gold": 0}', {"query": str, "choices": [str], "gold": int}),
    "generation": ('{"prompt": "...", "answers": ["..."]}', {"prompt": str, "answers": [str]}),
}
"""By kind of task: a line as it may look, and its fields."""
_TYPES: Mapping[object, str] = {str: "a string", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True)
class LocalData:
    """Items of a file.

    Attributes
    ----------
    path : Path
        The file.
    rows : list of dict
        Its different items, in order.
    examples : list of dict
        Items that few-shot examples are drawn from; empty where no file has them.
    simple : bool
        Whether they have the simple shape.
    copies : int
        Lines that held an item which came before.
    """

    path: Path
    rows: list[dict[str, Any]]
    examples: list[dict[str, Any]]
    simple: bool
    copies: int


def examples_path(path: Path) -> Path:
    """File that has the few-shot examples for an items file."""
    return path.with_name(f"{path.stem}.train{path.suffix}")


def read(path: Path, kind: TaskKind | None, fields: Mapping[str, Spec] | None) -> LocalData:
    """Items of a file, and examples of the one beside it.

    Parameters
    ----------
    path : Path
        JSONL file.
    kind : {"choice", "generation"}, optional
        Kind of the task; None where only the data set's own fields will do.
    fields : dict, optional
        Fields of the hub's data set that the task reads; None where they are not known.

    Raises
    ------
    ValueError
        If a file cannot be read or is empty, an example is an item too, or a line has another shape: the file, the
        line, the field and what was expected.
    """
    lines = list(_objects(path, shapes(kind, fields)))
    if not lines:
        raise ValueError(f"{path} holds no item; expected {shapes(kind, fields)} a line")
    simple = _is_simple(lines[0][1], kind, fields)
    beside = examples_path(path)
    examples = list(_objects(beside, shapes(kind, fields))) if beside.is_file() else []
    read_fields = dict.fromkeys(lines[0][1], object) if fields is None and not simple else fields
    for place, row in [*lines, *examples]:
        _check_line(place, row, kind if simple else None, read_fields)
    names = SIMPLE[kind][1] if simple and kind else None
    rows: dict[str, dict[str, Any]] = {}
    for _, row in lines:
        rows.setdefault(_identity(row, names), _kept(row, names))
    for place, row in examples:
        if _identity(row, names) in rows:
            raise ValueError(f"{place}: an example is an item of {path} too; leave it out of one of the files")
    return LocalData(
        path, list(rows.values()), [_kept(row, names) for _, row in examples], simple, len(lines) - len(rows)
    )


def shapes(kind: TaskKind | None, fields: Mapping[str, Spec] | None) -> str:
    """What a line may look like, in words."""
    own = "the fields of the hub's data set" + (f" ({', '.join(fields)})" if fields else "")
    return f"{SIMPLE[kind][0]} or {own}" if kind else own


def _objects(path: Path, shape: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place of each line and the object that it holds."""
    for place, line, value in json_lines(path, shape):
        if not isinstance(value, dict):
            raise ValueError(f"{place}: expected {shape}, got {line.strip()[:60]!r}")
        yield place, value


def _is_simple(row: Mapping[str, Any], kind: TaskKind | None, fields: Mapping[str, Spec] | None) -> bool:
    if kind is None:
        return False
    simple = SIMPLE[kind][1]
    if fields is None:
        return simple.keys() <= row.keys()
    return len(simple.keys() & row.keys()) >= len(fields.keys() & row.keys()) and not fields.keys() <= row.keys()


def _check_line(place: str, row: Mapping[str, Any], simple: TaskKind | None, fields: Mapping[str, Spec] | None) -> None:
    _check_strings(place, "", row)
    asked: Mapping[str, Spec] | None = SIMPLE[simple][1] if simple else fields
    for name, spec in (asked or {}).items():
        if name not in row:
            told = SIMPLE[simple][0] if simple else shapes(None, fields)
            raise ValueError(
                f"{place}: there is no field {name!r}; expected {told}, got {', '.join(row) or 'no field'}"
            )
        _check_value(place, name, row[name], spec)
    if simple:
        _check_simple(place, row, simple)


def _check_simple(place: str, row: Mapping[str, Any], kind: TaskKind) -> None:
    """What the types of a simple line's fields leave open."""
    question, several = ("query", "choices") if kind == "choice" else ("prompt", "answers")
    if not row[question].strip():
        raise ValueError(f"{place}, field {question!r}: expected a text, got none")
    least = 2 if kind == "choice" else 1
    if len(row[several]) < least:
        raise ValueError(f"{place}, field {several!r}: expected at least {least}, got {len(row[several])}")
    for number, text in enumerate(row[several]):
        if not text.strip():
            raise ValueError(f"{place}, field '{several}[{number}]': expected a text, got none")
    if kind == "choice" and not 0 <= row["gold"] < len(row["choices"]):
        raise ValueError(
            f"{place}, field 'gold': expected a number from 0 to {len(row['choices']) - 1}, the place of the right one "
            f"of {len(row['choices'])} choices, got {row['gold']}"
        )


def _check_value(place: str, name: str, value: Any, spec: Any) -> None:
    """Raise ValueError with the place of the first thing in a value that is of another form."""
    if isinstance(spec, list):
        if not isinstance(value, list):
            raise _wrong(place, name, value, spec)
        for number, part in enumerate(value):
            _check_value(place, f"{name}[{number}]", part, spec[0])
    elif isinstance(spec, dict):
        if not isinstance(value, dict):
            raise _wrong(place, name, value, spec)
        for key, part in spec.items():
            if key not in value:
                raise ValueError(f"{place}: there is no field '{name}.{key}'")
            _check_value(place, f"{name}.{key}", value[key], part)
    elif isinstance(spec, tuple):
        if isinstance(value, bool) or value not in spec:
            raise _wrong(place, name, value, spec)
    elif not isinstance(value, spec) or (isinstance(value, bool) and spec is not bool):
        raise _wrong(place, name, value, spec)


def _wrong(place: str, name: str, value: Any, spec: Any) -> ValueError:
    return ValueError(f"{place}, field {name!r}: expected {_expected(spec)}, got {json.dumps(value)[:60]}")


def _expected(spec: Any) -> str:
    if isinstance(spec, list):
        return "a list of strings" if spec == [str] else "a list"
    if isinstance(spec, dict):
        return f"an object with {', '.join(spec)}"
    if isinstance(spec, tuple):
        return " or ".join(json.dumps(value) for value in spec)
    parts = spec.__args__ if isinstance(spec, types.UnionType) else (spec,)
    return " or ".join(_TYPES[part] for part in parts)


def _check_strings(place: str, name: str, value: Any) -> None:
    """Raise ValueError if a string anywhere in a value is no text."""
    if isinstance(value, str):
        try:
            check_characters(value)
        except ValueError as error:
            raise ValueError(f"{place}, field {name!r}: {error}") from None
    elif isinstance(value, dict):
        for key, part in value.items():
            _check_strings(place, f"{name}.{key}" if name else key, part)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            _check_strings(place, f"{name}[{number}]", part)


def _kept(row: dict[str, Any], names: Mapping[str, Spec] | None) -> dict[str, Any]:
    return row if names is None else {name: row[name] for name in names}


def _identity(row: dict[str, Any], names: Mapping[str, Spec] | None) -> str:
    return json.dumps(_kept(row, names), sort_keys=True)

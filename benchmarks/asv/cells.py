"""Records as asv wants them: the lines of a results file, read as data, and what each cell of the grid has to say.

Nothing here imports tda: whichever commit wrote the lines, they are read in one way.
"""

import contextlib
import json
from collections.abc import Iterator
from statistics import fmean, median
from typing import Any, TypedDict

from asv_runner.benchmarks.mark import SkipNotImplemented

GridCell = tuple[str, str, float]
"""Model, method, asked sparsity."""
DISTANCE = "sparsity_distance"


class Found(TypedDict):
    """What was found of one cell: samples by measurement and group, why some are missing, the last failure."""

    samples: dict[str, dict[int, list[float]]]
    missing: dict[str, str]
    failure: str | None


class RunTable(TypedDict):
    """A whole run: its cells and (True) their A/A controls, what stopped it before its end, and how long it took."""

    cells: dict[tuple[str, str, float, bool], Found]
    stopped: str | None
    seconds: float


class MissingError(Exception):
    """A quantity that this machine or execution cannot give; the text says why."""


def tabulate(text: str, stopped: str | None = None, seconds: float = 0.0) -> RunTable:
    """Sort the lines of a results file into cells."""
    table: RunTable = {"cells": {}, "stopped": stopped, "seconds": seconds}
    for line in _lines(text):
        case = line["case"]
        control = case.get("control") or ("cross_domain" if "selection_from" in case["options"] else None)
        if control == "cross_domain":  # a control of quality, no cell of the grid
            continue
        key = (case["model"], case["method"], case["sparsity"], bool(control or line.get("control")))
        found = table["cells"].setdefault(key, {"samples": {}, "missing": {}, "failure": None})
        if line["status"] == "ok":
            _add(found, line)
        else:
            found["failure"] = f"{line['status']}: {line['reason']}"
    return table


def _lines(text: str) -> Iterator[dict[str, Any]]:
    """A line that a kill left unfinished is skipped: what it held was measured again further down."""
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def _add(found: Found, line: dict[str, Any]) -> None:
    for name, part in line["measurements"].items():
        if part["missing"] is not None:
            found["missing"][name] = part["missing"]
        groups = part["groups"] or [line["round"]] * len(part["samples"])
        for group, sample in zip(groups, part["samples"], strict=True):
            found["samples"].setdefault(name, {}).setdefault(group, []).append(sample)
    asked = line["case"]["sparsity"]
    if line["achieved_sparsity"] and asked is not None:
        distance = abs(fmean(line["achieved_sparsity"]) - asked)
        found["samples"].setdefault(DISTANCE, {})[line["round"]] = [distance]


def per_group(table: RunTable, cell: GridCell, name: str, *, control: bool = False) -> dict[int, float]:
    """Median sample of each round or document: what is independent, so what asv's interval may rest on.

    Raises
    ------
    SkipNotImplemented
        If there is no such cell: the commit lacks the method or the model, or they do not go together.
    MissingError
        If the cell ran without this quantity, for a reason that its record tells.
    RuntimeError
        If the cell failed, or the run ended before it.
    """
    found = table["cells"].get((*cell, control))
    if found is None:
        if table["stopped"] is not None:
            raise RuntimeError(f"the run ended before this cell: {table['stopped']}")
        raise SkipNotImplemented(f"no record of {cell}")
    if name in found["samples"]:
        return {group: median(samples) for group, samples in found["samples"][name].items()}
    if name in found["missing"]:
        raise MissingError(f"{name}: {found['missing'][name]}")
    if found["failure"] is not None:
        raise RuntimeError(found["failure"])
    raise SkipNotImplemented(f"no {name} in the records of {cell}")


def ratio_to_dense(table: RunTable, cell: GridCell, name: str) -> dict[int, float]:
    """A cell's value over dense's of the same round; for dense itself the A/A control's, so noise around 1.

    Raises
    ------
    MissingError
        If no round has both. Otherwise as `per_group`.
    """
    model, method, _ = cell
    own = per_group(table, cell, name, control=method == "dense")
    dense = per_group(table, (model, "dense", 0.0), name)
    ratios = {group: value / dense[group] for group, value in own.items() if group in dense}
    if not ratios:
        raise MissingError(f"{name}: no round in which both this and dense ran")
    return ratios

"""One tidy table of everything that was measured: nights, folders of records, asv results, pytest-benchmark files.

A row is one metric of one case, as one source measured it on one machine with one commit. Raw samples stay in the row.
What cannot be read is named and left out.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tda.history.nights import History
from tda.history.rows import HistoryReader, HistoryRow, label
from tda.history.sources.asv import asv_rows, read_asv
from tda.history.sources.micro import micro_rows
from tda.history.sources.nights import read_nights, unit_rows
from tda.history.sources.records import record_rows
from tda.results import RESULTS

COLUMNS: Mapping[str, str] = {
    **dict.fromkeys(("source", "machine", "machine_label", "commit"), "object"),
    "date": "datetime64[us, UTC]",
    **dict.fromkeys(("subject", "dirty", "change", "night"), "object"),
    "block": "Int64",
    **dict.fromkeys(("role", "stage", "grid", "model", "method"), "object"),
    "sparsity": "float64",
    **dict.fromkeys(("case", "name", "case_key", "series", "setting", "dtype", "device", "execution"), "object"),
    **dict.fromkeys(("batch", "prompt_tokens", "new_tokens"), "Int64"),
    "control": "bool",
    **dict.fromkeys(("metric", "unit", "better", "samples", "groups"), "object"),
    **dict.fromkeys(("value", "low", "high"), "float64"),
    "missing": "object",
}
"""Columns and their types. What is unknown is None in an object column, <NA> in a whole number, NaN in a float."""
ASV, BENCH, MICRO = "asv", "bench", "micro"
"""Folders of a history beside its nights."""


@dataclass(frozen=True)
class HistoryTable:
    """What a history holds.

    Attributes
    ----------
    frame : pandas.DataFrame
        One row per source, machine, commit, night, block, case and metric, with the columns `COLUMNS`:

        - `source` is "nightly", "bench", "asv" or "micro"; `machine` a fingerprint, equal for numbers that may be
          compared; `machine_label` says it in words.
        - `commit` is the full hash, `date` its moment in UTC (the moment of measuring where nothing tells the
          commit's), `dirty` whether there was uncommitted change, and `change` the digest of it, where it is told.
        - `case` is what people call it, such as "griffin 0.5 on shape:25m", and `name` the same without the model;
          `series` is equal for what is compared across commits: equal grid, `case_key` (`tda.cases.Case.key`) and
          inputs. `setting` tells grid, seed or text where one model and size was measured with several; `execution` is
          what really ran.
        - `samples` are all raw samples, `groups` the round or document of each. `value` is the geometric mean of the
          groups' medians for what is timed or sized, their mean for quality, NaN for a hash; `low` and `high` bound its
          95% interval over groups, NaN where there are too few. What is derived from a case and dense
          (`tda.derived.DERIVED`) has no samples, and no row where it does not follow.
        - `missing` is the reason where there are no samples. A case or a process that failed has one such row, without
          a metric.
    problems : tuple of str
        One sentence for everything that was left out, and why.
    """

    frame: pd.DataFrame
    problems: tuple[str, ...] = ()


def load_history(folder: Path, repo: Path | None = None) -> HistoryTable:
    """Read all that a history holds: ``nights/``, ``asv/``, ``micro/*.json`` and every results file below ``bench/``.

    Parameters
    ----------
    folder : Path
        The history; parts that are not there are empty.
    repo : Path, optional
        A git checkout that tells dates and subjects of commits, where no night does.

    Raises
    ------
    ValueError
        If `repo` is no git checkout.
    """
    reading = HistoryReader.of(repo)
    if not folder.is_dir():
        reading.problems.append(f"no history at {folder}")
    asv = read_asv(reading, folder / ASV)
    nights = read_nights(reading, History(folder))
    rows = itertools.chain(
        unit_rows(reading, folder, nights),
        record_rows(reading, sorted((folder / BENCH).rglob(RESULTS))),
        asv_rows(reading, asv),
        micro_rows(reading, sorted((folder / MICRO).glob("*.json"))),
    )
    return _table(reading, rows)


def from_units(history: History, repo: Path | None = None) -> HistoryTable:
    """Read the processes of all nights; `repo` and errors as for `load_history`.

    A process that failed has one row, without a case. Records of another commit than its process was built from are
    left out and named.
    """
    reading = HistoryReader.of(repo)
    nights = read_nights(reading, history)
    return _table(reading, unit_rows(reading, history.folder, nights))


def from_records(paths: Iterable[Path], repo: Path | None = None) -> HistoryTable:
    """Read results folders or files; `repo` and errors as for `load_history`.

    The rounds of a case are joined per machine, commit and state of its tree. A line that stands in two files counts
    once; where two lines tell differently of one round, the last counts, and a sentence says so.
    """
    reading = HistoryReader.of(repo)
    return _table(reading, record_rows(reading, paths))


def from_asv(folder: Path, repo: Path | None = None) -> HistoryTable:
    """Read a folder of asv results, which needs asv (the extra "nightly"); `repo` and errors as for `load_history`.

    asv knows no fingerprint of ours: `machine` is one made of all facts that a results file keeps of its machine and
    environment, with "asv:" before it, and `machine_label` is asv's name of the machine. It records no GPU, driver or
    torch, so they belong into that name. A benchmark is called ``GRID.CLASS.track_METRIC``; its case comes from the
    parameters ``model``, ``method`` and ``sparsity``, and sizes are unknown. What asv skipped has no row. Results of
    another version of their benchmark are left out and named.
    """
    reading = HistoryReader.of(repo)
    return _table(reading, asv_rows(reading, read_asv(reading, folder)))


def from_micro(paths: Iterable[Path], repo: Path | None = None) -> HistoryTable:
    """Read files of ``--benchmark-json``: one row per benchmark, its time; `repo` and errors as for `load_history`.

    Every round of a benchmark is a sample. A benchmark's rounds are short, many and follow each other at once, so ten
    batches of them are the groups: one slow round moves no median, and neighbours are not taken for independent. All of
    them ran in one process: the interval says nothing of what differs between processes. Where two files hold one
    benchmark of a machine and commit, the later one counts.
    """
    reading = HistoryReader.of(repo)
    return _table(reading, micro_rows(reading, paths))


def _table(reading: HistoryReader, rows: Iterable[HistoryRow]) -> HistoryTable:
    held = [dict.fromkeys(COLUMNS) | row for row in rows]
    label(held)
    frame = pd.DataFrame(held, columns=list(COLUMNS), dtype="object")
    return HistoryTable(frame.astype(dict(COLUMNS)), tuple(reading.problems))

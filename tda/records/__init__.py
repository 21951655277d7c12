"""What ran and what it gave: the record that every other part writes or reads.

A line of ``results.jsonl`` is one `Record`: one case in one round. Round 0 holds what needs no repetition
(quality over documents, peak memory of a first request); rounds 1, 2, … hold timings. `merge` joins the lines
of a case. Raw samples are kept; medians, intervals and ratios are computed from them, never stored.
"""

from tda.records.failures import FAILURES, NOT_ITS_FAULT, Failure, FailureKind, Status
from tda.records.measurements import (
    MEASUREMENTS,
    MIN_GROUPS,
    SPEED,
    Better,
    Measurement,
    MeasurementKind,
    measurement_kind,
)
from tda.records.origin import BUILD_STAMP, FAKE, Commit, Machine
from tda.records.record import Flag, FlagName, LeftOut, Record, TaskFacts, flag_words, json_schema
from tda.records.rounds import few_samples, join_flags, merge, turn

__all__ = [
    "BUILD_STAMP",
    "FAILURES",
    "FAKE",
    "MEASUREMENTS",
    "MIN_GROUPS",
    "NOT_ITS_FAULT",
    "SPEED",
    "Better",
    "Commit",
    "Failure",
    "FailureKind",
    "Flag",
    "FlagName",
    "LeftOut",
    "Machine",
    "Measurement",
    "MeasurementKind",
    "Record",
    "Status",
    "TaskFacts",
    "few_samples",
    "flag_words",
    "join_flags",
    "json_schema",
    "measurement_kind",
    "merge",
    "turn",
]

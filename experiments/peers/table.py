"""From rows to the tables: medians, ratios paired within a block, and goals."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.peers.job import PeerPlan, PeerRow
from tda.records import Measurement
from tda.statistics import MIN_GROUPS, Estimate, paired_ratio

TIMES = ("prefill_ms", "decode_ms", "generation_ms")
BASES = {"tda dense": "tda_dense", "llama.cpp bf16": "llama_cpp_bf16"}
"""Contestants that all are held against, and their names in columns."""


@dataclass(frozen=True)
class PeerGoal:
    """How many times as fast as another a contestant must decode, and how many times it strives for."""

    contestant: str
    against: str
    must: float
    strive: float

    def verdict(self, ratio: Estimate | None) -> str:
        """The better bound that a ratio reaches; "missed" where it reaches none, and why where it has no interval."""
        if ratio is None:
            return "not measured"
        if ratio.low is None:
            return f"fewer than {MIN_GROUPS} blocks"
        return next((name for name in ("strive", "must") if ratio.value >= getattr(self, name)), "missed")


GOALS = (  # on a CPU
    PeerGoal("tda dense", "hf eager", 1.7, 2.2),
    PeerGoal("tda dense", "llama.cpp bf16", 0.8, 1.0),
    PeerGoal("tda tda .5", "llama.cpp bf16", 1.2, 1.5),
    PeerGoal("tda tda .75", "llama.cpp bf16", 1.6, 2.2),
)


def samples(rows: Sequence[PeerRow], contestant: str, name: str) -> Measurement:
    """What a contestant's requests took, in groups of a block."""
    found = [
        (getattr(served, name), row.block)
        for row in rows
        if row.contestant == contestant and row.report is not None
        for served in row.report.served
    ]
    if not found:
        return Measurement.absent(name, f"{contestant} served no request")
    return Measurement.of(name, *zip(*found, strict=True))


def speedup(rows: Sequence[PeerRow], contestant: str, against: str) -> Estimate | None:
    """How many times as fast a contestant decodes as another, paired within blocks; None without a common block."""
    return paired_ratio(samples(rows, against, "decode_ms"), samples(rows, contestant, "decode_ms"))


def contestant_rows(plan: PeerPlan, rows: Sequence[PeerRow]) -> Iterator[dict[str, Any]]:
    """One row a contestant."""
    for name in plan.contestants:
        own = [row for row in rows if row.contestant == name]
        good = [row for row in own if row.report is not None]
        failed = [row for row in own if row.status != "ok"]
        report = good[-1].report if good else None
        status = failed[-1].status if failed else "ok" if good else "not run"
        told: dict[str, Any] = {"contestant": name, "status": status}
        told["reason"] = failed[-1].reason if failed else None
        told["blocks"] = len(good)
        for time in TIMES:
            values = samples(rows, name, time).samples
            told[time] = float(np.median(values)) if values else None
        for base, column in BASES.items():
            ratio = speedup(rows, name, base)
            told[f"over_{column}"] = ratio.value if ratio is not None else None
            told[f"over_{column}_low"] = ratio.low if ratio is not None else None
            told[f"over_{column}_high"] = ratio.high if ratio is not None else None
        bandwidths = [row.stream_gb_per_s for row in good]
        yield {
            **told,
            "stream_gb_per_s": float(np.median(bandwidths)) if bandwidths else None,
            "stream_gb_per_s_least": min(bandwidths, default=None),
            "stream_gb_per_s_most": max(bandwidths, default=None),
            "warm_up_s": report.warm_up_s if report is not None else None,
            "settings": json.dumps(report.settings) if report is not None else None,
            "versions": json.dumps(report.versions) if report is not None else None,
            "model": plan.job.model,
            "dtype": plan.job.dtype,
            "prompt_tokens": len(plan.job.prompt),
            "new_tokens": plan.job.new_tokens,
            "threads": plan.job.threads,
            "cpu": plan.machine.cpu,
            "gpu": plan.machine.gpu,
            "commit": plan.commit.hash,
            "dirty": plan.commit.dirty,
        }


def markdown(plan: PeerPlan, rows: Sequence[PeerRow], table: pd.DataFrame) -> str:
    """The tables for readers."""
    job = plan.job
    place = plan.machine.gpu or f"{job.threads} threads, {plan.machine.cpu}"
    lines = [
        f"{job.model}, {len(job.prompt)} + {job.new_tokens} tokens, batch 1, {place}.",
        "Medians over all requests; a ratio says how many times as fast a contestant decodes,",
        "paired within a block, with its 95% interval over blocks. GB/s is the machine's stream bandwidth just before",
        "the processes: median (least to most).",
        "",
        "| contestant | prefill ms | decode ms | generation ms | "
        + " | ".join(f"over {base}" for base in BASES)
        + " | GB/s | blocks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        name = row["contestant"]
        stream = (_number(row[f"stream_gb_per_s{end}"]) for end in ("", "_least", "_most"))
        cells = [
            name,
            *(_number(row[time]) for time in TIMES),
            *(_estimate(speedup(rows, name, base)) for base in BASES),
            "{} ({} to {})".format(*stream) if row["blocks"] else "–",
            str(row["blocks"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    goals = GOALS if job.device == "cpu" else ()
    if goals:
        lines += ["", "| goal: decode of | over | value | must | strive | reached |", "|---|---|---|---|---|---|"]
    for goal in goals:
        ratio = speedup(rows, goal.contestant, goal.against)
        value, bounds = _estimate(ratio), f"{goal.must:g} | {goal.strive:g}"
        lines.append(f"| {goal.contestant} | {goal.against} | {value} | {bounds} | {goal.verdict(ratio)} |")
    troubles = [
        f"- {row['contestant']}: {row['status']}: {row['reason']}"
        for row in table.to_dict("records")
        if row["status"] not in ("ok", "not run")
    ]
    settings = [
        f"- {row['contestant']}: {row['settings']}"
        for row in table.to_dict("records")
        if isinstance(row["settings"], str)
    ]
    return "\n".join([*lines, "", *settings, *(["", "What went wrong:", "", *troubles] if troubles else [])]) + "\n"


def _number(value: Any) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:.4g}"


def _estimate(estimate: Estimate | None) -> str:
    return "–" if estimate is None else str(estimate)

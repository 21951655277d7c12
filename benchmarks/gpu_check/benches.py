"""Benches: the preset, larger batches, and longer contexts; figures are those of the records."""

from collections.abc import Iterator, Sequence
from typing import Any

import tda
from benchmarks.gpu_check.command import run_tda
from benchmarks.gpu_check.figures import Figure, FigureBound, at_least, at_most
from benchmarks.gpu_check.setting import CheckSetting
from tda.bench.presets import PRESETS
from tda.cases import Case, describe
from tda.derived import Missing, derive
from tda.records import Record, merge
from tda.results import load
from tda.statistics import Estimate, by_group, typical

PRESET_S = 120.0
"""The goal of the preset."""
PAGE_S = 10.0
"""Before the end of the part, so that a bench which keeps its budget is not ended."""
REACHED = 1.30
"""How many times as fast as our dense Griffin at 0.5 is to decode."""
WIDTH = 0.2
"""Half-width of an interval that its value allows, as a share of it."""
BATCHES, DRY_BATCHES = (1, 4, 16), (1, 4)
CONTEXTS, DRY_CONTEXTS = (512, 4096, 32768), (32, 128)


def preset(setting: CheckSetting) -> Iterator[Figure]:
    """`tda bench --preset gpu`: each case's step, speed-up, prefill and selection."""
    out, words = setting.folder / "preset", ["bench", "--preset", "gpu"]
    if setting.dry:
        words += ["--model", setting.model, "--device", "cpu", "--method", "griffin", "--sparsity", "0.5"]
        words += ["--prompt-tokens", "32", "--new-tokens", "4", "--rounds", "5", "--budget", "40s"]
    budget = PRESETS["gpu"].budget_s
    assert budget is not None
    note = f"its own budget: {budget:g} s"
    if not setting.dry and budget > setting.left_s - PAGE_S:
        words += ["--budget", f"{setting.left_s - PAGE_S:.0f}s"]
        note += f", cut here to {setting.left_s - PAGE_S:.0f} s"
    ran = run_tda(*words, "--out", out)
    yield Figure(name="preset gpu, start to end", value=ran.seconds, unit="s", goal=at_most(PRESET_S), note=note)
    loaded = load(out)
    records = merge(loaded.records)
    for record in _timed(records):
        yield _step(record, records)
        yield from _speedup(record, records, judged=not setting.dry)
        yield from (_time(record, records, name, what) for name, what in ONCE.items() if record.samples(name))
    if not any(_goal(record.case) for record in _timed(records)):
        yield Figure(name="griffin 0.5: over our dense", value=None, goal=at_least(REACHED), note="it has no times")
    yield from (_widest(records, name, what) for name, what in ONCE.items())
    yield from _failed(records)
    for item in loaded.left_out:
        yield Figure(name=f"left out: {item.what}", value=None, note=f"{item.model}: {item.reason}")


ONCE = {"prefill_ms": "prefill", "selection_ms": "selection"}
"""What a request does once, and what it is called."""


def batches(setting: CheckSetting) -> Iterator[Figure]:
    """Short benches of several requests served together."""
    model = tda.load_model(setting.model, dtype="bfloat16", device=setting.device).model
    for batch in DRY_BATCHES if setting.dry else BATCHES:
        records = _bench(setting, model, f"batch-{batch}", batch=batch, prompt_tokens=setting.prompt_tokens)
        yield from _short(records, f"batch {batch}")


def contexts(setting: CheckSetting) -> Iterator[Figure]:
    """Short benches of longer prompts.

    The rotary embedding of the shape is plain, and its weights are random: its positions are only a limit, so it is
    raised.
    """
    model: Any = tda.load_model(setting.model, dtype="bfloat16", device=setting.device).model
    lengths = DRY_CONTEXTS if setting.dry else CONTEXTS
    own, raised = model.config.max_position_embeddings, max(lengths)
    model.config.max_position_embeddings = max(own, raised)
    for length in lengths:
        prompt_tokens = length - setting.request["new_tokens"]
        records = _bench(setting, model, f"context-{length}", batch=1, prompt_tokens=prompt_tokens)
        told = f"; the shape's {own} positions raised" if length > own else ""
        for figure in _short(records, f"context {length}"):
            yield figure.model_copy(update={"note": figure.note + told})


def _bench(setting: CheckSetting, model: Any, name: str, **sizes: Any) -> list[Record]:
    return tda.run_bench(
        setting.folder / name, models=[model], methods=["griffin"], sparsities=[0.5], **sizes, **setting.request
    )


def _short(records: Sequence[Record], prefix: str) -> Iterator[Figure]:
    """Steps, speed-ups and prefill of a short bench, with what failed."""
    found = []
    for record in _timed(records):
        found += [_step(record, records), *_speedup(record, records, judged=False)]
        found.append(_time(record, records, "prefill_ms", ONCE["prefill_ms"]))
    for figure in [*found, *_failed(records)]:
        yield figure.model_copy(update={"name": f"{prefix}, {figure.name}"})


def _label(record: Record, records: Sequence[Record]) -> str:
    return describe(record.case, [other.case for other in records], model=False)


def _timed(records: Sequence[Record]) -> list[Record]:
    """Cases that have a speed, controls aside."""
    return [record for record in records if record.samples("decode_ms") and record.case.control is None]


def _failed(records: Sequence[Record]) -> Iterator[Figure]:
    """What failed, and what ran and has no speed, with the reason."""
    for record in records:
        name, step = describe(record.case, [other.case for other in records]), record.measurements.get("decode_ms")
        if record.status != "ok":
            yield Figure(name=name, value=None, note=f"{record.status}: {record.reason}")
        elif step is not None and step.missing is not None:
            yield Figure(name=f"{name}: decode step", value=None, note=step.missing)


def _estimate(record: Record, name: str) -> Estimate:
    """Over rounds, of each round's median."""
    return typical(list(by_group(record.measurements[name]).values()))


def _dense(record: Record, records: Sequence[Record]) -> Record | None:
    return next((other for other in records if other.case.is_baseline and other.setting == record.setting), None)


def _step(record: Record, records: Sequence[Record]) -> Figure:
    """A decode step, with the bandwidth at which it reads its weights and the share that it is of a copy's."""
    step, weights = _estimate(record, "decode_ms"), record.samples("weight_bytes_per_token")
    told = []
    if weights:
        told.append(f"{typical(weights).value / step.value / 1e6:.4g} GB/s")
    share = derive("mbu", record, _dense(record, records))
    told.append(f"{share} of the copy bandwidth" if isinstance(share, Estimate) else share.reason)
    name = f"{_label(record, records)}: decode step"
    raised = [f"flag: {flag}" for flag in record.raised()]
    return Figure(name=name, value=step.value, unit="ms", note="; ".join([*told, f"ran {record.execution}", *raised]))


def _speedup(record: Record, records: Sequence[Record], *, judged: bool) -> Iterator[Figure]:
    """Times as fast as dense, with its interval and the limit that bytes set."""
    if record.case.is_baseline:
        return
    dense = _dense(record, records)
    faster, limit = derive("speedup", record, dense), derive("roofline_speedup", record, dense)
    name, goal = f"{_label(record, records)}: over our dense", _goal(record.case) if judged else None
    if isinstance(faster, Missing):
        yield Figure(name=name, value=None, goal=goal, note=faster.reason)
        return
    note = f"{faster}; the bytes allow {limit.reason if isinstance(limit, Missing) else limit}"
    if isinstance(limit, Estimate) and faster.value > (limit.high or limit.value):
        note += "; more than the bytes allow: not to be trusted"
    yield Figure(name=name, value=faster.value, goal=goal, note=note)


def _goal(case: Case) -> FigureBound | None:
    return at_least(REACHED) if (case.method, case.sparsity) == ("griffin", 0.5) else None


def _time(record: Record, records: Sequence[Record], name: str, what: str) -> Figure:
    found = _estimate(record, name)
    return Figure(name=f"{_label(record, records)}: {what}", value=found.value, unit="ms", note=str(found))


def _widest(records: Sequence[Record], name: str, what: str) -> Figure:
    """The half-width of the widest interval, as a share of what it is of."""
    found: list[tuple[float, str]] = []
    for record in _timed(records):
        one = _estimate(record, name) if record.samples(name) else None
        if one is not None and one.low is not None and one.high is not None and one.value > 0:
            found.append(((one.high - one.low) / 2 / one.value, _label(record, records)))
    title, goal = f"widest interval of {what}, half of it over its value", at_most(WIDTH)
    if not found:
        return Figure(name=title, value=None, goal=goal, note="no case has rounds enough for an interval")
    width, label = max(found)
    return Figure(name=title, value=width, goal=goal, note=f"{label}; {len(found)} cases have an interval")

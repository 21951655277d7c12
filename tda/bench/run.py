"""Run a plan: every model once, its cases interleaved in rounds, records appended as they come."""

import contextlib
import functools
import gc
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tda import device as facts
from tda.bench.measure import Timing, as_scores, peak_memory, rows_of, time_case
from tda.bench.plan import Plan, Subject
from tda.bench.prepare import Prepared, Texts, prepare
from tda.bench.telemetry import throttle_reasons
from tda.contracts import Execution, Method
from tda.engine.score import score
from tda.methods import method as build_method
from tda.metrics import METRICS
from tda.quality import Evaluator
from tda.records import Case, Flag, FlagName, Measurement, Record, Status, merge
from tda.results import append, load, results_path
from tda.statistics import MIN_GROUPS
from tda.thresholds import Thresholds

FOREIGN_SHARE = 0.05
"""Samples taken while others used more of the cores than this are flagged."""
CRASHES_ALLOWED = 2
"""A case that ended the process this often is left out of later attempts."""
TIMES = ("prefill_ms", "select_ms", "ttft_ms", "decode_ms", "generation_ms", "break_even_tokens", "gain_share",
         "bandwidth_share", "stream_gb_per_s")  # fmt: skip
OTHER_KIND = "another kind"


@dataclass(frozen=True)
class Cell:
    """A case with what it takes to run it; `control` is the second dense run of a round."""

    case: Case
    method: Method
    thresholds: Thresholds | None
    control: bool = False


@dataclass
class Bench:
    """A plan being run into a folder.

    Attributes
    ----------
    plan : Plan
        What to measure.
    out : Path
        Results folder; an interrupted run's records there are kept and completed.
    texts : Texts
        JSONL files instead of the built-in streams.
    console : Console
        Where progress and notices go.
    """

    plan: Plan
    out: Path
    texts: Texts = field(default_factory=Texts)
    console: Console = field(default_factory=lambda: Console(stderr=True))
    trust_remote_code: bool = False
    _done: dict[tuple[str, bool], dict[int, Record]] = field(default_factory=dict)
    _crashes: dict[tuple[str, bool], int] = field(default_factory=dict)

    @property
    def _running(self) -> Path:
        return self.out / "running.json"

    def run(self) -> list[Record]:
        """Measure what is not measured yet; return the folder's merged records.

        Raises
        ------
        ValueError
            If the folder holds results of another commit or machine, or a model, method or text is wrong.
        OSError
            If the folder cannot be written.
        """
        self._open()
        with self._progress() as progress:
            for subject in self.plan.subjects:
                self._measure(subject, progress)
        return merge(load(self.out).records)

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Progress]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield progress

    # What an earlier run left.

    def _open(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        append(self.out, [])
        found = load(self.out)
        for problem in found.problems:
            self.console.print(f"[yellow]{problem}; what it held is measured again")
        machine, commit = facts.machine(self.plan.device), facts.commit()
        for record in found.records:
            for what, then, now in (("commit", record.commit, commit), ("machine", record.machine, machine)):
                if then != now:
                    raise ValueError(
                        f"{results_path(self.out)} holds results of another {what} ({_difference(then, now)}); "
                        "give another --out, or delete it"
                    )
            self._note(record)
        self._note_crash()

    def _note(self, record: Record) -> None:
        if record.status == "ok":
            self._done.setdefault(record.series, {})[record.round] = record
        elif record.status == "crash":
            self._crashes[record.series] = self._crashes.get(record.series, 0) + 1

    def _note_crash(self) -> None:
        """A marker that was left behind: the process died in that case."""
        if not self._running.is_file():
            return
        with contextlib.suppress(ValueError, KeyError):
            left = json.loads(self._running.read_text())
            record = self._record(
                Case.model_validate(left["case"]),
                left["control"],
                left["round"],
                "crash",
                time.monotonic(),
                reason="the process died while it ran this case (killed, or out of memory)",
            )
            self._keep([record])
            self.console.print(f"[yellow]an earlier run died in {record.case.method} on {record.case.model}; noted")
        self._running.unlink()

    def _keep(self, records: Sequence[Record]) -> None:
        append(self.out, records)
        for record in records:
            self._note(record)

    def _missing(self, cell: Cell, number: int) -> bool:
        series = (cell.case.key, cell.control)
        crashed = self._crashes.get(series, 0) >= CRASHES_ALLOWED
        return number not in self._done.get(series, {}) and not crashed

    # One model.

    def _measure(self, subject: Subject, progress: Progress) -> None:
        plan = self.plan
        task = progress.add_task(f"{subject.model}: loading", total=None)
        prepared = prepare(
            plan,
            subject,
            self.out,
            self.texts,
            self._profile(subject),
            self.console.print,
            self.trust_remote_code,
        )
        for sentence in prepared.left_out:
            self.console.print(f"[yellow]{subject.model}: {sentence}; left out")
        cells = [Cell(plan.case(subject, built), built, thresholds) for built, thresholds in prepared.methods]
        timed = [
            cell for cell in cells if subject.speed and cell.method.name in plan.speed_methods and cell.method.fast
        ]
        timed += [Cell(c.case, c.method, c.thresholds, control=True) for c in timed if c.method.name == "dense"]
        wanted = cells if subject.quality else timed
        progress.update(task, total=len(wanted) + plan.rounds * len(timed), description=f"{subject.model}: quality")
        self._first_round(subject, prepared, wanted, lambda: progress.advance(task))
        for number in range(1, plan.rounds + 1):
            progress.update(task, description=f"{subject.model}: round {number} of {plan.rounds}")
            self._round(subject, prepared, timed, number, lambda: progress.advance(task))
        progress.remove_task(task)
        del prepared
        gc.collect()

    def _profile(self, subject: Subject) -> dict[tuple[str, float | None], Sequence[float]] | None:
        """Achieved sparsity per layer of the model that this one is to imitate; empty for other shapes."""
        if subject.layer_profile is None:
            return {} if not subject.quality else None
        records = [rounds[0] for rounds in self._done.values() if 0 in rounds]
        return {
            (record.case.method, record.case.sparsity): record.achieved_sparsity
            for record in records
            if record.case.model == subject.layer_profile and record.achieved_sparsity
        }

    # Round 0: what needs no repetition.

    def _first_round(
        self, subject: Subject, prepared: Prepared, cells: Sequence[Cell], advance: Callable[[], None]
    ) -> None:
        evaluator = Evaluator(prepared.model, prepared.scored)
        for cell in [*cells, *(self._other_kind(subject, prepared) if subject.quality else [])]:
            if self._missing(cell, 0):
                self._guarded([cell], 0, functools.partial(self._first, subject, prepared, evaluator, cell))
            advance()

    def _other_kind(self, subject: Subject, prepared: Prepared) -> list[Cell]:
        """Griffin with the selection of another kind's prompt: what a prompt's own selection is worth."""
        kinds = {document.kind for document in prepared.scored}
        if len(kinds) < 2 or "griffin" not in self.plan.methods:
            return []
        built = [build_method("griffin", sparsity) for sparsity in self.plan.sparsities]
        extra = {"selection_from": OTHER_KIND}
        return [Cell(self.plan.case(subject, method, extra), method, None) for method in built]

    def _first(self, subject: Subject, prepared: Prepared, evaluator: Evaluator, cell: Cell) -> list[Record]:
        started = time.monotonic()
        measurements: dict[str, Measurement] = {}
        achieved: tuple[float, ...] = ()
        quality = [*METRICS, "selection_digest"]
        if subject.quality:
            other = cell.case.options.get("selection_from") == OTHER_KIND
            select_on = [*prepared.scored[1:], prepared.scored[0]] if other else None
            result = evaluator.evaluate(cell.method, cell.thresholds, select_on)
            measurements, achieved = result.measurements(), result.achieved_sparsity
            reasons = dict.fromkeys(quality, "chosen per token: no set per prompt")
        else:
            reasons = dict.fromkeys(quality, f"{subject.model} has random weights: its text is noise")
        if cell.method.name in self.plan.speed_methods and subject.speed and cell.method.fast:
            batch = prepared.timed[: self.plan.batch]
            execution = self._execution(cell.method)
            peak, problem = peak_memory(prepared.model, cell.method, cell.thresholds, batch, execution)
            if peak is not None:
                measurements["peak_memory_bytes"] = Measurement.of("peak_memory_bytes", [peak])
            else:
                reasons["peak_memory_bytes"] = problem or "unknown"
        elif not cell.method.fast:
            reasons |= dict.fromkeys(TIMES, "no kernel skips what it leaves out: masked execution has no speed")
        else:
            why = "not timed: only its quality is measured here" if subject.quality else "not among the timed methods"
            reasons |= dict.fromkeys((*TIMES, "peak_memory_bytes"), why)
        for name, reason in reasons.items():
            measurements.setdefault(name, Measurement.absent(name, reason))
        record = self._record(
            cell.case,
            cell.control,
            0,
            "ok",
            started,
            measurements=measurements,
            achieved_sparsity=achieved,
            execution="masked" if subject.quality else None,
        )
        return [record]

    def _execution(self, method: Method) -> Execution:
        """The asked execution, or "auto" for a method that cannot run it."""
        asked = self.plan.execution
        return asked if asked in method.executions else "auto"

    # Timed rounds.

    def _round(
        self,
        subject: Subject,
        prepared: Prepared,
        cells: Sequence[Cell],
        number: int,
        advance: Callable[[], None],
    ) -> None:
        """Run every case once, in an order of its own, then append the round's records together."""
        if not any(self._missing(cell, number) for cell in cells):
            for _ in cells:
                advance()
            return
        order = list(cells)
        random.Random(f"{self.plan.seed}/{subject.model}/{number}").shuffle(order)
        if number % 2 == 0:
            order.reverse()
        rows = self.plan.batch
        documents = prepared.timed[(number - 1) * rows : number * rows]
        model = prepared.model
        bandwidth = facts.stream_gb_per_s(next(model.parameters()).device)
        timings: list[tuple[Cell, Timing, float]] = []
        for cell in order:
            started = time.monotonic()

            def measure(cell: Cell = cell, started: float = started) -> list[Record]:
                execution = self._execution(cell.method)
                timing = time_case(
                    model, cell.method, cell.thresholds, documents, execution, keep_logits=subject.quality
                )
                timings.append((cell, timing, started))
                return []

            if self._crashes.get((cell.case.key, cell.control), 0) < CRASHES_ALLOWED:
                self._guarded([cell], number, measure)
            advance()
        dense = next((timing for cell, timing, _ in timings if cell.method.name == "dense" and not cell.control), None)
        self._keep(
            [
                self._timed_record(subject, prepared, cell, timing, dense, bandwidth, number, started)
                for cell, timing, started in timings
            ]
        )

    def _timed_record(
        self,
        subject: Subject,
        prepared: Prepared,
        cell: Cell,
        timing: Timing,
        dense: Timing | None,
        bandwidth: float,
        number: int,
        started: float,
    ) -> Record:
        if timing.execution == "masked":
            reason = "it ran masked here, which skips nothing: no speed"
            measurements = {name: Measurement.absent(name, reason) for name in TIMES}
        else:
            measurements = _speed(timing, dense, bandwidth)
        measurements |= timing.gpu
        if timing.logits is not None:
            measurements |= self._quality(prepared, cell, timing, number)
        if timing.digest is not None:
            measurements["selection_digest"] = Measurement.of(
                "selection_digest", [timing.digest], [self._first_document(number)]
            )
        return self._record(
            cell.case,
            cell.control,
            number,
            "ok",
            started,
            measurements=measurements,
            achieved_sparsity=timing.achieved_sparsity,
            execution=timing.execution,
            flags=self._flags(prepared, timing),
        )

    def _first_document(self, number: int) -> int:
        return self.plan.documents + (number - 1) * self.plan.batch

    def _quality(self, prepared: Prepared, cell: Cell, timing: Timing, number: int) -> dict[str, Measurement]:
        """Quality of the very tokens that were timed, against a dense pass over the same documents."""
        rows = self.plan.batch
        documents = prepared.timed[(number - 1) * rows : number * rows]
        prompts, continuations = rows_of(documents, next(prepared.model.parameters()).device)
        reference = score(prepared.model, build_method("dense"), prompts, continuations)
        scores = as_scores(timing, continuations)
        first = self._first_document(number)
        return {
            name: Measurement.of(name, metric(scores, reference).tolist(), range(first, first + rows))
            for name, metric in METRICS.items()
        }

    def _flags(self, prepared: Prepared, timing: Timing) -> dict[FlagName, Flag]:
        plan = self.plan
        few = plan.rounds < MIN_GROUPS
        cache = facts.machine(plan.device).cache_bytes
        weights = timing.traffic.weights
        flags: dict[FlagName, Flag] = {
            "foreign_load": Flag(
                raised=timing.foreign_load > FOREIGN_SHARE,
                detail=f"other processes used {timing.foreign_load:.0%} of the cores",
            ),
            "few_samples": Flag(raised=few, detail=f"{plan.rounds} rounds; an interval needs {MIN_GROUPS}"),
            "clocks": Flag(raised=None, detail="clocks are not watched in this version"),
        }
        if plan.device == "cpu":
            flags["throttling"] = Flag(raised=None, detail="not observable on a CPU")
            flags["cache_resident"] = Flag(
                raised=None if cache is None else weights < cache,
                detail=f"{weights / 1e6:.0f} MB of weights a token, {(cache or 0) / 1e6:.0f} MB of cache",
            )
        else:
            raised, detail = throttle_reasons(torch.device(plan.device).index or 0)
            flags["throttling"] = Flag(raised=raised, detail=detail)
        return flags

    # Records and failures.

    def _guarded(self, cells: Sequence[Cell], number: int, work: Callable[[], Sequence[Record]]) -> None:
        """Run work for a cell: its failure is a record; a death of the process leaves a marker for the next run."""
        cell, started = cells[0], time.monotonic()
        marker = {"case": cell.case.model_dump(mode="json"), "control": cell.control, "round": number}
        self._running.write_text(json.dumps(marker))
        try:
            self._keep(work())
        except Exception as error:  # a failing case is a record, and the others go on
            status: Status = "oom" if _is_out_of_memory(error) else "error"
            reason = f"{type(error).__name__}: {error}"
            self._keep([self._record(cell.case, cell.control, number, status, started, reason=reason)])
            self.console.print(f"[red]{cell.case.method} on {cell.case.model} failed: {reason.splitlines()[0]}")
        finally:
            self._running.unlink(missing_ok=True)

    def _record(
        self,
        case: Case,
        control: bool,
        number: int,
        status: Status,
        started: float,
        *,
        reason: str | None = None,
        measurements: dict[str, Measurement] | None = None,
        achieved_sparsity: tuple[float, ...] = (),
        execution: str | None = None,
        flags: dict[FlagName, Flag] | None = None,
    ) -> Record:
        seconds = time.monotonic() - started
        return Record(
            case=case,
            round=number,
            control=control,
            commit=facts.commit(),
            machine=facts.machine(self.plan.device),
            status=status,
            reason=reason,
            achieved_sparsity=achieved_sparsity,
            execution=execution,
            backend="torch",
            measurements=measurements or {},
            flags=flags or {},
            conditions={"threads": float(torch.get_num_threads()), "load_average": os.getloadavg()[0]},
            started=datetime.fromtimestamp(time.time() - seconds, UTC).isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
        )


def _speed(timing: Timing, dense: Timing | None, bandwidth: float) -> dict[str, Measurement]:
    """A round's times, and what pairs them with the dense run of the same round."""
    step_ms = sorted(timing.decode_ms)[len(timing.decode_ms) // 2]
    weights = timing.traffic.weights
    values = {
        "prefill_ms": [timing.prefill_ms],
        "ttft_ms": [timing.ttft_ms],
        "decode_ms": timing.decode_ms,
        "generation_ms": [timing.generation_ms],
        "stream_gb_per_s": [bandwidth],
        "weight_bytes_per_token": [weights],
        "bandwidth_share": [weights / step_ms / 1e6 / bandwidth],
    }
    reasons = {}
    if dense is None:
        reasons = dict.fromkeys(
            ("select_ms", "limit_speedup", "gain_share", "break_even_tokens"),
            "the dense run of this round failed",
        )
    else:
        dense_ms = sorted(dense.decode_ms)[len(dense.decode_ms) // 2]
        limit = dense.traffic.total / timing.traffic.total
        select_ms = timing.ttft_ms - dense.prefill_ms
        values |= {"select_ms": [select_ms], "limit_speedup": [limit]}
        if limit > 1:
            values["gain_share"] = [(dense_ms / step_ms - 1) / (limit - 1)]
        else:
            reasons["gain_share"] = "nothing is left out, so there is no gain to share"
        if step_ms < dense_ms:
            values["break_even_tokens"] = [max(select_ms, 0.0) / (dense_ms - step_ms)]
        else:
            reasons["break_even_tokens"] = "decode was not faster than dense in this round"
    found = {name: Measurement.of(name, samples) for name, samples in values.items()}
    return found | {name: Measurement.absent(name, reason) for name, reason in reasons.items()}


def _is_out_of_memory(error: Exception) -> bool:
    words = str(error).lower()
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError) or "out of memory" in words or "can't allocate" in words
    )


def _difference(then: object, now: object) -> str:
    one, other = (vars(part) for part in (then, now))
    return ", ".join(f"{name} {one[name]!r} there, {other[name]!r} here" for name in one if one[name] != other[name])

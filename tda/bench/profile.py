"""Profile cases: a timing pass over all of them interleaved, then each in passes of its own, never mixed."""

import logging
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

from tda import device as facts
from tda import kernels
from tda.bench.measure import Timing, time_case
from tda.bench.outcome import validity_flags
from tda.bench.plan import Plan, Subject
from tda.bench.planning import plan_for
from tda.bench.prepare import Prepared, prepare
from tda.cases import Case, Inputs, MethodSpec, describe, digest_of
from tda.contracts import Method
from tda.engine import attach
from tda.engine.backends.attachment_cache import attachment_cache
from tda.engine.context import check_context
from tda.engine.plain import notice, plain
from tda.engine.session import Session
from tda.limits import matmul_tflop_per_s
from tda.models import is_shape
from tda.names import Execution
from tda.profiler.capture import STEPS, WARM_STEPS, count, memory_snapshot, peaks, record, record_order, serve, tabulate
from tda.profiler.overhead import Overhead, measure_overhead
from tda.profiler.records import Profile, Timed
from tda.profiler.store import MEMORY, ORDER, TRACE, write_profile
from tda.quality import Document, rows_of
from tda.records import join_flags
from tda.schedule import balanced
from tda.telemetry import Sampler, Telemetry

logger = logging.getLogger(__name__)

ROUNDS = 5
WINDOW_S = 1.0
"""Length of the telemetry pass: the driver's counters need about a second."""


def run_profile(
    out: Path | str,
    *,
    models: Sequence[str | nn.Module | tuple[nn.Module, Any]] = (),
    methods: Sequence[str | MethodSpec | Method] = (),
    **options: Any,
) -> list[Profile]:
    """Profile a matrix of cases as ``tda profile`` does, without its page: what suites call.

    Dense is always among the methods, since every saving is against it.

    Parameters
    ----------
    out : Path or str
        Folder; each case gets one of its own in it, replaced if it is there.
    models, methods, **options
        As of `tda.run_bench`, as far as they ask for cases.

    Returns
    -------
    list of Profile
        In the order of the matrix.

    Raises
    ------
    ValueError
        If an option is wrong, or the device is not here.
    OSError
        If the folder cannot be written.
    """
    asked = {"preset": "smoke", **options}
    plan = plan_for(models or ("shape:0.3b",), methods or ("griffin", "tda"), asked)
    facts.torch_device(plan.device)
    subjects = tuple(replace(subject, quality=False, layer_sparsity_from=None) for subject in plan.subjects)
    plan = replace(plan, subjects=subjects, rounds=ROUNDS)
    if notice := kernels.notice(plan.device):
        logger.warning(notice)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler tells of its own stages on stderr
    overhead = measure_overhead()
    return [profile for subject in subjects for profile in _SubjectProfile(plan, subject, Path(out), overhead).run()]


@dataclass
class _SubjectProfile:
    """One model of a plan being profiled."""

    plan: Plan
    subject: Subject
    out: Path
    overhead: Overhead

    def run(self) -> list[Profile]:
        """All passes of all cases."""
        least = WARM_STEPS + STEPS + 1
        if self.subject.new_tokens < least:
            raise ValueError(
                f"a profile decodes {WARM_STEPS} and then {STEPS} tokens after the first, so it needs at least {least} "
                f"new tokens; got {self.subject.new_tokens}"
            )
        logger.info(f"{self.subject.model}: loading")
        prepared = prepare(
            self.plan,
            self.subject,
            profile={} if is_shape(self.subject.model) else None,
        )
        for sentence in prepared.left_out:
            logger.warning(f"{self.subject.model}: {sentence}; left out")
        if told := notice(prepared.model):
            logger.warning(f"{self.subject.model}: {told}")
        check_context(prepared.model, self.subject.prompt_tokens, least)
        with attachment_cache(prepared.model):
            profiles = self._profiles(prepared)
        if (told := kernels.untuned()) is not None:
            logger.warning(f"{self.subject.model}: {told}")
        return profiles

    def _profiles(self, prepared: Prepared) -> list[Profile]:
        timed = self._time(prepared)
        device = next(prepared.model.parameters()).device
        peak = matmul_tflop_per_s(device, next(prepared.model.parameters()).dtype)
        profiles = []
        for (method, inputs), timings in zip(prepared.methods, timed, strict=True):
            logger.info(f"{self.subject.model}: profiling {method.name}")
            profiles.append(self._profile(prepared, method, inputs, timings, peak))
        return profiles

    def _execution(self, method: Method) -> Execution:
        asked = self.plan.execution
        return asked if asked in method.executions else "auto"

    def _documents(self, prepared: Prepared, number: int) -> Sequence[Document]:
        return prepared.timed[number * self.plan.batch : (number + 1) * self.plan.batch]

    def _time(self, prepared: Prepared) -> list[list[Timing]]:
        """The timing pass: every case once a round, each second round in reverse."""
        taken: list[list[Timing]] = [[] for _ in prepared.methods]
        cells = list(zip(prepared.methods, taken, strict=True))
        for number in range(1, ROUNDS + 1):
            logger.info(f"{self.subject.model}: timing, round {number} of {ROUNDS}")
            for (method, _), timings in balanced(cells, number, f"{self.plan.seed}/{self.subject.model}"):
                documents = self._documents(prepared, number - 1)
                execution = self._execution(method)
                timings.append(time_case(prepared.model, method, documents, execution, keep_logits=False))
        return taken

    def _profile(
        self, prepared: Prepared, method: Method, inputs: Inputs, timings: Sequence[Timing], peak: float
    ) -> Profile:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        case = self.plan.case(self.subject, method)
        folder = self.out / folder_name(case, inputs)
        shutil.rmtree(folder, ignore_errors=True)
        device = next(prepared.model.parameters()).device
        prompts, continuations = rows_of(self._documents(prepared, 0), device)
        execution = self._execution(method)
        with plain(prepared.model), attach(prepared.model, method, execution=execution) as run:
            session = Session(run, prompts, continuations)
            serve(session)
            memory = peaks(session)
            telemetry = _watch(session)
            plain_us = record(session, folder / TRACE)
            order = record_order(session, folder / ORDER)
            counter = count(session)
            if device.type == "cuda":
                memory_snapshot(session, folder / MEMORY)
        table = tabulate(folder / TRACE, counter, self.overhead, plain_us, order)
        for sentence in table.untold:
            logger.warning(f"{self.subject.model}: {sentence}")
        traffic = timings[0].traffic
        profile = Profile(
            case=case,
            inputs=inputs,
            commit=facts.commit(),
            machine=facts.machine(self.plan.device),
            started=started,
            execution=timings[0].execution,
            backend=timings[0].backend,
            achieved_sparsity=timings[0].achieved_sparsity,
            weight_bytes=traffic.weights,
            step_bytes=traffic.total,
            matmul_tflop_per_s=peak,
            event_us=_event_us(table.overhead),
            timed=_timed(timings),
            flags=join_flags([validity_flags(timing, self.plan.device, ROUNDS) for timing in timings]),
            phases=table.phases(),
            kernels=tuple(table.rows()),
            modules=tuple(table.modules()),
            memory=memory,
            telemetry=telemetry,
            trace=TRACE,
            untold=table.untold,
        )
        write_profile(folder, profile)
        return profile


def _event_us(overhead: Overhead) -> dict[str, float]:
    """What recording an event costs, as a profile tells it."""
    return {"operator": overhead.op, "range": overhead.span, "stage": overhead.stage, "kernel": overhead.kernel}


def _timed(timings: Sequence[Timing]) -> Timed:
    """Median times of each round of the timing pass."""
    return Timed(
        prefill_ms=tuple(median(timing.passes.prefill) for timing in timings),
        selection_ms=tuple(median(timing.passes.selection) for timing in timings if timing.passes.selection),
        decode_ms=tuple(median(timing.decode_ms) for timing in timings),
        stream_gb_per_s=tuple(timing.stream_gb_per_s for timing in timings),
    )


def _watch(session: Session) -> Telemetry:
    """The telemetry pass: requests served again and again while the sampler runs."""
    with Sampler(session.device) as sampler:
        begin = datetime.now(UTC)
        while (datetime.now(UTC) - begin).total_seconds() < WINDOW_S:
            serve(session)
    return sampler.telemetry


def folder_name(case: Case, inputs: Inputs) -> str:
    """Name of a case's folder: what people call it, and a few letters that no other case and inputs have."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{case.model}-{describe(case, model=False)}").strip("-.")
    return f"{words}-{digest_of([case.key, inputs.key], 6)}"

"""Measure one case in one round: passes of the prompt, selections, decode tokens, and the model's own generate."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tda import limits
from tda.bench.traffic import Traffic, decode_traffic
from tda.contracts import Method
from tda.device import PeakMemory, RangeClock, Timer
from tda.engine import attach
from tda.engine.backends.attachment_cache import attachment_cache
from tda.engine.plain import plain
from tda.engine.score import Scores, token_nll
from tda.engine.session import Session
from tda.finite import check_logits
from tda.names import Execution
from tda.quality import Document, rows_of
from tda.spans import recording
from tda.telemetry import ConditionChange, ConditionMonitor

WARM_UP_TOKENS = 3
DROPPED_PASSES = 1
"""Passes of the prompt that are served first and not kept: clocks rise, and caches fill."""
PASSES, MOST_PASSES = 2, 10
"""Passes that are kept of a round, at least and at most, each on a request of its own, its selection after it."""
PASSES_MS = 150.0
"""More passes than the least are made while those before took less than this together."""
RANGES = {"statistic": "statistic", "selection": "choice", "gather": "gather"}
"""Ranges of `tda.spans` that are clocked in a pass, and where in `Passes` they go."""


@dataclass
class Passes:
    """What each pass of the prompt took, in ms; empty for what the method does not do before its first decode step.

    Attributes
    ----------
    prefill, first_token : list of float
        The pass with the statistic; the same until the token is read from it.
    statistic : list of float
        The part of prefill that the method's statistic takes.
    selection, choice, gather : list of float
        Everything from the first token to readiness for a decode step, and its two parts.
    """

    prefill: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    statistic: list[float] = field(default_factory=list)
    selection: list[float] = field(default_factory=list)
    choice: list[float] = field(default_factory=list)
    gather: list[float] = field(default_factory=list)


@dataclass
class Timing:
    """Raw numbers of one case in one round.

    Attributes
    ----------
    passes : Passes
        Passes of the prompt.
    generation_ms : float
        The whole of `generate`.
    decode_ms : list of float
        One per decode step.
    logits : Tensor or None
        What predicted each continuation token, [B, G, V]; None where no quality is asked.
    execution, backend : str
        What really ran, and the kernels that ran it.
    achieved_sparsity : tuple of float
        Share left out per layer.
    traffic : Traffic
        Bytes of a decode step.
    streams_gb_per_s : tuple of float
        Stream bandwidth just before and just after the decode steps.
    change : ConditionChange
        What the machine did meanwhile.
    digest : float or None
        Hash of the first row's kept sets; None for methods that choose per token.
    """

    passes: Passes
    generation_ms: float
    decode_ms: list[float]
    logits: Tensor | None
    execution: str
    backend: str
    achieved_sparsity: tuple[float, ...]
    traffic: Traffic
    streams_gb_per_s: tuple[float, float]
    change: ConditionChange
    digest: float | None

    @property
    def stream_gb_per_s(self) -> float:
        """Stream bandwidth around the decode steps."""
        return mean(self.streams_gb_per_s)


@dataclass(frozen=True)
class Pace:
    """What the parts of a case take on this machine now, in seconds: to tell how long a round will be.

    Attributes
    ----------
    fixed_s : float
        To attach as rounds do, and to read the stream bandwidth twice.
    prefill_s, step_s : float
        A pass of the prompt, and a decode step.
    """

    fixed_s: float
    prefill_s: float
    step_s: float

    def round_s(self, new_tokens: int) -> float:
        """About how long `time_case` takes."""
        passes = max(PASSES * self.prefill_s, PASSES_MS / 1000)
        steps = WARM_UP_TOKENS + 2 * new_tokens
        return self.fixed_s + (2 + DROPPED_PASSES) * self.prefill_s + passes + steps * self.step_s


@torch.no_grad()
def pace(
    model: nn.Module, method: Method, documents: Sequence[Document], execution: Execution, stream: limits.Stream
) -> Pace:
    """Time the parts of a case once, after an unmeasured request."""
    prompts, continuations = rows_of(documents, next(model.parameters()).device)
    clock = Timer(prompts.device)
    with clock.timing():
        stream.gb_per_s()
    stream_s = clock.ms / 1000
    with plain(model), attachment_cache(model) as kept:
        if kept.keeps:
            attach_once(model, method, execution)
        with attach(model, method, execution=execution) as run:
            session = Session(run, prompts, continuations)
            session.serve(1)
            session.watch = lambda phase: clock.timing()
            session.prefill()
            prefill_s = clock.ms / 1000
            next(session.steps())
            return Pace(run.attachment.attached_ms / 1000 + 2 * stream_s, prefill_s, clock.ms / 1000)


def attach_once(model: nn.Module, method: Method, execution: Execution) -> None:
    """Attach a method and leave: in an attachment cache, what is dear is there for the next time."""
    with plain(model), attach(model, method, execution=execution):
        pass


@torch.no_grad()
def time_case(
    model: nn.Module,
    method: Method,
    documents: Sequence[Document],
    execution: Execution,
    *,
    keep_logits: bool,
    stream: limits.Stream | None = None,
) -> Timing:
    """Attach a method, serve one unmeasured request, then measure one.

    Decode is teacher-forced on the documents' continuations, so that every case does equal work. The stream bandwidth
    is read just before and just after; `stream` saves a caller of many cases a new buffer for each.
    """
    device = next(model.parameters()).device
    prompts, continuations = rows_of(documents, device)
    clock, stream = Timer(device), stream or limits.Stream(device)
    with plain(model), attach(model, method, execution=execution) as run:
        session = Session(run, prompts, continuations)
        session.serve(WARM_UP_TOKENS)
        gc.collect()
        watch = ConditionMonitor(device)
        passes, first = _prefill_passes(session)
        before = stream.gb_per_s()
        steps = _decode_steps(session, keep_logits=keep_logits)
        after = stream.gb_per_s()
        ran: dict[str, Any] = {  # before generate: what is told is of the timed steps
            "execution": run.execution or "dense",
            "backend": run.backend,
            "achieved_sparsity": tuple(run.achieved_sparsity()),
            "traffic": _traffic(session, steps),
            "digest": run.selection().digest(0) if method.kind == "prompt" else None,
        }
        with clock.timing():
            generate(model, prompts, continuations.shape[1])
        logits = torch.cat([first, *steps.logits], 1) if keep_logits else None
        if logits is not None:
            check_logits(model, logits, torch.ones_like(continuations, dtype=torch.bool))
        return Timing(
            passes=passes,
            generation_ms=clock.ms,
            decode_ms=steps.ms,
            logits=logits,
            streams_gb_per_s=(before, after),
            change=watch.read(),
            **ran,
        )


def _prefill_passes(session: Session) -> tuple[Passes, Tensor]:
    """Serve the prompt anew until there are passes enough; the last one's cache is there for decode, and its logits.

    Prefill and selection are each clocked by themselves. What was not served yet when the method was attached is
    dropped: the first passes.
    """
    device = session.device
    passes, clock, whole, ranges = Passes(), Timer(device), Timer(device), RangeClock(device)
    session.watch = lambda phase: clock.timing()
    with recording(ranges, profiler=False):
        for _ in range(DROPPED_PASSES):
            session.prefill()
            session.select()
        ranges.read()
        started = time.monotonic()
        for number in range(MOST_PASSES):
            if number >= PASSES and time.monotonic() - started > PASSES_MS / 1000:
                break
            with whole.timing():
                logits = session.prefill()
                logits[:, -1].argmax(-1).tolist()
            passes.prefill.append(clock.ms)
            passes.first_token.append(whole.ms)
            session.select()
            found = ranges.read()
            if "selection" in found:
                passes.selection.append(clock.ms)
            for name in found.keys() & RANGES.keys():
                getattr(passes, RANGES[name]).append(found[name])
    return passes, logits


def generate(model: Any, prompts: Tensor, new_tokens: int) -> None:
    """Greedy generation of exactly `new_tokens` tokens through the own generate of a model that runs `plain`."""
    model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
    )


@dataclass
class _Steps:
    """Timed decode steps of a request, what they gave, and for a batch what each read: a share per layer."""

    ms: list[float] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    read: list[list[float]] = field(default_factory=list)


def _decode_steps(session: Session, *, keep_logits: bool) -> _Steps:
    """Feed the continuations, each step timed; the run counts these steps alone."""
    steps, clock, run = _Steps(), Timer(session.device), session.run
    session.watch = lambda phase: clock.timing()
    run.attachment.counter.restart()
    for logits in session.steps():
        steps.ms.append(clock.ms)
        if keep_logits:
            steps.logits.append(logits)
        if len(logits) > 1 and (run.attachment.method.scope == "token" or not steps.read):
            steps.read.append(run.selection().union())
    return steps


def _traffic(session: Session, steps: _Steps) -> Traffic:
    """Bytes of a decode step with what was read in the timed ones, on average: for a batch, the union over its rows."""
    prompts, attached = session.prompts, session.run.attachment
    kept = [mean(layer) for layer in zip(*steps.read, strict=True)]
    cached = prompts.shape[1] + session.continuations.shape[1] / 2
    kept = kept or [1 - share for share in attached.counter.of_places()]
    return decode_traffic(attached.model, attached.ffns, attached.method, kept, cached, len(prompts), session.cache)


class FirstRequest(NamedTuple):
    """What attaching and a first request take.

    Attributes
    ----------
    attach_ms : float
        To attach.
    peak_bytes : int
        Peak memory from before the method was attached until after the request.
    problem : str or None
        Why the peak is not known; None if it is.
    """

    attach_ms: float
    peak_bytes: int
    problem: str | None


@torch.no_grad()
def first_request(
    model: nn.Module,
    method: Method,
    documents: Sequence[Document],
    execution: Execution,
) -> FirstRequest:
    """Attach a method as a user does, and serve a request.

    On CUDA the peak is that of attaching, while a graph's pool is allocated, or that of a further request, while the
    pool is held: the greater one.
    """
    device = next(model.parameters()).device
    prompts, continuations = rows_of(documents, device)
    gc.collect()
    peak, found = PeakMemory(device), 0
    with plain(model), attach(model, method, execution=execution) as run:
        session = Session(run, prompts, continuations)
        session.serve(WARM_UP_TOKENS)
        if peak.device.type == "cuda":
            found, peak = peak.allocated(), PeakMemory(device)
            session.serve(WARM_UP_TOKENS)
            found = max(found, peak.read())
    return FirstRequest(run.attachment.attached_ms, found or peak.read(), peak.problem)


def as_scores(timing: Timing, continuations: Tensor) -> Scores:
    """The timed decode as scores under protocol "decode": the first token dense, the others as they ran."""
    assert timing.logits is not None
    valid = torch.ones_like(continuations, dtype=torch.bool)
    sparse = valid.clone()
    sparse[:, 0] = False
    return Scores(token_nll(timing.logits, continuations), sparse, valid, timing.logits, timing.achieved_sparsity)

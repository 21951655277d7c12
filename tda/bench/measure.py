"""Measure one case in one round: prefill, selection, each decode token, and the model's own generate."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from tda import limits
from tda.bench.traffic import Traffic, decode_traffic
from tda.contracts import Method, PromptMethod
from tda.device import PeakMemory, Stopwatch
from tda.engine import Run, attach
from tda.engine.phases import decode, prefill
from tda.engine.score import Scores, token_nll
from tda.names import Execution
from tda.quality import Document, rows_of, selection_digest
from tda.telemetry import Change, Watch
from tda.thresholds import Thresholds

WARM_UP_TOKENS = 3


@dataclass
class Timing:
    """Raw numbers of one case in one round.

    Attributes
    ----------
    prefill_ms, choose_ms, generation_ms : float
        The prompt's pass with the statistic; choice and gather after it; the whole of `generate`.
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
    change : Change
        What the machine did meanwhile.
    digest : float or None
        Hash of the first row's kept sets; None for methods that choose per token.
    """

    prefill_ms: float
    choose_ms: float
    generation_ms: float
    decode_ms: list[float]
    logits: Tensor | None
    execution: str
    backend: str
    achieved_sparsity: tuple[float, ...]
    traffic: Traffic
    streams_gb_per_s: tuple[float, float]
    change: Change
    digest: float | None

    @property
    def ttft_ms(self) -> float:
        """From the prompt to readiness for the first decode step."""
        return self.prefill_ms + self.choose_ms

    @property
    def stream_gb_per_s(self) -> float:
        """Stream bandwidth around the decode steps."""
        return mean(self.streams_gb_per_s)


@torch.no_grad()
def time_case(
    model: nn.Module,
    method: Method,
    thresholds: Thresholds | None,
    documents: Sequence[Document],
    execution: Execution,
    *,
    keep_logits: bool,
) -> Timing:
    """Attach a method, serve one unmeasured request, then measure one.

    Decode is teacher-forced on the documents' continuations, so that every case does equal work.
    """
    device = next(model.parameters()).device
    prompts, continuations = rows_of(documents, device)
    clock = Stopwatch(device)
    with attach(model, method, thresholds, execution=execution) as run:
        _serve(run, prompts, continuations[:, :WARM_UP_TOKENS])
        gc.collect()
        watch = Watch(device)
        with clock.timing():
            first, cache = prefill(model, prompts)
        prefill_ms = clock.ms
        with clock.timing():
            run.select()
        choose_ms = clock.ms
        before = limits.stream_gb_per_s(device)
        decode_ms, predicted = [], [first]
        for step in range(continuations.shape[1] - 1):
            token = continuations[:, step : step + 1]
            with clock.timing():
                logits = decode(model, token, cache)
            decode_ms.append(clock.ms)
            if keep_logits:
                predicted.append(logits)
        after = limits.stream_gb_per_s(device)
        with clock.timing():
            generate(model, prompts, continuations.shape[1])
        change = watch.read()
        return Timing(
            prefill_ms=prefill_ms,
            choose_ms=choose_ms,
            generation_ms=clock.ms,
            decode_ms=decode_ms,
            logits=torch.cat(predicted, 1) if keep_logits else None,
            execution=run.execution or "dense",
            backend=run.backend,
            achieved_sparsity=tuple(run.achieved_sparsity()),
            traffic=_traffic(run, prompts.shape[1] + continuations.shape[1] / 2, len(prompts)),
            streams_gb_per_s=(before, after),
            change=change,
            digest=selection_digest(run.selection(), 0) if isinstance(method, PromptMethod) else None,
        )


def generate(model: Any, prompts: Tensor, new_tokens: int) -> None:
    """Greedy generation of exactly `new_tokens` tokens through the model's own generate."""
    model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )


def _serve(run: Run, prompts: Tensor, continuations: Tensor) -> None:
    _, cache = prefill(run.model, prompts)
    run.select()
    for step in range(continuations.shape[1]):
        decode(run.model, continuations[:, step : step + 1], cache)


def _traffic(run: Run, cached: float, batch: int) -> Traffic:
    """Bytes of a decode step with what the run kept: for a batch, the union over its rows."""
    if batch == 1:
        kept = [1 - share for share in run.achieved_sparsity()]
    else:
        kept = [float(layer.any(0).double().mean()) for layer in run.selection()]
    return decode_traffic(run.model, run.ffns, run.method, kept, cached, batch)


@torch.no_grad()
def peak_memory(
    model: nn.Module,
    method: Method,
    thresholds: Thresholds | None,
    documents: Sequence[Document],
    execution: Execution,
) -> tuple[int | None, str | None]:
    """Peak bytes while a first request runs on a freshly attached method, or the reason why they are unknown."""
    device = next(model.parameters()).device
    prompts, continuations = rows_of(documents, device)
    gc.collect()
    peak = PeakMemory(device)
    with attach(model, method, thresholds, execution=execution) as run:
        _serve(run, prompts, continuations[:, :WARM_UP_TOKENS])
    return (None, peak.problem) if peak.problem else (peak.read(), None)


def as_scores(timing: Timing, continuations: Tensor) -> Scores:
    """The timed decode as scores under protocol "decode": the first token dense, the others as they ran."""
    assert timing.logits is not None
    valid = torch.ones_like(continuations, dtype=torch.bool)
    sparse = valid.clone()
    sparse[:, 0] = False
    return Scores(token_nll(timing.logits, continuations), sparse, valid, timing.logits, timing.achieved_sparsity)

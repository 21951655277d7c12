"""Decode steps of some cases in turn, in rounds of seconds: for a machine whose bandwidth does not stay for a minute.

`tda bench` gives every case of a round a warm-up, a request and a whole `generate`. Here each gets a prompt and a few
steps, so that what is compared ran within seconds.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tda import device as facts
from tda.bench.cells import Span, new_record
from tda.bench.plan import Plan, plan_for
from tda.bench.prepare import prepare
from tda.bench.store import Place, Store
from tda.bench.traffic import Traffic, decode_traffic
from tda.cases import Control
from tda.contracts import Method
from tda.device import Stopwatch
from tda.engine import attach
from tda.engine.phases import decode, prefill
from tda.limits import stream_gb_per_s
from tda.names import Execution
from tda.quality import Document, rows_of
from tda.records import Measurement, Record
from tda.schedule import mirrored
from tda.thresholds import Thresholds

WARM = 4
"""Steps before those that are timed."""
STEPS = 20


@dataclass(frozen=True)
class Block:
    """Steps of one case in one round."""

    place: Place
    span: Span
    decode_ms: list[float]
    streams_gb_per_s: tuple[float, float]
    traffic: Traffic
    execution: str
    backend: str

    def record(self, plan: Plan) -> Record:
        """What a bench would record of it."""
        values = {
            "decode_ms": self.decode_ms,
            "stream_gb_per_s": self.streams_gb_per_s,
            "weight_bytes_per_token": [self.traffic.weights],
            "bytes_per_token": [self.traffic.total],
        }
        measurements = {name: Measurement.of(name, samples) for name, samples in values.items()}
        ran = {"execution": self.execution, "backend": self.backend}
        return new_record(plan, self.place, "ok", self.span, measurements=measurements, **ran)


def run(
    out: Path,
    rounds: int,
    *,
    model: str,
    method: str,
    sparsity: Sequence[float],
    prompt_tokens: int,
    execution: Execution = "auto",
) -> list[Record]:
    """Measure the rounds that a folder lacks; return the merged records of all.

    Parameters
    ----------
    out : Path
        Folder of the records.
    rounds : int
        Each runs every case once, dense twice, every second one in reverse.
    model, method, sparsity, prompt_tokens
        A shape in bfloat16, a method at several sparsities, and the length of its prompts.
    execution : str
        How the method runs.

    Raises
    ------
    ValueError
        If the folder holds results of another commit or machine.
    """
    options = {"prompt_tokens": prompt_tokens, "new_tokens": WARM + STEPS, "execution": execution, "rounds": rounds}
    plan = plan_for([model], [method], {"preset": "smoke", "sparsities": sparsity, "dtype": "bfloat16", **options})
    (subject,) = plan.subjects
    store = Store(out, facts.machine(plan.device), facts.commit(), print)
    prepared = prepare(plan, subject, folder=out / "thresholds", profile={}, say=print)
    controls: list[Control | None] = [None] * len(prepared.methods) + ["a_a"]
    cells = list(zip([*prepared.methods, prepared.methods[0]], controls, strict=True))  # dense is the first
    for number in range(1, rounds + 1):
        places = [Place(plan.case(subject, built, control), inputs, number) for (built, _, inputs), control in cells]
        order = list(zip(cells, places, strict=True))
        if not any(store.missing(place) for place in places):
            continue
        blocks = [
            block(prepared.model, built, thresholds, prepared.timed[number - 1], place)
            for ((built, thresholds, _), _), place in mirrored(order, number)
        ]
        store.keep([one.record(plan) for one in blocks])
    return store.merged()


@torch.no_grad()
def block(model: nn.Module, built: Method, thresholds: Thresholds | None, document: Document, place: Place) -> Block:
    """Attach a method, serve a prompt, and time a few steps between two readings of the bandwidth."""
    begin = time.monotonic()
    device = next(model.parameters()).device
    prompts, continuations = rows_of([document], device)
    tokens, clock, decode_ms = continuations.split(1, dim=1), Stopwatch(device), []
    with attach(model, built, thresholds, execution=place.case.execution) as attached:
        cache = prefill(model, prompts).cache
        attached.select()
        for token in tokens[:WARM]:
            decode(model, token, cache)
        attached.restart_count()
        before = stream_gb_per_s(device)
        for token in tokens[WARM:]:
            with clock.timing():
                decode(model, token, cache)
            decode_ms.append(clock.ms)
        after = stream_gb_per_s(device)
        kept = [1 - share for share in attached.achieved_sparsity()]
        cached = prompts.shape[1] + WARM + STEPS / 2
        traffic = decode_traffic(model, attached.ffns, built, kept, cached, 1)
        ran, backend = attached.execution or "dense", attached.backend
    return Block(place, Span.since(begin), decode_ms, (before, after), traffic, ran, backend)

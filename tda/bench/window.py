"""The telemetry pass of a case: decode steps repeated over a window, with a sampler beside them; no time is taken."""

import copy
import time
from collections.abc import Sequence

import torch
from torch import nn

from tda.contracts import Method
from tda.engine import attach
from tda.engine.caches import MARK
from tda.engine.plain import plain
from tda.engine.session import Session
from tda.names import Execution
from tda.quality import Document, rows_of
from tda.records import Measurement
from tda.telemetry import Sampler, Telemetry

WINDOW_S = 1.0
"""The driver's energy counter and utilisation need about a second."""
SAMPLED = {"gpu_utilization_percent": "utilization_percent", "gpu_memory_bytes": "memory_bytes", "power_w": "power_w"}
"""Fields of a GPU whose samples are measurements."""
ENERGY = "energy_j_per_token"
GPU_MEASUREMENTS = (*SAMPLED, ENERGY)
NO_WINDOW = "the work ran on a CPU"
SAMPLED_BEFORE = "sampled once a case, in the first round that this process timed"


@torch.no_grad()
def gpu_use(
    model: nn.Module,
    method: Method,
    documents: Sequence[Document],
    execution: Execution,
) -> dict[str, Measurement]:
    """Utilisation, memory, power and energy of a GPU while a case decodes."""
    device = next(model.parameters()).device
    prompts, continuations = rows_of(documents, device)
    with plain(model), attach(model, method, execution=execution) as run:
        session = Session(run, prompts, continuations)
        session.prefill()
        session.select()
        torch.cuda.synchronize(device)
        with Sampler(device) as sampler:
            tokens = decode_for(WINDOW_S, session)
    return measurements(sampler.telemetry, tokens)


def decode_for(seconds: float, session: Session) -> int:
    """Decode a request's continuations again and again until so much time has passed; the number of tokens."""
    end, cache = time.monotonic() + seconds, session.cache
    prompt = copy.deepcopy({name: held for name, held in vars(cache).items() if name != MARK})
    tokens = 0
    while not tokens or time.monotonic() < end:
        vars(cache).update(copy.deepcopy(prompt))  # the same object with its mark, by which the run knows the request
        tokens += sum(len(logits) for logits in session.steps())
        if session.device.type == "cuda":
            torch.cuda.synchronize(session.device)
    return tokens


def measurements(telemetry: Telemetry, tokens: int) -> dict[str, Measurement]:
    """What was sampled of the one GPU, its energy divided by the tokens decoded meanwhile."""
    (gpu,) = {series.device for series in telemetry.series.values()} - {"cpu"}
    found = {}
    for name, field in SAMPLED.items():
        series = telemetry.series[f"{gpu}/{field}"]
        samples, reason = series.samples, series.missing or "nothing was sampled"
        found[name] = Measurement.of(name, samples) if samples else Measurement.absent(name, reason)
    energy, counter = telemetry.increase(f"{gpu}/energy_j"), telemetry.series[f"{gpu}/energy_j"]
    if energy is None:
        found[ENERGY] = Measurement.absent(ENERGY, counter.missing or "the counter was read once")
    else:
        found[ENERGY] = Measurement.of(ENERGY, [energy / tokens])
    return found

"""What a timed round says: the samples of a case, and flags about their validity."""

from collections.abc import Sequence
from statistics import median

from tda.bench.measure import Timing
from tda.derived import mbu_of
from tda.device import machine
from tda.records import SPEED, Flag, FlagName, Measurement, few_samples
from tda.telemetry import flags_of


def speed(timing: Timing) -> dict[str, Measurement]:
    """Times and bytes of a case in one round."""
    if timing.execution == "masked":
        return absent(dict.fromkeys(SPEED, "it ran masked here, which skips nothing: no speed"))
    passes = timing.passes
    values: dict[str, Sequence[float]] = {
        "prefill_ms": passes.prefill,
        "ttft_ms": passes.first_token,
        "statistic_ms": passes.statistic,
        "selection_ms": passes.selection,
        "choice_ms": passes.choice,
        "gather_ms": passes.gather,
        "decode_ms": timing.decode_ms,
        "generation_ms": [timing.generation_ms],
        "stream_gb_per_s": timing.streams_gb_per_s,
        "weight_bytes_per_token": [timing.traffic.weights],
        "bytes_per_token": [timing.traffic.total],
    }
    found = {name: Measurement.of(name, samples) for name, samples in values.items() if samples}
    return found | absent({name: UNDONE[name] for name in values.keys() - found.keys()})


UNDONE = {
    "statistic_ms": "no statistic is taken of the prompt",
    "selection_ms": "nothing is chosen per prompt",
    "choice_ms": "nothing is chosen per prompt",
    "gather_ms": "no lists or copies of weights are made per prompt",
}
"""Why a part of a request was not clocked: it did not run."""


def absent(reasons: dict[str, str]) -> dict[str, Measurement]:
    """Measurements without samples, each with its reason."""
    return {name: Measurement.absent(name, reason) for name, reason in reasons.items()}


FROM_CACHE = 1.15
"""Share of the stream bandwidth above which weights are not all read from memory: two rulings differ by less."""


def validity_flags(timing: Timing, device: str, rounds: int) -> dict[FlagName, Flag]:
    """Validity flags of a case in one round."""
    flags: dict[FlagName, Flag] = {**flags_of(timing.change), "few_samples": few_samples(rounds)}
    return flags | ({"cache_resident": _residence(timing, machine(device).cache_bytes)} if device == "cpu" else {})


def _residence(timing: Timing, cache: int | None) -> Flag:
    """Whether weights are read from a cache: they fit into it, or it holds so much of them that memory is outrun.

    A cache that holds a share of the weights lets them be read at 1 / (1 - share) of the stream bandwidth at most;
    where that is less than `FROM_CACHE`, more than that is noise of the ruler.
    """
    weights = timing.traffic.weights
    mbu = mbu_of(weights, median(timing.decode_ms), timing.stream_gb_per_s)
    told = "an unknown cache" if cache is None else f"{cache / 1e6:.0f} MB of cache"
    outruns = mbu > FROM_CACHE and (cache is None or cache > weights * (1 - 1 / FROM_CACHE))
    return Flag(
        raised=outruns or (cache is not None and weights < cache),
        detail=f"{weights / 1e6:.0f} MB of weights a token, {told}, read at {mbu:.2f} of the stream bandwidth",
    )

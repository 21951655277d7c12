"""What a timed round says: measurements paired with the dense run of the same round, and doubts about them."""

from statistics import median

from tda.bench.measure import Timing
from tda.device import machine
from tda.records import SPEED, Flag, FlagName, Measurement
from tda.statistics import MIN_GROUPS
from tda.telemetry import flags_of


def speed(timing: Timing, dense: Timing | None) -> dict[str, Measurement]:
    """Times of a case in one round, and what pairs them with dense.

    Parameters
    ----------
    timing : Timing
        The case.
    dense : Timing or None
        The dense run of the same round; None where it failed.
    """
    if timing.execution == "masked":
        return absent(dict.fromkeys(SPEED, "it ran masked here, which skips nothing: no speed"))
    step_ms = median(timing.decode_ms)
    weights = timing.traffic.weights
    values: dict[str, list[float]] = {
        "prefill_ms": [timing.prefill_ms],
        "ttft_ms": [timing.ttft_ms],
        "decode_ms": timing.decode_ms,
        "generation_ms": [timing.generation_ms],
        "stream_gb_per_s": list(timing.streams_gb_per_s),
        "weight_bytes_per_token": [weights],
        "bandwidth_share": [weights / step_ms / 1e6 / timing.stream_gb_per_s],
    }
    found = {name: Measurement.of(name, samples) for name, samples in values.items()}
    return found | _against_dense(timing, dense)


def _against_dense(timing: Timing, dense: Timing | None) -> dict[str, Measurement]:
    if dense is None:
        names = ("select_ms", "limit_speedup", "gain_share", "break_even_tokens")
        return absent(dict.fromkeys(names, "the dense run of this round failed"))
    step_ms, dense_ms = median(timing.decode_ms), median(dense.decode_ms)
    limit = dense.traffic.total / timing.traffic.total
    select_ms = timing.ttft_ms - dense.ttft_ms
    found = {
        "select_ms": Measurement.of("select_ms", [select_ms]),
        "limit_speedup": Measurement.of("limit_speedup", [limit]),
    }
    if limit > 1:
        found["gain_share"] = Measurement.of("gain_share", [(dense_ms / step_ms - 1) / (limit - 1)])
    else:
        found["gain_share"] = Measurement.absent("gain_share", "nothing is left out, so there is no gain to share")
    if timing is dense or limit <= 1:
        reason = "nothing is left out, so there is nothing to repay"
        found["break_even_tokens"] = Measurement.absent("break_even_tokens", reason)
    elif step_ms < dense_ms:
        found["break_even_tokens"] = Measurement.of("break_even_tokens", [max(select_ms, 0.0) / (dense_ms - step_ms)])
    else:
        reason = "decode was not faster than dense in this round"
        found["break_even_tokens"] = Measurement.absent("break_even_tokens", reason)
    return found


def absent(reasons: dict[str, str]) -> dict[str, Measurement]:
    """Measurements without samples, each with its reason."""
    return {name: Measurement.absent(name, reason) for name, reason in reasons.items()}


def doubts(timing: Timing, device: str, rounds: int) -> dict[FlagName, Flag]:
    """Validity flags of a case in one round."""
    few = Flag(raised=rounds < MIN_GROUPS, detail=f"{rounds} rounds; an interval needs {MIN_GROUPS}")
    flags: dict[FlagName, Flag] = {**flags_of(timing.change), "few_samples": few}
    if device != "cpu":
        return flags
    cache, weights = machine(device).cache_bytes, timing.traffic.weights
    detail = f"{weights / 1e6:.0f} MB of weights a token, {(cache or 0) / 1e6:.0f} MB of cache"
    return flags | {"cache_resident": Flag(raised=None if cache is None else weights < cache, detail=detail)}

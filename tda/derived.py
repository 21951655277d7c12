"""What follows from the samples of a case and of the dense case of its setting: never stored, defined once, here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tda.records import MeasurementKind, Record
from tda.statistics import (
    LEVEL,
    Estimate,
    arithmetic,
    by_group,
    fieller,
    finite,
    geometric,
    is_baseline,
    level_of,
    paired_ratio,
    speedup,
)


@dataclass(frozen=True)
class Missing:
    """Why a number cannot be derived."""

    reason: str


Derived = Estimate | Missing
NOT_FINITE = "a sample is no finite number"
NO_DENSE = Missing("no dense run of this setting succeeded")
NO_ROUND = Missing("no round has all that it follows from")


def derive(name: str, record: Record, dense: Record | None) -> Derived:
    """Work out one of `DERIVED`.

    Parameters
    ----------
    name : str
        Which.
    record : Record
        A case, its rounds joined.
    dense : Record or None
        The baseline of its setting; None where there is none that ran.
    """
    formula = _FORMULAS[name]
    if dense is None:
        return NO_DENSE
    for one in (record, dense):
        for needed in formula.needs:
            if not one.samples(needed):
                found = one.measurements.get(needed)
                return Missing((found.missing if found else None) or f"{needed} was not recorded")
            if not finite(one, needed):
                return Missing(NOT_FINITE)
    return formula.of(record, dense)


def _prefill_overhead_ms(record: Record, dense: Record) -> Derived:
    if is_baseline(record):
        return Missing("others are compared with this dense run")
    added = _less(record, dense, "prefill_ms")
    return arithmetic(list(added.values())) if added else NO_ROUND


def _speedup(record: Record, dense: Record) -> Derived:
    return speedup(record, dense) or NO_ROUND


def _roofline_speedup(record: Record, dense: Record) -> Derived:
    return paired_ratio(dense.measurements["bytes_per_token"], record.measurements["bytes_per_token"]) or NO_ROUND


def _speedup_efficiency(record: Record, dense: Record) -> Derived:
    limit, faster = _roofline_speedup(record, dense), speedup(record, dense)
    if isinstance(limit, Missing) or faster is None:
        return NO_ROUND
    return efficiency_of(faster, limit.value)


def _mbu(record: Record, dense: Record) -> Derived:
    weights, steps, streams = (
        by_group(record.measurements[name]) for name in ("weight_bytes_per_token", "decode_ms", "stream_gb_per_s")
    )
    rounds = weights.keys() & steps.keys() & streams.keys()
    found = [mbu_of(weights[number], steps[number], streams[number]) for number in sorted(rounds)]
    return geometric(found) if found else NO_ROUND


def _break_even_tokens(record: Record, dense: Record) -> Derived:
    limit = _roofline_speedup(record, dense)
    if isinstance(limit, Missing):
        return limit
    if limit.value <= 1:
        return Missing("nothing is left out, so there is nothing to repay")
    if "selection_ms" not in record.measurements:
        return Missing("selection_ms was not recorded")
    if not finite(record, "selection_ms"):
        return Missing(NOT_FINITE)
    chosen = by_group(record.measurements["selection_ms"])  # no rounds where nothing is chosen per prompt
    added, saved = _less(record, dense, "prefill_ms"), _less(dense, record, "decode_ms")
    rounds = [number for number in added if number in saved and (number in chosen or not chosen)]
    spent = [added[number] + chosen.get(number, 0.0) for number in rounds]
    return repaid(spent, [saved[number] for number in rounds], level_of(record))


def _less(record: Record, other: Record, name: str) -> dict[int, float]:
    """The medians of the rounds that both have, subtracted."""
    one, two = (by_group(part.measurements[name]) for part in (record, other))
    return {number: one[number] - two[number] for number in one if number in two}


# Formulas over what was paired elsewhere.


def mbu_of(weight_bytes: float, step_ms: float, stream_gb_per_s: float) -> float:
    """Share of the stream bandwidth at which a step reads its weights."""
    return weight_bytes / step_ms / 1e6 / stream_gb_per_s


def efficiency_of(faster: Estimate, limit: float) -> Derived:
    """Share that a speed-up is of the gain that a limit allows; its bounds go through the same formula."""
    if limit <= 1:
        return Missing("nothing is left out, so there is no gain to share")

    def share(ratio: float) -> float:
        return (ratio - 1) / (limit - 1)

    low, high = (None if bound is None else share(bound) for bound in (faster.low, faster.high))
    return Estimate(share(faster.value), low, high, faster.groups)


def repaid(spent_ms: Sequence[float], saved_ms: Sequence[float], level: float = LEVEL) -> Derived:
    """Steps that repay what is spent once, by what each saves, paired by round: Fieller's bounds.

    Nothing can be repaid before it is spent: what noise takes below zero is told as zero. Where it is not told that a
    step saves anything, the upper bound is infinite.
    """
    if not spent_ms:
        return NO_ROUND
    if np.mean(saved_ms) <= 0:
        return Missing("decode is not faster than dense here")
    found = fieller(spent_ms, saved_ms, level)
    low, high = (None if bound is None else max(bound, 0.0) for bound in (found.low, found.high))
    return replace(found, value=max(found.value, 0.0), low=low, high=high)


# What a ratio to dense is of.

AT_LIMIT = 0.02
"""A speed-up may be above its roofline by the floor, or by this share."""
UNLIKE = "unlike kernels"
_KERNELS = {"c": "kernels in C", "triton": "kernels in Triton", "torch": "torch's kernels"}


def above_limit(speedup: float, limit: float, floor: float = 0.0) -> str | None:
    """Warn of a speed-up above its roofline by more than the floor; None where it is not."""
    if speedup > limit * (1 + max(floor, AT_LIMIT)):
        return f"a speed-up of {speedup:.3g} is more than the bytes allow ({limit:.3g})"
    return None


def unlike_kernels(backend: str | None, dense_backend: str | None) -> str | None:
    """Warn of a ratio of two times that unlike kernels gave, naming both; None where they are alike or not recorded.

    Parameters
    ----------
    backend, dense_backend : str or None
        As in a record, e.g. ``"c"`` or ``"torch (products of 4 rows run there)"``: what stands before a bracket is
        which kernels ran, and what stands in it only why.
    """
    if backend is None or dense_backend is None or backend.split(" (")[0] == dense_backend.split(" (")[0]:
        return None
    return (
        f"dense ran on {_kernels(dense_backend)} and this on {_kernels(backend)}, so a ratio of the two is of kernels "
        "too and not of the method alone"
    )


def _kernels(backend: str) -> str:
    """A backend in plain words."""
    name = backend.replace(",", " ").split()[0]
    return _KERNELS.get(name, name) + backend.removeprefix(name)


# By name.


@dataclass(frozen=True)
class _Formula:
    """A function of a record and its dense record, and the measurements that it needs of both."""

    of: Callable[[Record, Record], Derived]
    needs: tuple[str, ...]
    kind: MeasurementKind


def _ratio(meaning: str) -> MeasurementKind:
    return MeasurementKind(unit="ratio", better="higher", meaning=meaning, speed=True)


_FORMULAS: Mapping[str, _Formula] = {
    "prefill_overhead_ms": _Formula(
        _prefill_overhead_ms,
        ("prefill_ms",),
        MeasurementKind(unit="ms", better="lower", speed=True, meaning="prefill less dense prefill of the same round"),
    ),
    "speedup": _Formula(_speedup, ("decode_ms",), _ratio("dense decode step over this one, paired per round")),
    "roofline_speedup": _Formula(
        _roofline_speedup,
        ("bytes_per_token",),
        _ratio("dense bytes over the bytes of a step, KV cache included"),
    ),
    "speedup_efficiency": _Formula(
        _speedup_efficiency, ("decode_ms", "bytes_per_token"), _ratio("(speed-up - 1) / (roofline_speedup - 1)")
    ),
    "mbu": _Formula(
        _mbu,
        ("weight_bytes_per_token", "decode_ms", "stream_gb_per_s"),
        _ratio("weight bytes per token over decode time and the stream bandwidth around it"),
    ),
    "break_even_tokens": _Formula(
        _break_even_tokens,
        ("bytes_per_token", "prefill_ms", "decode_ms"),
        MeasurementKind(
            unit="tokens",
            better="lower",
            speed=True,
            meaning="(prefill_overhead_ms + selection_ms) / (dense decode_ms - decode_ms), not below zero",
        ),
    ),
}
DERIVED: Mapping[str, MeasurementKind] = {name: formula.kind for name, formula in _FORMULAS.items()}
"""Derived numbers by name, and what they are."""

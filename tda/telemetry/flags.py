"""What two readings around a timed block say against its numbers."""

from collections.abc import Sequence

from tda.records import Flag, FlagName
from tda.telemetry.conditions import ConditionChange

FOREIGN_PERCENT = 5.0
"""A share of the cores that are ours above which others disturb."""
ROUNDING_S = 0.04
"""CPU seconds that rounding to timer ticks may add to others' time in a short block."""
UNEXPLAINED_BYTES = 1 << 30
"""Device memory, beyond a context's own, that no process explains: someone unseen holds it."""
SLOWED_SHARE = 0.01
"""A share of the time above which being held back counts."""
DRIFT = 0.05
"""A relative change of the clock above which two halves of a block are not alike."""
SLOWING = {
    0x04: "the power cap",
    0x08: "the hardware",
    0x20: "heat, by the driver",
    0x40: "heat, by the hardware",
    0x80: "the power brake",
}
"""Clock event reasons of NVML that slow work down; the others are idleness and settings."""


def flags_of(change: ConditionChange) -> dict[FlagName, Flag]:
    """Load, threads, throttling and clocks: each raised, cleared, or null with the reason why it is not observable."""
    load, slowed = [_cores(change)], [_quota(change), _heat(change)]
    if change.on_gpu:
        load, slowed = [*load, _gpu_shared(change)], [_gpu_slowed(change)]
    return {
        "foreign_load": _any(load),
        "oversubscribed": _threads(change),
        "throttling": _any(slowed),
        "clocks": _clocks(change),
    }


def _any(parts: Sequence[Flag]) -> Flag:
    """Raised if one is, cleared if all are, else not observable."""
    states = [part.raised for part in parts]
    raised = True if True in states else None if None in states else False
    return Flag(raised=raised, detail="; ".join(part.detail for part in parts))


def _unknown(change: ConditionChange, name: str, what: str) -> Flag:
    return Flag(raised=None, detail=f"{what} is not observable: {change.missing.get(name, 'it was not read twice')}")


def _cores(change: ConditionChange) -> Flag:
    share = change.after.get("foreign_percent")
    if share is None:
        return _unknown(change, "foreign_percent", "use of the cores")
    rounding = 100 * ROUNDING_S / (change.seconds * change.cores)
    detail = f"other processes used {share:.0f}% of the cores"
    return Flag(raised=share > FOREIGN_PERCENT + rounding, detail=detail)


def _threads(change: ConditionChange) -> Flag:
    """More threads than cores wait for each other at the end of every parallel loop."""
    usable = change.cores if change.quota is None else min(change.cores, change.quota)
    cores = "1 core" if change.cores == 1 else f"{change.cores} cores"
    of = cores if usable == change.cores else f"{usable:g} of {cores}, by a CPU quota"
    told, enough = f"torch's threads: {change.threads} on {of}", max(1, int(usable))
    if change.threads <= enough:
        return Flag(raised=False, detail=told)
    return Flag(raised=True, detail=f"{told}; OMP_NUM_THREADS={enough} avoids it")


def _gpu_shared(change: ConditionChange) -> Flag:
    others, unexplained = change.maximum("foreign_processes"), change.maximum("unexplained_memory_bytes")
    if others:
        return Flag(raised=True, detail=f"other processes on the GPU: {others:.0f}")
    if unexplained is not None:
        detail = f"{unexplained / 1e9:.1f} GB of GPU memory that no listed process holds"
        return Flag(raised=unexplained > UNEXPLAINED_BYTES, detail=detail)
    if others is not None:
        return Flag(raised=False, detail="no other process on the GPU")
    return _unknown(change, "foreign_processes", "sharing of the GPU")


def _quota(change: ConditionChange) -> Flag:
    held = change.increase("quota_throttled_s")
    if held is None:
        return _unknown(change, "quota_throttled_s", "a CPU quota")
    return Flag(raised=held > SLOWED_SHARE * change.seconds, detail=f"a CPU quota held it back for {held:.2f} s")


def _heat(change: ConditionChange) -> Flag:
    events = change.increase("thermal_events")
    if events is None:
        return _unknown(change, "thermal_events", "heat")
    return Flag(raised=events > 0, detail=f"heat slowed cores {events:.0f} times")


def _gpu_slowed(change: ConditionChange) -> Flag:
    name = "clock_event_reasons"
    seen = [int(values[name]) for values in (change.before, change.after) if name in values]
    held = change.increase("slowed_s")
    if held is None and not seen:
        return _unknown(change, name, "throttling")
    words = " and ".join(word for bit, word in SLOWING.items() if any(reasons & bit for reasons in seen))
    told = f"slowed by {words} when read" if words else "not slowed when read"
    counted = "" if held is None else f"; slowed for {held:.2f} of {change.seconds:.2f} s"
    raised = bool(words) or (held is not None and held > SLOWED_SHARE * change.seconds)
    return Flag(raised=raised, detail=told + counted)


def _clocks(change: ConditionChange) -> Flag:
    name = "sm_clock_mhz" if change.on_gpu else "frequency_mhz"
    before, after = change.before.get(name), change.after.get(name)
    if before is None or after is None:
        return _unknown(change, name, "the clock")
    detail = f"the clock went from {before:.0f} to {after:.0f} MHz"
    return Flag(raised=abs(after - before) > DRIFT * before, detail=detail)

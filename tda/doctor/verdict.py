"""What a check-up means, in sentences, and its findings as a table."""

from collections.abc import Iterator

from tda.doctor.checkup import Checkup
from tda.doctor.noise import BLOCKS, Noise
from tda.records import flag_words

BLIND = 0.2
"""A change of this size should be seen: a machine that needs a larger one is too noisy."""
TOLD = 3
"""Neighbours that are named."""


def verdict(found: Checkup) -> list[str]:
    """Sentences: what disturbs, what cannot be seen, what the machine is fit for."""
    missing = [found.kernels_missing] if found.kernels_missing else []
    parts = [*_doubts(found), *missing, *_gpu(found), *_threads(found), *found.unfinished]
    return [_load(found), *parts, _fitness(found)]


def _load(found: Checkup) -> str:
    flag = found.flags["foreign_load"]
    names = ", ".join(f"{one.name} {one.share:.0%}" for one in found.neighbours[:TOLD] if one.share >= 0.005)
    told = flag.detail + (f" ({names})" if names else "")
    if flag.raised:
        return f"loaded: {told}; what is measured now is flagged"
    return f"quiet: {told}" if flag.raised is False else told


def _doubts(found: Checkup) -> Iterator[str]:
    for name in ("oversubscribed", "throttling", "clocks"):
        flag = found.flags[name]
        if flag.raised is not False:
            yield f"{name}: {flag.detail}"


def _gpu(found: Checkup) -> Iterator[str]:
    if not found.gpus:
        yield f"no GPU: {found.gpus_missing or found.driver}"
    elif "+cpu" in found.machine.torch:
        yield f"GPUs are here ({len(found.gpus)}), but this torch is built without CUDA"
    elif found.device == "cpu":
        yield f"GPUs are here ({len(found.gpus)}) and were not tried: --device cuda does"


def _threads(found: Checkup) -> Iterator[str]:
    one, every = found.scaling[0], found.scaling[-1]
    if every.threads > 1:
        bandwidth = every.stream_gb_per_s / one.stream_gb_per_s
        matmul = every.matmul_tflop_per_s / one.matmul_tflop_per_s
        yield (
            f"{every.threads} threads give {bandwidth:.1f} times the bandwidth and {matmul:.1f} times the matmul rate "
            f"of one; torch uses {found.machine.threads}"
        )


def _fitness(found: Checkup) -> str:
    decode = [one for one in found.noise if one.split == "decode"]
    if not decode:
        return f"what it is fit for is not known: {found.noise_missing or 'too few processes ended well'}"
    worst = max(decode, key=lambda one: one.resolved)
    builds, processes = _percent(worst.resolved), _percent(worst.single)
    told = (
        f"{builds} between two builds of {BLOCKS} processes each, {processes} between two single processes "
        f"({worst.case}, seen in {worst.processes} processes)"
    )
    if worst.resolved > BLIND:
        return f"not fit for speed as it is now: decode must change by {told}"
    return f"fit to see decode change by {told}"


def rows(found: Checkup) -> list[dict[str, str]]:
    """The findings, what and value."""
    machine = found.machine
    cells = [
        ("CPU", f"{machine.cpu}, {machine.cores_told}, {machine.memory_bytes / 1e9:.0f} GB"),
        ("versions", f"torch {machine.torch}, Python {machine.python}, {machine.system}"),
        ("kernels", found.kernels),
        ("products on the CPU", machine.products or "not recorded"),
        ("NVIDIA driver", found.driver),
        *((f"GPU {number}", _words(gpu)) for number, gpu in enumerate(found.gpus)),
        *((flag_words(name), flag.detail) for name, flag in found.flags.items()),
        (f"stream bandwidth, {found.device}", f"{found.stream_gb_per_s:.1f} GB/s"),
        *((f"matmul {name}, {found.device}", f"{rate:.3g} TFLOP/s") for name, rate in found.matmul_tflop_per_s.items()),
        *(
            (f"CPU, {one.threads} threads", f"{one.stream_gb_per_s:.1f} GB/s, {one.matmul_tflop_per_s:.3g} TFLOP/s")
            for one in found.scaling
        ),
        *((f"A/A {one.split} of {one.case}", _noise(one)) for one in found.noise),
    ]
    return [{"what": what, "value": value} for what, value in cells]


def _words(gpu: dict[str, str]) -> str:
    return ", ".join(value if name == "name" else f"{name} {value}" for name, value in gpu.items())


def _noise(one: Noise) -> str:
    alone = f"spread {_percent(one.spread)} over {one.processes} processes; seen from {_percent(one.single)} one to one"
    return f"{alone}, from {_percent(one.resolved)} with {BLOCKS} of each"


def _percent(size: float) -> str:
    return f"{size:.1%}" if size < 1 else "over 100%"

"""What the card is and what it can copy, and what its counters tell."""

import time
from collections.abc import Iterator

import torch

from benchmarks.gpu_check.figures import Figure
from benchmarks.gpu_check.setting import CheckSetting
from tda import device
from tda.bench.window import ENERGY
from tda.cases import Frozen, describe
from tda.limits import stream_gb_per_s
from tda.records import Commit, Machine, merge
from tda.results import RESULTS, load, write_whole
from tda.statistics import typical
from tda.telemetry import Sampler

FACTS = "facts.json"
WINDOW_S = 1.2
"""The driver renews its counters about once a second."""
SHOWN = ("power_w", "utilization_percent", "sm_clock_mhz", "temperature_c")
"""Fields of a GPU that are figures by themselves."""


class Facts(Frozen):
    """What all figures were taken on."""

    machine: Machine
    commit: Commit


def facts(setting: CheckSetting) -> Iterator[Figure]:
    """Write down the machine and the commit; measure the bandwidth that shares are taken of."""
    found = Facts(machine=device.machine(setting.device), commit=device.commit())
    write_whole(setting.folder / FACTS, found.model_dump_json())
    bandwidth = stream_gb_per_s(torch.device(setting.device))
    way = "one read" if setting.dry else "a copy, read and write"
    yield Figure(name="bandwidth", value=bandwidth, unit="GB/s", note=f"{way}; the best of three")


def telemetry(setting: CheckSetting) -> Iterator[Figure]:
    """Which counters can be read beside work, what they tell, and the energy of a token in this check's benches."""
    place = torch.device(setting.device)
    with Sampler(place) as sampler:
        _work_for(WINDOW_S, place)
    series = sampler.telemetry.series
    missing = [f"{name} ({one.missing})" for name, one in series.items() if not one.samples]
    told = f"of {len(series)}" + (f"; not: {', '.join(missing)}" if missing else "")
    yield Figure(name="counters read", value=len(series) - len(missing), note=told)
    for name, one in series.items():
        if name.partition("/")[2] in SHOWN and one.samples:
            yield Figure(name=f"{name} beside copies", value=max(one.samples), unit=one.unit, note="the highest")
    yield from _energy(setting)


def _work_for(seconds: float, place: torch.device) -> None:
    source = torch.ones(1 << 24, device=place)
    target, end = torch.empty_like(source), time.monotonic() + seconds
    while time.monotonic() < end:
        target.copy_(source)
        if place.type == "cuda":
            torch.cuda.synchronize(place)


def _energy(setting: CheckSetting) -> Iterator[Figure]:
    for path in sorted(setting.scratch.rglob(RESULTS)):
        records = merge(load(path.parent).records)
        for record in records:
            samples = record.samples(ENERGY)
            if samples:
                name = f"{path.parent.name}: energy a token, {describe(record.case, [one.case for one in records])}"
                yield Figure(name=name, value=typical(samples).value, unit="J")

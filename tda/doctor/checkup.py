"""The machine examined: at rest, at its limits, then process after process."""

import logging
import time
from contextlib import closing

import torch
from pydantic import Field

from tda import kernels
from tda.cases import Frozen
from tda.changes.workbench import NotMeasuredError
from tda.device import machine, torch_device
from tda.doctor.budget import Budget
from tda.doctor.noise import Noise, measure_noise
from tda.limits import Scaling, matmul_tflop_per_s, stream_gb_per_s, thread_scaling
from tda.records import Flag, FlagName, Machine
from tda.telemetry import ConditionMonitor, flags_of
from tda.telemetry.cpu import BackgroundProcess, BackgroundProcesses
from tda.telemetry.gpu import gpu_facts
from tda.telemetry.nvml import driver_version, gpus
from tda.telemetry.source import NotReadableError

logger = logging.getLogger(__name__)

LOOK_S = 2.0
"""How long the machine is watched while this process rests."""
BUDGET_S = 100.0
"""All that an examination takes, whatever the load; with the start of the program it ends within two minutes."""
LIMITS_S = 30.0
"""After this no larger number of threads is tried: what is left is for the noise."""
DTYPES = ("float32", "bfloat16")


class Checkup(Frozen):
    """What was found."""

    machine: Machine
    device: str
    kernels: str = Field(description="what runs decode, and why")
    kernels_missing: str | None = Field(default=None, description="why our own kernels do not")
    driver: str = Field(description="version of NVIDIA's driver, or why there is none")
    gpus: tuple[dict[str, str], ...] = Field(description="each GPU that this process may use, in words")
    gpus_missing: str | None = Field(default=None, description="why there is none")
    flags: dict[FlagName, Flag] = Field(description="what speaks against numbers taken now")
    foreign_percent: float | None = Field(description="of all cores, that others used while this process rested")
    neighbours: tuple[BackgroundProcess, ...] = Field(description="who they are, the busiest first")
    stream_gb_per_s: float
    matmul_tflop_per_s: dict[str, float] = Field(description="by dtype")
    scaling: tuple[Scaling, ...] = Field(description="limits of the CPU by number of threads")
    noise: tuple[Noise, ...] = Field(description="between processes that measure the same")
    noise_missing: str | None = None
    unfinished: tuple[str, ...] = Field(default=(), description="what the time was not enough for")


def check_up(device: str) -> Checkup:
    """Examine the machine in less than two minutes: where it is slow or loaded less is done, and `unfinished` says so.

    Parameters
    ----------
    device : str
        What is to be measured on it.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    where, budget = torch_device(device), Budget(BUDGET_S)
    runs, missing_kernels = kernels.backend(device), kernels.notice(device)
    logger.info(f"watching the machine for {LOOK_S:.0f} s")
    monitor, neighbours = ConditionMonitor(where), BackgroundProcesses()
    time.sleep(LOOK_S)
    busy, change = neighbours.read(), monitor.read()
    logger.info("bandwidth, matmul, threads")
    bandwidth = stream_gb_per_s(where)
    matmul = {name: matmul_tflop_per_s(where, getattr(torch, name)) for name in DTYPES}
    scaling = limits_by_threads(budget)
    noise, missing = _noise(device, budget)
    found, no_gpu = _gpus()
    return Checkup(
        machine=machine(device),
        device=device,
        kernels=str(runs),
        kernels_missing=missing_kernels,
        driver=_driver(),
        gpus=found,
        gpus_missing=no_gpu,
        flags=flags_of(change),
        foreign_percent=change.after.get("foreign_percent"),
        neighbours=tuple(busy),
        stream_gb_per_s=bandwidth,
        matmul_tflop_per_s=matmul,
        scaling=tuple(scaling),
        noise=noise,
        noise_missing=missing,
        unfinished=tuple(budget.unfinished),
    )


def limits_by_threads(budget: Budget) -> list[Scaling]:
    """What the CPU reaches with more and more threads, as far as there is time."""
    found = []
    with closing(thread_scaling()) as steps:
        for step in steps:
            found.append(step)
            if budget.spent > LIMITS_S and step.threads < machine("cpu").usable_cores:
                why = f"the limits took {budget.spent:.0f} s until there"
                budget.unfinished.append(f"more than {step.threads} threads were not tried: {why}")
                break
    return found


def _noise(device: str, budget: Budget) -> tuple[tuple[Noise, ...], str | None]:
    try:
        return measure_noise(device, budget), None
    except NotMeasuredError as error:
        return (), str(error)


def _driver() -> str:
    try:
        return driver_version()
    except NotReadableError as error:
        return str(error)


def _gpus() -> tuple[tuple[dict[str, str], ...], str | None]:
    try:
        return tuple(map(gpu_facts, gpus())), None
    except NotReadableError as error:
        return (), str(error)

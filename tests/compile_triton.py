"""Every launch of the Triton kernels, compiled for a GPU that need not be here; what came out is printed as JSON.

A program of its own, since the tests' own process has Triton interpret. First the list of all launches is compiled.
Then the engine's own launching code runs on tensors of the CPU, where a launch ends once its kernel is compiled: what
it launches must be on the list, as Triton sees it. A played driver names the GPU.

Usage: python compile_triton.py ARCHITECTURE [STEP]

With a step, each STEP-th launch of the list is compiled, and none of the engine's.
"""

import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import torch
import triton
from torch import nn
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tda.contracts import ThresholdMethod
from tda.kernels import triton as backend
from tda.kernels.triton import ffn, rows, statistic
from tda.kernels.triton.launch import KERNELS, launches
from tda.methods import METHODS, method
from tda.view import FFN, Linear


class SquaredReLU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(x).square()


class Layer(NamedTuple):
    """What a feed-forward network is like; sizes that are no multiple of 16 are compiled apart."""

    act: nn.Module
    gated: bool
    dtype: torch.dtype
    bias: bool = False
    F: int = 256
    D: int = 64


CASES = [
    Layer(nn.SiLU(), True, torch.bfloat16),
    Layer(nn.ReLU(), False, torch.bfloat16, True),
    Layer(nn.GELU(approximate="tanh"), True, torch.float32, True, 53, 24),
    Layer(nn.GELU(), False, torch.float32, False, 53, 24),
    Layer(SquaredReLU(), False, torch.bfloat16),
    Layer(nn.Identity(), True, torch.float16),
    Layer(nn.SiLU(), True, torch.float16, False, 256, 72),
]


class Driver:
    """What a launch asks of a driver before it has its kernel."""

    def __init__(self, architecture: int) -> None:
        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def launch_all(case: Layer) -> None:
    """Every way in which the engine uses the kernels: executors of each registered method, linears, statistics."""

    def linear(inputs: int, outputs: int) -> Linear:
        return Linear(nn.Linear(inputs, outputs, case.bias, dtype=case.dtype).requires_grad_(False))

    x = torch.zeros(1, case.D, dtype=case.dtype)
    gate = linear(case.D, case.F) if case.gated else None
    layer = FFN(0, gate, linear(case.D, case.F), linear(case.F, case.D), case.act, None, 0)
    listed = ffn.TritonListedFFN(layer)
    listed.load(torch.ones(1, case.F, dtype=torch.bool))
    listed(x)
    for built in map(method, METHODS):
        if isinstance(built, ThresholdMethod) and (case.gated or built.activation == "z"):
            ffn.TritonThresholdFFN(layer, type(built)(sparsity=0), lambda index, kept: None)(x)
    rows.own_forward(layer.up.module, layer.up.module.forward)(x)
    a, mask = torch.zeros(1, 3, case.F, dtype=case.dtype), torch.ones(1, 3, dtype=torch.bool)
    for weights in (None, torch.ones(case.F)):
        for relative in (True, False):
            sweep = statistic.SquaresKernel()
            sweep(torch.zeros(1, case.F), a, mask, weights, relative)
            sweep.finish()


def forgotten() -> list[str]:
    """Triton functions of the package that are neither kernels of the list nor used by one."""
    modules = [
        importlib.import_module(part.name) for part in pkgutil.iter_modules(backend.__path__, f"{backend.__name__}.")
    ]
    functions = {name for module in modules for name, each in vars(module).items() if isinstance(each, JITFunction)}
    within = {name for kernel in KERNELS.values() for name in kernel.function.__code__.co_names}
    return sorted(functions - within)


def resources(kernel: Any) -> dict[str, Any]:
    """Registers of a thread and bytes on its stack, as the assembler counted them; shared memory; kinds of loads."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    counted = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}
    loads = sorted(set(re.findall(r"ld\.global[\w.:]*?((?:v\d\.)?b\d+)", kernel.asm["ptx"])))
    return {**counted, "shared": kernel.metadata.shared, "warps": kernel.metadata.num_warps, "loads": loads}


def main(architecture: int, step: int = 1) -> None:
    driver.set_active(Driver(architecture))
    compiled: dict[str, Any] = {}
    failed: dict[str, str] = {}
    hashes = set()
    for entry in list(launches())[::step]:
        try:
            kernel = KERNELS[entry.kernel].compile(entry)
        except Exception as error:
            failed[str(entry)] = f"{type(error).__name__}: {error.__cause__ or error}"
            continue
        hashes.add(kernel.hash)
        compiled[str(entry)] = resources(kernel)
    unlisted = []
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        if kernel.hash not in hashes:
            unlisted.append(f"{self.fn.__name__} {options}")

    JITFunction.run = compile_only
    for case in CASES if step == 1 else ():
        launch_all(case)
    told = {
        "triton": triton.__version__, "compiled": compiled, "failed": failed, "unlisted": unlisted,
        "forgotten": forgotten(),
    }  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

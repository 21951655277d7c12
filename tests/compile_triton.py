"""The launches of the Triton kernels, compiled for a GPU that need not be here; what came out is printed as JSON.

A program of its own, since the tests' own process has Triton interpret. The launching code runs as it is, on tensors of
the CPU: a played driver names the GPU, and a launch ends once its kernel is compiled.

Usage: python compile_triton.py ARCHITECTURE {smallest,every}
The smallest block for each launch in all cases, or every block that may be chosen, in the first case.
"""

import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tda.contracts import ThresholdMethod
from tda.kernels import triton as backend
from tda.kernels.activations import ACTIVATIONS, activation_name
from tda.kernels.triton import down, ffn, rows, statistic
from tda.kernels.triton.tuning import Config
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
    Layer(nn.Identity(), True, torch.bfloat16),
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
    listed = ffn.ListedFFN(layer)
    listed.load(torch.ones(1, case.F, dtype=torch.bool))
    listed(x)
    for built in map(method, METHODS):
        if isinstance(built, ThresholdMethod) and (case.gated or built.activation == "z"):
            ffn.ThresholdFFN(layer, type(built)(sparsity=0), lambda index, kept: None)(x)
    rows.own_forward(layer.up.module, layer.up.module.forward)(x)
    a, mask = torch.zeros(1, 3, case.F, dtype=case.dtype), torch.ones(1, 3, dtype=torch.bool)
    for weights in (None, torch.ones(case.F)):
        for relative in (True, False):
            statistic.add_squares(torch.zeros(1, case.F), a, mask, weights, relative)


def forgotten(launched: set[str]) -> list[str]:
    """Triton functions that were not compiled, neither alone nor within another, and activations without a case."""
    modules = [
        importlib.import_module(part.name) for part in pkgutil.iter_modules(backend.__path__, f"{backend.__name__}.")
    ]
    functions = {
        name: each for module in modules for name, each in vars(module).items() if isinstance(each, JITFunction)
    }
    within = {name for kernel in launched for name in functions[kernel].fn.__code__.co_names}
    return sorted({*functions, *ACTIVATIONS} - launched - within - {activation_name(case.act) for case in CASES})


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes on its stack, as the assembler counted them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}


def main(architecture: int, blocks: str) -> None:
    kernels: dict[str, Any] = {}
    failed: dict[str, str] = {}
    launched = set()
    launch = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        name = self.fn.__name__
        launched.add(name)
        try:
            kernel = launch(self, *arguments, grid=grid, warmup=True, **options)
            kernels[kernel.hash] = kernel
        except Exception as error:
            constants = {word: value for word, value in options.items() if not isinstance(value, torch.Tensor)}
            failed[f"{name} {constants}"] = f"{type(error).__name__}: {error.__cause__ or error}"

    def choose(key: Sequence[object], candidates: Sequence[Config], trial: Callable[[Config], None]) -> Config:
        if blocks == "every":
            for config in candidates:
                trial(config)
        return min(candidates, key=lambda config: config.rows * config.columns)

    JITFunction.run = compile_only
    rows.choose = down.choose = choose
    driver.set_active(Driver(architecture))
    for case in CASES[:1] if blocks == "every" else CASES:
        launch_all(case)
    compiled = [{"name": kernel.name, **resources(kernel.asm["cubin"])} for kernel in kernels.values()]
    print(json.dumps({"compiled": compiled, "failed": failed, "forgotten": forgotten(launched)}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

"""What this processor multiplies in hardware, and the rule that follows for products in each type."""

import os
import platform
import shlex
import subprocess
from functools import cache
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")
HARDWARE = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "asimdhp"),
}
"""Types that some processors multiply in hardware, and the flags of those that do (x86, then Arm)."""
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables by which a user limits the instructions of torch's matrix library."""
ABOVE = {torch.bfloat16: ("BF16", "FP16", "AMX", "AVX10"), torch.float16: ("FP16", "AMX", "AVX10")}
"""Words in such a limit that still allow a hardware product."""


@cache
def cpuinfo(name: str) -> str | None:
    """The first value of a field of the system's description of processor 0; None where there is none."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":", 1)[0].strip() == name), None)


def flags() -> frozenset[str]:
    """The processor's abilities as the system names them; empty where it does not say."""
    return frozenset((cpuinfo("flags") or cpuinfo("Features") or "").split())


@cache
def compiler_version() -> str | None:
    """What the C compiler of the kernels says it is; None where there is none."""
    try:
        command = shlex.split(os.environ.get("CC", "")) or ["cc"]
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, errors="replace", timeout=10)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().split("\n")[0] or None if done.returncode == 0 else None


@cache
def widens(dtype: torch.dtype) -> bool:
    """Whether products of this type on the CPU are computed in float32, with operands widened in blocks.

    The rule: a type that the processor multiplies in hardware, where torch's matrix library may use it, is left to
    that library; any other type of two bytes is widened, since the library's product is several times slower than its
    float32 product then. The rule never looks at a clock, so equal machines run equal arithmetic.
    """
    return dtype in HARDWARE and not _in_hardware(dtype)


def _in_hardware(dtype: torch.dtype) -> bool:
    if not flags().intersection(HARDWARE[dtype]) or not library_takes(dtype):
        return False
    limits = (os.environ.get(name, "").upper() for name in LIMITS)
    return all(limit in ("", "ALL", "DEFAULT") or any(word in limit for word in ABOVE[dtype]) for limit in limits)


def library_takes(dtype: torch.dtype) -> bool:
    """Whether torch hands products of a type to its matrix library here (``ATEN_CPU_CAPABILITY`` may forbid it)."""
    name = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    return torch.backends.mkldnn.is_available() and bool(getattr(torch.ops.mkldnn, name)())


def products() -> str:
    """How products of each type of two bytes run on this CPU, in words for a record."""
    return ", ".join(f"{_name(dtype)} {'widened' if widens(dtype) else 'in hardware'}" for dtype in HARDWARE)


def reason(dtype: torch.dtype) -> str:
    """How products of a type run on this CPU, and why."""
    name = _name(dtype)
    if dtype not in HARDWARE:
        return f"{name} products run in torch"
    if widens(dtype):
        return f"{name} products are computed in float32, widened in blocks: no {name} product in hardware here"
    return f"{name} products run in torch, in hardware ({', '.join(sorted(flags().intersection(HARDWARE[dtype])))})"


def cpu_name() -> str:
    """The processor's name."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

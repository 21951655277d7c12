"""Instruction sets that the C kernels are compiled for; ``TDA_ISA`` names one that is narrower than the processor's."""

import os
from dataclasses import dataclass

VARIABLE = "TDA_ISA"
NATIVE = "native"
"""Whatever the processor has: the default, and the only choice where it is none of x86-64."""


@dataclass(frozen=True)
class Isa:
    """An instruction set.

    Attributes
    ----------
    name : str
        As ``TDA_ISA`` and records name it.
    flags : tuple of str
        What tells the compiler to use it.
    macros : frozenset of str
        What the compiler defines where the processor has it.
    """

    name: str
    flags: tuple[str, ...]
    macros: frozenset[str] = frozenset()


_V2 = frozenset({"__SSE3__", "__SSSE3__", "__SSE4_1__", "__SSE4_2__", "__POPCNT__"})
_V3 = _V2 | {f"__{name}__" for name in ("AVX", "AVX2", "BMI", "BMI2", "F16C", "FMA", "LZCNT", "MOVBE")}
_V4 = _V3 | {f"__AVX512{name}__" for name in ("F", "BW", "CD", "DQ", "VL")}
X86 = (
    Isa("x86-64-v2", ("-march=x86-64-v2",), _V2),
    Isa("avx2", ("-march=x86-64-v3",), _V3),
    Isa("avx512", ("-march=x86-64-v4",), _V4),
    Isa("avx512-bf16", ("-march=x86-64-v4", "-mavx512bf16"), _V4 | {"__AVX512BF16__"}),
)
"""From the narrowest to the widest."""
NAMES = (*(isa.name for isa in X86), NATIVE)


def requested() -> str:
    """The name in ``TDA_ISA``, or native.

    Raises
    ------
    ValueError
        If there is no such instruction set.
    """
    name = os.environ.get(VARIABLE) or NATIVE
    if name not in NAMES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(NAMES)}; got {name!r}")
    return name


def choose(name: str, macros: str) -> Isa:
    """The instruction set to compile for, tuned for this processor. Native goes by the name of the widest that it has.

    Parameters
    ----------
    name : str
        From `requested`.
    macros : str
        What the compiler defines for ``-march=native``.

    Raises
    ------
    ValueError
        If this processor, or its compiler, does not have the named one.
    """
    defined = {line.split()[1] for line in macros.splitlines() if line.startswith("#define ")}
    here = {isa.name: isa for isa in X86 if isa.macros <= defined}
    widest = next(reversed(here), NATIVE)
    if name in (NATIVE, widest):
        return Isa(widest, ("-march=native",))  # with what the processor has besides
    if name not in here:
        names = ", ".join((*here, NATIVE))
        raise ValueError(f"{VARIABLE}={name}: this processor or its compiler lacks it; accepted here: {names}")
    return Isa(name, (*here[name].flags, "-mtune=native"))

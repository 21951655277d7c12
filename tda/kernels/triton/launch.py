"""Every launch of a kernel in Triton that there can be: one list, which the launcher and the compiler's tests share.

Triton compiles a kernel anew for every type, constant and divisibility that it meets. Here all of that follows from an
entry of the list: what is not listed is not launched, and what is listed has been compiled for several GPUs by the
tests, which need none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
import triton
from torch import Tensor

from tda.kernels.triton import DTYPES, interpreted

ArgumentKind = Literal["weights", "out", "float32", "int64", "int32", "uint8", "number", "sixteen", "one", "float"]
"""What a kernel's parameter is: a pointer to the launch's type, to its output's or to a type of its own; a whole number
of any value, a multiple of 16 or 1 in an aligned launch; a float."""
FIXED = {"float32": torch.float32, "int64": torch.int64, "int32": torch.int32, "uint8": torch.uint8}
WHOLE = ("number", "sixteen", "one")


class Tile(NamedTuple):
    """What a program takes at once, and what Triton compiles it for.

    Attributes
    ----------
    rows, columns : int
        Rows of weights (in `down`: neurons) and columns.
    num_warps, num_stages : int
        As Triton calls them.
    splits : int
        Programs that share the neurons of one block of columns, where there is a choice.
    """

    rows: int
    columns: int
    num_warps: int = 4
    num_stages: int = 2
    splits: int = 1

    def __str__(self) -> str:
        sizes = f"{self.rows} x {self.columns}, {self.num_warps} warps, {self.num_stages} stages"
        return sizes if self.splits == 1 else f"{sizes}, {self.splits} splits"


class Form(NamedTuple):
    """A way in which a kernel is launched.

    Attributes
    ----------
    constants : mapping
        What the kernel is told at compile time. ``ALIGN`` is 1 in launches that are not aligned: what may be relied on
        of addresses in a table.
    absent : tuple of str
        Pointers that it has no use for.
    wide : bool
        Whether its output is float32, whatever the type of the weights.
    blocks : tuple of Tile
        What may be chosen, the default first.
    """

    constants: Mapping[str, Any]
    absent: tuple[str, ...]
    wide: bool
    blocks: tuple[Tile, ...]


class Launch(NamedTuple):
    """An entry of the list.

    Attributes
    ----------
    kernel, form : str
        By their names.
    dtype : torch.dtype
        Of weights or activations.
    aligned : bool
        Whether pointers and strides are multiples of 16, as those of models are: wide loads.
    block : Tile
        What a program takes at once.
    """

    kernel: str
    form: str
    dtype: torch.dtype
    aligned: bool
    block: Tile

    def __str__(self) -> str:
        alignment = "aligned" if self.aligned else "any alignment"
        return f"{self.kernel} {self.form}, {str(self.dtype).removeprefix('torch.')}, {alignment}, {self.block}"


_Plan = tuple[Any, list[tuple[str, "torch.dtype | bool | None"]], dict[str, Any]]
"""Triton's function; each parameter's name and type, True of a number, None of an absent pointer; constants."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel with all its launches.

    Attributes
    ----------
    function : callable
        The kernel; constants are the parameters that are not among `parameters`.
    parameters : mapping
        What each parameter is.
    forms : mapping
        Ways to launch it.
    plain : Tile
        Of launches that are not aligned, and of Triton's interpreter: small, so that tests meet many blocks.
    dtypes : sequence of torch.dtype
        Types that it takes.
    sizes : tuple of str
        Constants that rows, columns and splits of the block are called.
    """

    function: Any
    parameters: Mapping[str, ArgumentKind]
    forms: Mapping[str, Form]
    plain: Tile
    dtypes: Sequence[torch.dtype] = DTYPES
    sizes: tuple[str, ...] = ("ROWS", "COLUMNS")
    entries: frozenset[Launch] = field(init=False)
    _plans: dict[Launch, _Plan] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        entries = {
            Launch(self.name, name, dtype, aligned, block)
            for (name, form), dtype in product(self.forms.items(), self.dtypes)
            for aligned, blocks in ((True, form.blocks), (False, (self.plain_of(name),)))
            for block in blocks
        }
        object.__setattr__(self, "entries", frozenset(entries))
        KERNELS[self.name] = self

    @property
    def name(self) -> str:
        """Its name, as a profile shows it."""
        name: str = self.function.__name__
        return name

    def plain_of(self, form: str) -> Tile:
        """The block of launches that are not aligned."""
        return self.plain._replace(splits=min(block.splits for block in self.forms[form].blocks))

    @cached_property
    def _compiled(self) -> dict[bool, Any]:
        """Triton's function of aligned launches, which may rely on it, and of others."""
        numbers = [name for name, kind in self.parameters.items() if kind == "number"]
        every = [name for name, kind in self.parameters.items() if kind in WHOLE]
        pointers = [name for name, kind in self.parameters.items() if kind not in (*WHOLE, "float")]
        return {
            True: triton.jit(self.function, do_not_specialize=numbers),
            False: triton.jit(self.function, do_not_specialize=every, do_not_specialize_on_alignment=pointers),
        }

    def is_aligned(self, given: Mapping[str, Any]) -> bool:
        """Whether arguments may take an aligned launch; never under the interpreter."""
        return not interpreted() and all(map(self._is_aligned, self.parameters, map(given.get, self.parameters)))

    def _is_aligned(self, name: str, value: Any) -> bool:
        kind = self.parameters[name]
        if isinstance(value, Tensor):
            return value.data_ptr() % 16 == 0
        return value == 1 if kind == "one" else kind != "sixteen" or value % 16 == 0

    def dtype_of(self, form: str, name: str, dtype: torch.dtype) -> torch.dtype | None:
        """Type that a pointer has in a launch; None where it is absent or no pointer."""
        kind, wide = self.parameters[name], self.forms[form].wide
        if name in self.forms[form].absent or kind in (*WHOLE, "float"):
            return None
        if kind == "out":
            return torch.float32 if wide else dtype
        return dtype if kind == "weights" else FIXED[kind]

    def entry(self, form: str, dtype: torch.dtype, given: Mapping[str, Any], chosen: Tile) -> Launch:
        """The launch that arguments take: the chosen block where they are aligned, else the plain one."""
        aligned = self.is_aligned(given)
        return Launch(self.name, form, dtype, aligned, chosen if aligned else self.plain_of(form))

    def launch(self, entry: Launch, grid: tuple[int, ...], given: Mapping[str, Any]) -> None:
        """Launch it.

        Parameters
        ----------
        entry : Launch
            One of its entries.
        grid : tuple of int
            Programs.
        given : mapping
            Its parameters by name; pointers that are absent in the form may be left out.

        Raises
        ------
        ValueError
            If no such launch is on the list.
        """
        function, types, constants = self._plans.get(entry) or self._plan(entry)
        arguments: list[Any] = [given[name] if kind is not None else None for name, kind in types]
        for argument, (name, kind) in zip(arguments, types, strict=True):
            if isinstance(kind, torch.dtype) and argument.dtype != kind:
                raise ValueError(f"{entry}: {name} is {argument.dtype}; expected {kind}")
        function[grid](*arguments, **constants)

    def _plan(self, entry: Launch) -> _Plan:
        """What a launch needs to know of its entry, looked up once."""
        if entry not in self.entries:
            raise ValueError(f"a launch that is not on the list of those that were compiled: {entry}")
        absent = self.forms[entry.form].absent
        types: list[tuple[str, torch.dtype | bool | None]] = [
            (name, None if name in absent else self.dtype_of(entry.form, name, entry.dtype) or True)
            for name in self.parameters
        ]
        self._plans[entry] = self._compiled[entry.aligned], types, self.constants(entry)
        return self._plans[entry]

    def constants(self, entry: Launch) -> dict[str, Any]:
        """What a launch is compiled for, beside its types."""
        block = entry.block
        sizes = dict(zip(self.sizes, (block.rows, block.columns, block.splits), strict=False))
        options = {"num_warps": block.num_warps, "num_stages": block.num_stages}
        constants = dict(self.forms[entry.form].constants)
        if not entry.aligned and "ALIGN" in constants:
            constants["ALIGN"] = 1
        return {**constants, **sizes, **options}

    def compile(self, entry: Launch) -> Any:
        """Compile a launch for the active driver's GPU, which need not be here; nothing runs."""

        def stand_in(name: str) -> Any:
            kind = self.parameters[name]
            if name in self.forms[entry.form].absent:
                return None
            if kind == "float":
                return 1.0
            if kind in WHOLE:
                return {"number": 3, "sixteen": 16, "one": 1}[kind]
            return self.dtype_of(entry.form, name, entry.dtype)

        function = self._compiled[entry.aligned]
        return function.warmup(*map(stand_in, self.parameters), grid=(1,), **self.constants(entry))


KERNELS: dict[str, Kernel] = {}
"""By name, as the modules of this package define them."""


def launches() -> list[Launch]:
    """Every launch that there can be, in a fixed order."""
    from tda.kernels.triton import choice, down, rows, statistic  # noqa: F401  # they define the kernels

    return sorted((entry for kernel in KERNELS.values() for entry in kernel.entries), key=str)

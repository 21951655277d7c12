"""The C kernels as Python sees them: descriptions that mirror the C structs, and the functions that take them."""

import ctypes
import functools
from ctypes import POINTER, c_float, c_int, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from tda.kernels.native.build import BuildError, build

KINDS = {torch.bfloat16: 0, torch.float32: 1}
"""Types of weights and activations that the kernels take, as the C source numbers them."""
INT8 = 2
"""Number of weights in int8, each row with a scale."""
NORMS = ("none", "rms", "rms_plus_one", "layer")
RULES = ("listed", "gate", "contribution")


def data_pointer(tensor: Tensor | None) -> int | None:
    """Where a tensor's data are; None for none, which C sees as NULL."""
    return None if tensor is None else tensor.data_ptr()


def ensure_scratch(held: Tensor, floats: int) -> Tensor:
    """Scratch of at least so many floats: what is held, or more where that is too little."""
    if len(held) >= floats:
        return held
    with torch.inference_mode(False):
        return torch.empty(floats + floats // 8, dtype=torch.float32, device="cpu")


class Matrix(ctypes.Structure):
    """Weights, row by row."""

    _fields_ = (
        ("data", c_void_p),
        ("stride", c_int64),
        ("rows", c_int64),
        ("columns", c_int64),
        ("bias", c_void_p),
        ("scale", c_void_p),
        ("kind", c_int32),
    )

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return 1 if self.kind == INT8 else next(dtype.itemsize for dtype, kind in KINDS.items() if kind == self.kind)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None) -> "Matrix":
        """Describe a weight [rows, columns] whose rows are contiguous; one in int8 has a scale [rows] in float32.

        The bias of an int8 weight is in float32, any other of the weight's type.

        Raises
        ------
        ValueError
            If a row is not contiguous.
        """
        rows, columns = weight.shape
        if weight.stride(1) != 1:
            raise ValueError(f"rows must be contiguous, got strides {weight.stride()}")
        stride = weight.stride(0) * weight.element_size()
        kind = INT8 if weight.dtype == torch.int8 else KINDS[weight.dtype]
        return cls(weight.data_ptr(), stride, rows, columns, data_pointer(bias), data_pointer(scale), kind)


class Norm(ctypes.Structure):
    """A normalisation; all zeros is none."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("eps", c_float), ("kind", c_int32))


class FFNStruct(ctypes.Structure):
    """A feed-forward network, and which of its neurons take part."""

    _fields_ = (
        ("gate", Matrix),
        ("up", Matrix),
        ("down", Matrix),
        ("index", c_void_p),
        ("count", c_int64),
        ("norms", c_void_p),
        ("kept", c_void_p),
        ("cut", c_float),
        ("rule", c_int32),
        ("act", c_int32),
        ("down_rows", c_int32),
    )


class Layer(ctypes.Structure):
    """A decoder layer, and its place in the key-value cache."""

    _fields_ = (
        *(
            (name, Norm)
            for name in (
                "attention_in",
                "attention_out",
                "attention_sum",
                "query_norm",
                "key_norm",
                "ffn_in",
                "ffn_out",
                "ffn_sum",
            )
        ),
        *((name, Matrix) for name in ("query", "key", "value", "output")),
        ("ffn", FFNStruct),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("head_stride", c_int64),
        ("cached", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
    )


class ModelStruct(ctypes.Structure):
    """A decoder."""

    _fields_ = (
        ("layers", POINTER(Layer)),
        *((name, c_int64) for name in ("count", "hidden", "heads", "kv_heads", "head_dim", "rotary_dim")),
        ("last", Norm),
        ("project", Matrix),
        ("head", Matrix),
        ("softcap", c_float),
        ("kind", c_int32),
    )


_POINTER, _LONG, _INT = c_void_p, c_int64, c_int
SIGNATURES = {
    "tda_sizes": (None, [POINTER(c_int64)]),
    "tda_step_floats": (_LONG, [POINTER(ModelStruct), _INT]),
    "tda_step": (None, [POINTER(ModelStruct), _LONG, _LONG, *[_POINTER] * 5, _INT]),
    "tda_linear_floats": (_LONG, [POINTER(Matrix), _INT]),
    "tda_linear": (None, [POINTER(Matrix), _LONG, _POINTER, _LONG, _POINTER, _POINTER, _INT, _INT]),
    "tda_ffn_floats": (_LONG, [POINTER(FFNStruct), _INT]),
    "tda_ffn": (None, [POINTER(FFNStruct), _LONG, _POINTER, _LONG, _POINTER, _POINTER, _INT, _INT]),
    "tda_gather": (None, [POINTER(FFNStruct), POINTER(FFNStruct), _INT]),
    "tda_squares_floats": (_LONG, [_LONG, _INT]),
    "tda_squares": (None, [_POINTER, _LONG, _LONG, _LONG, *[_POINTER] * 2, _INT, *[_POINTER] * 2, _INT, _INT]),
    "tda_list": (_LONG, [_POINTER, _LONG, _POINTER]),
}


class Kernels(ctypes.CDLL):
    """The loaded kernels, and the name of the instruction set that they are compiled for."""

    isa: str


@functools.cache
def library() -> Kernels:
    """The kernels, built and loaded on the first call.

    Raises
    ------
    BuildError
        If they cannot be built or loaded here.
    ValueError
        If ``TDA_ISA`` names no instruction set, or one that this processor does not have.
    """
    path, isa = build()
    try:
        loaded = Kernels(str(path))
    except OSError as error:
        if any(prefix in str(error) for prefix in ("GOMP_", "omp_", "__kmpc_")):
            raise BuildError(f"torch has loaded no OpenMP library that the kernels can share: {error}") from None
        raise BuildError(f"what was built does not load: {error}") from None
    loaded.isa = isa
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(loaded, name, None)
        if function is None:
            raise BuildError(f"what was built lacks {name}")
        function.restype, function.argtypes = result, arguments
    return loaded


@functools.cache
def problem() -> str | None:
    """Why the kernels cannot run here; None where they can.

    Raises
    ------
    ValueError
        As `library`.
    """
    try:
        library()
    except BuildError as error:
        return str(error)
    return None

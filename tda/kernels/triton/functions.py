"""What kernels share: activation functions in float32."""

import triton
import triton.language as tl

__all__ = ["activate"]


@triton.jit
def activate(x, ACT: tl.constexpr):
    """act(x), by the name that `tda.kernels.native.library.ACTIVATIONS` has for it."""
    if ACT == "silu":
        return x * tl.sigmoid(x)
    if ACT == "gelu":
        return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    if ACT == "gelu_tanh":
        # ½(1 + tanh u) is sigmoid(2u), and Triton has no tanh of its own.
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    if ACT == "relu":
        return tl.maximum(x, 0.0)
    if ACT == "relu_squared":
        positive = tl.maximum(x, 0.0)
        return positive * positive
    tl.static_assert(ACT == "identity", "unknown activation")
    return x

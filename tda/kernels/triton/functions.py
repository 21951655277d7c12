"""What kernels share: activation functions in float32."""

import triton
import triton.language as tl

__all__ = ["activate"]


@triton.jit
def activate(x, ACT: tl.constexpr):
    """act(x), by the name that `tda.kernels.activations.ACTIVATIONS` has for it."""
    # One chain with one return: after a return inside a branch, Triton's compiler reads on, its interpreter does not.
    if ACT == "silu":
        value = x * tl.sigmoid(x)
    elif ACT == "gelu":
        value = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        # ½(1 + tanh u) is sigmoid(2u), and Triton has no tanh of its own.
        value = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACT == "relu":
        value = tl.maximum(x, 0.0)
    elif ACT == "relu_squared":
        value = tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    else:
        tl.static_assert(ACT == "identity", "unknown activation")
        value = x
    return value

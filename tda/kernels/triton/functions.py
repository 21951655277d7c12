"""What kernels share: activation functions in float32."""

import triton
import triton.language as tl

__all__ = ["activate"]


@triton.jit
def activate(x, act):
    """act(x), by its number in `tda.kernels.activations.ACTIVATIONS`."""
    # The number is known at run time only, so that no activation needs a launch of its own: a branch of one program
    # costs nothing beside the weights that it has read.
    if act == 0:  # silu
        value = x * tl.sigmoid(x)
    elif act == 1:  # gelu
        value = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif act == 2:  # gelu_tanh: ½(1 + tanh u) is sigmoid(2u), and Triton has no tanh of its own
        value = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif act == 3:  # relu
        value = tl.maximum(x, 0.0)
    elif act == 4:  # relu_squared
        value = tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    else:  # identity
        value = x
    return value

"""A prompt's statistic in one sweep over its activations, in the type that they have."""

import torch
from torch import Tensor

from tda.kernels.native import library as c


def add_squares(sums: Tensor, a: Tensor, mask: Tensor, weights: Tensor | None, relative: bool) -> bool:
    """Add squares of activations, each token's relative to its norm where asked; say whether the kernels could.

    Parameters
    ----------
    sums : Tensor
        What is added to: float32 [B, F], rows contiguous.
    a : Tensor
        Activations [B, T, F].
    mask : Tensor
        Which tokens count: bool [B, T].
    weights : Tensor or None
        Factor of each neuron: float32 [F].
    relative : bool
        Whether a token's squares are divided by their sum.

    Returns
    -------
    bool
        False, with nothing added, where the kernels do not take the type or place of `a` or cannot run here.
    """
    if a.device.type != "cpu" or a.dtype not in c.KINDS or a.stride(-1) != 1 or c.problem() is not None:
        return False
    library, threads, count = c.library(), torch.get_num_threads(), a.shape[2]
    scratch = torch.empty(library.tda_squares_floats(count, threads), dtype=torch.float32, device="cpu")
    mask = mask.contiguous()
    for row, tokens in enumerate(a):
        library.tda_squares(
            tokens.data_ptr(),
            len(tokens),
            count,
            tokens.stride(0) * tokens.element_size(),
            mask[row].data_ptr(),
            c.data_pointer(weights),
            int(relative),
            sums[row].data_ptr(),
            scratch.data_ptr(),
            c.KINDS[a.dtype],
            threads,
        )
    return True

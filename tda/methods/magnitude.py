"""Magnitude: a static set from the weights alone."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tda.contracts import Prompt, PromptMethod, Scope
from tda.methods import METHODS
from tda.view import FFN, Statistic


@METHODS.register("magnitude")
@dataclass(frozen=True, kw_only=True)
class Magnitude(PromptMethod):
    """Keep the neurons with the largest input weights, the same for every prompt.

    Score: ‖W_gate[j]‖·‖W_up[j]‖; in a plain FFN ‖W_1[j]‖. Source: the static baseline of GRIFFIN
    (arXiv 2404.01365).

    Attributes
    ----------
    sparsity : float
        Fraction of neurons left out.
    """

    name: ClassVar[str] = "magnitude"
    scope: ClassVar[Scope] = "model"

    def scores(self, ffn: FFN, statistic: Statistic | None, prompt: Prompt) -> Tensor:
        """Product of the rows' norms: [1, F]."""
        weights = [linear.weight.detach() for linear in ffn.inputs]
        norms = [torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32) for weight in weights]
        return torch.stack(norms).prod(0, keepdim=True)

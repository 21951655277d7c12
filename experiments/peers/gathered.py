"""Dynamic activation as in GRIFFIN's public code: the chosen neurons' weights are gathered into smaller linears.

Source: github.com/hdong920/GRIFFIN. A forward of more than one token is taken for a prompt, as there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import tda
from experiments.peers.huggingface import engine
from experiments.peers.job import Engine, Job


def smaller(linear: nn.Linear, weight: Tensor) -> nn.Linear:
    """A linear without bias of the same type, with these weights."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta", dtype=linear.weight.dtype)
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made


class GatheredMLP(nn.Module):
    """The FFN of a Llama that serves a prompt whole, and what follows with the neurons that the prompt chose.

    Parameters
    ----------
    whole : nn.Module
        The model's own, with `gate_proj`, `up_proj`, `down_proj` and `act_fn`.
    sparsity : float
        Share of neurons left out.
    """

    def __init__(self, whole: Any, sparsity: float) -> None:
        super().__init__()
        self.whole: Any = whole
        self.kept = round((1 - sparsity) * whole.up_proj.out_features)
        self.gate: Any = None
        self.up: Any = None
        self.down: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """FFN output: [1, T, D] -> [1, T, D]."""
        whole = self.whole
        if x.shape[1] == 1:
            kept: Tensor = self.down(whole.act_fn(self.gate(x)) * self.up(x))
            return kept
        z = whole.act_fn(whole.gate_proj(x)) * whole.up_proj(x)  # [1, T, F]
        chosen = (z / z.norm(dim=-1, keepdim=True)).norm(dim=1)[0].topk(self.kept).indices
        self.gate = smaller(whole.gate_proj, whole.gate_proj.weight[chosen])
        self.up = smaller(whole.up_proj, whole.up_proj.weight[chosen])
        self.down = smaller(whole.down_proj, whole.down_proj.weight[:, chosen])
        y: Tensor = whole.down_proj(z)
        return y


def gather(model: Any, sparsity: float) -> None:
    """Give every layer of a Llama such an FFN."""
    for layer in model.model.layers:
        layer.mlp = GatheredMLP(layer.mlp, sparsity)


@contextmanager
def serve(job: Job, *, sparsity: float) -> Iterator[Engine]:
    """The model with such FFNs, eager."""
    model = tda.load_model(job.model, dtype=job.dtype).model
    with torch.no_grad():
        gather(model, sparsity)
    yield engine(model, job, compiled=False)

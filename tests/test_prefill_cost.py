"""What a prompt launches while a method is attached: the model's own operators, and what sums its statistic."""

from collections import Counter
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tda
from tda.engine.backends import BACKENDS
from tda.engine.backends.native import NativeBackend
from tda.engine.backends.triton import TritonBackend
from tda.engine.phases import prefill

VIEWS = {"aten.detach.default", "aten.view.default"}
"""Operators that launch nothing."""
REQUEST = 20
"""Launches of a request's own, whatever the number of layers: its mask, its statistics' memory."""


class Operators(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operators(model: Any, mask: Tensor | None) -> Counter[str]:
    with torch.no_grad(), Operators() as seen:
        prefill(model, tiny.text(2, 9), mask)
    return seen.counts


def added(layers: int, mask: Tensor | None) -> Counter[str]:
    """Operators of a prompt beyond those of the model as it is, but for what sums squares: that is one call a layer."""
    model, sums = tiny.build("llama", num_hidden_layers=layers), []
    alone = operators(model, mask)
    with tda.attach(model, tda.Griffin(sparsity=0.5)) as run:
        run.attachment.decoding.sweep = lambda *args: bool(sums.append(args)) or True
        run.attachment.forget()
        found = operators(model, mask)
        run.select()
    assert len(sums) == layers
    return found - alone


@pytest.mark.parametrize("backend", [NativeBackend, TritonBackend])
@pytest.mark.parametrize("padded", [False, True])
def test_a_layer_launches_its_statistic_and_nothing_else(
    backend: Any, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend is TritonBackend:
        pytest.importorskip("triton", reason="the kernels need the package triton")
    monkeypatch.setitem(BACKENDS, "cpu", backend)
    monkeypatch.setattr("tda.engine.warm_up.PROMPT_TOKENS", 0)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, :3] = False
    few, many = (added(layers, mask if padded else None) for layers in (2, 5))
    assert {name: count for name, count in (many - few).items() if name not in VIEWS} == {}
    assert sum(count for name, count in few.items() if name not in VIEWS) <= REQUEST

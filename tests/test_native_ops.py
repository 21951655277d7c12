"""The kernels in C as operators of torch: what a compiler and a profiler see of them."""

import pytest
import tiny
import torch
from torch import nn
from torch.library import opcheck

import tda
from tda.engine.phases import decode, prefill
from tda.families import find_ffns
from tda.kernels.native import ops
from tda.kernels.native.ffn import ListedFFN
from tda.kernels.native.linear import NativeLinear
from tda.kernels.weights import lay_rows
from tda.spans import recording

pytestmark = pytest.mark.usefixtures("kernels_in_c")


@pytest.fixture
def executor() -> ListedFFN:
    ffn = find_ffns(tiny.build("llama"))[0]
    lay_rows(ffn.down)
    made = ListedFFN(ffn)
    made.load(torch.arange(ffn.F).remainder(3).eq(0).unsqueeze(0))
    return made


def test_the_fake_implementation_is_true_to_the_real_one(executor: ListedFFN) -> None:
    x = torch.randn(2, 3, executor.ffn.D)
    opcheck(torch.ops.tda.ffn.default, (x, ops.register(executor)), test_utils=("test_schema", "test_faketensor"))


def test_so_is_that_of_a_linear() -> None:
    linear = nn.Linear(24, 40)
    made = NativeLinear(linear, linear.forward)
    arguments = (torch.randn(1, 1, 24), ops.register(made), 40)
    opcheck(torch.ops.tda.linear.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_a_compiler_takes_it_whole(executor: ListedFFN) -> None:
    x = torch.randn(1, 1, executor.ffn.D)
    compiled = torch.compile(executor.__call__, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), executor(x))


def test_a_step_in_stages_is_the_step() -> None:
    """Where ranges are recorded a step runs stage by stage, to the same bits."""
    model, prompt, names = tiny.model("llama"), tiny.text(1, 7), []

    def recorder(name: str) -> torch.autograd.profiler.record_function:
        names.append(name)
        return torch.autograd.profiler.record_function(name)

    with torch.no_grad(), tda.attach(model, tda.Griffin(sparsity=0.5)) as run:
        logits = []
        for staged in (False, True):
            cache = prefill(model, prompt).cache
            run.select()
            if staged:
                with recording(recorder):
                    logits.append(decode(model, prompt[:, :1], cache))
            else:
                logits.append(decode(model, prompt[:, :1], cache))
    assert torch.equal(*logits)
    parts = [name.partition(":")[0] for name in names]
    assert parts == ["projection", "attention", "projection", "gate_up_down"] * tiny.LAYERS + ["head"]

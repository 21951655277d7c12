"""One layer's FFN in decode, in each execution, and the gather that compact execution rests on."""

from collections.abc import Callable
from typing import Any

import pytest
from parts import Clock, MicroModel, check_close, each, ffn_bytes, methods, part, reference
from torch import Tensor

EXECUTIONS = [
    (method, execution)
    for method in methods()
    for execution in (("auto",) if method.name == "dense" else method.executions)
]


def in_decode(subject: MicroModel, verb: Callable[[Any, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Run a verb on layer 0's FFN where a decode step of the model reaches it: FFN input and the verb's result.

    The step is asked for hidden states, so that it goes layer by layer where it could be a single call.
    """
    prefill, keyword = part("tda.engine.phases", "prefill"), part("tda.engine.transformers_api", "cache_keyword")
    found: list[tuple[Tensor, Tensor]] = []

    def reached(ffn: Any, args: tuple[Tensor]) -> None:
        hook.remove()
        found.append((args[0], verb(ffn, args[0])))

    logits, cache = prefill(subject.model, subject.prompt)
    hook = subject.ffns[0].block.register_forward_pre_hook(reached)
    token = logits[:, -1].argmax(-1, keepdim=True)
    subject.model(token, use_cache=True, output_hidden_states=True, **{keyword(subject.model): cache})
    return found[0]


@each(EXECUTIONS)
@pytest.mark.benchmark(group="ffn")
def test_ffn(clock: Clock, subject: MicroModel, method: Any, execution: str) -> None:
    """One token. Masked execution does dense arithmetic: its time is no speed of the method."""
    with subject.attach(method, execution) as run:
        x, y = in_decode(subject, lambda ffn, x: clock(lambda: ffn(x), rounds=200))
        kept, executed = run.selection()[0], run.execution
    ffn = subject.ffns[0]
    check_close(y, reference(ffn, x, kept))
    assert executed == ("dense" if method.name == "dense" else execution)

    skips = execution in ("compact", "indexed")
    reads = tuple(skips and name in method.skips for name in ("gate", "up", "down"))
    share = float(kept.double().mean())
    moved, full = ffn_bytes(ffn, reads, share), ffn_bytes(ffn, (False,) * 3, 1.0)
    facts = {"achieved_sparsity": 1 - share, "roofline_speedup": full / moved}
    clock.note("ffn_ms", subject.case(method, execution), execution=executed, bytes_moved=moved, **facts)


@each(methods("prompt"))
@pytest.mark.benchmark(group="gather")
def test_gather(clock: Clock, subject: MicroModel, method: Any) -> None:
    """Weights of one layer's kept neurons, read and written once per prompt."""
    prefill = part("tda.engine.phases", "prefill")
    with subject.attach(method, "compact") as run:
        prefill(subject.model, subject.prompt)
        kept = run.selection()[0]
        compact = run.attachment.decoding.executors[0]
        clock(lambda: compact.load(kept), rounds=30)
        check_close(compact(subject.x), reference(subject.ffns[0], subject.x, kept))
    share = float(kept.double().mean())
    moved = 2 * ffn_bytes(subject.ffns[0], (True,) * 3, share)
    clock.note("gather_ms", subject.case(method), execution="compact", bytes_moved=moved, achieved_sparsity=1 - share)

"""A request: the prompt's pass, and one decode step after it."""

from typing import Any

import pytest
from parts import NEW_TOKENS, PROMPT_TOKENS, Clock, MicroModel, check_close, each, methods, part


@each(methods())
@pytest.mark.benchmark(group="prefill")
def test_prefill(clock: Clock, subject: MicroModel, method: Any) -> None:
    """The prompt's pass with the method attached, its statistic included."""
    prefill = part("tda.engine.phases", "prefill")
    with subject.attach(method) as run, run.prefill():
        logits, cache = clock(lambda: prefill(subject.model, subject.prompt), rounds=12)
    check_close(logits, subject.exact_logits)
    assert cache.get_seq_length() == PROMPT_TOKENS
    clock.note("prefill_ms", subject.case(method), execution="dense")


@each(methods())
@pytest.mark.benchmark(group="decode")
def test_decode(clock: Clock, subject: MicroModel, method: Any) -> None:
    """One step a round, on a cache that grows by it."""
    prefill, decode = part("tda.engine.phases", "prefill"), part("tda.engine.phases", "decode")
    decode_traffic = part("tda.bench.traffic", "decode_traffic")
    with subject.attach(method) as run:
        logits, cache = prefill(subject.model, subject.prompt)
        run.select()
        token = logits[:, -1].argmax(-1, keepdim=True)
        logits = clock(lambda: decode(subject.model, token, cache), rounds=NEW_TOKENS)
        left_out, execution = run.achieved_sparsity(), run.execution
    assert logits.shape[:2] == (1, 1)
    assert logits.isfinite().all()
    achieved = sum(left_out) / len(left_out)
    assert achieved == pytest.approx(method.sparsity, abs=0.1)
    backend = part("tda.engine.backends", "backend_of")(subject.model, subject.ffns)
    assert execution == ("dense" if method.name == "dense" else backend.auto(method))

    cached = PROMPT_TOKENS + NEW_TOKENS / 2
    traffic, full = (
        decode_traffic(subject.model, run.attachment.ffns, method, [1 - share for share in shares], cached, 1).total
        for shares in (left_out, [0.0] * len(left_out))
    )
    facts = {"achieved_sparsity": achieved, "roofline_speedup": full / traffic}
    clock.note("decode_ms", subject.case(method), execution=execution, bytes_moved=traffic, **facts)

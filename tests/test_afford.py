"""In which size a preset takes its model, where a budget has to pay for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tda.bench.afford import Workload, least_seconds
from tda.bench.model_size import size_notice
from tda.bench.planning import plan_of, without_budget
from tda.config import BenchConfig
from tda.models import parameter_count


def test_what_the_least_of_a_model_takes():
    """By hand: 10 s, and on 2 threads what 1e9 weights of 4 bytes take, with 5 rounds of 2 cases."""
    asked = Workload(prompt_tokens=100, new_tokens=10, batch=2, documents=99, calibration_tokens=7000, cases=2)
    calibrated = 7000 / 7 / 2
    passed = (2 * 16 * 110 + 10 * 5 * 2 * 100) / 30 / 2
    read = 10 * (20 * 4 + 12 * 2) / 8 / 2
    assert least_seconds(asked, 10**9, 4 * 10**9, 10**9, 2) == pytest.approx(10 + calibrated + passed + read)


@pytest.mark.parametrize(
    ("megabytes", "threads", "budget", "taken"),
    [
        (503, 2, "300s", "ref:wide:2x"),
        (503, 1, "300s", "ref:wide"),
        (503, 64, "300s", "ref:wide:16x"),
        (503, 2, "1h", "ref:wide:16x"),
        (503, 2, "1s", "ref:wide"),
        (503, 2, "none", "ref:wide:16x"),
        (36, 2, "300s", "ref:wide:2x"),
        (36, 64, "1h", "ref:wide:2x"),
    ],
)
def test_a_preset_takes_its_model_in_a_size_that_the_budget_affords(monkeypatch, megabytes, threads, budget, taken):
    monkeypatch.setattr("tda.bench.model_size.cache_bytes", lambda device: megabytes * 10**6)
    monkeypatch.setattr("tda.bench.model_size.torch.get_num_threads", lambda: threads)
    config = BenchConfig(budget=budget)
    plan = plan_of(config)
    assert [subject.model for subject in plan.subjects] == [taken]
    told, wanted = size_notice(config, plan), "ref:wide:16x" if megabytes == 503 else "ref:wide:2x"
    assert (told is None) == (taken == wanted)
    assert told is None or (taken in told and wanted in told and f"{megabytes} MB" in told)
    whole = plan_of(without_budget(config, plan))
    assert (whole.budget_s, whole.cases()) == (None, plan.cases())


@given(st.integers(1, 10**9), st.integers(1, 128), st.integers(1, 10**5))
def test_more_budget_or_threads_never_make_the_model_smaller(cache, threads, seconds):
    def count(threads: int, seconds: int) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tda.bench.model_size.cache_bytes", lambda device: cache)
            patch.setattr("tda.bench.model_size.torch.get_num_threads", lambda: threads)
            return parameter_count(plan_of(BenchConfig(budget=f"{seconds}s")).subjects[0].model)

    assert count(threads, seconds) <= min(count(threads + 1, seconds), count(threads, 2 * seconds))

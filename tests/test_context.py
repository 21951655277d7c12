"""A request that needs more positions than the model has is refused before anything is computed."""

from dataclasses import replace
from typing import Any

import altered
import pytest
import tiny
import torch
from rich.console import Console
from transformers import GPT2Config, LlamaConfig, OPTConfig

import tda
from tda.bench.measure import first_request, time_case
from tda.bench.plan import Plan, Subject
from tda.bench.prepare import prepare
from tda.bench.profile import run_profile
from tda.bench.run import Bench
from tda.engine.context import ContextError, check_context, context_length
from tda.methods import method
from tda.names import Protocol
from tda.quality import random_documents

POSITIONS = 128
"""Of every tiny model."""
QUIET = Console(quiet=True)


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        (None, 128),
        ({"rope_type": "linear", "factor": 4.0}, 512),
        ({"type": "linear", "factor": 1.5}, 192),
        ({"rope_type": "dynamic", "factor": 2.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": 16,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            128,
        ),
    ],
)
def test_context_length_is_what_the_config_says_with_the_factor_of_its_rope(rope, positions):
    assert context_length(LlamaConfig(max_position_embeddings=128, rope_parameters=rope)) == positions


def test_context_length_of_learnt_positions_and_of_no_limit():
    assert context_length(OPTConfig(max_position_embeddings=77)) == 77
    assert context_length(GPT2Config(n_positions=55)) == 55
    assert context_length(object()) is None


@pytest.mark.parametrize("protocol", ["decode", "all_sparse", "griffin"])
@pytest.mark.parametrize("name", ["llama", "opt", "opt-post-norm"])
def test_a_score_takes_the_last_position_and_refuses_one_more(name, protocol: Protocol):
    model, griffin = tiny.model(name), tda.Griffin(sparsity=0.5)
    prompt, new = tiny.text(2, 100), tiny.text(2, 30, seed=1)
    found = tda.score(model, griffin, prompt, new[:, :29], protocol=protocol)
    assert bool(torch.isfinite(found.nll).all())
    with pytest.raises(ValueError, match=f"100 prompt .*30 new .*129 positions.* {POSITIONS}.*most 129"):
        tda.score(model, griffin, prompt, new, protocol=protocol)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_padding_takes_no_position(name):
    model, griffin = tiny.model(name), tda.Griffin(sparsity=0.5)
    prompts, mask = tiny.padded(tiny.prompts([100, 90], seed=3))
    new = tiny.text(2, 39, seed=1)
    short = torch.ones(2, 39, dtype=torch.bool)
    short[0, 29:] = False
    assert tda.score(model, griffin, prompts, new, prompt_mask=mask, continuation_mask=short).nll.shape == (2, 39)
    short[0, 29] = True
    with pytest.raises(ValueError, match=r"100 prompt .*30 new .*129 positions"):
        tda.score(model, griffin, prompts, new, prompt_mask=mask, continuation_mask=short)


def test_prompts_to_select_on_are_held_to_the_context_too(opt):
    text, dense = tiny.text(1, POSITIONS + 1), tda.Griffin(sparsity=0.5)
    assert tda.score(opt, dense, text[:, :8], text[:, :4], selection_ids=text[:, :POSITIONS]).selection
    with pytest.raises(ValueError, match=r"129 tokens .*positions.* 128\b"):
        tda.score(opt, dense, text[:, :8], text[:, :4], selection_ids=text)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_calibration_text_is_held_to_the_context(name):
    model, static, text = tiny.model(name), tda.StaticMean(sparsity=0.5), tiny.text(2, POSITIONS + 1)
    assert tda.calibrate(model, static, [{"input_ids": text[:, :POSITIONS]}], progress=False).scores
    with pytest.raises(ValueError, match=r"129 tokens .*positions.* 128 .*at most 128 "):
        tda.calibrate(model, static, [{"input_ids": text}], progress=False)


@pytest.mark.parametrize("new", [2, 3, 9])
def test_a_timed_case_feeds_no_more_positions_than_its_request_needs(new):
    """OPT has no more rows in its table of positions than the request at the limit reads."""
    model = tiny.model("opt")
    (document,) = random_documents(tiny.VOCABULARY, POSITIONS + 1 - new, new, 1, seed=0)
    check_context(model, POSITIONS + 1 - new, new)
    with pytest.raises(ContextError):
        check_context(model, POSITIONS + 2 - new, new)
    assert len(time_case(model, method("dense"), [document], "auto", keep_logits=False).decode_ms) == new - 1
    first_request(model, method("dense"), [document], "auto")


def plan_on(model: str, prompt_tokens: int, new_tokens: int, **changes: Any) -> Plan:
    subject = Subject(model, prompt_tokens=prompt_tokens, new_tokens=new_tokens, quality=False)
    return Plan((subject,), **{"methods": ("griffin",), "sparsities": (0.5,), "rounds": 1, **changes})


def test_bench_measures_at_the_limit_and_refuses_beyond_it_before_it_measures(tmp_path):
    short = str(altered.folder(tmp_path, max_position_embeddings=48))
    fits = Bench(plan_on(short, 40, 9), tmp_path / "fits", console=QUIET).run()
    assert {record.status for record in fits} == {"ok"}
    with pytest.raises(ValueError, match=r"40 prompt .*10 new .*49 positions.* 48\b"):
        Bench(plan_on(short, 40, 10), tmp_path / "beyond", console=QUIET).run()
    assert not (tmp_path / "beyond" / "results.jsonl").read_text()


def test_of_several_models_only_that_which_is_too_short_is_refused(tmp_path, caplog):
    short = str(altered.folder(tmp_path, max_position_embeddings=48))
    plan = plan_on(short, 40, 10)
    plan = replace(plan, subjects=(*plan.subjects, replace(plan.subjects[0], model="ref:swiglu")))
    records = Bench(plan, tmp_path / "results", console=QUIET).run()
    found = {(record.case.model, record.case.method): record for record in records if record.case.control is None}
    refused = found.pop((short, "dense"))
    assert refused.status == "error"
    assert "need 49 positions" in str(refused.reason)
    assert f"{short} is not measured: 40 prompt and 10 new" in caplog.text
    assert {key for key, record in found.items() if record.status == "ok"} == {
        ("ref:swiglu", "dense"),
        ("ref:swiglu", "griffin"),
    }


def test_recall_questions_that_are_too_long_are_left_out_and_told(tmp_path):
    """They read at least 256 tokens before they ask, whatever the prompts' length."""
    plan = Plan((Subject("ref:swiglu", prompt_tokens=16, new_tokens=4),), methods=("tda",), documents=6)
    plan = replace(plan, sparsities=(0.5,), rounds=1, calibration_documents=2)
    whole = prepare(plan, plan.subjects[0])
    lengths = sorted(len(question.context) + len(question.answer) - 1 for question in whole.questions)
    assert not whole.left_out
    few = str(altered.folder(tmp_path, max_position_embeddings=lengths[2]))
    held = prepare(plan, replace(plan.subjects[0], model=few))
    assert len(held.questions) == sum(length <= lengths[2] for length in lengths)
    assert held.left_out == [f"{6 - len(held.questions)} of 6 recall questions are longer than its context"]
    assert held.methods[-1][0].fitted.lengths[-1] <= lengths[2]


def test_thresholds_of_a_context_that_is_no_power_of_two_are_made_from_text_that_it_holds(tmp_path):
    short = str(altered.folder(tmp_path, max_position_embeddings=48))
    plan = plan_on(short, 40, 9, methods=("tda",), calibration_documents=2)
    made = prepare(plan, plan.subjects[0]).methods
    assert [found.fitted.lengths[-1] for found, _ in made if found.thresholds] == [32]


def test_a_profile_feeds_all_of_its_steps(tmp_path):
    """It decodes eight tokens, as a request of nine new ones does."""
    short = str(altered.folder(tmp_path, max_position_embeddings=48))
    sizes: dict[str, Any] = {"models": [short], "methods": ["dense"], "new_tokens": 9}
    with pytest.raises(ValueError, match=r"41 prompt .*9 new .*49 positions"):
        run_profile(tmp_path / "beyond", prompt_tokens=41, **sizes)
    assert not (tmp_path / "beyond").exists()


def test_eval_and_calibrate_refuse_what_the_model_cannot_hold(tmp_path, command):
    short = altered.folder(tmp_path, max_position_embeddings=48)
    code, _, told = command("eval", "-m", short, "--prompt-tokens", 40, "--new-tokens", 10, "--documents", 2)
    assert code == 2
    assert "40 prompt and 10 new tokens need 49 positions" in told
    code, _, told = command("calibrate", "-m", short, "--tokens", 49, "--documents", 2, "--out", tmp_path / "file")
    assert code == 2
    assert "49 tokens need as many positions" in told


def test_generate_counts_the_prompt_and_the_new_tokens(tmp_path, command):
    """The prompt is a token per byte, and one in front."""
    short = altered.folder(tmp_path, max_position_embeddings=48)
    words = ("generate", "-m", short, "--prompt", "a" * 39, "--new-tokens")
    code, _, told = command(*words, 9)
    assert code == 0, told
    code, out, told = command(*words, 10)
    assert code == 2
    assert not out
    assert "40 prompt and 10 new tokens need 49 positions" in told

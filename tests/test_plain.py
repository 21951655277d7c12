"""What a model's folder says about generation decides nothing that is measured, and is told."""

import functools
import re
from contextlib import suppress
from dataclasses import replace
from typing import Any

import altered
import pytest
import tiny
import torch
from rich.console import Console

import tda
from tda.bench.measure import time_case
from tda.bench.plan import Plan, Subject
from tda.bench.run import Bench
from tda.engine.plain import left_aside, notice, plain
from tda.families import find_ffns
from tda.methods import method
from tda.models import load_model
from tda.quality import Document

PROMPT, NEW = 12, 6
TEXT = "Once there was a brave child called Brailon who lived in "
GENERATION: list[dict[str, Any]] = [
    {"num_beams": 4},
    {"max_time": 0.001},
    {"stop_strings": ["e"]},
    {"prompt_lookup_num_tokens": 3},
    {"use_cache": False},
    {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
    {"do_sample": True, "num_return_sequences": 2},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"guidance_scale": 2.0},
    {"forced_eos_token_id": 5},
    {"suppress_tokens": list(range(32, 123))},
    {"cache_implementation": "static"},
    {"prefill_chunk_size": 5},
    {"output_attentions": True, "output_scores": True, "return_dict_in_generate": True},
    {"max_length": 10},
    {"min_length": 500},
    {"max_new_tokens": 2},
]
CONFIG: list[dict[str, Any]] = [
    {"use_cache": False},
    {"output_attentions": True},
    {"output_hidden_states": True},
    {"return_dict": False},
    {"num_beams": 4},
]
FOLDERS = [*((said, {}) for said in GENERATION), *((None, said) for said in CONFIG)]


def folder_id(value: object) -> str:
    return ",".join(value) if isinstance(value, dict) else ""


def fed(module: torch.nn.Module) -> list[torch.Tensor]:
    """Start noting what a module's forwards are given: tokens, or a layer's hidden states."""
    seen: list[torch.Tensor] = []

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(kwargs["input_ids"] if "input_ids" in kwargs else args[0])

    module.register_forward_pre_hook(hook, with_kwargs=True)
    return seen


@pytest.fixture(scope="module")
def greedy() -> torch.Tensor:
    """What the reference model itself says after the prompt, prompt included: int64 [1, PROMPT + NEW]."""
    model: Any = load_model("ref:swiglu").model
    found: torch.Tensor = model.generate(prompt().unsqueeze(0), max_new_tokens=NEW, do_sample=False)
    return found


def prompt() -> torch.Tensor:
    return tiny.text(1, PROMPT, seed=3, vocabulary=256)[0]


@pytest.mark.parametrize(("generation", "config"), FOLDERS, ids=folder_id)
def test_a_timed_case_generates_greedily_with_a_cache_whatever_the_folder_says(generation, config, tmp_path, greedy):
    model: Any = load_model(str(altered.folder(tmp_path, generation, **config))).model
    document = Document(0, "random", prompt(), tiny.text(1, NEW, seed=4, vocabulary=256)[0])
    calls = fed(model)
    dense = method("dense", 0.0, dense_kernel="own")
    timing = time_case(model, dense, [document], "auto", keep_logits=False)
    assert [tokens.shape[1] for tokens in calls[-NEW:]] == [PROMPT] + [1] * (NEW - 1)
    assert torch.equal(torch.cat(calls[-NEW:], 1), greedy[:, :-1])
    assert timing.backend.startswith("c"), "a step did not run on our kernels"


@pytest.mark.parametrize(("generation", "config"), FOLDERS, ids=folder_id)
def test_what_is_left_aside_is_told_and_the_model_says_it_again_afterwards(generation, config, tmp_path):
    model: Any = load_model(str(altered.folder(tmp_path, generation, **config))).model
    said, own = dict(vars(model.config)), model.generation_config
    for name, value in {**(generation or {}), **config}.items():
        assert left_aside(model)[name] == value
        assert f"{name}={value!r}" in str(notice(model))
    with suppress(InterruptedError), plain(model):
        assert not left_aside(model)
        raise InterruptedError
    assert vars(model.config) == said
    assert model.generation_config is own


def test_a_generate_that_a_folder_brings_is_neither_timed_nor_lost():
    model: Any = load_model("ref:swiglu").model
    own = model.generate = functools.partial(lambda *args, **kwargs: pytest.fail("the folder's own generate"), model)
    document = Document(0, "random", prompt(), tiny.text(1, NEW, seed=4, vocabulary=256)[0])
    assert left_aside(model) == {"custom_generate": True}
    time_case(model, method("griffin", 0.5), [document], "auto", keep_logits=False)
    assert model.generate is own


@pytest.mark.parametrize("name", ["ref:swiglu", "ref:relu", "shape:25m"])
def test_a_folder_that_says_nothing_of_it_leaves_nothing_to_tell(name):
    assert notice(load_model(name).model) is None


def test_bench_says_what_it_leaves_aside_and_records_what_is_in_force(tmp_path, caplog):
    model = str(altered.folder(tmp_path, {"num_beams": 4, "eos_token_id": 7}))
    subject = Subject(model, prompt_tokens=16, new_tokens=4, quality=False)
    console = Console(quiet=True)
    plan = Plan((subject,), methods=("griffin",), sparsities=(0.5,), rounds=1)
    records = Bench(plan, tmp_path / "results", console=console).run()
    assert "its folder asks for num_beams=4; left aside" in caplog.text
    (found,) = {record.conditions["generation"] for record in records}
    assert re.fullmatch("greedy, 4 new tokens, key-value cache; left aside .*: num_beams=4", found)
    clean = Bench(replace(plan, subjects=(replace(subject, model="ref:swiglu"),)), tmp_path / "clean", console=console)
    assert {record.conditions["generation"] for record in clean.run()} == {"greedy, 4 new tokens, key-value cache"}


@pytest.mark.parametrize(("generation", "config"), [FOLDERS[2], FOLDERS[4], FOLDERS[7], FOLDERS[-2]], ids=folder_id)
def test_generate_writes_what_greedy_decoding_gives_and_says_what_it_left_aside(generation, config, tmp_path, command):
    words = ("generate", "--prompt", TEXT, "--new-tokens", 12, "-m")
    _, plain_text, told = command(*words, "ref:swiglu")
    assert "left aside" not in told
    code, text, told = command(*words, altered.folder(tmp_path, generation, **config))
    assert (code, text) == (0, plain_text), told
    assert "left aside" in told


def test_generate_still_ends_where_the_folder_says_that_text_ends(tmp_path, command):
    words = ("generate", "--prompt", TEXT, "--new-tokens", 12, "-m")
    _, whole, _ = command(*words, "ref:swiglu")
    tokenizer: Any = load_model("ref:swiglu").tokenizer
    third = tokenizer(whole[len(TEXT) :], add_special_tokens=False)["input_ids"][2]
    code, cut, told = command(*words, altered.folder(tmp_path, {"eos_token_id": [258, third]}))
    assert code == 0
    assert len(cut) < len(whole)
    assert "left aside" not in told


def test_generate_samples_only_as_it_is_asked(tmp_path, command):
    words = ("generate", "--prompt", TEXT, "--new-tokens", 12, "--temperature", 1.5, "--seed", 4, "-m")
    _, wanted, _ = command(*words, "ref:swiglu")
    code, text, told = command(*words, altered.folder(tmp_path, {"do_sample": True, "top_k": 1}))
    assert (code, text) == (0, wanted), told


@pytest.mark.parametrize("config", CONFIG[:-1], ids=folder_id)
def test_scores_and_thresholds_do_not_depend_on_what_the_folder_wants_returned(config, tmp_path):
    chosen, found = tda.CATS(sparsity=0.5), []
    for name in ("ref:swiglu", str(altered.folder(tmp_path, **config))):
        model: Any = load_model(name).model
        text = tiny.text(2, 24, vocabulary=256)
        made = tda.calibrate(model, chosen, [{"input_ids": text}], progress=False)
        other = tiny.text(1, 24, seed=9, vocabulary=256)
        found.append((made.cuts, tda.score(model, chosen, other[:, :16], other[:, 16:], made).nll.tolist()))
        assert made.model.config_hash == tda.engine.identity.identify(model, find_ffns(model)).config_hash
    assert found[0] == found[1]


def test_attach_takes_a_model_whose_folder_wants_tuples_returned(tmp_path):
    model: Any = load_model(str(altered.folder(tmp_path, return_dict=False))).model
    with tda.attach(model, tda.Griffin(sparsity=0.5)) as run:
        assert run.backend == "c"

"""What `contract.py` claims is so, over a covering design of methods, models, executions, types and shapes."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import contract
import float64
import pytest
import shapes
import tiny
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, OpenAIGPTConfig

import tda
from tda.engine.attachment import Attachment
from tda.kernels.native import library

EXPECTED: dict[str, Any] = {"refused": ValueError, "warned": UserWarning}


def can_run(case: contract.Case) -> bool:
    """Whether there are the kernels here that a case needs."""
    return library.problem() is None or not contract.needs_kernels(case.method, case.execution)


def play(case: contract.Case) -> None:
    """Play a case, and hold it against what is claimed."""
    asked = contract.SHAPES[case.shape]
    claim = asked.claimed(contract.built(case.method))
    expecting: Any = nullcontext()
    if claim != "right":
        expecting = (pytest.raises if claim == "refused" else pytest.warns)(EXPECTED[claim], match=asked.words)
    playing = shapes.Play(case)
    with shapes.watched() as playing.forwards, expecting:
        rows = shapes.RUN[case.shape](playing)
    if claim != "refused":
        if claim == "warned":
            assert not any(row.decoded for row in rows)
        shapes.check(playing, rows)


@pytest.mark.parametrize("case", contract.covering(), ids=str)
def test_what_is_claimed_is_so(case: contract.Case) -> None:
    if not can_run(case):
        pytest.skip(f"no kernels in C here: {library.problem()}")
    play(case)


def test_the_design_holds_every_pair_and_claims_everything() -> None:
    held = {pair for case in contract.covering() for pair in contract.parts(case)}
    assert held == {pair for case in contract.claimed() for pair in contract.parts(case)}
    assert tuple(tiny.names()) == contract.MODELS
    assert set(contract.SHAPES) == set(shapes.RUN)
    assert {case.method for case in contract.claimed()} == set(contract.METHODS)
    assert set(contract.WEIGHTS) == set(WEIGHTS)
    for axis, values in (("execution", contract.EXECUTIONS), ("dtype", contract.DTYPES), ("model", contract.MODELS)):
        assert {getattr(case, axis) for case in contract.claimed()} == set(values)
    for name, window in contract.WINDOWS.items():
        assert tiny.config(name).sliding_window == window


def test_the_page_is_what_is_claimed() -> None:
    assert contract.PAGE.read_text(encoding="utf-8") == contract.page(), "stale: run `python -m tests.contract`"


@pytest.mark.parametrize("name", [name for name in contract.METHODS if contract.needs_kernels(name, "indexed")])
def test_indexed_is_refused_in_float16(name: str) -> None:
    model, method = shapes.model_of("llama", "float16"), contract.built(name)
    with (
        pytest.raises(ValueError, match=f"'indexed' of '{method.name}' .*: weights are float16"),
        tda.attach(model, method, tiny.thresholds("llama", method), execution="indexed"),
    ):
        pass


# The comparison can fail.


def dense_arithmetic(run: Attachment, layer: int, z: Tensor, a: Tensor, tokens: None) -> None:
    """Masked execution that leaves nothing out, and says that it did."""
    OWN["mask"](run, layer, z, a, tokens)


def one_more(run: Attachment, layer: int, z: Tensor, a: Tensor, tokens: None) -> Tensor | None:
    """Masked execution that leaves out a neuron more than was selected."""
    masked: Tensor | None = OWN["mask"](run, layer, z, a, tokens)
    if masked is not None:
        masked = masked.clone()
        masked.view(-1, masked.shape[-1])[:, masked.abs().reshape(-1, masked.shape[-1]).sum(0).argmax()] = 0
    return masked


OWN: dict[str, Any] = {"mask": Attachment.mask}


@pytest.mark.parametrize("broken", [dense_arithmetic, one_more])
@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("name", ["griffin", "tt"])
def test_wrong_arithmetic_would_not_pass(
    name: str, dtype: str, broken: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Attachment, "mask", broken)
    with pytest.raises(AssertionError):
        play(contract.Case(name, "llama", "masked", dtype, "single"))


@pytest.mark.parametrize("shape", ["left", "right_by_hand", "second_turn", "prefix", "chunks", "score_griffin"])
def test_sets_of_other_tokens_would_not_pass(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statistic that leaves out the prompt's last tokens: every dtype tells it."""
    own = Attachment.collect
    monkeypatch.setattr(
        Attachment,
        "collect",
        lambda run, layer, a, tokens: own(run, layer, torch.zeros_like(a) + a[..., :1, :], tokens),
    )
    for dtype in contract.DTYPES:
        with pytest.raises(AssertionError):
            play(contract.Case("griffin", "qwen2", "auto", dtype, shape))


# Kinds of models.


class Quantised(nn.Linear):
    """What stands in a quantised model's place of a linear."""


def adapted(*targets: str) -> Any:
    """A wrapper of PEFT around a model with adapters on some of its linears."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT uses what is deprecated elsewhere
        peft: Any = pytest.importorskip("peft")
        torch.manual_seed(1)
        config = peft.LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False)
        return peft.get_peft_model(tiny.build("llama"), config).eval()


def peft_attention() -> tuple[Any, Any]:
    wrapper = adapted("q_proj", "v_proj")
    return wrapper.get_base_model(), adapted("q_proj", "v_proj").merge_and_unload()


def quantised() -> Any:
    model = tiny.build("llama")
    model.model.layers[1].mlp.up_proj.__class__ = Quantised
    return model


def offloaded() -> Any:
    model = tiny.build("llama")
    model.model.layers[1].to("meta")
    return model


def hooked(path: str, scale: float) -> Any:
    model = tiny.build("llama")
    for layer in model.model.layers:
        layer.get_submodule(path).register_forward_hook(
            lambda module, args, output: (
                (scale * output[0], *output[1:]) if isinstance(output, tuple) else scale * output
            )
        )
    return model


def first_gpt() -> Any:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": tiny.VOCABULARY}
    return AutoModelForCausalLM.from_config(
        OpenAIGPTConfig(**sizes, bos_token_id=1, eos_token_id=None, pad_token_id=0)
    ).eval()


def moved() -> Any:
    model = tiny.build("llama")
    own = model.generate
    model.generate = lambda *args, **kwargs: (model.to(torch.float64), own(*args, **kwargs))[1]
    return model


WEIGHTS: dict[str, Callable[[], Any]] = {
    "tied": lambda: (tiny.build("llama", tie_word_embeddings=True),) * 2,
    "peft_attention": peft_attention,
    "peft_wrapper": lambda: adapted("q_proj"),
    "peft_ffn": lambda: adapted("up_proj").get_base_model(),
    "quantised": quantised,
    "offloaded": offloaded,
    "compiled": lambda: torch.compile(tiny.build("llama"), backend="eager"),
    "hooks_ffn": lambda: (hooked("mlp", 1), tiny.build("llama")),
    "hooks_elsewhere": lambda: (hooked("self_attn", 0.5),) * 2,
    "no_head": lambda: tiny.build("llama").model,
    "more_than_declared": lambda: hooked("mlp", 0.5),
    "other_type": first_gpt,
    "moved": moved,
}
"""Makes a model of each kind; where it is right, also one that float64 reads."""


@pytest.mark.parametrize("kind", contract.WEIGHTS)
def test_kinds_of_models(kind: str) -> None:
    claim, made = contract.WEIGHTS[kind], WEIGHTS[kind]()
    playing = shapes.Play(contract.Case("griffin", "llama", "auto", "float32", "single"))
    playing.model, read = made if claim.claim == "right" else (made, None)
    if read is None:
        with pytest.raises(ValueError, match=claim.words):
            shapes.RUN["single"](playing)
        return
    playing.reference = float64.Float64(read)
    with shapes.watched() as playing.forwards:
        rows = shapes.RUN["single"](playing)
    shapes.check(playing, rows)

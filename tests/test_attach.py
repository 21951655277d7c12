"""What is attached is detached bit for bit, and a wrong use attaches nothing."""

import functools
from collections.abc import Callable
from typing import Any

import contract
import numpy as np
import pytest
import tiny
import torch
from model_state import same, state
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, OpenAIGPTConfig

import tda
from tda.contracts import Method
from tda.engine.phases import decode, prefill
from tda.families import FAMILIES
from tda.methods import METHODS, takes_sparsity
from tda.thresholds import Thresholds


def use(model: Any, method: Method, thresholds: Thresholds | None, execution: Any) -> None:
    with tda.attach(model, method, thresholds, execution=execution):
        model.generate(tiny.text(2, 9), max_new_tokens=4, do_sample=False)


@pytest.mark.parametrize("case", tiny.sampled(tiny.method_cases()), ids=tiny.case_id)
def test_after_the_context_the_model_is_what_it_was(case: tuple[str, Method]) -> None:
    name, method = case
    model = tiny.model(name)
    before = state(model)
    for execution in dict.fromkeys([*method.executions, "auto"]):
        use(model, method, tiny.thresholds(name, method), execution)
    same(before, state(model))


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), GeneratorExit(), SystemExit(1)])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_also_after_an_exception(name: str, error: BaseException) -> None:
    model, method = tiny.model(name), tda.Griffin(sparsity=0.5)
    before = state(model)

    def body() -> None:
        with torch.no_grad(), tda.attach(model, method, execution="compact"):
            decode(model, tiny.text(1, 1), prefill(model, tiny.text(1, 6)).cache)
            raise error

    with pytest.raises(type(error)):
        body()
    same(before, state(model))


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_also_after_an_interrupt_in_the_middle_of_a_forward(name: str, phase: str) -> None:
    """Ctrl-C strikes inside layer 1; the same run goes on working, and leaving it restores the model."""
    model = tiny.build(name)
    model(tiny.text(1, 2), output_hidden_states=True)  # installs what transformers leaves in place from then on
    before = state(model)
    layers = model.model.layers if name == "llama" else model.model.decoder.layers
    struck = []

    def strike(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        wanted = 6 if phase == "prefill" else 1
        if not struck and output[0].shape[-2] == wanted:
            struck.append(True)
            raise KeyboardInterrupt

    with tda.attach(model, tda.Griffin(sparsity=0.5), execution="compact") as run:
        handle = layers[1].self_attn.register_forward_hook(strike, with_kwargs=True)
        layer_by_layer = {"output_hidden_states": True, "return_dict_in_generate": True}
        with pytest.raises(KeyboardInterrupt):
            model.generate(tiny.text(1, 6), max_new_tokens=4, do_sample=False, **layer_by_layer)
        handle.remove()
        after_strike = model.generate(tiny.text(1, 6), max_new_tokens=4, do_sample=False)
        selection = run.selection()
    same(before, state(model))
    with tda.attach(model, tda.Griffin(sparsity=0.5), execution="compact") as run:
        assert torch.equal(after_strike, model.generate(tiny.text(1, 6), max_new_tokens=4, do_sample=False))
        assert all(torch.equal(one, other) for one, other in zip(selection, run.selection(), strict=True))


def test_what_a_user_set_on_the_model_stays() -> None:
    """A forward or generate of the user's own is wrapped and comes back, and their hooks stay."""
    model = tiny.build("llama")
    calls = []
    own = functools.partial(type(model).generate, model)
    model.generate = own
    model.model.layers[0].mlp.forward = functools.partial(
        type(model.model.layers[0].mlp).forward, model.model.layers[0].mlp
    )
    theirs = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda module, args: calls.append(1))
    before = state(model)
    use(model, tda.Griffin(sparsity=0.5), None, "masked")
    same(before, state(model))
    assert model.generate is own
    assert model.model.layers[0].mlp.forward is theirs
    assert calls


def test_gradients_are_as_before_inside_and_outside(llama: Any) -> None:
    before = {name: parameter.requires_grad for name, parameter in llama.named_parameters()}
    with tda.attach(llama, tda.Griffin(sparsity=0.5)) as run, run.prefill():
        llama(tiny.text(1, 5)).logits.sum().backward()
    assert {name: parameter.requires_grad for name, parameter in llama.named_parameters()} == before
    assert llama.model.layers[0].mlp.up_proj.weight.grad is not None
    llama.zero_grad(set_to_none=True)


# Wrong use.


def refuse(model: Any, error: type[Exception], *words: str, call: Callable[[], Any]) -> None:
    """Expect an error that says these words, and a model that nothing is attached to."""
    before = state(model)
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value), f"{word!r} is missing in {caught.value}"
    same(before, state(model))
    use(model, tda.Griffin(sparsity=0.5), None, "masked")  # and attaching is possible


@pytest.mark.parametrize("name", [name for name in METHODS if takes_sparsity(name)])
@pytest.mark.parametrize("sparsity", [1, 1.0, -0.1, 2, float("nan"), float("inf")])
def test_sparsity_out_of_range(name: str, sparsity: float) -> None:
    with pytest.raises(ValueError, match=r"0 <= sparsity < 1; got"):
        METHODS[name](sparsity=sparsity)


@pytest.mark.parametrize("name", [name for name in METHODS if takes_sparsity(name)])
@pytest.mark.parametrize("sparsity", ["0.5", [0.5], True, 0.5j])
def test_sparsity_of_a_wrong_type(name: str, sparsity: Any) -> None:
    with pytest.raises(TypeError, match="sparsity must be a number, got"):
        METHODS[name](sparsity=sparsity)


@pytest.mark.parametrize("name", [name for name in METHODS if takes_sparsity(name) and name not in ("tda", "tt")])
def test_no_sparsity_at_all(name: str) -> None:
    with pytest.raises(TypeError, match="sparsity must be a number, got None"):
        METHODS[name](sparsity=None)


@pytest.mark.parametrize("sparsity", [np.float64(0.5), 0, 0.999])
def test_good_sparsities(sparsity: float) -> None:
    for name in METHODS:
        if takes_sparsity(name):
            found = METHODS[name](sparsity=sparsity).sparsity
            assert found == sparsity
            assert type(found) is float


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tda.Griffin(rows="all"), "rows must be one of per_row, shared; got 'all'"),
        (lambda: tda.TDA(statistic="mean"), "statistic must be one of"),
        (lambda: tda.TDA(source="down"), "source must be one of"),
        (lambda: tda.TDA(allocation="none"), "allocation must be one of"),
        (lambda: tda.TDA(min_keep=0.5, max_keep=0.4), "min_keep <= max_keep"),
        (lambda: tda.TT(sparsity=0.5, cett=0.2), "not both"),
        (lambda: tda.TT(cett=1.0), "0 < cett < 1"),
        (lambda: tda.TT(cett=0.2, allocation="uniform"), "equal_error"),
        (lambda: tda.Dense(dense_kernel="fast"), "dense_kernel must be"),
        (lambda: METHODS["griffon"], "unknown method 'griffon'; known: cats, dense"),
    ],
)
def test_wrong_options(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if kind().needs_fit])
def test_missing_thresholds(name: str, llama: Any) -> None:
    method = METHODS[name](sparsity=0.5)
    call = functools.partial(use, llama, method, None, "auto")
    refuse(llama, ValueError, name, "needs thresholds", "method.fit(model", call=call)


def test_thresholds_of_a_wrong_type(llama: Any) -> None:
    call = functools.partial(use, llama, tda.TDA(), {"cuts": []}, "auto")
    refuse(llama, TypeError, "tda.Thresholds", "dict", call=call)


def test_thresholds_of_another_model(llama: Any) -> None:
    for other in ("qwen2", "opt"):
        thresholds = tiny.thresholds(other, tda.TDA())
        call = functools.partial(use, llama, tda.TDA(), thresholds, "auto")
        refuse(llama, ValueError, "belong to", "not to", call=call)


@pytest.mark.parametrize(
    ("method", "made_for"),
    [
        (tda.TDA(sparsity=0.25), tda.TDA(sparsity=0.5)),
        (tda.TDA(sparsity=0.5, statistic="l2"), tda.TDA(sparsity=0.5)),
        (tda.TDA(sparsity=0.5, source="gate"), tda.TDA(sparsity=0.5)),
        (tda.TT(sparsity=0.5), tda.TDA(sparsity=0.5)),
        (tda.CATS(sparsity=0.5), tda.TT(sparsity=0.5)),
        (tda.TT(sparsity=0.5, allocation="equal_error"), tda.TT(sparsity=0.5)),
        (tda.TDA(sparsity=0.5), tda.TDA(sparsity=0.5, statistic="relative")),
        (tda.StaticMean(sparsity=0.5), tda.CATS(sparsity=0.5)),
    ],
)
def test_thresholds_of_another_method(llama: Any, method: Method, made_for: Method) -> None:
    call = functools.partial(use, llama, method, tiny.thresholds("llama", made_for), "auto")
    refuse(llama, ValueError, "were calibrated for", f"not for {method.name}(", call=call)


def test_thresholds_serve_what_they_do_not_depend_on(llama: Any) -> None:
    """Rows and bounds of TDA, and the sparsity of static_mean, are chosen after calibration."""
    use(llama, tda.TDA(rows="shared", min_keep=0.1), tiny.thresholds("llama", tda.TDA()), "auto")
    use(llama, tda.StaticMean(sparsity=0.9), tiny.thresholds("llama", tda.StaticMean(sparsity=0.5)), "auto")


def test_unsupported_architecture_tells_where_the_supported_ones_stand() -> None:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": tiny.VOCABULARY}
    config = OpenAIGPTConfig(**sizes, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config).eval()
    before = state(model)
    with pytest.raises(ValueError, match=r"architecture 'openai-gpt' .*`tda models`"):
        use(model, tda.Griffin(sparsity=0.5), None, "auto")
    same(before, state(model))


def test_no_hugging_face_model() -> None:
    with pytest.raises(TypeError, match=r"decoder .*got Linear"):
        use(nn.Linear(2, 2), tda.Griffin(sparsity=0.5), None, "auto")


def test_a_base_model_without_head_is_refused_in_words(llama: Any) -> None:
    with pytest.raises(ValueError, match=r"expects 'model.layers' in LlamaModel"):
        use(llama.model, tda.Griffin(sparsity=0.5), None, "auto")


def test_adapted_weights_are_refused() -> None:
    class Quantised(nn.Linear):
        pass

    model = tiny.build("llama")
    model.model.layers[1].mlp.up_proj.__class__ = Quantised
    with pytest.raises(ValueError, match=r"layer 1: up .*Quantised, .*torch\.nn\.Linear"):
        use(model, tda.Griffin(sparsity=0.5), None, "auto")


def test_an_ffn_that_does_more_than_its_family_says_is_refused() -> None:
    """A multiplier that the family does not declare: the fast path would silently compute something else."""
    model = tiny.build("llama")
    mlp = model.model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda x: 1.5 * plain(x)
    with pytest.raises(ValueError, match="layer 1: the output of the FFN"):
        use(model, tda.Griffin(sparsity=0.5), None, "auto")
    del mlp.forward
    use(model, tda.Griffin(sparsity=0.5), None, "auto")


def test_no_method(llama: Any) -> None:
    for wrong in ("griffin", tda.Griffin, None):
        call = functools.partial(use, llama, wrong, None, "auto")
        refuse(llama, TypeError, "method must be a tda method such as", call=call)


@pytest.mark.parametrize("method", tiny.default_methods(), ids=tiny.case_id)
def test_wrong_executions(llama: Any, method: Method) -> None:
    thresholds = tiny.thresholds("llama", method)
    call = functools.partial(use, llama, method, thresholds, "fast")
    refuse(llama, ValueError, "execution must be one of auto, masked, compact, indexed; got 'fast'", call=call)
    for execution in ("masked", "compact", "indexed"):
        if execution not in method.executions:
            call = functools.partial(use, llama, method, thresholds, execution)
            refuse(llama, ValueError, f"cannot run '{execution}'; it can run", call=call)


@pytest.mark.parametrize(
    "method", [tda.CATS(), tda.TDA(source="gate"), tda.TDA(source="up")], ids=lambda m: str(m)[:20]
)
def test_methods_that_need_a_gate(opt: Any, method: Method) -> None:
    call = functools.partial(use, opt, method, None, "auto")
    refuse(opt, ValueError, "needs a gated FFN", call=call)
    with pytest.raises(ValueError, match="needs a gated FFN"):
        tda.calibrate(opt, method, [{"input_ids": tiny.text(1, 8)}])


def test_attach_inside_attach(llama: Any, opt: Any) -> None:
    before = state(llama)
    with tda.attach(llama, tda.Griffin(sparsity=0.5), execution="masked") as run:
        first = llama.generate(tiny.text(1, 6), max_new_tokens=4, do_sample=False)
        with pytest.raises(ValueError, match="already attached"):
            use(llama, tda.Magnitude(sparsity=0.5), None, "auto")
        use(opt, tda.Magnitude(sparsity=0.5), None, "auto")  # another model may be attached meanwhile
        assert torch.equal(first, llama.generate(tiny.text(1, 6), max_new_tokens=4, do_sample=False))
        assert run.execution == "masked"
    same(before, state(llama))


def attached(model: Any, call: Callable[[], Any]) -> None:
    with tda.attach(model, tda.Griffin(sparsity=0.5)):
        call()


@pytest.mark.parametrize("name", ["llama", "opt", "gemma2"])
def test_right_padded_prompt_in_generate(name: str) -> None:
    model = tiny.model(name)
    tokens, mask = tiny.padded(tiny.prompts((3, 6)), "right")
    options = {"attention_mask": mask.long(), "max_new_tokens": 2}
    call = functools.partial(attached, model, lambda: model.generate(tokens, **options))
    refuse(model, ValueError, "left padding", "padded on the right", "padding_side", call=call)


def test_generate_without_cache(llama: Any) -> None:
    prompt = tiny.text(1, 5)
    for options in ({"use_cache": False}, {"generation_config": GenerationConfig(use_cache=False, max_new_tokens=2)}):
        refuse(
            llama,
            ValueError,
            "key-value cache",
            "use_cache=False",
            call=functools.partial(attached, llama, lambda o=options: llama.generate(prompt, **o)),
        )


@pytest.mark.parametrize("where", ["generation_config", "positional"])
def test_generate_without_cache_by_the_models_own_config(where: str) -> None:
    model = tiny.build("llama")
    arguments: list[Any] = [tiny.text(1, 5)]
    if where == "generation_config":
        model.generation_config.update(use_cache=False, max_new_tokens=2)
    else:
        arguments.append(GenerationConfig(use_cache=False, max_new_tokens=2))
    with pytest.raises(ValueError, match="key-value cache"):
        attached(model, lambda: model.generate(*arguments))


def test_assisted_generation_is_refused(llama: Any) -> None:
    """Its first forward holds guessed tokens beside the prompt, which would count as prompt."""
    options = {"max_new_tokens": 4, "prompt_lookup_num_tokens": 2}
    call = functools.partial(attached, llama, lambda: llama.generate(tiny.text(1, 9), **options))
    refuse(llama, ValueError, "assisted generation", call=call)


def test_decode_on_a_foreign_cache(llama: Any) -> None:
    with torch.no_grad():
        cache = prefill(llama, tiny.text(1, 5)).cache
        call = functools.partial(attached, llama, lambda: decode(llama, tiny.text(1, 1), cache))
        with pytest.raises(ValueError, match=r"tokens that did not pass .*run\.prefill\(\)"):
            call()


def test_selection_before_any_prompt(llama: Any) -> None:
    with (
        tda.attach(llama, tda.Griffin(sparsity=0.5)) as run,
        pytest.raises(ValueError, match="no prompt was prefilled"),
    ):
        run.selection()
    thresholds = tiny.thresholds("llama", tda.TT())
    with torch.no_grad(), tda.attach(llama, tda.TT(), thresholds) as run:
        with run.prefill():
            prefill(llama, tiny.text(1, 4))
        with pytest.raises(ValueError, match=r"per token.*no decode step"):
            run.selection()
        with pytest.raises(ValueError, match="no selection per prompt"):
            run.attachment.policy.set_selection([])


def test_dense_keeps_everything(llama: Any) -> None:
    with torch.no_grad(), tda.attach(llama, tda.Dense()) as run:
        decode(llama, tiny.text(2, 1), prefill(llama, tiny.text(2, 4)).cache)
        assert [kept.shape for kept in run.selection()] == [(2, tiny.F)] * tiny.LAYERS
        assert all(kept.all() for kept in run.selection())
        assert run.achieved_sparsity() == [0.0] * tiny.LAYERS
        assert run.execution == "dense"


def test_every_declared_family_has_a_tiny_model() -> None:
    declared = {name for family in FAMILIES.values() for name in family.model_types}
    assert declared == {tiny.config(name).model_type for name in (*tiny.names(), *tiny.further(), *contract.MIXTURES)}


def test_users_see_two_phases_and_five_members(llama: Any) -> None:
    """What works behind them is one attribute."""
    with tda.attach(llama, tda.Dense()) as run:
        seen = {name for name in dir(run) if not name.startswith("_")} - {"attachment"}
    assert seen == {"prefill", "decode", "select", "selection", "achieved_sparsity", "execution", "backend"}

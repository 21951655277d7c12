"""A model that somebody altered is run as it is, by every execution, or refused in words before anything is attached.

The oracle of a fast path is the masked execution of the same altered model; that of dense kernels, the model alone.
"""

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import torch
from model_state import HOOKS
from torch import Tensor, nn

import tda
from tda.as_built import place_problem
from tda.contracts import Method
from tda.engine.phases import decode, prefill
from tda.methods import method
from tda.names import Execution

PROMPT, TOKENS = tiny.text(1, 9, seed=5), tiny.text(1, 3, seed=6)
FORWARDS = 1 + TOKENS.shape[1]
GRIFFIN, CATS, PLAIN = tda.Griffin(sparsity=0.5), tda.CATS(sparsity=0.5), tda.Dense()


class Use(NamedTuple):
    """A method as it is run, and what it must equal."""

    method: Method
    execution: Execution
    oracle: Method

    @property
    def id(self) -> str:
        return f"{self.method.name}-{self.execution}"


ALL = [
    *(Use(GRIFFIN, execution, GRIFFIN) for execution in ("auto", "compact", "indexed")),
    *(Use(CATS, execution, CATS) for execution in ("auto", "indexed")),
    Use(tda.Dense(dense_kernel="own"), "auto", PLAIN),
    Use(method("int8"), "auto", method("int8")),
]
each_use = pytest.mark.parametrize("use", ALL, ids=lambda use: use.id)


def answer(
    model: Any, chosen: Method, execution: Execution, call: Any = None, inside: Callable[[], Any] | None = None
) -> tuple[Tensor, Any]:
    """Logits [1, 4, V] of a prompt's last token and three more under a method, and the run; `call` is called."""
    called = model if call is None else call
    with torch.no_grad(), tda.attach(model, chosen, thresholds_for(model, chosen), execution=execution) as run:
        if inside is not None:
            inside()
        return feed(called), run


def thresholds_for(model: Any, chosen: Method) -> tda.Thresholds | None:
    """Thresholds of the tiny model; of another, calibrated on itself where its configuration differs."""
    known = tiny.thresholds("llama", chosen)
    config = getattr(model, "config", None)
    if known is None or config is None or config.to_diff_dict() == tiny.model("llama").config.to_diff_dict():
        return known
    return tda.calibrate(model, chosen, [{"input_ids": tiny.text(4, 32, seed=50)}], progress=False)


@torch.no_grad()
def feed(called: Any) -> Tensor:
    """Logits [1, 4, V] of a prompt's last token and three more, one by one."""
    first, cache = prefill(called, PROMPT)
    steps = [decode(called, TOKENS[:, place : place + 1], cache) for place in range(TOKENS.shape[1])]
    return torch.cat([first[:, -1:], *steps], 1)


def assert_close(ours: Tensor, theirs: Tensor, what: str, tolerance: float = 1e-5) -> None:
    apart = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
    assert apart <= tolerance, f"{what}: apart by {apart:.1e} of their scale"


def right(
    model: Any,
    uses: list[Use] = ALL,
    *,
    call: Any = None,
    inside: Callable[[], Any] | None = None,
    tolerance: float = 1e-5,
    may_refuse: str | None = None,
) -> None:
    """Every use gives what its oracle gives; one that names an execution may refuse, saying `may_refuse`."""
    oracles: dict[Method, Tensor] = {}
    for use in uses:
        if use.oracle not in oracles:
            execution: Execution = "auto" if use.oracle is PLAIN else "masked"
            oracles[use.oracle] = answer(model, use.oracle, execution, call, inside)[0]
        try:
            logits, _ = answer(model, use.method, use.execution, call, inside)
        except ValueError as error:
            if may_refuse is None or use.execution == "auto" or may_refuse not in str(error):
                raise AssertionError(use.id) from error
            continue
        assert_close(logits, oracles[use.oracle], use.id, tolerance)


def differs(model: Any, base: Any = None, call: Any = None) -> None:
    """The alteration matters: dense, and under every oracle, the logits are not those of the model that was not."""
    plain = tiny.model("llama") if base is None else base
    for chosen in (PLAIN, GRIFFIN, CATS):
        execution: Execution = "auto" if chosen is PLAIN else "masked"
        ours, theirs = answer(model, chosen, execution, call)[0], answer(plain, chosen, execution)[0]
        apart = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
        assert apart > 1e-3, f"{chosen.name}: what was altered does not show"


def traces(model: nn.Module) -> list[Any]:
    """What attaching could leave on a model, without running it."""
    return [
        (path, sorted(vars(module)), [list(getattr(module, name)) for name in HOOKS], vars(module).get("forward"))
        for path, module in model.named_modules()
    ]


def refused(model: Any, *words: str, uses: list[Use] = ALL, error: type[Exception] = ValueError) -> None:
    """Every use is refused in these words; the model stays as it was, and another can be attached."""
    before = traces(model)
    for use in uses:
        with pytest.raises(error) as caught:
            answer(model, use.method, use.execution)
        for word in words:
            assert word in str(caught.value), f"{use.id}: {word!r} is missing in {caught.value}"
        assert traces(model) == before
    answer(tiny.model("llama"), GRIFFIN, "auto")


def is_whole(model: Any, use: Use = ALL[0]) -> bool:
    """Whether a use runs whole steps."""
    return answer(model, use.method, use.execution)[1].attachment.decoding.step is not None


def layer(model: Any, number: int = 1) -> Any:
    return model.model.layers[number]


def part(model: Any, path: str) -> Any:
    """A module by its path; those of a layer are those of layer 0."""
    return model if not path else model.get_submodule(path.replace("layer", "model.layers.0", 1))


# Weights.


def test_a_plain_model_runs_whole_steps(kernels_in_c: None) -> None:
    for use in ALL:
        assert is_whole(tiny.model("llama"), use), use.id
    right(tiny.model("llama"))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)], ids=str
)
def test_other_types(dtype: torch.dtype, tolerance: float) -> None:
    right(tiny.build("llama").to(dtype), tolerance=tolerance, may_refuse="float")


def test_some_parts_of_another_type() -> None:
    model = tiny.build("llama")
    model.lm_head.to(torch.float64).register_forward_pre_hook(lambda module, args: (args[0].double(),))
    right(model)
    model = tiny.build("llama")
    linear = layer(model).self_attn.o_proj.to(torch.bfloat16)
    linear.forward = lambda x: type(linear).forward(linear, x.bfloat16()).float()
    right(model, ALL[:-1])
    refused(model, "int8", "model.layers.1.self_attn.o_proj", "has a forward of its own", uses=ALL[-1:])


def test_tied_embeddings() -> None:
    model = tiny.build("llama", tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    right(model)
    tables = model.lm_head.weight, model.model.embed_tokens.weight
    assert tables[0] is tables[1]


@pytest.mark.parametrize("names", [("up_proj",), ("down_proj",), ("gate_proj", "up_proj", "down_proj")], ids=str)
def test_layers_that_share_weights(names: tuple[str, ...]) -> None:
    """Shared parameters are read by both layers, in any layout."""
    model = tiny.build("llama")
    for name in names:
        getattr(layer(model, 1).mlp, name).weight = getattr(layer(model, 0).mlp, name).weight
    differs(model)
    before = feed(model)
    right(model)
    assert getattr(layer(model, 1).mlp, names[0]).weight is getattr(layer(model, 0).mlp, names[0]).weight
    assert torch.equal(feed(model), before)


def test_layers_that_share_attention() -> None:
    model = tiny.build("llama")
    layer(model, 1).self_attn.q_proj = layer(model, 0).self_attn.q_proj
    layer(model, 1).self_attn.o_proj.weight = layer(model, 0).self_attn.o_proj.weight
    differs(model)
    right(model)


def test_one_linear_for_gate_and_up() -> None:
    model = tiny.build("llama")
    layer(model).mlp.up_proj = layer(model).mlp.gate_proj
    differs(model)
    right(model)


@pytest.mark.parametrize("name", ["mlp", "mlp.down_proj", ""])
def test_layers_that_share_modules_are_refused(name: str) -> None:
    model = tiny.build("llama")
    if name:
        owner = layer(model) if name == "mlp" else layer(model).mlp
        setattr(owner, name.split(".")[-1], layer(model, 0).get_submodule(name))
    else:
        model.model.layers[1] = model.model.layers[0]
    refused(model, "layers 0 and 1 share", "needs weights of its own")


def test_parameters_on_several_devices() -> None:
    from torch._subclasses import FakeTensorMode

    model = tiny.build("llama")
    with FakeTensorMode():
        model.lm_head.weight = nn.Parameter(torch.empty(tiny.VOCABULARY, tiny.D, device="cuda"))
    assert place_problem(model) is not None
    refused(model, "its weights are spread over", "cuda:0 (lm_head)", "cpu (model.", "without offload or sharding")


def test_weights_without_data() -> None:
    on_meta = tiny.build("llama")
    on_meta.lm_head.to("meta")
    refused(on_meta, "lm_head.weight holds no data: it is on the device 'meta'")
    refused(tiny.build("llama").to("meta"), "holds no data: it is on the device 'meta'")
    for name in ("self_attn.q_proj", "mlp.up_proj"):
        freed = tiny.build("llama")
        layer(freed).get_submodule(name).weight.untyped_storage().resize_(0)
        refused(freed, f"layers.1.{name}.weight holds no data", "its memory was given back")


def test_sparse_weights() -> None:
    for name in ("self_attn.q_proj", "mlp.up_proj"):
        model = tiny.build("llama")
        linear = layer(model).get_submodule(name)
        linear.weight = nn.Parameter(linear.weight.detach().to_sparse())
        if "mlp" in name:
            refused(model, "layer 1: up", "is sparse")
        else:
            right(model, ALL[:-1])
            refused(model, "int8", "layers.1.self_attn.q_proj", "is sparse", uses=ALL[-1:])


# Weights that are computed.


def old_weight_norm(linear: nn.Linear) -> None:
    from torch.nn.utils import weight_norm

    with pytest.warns(FutureWarning, match="weight_norm"):
        weight_norm(linear)
    linear.weight_g.data *= 1.5  # type: ignore[operator]


def new_weight_norm(linear: nn.Linear) -> None:
    from torch.nn.utils import parametrizations

    parametrizations.weight_norm(linear)
    linear.parametrizations.weight.original0.data *= 1.5  # type: ignore[union-attr]


def pruned(linear: nn.Linear) -> None:
    from torch.nn.utils import prune

    prune.l1_unstructured(linear, "weight", amount=0.5)


def old_spectral_norm(linear: nn.Linear) -> None:
    from torch.nn.utils import spectral_norm

    spectral_norm(linear)
    linear.eval()


def new_spectral_norm(linear: nn.Linear) -> None:
    from torch.nn.utils import parametrizations

    parametrizations.spectral_norm(linear)
    linear.eval()


COMPUTED = [old_weight_norm, new_weight_norm, pruned, old_spectral_norm, new_spectral_norm]


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("compute", COMPUTED, ids=lambda compute: compute.__name__)
def test_computed_weights(compute: Callable[[nn.Linear], None]) -> None:
    """In the attention they are right, save that int8 has nothing to round; in an FFN they are refused."""
    model = tiny.build("llama")
    answer(model, GRIFFIN, "auto")
    compute(layer(model).self_attn.v_proj)
    differs(model)
    right(model, ALL[:-1])
    refused(model, "int8", "model.layers.1.self_attn.v_proj", uses=ALL[-1:])
    for name in ("up_proj", "down_proj"):
        model = tiny.build("llama")
        compute(getattr(layer(model).mlp, name))
        refused(model, f"layer 1: {name.removesuffix('_proj')} ", "adapted weights")


def test_pruned_for_good() -> None:
    from torch.nn.utils import prune

    model = tiny.build("llama")
    for name in ("self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"):
        linear = layer(model).get_submodule(name)
        pruned(linear)
        prune.remove(linear, "weight")
    differs(model)
    right(model)
    assert is_whole(model)


# Forwards of single modules.


def scaled(value: Any, factor: float = 1.25) -> Any:
    """What a module gave, its tensor times a factor."""
    if isinstance(value, Tensor):
        return value * factor
    if isinstance(value, tuple):
        return (scaled(value[0], factor), *value[1:])
    name = "logits" if value.get("logits") is not None else "last_hidden_state"
    other = copy.copy(value)
    other[name] = scaled(value[name], factor)
    return other


def scaling_forward(module: nn.Module, calls: list[int], factor: float = 1.25) -> Callable[..., Any]:
    own = module.forward

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        output = own(*args, **kwargs)
        return output if factor == 1 else scaled(output, factor)

    return forward


OUTSIDE = ("layer.self_attn.v_proj", "layer.self_attn.o_proj", "layer.self_attn", "layer.input_layernorm", "layer")
OUTSIDE = (*OUTSIDE, "model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head", "model", "")
FEW_OUTSIDE = ("layer.self_attn.v_proj", "layer", "model.norm", "")
"""A linear, a module with parts, one without weights of two dimensions, and the model."""
FFN = ("layer.mlp", "layer.mlp.gate_proj", "layer.mlp.up_proj", "layer.mlp.act_fn", "layer.mlp.down_proj")


@pytest.mark.parametrize(
    "path",
    [path if path in FEW_OUTSIDE else pytest.param(path, marks=pytest.mark.slow) for path in OUTSIDE],
    ids=lambda path: path or "itself",
)
def test_a_replaced_forward_is_run(path: str, kernels_in_c: None) -> None:
    model = tiny.build("llama")
    assert is_whole(model)
    module = part(model, path)
    calls: list[int] = []
    module.forward = scaling_forward(module, calls)  # between two attaches
    uses = [use for use in ALL if use.method.name != "int8" or type(module) is not nn.Linear]
    differs(model)
    right(model, uses)
    assert not is_whole(model)
    for use in uses:
        answer(model, use.method, use.execution, inside=calls.clear)
        assert len(calls) == FORWARDS, use.id
    if len(uses) < len(ALL):
        refused(model, "int8", "has a forward of its own", uses=ALL[-1:])
    del module.forward
    right(model)
    assert all(is_whole(model, use) for use in ALL)
    fresh = tiny.build("llama")
    part(fresh, path).forward = scaling_forward(part(fresh, path), calls)  # before the first attach
    right(fresh, uses)


@pytest.mark.parametrize("path", FFN)
def test_a_replaced_forward_in_an_ffn(path: str, kernels_in_c: None) -> None:
    """One that computes something else is refused; one that only looks is called."""
    model = tiny.build("llama")
    assert is_whole(model)
    module = part(model, path)
    calls: list[int] = []
    module.forward = scaling_forward(module, calls)
    if path.endswith("act_fn"):  # an activation is the model's own wherever it is run
        differs(model)
        right(model, may_refuse="would leave out what was added to the model: layer 0")
    else:
        refused(model, "layer 0", "does more than its family declares")
    del module.forward
    module.forward = scaling_forward(module, calls, 1)
    uses = [use for use in ALL if use.method.name != "int8" or type(module) is not nn.Linear]
    right(model, uses, may_refuse="would leave out what was added to the model: layer 0")
    for use in uses:
        if use.execution == "auto":
            answer(model, use.method, use.execution, inside=calls.clear)
            assert len(calls) == FORWARDS, use.id
    del module.forward
    assert all(is_whole(model, use) for use in ALL)


# Classes and functions.


def patched_classes() -> list[tuple[type, str]]:
    from transformers.models.llama import modeling_llama as llama

    names = ("LlamaAttention", "LlamaDecoderLayer", "LlamaRMSNorm", "LlamaModel", "LlamaForCausalLM", "LlamaMLP")
    return [(getattr(llama, name), name) for name in (*names, "LlamaRotaryEmbedding")] + [(nn.Linear, "Linear")]


@pytest.mark.parametrize(("kind", "name"), patched_classes(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_class_that_is_patched(kind: Any, name: str, monkeypatch: pytest.MonkeyPatch, kernels_in_c: None) -> None:
    model = tiny.build("llama")
    assert is_whole(model)
    own = kind.forward
    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", functools.wraps(own)(lambda *args, **kwargs: scaled(own(*args, **kwargs))))
        if name in ("LlamaMLP", "Linear"):
            refused_while_patched(model, "does more than its family declares")
        else:
            base = feed(model)
            right(model)
            assert torch.equal(feed(model), base)
    assert not torch.allclose(feed(model), feed_patched(model, kind, own)), "the patch matters"
    right(model)
    assert is_whole(model)


def feed_patched(model: Any, kind: Any, own: Any) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "forward", functools.wraps(own)(lambda *args, **kwargs: scaled(own(*args, **kwargs))))
        return feed(model)


def refused_while_patched(model: Any, words: str) -> None:
    for use in ALL:
        with pytest.raises(ValueError, match=words):
            answer(model, use.method, use.execution)


class Scaled(nn.Linear):
    """A linear that computes more than its weights say."""

    def forward(self, x: Tensor) -> Tensor:
        return scaled(super().forward(x))


def test_subclasses_of_linears() -> None:
    for name in ("self_attn.v_proj", "self_attn.o_proj"):
        model = tiny.build("llama")
        answer(model, GRIFFIN, "auto")
        layer(model).get_submodule(name).__class__ = Scaled
        differs(model)
        right(model, ALL[:-1])
        refused(model, "int8", f"layers.1.{name}", "Scaled, not a plain torch.nn.Linear", uses=ALL[-1:])
    model = tiny.build("llama")
    model.lm_head.__class__ = Scaled
    right(model, ALL[:-1])
    for name in ("gate_proj", "up_proj", "down_proj"):
        model = tiny.build("llama")
        getattr(layer(model).mlp, name).__class__ = Scaled
        refused(model, f"layer 1: {name.removesuffix('_proj')} is a ", "Scaled, not a plain torch.nn.Linear")


@pytest.mark.parametrize("name", ["apply_rotary_pos_emb", "eager_attention_forward", "repeat_kv"])
def test_a_function_of_the_models_code_that_is_patched(
    name: str, monkeypatch: pytest.MonkeyPatch, kernels_in_c: None
) -> None:
    from transformers.models.llama import modeling_llama

    model = tiny.build("llama", attn_implementation="eager")
    assert is_whole(model)
    base = feed(model)
    own = getattr(modeling_llama, name)
    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama, name, lambda *args, **kwargs: scaled(own(*args, **kwargs)))
        assert not torch.allclose(feed(model), base)
        right(model)
    right(model)
    assert is_whole(model)


def test_an_attention_of_ones_own(monkeypatch: pytest.MonkeyPatch, kernels_in_c: None) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = tiny.build("llama")
    implementation = model.config._attn_implementation
    assert is_whole(model)
    base = feed(model)
    own, table = ALL_ATTENTION_FUNCTIONS[implementation], ALL_ATTENTION_FUNCTIONS._global_mapping
    for name in ("tda_test", implementation):
        with monkeypatch.context() as patch:
            patch.setitem(table, name, lambda *args, **kwargs: scaled(own(*args, **kwargs)))
            model.config._attn_implementation = name
            assert not torch.allclose(feed(model), base)
            right(model)
        model.config._attn_implementation = implementation
    assert is_whole(model)


def test_attention_is_switched_between_two_attaches() -> None:
    model = tiny.build("llama")
    for implementation in ("eager", "sdpa", "eager"):
        model.set_attn_implementation(implementation)
        right(model)


def test_a_value_is_changed_between_two_attaches() -> None:
    model = tiny.build("gemma2")
    answer(model, GRIFFIN, "auto")
    model.config.final_logit_softcapping = 0.5
    uses = [ALL[0], ALL[-2]]
    right(model, uses)
    for name, value in (("scaling", 0.7), ("is_causal", True), ("attn_logit_softcapping", 0.5), ("sliding_window", 3)):
        for number in range(tiny.LAYERS):
            setattr(layer(model, number).self_attn, name, value)
        right(model, uses)
    layer(model).input_layernorm.eps = 0.5
    right(model, uses)
    model = tiny.build("llama")
    answer(model, GRIFFIN, "auto")
    model.model.rotary_emb.attention_scaling = 1.5
    layer(model).post_attention_layernorm.variance_epsilon = 0.7
    differs(model)
    right(model)


# Hooks.


def scaling_hooks(calls: list[int], factor: float = 1.25) -> dict[str, Callable[[nn.Module], Any]]:
    """How hooks of each kind are registered: they count, and change what a module gives, or what it gets."""

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        calls.append(1)
        return None if factor == 1 else scaled(output, factor)

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        calls.append(1)
        if factor == 1:
            return None
        if args:
            return (changed(args[0], factor), *args[1:]), kwargs
        name = next(name for name, value in kwargs.items() if value is not None)
        return args, kwargs | {name: changed(kwargs[name], factor)}

    return {
        "after": lambda module: module.register_forward_hook(after),
        "before": lambda module: module.register_forward_pre_hook(before, with_kwargs=True),
    }


def changed(given: Tensor, factor: float) -> Tensor:
    """What a module gets, scaled; other tokens."""
    return given * factor if given.is_floating_point() else (given + 1) % tiny.VOCABULARY


def answer_hooked(
    model: Any, path: str, add: Callable[[nn.Module], Any], chosen: Method, execution: Execution
) -> tuple[Tensor, Any]:
    """As `answer`, with a hook that is set inside the block."""
    handles: list[Any] = []
    try:
        return answer(model, chosen, execution, inside=lambda: handles.append(add(part(model, path))))
    finally:
        handles[0].remove()


@pytest.mark.parametrize(
    "path",
    [path if path in FEW_OUTSIDE else pytest.param(path, marks=pytest.mark.slow) for path in OUTSIDE],
    ids=lambda path: path or "itself",
)
def test_hooks_are_called(path: str, kernels_in_c: None) -> None:
    """Those that were set before attach, and those that are set inside the block."""
    model = tiny.build("llama")
    base = feed(model)
    calls: list[int] = []
    uses = [ALL[0], ALL[-2]]
    for kind, add in scaling_hooks(calls).items():
        handle = add(part(model, path))
        right(model, uses)
        before = {use.id: answer(model, use.method, use.execution, inside=calls.clear)[0] for use in uses}
        assert len(calls) == FORWARDS, kind
        handle.remove()
        if kind == "after":
            assert not torch.allclose(before[uses[-1].id], base, rtol=1e-3), "it changes what the model computes"
        for use in uses:
            calls.clear()
            logits, run = answer_hooked(model, path, add, use.method, use.execution)
            assert run.attachment.decoding.step is not None
            assert len(calls) == FORWARDS, f"{use.id}, {kind}, inside"
            assert_close(logits, before[use.id], f"{use.id}, {kind}, inside")
    assert all(is_whole(model, use) for use in uses)


def test_hooks_that_only_look_are_called(kernels_in_c: None) -> None:
    model = tiny.build("llama")
    calls: list[int] = []
    for path in (*OUTSIDE[::3], *FFN):
        for add in scaling_hooks(calls, 1).values():
            handle = add(part(model, path))
            for use in (ALL[0], ALL[3], ALL[-1]):
                logits, _ = answer(model, use.method, use.execution, inside=calls.clear)
                assert len(calls) == FORWARDS, f"{use.id}, {path}"
                assert_close(logits, answer(tiny.model("llama"), use.method, "masked")[0], f"{use.id}, {path}")
            handle.remove()


@pytest.mark.parametrize("path", FFN)
def test_hooks_in_an_ffn_are_called(path: str, kernels_in_c: None) -> None:
    """Before attach, what changes the FFN itself is refused, save its activation; inside, hooks are called."""
    model = tiny.build("llama")
    calls: list[int] = []
    for kind, add in scaling_hooks(calls).items():
        handle = add(part(model, path))
        if path.endswith("act_fn") or (path, kind) == (FFN[0], "before"):
            right(model, may_refuse="would leave out what was added to the model: layer 0")
        else:
            refused(model, "layer 0", "does more than its family declares")
        handle.remove()
        for use in (ALL[0], ALL[1], ALL[3]):
            oracle, _ = answer_hooked(model, path, add, use.oracle, "masked")
            calls.clear()
            logits, run = answer_hooked(model, path, add, use.method, use.execution)
            assert run.attachment.decoding.step is not None
            assert len(calls) == FORWARDS, f"{use.id}, {kind}, inside"
            assert_close(logits, oracle, f"{use.id}, {kind}, inside")
    assert is_whole(model)


def test_hooks_for_every_module(kernels_in_c: None) -> None:
    from torch.nn.modules import module as every

    model = tiny.build("llama")
    assert is_whole(model)
    seen: list[str] = []

    def look(module: nn.Module, *rest: Any) -> Any:
        seen.append(type(module).__name__)

    def change(module: nn.Module, args: Any, output: Any) -> Any:
        return scaled(output) if type(module).__name__ == "LlamaAttention" else None

    kinds = {type(module).__name__ for module in model.modules()} - {"ModuleList"}
    for register in (every.register_module_forward_hook, every.register_module_forward_pre_hook):
        for when in ("before", "inside"):
            for use in (ALL[0], ALL[3], ALL[-2]):
                handles = [register(look)] if when == "before" else []
                inside = seen.clear if when == "before" else lambda r=register, h=handles: h.append(r(look))
                try:
                    answer(model, use.method, use.execution, inside=inside)
                finally:
                    handles[0].remove()
                assert kinds == set(seen), f"{use.id}, {when}"
                assert seen.count("LlamaMLP") == tiny.LAYERS * FORWARDS
                assert seen.count("SiLUActivation") + seen.count("SiLU") == tiny.LAYERS * FORWARDS
                seen.clear()
    handle = every.register_module_forward_hook(change)
    try:
        differs_from = feed(model)
        right(model, may_refuse="would leave out what was added to the model: layer 0")
    finally:
        handle.remove()
    assert not torch.allclose(differs_from, feed(model))
    assert is_whole(model)


def test_hooks_beside_inert_ones(kernels_in_c: None) -> None:
    """What transformers leaves on a model costs no fast path, and hides no hook that is set beside it."""
    model = tiny.build("llama")
    model(PROMPT, output_hidden_states=True, output_attentions=True)
    assert any(module._forward_hooks for module in model.modules())
    calls: list[int] = []
    base = answer(model, GRIFFIN, "auto")[0]
    assert all(is_whole(model, use) for use in ALL)
    for path in ("layer", "layer.self_attn", "model"):
        calls.clear()
        logits, _ = answer_hooked(model, path, scaling_hooks(calls)["after"], GRIFFIN, "auto")
        assert len(calls) == FORWARDS
        assert not torch.allclose(logits, base)


def test_hidden_states_are_asked_for_inside(kernels_in_c: None) -> None:
    """Transformers installs its hooks then, and whole steps run on."""
    model = tiny.build("llama")
    base = answer(model, GRIFFIN, "auto")[0]
    with torch.no_grad(), tda.attach(model, GRIFFIN) as run:
        cache = prefill(model, PROMPT).cache
        asked = model(TOKENS[:, :1], output_hidden_states=True, **tiny.on(model, cache))
        assert len(asked.hidden_states) == tiny.LAYERS + 1
        assert not run.attachment.new_hooks
        assert_close(feed(model), base, "afterwards")


# torch.compile. The backend "eager" traces as every other does, and compiles nothing in C++.

compiled = functools.partial(torch.compile, backend="eager")


def compile_forward(module: Any) -> None:
    module.forward = compiled(module.forward)


def compile_in_place(module: Any) -> None:
    module.compile(backend="eager")


SLOW = [pytest.param(path, marks=pytest.mark.slow) for path in ("model", "layer.mlp", "lm_head")]


@pytest.mark.parametrize("path", ["", "layer", *SLOW], ids=lambda path: path or "itself")
@pytest.mark.parametrize("change", [compile_forward, compile_in_place], ids=lambda change: change.__name__)
def test_compiled_models_are_refused(path: str, change: Callable[[Any], None]) -> None:
    model = tiny.build("llama")
    answer(model, GRIFFIN, "auto")
    change(part(model, path))
    name = path.replace("layer", "model.layers.0", 1) or "the model"
    refused(model, f"{name} is compiled by torch.compile", "give a model that is not compiled", uses=ALL[::3])


def test_compiled_wrappers_are_refused() -> None:
    model = tiny.build("llama")
    refused(compiled(model), "OptimizedModule is a compiled model", "give `model._orig_mod`", uses=ALL[::3])
    right(model)
    model.model.layers[1] = compiled(model.model.layers[1])
    refused(model, "model.layers.1 is compiled by torch.compile", uses=ALL[::3])


def test_a_forward_that_is_kept_from_the_compiler_is_not_compiled() -> None:
    model = tiny.build("llama")
    model.forward = torch.compiler.disable(model.forward)
    right(model, ALL[::3])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(compile_forward, id="forward"),
        pytest.param(compiled, id="wrapper", marks=pytest.mark.slow),
        pytest.param(compile_in_place, id="place", marks=pytest.mark.slow),
    ],
)
def test_compiling_inside_the_block(change: Callable[[Any], Any]) -> None:
    """What is compiled there runs the attached method, and its whole steps."""
    for use in (ALL[0], ALL[-2]):
        torch._dynamo.reset()
        model = tiny.build("llama")
        base = feed(model)
        execution: Execution = "auto" if use.oracle is PLAIN else "masked"
        oracle, _ = answer(model, use.oracle, execution)
        with tda.attach(model, use.method, thresholds_for(model, use.method), execution=use.execution):
            called = change(model)
            assert_close(feed(model if called is None else called), oracle, use.id)
        assert_close(feed(model), base, "after the block")
    torch._dynamo.reset()


# Adapters by PEFT.

BY_PEFT = pytest.mark.filterwarnings(
    "ignore:.*(is_gradient_checkpointing|past_key_values|Position ids are not supported|_checkpointing)"
)


def with_lora(model: Any, *targets: str) -> Any:
    """A PEFT wrapper with two adapters that change what is computed; "default" is active."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=4, lora_alpha=16, target_modules=list(targets), init_lora_weights=False)
    wrapper = get_peft_model(model, settings)
    wrapper.add_adapter("other", settings)
    return wrapper.eval()


def generated(called: Any) -> Tensor:
    """Logits of each step of a generate: [N, V]."""
    options = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return torch.cat(called.generate(input_ids=PROMPT, **options).logits)


@BY_PEFT
@pytest.mark.parametrize("targets", [("q_proj", "v_proj", "o_proj"), ("lm_head",)], ids=str)
def test_adapters_outside_the_ffn(targets: tuple[str, ...]) -> None:
    """The base model is attached to, and called by itself or through the wrapper."""
    plain = tiny.build("llama")
    answer(plain, GRIFFIN, "auto")
    wrapper = with_lora(plain, *targets)
    refused(wrapper, "PeftModel wraps the model: give `model.get_base_model()`", uses=ALL[::3])
    model = wrapper.get_base_model()
    differs(model)
    right(model)
    right(model, ALL[::3], call=wrapper)
    for use in ALL[::3]:
        execution: Execution = "auto" if use.oracle is PLAIN else "masked"
        oracle = generated_under(model, wrapper, use.oracle, execution)
        assert_close(generated_under(model, wrapper, use.method, use.execution), oracle, f"{use.id}, generate")


def generated_under(model: Any, called: Any, chosen: Method, execution: Execution) -> Tensor:
    with tda.attach(model, chosen, thresholds_for(model, chosen), execution=execution):
        return generated(called)


@BY_PEFT
def test_adapters_between_two_attaches() -> None:
    """Switched, disabled, trained, merged: every attach sees the adapters as they are then."""
    wrapper = with_lora(tiny.build("llama"), "v_proj", "o_proj")
    model = wrapper.get_base_model()
    seen = [answer(model, GRIFFIN, "auto")[0]]

    def is_new() -> None:
        right(model, ALL[::3])
        logits = answer(model, GRIFFIN, "auto")[0]
        assert not any(torch.allclose(logits, one, rtol=1e-4) for one in seen)
        seen.append(logits)

    wrapper.set_adapter("other")
    is_new()
    optimiser = torch.optim.SGD((one for one in wrapper.parameters() if one.requires_grad), lr=1.0)
    wrapper(input_ids=PROMPT, labels=PROMPT).loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    is_new()
    with wrapper.disable_adapter():
        right(model, ALL[::3])
        assert_close(answer(model, GRIFFIN, "auto")[0], answer(tiny.model("llama"), GRIFFIN, "masked")[0], "disabled")
    wrapper.merge_adapter()
    right(model, ALL[::3])
    assert_close(answer(model, GRIFFIN, "auto")[0], seen[-1], "merged")
    wrapper.unmerge_adapter()
    assert_close(answer(model, GRIFFIN, "auto")[0], seen[-1], "unmerged")
    assert_close(answer(wrapper.merge_and_unload(), GRIFFIN, "auto")[0], seen[-1], "merged for good")
    assert is_whole(model)


@BY_PEFT
@pytest.mark.parametrize("name", ["merge_adapter", "unmerge_adapter", "set_adapter"])
def test_adapters_inside_the_block(name: str) -> None:
    """Those outside the FFN may be merged and switched there: the modules that compute them are live."""
    for use in ALL[:-1:2]:
        wrapper = with_lora(tiny.build("llama"), "v_proj", "o_proj")
        model = wrapper.get_base_model()
        change = functools.partial(getattr(wrapper, name), *(["other"] if name == "set_adapter" else []))
        if name == "unmerge_adapter":
            wrapper.merge_adapter()
        before, _ = answer(model, use.method, use.execution)
        logits, _ = answer(model, use.method, use.execution, inside=change)
        if name == "set_adapter":
            assert not torch.allclose(logits, before, rtol=1e-4)
        else:
            assert_close(logits, before, use.id, 1e-4)
        assert_close(answer(model, use.method, use.execution)[0], logits, f"{use.id}, afterwards")


@BY_PEFT
@pytest.mark.parametrize("name", ["gate_proj", "up_proj", "down_proj"])
def test_adapters_in_the_ffn(name: str) -> None:
    """They are refused until they are merged."""
    wrapper = with_lora(tiny.build("llama"), name)
    refused(wrapper.get_base_model(), f"layer 0: {name[:-5]} is a peft", "merge_and_unload", uses=ALL[::3])
    model = wrapper.merge_and_unload()
    differs(model)
    right(model)
    assert is_whole(model)


@BY_PEFT
@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens(kind: str) -> None:
    """They are prompt, or a cache that is refused; never something else than the masked execution."""
    import peft

    wrapper = peft.get_peft_model(tiny.build("llama"), getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3))
    wrapper.eval()
    model = wrapper.get_base_model()
    plain = generated(wrapper)
    for use in ALL[::3]:
        execution: Execution = "auto" if use.oracle is PLAIN else "masked"
        oracle = generated_under(model, wrapper, use.oracle, execution)
        assert_close(generated_under(model, wrapper, use.method, use.execution), oracle, use.id)
    assert_close(generated_under(model, wrapper, PLAIN, "auto"), plain, "dense")


@BY_PEFT
def test_calibration_with_adapters() -> None:
    """Thresholds are those of the adapted model; what cannot be attached to is not calibrated on."""
    batches = [{"input_ids": tiny.text(4, 32, seed=50)}]
    plain = tda.calibrate(tiny.model("llama"), CATS, batches, progress=False)
    wrapper = with_lora(tiny.build("llama"), "v_proj", "o_proj")
    adapted = tda.calibrate(wrapper.get_base_model(), CATS, batches, progress=False)
    assert adapted.cuts != plain.cuts
    merged = tda.calibrate(wrapper.merge_and_unload(), CATS, batches, progress=False)
    torch.testing.assert_close(torch.tensor(merged.cuts), torch.tensor(adapted.cuts), rtol=1e-4, atol=0)
    wrapper = with_lora(tiny.build("llama"), "up_proj")
    for wrong, words in ((wrapper, "get_base_model"), (wrapper.get_base_model(), "layer 0: up is a peft")):
        with pytest.raises(ValueError, match=words):
            tda.calibrate(wrong, CATS, batches, progress=False)
    hooked = tiny.build("llama")
    scaling_hooks([])["after"](layer(hooked).self_attn)
    assert tda.calibrate(hooked, CATS, batches, progress=False).cuts != plain.cuts


# Weights elsewhere, by accelerate.


def test_offloaded_models_are_refused(tmp_path: Path) -> None:
    from accelerate import cpu_offload, disk_offload

    model = tiny.build("llama")
    refused(cpu_offload(model, "cpu"), "holds no data: it is on the device 'meta'", "offload", uses=ALL[::3])
    model = tiny.build("llama")
    disk_offload(model, str(tmp_path), "cpu")
    refused(model, "holds no data: it is on the device 'meta'", "offload", uses=ALL[::3])


def test_dispatched_to_one_device() -> None:
    """Its hooks replace every forward, and run."""
    from accelerate import dispatch_model

    model = tiny.build("llama")
    base = feed(model)
    dispatch_model(model, {"model": "cpu", "lm_head": "cpu"}, force_hooks=True)
    assert "forward" in vars(model.lm_head)
    right(model, ALL[:-1], may_refuse="would leave out what was added")
    refused(model, "int8", "has a forward of its own", uses=ALL[-1:])
    assert_close(answer(model, PLAIN, "auto")[0], base, "dense")


# Quantised linears.

TORCHAO = Path(sys.prefix) / "misuse"
BY_TORCHAO = """
import warnings

warnings.simplefilter("ignore")
import tiny
import torch
from test_altered_models import ALL, differs, refused, right
from torchao.quantization import Int8WeightOnlyConfig, quantize_



def quantised(parts):
    model = tiny.build("llama")
    is_part = lambda module, path: isinstance(module, torch.nn.Linear) and path.startswith(parts)
    quantize_(model, Int8WeightOnlyConfig(version=2), filter_fn=is_part)
    return model


for parts in ("model.layers.1.self_attn", "lm_head"):
    model = quantised(parts)
    differs(model)
    right(model, ALL[:-1])
    refused(model, "int8", parts, "a tensor class with an arithmetic of its own", uses=ALL[-1:])
refused(quantised(""), "layer 0: gate has a weight that is a torchao", "a tensor class with an arithmetic of its own")
"""


@pytest.mark.slow
def test_weights_of_torchao() -> None:
    """Of the attention, the head, and all; in a process of its own, as transformers imports torchao if it can."""
    if not TORCHAO.is_dir():
        pytest.skip(f"torchao is not in {TORCHAO}: `make test` puts it there")
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(TORCHAO)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", BY_TORCHAO], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Params4bit(nn.Parameter):
    """Shaped as the parameters of bitsandbytes: packed bytes that only their linear can read."""


class Linear4bit(nn.Linear):
    """Shaped as the linears of bitsandbytes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.scale = linear.weight.detach().abs().amax() / 127
        packed = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = torch.Tensor._make_subclass(Params4bit, packed, False)  # type: ignore[assignment]
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.as_subclass(Tensor) * self.scale, self.bias)


class QuantLinear(nn.Module):
    """Shaped as the linears of GPTQ and AWQ: no linear of torch, its weights are buffers of integers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("scales", linear.weight.detach().abs().amax() / 127)
        self.register_buffer("qweight", (linear.weight.detach() / self.scales).round().int())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.qweight * self.scales, self.bias)  # type: ignore[operator]


@pytest.mark.parametrize("kind", [Linear4bit, QuantLinear])
def test_other_quantised_linears(kind: Any) -> None:
    for owner, names in (("self_attn", ("q_proj", "v_proj", "o_proj")), ("", ("lm_head",))):
        model = tiny.build("llama")
        answer(model, GRIFFIN, "auto")
        for name in names:
            place = layer(model).self_attn if owner else model
            setattr(place, name, kind(getattr(place, name)))
        differs(model)
        right(model, ALL[:-1])
        if kind is Linear4bit:
            refused(model, "int8", names[0], "Linear4bit", uses=ALL[-1:])
    for name in ("gate_proj", "up_proj", "down_proj"):
        model = tiny.build("llama")
        setattr(layer(model).mlp, name, kind(getattr(layer(model).mlp, name)))
        refused(model, f"layer 1: {name[:-5]} is a", f"{kind.__name__}, not a plain torch.nn.Linear", "quantised")


# Changes inside the block, and other kinds of models.


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.to(torch.float64),
        lambda model: model.to("meta"),
        lambda model: model.half(),
        lambda model: model.bfloat16(),
        lambda model: model.double(),
        lambda model: model.to_empty(device="cpu"),
        lambda model: model.share_memory(),
    ],
    ids=["to a type", "to a device", "half", "bfloat16", "double", "to empty", "shared"],
)
def test_moving_and_converting_inside_the_block_is_refused(change: Callable[[Any], Any]) -> None:
    model = tiny.build("llama")
    base = answer(model, GRIFFIN, "masked")[0]
    for use in ALL[::3]:
        before = traces(model)
        with pytest.raises(ValueError, match=r"a method is attached.*weights"):
            answer(model, use.method, use.execution, inside=functools.partial(change, model))
        assert traces(model) == before
    assert_close(answer(model, GRIFFIN, "auto")[0], base, "afterwards")


def test_other_kinds_of_models_are_refused() -> None:
    from transformers import LlamaForSequenceClassification, LlamaModel

    for kind in (LlamaForSequenceClassification, LlamaModel):
        model = kind(tiny.config("llama"))
        words = ("expected a causal language model",) if kind is not LlamaModel else ()
        refused(model, *words, kind.__name__, uses=ALL[::3])


# Rotary positions that are scaled as sequences grow.

LONG = tiny.text(1, 40, seed=9)


def dynamic() -> Any:
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return tiny.build("llama", max_position_embeddings=24, rope_parameters=scaling)


def rotary_state(model: Any) -> list[Any]:
    module = model.model.rotary_emb
    return [module.max_seq_len_cached, module.inv_freq.clone(), module.original_inv_freq.clone()]


def same_state(one: list[Any], other: list[Any]) -> bool:
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("use", ALL[::3], ids=lambda use: use.id)
@pytest.mark.parametrize("grown", [False, True])
def test_dynamic_rotary_positions(use: Use, grown: bool) -> None:
    """The same prompt has the same logits whatever ran before; the model's own state is left as it was."""
    thresholds = thresholds_for(dynamic(), use.method)
    execution: Execution = "auto" if use.oracle is PLAIN else "masked"
    with torch.no_grad():
        with tda.attach(dynamic(), use.oracle, thresholds, execution=execution) as run:
            oracle = feed(run.attachment.model)
        model = dynamic()
        if grown:
            model(LONG)
        before = rotary_state(model)
        with tda.attach(model, use.method, thresholds, execution=use.execution):
            first = feed(model)
            decode(model, TOKENS[:, :1], prefill(model, LONG).cache)
            again = feed(model)
        assert_close(first, oracle, "the first prompt")
        assert torch.equal(first, again)
        assert same_state(rotary_state(model), before)
        model(LONG)
        assert not same_state(rotary_state(model), rotary_state(dynamic())), "it does grow"


def test_requests_that_take_turns_with_dynamic_rotary_positions() -> None:
    model = dynamic()
    prompt = tiny.text(1, 20, seed=11)
    with torch.no_grad(), tda.attach(model, GRIFFIN):
        alone = decode(model, TOKENS[:, :1], prefill(model, prompt).cache)
        cache = prefill(model, prompt).cache
        decode(model, TOKENS[:, :1], prefill(model, LONG).cache)
        assert torch.equal(decode(model, TOKENS[:, :1], cache), alone)


def test_scores_with_dynamic_rotary_positions_do_not_depend_on_what_came_before() -> None:
    model = dynamic()
    for use in ALL[::3]:
        execution: Execution = "auto" if use.oracle is PLAIN else "masked"
        thresholds = thresholds_for(dynamic(), use.method)
        score = functools.partial(tda.score, model, use.oracle, thresholds=thresholds, execution=execution)
        first = score(PROMPT, TOKENS).logits
        score(LONG, TOKENS)
        assert torch.equal(score(PROMPT, TOKENS).logits, first)
        model(LONG)
        before = rotary_state(model)
        assert torch.equal(score(PROMPT, TOKENS).logits, first)
        assert same_state(rotary_state(model), before)


def test_calibration_with_dynamic_rotary_positions_leaves_the_model_as_it_was() -> None:
    model = dynamic()
    before = rotary_state(model)
    batches = [{"input_ids": tiny.text(4, 32, seed=50)}, {"input_ids": tiny.text(4, 20, seed=51)}]
    first = tda.calibrate(model, CATS, batches, progress=False)
    assert same_state(rotary_state(model), before)
    model(LONG)
    before = rotary_state(model)
    assert tda.calibrate(model, CATS, batches, progress=False).cuts == first.cuts
    assert tda.calibrate(model, CATS, batches[::-1], progress=False).cuts == first.cuts
    assert same_state(rotary_state(model), before)

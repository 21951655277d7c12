"""Tiny models of every family, with unequal random weights; prompts for them; thresholds for their methods.

Trained or freshly initialised models hide mistakes: equal norm weights, zero biases and even sizes let wrong code give
right numbers. Here every norm weight differs from 1, every bias from 0, and the neuron count is odd.
"""

import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import contract
import float64
import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

import tda
from tda.contracts import Method
from tda.engine.transformers_api import cache_keyword
from tda.families import FAMILIES
from tda.methods import METHODS, method, takes_sparsity

D, F, LAYERS, VOCABULARY = 24, 53, 2, 67
COMMON: dict[str, Any] = {
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
GATED: dict[str, Any] = {**COMMON, "intermediate_size": F, "num_key_value_heads": 2}
EIGHT: dict[str, Any] = {**GATED, "hidden_size": 32}  # heads of 8, where some dimensions have no position
MLA: dict[str, Any] = {
    **GATED,
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
GEMMA4: dict[str, Any] = {
    **GATED,
    "head_dim": 8,
    "global_head_dim": 12,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 6,
}
OPT: dict[str, Any] = {**COMMON, "ffn_dim": F, "word_embed_proj_dim": D, "activation_function": "relu"}
# Where a family needs sizes of its own; the name is a model type, or any other that says its type in `model_type`.
SPECIAL: dict[str, dict[str, Any]] = {
    "llama": {**GATED, "attention_bias": True, "mlp_bias": True},
    "gemma": {**GATED, "head_dim": 8},
    "gemma2": {**GATED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "qwen3": {**GATED, "head_dim": 8, "attention_bias": True},
    "opt": OPT,
    "opt-post-norm": {**OPT, "model_type": "opt", "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "mixtral": {**GATED, "intermediate_size": 20, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**GATED, "head_dim": 8, "moe_intermediate_size": 20, "num_experts": 4, "num_experts_per_tok": 2},
    "mistral-window": {**GATED, "model_type": "mistral", "sliding_window": 4, "intermediate_size": 40},
    # Further types.
    "bloom": COMMON,
    "codegen": {**COMMON, "rotary_dim": 4, "n_inner": F},
    "cohere2": {**GATED, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "cwm": {**GATED, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "exaone4": {**GATED, "sliding_window": None, "layer_types": ["full_attention"] * LAYERS},
    "gemma3_text": {**GATED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4},
    "gemma4_text": GEMMA4,
    "falcon": {**COMMON, "ffn_hidden_size": F, "new_decoder_architecture": False, "bias": True},
    "glm": {**EIGHT, "head_dim": 8, "attention_bias": True},
    "glm4": {**EIGHT, "head_dim": 8, "attention_bias": True},
    "gpt2": {**COMMON, "n_inner": F},
    "gpt_bigcode": {**COMMON, "n_inner": F},
    "phi3": {**EIGHT, "sliding_window": None},
    "gpt_neo": {**COMMON, "intermediate_size": F, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gptj": {**COMMON, "rotary_dim": 4, "n_inner": F},
    "gemma4_unified_text": GEMMA4,
    "helium": {**GATED, "head_dim": 6},
    "hunyuan_v1_dense": {**GATED, "head_dim": 6},
    "minicpm3": MLA,
    "ministral": {**GATED, "head_dim": 8, "sliding_window": 4},
    "mpt": {**COMMON, "expansion_ratio": 2, "use_cache": True},
    "persimmon": {**COMMON, "hidden_size": 32, "intermediate_size": F},
    "phi": EIGHT,
    "stablelm": EIGHT,
    "starcoder2": {**GATED, "sliding_window": 4},
    "vaultgemma": {**GATED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4},
    "youtu": MLA,
}
ZERO_CENTRED_NORMS = ("gemma", "gemma2", "gemma3_text", "vaultgemma")


def names() -> list[str]:
    """The models that every test over models runs: the types that `contract.py` tells, and variants of them."""
    return list(contract.MODELS)


def further() -> list[str]:
    """One name for every other type that a family declares."""
    return list(contract.FURTHER_TYPES)


def config(name: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    fields = {"model_type": name, **SPECIAL.get(name, GATED), **changes}
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def build(name: str, seed: int = 1, **changes: Any) -> Any:
    """A new tiny model in eval mode."""
    from transformers import AutoModelForCausalLM

    built: Any = AutoModelForCausalLM.from_config(config(name, **changes), dtype=torch.float32).eval()
    randomise(built, seed)
    return built


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Give every parameter values of its own."""
    generator = torch.Generator().manual_seed(seed)
    centred: Any = model.config
    for path, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise / math.sqrt(parameter.shape[-1]) if "embed" not in path else 0.4 * noise)
        elif path.endswith("bias"):
            parameter.copy_(0.3 * noise)
        else:
            parameter.copy_(0.3 * noise + (0.0 if centred.model_type in ZERO_CENTRED_NORMS else 1.0))


@functools.cache
def model(name: str) -> Any:
    """The shared tiny model of a name."""
    return build(name)


@functools.cache
def reference(name: str) -> float64.Float64:
    """The float64 reading of the shared tiny model of a name, made from a model of its own."""
    return float64.Float64(build(name))


def is_gated(name: str) -> bool:
    """Whether the FFN of a tiny model has a gate."""
    kind = SPECIAL.get(name, {}).get("model_type", name)
    return all(family.gate is not None for family in FAMILIES.values() if kind in family.model_types)


def default_methods(sparsity: float = 0.5) -> list[Method]:
    """Dense, and every registered method that leaves neurons of FFNs out, with its own defaults."""
    made = [method(name, sparsity) for name in METHODS if name == "dense" or takes_sparsity(name)]
    return [one for one in made if type(one).places is Method.places]


def fits(name: str, chosen: Method) -> bool:
    """Whether a method is defined for a tiny model's FFN."""
    return is_gated(name) or chosen.activation == "z"


def text(rows: int, tokens: int, seed: int = 0, vocabulary: int = VOCABULARY) -> Tensor:
    """Random tokens, none of them the pad token: int64 [rows, tokens]."""
    return torch.randint(1, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def padded(rows: Sequence[Tensor], side: str = "left") -> tuple[Tensor, Tensor]:
    """Stack rows of unequal length: tokens [B, T] and mask [B, T]."""
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, content in enumerate(rows):
        place = slice(width - len(content), width) if side == "left" else slice(0, len(content))
        tokens[row, place], mask[row, place] = content, True
    return tokens, mask


def prompts(lengths: Sequence[int], seed: int = 0) -> list[Tensor]:
    """Prompts of the given lengths."""
    return [text(1, length, seed=1000 * seed + number)[0] for number, length in enumerate(lengths)]


@functools.cache
def _thresholds(name: str, chosen: Method) -> tda.Thresholds:
    batches = [{"input_ids": text(4, 32, seed=50 + number)} for number in range(3)]
    return tda.calibrate(model(name), chosen, batches, progress=False)


def thresholds(name: str, chosen: Method) -> tda.Thresholds | None:
    """Thresholds of a method for a shared tiny model, calibrated on random tokens; None where it needs none."""
    return _thresholds(name, chosen) if chosen.needs_fit and not chosen.keeps_all else None


def fitted(name: str, chosen: Method) -> Method:
    """A method that can run on a shared tiny model: fitted where it needs that."""
    made = thresholds(name, chosen)
    return chosen if made is None else chosen.with_thresholds(made)


def method_cases(*model_names: str, sparsity: float = 0.5) -> list[tuple[str, Method]]:
    """All pairs of a tiny model and a method that fit."""
    return [
        (name, chosen) for name in model_names or names() for chosen in default_methods(sparsity) if fits(name, chosen)
    ]


def sampled(cases: Sequence[Any], step: int = 3) -> list[Any]:
    """Cases as parameters; by default one in `step` runs, of each model and of each method, and the others are slow.

    Every pair of model and method is run by default in `tests/test_contract.py`.
    """
    models, seen, made = list(dict.fromkeys(case[0] for case in cases)), Counter[str](), []
    for case in cases:
        runs = (models.index(case[0]) + seen[case[0]]) % step == 0
        seen[case[0]] += 1
        made.append(pytest.param(case, marks=() if runs else pytest.mark.slow))
    return made


def by_family(types: Sequence[str]) -> list[Any]:
    """Types of model as parameters; by default the first of each family runs, and the others are slow."""
    seen: set[str] = set()
    made = []
    for name in types:
        kind = SPECIAL.get(name, {}).get("model_type", name)
        family = next(family for family, declared in FAMILIES.items() if kind in declared.model_types)
        made.append(pytest.param(name, marks=pytest.mark.slow if family in seen else ()))
        seen.add(family)
    return made


def case_id(value: object) -> str | None:
    """Readable test ids for pairs of a model's and a method."""
    if isinstance(value, tuple) and len(value) == 2:
        return f"{value[0]}-{value[1].name}"
    return value.name if isinstance(value, Method) else None


def model_size(name: str) -> int:
    """Neurons per layer of a tiny model."""
    fields = SPECIAL.get(name, GATED)
    return int(fields.get("intermediate_size", fields.get("ffn_dim", F)))


def new_cache(chosen: Any) -> DynamicCache:
    """An empty key-value cache for a model."""
    return DynamicCache(config=chosen.config)


def on(chosen: Any, cache: Any) -> dict[str, Any]:
    """The cache as argument of forward or generate, by the name that this version of transformers gives it."""
    return {cache_keyword(chosen): cache}

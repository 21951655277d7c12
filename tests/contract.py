"""What tda says that it can do: methods, executions, types of model and number, shapes of requests, kinds of weights.

`tests/shapes.py` plays each claim, `tests/test_contract.py` runs them, and `docs/guide/supported.md` is written from
here:

    python -m tests.contract
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

from tda.cases import MethodSpec
from tda.contracts import Method, PromptMethod, TokenMethod
from tda.families import FAMILIES
from tda.methods import METHODS as REGISTERED
from tda.methods import build

PAGE = Path(__file__).resolve().parent.parent / "docs" / "guide" / "supported.md"
EXECUTIONS = ("masked", "compact", "indexed", "auto")
DTYPES = ("float32", "bfloat16", "float16")
MODEL_TYPES = ("llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3", "opt")
"""Types of model that every test over models runs: one for each thing around an FFN that the C kernels know.

Biases (llama), one window (mistral), norms about 1 and scaled embeddings (gemma), norms on both sides, capped scores
and windows in some layers (gemma2), biases of the attention alone (qwen2), norms of heads (qwen3), a plain FFN without
a module of its own and learnt positions (opt). A further type is made of these, or runs layer by layer.
"""
MIXTURES = FAMILIES["experts"].model_types
"""Types of model with experts, which `tests/test_experts.py` runs."""
COMPOSED = ("griffin:quantization=int8", "tt:quantization=int8")
"""Methods on weights in few bits: one that chooses per prompt, one that chooses per token."""
METHODS = (*(name for name, kind in REGISTERED.items() if kind.places is Method.places), *COMPOSED)
"""Methods that leave out neurons of feed-forward networks; `tests/test_teal.py` runs the one that leaves out inputs."""
FURTHER_TYPES = tuple(
    name for family in FAMILIES.values() for name in family.model_types if name not in (*MODEL_TYPES, *MIXTURES)
)
"""Types of model that `tests/test_families.py` runs."""
VARIANTS = {"opt-post-norm": "opt", "mistral-window": "mistral"}
"""Tiny models beside one of each type: OPT with its norms behind, Mistral with a window shorter than its prompts."""
MODELS = (*MODEL_TYPES, *VARIANTS)
WINDOWS = {"mistral-window": 4, "gemma2": 16}
"""Tokens that a token sees in tiny models that do not see all of them."""


def leaves_out(chosen: Method) -> bool:
    """Whether a method leaves neurons out."""
    return isinstance(chosen, PromptMethod | TokenMethod)


def knows_prompts(chosen: Method) -> bool:
    """Whether a method chooses from each prompt."""
    return chosen.scope == "prompt"


def always(chosen: Method) -> bool:
    """Whatever the method."""
    return True


def any_model(name: str) -> bool:
    """Whatever the model."""
    return True


def without_windows(name: str) -> bool:
    """Only where every token sees all those before it."""
    return name not in WINDOWS


def without_short_windows(name: str) -> bool:
    """Only where the window is not reached."""
    return WINDOWS.get(name, 99) > 12


@dataclass(frozen=True)
class Shape:
    """A shape of request, and what is claimed of it: "right", "refused" or "warned".

    Attributes
    ----------
    text : str
        What a user does.
    claim : str
        "refused": an error that says `words`; "warned": a warning that says them, and dense results.
    words : str
        Pattern of the error or warning.
    instead : str
        What to do instead, or what to know.
    of : callable
        Methods that the claim is of; for all others the shape is right.
    models : callable
        Tiny models that it is claimed for.
    """

    text: str
    claim: str = "right"
    words: str = ""
    instead: str = ""
    of: Callable[[Method], bool] = always
    models: Callable[[str], bool] = any_model

    def claimed(self, chosen: Method) -> str:
        """What is claimed for a method."""
        return self.claim if self.of(chosen) else "right"


NO_WINDOWS = "models without a sliding window"
SHAPES: dict[str, Shape] = {
    "single": Shape("`generate`, one prompt"),
    "left": Shape("`generate`, a batch of unequal prompts, padded on the left"),
    "right_by_hand": Shape(
        "forwards by hand, a batch padded on the right, with mask and position ids",
        instead="as long as no sliding window is shorter than the batch is wide: a window counts padding, dense too",
        models=without_short_windows,
    ),
    "right_generate": Shape(
        "`generate`, a batch padded on the right",
        "refused",
        "generation needs left padding",
        "set `tokenizer.padding_side = 'left'`",
    ),
    "chunks": Shape(
        "a prompt in chunks by hand, each in `with run.prefill():`",
        instead="several tokens on a filled cache without a phase are taken for decode, with a warning",
    ),
    "chunks_generate": Shape("`generate(prefill_chunk_size=…)`"),
    "teacher_forced": Shape("several tokens in one decode forward, in `with run.decode():` (teacher-forced)"),
    "second_turn": Shape("a second turn on the same cache through `generate`"),
    "second_turn_by_hand": Shape("a second turn by hand, in `with run.prefill():`"),
    "prefix": Shape(
        "a prefix that was prefilled inside `attach`, its cache copied (`copy.deepcopy`) for each continuation",
        instead="the copies go on by hand in `with run.prefill():` or through `generate`",
    ),
    "prefix_expanded": Shape("such a prefix, expanded over a batch by `cache.batch_repeat_interleave`"),
    "cropped": Shape(
        "a cache cropped of generated tokens",
        instead="a cache with a sliding window that is full cannot be cropped, dense neither",
        models=without_short_windows,
    ),
    "cropped_prompt": Shape(
        "a cache cropped into the prompt",
        "refused",
        r"cropped to \d+ of the \d+ prompt tokens",
        "copy the cache of the shared part before the prompt goes on, or prefill anew; right for methods that do not "
        "look at the prompt",
        of=knows_prompts,
        models=without_short_windows,
    ),
    "foreign": Shape(
        "a cache that was filled before `attach`",
        "refused",
        r"did not pass through this attached model.*run\.prefill\(\)",
        "prefill inside `attach`; right for methods that do not look at the prompt",
        of=knows_prompts,
    ),
    "reordered": Shape("rows of a cache moved, dropped or repeated (`reorder_cache`, `batch_select_indices`)"),
    "static": Shape('`generate(cache_implementation="static")`'),
    "beyond_window": Shape("prompts and answers longer than a sliding window; hybrid caches"),
    "quantised_exact": Shape(
        "a quantised cache, its numbers exact",
        instead=f"{NO_WINDOWS}, as transformers wants it; by a simulated quantiser: quanto and HQQ have not run",
        models=without_windows,
    ),
    "quantised_int8": Shape(
        "a quantised cache, its numbers int8",
        instead="as above; compared with the token loop on such a cache, for float64 has none",
        models=without_windows,
    ),
    "compressed": Shape(
        "a cache compressed in prefill by hooks on attention, as kvpress does",
        instead=f"{NO_WINDOWS}; decode runs layer by layer; by a simulated press, compared with the token loop: "
        "kvpress itself has not run",
        models=without_windows,
    ),
    "samples": Shape("`generate(num_return_sequences=…)`"),
    "sampled": Shape("sampling with a seed"),
    "beams": Shape("beam search"),
    "ended": Shape("rows that end early", instead="what they go on with counts in no sparsity"),
    "guidance": Shape("`generate(guidance_scale=…)`", instead="each of the two prompts has a selection of its own"),
    "assisted": Shape(
        "assisted generation, prompt lookup",
        "refused",
        "assisted generation feeds guessed tokens",
        "generate without it while a method is attached",
    ),
    "custom": Shape("`generate(custom_generate=…)`, a loop of one's own as of contrastive search"),
    "continuous": Shape(
        "continuous batching (`generate_batch`)",
        "refused",
        "continuous batching packs the tokens of several requests",
        "use `generate`",
    ),
    "through_pipeline": Shape('`pipeline("text-generation")`'),
    "embeddings": Shape("`generate(inputs_embeds=…)`"),
    "called_directly": Shape("`model.forward(…)` called directly"),
    "no_cache": Shape(
        "a plain forward that keeps no cache",
        "warned",
        "nothing was decoded on it: what came out is dense",
        "`tda.score`, or feed tokens on a prompt's cache",
        of=leaves_out,
    ),
    "perplexity": Shape(
        "a perplexity loop: forwards of whole texts, nothing decoded",
        "warned",
        "nothing was decoded on it: what came out is dense",
        "`tda.score`",
        of=leaves_out,
    ),
    "inner": Shape(
        "the inner decoder called by itself (`model.model(…)`)",
        "warned",
        "a part of the model was called by itself",
        "call the model itself",
        of=leaves_out,
    ),
    "without_cache": Shape(
        "`generate(use_cache=False)`", "refused", "needs the key-value cache", "generate with the cache"
    ),
    "score_decode": Shape('`tda.score(protocol="decode")`'),
    "score_all_sparse": Shape('`tda.score(protocol="all_sparse")`'),
    "score_griffin": Shape('`tda.score(protocol="griffin")`'),
}


@dataclass(frozen=True)
class Weights:
    """A kind of model, and what is claimed of it."""

    text: str
    claim: str = "right"
    words: str = ""
    instead: str = ""


WEIGHTS: dict[str, Weights] = {
    "tied": Weights("embeddings tied to the head"),
    "peft_attention": Weights("PEFT adapters on attention", instead="give `model.get_base_model()`"),
    "peft_wrapper": Weights("a PEFT wrapper itself", "refused", "get_base_model", "give `model.get_base_model()`"),
    "peft_ffn": Weights(
        "PEFT adapters on the feed-forward network", "refused", "merge adapters first", "merge: `merge_and_unload()`"
    ),
    "quantised": Weights(
        "quantised feed-forward networks", "refused", "quantised or adapted weights", "load float weights"
    ),
    "offloaded": Weights(
        "weights offloaded (or on several devices, which has not run)",
        "refused",
        "without offload or sharding",
        "load on one device",
    ),
    "compiled": Weights("compiled by `torch.compile`", "refused", "compiled", "give the model that is not compiled"),
    "hooks_ffn": Weights("hooks on the feed-forward network that look on", instead='slower: "auto" runs masked'),
    "hooks_elsewhere": Weights("hooks elsewhere", instead="slower: no whole step in one call"),
    "no_head": Weights("a base model without head", "refused", "model.layers", "load a `…ForCausalLM`"),
    "more_than_declared": Weights(
        "a feed-forward network that computes more than its family declares, by its code or by hooks",
        "refused",
        "with all neurons kept is not what the model computes",
        "declare a family",
    ),
    "other_type": Weights(
        "another model type",
        "refused",
        "unsupported architecture",
        "[declare a family](../development/adding.md#a-model-family)",
    ),
    "moved": Weights(
        "moved, converted or compiled while a method is attached",
        "refused",
        "leave the `with` block",
        "before `attach`, or after it",
    ),
}


class Case(NamedTuple):
    """One cell of the matrix."""

    method: str
    model: str
    execution: str
    dtype: str
    shape: str

    def __str__(self) -> str:
        return "-".join((self.shape, *self[:4]))


@cache
def built(name: str) -> Method:
    """A method with its own defaults but for what its spec tells."""
    return build(MethodSpec.parse(name))[0]


def is_gated(model: str) -> bool:
    """Whether a tiny model's FFN has a gate."""
    kind = VARIANTS.get(model, model)
    return next(family.gate is not None for family in FAMILIES.values() if kind in family.model_types)


def fits(chosen: str, model: str) -> bool:
    """Whether a method is defined for a model's FFN."""
    return is_gated(model) or built(chosen).activation == "z"


def executions(chosen: str) -> tuple[str, ...]:
    """What a method claims to run in."""
    return tuple(name for name in EXECUTIONS if name == "auto" or name in built(chosen).executions)


def needs_kernels(chosen: str, execution: str) -> bool:
    """Whether an execution is refused where there are no kernels of our own for the weights."""
    made = built(chosen)
    copies = execution == "compact" and made.quantization is not None
    return copies or (execution == "indexed" and (isinstance(made, PromptMethod) or made.quantization is not None))


def runs(chosen: str, execution: str, dtype: str) -> bool:
    """Whether a method runs in an execution with numbers of a type, on a CPU."""
    return execution in executions(chosen) and not (dtype == "float16" and needs_kernels(chosen, execution))


@cache
def claimed() -> tuple[Case, ...]:
    """The full cross product, without what is claimed for no one."""
    return tuple(
        Case(chosen, model, execution, dtype, shape)
        for shape, chosen, model in product(SHAPES, METHODS, MODELS)
        if fits(chosen, model) and SHAPES[shape].models(model)
        for execution, dtype in product(EXECUTIONS, DTYPES)
        if runs(chosen, execution, dtype)
    )


def parts(case: Case) -> Iterator[tuple[tuple[str, str], ...]]:
    """All pairs of the values of a case, each with the name of its axis."""
    return combinations(zip(Case._fields, case, strict=True), 2)


@cache
def covering() -> tuple[Case, ...]:
    """Cases among which every pair of values that is claimed together occurs at least once.

    Those that fewest cases hold come first; each is given the case with most that are still missing, and among equals
    the one whose values were used least. So a mistake that two values make together is met, and one that needs three
    may be. The same claims give the same cases.
    """
    holding: dict[Any, list[Case]] = {}
    for case in claimed():
        for values in parts(case):
            holding.setdefault(values, []).append(case)
    missing, used, chosen = dict.fromkeys(sorted(holding, key=lambda one: len(holding[one]))), Counter[str](), []
    while missing:
        candidates = holding[next(iter(missing))]
        gains = [sum(values in missing for values in parts(case)) for case in candidates]
        most = max(gains)
        best = min(
            (case for case, gain in zip(candidates, gains, strict=True) if gain == most),
            key=lambda case: sum(used[value] for value in case),
        )
        chosen.append(best)
        used.update(best)
        for values in parts(best):
            missing.pop(values, None)
    return tuple(sorted(chosen, key=claimed().index))


# The page.

NOTE = "<!-- Written by `python -m tests.contract`; a test fails where it is stale. -->"


def page() -> str:
    """`docs/guide/supported.md`."""
    sections = [
        NOTE,
        "# What is supported",
        "Which combinations of method, model, execution, type and request are right, refused or warned about. Each is "
        "tested.",
        f"{len(covering())} cases on tiny random models hold every pair of method, model, execution, type of number "
        "and shape of request that is claimed here. What is right is compared with a float64 pass over the whole "
        "text, without batch and cache, and with a loop that decodes token by token in masked execution: the same "
        "neurons are kept, except for those within rounding of a threshold, and logits agree within 1e-5 of their "
        "scale in float32, 0.05 in bfloat16 and 0.005 in float16. Where a request is refused or warned about, the "
        "message is tested.",
        "**All cases ran on CPUs. None of them has run on a GPU yet**, see [devices](#devices), "
        "and [what has run on a GPU](../results/gpu.md) otherwise.",
        "## Methods and executions, on a CPU",
        _table(
            ("method", *EXECUTIONS, "needs"),
            [(f"`{name}`", *(_cell(name, execution) for execution in EXECUTIONS), _needs(name)) for name in METHODS],
        ),
        "“right” is for float32, bfloat16 and float16 where nothing else is said. – is refused when attaching; "
        'the message names the executions that there are. Where `indexed` is refused in float16, `"auto"` runs what is '
        "right there. Where the kernels in C cannot be built, it is refused in float32 and bfloat16 too.",
        "## Devices",
        _table(
            ("device", "execution", "float32", "bfloat16", "float16"),
            [
                ("CPU", "masked, compact, auto", "right", "right", "right, on torch"),
                ("CPU", "indexed, once per prompt", "right, kernels in C", "right, kernels in C", "refused"),
                ("CPU", "indexed and compact, `int8` weights", *["right, kernels in C"] * 2, "refused"),
                ("CPU", "indexed, per token", "right, kernels in C", "right, kernels in C", "right, on torch"),
                ("CUDA", "masked, compact, auto", *["not run on a GPU"] * 3),
                (
                    "CUDA",
                    "indexed",
                    *["not run on a GPU; compiled for sm_80, sm_90 and sm_100"] * 3,
                ),
                ("other", "all", *["not tested"] * 3),
            ],
        ),
        "## Models",
        _table(
            ("`model_type`", "feed-forward network", "methods"),
            [(f"`{name}`", "gated" if is_gated(name) else "plain", _methods_of(name)) for name in MODEL_TYPES],
        ),
        "Further types, each with a tiny model in `tests/test_families.py`: what passes through their FFNs against "
        "float64, sets and logits of a method that chooses per prompt and of those that choose per token, kernels "
        "against masked execution, batches padded on the left, and a model that is left as it was.",
        _table(
            ("`model_type`", "feed-forward network", "methods"),
            [
                (
                    ", ".join(f"`{name}`" for name in names),
                    "gated" if is_gated(names[0]) else "plain",
                    _methods_of(names[0]),
                )
                for names in _further()
            ],
        ),
        "`teal` leaves out inputs of linears, in `masked` execution only (`tests/test_teal.py`), on models without "
        "experts.",
        "Mixtures of experts, in `masked` execution only, each expert with a set of its own from the tokens that reach "
        f"it (`tests/test_experts.py`): {', '.join(f'`{name}`' for name in MIXTURES)}. "
        "`teal` refuses them.",
        "Also tested: OPT with its norms behind and projections around (as 350M has them), sliding windows (Mistral, "
        "Gemma 2) shorter than the prompt.",
        "## Requests",
        "### Right",
        _table(("request", "to know"), [(s.text, s.instead) for s in SHAPES.values() if s.claim == "right"]),
        "### Refused",
        "An error, before anything is computed that could be taken for a result.",
        _table(("request", "instead"), [(s.text, s.instead) for s in SHAPES.values() if s.claim == "refused"]),
        "### Warned about",
        "These run dense. Nothing is said where the method leaves nothing out (`dense`, `int8`).",
        _table(("request", "instead"), [(s.text, s.instead) for s in SHAPES.values() if s.claim == "warned"]),
        "## Weights and modules",
        _table(("model", "", "instead, or to know"), [(w.text, w.claim, w.instead) for w in WEIGHTS.values()]),
    ]
    return "\n\n".join(sections) + "\n"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell or " " for cell in line) + " |" for line in lines)


def _cell(name: str, execution: str) -> str:
    """What is claimed of a method in an execution."""
    dtypes = [dtype for dtype in DTYPES if runs(name, execution, dtype)]
    if not dtypes:
        return "–"
    without = [dtype for dtype in DTYPES if dtype not in dtypes]
    return "right" + "".join(f"; {dtype} refused" for dtype in without)


def _needs(name: str) -> str:
    chosen = built(name)
    found = ["thresholds"] * chosen.needs_fit + ["a gated feed-forward network"] * (chosen.activation != "z")
    return ", ".join(found)


def _further() -> Iterator[list[str]]:
    """The further types with a gate, and those without."""
    for gated in (True, False):
        yield sorted(name for name in FURTHER_TYPES if is_gated(name) is gated)


def _methods_of(model: str) -> str:
    missing = [f"`{name}`" for name in METHODS if not fits(name, model)]
    return "all" if not missing else f"all but {', '.join(missing)}"


def main() -> None:
    """Write the page."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()

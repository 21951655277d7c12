"""Load a model and its tokenizer by name."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from torch import nn

from tda.device import torch_device
from tda.families import family_for
from tda.finite import check_weights
from tda.kernels.hugepages import move_to_huge_pages
from tda.models.configuration import check_fields, parameters
from tda.models.memory import check_memory
from tda.models.reference import PREFIX, TIMES, Reference, shipped
from tda.models.shapes import SHAPES, build_shape, shape_config
from tda.view import Family

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FOLDER = "a folder with config.json and safetensors weights"
CACHES = 3
"""How much larger than a cache weights must be for next to all of them to come from memory."""
LONGEST_REASON = 500
"""Characters that are told of another library's error."""


class LoadedModel(NamedTuple):
    """A model in eval mode with its tokenizer; a shape has none."""

    model: nn.Module
    tokenizer: Any


def is_shape(name: str) -> bool:
    """Whether a model has random weights: for latency only, any quality number of it is refused."""
    return name.startswith("shape:")


def needs_training(name: str, what: str) -> None:
    """Raise ValueError if a model has random weights, so that `what` of it would be noise."""
    if is_shape(name):
        raise ValueError(f"{name} has random weights: it has a speed, and any {what} of it would be noise")


def load_model(
    name: str,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model by name.

    Parameters
    ----------
    name : str
        ``ref:NAME`` (ships with the package; ``ref:NAME:4x`` has every FFN neuron four times, for the same function in
        more bytes), ``shape:NAME`` (random weights), a folder, or a hub id.
    dtype : {"float32", "bfloat16", "float16"}
        Type of weights and activations.
    device : str or torch.device
        E.g. "cpu", "cuda".
    revision : str, optional
        Branch, tag or commit of a hub id; else its main branch.
    trust_remote_code : bool
        Whether a hub repository may bring code that runs here.

    Returns
    -------
    LoadedModel
        (model, tokenizer); the tokenizer of a shape is None.

    Raises
    ------
    ValueError
        If the name, dtype or device is unknown, the folder or hub id holds no model of a supported family, a weight is
        not finite, or there is not enough memory.
    """
    kind = _dtype(dtype)
    where = torch_device(device)
    if is_shape(name):
        return LoadedModel(_shape(name, kind, where), None)
    reference = Reference.find(name) if name.startswith(PREFIX) else None
    path = str(reference.folder) if reference else name
    hub = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    config, count = _configuration(name, path, hub, reference)
    with _loading(name):
        for place in {torch.device("cpu"), where}:
            check_memory(count, kind, place)
    tokenizer = _tokenizer(name, path, config.get_text_config().vocab_size, hub)
    model = _weights(name, path, config, kind, hub, reference).to(where).eval()
    check_weights(model, f"cannot load model {name!r}: ")
    return LoadedModel(model, tokenizer)


def _shape(name: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    count = parameter_count(name)
    with _loading(name):
        check_memory(count, dtype, device)
    return build_shape(name.removeprefix("shape:"), dtype, device)


def _configuration(name: str, path: str, hub: dict[str, Any], reference: Reference | None) -> tuple[Any, int]:
    """The checked configuration of a folder or hub id, and how many parameters it makes."""
    from transformers import AutoConfig, PreTrainedConfig

    with _loading(name):
        _check_folder(path)
        check_fields(PreTrainedConfig.get_config_dict(path, revision=hub["revision"])[0])
    with _loading(name, "its config.json makes no model: "):
        config = AutoConfig.from_pretrained(path, **hub)
        config = reference.config(config) if reference else config
        return config, parameters(config, trust_remote_code=hub["trust_remote_code"])


def _check_folder(path: str) -> None:
    """Raise OSError if a name can be no hub id and is no folder of a model either."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError("the folder has no config.json")
    elif folder.exists():
        raise NotADirectoryError("it is a file")
    elif folder.is_absolute() or path.startswith((".", "~")):
        raise FileNotFoundError("there is no such folder")


def _tokenizer(name: str, path: str, vocabulary: int, hub: dict[str, Any]) -> Any:
    """The tokenizer, set to pad on the left. Tokens that were added to its own may be more than the model knows."""
    from transformers import AutoTokenizer

    with _loading(name, "its tokenizer cannot be loaded: "):
        tokenizer = AutoTokenizer.from_pretrained(path, **hub)
    with _loading(name):
        if tokenizer.vocab_size > vocabulary:
            raise ValueError(f"its tokenizer has {tokenizer.vocab_size} tokens; its config.json has {vocabulary}")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _weights(
    name: str, path: str, config: Any, dtype: torch.dtype, hub: dict[str, Any], reference: Reference | None
) -> nn.Module:
    """The model with its weights on the CPU."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with _loading(name):
            if reference:
                kind, source = getattr(transformers, config.architectures[0]), None
                given: dict[str, Any] = {"state_dict": reference.state(config)}
            else:
                kind, source = transformers.AutoModelForCausalLM, path
                given = {"use_safetensors": True, **hub}
            model, report = kind.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                **given,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            _check_complete(report, family_for(config.model_type), config.get_text_config().num_hidden_layers)
    finally:
        logging.enable_progress_bar()
    model.config._name_or_path = name
    move_to_huge_pages(model)
    loaded: nn.Module = model
    return loaded


@contextmanager
def _loading(name: str, what: str = "") -> Iterator[None]:
    """Turn whatever goes wrong into a ValueError: transformers raises errors of every kind."""
    try:
        yield
    except Exception as error:
        reason = shorten(str(error), LONGEST_REASON, placeholder=" …")
        if not isinstance(error, OSError | ValueError):
            reason = f"{type(error).__name__}: {reason}"
        hint = f"\nAccepted: {', '.join(names())}, {FOLDER}, or a hub id" if isinstance(error, OSError) else ""
        raise ValueError(f"cannot load model {name!r}: {what}{reason}{hint}") from error


def _check_complete(report: dict[str, Any], family: Family, layers: int) -> None:
    """Raise ValueError if weights and config do not make one model.

    Transformers fills a parameter without weights with random numbers, and leaves out what lies beyond the last layer.
    """
    unset = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if unset:
        raise ValueError(f"its weights do not fit its config: {len(unset)} parameters are unset, e.g. {unset[0]}")
    layer = re.compile(rf"\b{family.layers.split('.')[-1]}\.(\d+)\.")
    beyond = sorted(
        key for key in report["unexpected_keys"] if (place := layer.search(key)) and int(place[1]) >= layers
    )
    if beyond:
        raise ValueError(f"its weights do not fit its config: num_hidden_layers is {layers}, and they hold {beyond[0]}")


def names() -> list[str]:
    """Names of the models that need no download."""
    return [*(PREFIX + name for name in shipped()), *(f"shape:{name}" for name in SHAPES)]


def parameter_count(name: str) -> int:
    """Parameters of a shape or a reference model, without building it; ValueError for another name."""
    return parameters(_known_config(name))


def _known_config(name: str) -> Any:
    from transformers import AutoConfig

    if is_shape(name):
        return shape_config(name.removeprefix("shape:"))
    reference = Reference.find(name)
    return reference.config(AutoConfig.from_pretrained(reference.folder))


def sizes_beyond_cache(name: str, bytes_per_weight: int, cache: int | None) -> tuple[str, ...]:
    """Sizes of a reference model up to the smallest that is at least `CACHES` times a cache, or all.

    Parameters
    ----------
    name : str
        ``ref:NAME``.
    bytes_per_weight : int
        By the type that it is run in.
    cache : int or None
        Bytes of the cache; None, where nobody knows them, leaves the model as it ships.

    Returns
    -------
    tuple of str
        ``ref:NAME``, then e.g. ``ref:NAME:2x`` and ``ref:NAME:4x``: smallest first, the wanted one last.
    """
    sizes = (name, *(f"{name}:{times}x" for times in TIMES))
    needed = CACHES * (cache or 0)
    held = sum(parameter_count(size) * bytes_per_weight < needed for size in sizes)
    return sizes[: held + 1]


def describe_models() -> list[dict[str, Any]]:
    """One row per model known by name: name, family, layers, D, F, parameters, source."""
    rows = []
    for name in names():
        config = _known_config(name)
        if is_shape(name):
            source = f"random weights: {SHAPES[name.removeprefix('shape:')][0]}"
        else:
            source = f"trained on generated text, {Reference.find(name).training['steps']} steps"
        rows.append(
            {
                "name": name,
                "type": config.model_type,
                "layers": config.num_hidden_layers,
                "hidden_size": config.hidden_size,
                "intermediate_size": getattr(config, "intermediate_size", getattr(config, "ffn_dim", None)),
                "parameters": parameters(config),
                "source": source,
            }
        )
    return rows


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    if dtype in DTYPES.values():
        assert isinstance(dtype, torch.dtype)
        return dtype
    raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")

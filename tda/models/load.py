"""Load a model and its tokenizer by name."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tda.device import torch_device
from tda.kernels.pages import rehome
from tda.models.shapes import SHAPES, build_shape, shape_config

WEIGHTS = Path(__file__).resolve().parent.parent / "reference" / "weights"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model by name.

    Parameters
    ----------
    name : str
        ``ref:NAME`` (ships with the package), ``shape:NAME`` (random weights), a folder, or a hub id.
    dtype : {"float32", "bfloat16"}
        Type of weights and activations.
    device : str or torch.device
        E.g. "cpu", "cuda".
    trust_remote_code : bool
        Whether a hub repository may bring code that runs here.

    Returns
    -------
    LoadedModel
        (model, tokenizer); the tokenizer of a shape is None.

    Raises
    ------
    ValueError
        If the name, dtype or device is unknown, or the folder or hub id holds no model.
    """
    kind = _dtype(dtype)
    where = torch_device(device)
    if is_shape(name):
        return LoadedModel(build_shape(name.removeprefix("shape:"), kind, where), None)
    path = _reference(name) if name.startswith("ref:") else name
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=kind,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        _check_complete(report)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"cannot load model {name!r}: {first}\nAccepted: {', '.join(names())}, a folder with config.json and "
            "safetensors weights, or a hub id"
        ) from error
    finally:
        logging.enable_progress_bar()
    model.config._name_or_path = name
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rehome(model)
    return LoadedModel(model.to(where).eval(), tokenizer)


def _check_complete(report: dict[str, Any]) -> None:
    """Raise ValueError if the weights leave a parameter unset: transformers fills it with random numbers."""
    unset = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if unset:
        raise ValueError(f"its weights do not fit its config: {len(unset)} parameters are unset, e.g. {unset[0]}")


def names() -> list[str]:
    """Names of the models that need no download."""
    references = sorted(folder.name for folder in WEIGHTS.glob("*") if (folder / "model.safetensors").is_file())
    return [*(f"ref:{name}" for name in references), *(f"shape:{name}" for name in SHAPES)]


def parameter_count(name: str) -> int:
    """Parameters of a shape, without building it."""
    return _parameters(shape_config(name.removeprefix("shape:")))


def _parameters(config: Any) -> int:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def describe_models() -> list[dict[str, Any]]:
    """One row per model known by name: name, family, layers, D, F, parameters, source."""
    from transformers import AutoConfig

    rows = []
    for name in names():
        if is_shape(name):
            short = name.removeprefix("shape:")
            config, source = shape_config(short), f"random weights: {SHAPES[short][0]}"
        else:
            folder = _reference(name)
            config = AutoConfig.from_pretrained(folder)
            steps = json.loads((folder / "training.json").read_text())["steps"]
            source = f"trained on generated text, {steps} steps"
        rows.append(
            {
                "name": name,
                "type": config.model_type,
                "layers": config.num_hidden_layers,
                "hidden_size": config.hidden_size,
                "intermediate_size": getattr(config, "intermediate_size", getattr(config, "ffn_dim", None)),
                "parameters": _parameters(config),
                "source": source,
            }
        )
    return rows


def _reference(name: str) -> Path:
    folder = WEIGHTS / name.removeprefix("ref:")
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"unknown reference model {name!r}; known: {', '.join(names())}")
    return folder


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    if dtype in DTYPES.values():
        assert isinstance(dtype, torch.dtype)
        return dtype
    raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")

"""What ``--model_args`` of lm-eval say of a method: its options among others, and what it is fitted with."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM

from tda.calibration import calibrate
from tda.cases import MethodSpec
from tda.contracts import Method
from tda.engine.context import context_length
from tda.engine.transformers_api import text_config
from tda.methods import METHODS, build, option_names
from tda.models.digest import weights_digest
from tda.quality import calibration_batches
from tda.thresholds import Thresholds

logger = logging.getLogger(__name__)

HARNESS = tuple(inspect.signature(HFLM.__init__).parameters)[1:-1]
"""Arguments of lm-eval's own class for Hugging Face models."""


def chosen_method(
    method: str | Method, options: Mapping[str, Any], ours: Sequence[str]
) -> tuple[Method, dict[str, Any]]:
    """The method of a name or spec with its options, and arguments of lm-eval's class; no others are accepted.

    Parameters
    ----------
    method : str or Method
        A name, a spec or a method.
    options : mapping
        Its options and arguments of lm-eval's class, by name.
    ours : sequence of str
        What else the model takes, for the message.
    """
    spec = method.spec if isinstance(method, Method) else MethodSpec.parse(method)
    own = option_names(METHODS[spec.name])
    chosen = {} if isinstance(method, Method) else {name: options[name] for name in own if name in options}
    rest = {name: value for name, value in options.items() if name not in chosen}
    unknown = [name for name in rest if name not in HARNESS]
    if unknown:
        raise ValueError(
            f"model tda knows no {', '.join(map(repr, unknown))}. It takes {', '.join(ours)}; options of method "
            f"{spec.name!r}: {', '.join(own) or 'none'}; and of lm-eval's hf: {', '.join(HARNESS[1:])}"
        )
    if isinstance(method, Method):
        return method, rest
    if twice := sorted(spec.options.keys() & chosen.keys()):
        raise ValueError(f"{', '.join(twice)} is said twice: by method={method} and by itself")
    return build(MethodSpec(name=spec.name, options={**spec.options, **chosen}))[0], rest


def check_fit(method: Method, thresholds: str | None, text: str | None) -> None:
    """Raise ValueError or FileNotFoundError if it is not said with what to fit a method that needs it."""
    if not method.needs_fit or method.keeps_all or method.thresholds is not None:
        return
    if (thresholds is None) == (text is None):
        told = "got neither" if text is None else "got both"
        raise ValueError(
            f"method {method.name!r} is fitted before it is used: give thresholds=FILE (a file of `tda calibrate`, or "
            f"the folder of a saved method), or calibration_text=FILE.jsonl to fit it on; {told}"
        )
    if text is not None and not Path(text).is_file():
        raise FileNotFoundError(f"there is no {text}; calibration_text is a JSONL file of texts")


def fitted(
    model: Any,
    tokenizer: Any,
    method: Method,
    windows: tuple[int, int] | None,
    *,
    thresholds: str | None,
    text: str | None,
    documents: int,
) -> Method:
    """The method, fitted with thresholds or on a text where it needs that; `windows` are a prompt and what follows."""
    if not method.needs_fit or method.keeps_all or method.thresholds is not None:
        return method
    if thresholds is not None:
        artifact = Thresholds.load(thresholds)
        method = method.with_thresholds(artifact)
        if artifact.model.weights and (told := artifact.foreign(model.config._name_or_path, weights_digest(model))):
            logger.warning(told)
        return method
    assert text is not None
    assert windows is not None
    length = windows[0] if method.window == "prompt" else sum(windows)
    length = min(length, context_length(text_config(model)) or length)
    batches = calibration_batches(tokenizer, length, documents, text=Path(text))
    logger.info(f"fitting {method.spec} on {sum(len(one['input_ids']) for one in batches)} documents of {text}")
    return method.with_thresholds(calibrate(model, method, batches, progress=False))

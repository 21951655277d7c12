"""lm-eval without its progress bars and its usual warnings."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets

from tda.logs import handled

logger = logging.getLogger(__name__)

WITH_BARS = (
    "lm_eval.api.task",
    "lm_eval.api.model",
    "lm_eval.models.huggingface",
    "tda.tasks.scoring",
    "tda.tasks.generation",
)
"""Modules that show progress bars."""
USUAL_WARNINGS = (
    "Custom kwargs can be passed",
    "num_fewshot > 0 but fewshot_split is None",
    "using test_docs as fewshot_docs",
    "aggregation is not. using default",
    "higher_is_better is not. using default",
    "No `until` specified",
    "No `generation_kwargs` specified",
    "Duplicate task name",
    "No aggregation function defined for metric",
)
"""What lm-eval warns of where all is as its own task says, or as we say ourselves."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's progress bars and notes; each of its warnings that is no usual one is logged once."""
    bars, logged = datasets.are_progress_bars_disabled(), set[str]()

    def warn(record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text not in logged and not any(usual in text for usual in USUAL_WARNINGS):
            logged.add(text)
            logger.warning(f"lm-eval: {text[:300]}")

    datasets.disable_progress_bars()
    modules: list[Any] = [sys.modules[name] for name in WITH_BARS if name in sys.modules]
    shown = [(module, module.tqdm) for module in modules]
    for module, bar in shown:
        module.tqdm = _hidden(bar)
    try:
        with handled("lm_eval", warn, logging.WARNING):
            yield
    finally:
        for module, bar in shown:
            module.tqdm = bar
        if not bars:
            datasets.enable_progress_bars()


def _hidden(bar: Callable[..., Any]) -> Callable[..., Any]:
    """A progress bar that is not shown, whatever its caller asks."""
    return lambda *given, **options: bar(*given, **{**options, "disable": True})

"""lm-eval without its progress bars and its usual warnings."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets

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
def quiet(say: Callable[[str], None]) -> Iterator[None]:
    """Without lm-eval's progress bars and notes; each of its warnings that is no usual one is said once."""
    logger, bars = logging.getLogger("lm_eval"), datasets.are_progress_bars_disabled()
    handler = _Warnings(say)
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING)
    datasets.disable_progress_bars()
    modules: list[Any] = [sys.modules[name] for name in WITH_BARS if name in sys.modules]
    shown = [(module, module.tqdm) for module in modules]
    for module, bar in shown:
        module.tqdm = _hidden(bar)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])
        for module, bar in shown:
            module.tqdm = bar
        if not bars:
            datasets.enable_progress_bars()


def _hidden(bar: Callable[..., Any]) -> Callable[..., Any]:
    """A progress bar that is not shown, whatever its caller asks."""
    return lambda *given, **options: bar(*given, **{**options, "disable": True})


class _Warnings(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.say, self.said = say, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text not in self.said and not any(usual in text for usual in USUAL_WARNINGS):
            self.said.add(text)
            self.say(f"lm-eval: {text[:300]}")

"""lm-eval's class for Hugging Face models with a method attached, whose answers are kept and counted."""

import inspect
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, get_args

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM

from tda.cases import digest_of
from tda.contracts import Method, check_choice
from tda.engine import attach
from tda.engine.plain import plain
from tda.engine.run import Run
from tda.families import find_ffns
from tda.methods import Dense
from tda.models.digest import weights_digest
from tda.names import Execution, Protocol
from tda.quality.documents import read_jsonl
from tda.tasks import leaks
from tda.tasks.arguments import check_fit, chosen_method, fitted
from tda.tasks.cache import Counts, Hook
from tda.tasks.instances import contents_of, place
from tda.tasks.journal import Answer, Journal
from tda.tasks.requests import (
    OUTSIDE,
    Batches,
    outside_calibration,
)
from tda.tasks.tally import Tally
from tda.tasks.windows import windows_within

logger = logging.getLogger(__name__)


class MethodLM(HFLM):  # type: ignore[misc]
    """A model of lm-eval under a method; `Scoring` and `Generation` are what it is asked."""

    batch_size_per_gpu: int | str
    _requests: Sequence[Instance] = ()
    _names: Sequence[str] = ()
    _answers: Sequence[Answer] = ()
    _run: Run | None = None

    def __init__(
        self,
        pretrained: Any = None,
        *,
        method: str | Method = "dense",
        protocol: Protocol = "all_sparse",
        execution: Execution = "auto",
        thresholds: str | None = None,
        calibration_text: str | None = None,
        calibration_documents: int = 64,
        prompt_tokens: int | None = None,
        new_tokens: int | None = None,
        journal: str | Path | None = None,
        advance: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> None:
        if pretrained is None:
            raise ValueError("model tda needs a model: pretrained=FOLDER_OR_HUB_ID in --model_args")
        check_choice("protocol", protocol, get_args(Protocol))
        check_choice("execution", execution, get_args(Execution))
        made, options = chosen_method(method, options, OURS)
        check_fit(made, thresholds, calibration_text)
        if "device" not in options and isinstance(pretrained, str):
            options["device"] = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__(pretrained, **options)
        if self.mixed_precision_dtype is not None and made != Dense():
            raise ValueError("mixed_precision_dtype is for dense alone; give a method its type by dtype")
        made.check(find_ffns(self.model)[0])
        self.protocol, self.execution = protocol, execution
        self.tally = Tally()
        self._is_stock = isinstance(made, Dense)
        own = prompt_tokens is None and new_tokens is None
        self.windows = None if self._is_stock and own else windows_within(self.max_length, prompt_tokens, new_tokens)
        self.method = fitted(
            self.model,
            self.tokenizer,
            made,
            self.windows,
            thresholds=thresholds,
            text=calibration_text,
            documents=calibration_documents,
        )
        size = self.max_batch_size if self.batch_size == "auto" else self.batch_size
        self._fitted_here = made.thresholds is None and self.method.thresholds is not None
        self._text = None if calibration_text is None else Path(calibration_text)
        self._scoring, self._generating = (Batches.of(made, size, advance) for _ in range(2))
        self._journal = None if journal is None else Journal(Path(journal), self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """All that an answer follows from besides its request."""
        thresholds = self.method.thresholds
        return {
            "model": weights_digest(self.model),
            "tokenizer": _tokenizer_digest(self.tokenizer),
            "dtype": str(self.model.dtype),
            "method": str(self.method.spec),
            "thresholds": None if thresholds is None else digest_of(thresholds.model_dump(mode="json")),
            "protocol": None if self._is_stock else self.protocol,
            "execution": self.execution,
            "windows": self.windows,
            "softmax_dtype": str(self.softmax_dtype),
            "max_length": self.max_length,
            "tokens": [self.add_bos_token, self.prefix_token_id, self.think_end_token],
        }

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Use lm-eval's cache of answers, whose keys tell of the request alone.

        Raises
        ------
        ValueError
            If it holds answers of another model, method or protocol.
        """
        self.cache_hook = cache_hook if cache_hook.dbdict is None else Hook(cache_hook.dbdict, self.identity)

    @contextmanager
    def _asking(self, requests: Sequence[Instance], names: Sequence[str]) -> Iterator[None]:
        """Say what is asked, for what lm-eval's class calls in between."""
        self._requests, self._names, self._answers = requests, names, ()
        try:
            yield
        finally:
            self._requests, self._names = (), ()

    @contextmanager
    def _rows(self, rows: int) -> Iterator[None]:
        """Let lm-eval's class make one batch of so many rows."""
        before = self.batch_size_per_gpu
        self.batch_size_per_gpu = rows
        try:
            yield
        finally:
            self.batch_size_per_gpu = before

    @contextmanager
    def _attached(self, execution: Execution, *, plainly: bool = False) -> Iterator[None]:
        """Attach the method for many batches; dense is the model as it is.

        With `plainly` nothing that the model's folder says of its forwards holds, as `tda.score` has it.
        """
        if self._is_stock:
            yield
            return
        attached = attach(self.model, self.method, execution=execution)
        with plain(self.model) if plainly else nullcontext(), attached as run, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=OUTSIDE)
            self._run = run
            try:
                yield
            finally:
                self._run = None
                run.attachment.forget()

    def _journal_of_call(self) -> Journal:
        return Journal(None, {}) if self._journal is None else self._journal

    def _tell_of_lengths(self, lengths: Sequence[int]) -> None:
        if (told := outside_calibration(self.method, lengths)) is not None:
            logger.warning(told)

    def _cache(self, kind: str, request: Instance, counts: Counts, value: Any) -> None:
        if isinstance(self.cache_hook, Hook):
            self.cache_hook.expect(kind, request.args, place(request), counts)
            self.cache_hook.add_partial(kind, request.args, value)

    def _check_unseen(self, requests: Sequence[Instance]) -> None:
        """Raise ValueError if requests hold text that the method was fitted on, by a file that was named for it.

        Whoever brings a fitted method has held it against the text.
        """
        if not self._fitted_here:
            return
        tasks = contents_of(requests)
        if self._text is not None:
            leaks.check(read_jsonl(self._text), tasks)
        assert self.method.thresholds is not None
        leaks.check_thresholds(self.method.thresholds, self.tokenizer, tasks)


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return digest_of(repr(tokenizer))
    passing = ("padding", "truncation")  # what was asked for last
    return digest_of({name: part for name, part in json.loads(backend.to_str()).items() if name not in passing})


OBJECTS = ("self", "advance", "options")
"""Parameters that no command line can give."""
OURS = [name for name in inspect.signature(MethodLM.__init__).parameters if name not in OBJECTS]
"""Arguments of the model besides those of lm-eval's class."""

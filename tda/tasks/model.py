"""A model under a method as lm-eval sees it: every task of the harness, with sparsity applied to what is scored."""

import copy
import inspect
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor
from tqdm import tqdm

from tda.cases import digest_of
from tda.contracts import Method, check_choice
from tda.engine import attach
from tda.engine.plain import plain
from tda.engine.run import Run
from tda.families import find_ffns
from tda.finite import explained
from tda.methods import Dense
from tda.models.digest import weights_digest
from tda.names import Execution, Protocol
from tda.quality.documents import read_jsonl
from tda.tasks import leaks
from tda.tasks.arguments import check_fit, chosen_method, fitted
from tda.tasks.cache import Counts, Hook
from tda.tasks.instances import Place, asked_by, check_text, named, place
from tda.tasks.journal import Answer, Journal
from tda.tasks.requests import (
    OUTSIDE,
    Batches,
    Ends,
    Request,
    generate,
    grouped,
    loglikelihoods,
    outside_calibration,
    rounded,
    within,
)
from tda.tasks.windows import cut, windows_within


def _say(sentence: str) -> None:
    logging.getLogger(__name__).warning(sentence)


@register_model("tda")
class TDALM(HFLM):  # type: ignore[misc]
    """lm-eval's class for Hugging Face models, every scored and generated token under a method.

    Dense, without windows of its own, computes what lm-eval's class computes, to the last digit at the same batch size.
    Log-likelihoods of a method are computed masked; generation runs as `execution` says.

    Parameters
    ----------
    pretrained : str or PreTrainedModel
        A folder or a hub id, as for lm-eval's class; or a loaded model.
    method : str or Method
        A method's name or spec; its options may also be given by themselves, as ``sparsity=0.5``.
    protocol : {"all_sparse", "decode", "griffin"}
        Which tokens of a scored continuation are computed sparsely, as for `tda.score`. Of a generated text, all but
        the first are.
    execution : str
        How generation runs, as for `tda.attach`.
    thresholds : str, optional
        What the method is fitted with: a file of `tda calibrate`, or the folder of a saved method.
    calibration_text : str, optional
        Instead: a JSONL file of texts to fit the method on.
    calibration_documents : int
        Documents of it at most.
    prompt_tokens, new_tokens : int, optional
        Windows of a rolling log-likelihood: each scores so many tokens after a prompt of at most so many. A method has
        256 and 128 where nothing is said, or what its context holds; dense then does as lm-eval's class.
    journal : str or Path, optional
        JSONL file that keeps every answer as it comes; what it holds is not computed again.
    say : callable
        Told, in a sentence, what a user should know; else it is logged.
    advance : callable
        Called before each batch; what it raises ends the work, and answers so far are kept.
    batch_size : int or "auto"
        Rows of a batch; a batch that does not fit into memory is halved. "auto" begins with `max_batch_size`.
    **options
        Options of the method, and arguments of lm-eval's class.

    Attributes
    ----------
    told : dict
        For each request that was answered, by task, document and number within the document: tokens that were scored
        or generated, and how many of them were computed sparsely.
    generated : set of str
        Tasks whose tokens were generated.
    latest : TDALM or None
        The last one that lm-eval made of ``--model_args``.

    Raises
    ------
    ValueError
        If an argument is unknown, or a method is to be fitted and nothing says with what.
    """

    latest: ClassVar["TDALM | None"] = None
    batch_size_per_gpu: int | str

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
        say: Callable[[str], None] = _say,
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
        self._say = say
        self.protocol, self.execution = protocol, execution
        self.told: dict[Place, tuple[int, int]] = {}
        self.generated: set[str] = set()
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
            say=say,
        )
        size = self.max_batch_size if self.batch_size == "auto" else self.batch_size
        self._fitted_here = made.thresholds is None and self.method.thresholds is not None
        self._text = None if calibration_text is None else Path(calibration_text)
        self._scoring, self._generating = (Batches.of(made, size, say, advance) for _ in range(2))
        self._journal = None if journal is None else Journal(Path(journal), self.identity, say)
        self._asked: Sequence[Instance] = ()
        self._names: Sequence[str] = ()
        self._answers: list[Answer] = []
        self._run: Run | None = None
        self._sparse: list[float] = []
        self._sparse_tokens = 0

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        method: Method,
        *,
        protocol: Protocol = "all_sparse",
        execution: Execution = "auto",
        batch_size: int = 8,
        prompt_tokens: int | None = None,
        new_tokens: int | None = None,
        journal: Path | None = None,
        say: Callable[[str], None] = _say,
        advance: Callable[[], None] = lambda: None,
    ) -> "TDALM":
        """A loaded model under a method, fitted where it needs that; parameters as of the class.

        Log-softmax is computed in float32, whatever the model's type.
        """
        with _unnoticed():
            return cls(
                model,
                tokenizer=copy.deepcopy(tokenizer),  # it is given a pad token
                method=method,
                protocol=protocol,
                execution=execution,
                batch_size=batch_size,
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens,
                journal=journal,
                say=say,
                advance=advance,
                softmax_dtype="float32",
            )

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> "TDALM":
        """As lm-eval makes it of ``--model_args``."""
        made: TDALM = super().create_from_arg_obj(arg_dict, additional_config)
        TDALM.latest = made
        return made

    # What it is.

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

    @property
    def achieved_sparsity(self) -> tuple[float, ...]:
        """Share left out per layer, mean over the tokens that were computed sparsely; empty where none was."""
        return tuple(share / self._sparse_tokens for share in self._sparse)

    @property
    def tokens(self) -> dict[str, tuple[int, int]]:
        """For each task: tokens that were scored or generated, and how many of them were computed sparsely."""
        if isinstance(self.cache_hook, Hook):
            for place, counts in self.cache_hook.found():
                if place not in self.told:
                    self._tell(place, counts)
        found: dict[str, tuple[int, int]] = {}
        for (task, _, _), (tokens, sparse) in self.told.items():
            before = found.get(str(task), (0, 0))
            found[str(task)] = (before[0] + tokens, before[1] + sparse)
        return found

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results: the method and what it did, beside what is known of the model."""
        info: dict[str, Any] = super().get_model_info()
        tokens = self.tokens
        return info | {
            "method": str(self.method.spec),
            "protocol": self.protocol,
            "execution": self.execution,
            "windows": self.windows,
            "achieved_sparsity": list(self.achieved_sparsity),
            "sparse_share": {task: sparse / max(count, 1) for task, (count, sparse) in tokens.items()},
        }

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Use lm-eval's cache of answers, whose keys tell of the request alone.

        Raises
        ------
        ValueError
            If it holds answers of another model, method or protocol.
        """
        self.cache_hook = cache_hook if cache_hook.dbdict is None else Hook(cache_hook.dbdict, self.identity)

    # What lm-eval asks.

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations in nats, and whether greedy decoding gives them too."""
        for request in requests:
            check_text(request, *request.args)
            if not request.args[1]:
                raise ValueError(f"{named(request)}: the continuation is empty, so there is nothing to score")
        self._check_unseen(requests)
        with self._asking(requests, [named(request) for request in requests]):
            found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
            for request, answer in zip(requests, self._answers, strict=True):
                self._tell(place(request), _counts(answer))
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts in nats, each token predicted once."""
        for request in requests:
            check_text(request, *request.args)
        self._check_unseen(requests)
        if self.windows is None:
            return self._rolling_as_stock(requests, disable_tqdm)
        windows, names, owners = [], [], []
        for number, request in enumerate(requests):
            parts = cut(self.prefix_token_id, self.tok_encode(request.args[0]), self.windows)
            windows += [(None, prompt, continuation) for prompt, continuation in parts]
            names += [f"{named(request)}, window {window}" for window in range(len(parts))]
            owners += [number] * len(parts)
        with self._asking((), names):
            self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
            answers = self._answers
        totals = []
        for number, request in enumerate(requests):
            own = [answer for owner, answer in zip(owners, answers, strict=True) if owner == number]
            counts = Counts.together(map(_counts, own))
            totals.append(math.fsum(float(answer.value[0]) for answer in own))
            self._tell(place(request), counts)
            self._cache("loglikelihood_rolling", request, counts, totals[-1])
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generated texts, each up to its first stop string."""
        journal, drawn = self._journal_of_call(), Journal(None, {}, self._say)
        lengths = [self._check_generation(request) for request in requests]
        self._check_unseen(requests)
        keys, homes = [], []
        for number, request in enumerate(requests):
            sampled = request.args[1].get("do_sample", False)  # a text drawn once is none for the next time
            homes.append(drawn if sampled else journal)
            keys.append(homes[-1].key("generate_until", *request.args, *([number] if sampled else [])))
        room = [self.max_length - self._new_tokens(request) for request in requests]
        self._tell_of_lengths([min(length, left) for length, left in zip(lengths, room, strict=True)])
        order = sorted(range(len(requests)), key=lambda number: (-lengths[number], requests[number].args[0]))
        todo = {keys[number]: number for number in reversed(order) if homes[number].get(keys[number]) is None}
        alike = grouped(
            [number for number in order if todo.get(keys[number]) == number], self._generated_alike(requests)
        )
        bar = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running generate_until requests")
        bar.update(len(requests) - len(todo))

        def run(batch: Sequence[int]) -> None:
            asked = [requests[number] for number in batch]
            with self._asking(asked, ()), self._rows(len(batch)):
                texts = HFLM.generate_until(self, asked, disable_tqdm=True)
                found = zip(batch, texts, self._answers, strict=True)
                answers = {number: answer.model_copy(update={"value": text}) for number, text, answer in found}
                for home in (drawn, journal):
                    home.add({keys[number]: answers[number] for number in batch if homes[number] is home})
            bar.update(len(batch))

        with self._attached(self.execution) if alike else nullcontext():
            for group in alike:
                self._generating.each(
                    group,
                    run,
                    lambda number: f"{named(requests[number])}: generation from {lengths[number]} tokens",
                )
        bar.close()
        answers = [_present(home.get(key)) for home, key in zip(homes, keys, strict=True)]
        for request, answer in zip(requests, answers, strict=True):
            self._tell(place(request), _counts(answer))
        return [str(answer.value) for answer in answers]

    # How lm-eval's class goes about it.

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Score token requests, the longest first; those that differ in their last token share a row."""
        names = self._names or [f"request {number}" for number in range(len(requests))]
        whole = [
            Request(tuple(context), tuple(continuation), name)
            for (_, context, continuation), name in zip(requests, names, strict=True)
        ]
        cut = within(whole, self.max_length, self._say)
        self._tell_of_lengths([len(request.context) for request in cut])
        journal = self._journal_of_call()
        keys = [journal.key("loglikelihood", request.context, request.continuation) for request in cut]
        groups = self._rows_of(whole if self._is_stock else cut)
        if not self._is_stock:
            groups = [group for group in groups if any(journal.get(keys[number]) is None for number in group)]
        bar = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests")
        bar.update(len(requests) - sum(map(len, groups)))

        def run(batch: Sequence[list[int]]) -> None:
            numbers = [number for group in batch for number in group]
            if any(journal.get(keys[number]) is None for number in numbers):
                if self._is_stock:
                    found = self._stock(numbers, requests, names, len(batch))
                else:
                    assert self._run is not None
                    asked = [[cut[number] for number in group] for group in batch]
                    scored = loglikelihoods(self._run, asked, protocol=self.protocol, softmax_dtype=self.softmax_dtype)
                    found = [answer for group in scored for answer in group]
                journal.add({keys[number]: answer for number, answer in zip(numbers, found, strict=True)})
            bar.update(len(numbers))

        with self._attached("masked", plainly=True) if groups else nullcontext():
            self._scoring.each(
                groups, run, lambda group: f"{cut[group[0]].name}: a request of {len(cut[group[0]].tokens)} tokens"
            )
        bar.close()
        self._answers = [_present(journal.get(key)) for key in keys]
        if not self._is_stock:
            for request, answer in zip(self._asked, self._answers, strict=False):
                self._cache("loglikelihood", request, _counts(answer), answer.value)
        return [(float(answer.value[0]), bool(answer.value[1])) for answer in self._answers]

    def _stock(self, numbers: Sequence[int], requests: Sequence[Any], names: Sequence[str], rows: int) -> list[Answer]:
        """Answers of lm-eval's class to one batch of its own."""
        if isinstance(self.cache_hook, Hook):
            for number in numbers:
                if self._asked:
                    counts = Counts(len(requests[number][2]), 0)
                    self.cache_hook.expect(
                        "loglikelihood", self._asked[number].args, place(self._asked[number]), counts
                    )
        values = super()._loglikelihood_tokens(
            [requests[number] for number in numbers], disable_tqdm=True, override_bs=rows
        )
        for number, (value, _) in zip(numbers, values, strict=True):
            if not math.isfinite(value):
                raise explained(self.model, f"dense on {names[number]}: the log-likelihood is {value}")
        return [
            Answer(value=value, tokens=len(requests[number][2]), sparse_tokens=0)
            for number, value in zip(numbers, values, strict=True)
        ]

    def _rows_of(self, requests: Sequence[Request]) -> list[list[int]]:
        """Requests that one row of a batch serves, by number; in lm-eval's own order, the longest first.

        Under a method it matters where the context ends.
        """

        def shared(number: int) -> object:
            request = requests[number]
            if not self.logits_cache:
                return number
            front = request.continuation[:-1]
            return request.context + front if self._is_stock else (request.context, front)

        def order(group: list[int]) -> tuple[int, tuple[int, ...]]:
            longest = requests[max(group, key=lambda number: len(requests[number].continuation))].tokens
            return -len(longest), longest

        return sorted(grouped(range(len(requests)), shared), key=order)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """Generate a batch; each row ends by itself, so that it is what it would be alone."""
        temperature, sampling = options.pop("temperature", 0.0), options.pop("do_sample", None)
        sampling = temperature > 0 if sampling is None else sampling
        options |= {"do_sample": True, "temperature": temperature} if sampling else {"do_sample": False}
        ends = self.model.generation_config.eos_token_id
        ending = {self.eot_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        where = Ends(self.tokenizer, frozenset(ending), tuple(one for one in stop if one))
        if self._run is not None:
            self._run.attachment.forget()
        with torch.autocast(
            device_type=self.device.type,
            dtype=self.mixed_precision_dtype,
            enabled=self.mixed_precision_dtype is not None,
        ):
            sequences, lengths = generate(
                self.model,
                context,
                options.pop("attention_mask"),
                where,
                max_length=max_length,
                pad_token_id=self.tokenizer.pad_token_id,
                **options,
            )
        achieved: tuple[float, ...] = ()
        if self._run is not None and self.method.selects and max(lengths) > 1:
            achieved = rounded(self._run.achieved_sparsity())
        sparse = [max(0, length - 1) if self.method.selects else 0 for length in lengths]
        self._answers = [
            Answer(value="", tokens=length, sparse_tokens=count, achieved_sparsity=achieved if count else ())
            for length, count in zip(lengths, sparse, strict=True)
        ]
        if isinstance(self.cache_hook, Hook):
            for request, answer in zip(self._asked, self._answers, strict=True):
                self.cache_hook.expect("generate_until", request.args, place(request), _counts(answer))
        return sequences

    # What these share.

    @contextmanager
    def _asking(self, requests: Sequence[Instance], names: Sequence[str]) -> Iterator[None]:
        """Say what is asked, for what lm-eval's class calls in between."""
        self._asked, self._names, self._answers = requests, names, []
        try:
            yield
        finally:
            self._asked, self._names = (), ()

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
        return Journal(None, {}, self._say) if self._journal is None else self._journal

    def _tell(self, place: Place, counts: Counts) -> None:
        """Note how many tokens a request had, and what was left out of them."""
        self.told[place] = (counts.tokens, counts.sparse)
        if counts.generated:
            self.generated.add(str(place[0]))
        if counts.achieved:
            sums = self._sparse or [0.0] * len(counts.achieved)
            self._sparse = [one + counts.sparse * share for one, share in zip(sums, counts.achieved, strict=True)]
            self._sparse_tokens += counts.sparse

    def _tell_of_lengths(self, lengths: Sequence[int]) -> None:
        if (told := outside_calibration(self.method, lengths)) is not None:
            self._say(told)

    def _cache(self, kind: str, request: Instance, counts: Counts, value: Any) -> None:
        if isinstance(self.cache_hook, Hook):
            self.cache_hook.expect(kind, request.args, place(request), counts)
            self.cache_hook.add_partial(kind, request.args, value)

    def _generated_alike(self, requests: Sequence[Instance]) -> Callable[[int], object]:
        """What requests of one batch have in common; lm-eval's class looks for a BOS in the first context alone."""
        bos = self.tokenizer.bos_token

        def key(number: int) -> object:
            context, options = requests[number].args
            return digest_of(options), bos is not None and context.startswith(bos)

        return key

    def _check_generation(self, request: Instance) -> int:
        """Tokens of a context to generate from; ValueError where that cannot be."""
        context = request.args[0]
        check_text(request, context)
        new = self._new_tokens(request)
        if not 0 < new < self.max_length:
            raise ValueError(
                f"{named(request)} asks for {new} new tokens; expected at least 1, and fewer than the model's context "
                f"of {self.max_length}"
            )
        count = len(self.tok_encode(context))
        if not count:
            raise ValueError(f"{named(request)}: the context has no tokens, so there is nothing to generate from")
        return count

    def _new_tokens(self, request: Instance) -> int:
        """How many tokens are generated at most."""
        count: int = normalize_gen_kwargs(request.args[1], self.max_gen_toks)["max_gen_toks"]
        return count

    def _check_unseen(self, requests: Sequence[Instance]) -> None:
        """Raise ValueError if requests hold text that the method was fitted on, by a file that was named for it.

        Whoever brings a fitted method has held it against the text.
        """
        if not self._fitted_here:
            return
        tasks = asked_by(requests)
        if self._text is not None:
            leaks.check(read_jsonl(self._text), tasks)
        assert self.method.thresholds is not None
        leaks.check_thresholds(self.method.thresholds, self.tokenizer, tasks)

    def _rolling_as_stock(self, requests: list[Instance], disable_tqdm: bool) -> list[float]:
        counted = [Counts(len(self.tok_encode(request.args[0])), 0) for request in requests]
        for request, counts in zip(requests, counted, strict=True):
            if isinstance(self.cache_hook, Hook):
                self.cache_hook.expect("loglikelihood_rolling", request.args, place(request), counts)
        found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        for request, counts in zip(requests, counted, strict=True):
            self._tell(place(request), counts)
        return found


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return digest_of(repr(tokenizer))
    passing = ("padding", "truncation")  # what was asked for last
    return digest_of({name: part for name, part in json.loads(backend.to_str()).items() if name not in passing})


def _counts(answer: Answer) -> Counts:
    return Counts(answer.tokens, answer.sparse_tokens, answer.achieved_sparsity, isinstance(answer.value, str))


def _present(answer: Answer | None) -> Answer:
    assert answer is not None
    return answer


@contextmanager
def _unnoticed() -> Iterator[None]:
    """Keep lm-eval's class from warning of a model that is loaded already: that is what is meant."""
    log = logging.getLogger("lm_eval.models.huggingface")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


OBJECTS = ("self", "say", "advance", "options")
"""Parameters that no command line can give."""
OURS = [name for name in inspect.signature(TDALM.__init__).parameters if name not in OBJECTS]
"""Arguments of the model besides those of lm-eval's class."""

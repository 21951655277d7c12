"""Log-likelihoods that lm-eval asks for, computed under a method."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from lm_eval.api.instance import Instance
from tqdm import tqdm

from tda.finite import explained
from tda.tasks.cache import Counts, Hook
from tda.tasks.instances import check_text, named, place
from tda.tasks.journal import Answer
from tda.tasks.method_lm import MethodLM
from tda.tasks.requests import (
    TokenRequest,
    grouped,
    loglikelihoods,
    within,
)
from tda.tasks.tally import counts_of, present
from tda.tasks.windows import cut


class ScoringLM(MethodLM):
    """What scores: continuations of a context, and whole texts."""

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
                self.tally.add(place(request), counts_of(answer))
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
            counts = Counts.together(map(counts_of, own))
            totals.append(math.fsum(float(answer.value[0]) for answer in own))
            self.tally.add(place(request), counts)
            self._cache("loglikelihood_rolling", request, counts, totals[-1])
        return totals

    def _rolling_as_stock(self, requests: list[Instance], disable_tqdm: bool) -> list[float]:
        counted = [Counts(len(self.tok_encode(request.args[0])), 0) for request in requests]
        for request, counts in zip(requests, counted, strict=True):
            if isinstance(self.cache_hook, Hook):
                self.cache_hook.expect("loglikelihood_rolling", request.args, place(request), counts)
        found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        for request, counts in zip(requests, counted, strict=True):
            self.tally.add(place(request), counts)
        return found

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Score token requests, the longest first; those that differ in their last token share a row."""
        names = self._names or [f"request {number}" for number in range(len(requests))]
        whole = [
            TokenRequest(tuple(context), tuple(continuation), name)
            for (_, context, continuation), name in zip(requests, names, strict=True)
        ]
        cut = within(whole, self.max_length)
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
        self._answers = [present(journal.get(key)) for key in keys]
        if not self._is_stock:
            for request, answer in zip(self._requests, self._answers, strict=False):
                self._cache("loglikelihood", request, counts_of(answer), answer.value)
        return [(float(answer.value[0]), bool(answer.value[1])) for answer in self._answers]

    def _stock(self, numbers: Sequence[int], requests: Sequence[Any], names: Sequence[str], rows: int) -> list[Answer]:
        """Answers of lm-eval's class to one batch of its own."""
        if isinstance(self.cache_hook, Hook):
            for number in numbers:
                if self._requests:
                    counts = Counts(len(requests[number][2]), 0)
                    self.cache_hook.expect(
                        "loglikelihood", self._requests[number].args, place(self._requests[number]), counts
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

    def _rows_of(self, requests: Sequence[TokenRequest]) -> list[list[int]]:
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

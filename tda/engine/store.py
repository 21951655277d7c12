"""The requests of an attachment, each found by its key-value cache."""

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from tda.contracts import Method
from tda.engine.caches import MARK
from tda.engine.request import PREFILL_INSIDE, Call, Request
from tda.engine.transformers_api import cached_tokens
from tda.engine.unseen import Unseen
from tda.prompt_statistics import begin
from tda.view import Place, SquaresSum


class RequestStore:
    """Requests of a method, carried by their caches.

    Parameters
    ----------
    method : Method
        The attached method.
    ffns : sequence of Place
        Where it leaves something out.
    sweep : callable
        Kernel that sums a prompt's squares where it can.
    unseen : Unseen
        Is told of the requests that are decoded.

    Attributes
    ----------
    last : Request or None
        That of the last forward.
    """

    def __init__(self, method: Method, ffns: Sequence[Place], sweep: SquaresSum, unseen: Unseen) -> None:
        self.last: Request | None = None
        self._method = method
        self._ffns = ffns
        self._sweep = sweep
        self._unseen = unseen
        self._owner = object()  # copies of caches outlive the attachment, and hold no more than this
        self._caches: weakref.WeakSet[Any] = weakref.WeakSet()

    def __len__(self) -> int:
        return len(self._caches)

    def find(self, cache: Any, rows: int, device: torch.device, *, explicit_decode: bool) -> Request:
        """The request that a forward on a cache belongs to, a new one where none is known.

        Raises
        ------
        ValueError
            If the cache does not stand for what passed here, and the method selects from that.
        """
        cached = cached_tokens(cache)
        from_prompt = self._method.kind == "prompt" and self._method.scope == "prompt"
        known: Request | None = getattr(cache, MARK, None)  # its own, or that of the cache it is a copy of
        if known is not None and known.owner is not self._owner:
            known = None
        if known is not None and (cached > 0 or explicit_decode):
            if from_prompt:
                known.follow(cache, cached, rows, explicit=explicit_decode)
                return known
            if known.rows == rows:
                known.fed, known.length = known.fed + cached - known.length, cached
                return known
            self._unseen.used(known)  # its rows go on in a request of their own
        if from_prompt:
            if cached > 0:
                raise ValueError(
                    f"the cache holds {cached} tokens that did not pass through this attached model, so "
                    f"{self._method.name!r} knows nothing of them to select from. {PREFILL_INSIDE}"
                )
            if explicit_decode:
                raise ValueError(f"decode needs the key-value cache of a prompt. {PREFILL_INSIDE}")
        statistics = self._method.statistics(self._ffns, self._sweep)
        begin(statistics, rows, [ffn.F for ffn in self._ffns], device)
        request = Request(statistics, rows, device, fed=cached, length=cached)
        if cache is not None:
            self._put(cache, request)
        return request

    def passed(self, cache: Any, call: Call) -> None:
        """A forward has ended: the cache that it made or filled belongs to its request."""
        self._put(cache, call.request)
        call.request.passed(cache, cached_tokens(cache), call.tokens)
        self._unseen.watch(cache, call.request)

    def clear(self) -> None:
        """Let no cache carry a request any more."""
        for cache in self._caches:
            vars(cache).pop(MARK, None)

    def _put(self, cache: Any, request: Request) -> None:
        request.owner = self._owner
        setattr(cache, MARK, request)
        self._caches.add(cache)

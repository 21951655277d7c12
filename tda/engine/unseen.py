"""Prompts that run through an attached model and are never decoded: dense results that a caller may take for sparse."""

import warnings
import weakref
from typing import Any

from tda.contracts import Method
from tda.engine.request import Request

SCORE_INSTEAD = (
    "A forward of a prompt is dense by definition; only decode leaves neurons out. To score text under a method, use "
    "`tda.score`, which says what it computes sparsely, or feed the tokens on a cache that a prompt has filled"
)


class Unseen:
    """Watches the forwards of prompts that a caller makes by hand, without telling that they are prompt.

    A perplexity loop consists of such forwards alone. It is warned of once: at a forward that keeps no cache, when a
    cache is dropped that nothing was decoded on, or at the end.

    Parameters
    ----------
    method : Method
        The attached method; where it leaves nothing out in decode either, there is nothing to warn of.
    """

    def __init__(self, method: Method) -> None:
        self._matters = method.selects and not method.keeps_all
        self._name = method.name
        self._waiting: weakref.WeakSet[Request] = weakref.WeakSet()
        self._is_open = True
        self._dropped: set[Request] = set()
        self._has_guessed = False

    def forward(self, request: Request, keeps_cache: bool) -> None:
        """A forward of a prompt begins."""
        if self._dropped:
            self._warn(len(self._dropped))
        if not self._matters:
            return
        if keeps_cache:
            self._waiting.add(request)
        else:
            self._warn(1)

    def watch(self, cache: Any, request: Request) -> None:
        """A request has a cache now: when that is dropped, nothing can be decoded any more."""
        if request in self._waiting:
            weakref.finalize(cache, self._drop, request).atexit = False

    def used(self, request: Request) -> None:
        """A request is decoded, or its selection looked at."""
        self._waiting.discard(request)
        self._dropped.discard(request)

    def _drop(self, request: Request) -> None:
        if self._is_open and request in self._waiting:
            self._waiting.discard(request)
            self._dropped.add(request)

    def guessed(self, tokens: int) -> None:
        """Several tokens are fed on a filled cache, and nobody told what they are."""
        if self._matters and tokens > 1 and not self._has_guessed:
            self._has_guessed = True
            warnings.warn(
                f"{tokens} tokens on a filled cache were taken for decode steps of {self._name!r}, whose selection is "
                "from what was prefilled before. If they are prompt, say `with run.prefill():`; if they are text to be "
                "scored, say `with run.decode():`, or use `tda.score`",
                stacklevel=4,
            )

    def outside(self) -> None:
        """A feed-forward network runs outside the model's own forward."""
        if self._matters and self._is_open:
            self._matters = False
            warnings.warn(
                f"a part of the model was called by itself while {self._name!r} was attached: it ran dense, and what "
                "it computed is in no selection. Call the model itself, as `model(...)`",
                stacklevel=4,
            )

    def close(self, *, tell: bool) -> None:
        """End; with `tell`, warn of what was never decoded."""
        self._is_open = False
        count = len(self._dropped) + len(self._waiting)
        if tell and count:
            self._warn(count)

    def _warn(self, prompts: int) -> None:
        if self._matters:
            what, them = ("prompt was", "it") if prompts == 1 else ("prompts were", "them")
            warnings.warn(
                f"{prompts} {what} run through the model while {self._name!r} was attached, and nothing was decoded "
                f"on {them}: what came out is dense. {SCORE_INSTEAD}",
                stacklevel=4,
            )
        self._matters = False
        self._dropped.clear()

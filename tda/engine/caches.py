"""What was done to a key-value cache between two forwards: tokens lost, rows moved, and to which request it belongs."""

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MARK = "_tda_request"
"""Attribute by which a cache carries its request: a copy of the cache then carries a copy of it."""

CHANGED = (
    "the keys of the cache are not those that the attached model left in it: it is taken to stand for the same tokens, "
    "row by row. Where they are another prompt's, prefill that prompt inside `attach` instead"
)


@dataclass(frozen=True, eq=False)
class Shown:
    """The keys that a cache shows: of its last layer, which depend on all tokens before them.

    Attributes
    ----------
    keys : Tensor
        [B, H, T, W]; a quantised cache shows the last tokens alone.
    version : int
        Changes that were made in place to them.
    filled : int
        Tokens that lie in them.
    """

    keys: Tensor
    version: int
    filled: int

    @classmethod
    def of(cls, cache: Any) -> "Shown | None":
        """What a cache shows now; None where it shows nothing."""
        for layer in reversed(getattr(cache, "layers", ())):
            keys = getattr(layer, "keys", None)
            if isinstance(keys, Tensor) and keys.dim() == 4 and keys.shape[2]:
                return cls(keys, _version(keys), _filled(layer, keys))
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shown":
        """What the copied cache shows: changes are counted anew for its keys."""
        keys = copy.deepcopy(self.keys, memo)
        return Shown(keys, _version(keys) if self.version == _version(self.keys) else -1, self.filled)

    def settled(self) -> "Shown":
        """The same in memory of its own."""
        keys = self.keys.clone()
        return Shown(keys, _version(keys), self.filled)

    def last(self, lost: int) -> Tensor | None:
        """The last token's keys but `lost`: [B, H·W]; None where they are not shown."""
        place = self.filled - 1 - lost
        return self.keys[:, :, place].flatten(1) if place >= 0 else None

    def is_untouched(self, before: "Shown") -> bool:
        """Whether these are the keys of before, and nothing was written to them."""
        return self.keys is before.keys and self.version == before.version >= 0 and self.filled == before.filled


def _version(keys: Tensor) -> int:
    """Changes in place so far; -1 where torch does not count them."""
    return -1 if keys.is_inference() else keys._version


def _filled(layer: Any, keys: Tensor) -> int:
    """Tokens that lie in a layer's keys: those of a static cache are as long as it may become."""
    length: int = keys.shape[2]
    return min(length, int(layer.get_seq_length())) if hasattr(layer, "max_cache_len") else length


def settle(cache: Any) -> None:
    """Let what a cache showed lie in memory of its own, before the memory of its keys is used anew."""
    request = getattr(cache, MARK, None)
    if request is not None and request.shown is not None:
        request.shown = request.shown.settled()


def lost_tokens(cache: Any, before: Shown | None, lost: int) -> int:
    """Tokens at its end that a cache has lost since it last showed itself, of the `lost` that it is shorter now.

    A cache that is shorter but still ends with the same token was compressed: it stands for as many tokens as before.
    """
    now = Shown.of(cache) if lost > 0 else None
    if now is None or before is None:
        return lost
    last, ended = now.last(0), before.last(0)
    compressed = last is not None and ended is not None and last.shape == ended.shape and torch.equal(last, ended)
    return 0 if compressed else lost


def moved_rows(cache: Any, before: Shown | None, lost: int, rows: int, wanted: int) -> Tensor | None:
    """Which rows the rows of a cache were when it last showed itself: int64 [B]; None where they are in place.

    Rows are told apart by the keys of their last common token, bit for bit.

    Parameters
    ----------
    cache : object
        The key-value cache.
    before : Shown or None
        What it showed.
    lost : int
        Tokens at its end that it has lost since.
    rows, wanted : int
        Batch rows before and now.

    Raises
    ------
    ValueError
        If there are more or fewer rows, and one is none of those before.
    """
    now = Shown.of(cache)
    if before is not None and now is not None:
        if not lost and now.is_untouched(before):
            return None
        if now.keys is before.keys and now.version != before.version:
            warnings.warn(CHANGED, stacklevel=6)
            return None
        mine, theirs = now.last(0), before.last(lost)
        if mine is not None and theirs is not None and mine.shape[1:] == theirs.shape[1:]:
            return _matching(mine, theirs.to(mine.device))
    pending = getattr(cache.layers[-1], "_pending_beam_idx", None) if getattr(cache, "layers", ()) else None
    if isinstance(pending, Tensor):  # a quantised cache moves its rows later
        return pending
    if rows == wanted:
        return None
    raise ValueError(
        f"the cache was of {rows} rows and is now of {wanted}, and does not show which are which; "
        "prefill the prompts of this batch inside `attach`"
    )


def _matching(mine: Tensor, theirs: Tensor) -> Tensor | None:
    """For each row [B, N] the equal row of before [R, N]: int64 [B]; None if all are in place."""
    count = len(theirs)
    if mine.shape == theirs.shape and torch.equal(mine, theirs):
        return None
    equal = torch.stack([(row == theirs).all(1) for row in mine])  # [B, R]
    if not bool(equal.any(1).all()):
        if len(mine) != count:
            raise ValueError(f"the cache was of {count} rows and is now of {len(mine)} that are none of them")
        warnings.warn(CHANGED, stacklevel=7)
        return None
    own = torch.arange(len(mine), device=mine.device) * count // len(mine)
    preferred = equal.long()
    preferred[torch.arange(len(mine), device=mine.device), own] *= 2  # of equal rows, the one in place
    return preferred.argmax(1)

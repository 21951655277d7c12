"""The state of a request (its prompt's statistic, the neurons that it keeps, its key-value cache) and of a forward."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from tda.contracts import Prompt, PromptMethod
from tda.engine.caches import Shown, lost_tokens, moved_rows
from tda.names import Ran
from tda.selection import Selection
from tda.view import FFN, Statistic

Phase = Literal["prefill", "decode"]


# long: the state of a request, each field of it explained
@dataclass(eq=False)
class Request:
    """What belongs to one key-value cache.

    A copy of the cache carries a copy of its request, so that a shared prefix is known wherever it is continued.

    Attributes
    ----------
    statistics : list
        One per layer; None where the method needs none.
    rows : int
        Batch rows.
    device : torch.device
        Where selections are made.
    fed : int
        Tokens of each row that the cache stands for, padding too: what passed, less what was cropped.
    length : int
        What the cache itself said after the last forward: less than `fed` where it was compressed.
    prompt_fed : int
        `fed` after the last prompt token.
    prompt_end : int or None
        Within `generate`: forwards are prompt until so many tokens are fed.
    kept : Selection or None
        What its prompt keeps; None until it is selected, and again when the prompt goes on.
    execution : str or None
        Execution chosen for this selection.
    unfed : Tensor or None
        The last generated token of each row, which no forward has seen yet: int64 [B].
    shown : Shown or None
        What the cache showed after the last forward.
    owner : object
        The attachment that it belongs to.
    """

    statistics: list[Statistic | None]
    rows: int
    device: torch.device
    fed: int = 0
    length: int = 0
    prompt_fed: int = 0
    prompt_end: int | None = None
    kept: Selection | None = None
    execution: Ran | None = None
    unfed: Tensor | None = None
    shown: Shown | None = None
    owner: object = None
    _prompt: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Request":
        """A request of its own for a copied cache."""
        copied = copy.copy(self)
        memo[id(self)] = copied
        copied.statistics = copy.deepcopy(self.statistics, memo)
        copied.shown = copy.deepcopy(self.shown, memo)  # the copied cache's own tensors, by the memo
        copied._prompt = list(self._prompt)
        return copied

    # The cache.

    def follow(self, cache: Any, length: int, rows: int, *, explicit: bool) -> None:
        """Take note of what was done to the cache since the last forward.

        Parameters
        ----------
        cache : object
            The key-value cache.
        length : int
            Tokens that it holds now.
        rows : int
            Batch rows of the forward to come.
        explicit : bool
            Whether the caller tells the phase: he may then feed prompt tokens again as decode.

        Raises
        ------
        ValueError
            If the cache does not stand for the tokens that passed here, or prompt tokens were cropped.
        """
        lost = lost_tokens(cache, self.shown, self.length - length)
        if lost < 0:
            raise ValueError(
                f"the cache holds {length} tokens, of which {self.length} passed through this attached model: "
                f"the selection would miss the others. {PREFILL_INSIDE}"
            )
        if self.fed - lost < self.prompt_fed and not explicit:
            raise ValueError(
                f"the cache was cropped to {self.fed - lost} of the {self.prompt_fed} prompt tokens that the selection "
                "is from. Copy the cache of the shared prefix (copy.deepcopy) before the prompt goes on, or prefill "
                "anew, instead of cropping prompt tokens"
            )
        if lost:
            self.unfed = None
        self.fed, self.length = self.fed - lost, length
        moved = moved_rows(cache, self.shown, lost, self.rows, rows)
        if moved is not None:
            self._move(moved)

    def passed(self, cache: Any, length: int, count: int) -> None:
        """Take note of a forward of `count` tokens that has ended."""
        self.fed += count
        self.length = length
        self.shown = Shown.of(cache)

    def _move(self, rows: Tensor) -> None:
        """Let row i of the batch be what row rows[i] was."""
        rows = rows.to(self.device)
        self.unfed = None if self.unfed is None else self.unfed[rows]
        if len(rows) == self.rows and self._are_alike(rows):
            return
        self.rows = len(rows)
        for statistic in self.statistics:
            if statistic is not None:
                statistic.take(rows)
        self._prompt = [(tokens[rows], mask[rows]) for tokens, mask in self._prompt]
        self.kept = None

    def _are_alike(self, rows: Tensor) -> bool:
        """Whether the rows' prompts are those of the rows that they take the place of, as within beams."""
        return all(
            bool((tokens[rows] == tokens).all()) and bool((mask[rows] == mask).all()) for tokens, mask in self._prompt
        )

    # The prompt.

    def read(self, tokens: Tensor, mask: Tensor) -> None:
        """Take note of prompt tokens [B, T] (or embeddings [B, T, D]) where mask [B, T] is true."""
        self._prompt.append((tokens, mask))
        self.prompt_fed = self.fed + tokens.shape[1]
        self.kept = None

    def prompt(self) -> Prompt:
        """What a method may know of the prompt so far."""
        tokens = torch.zeros(self.rows, dtype=torch.int64, device=self.device)
        for _, mask in self._prompt:
            tokens += mask.sum(1)
        return Prompt(tokens=tokens, key=self._key)

    def _key(self, row: int) -> int:
        digest = hashlib.blake2b(digest_size=8)
        for tokens, mask in self._prompt:
            digest.update(tokens[row][mask[row]].double().cpu().numpy().tobytes())
        return int.from_bytes(digest.digest(), "little")

    def choose(self, method: PromptMethod, ffns: Sequence[FFN]) -> Selection:
        """What a method keeps, from the prompt so far."""
        prompt = self.prompt()
        for ffn, statistic in zip(ffns, self.statistics, strict=True):
            if statistic is not None and not len(statistic.tokens):  # of an expert that no prompt token reached
                nothing = torch.zeros(self.rows, 0, ffn.F, device=self.device)
                statistic.add(nothing, nothing[..., 0].bool())
        pairs = zip(ffns, self.statistics, strict=True)
        return Selection(method.select(ffn, statistic, prompt) for ffn, statistic in pairs)


@dataclass
class Call:
    """One forward of the model in progress.

    Attributes
    ----------
    mask : Tensor
        Its tokens that are no padding: bool [B, T].
    execution : str or None
        Of a decode step.
    passed : bool
        Whether it ran to its end.
    """

    phase: Phase
    rows: int
    tokens: int
    mask: Tensor
    request: Request
    execution: Ran | None = None
    passed: bool = False


PREFILL_INSIDE = (
    "Prefill the whole prompt inside `attach`, before anything is decoded: "
    "`with run.prefill(): model(prompt, past_key_values=cache)`, on an empty cache"
)
"""What to do with a cache whose prompt is not known."""

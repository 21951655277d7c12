"""Tokens of requests: how many were scored or generated, how many of them sparsely, and what was left out of these."""

from tda.tasks.cache import Counts
from tda.tasks.instances import RequestPlace
from tda.tasks.journal import Answer


class Tally:
    """Tokens of the requests that were answered.

    Attributes
    ----------
    by_request : dict
        For each request, by task, document and number within the document: tokens that were scored or generated, and
        how many of them were computed sparsely.
    generated : set of str
        Tasks whose tokens were generated.
    """

    def __init__(self) -> None:
        self.by_request: dict[RequestPlace, tuple[int, int]] = {}
        self.generated: set[str] = set()
        self._sparse: list[float] = []
        self._sparse_tokens = 0

    def add(self, place: RequestPlace, counts: Counts) -> None:
        """Note how many tokens a request had, and what was left out of them."""
        self.by_request[place] = (counts.tokens, counts.sparse)
        if counts.generated:
            self.generated.add(str(place[0]))
        if counts.achieved:
            sums = self._sparse or [0.0] * len(counts.achieved)
            self._sparse = [one + counts.sparse * share for one, share in zip(sums, counts.achieved, strict=True)]
            self._sparse_tokens += counts.sparse

    @property
    def achieved_sparsity(self) -> tuple[float, ...]:
        """Share left out per layer, mean over the tokens that were computed sparsely; empty where none was."""
        return tuple(share / self._sparse_tokens for share in self._sparse)

    def of_tasks(self) -> dict[str, tuple[int, int]]:
        """For each task: tokens that were scored or generated, and how many of them were computed sparsely."""
        found: dict[str, tuple[int, int]] = {}
        for (task, _, _), (tokens, sparse) in self.by_request.items():
            before = found.get(str(task), (0, 0))
            found[str(task)] = (before[0] + tokens, before[1] + sparse)
        return found


def counts_of(answer: Answer) -> Counts:
    """Counts of an answer."""
    return Counts(answer.tokens, answer.sparse_tokens, answer.achieved_sparsity, isinstance(answer.value, str))


def present(answer: Answer | None) -> Answer:
    """An answer that must be there by now."""
    assert answer is not None
    return answer

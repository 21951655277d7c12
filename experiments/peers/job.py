"""What a contestant is asked, what it gives back, and what is kept of it. Nothing here imports torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from tda.cases import Frozen
from tda.process import ProcessStatus
from tda.records import Commit, Machine

OnToken = Callable[[int], None]
Device = Literal["cpu", "cuda"]


class Job(Frozen):
    """The request that all contestants serve, at batch 1.

    Attributes
    ----------
    model : str
        Name of a model for `tda.load_model`, a Llama.
    dtype : str
        Type of its weights before any quantization.
    prompt : tuple of int
        Token ids.
    new_tokens : int
        Tokens to generate, greedily; an end of text does not end them.
    requests : int
        Timed requests of one process, after one that is not timed.
    threads : int
        Threads that compute on the CPU.
    device : {"cpu", "cuda"}
        Where the model lies.
    """

    model: str
    dtype: str = "bfloat16"
    prompt: tuple[int, ...]
    new_tokens: int = Field(ge=2)
    requests: int = Field(default=3, ge=1)
    threads: int = Field(ge=1)
    device: Device = "cpu"


@dataclass(frozen=True)
class Engine:
    """A loaded contestant.

    Attributes
    ----------
    answer : callable
        ``answer(prompt, new_tokens, on_token)`` generates, and calls `on_token` with each token as soon as its id is on
        the host: a step on a GPU has ended then.
    settings : callable
        What it ran with, asked once all requests are served.
    warm_up_tokens : int
        Length of the request that is not timed.
    """

    answer: Callable[[Sequence[int], int, OnToken], None]
    settings: Callable[[], Mapping[str, Any]]
    warm_up_tokens: int = 4


class Served(Frozen):
    """One timed request.

    Attributes
    ----------
    prefill_ms : float
        From the request to its first token.
    decode_ms : float
        Median time from a token to the next. What a method adds once, between first and second token, shows in
        `generation_ms` alone.
    generation_ms : float
        The whole request.
    tokens : tuple of int
        What was generated.
    """

    prefill_ms: float
    decode_ms: float
    generation_ms: float
    tokens: tuple[int, ...]


class PeerReport(Frozen):
    """What a process gives back.

    `load_s` and `warm_up_s` (the untimed request, compilation included) are told and count nowhere.
    """

    served: tuple[Served, ...]
    settings: dict[str, Any]
    versions: dict[str, str]
    load_s: float
    warm_up_s: float


class PeerRow(Frozen):
    """One process of one block; `stream_gb_per_s` is the machine's bandwidth just before it."""

    contestant: str
    block: int = Field(ge=1)
    order: int = Field(ge=0)
    stream_gb_per_s: float
    status: ProcessStatus
    reason: str | None = None
    started: str
    seconds: float
    report: PeerReport | None = None


class PeerPlan(Frozen):
    """What all rows of a folder have in common."""

    job: Job
    contestants: tuple[str, ...]
    machine: Machine
    commit: Commit

"""About how many seconds each part of a model's bench takes, by its sizes and a device's rates."""

import functools
import math
from dataclasses import dataclass
from typing import get_args

import torch

from tda.bench.calibration import RANDOM_CALIBRATION
from tda.bench.measure import Pace
from tda.bench.plan import TOGETHER, Plan, Subject
from tda.bench.prepare import LOADED_AND_HASHED_S
from tda.bench.scoring import SCORED_TOGETHER
from tda.bench.window import WINDOW_S
from tda.cases import Control
from tda.contracts import Method, Window
from tda.limits import STREAM_PASSES, matmul_tflop_per_s, stream_bytes, stream_gb_per_s
from tda.models import is_shape
from tda.models.sizes import Sizes
from tda.quality.recall import LONGEST_TOKENS
from tda.tasks import Ask
from tda.tasks.catalogue import CATALOGUE
from tda.thresholds import WINDOW

A100 = (2.04e12, 312e12)
"""Bytes a second and bfloat16 operations a second of an A100 with 80 GB, by its data sheet."""
REACHED = 0.5
"""Part of these rates that is counted with."""
START_S = 8.0
"""To start a process, import torch and transformers, measure this machine, and end."""
LAYER_S = 1.5e-4
"""What a layer takes beside bytes and operations: Python, and launches."""
ATTACH_S = {"cpu": 0.02, "cuda": 1.0}
"""To attach a method, beside reading the weights: checks, and on CUDA a step captured."""
ATTACH_READS = 8
"""How often attaching reads the weights: it checks that they are finite, and lays them anew."""
PASS_READS, MASKED_READS, COLLECTED_READS = 16, 40, 40
"""How often a pass reads each activation of F values a token, one of masked execution does, and a collector does."""
STREAM_WAYS = {"cpu": 2, "cuda": 1}
"""Ways in which the stream bandwidth is read before and after the steps of a round."""


@dataclass(frozen=True)
class Seconds:
    """About how long the parts of a case take.

    Attributes
    ----------
    documents : float
        Its quality over documents, recall, and the memory of a first request.
    tasks : float
        Tasks of lm-eval whose size is known.
    timed : float
        Its timed rounds.
    """

    documents: float
    tasks: float
    timed: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.documents + self.tasks + self.timed


def expected_rounds(plan: Plan) -> int:
    """Timed rounds of a case, about: where a precision decides, the geometric mean of the fewest and the most."""
    return round(math.sqrt(plan.rounds * plan.most_rounds)) if plan.precision is not None else plan.rounds


def items_of(ask: Ask) -> int | None:
    """Items of a task that are asked; None where its size is not known before."""
    if ask.data is not None:
        held = ask.data.read_bytes().count(b"\n")
    elif ask.name in CATALOGUE:
        held = CATALOGUE[ask.name].size.items
    else:
        return ask.items
    return held if ask.items is None else min(held, ask.items)


def is_here(device: str) -> bool:
    """Whether this machine has a device."""
    return device == "cpu" or torch.cuda.is_available()


@dataclass(frozen=True)
class Rates:
    """What a device gets through in a second."""

    bandwidth: float
    operations: float


@functools.cache
def rates_of(device: str, dtype: str) -> Rates:
    """Rates of a device, measured once where it is here."""
    if not is_here(device):
        return Rates(A100[0] * REACHED, A100[1] * REACHED)
    where = torch.device(device)
    return Rates(stream_gb_per_s(where) * 1e9, matmul_tflop_per_s(where, getattr(torch, dtype)) * 1e12)


def is_timed(plan: Plan, subject: Subject, method: Method) -> bool:
    """Whether a method has timed rounds."""
    return subject.speed and method.fast and method.name in ("dense", *plan.speed_methods)


@dataclass(frozen=True)
class Costs:
    """Seconds that the parts of one model take."""

    plan: Plan
    subject: Subject
    sizes: Sizes
    rates: Rates

    @property
    def device(self) -> str:
        """Its kind, without a number."""
        return self.plan.device.partition(":")[0]

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return self.sizes.parameters * self._itemsize

    @property
    def _itemsize(self) -> int:
        found: int = getattr(torch, self.subject.dtype).itemsize
        return found

    @property
    def attach_s(self) -> float:
        """To attach a method once."""
        return ATTACH_S[self.device] + ATTACH_READS * self.weights / self.rates.bandwidth

    def tokens_s(self, tokens: float, reads: int = PASS_READS) -> float:
        """Operations of so many tokens, and reading their activations."""
        read = reads * tokens * self.sizes.layers * self.sizes.neurons * self._itemsize
        return 2 * self.sizes.parameters * tokens / self.rates.operations + read / self.rates.bandwidth

    def pass_s(self, tokens: float, reads: int = PASS_READS) -> float:
        """A pass over so many tokens; where they are few it is bound by reading the weights."""
        return max(self.tokens_s(tokens, reads), self.weights / self.rates.bandwidth) + LAYER_S * self.sizes.layers

    def batches_s(self, documents: int, tokens: int) -> float:
        """Documents of so many tokens scored in batches, each attached anew."""
        batches = -(-documents // SCORED_TOGETHER)
        return batches * (self.attach_s + self.pass_s(documents * tokens / max(batches, 1), MASKED_READS))

    def prepare_s(self) -> float:
        """To start, load and calibrate."""
        found = START_S + LOADED_AND_HASHED_S * self.sizes.parameters / 1e9
        for window in get_args(Window):
            fitted = {one.name for one in self.plan.build() if one.needs_fit and one.window == window}
            if fitted:
                found += self.pass_s(self._calibration_tokens(window), PASS_READS + COLLECTED_READS * len(fitted))
        return found

    def _calibration_tokens(self, window: Window) -> int:
        """Tokens of calibration text, as `tda.bench.prepare` cuts it."""
        plan, subject = self.plan, self.subject
        asks = plan.recall and subject.quality and plan.text is None
        longest = max(subject.prompt_tokens, LONGEST_TOKENS if asks else 0)
        if plan.calibration_text is None and not is_shape(subject.model):
            longest = max(longest, 2 * WINDOW)
        length = 1 << (longest - 1).bit_length()
        if window == "request":
            length = max(length, subject.prompt_tokens + subject.new_tokens)
        return length * (RANDOM_CALIBRATION if is_shape(subject.model) else plan.calibration_documents)

    def seconds(self, method: Method, control: Control | None) -> Seconds:
        """Of one case."""
        timed = is_timed(self.plan, self.subject, method) and control != "cross_domain"
        return Seconds(
            documents=self._documents_s(method, control) + (self._memory_s() if timed else 0.0),
            tasks=sum(map(self._task_s, self.plan.tasks)) if control is None and self.subject.quality else 0.0,
            timed=expected_rounds(self.plan) * self._round_s(method, control) + self._once_s() if timed else 0.0,
        )

    def _documents_s(self, method: Method, control: Control | None) -> float:
        """Quality over documents and recall; dense is scored twice, once to compare the others with."""
        plan, subject = self.plan, self.subject
        if not subject.quality or control == "a_a":
            return 0.0
        one = self.batches_s(plan.documents, subject.prompt_tokens + subject.new_tokens)
        if control == "cross_domain":
            return one + self.batches_s(plan.documents, subject.prompt_tokens)
        asked = self.batches_s(plan.documents, LONGEST_TOKENS) if plan.recall and plan.text is None else 0.0
        return one * (2 if method.name == "dense" else 1) + asked

    def _memory_s(self) -> float:
        return self.attach_s + self.pass_s(self.plan.batch * self.subject.prompt_tokens)

    def _round_s(self, method: Method, control: Control | None) -> float:
        """One case in one round, and with dense what all cases of the round are compared with."""
        plan, subject = self.plan, self.subject
        where = torch.device(self.device)
        reading_s = STREAM_PASSES * STREAM_WAYS[self.device] * stream_bytes(where) / self.rates.bandwidth
        attached_s = self.attach_s if self.device == "cpu" else 0.0  # on CUDA it is cached
        prefill_s, step_s = self.pass_s(plan.batch * subject.prompt_tokens), self.pass_s(plan.batch)
        found = Pace(attached_s + 2 * reading_s, prefill_s, step_s).round_s(subject.new_tokens)
        if subject.quality and plan.documents and method.name == "dense" and control is None:
            found += self.attach_s + self.pass_s(plan.batch * (subject.prompt_tokens + subject.new_tokens))
        return found

    def _once_s(self) -> float:
        """What timed rounds of a case take once: on CUDA, attaching it, and sampling the GPU."""
        return 0.0 if self.device == "cpu" else 2 * self.attach_s + WINDOW_S

    def _task_s(self, ask: Ask) -> float:
        """All items of a task for one case; 0 where its size is not known."""
        if ask.name not in CATALOGUE:
            return 0.0
        task = CATALOGUE[ask.name]
        size = task.size
        shots = size.shots if ask.shots is None else ask.shots
        items = items_of(ask) or 0
        tokens = (size.prompt_tokens + size.answer_tokens) * (1 + shots)
        found = self.tokens_s(items * size.requests * tokens)
        if task.kind == "generation":
            found += items * size.answer_tokens * self.weights / self.rates.bandwidth / TOGETHER
        return found

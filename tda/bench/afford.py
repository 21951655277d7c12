"""About how long the least that a bench wants of a trained model takes on a CPU, told before anything is loaded.

It follows from sizes and from rates of a usual core, not from what is measured now: a busy moment would change the size
of a preset's model, and a rerun would not find what the first run left.
"""

from dataclasses import dataclass

from tda.bench.budget import LEAST_DOCUMENTS
from tda.limits import STREAM_BYTES
from tda.statistics import MIN_GROUPS

CALIBRATED_PER_S = 7e9
"""Weights times tokens of calibration text in a second of one thread; measured on an Intel Xeon with AVX-512."""
PASSED_PER_S = 30e9
"""The same of a dense pass."""
READ_PER_S = 8e9
"""Bytes that a thread reads from memory in a second."""
PASSES = 5
"""Passes of the prompt in a timed round, about."""
RULINGS = 12
"""Readings of the buffer of the stream bandwidth in a timed round."""
STARTED_S = 10.0
"""Seconds of start, loading and page."""


@dataclass(frozen=True)
class Workload:
    """What is measured of a model, however large.

    Attributes
    ----------
    prompt_tokens, new_tokens, batch : int
        Of a timed request.
    documents, calibration_tokens : int
        Text that is scored and calibrated on.
    cases : int
        Methods at one sparsity, dense included.
    """

    prompt_tokens: int
    new_tokens: int
    batch: int
    documents: int
    calibration_tokens: int
    cases: int


def least_seconds(asked: Workload, weights: int, weight_bytes: int, cache: int, threads: int) -> float:
    """Seconds for calibration, the least documents, and the rounds that an interval needs.

    Parameters
    ----------
    asked : Workload
        What is measured.
    weights, weight_bytes : int
        Parameters of the model, and their bytes.
    cache : int
        Bytes of the last-level cache: the bandwidth is read from a buffer that is larger.
    threads : int
        Threads that compute.
    """
    rounds = MIN_GROUPS * asked.cases
    scored = asked.cases * min(asked.documents, LEAST_DOCUMENTS) * (asked.prompt_tokens + asked.new_tokens)
    passed = weights * (scored + rounds * PASSES * asked.batch * asked.prompt_tokens)
    read = rounds * (2 * asked.new_tokens * weight_bytes + RULINGS * max(STREAM_BYTES, 2 * cache))
    calibrated = weights * asked.calibration_tokens
    return STARTED_S + (calibrated / CALIBRATED_PER_S + passed / PASSED_PER_S + read / READ_PER_S) / threads

"""Choose the blocks of the kernels in Triton for a model on this card, and keep them with what was measured."""

import logging
from typing import Any

from torch import nn

from tda.device import current
from tda.engine.backends.base import in_rows, linears_beside
from tda.engine.backends.triton import TritonBackend
from tda.engine.overrides import Overrides
from tda.families import find_ffns

logger = logging.getLogger(__name__)


def tune(model: nn.Module, budget_s: float) -> list[dict[str, Any]]:
    """Measure every block for every shape of a model's decode, and keep the best for later processes.

    Parameters
    ----------
    model : nn.Module
        A supported decoder on a CUDA device.
    budget_s : float
        After so many seconds nothing more is tried. What is not measured whole keeps what it had.

    Returns
    -------
    list of dict
        For each shape the chosen block and its GB/s at each kept fraction, those of the default, and every candidate.

    Raises
    ------
    ValueError
        If the kernels do not take the model's feed-forward networks where they lie.
    """
    ffns = find_ffns(model)
    problem = TritonBackend(model, ffns).missing
    if problem is not None:
        raise ValueError(f"the kernels in Triton cannot run this model: {problem}")
    from tda.kernels.triton import tune as triton_tune
    from tda.kernels.triton import tuning

    linears = linears_beside(model, ffns)
    rows, evidence, late = [], {}, []
    overrides = Overrides()
    with current(ffns[0].device):
        try:
            in_rows([*linears, *(linear for ffn in ffns for linear in ffn.linears)], overrides)
            for found in triton_tune.tune(triton_tune.tasks(ffns, linears), budget_s):
                if isinstance(found, triton_tune.TuningTask):
                    late.append(found.key)
                    continue
                evidence[found.task.key] = found.evidence()
                rows.append(_row(found))
        finally:
            overrides.undo()
        path = tuning.path_of()
        tuning.keep(path, evidence)
    logger.info(f"blocks of {len(rows)} shapes are kept in {path}")
    if late:
        logger.warning(f"no time for {len(late)} shapes, which keep what they had: {'; '.join(late)}")
    return rows


def _row(found: Any) -> dict[str, Any]:
    kernel, form, _, size = found.task.key.split(" ", 3)
    return {
        "kernel": f"{kernel} {form}",
        "shape": size,
        "kept_fractions": found.task.fractions,
        "chosen": str(found.best.block),
        "gb_per_s": found.best.gb_per_s,
        "default_gb_per_s": found.tried[0].gb_per_s,
        "candidates": [{"block": str(one.block), "ms": one.ms, "gb_per_s": one.gb_per_s} for one in found.tried],
    }

"""Which size of the presets' model is measured: one that no cache holds, if the budget affords it."""

from dataclasses import replace

import torch

from tda.bench.afford import Workload, least_seconds
from tda.bench.budget import duration
from tda.bench.plan import Plan, Subject
from tda.bench.presets import WIDE
from tda.config import BenchConfig
from tda.device import cache_bytes
from tda.models import parameter_count, sizes_beyond_cache
from tda.thresholds import WINDOW

AFFORDED = 0.5
"""Part of a budget that the least of a model may take: the rest is for other sparsities, and for slower machines."""


def in_affordable_size(plan: Plan) -> Plan:
    """The plan with its model of both axes in a size that the device's caches do not hold, or that it has time for."""
    both = next((subject for subject in plan.subjects if subject.model == WIDE), None)
    if both is None:
        return plan
    taken = next(size for size in reversed(_sizes(plan, both)) if size == WIDE or _affords(plan, both, size))
    return replace(
        plan,
        subjects=tuple(
            replace(
                subject,
                model=taken if subject.model == WIDE else subject.model,
                layer_sparsity_from=taken if subject.layer_sparsity_from == WIDE else subject.layer_sparsity_from,
            )
            for subject in plan.subjects
        ),
    )


def _sizes(plan: Plan, subject: Subject) -> tuple[str, ...]:
    """Sizes of the model of both axes, up to the one that is wanted."""
    return sizes_beyond_cache(WIDE, _itemsize(subject), cache_bytes(plan.device))


def _itemsize(subject: Subject) -> int:
    size: int = getattr(torch, subject.dtype).itemsize
    return size


def _affords(plan: Plan, subject: Subject, size: str) -> bool:
    """Whether a plan's budget, shared among its models, has time for a size; a GPU has."""
    if plan.budget_s is None or plan.device != "cpu":
        return True
    length = 1 << (max(subject.prompt_tokens, 2 * WINDOW) - 1).bit_length()
    asked = Workload(
        prompt_tokens=subject.prompt_tokens,
        new_tokens=subject.new_tokens,
        batch=plan.batch,
        documents=plan.documents,
        calibration_tokens=plan.calibration_documents * length * any(built.needs_fit for built in plan.build()),
        cases=len({"dense", *plan.speed_methods}),
    )
    weights, cache = parameter_count(size), cache_bytes(plan.device) or 0
    needed = least_seconds(asked, weights, weights * _itemsize(subject), cache, torch.get_num_threads())
    return needed <= AFFORDED * plan.budget_s / len(plan.subjects)


def size_notice(config: BenchConfig, plan: Plan) -> str | None:
    """A sentence where a preset's model is smaller than wanted, because the budget is short; None elsewhere."""
    both = next((subject for subject in plan.subjects if subject.model.startswith(WIDE)), None)
    if config.models or both is None or plan.budget_s is None:
        return None
    wanted = _sizes(plan, both)[-1]
    if both.model == wanted:
        return None
    cache = f"{(cache_bytes(plan.device) or 0) / 1e6:.0f} MB of last-level cache"
    return (
        f"the model is {both.model}: a budget of {duration(plan.budget_s)} is too short for {wanted}, "
        f"the size wanted beside {cache}; give a longer --budget for a larger one"
    )

"""What a plan will take, told before it begins: bytes to load, memory, disk, and seconds of each case.

Seconds follow from bytes and operations, as the byte model of a decode step has it, from the number of documents and
rounds, and from the sizes of data sets: a plan and no promise. Rates are those of the device where it is here, else an
A100's, the GPU of the paper. Every method is counted as slow as dense.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tda.bench.costs import Costs, Seconds, is_here, is_timed, rates_of
from tda.bench.footprint import Footprint, footprint
from tda.bench.plan import Plan, Subject
from tda.bench.presets import PAPER_MODELS
from tda.cases import Case, Control
from tda.contracts import Method
from tda.models.sizes import Sizes, sizes_of
from tda.tasks.catalogue import CATALOGUE


@dataclass(frozen=True)
class Outlook:
    """What one model takes.

    Attributes
    ----------
    model : str
        Its name.
    cases : tuple of Case
        What is measured, controls included.
    weight_bytes : int or None
        To load; None where it is not known before.
    footprint : Footprint or None
        Memory that its process needs.
    data_bytes : int
        Data sets of the tasks on disk, those of local files and of unknown size aside.
    prepare_s : float or None
        To start, load and calibrate; a download is not in it.
    seconds : tuple of Seconds
        Of each case; empty where nothing is known of the model.
    unknown : tuple of str
        Tasks that are not in these seconds: their size is not known before.
    """

    model: str
    cases: tuple[Case, ...]
    weight_bytes: int | None
    footprint: Footprint | None
    data_bytes: int
    prepare_s: float | None
    seconds: tuple[Seconds, ...]
    unknown: tuple[str, ...]

    @property
    def hours(self) -> float | None:
        """All of it, without a budget; None where it is not known."""
        if self.prepare_s is None:
            return None
        return (self.prepare_s + sum(one.total for one in self.seconds)) / 3600

    def part_hours(self, part: str) -> float | None:
        """A part of `Seconds` of all cases; None where it is not known."""
        return sum(getattr(one, part) for one in self.seconds) / 3600 if self.seconds else None


def outlook(plan: Plan) -> list[Outlook]:
    """What each model of a plan takes."""
    return [_of(plan, subject) for subject in plan.subjects]


def outlook_rows(found: Sequence[Outlook]) -> list[dict[str, str | float | None]]:
    """A table's row for each model."""
    on_gpu = any(one.footprint is not None and one.footprint.gpu_bytes is not None for one in found)
    return [_row(one, on_gpu=on_gpu) for one in found]


def _row(one: Outlook, *, on_gpu: bool) -> dict[str, str | float | None]:
    host, gpu = (None, None) if one.footprint is None else (one.footprint.host_bytes, one.footprint.gpu_bytes)
    task_hours = one.part_hours("tasks")
    return {
        "model": one.model,
        "cases": len(one.cases),
        "weights (GB)": gigabytes(one.weight_bytes),
        "memory (GB)": gigabytes(host),
        **({"GPU memory (GB)": gigabytes(gpu)} if on_gpu else {}),
        "data sets (GB)": round(one.data_bytes / 1e9, 2),
        "loading (hours)": rounded(None if one.prepare_s is None else one.prepare_s / 3600),
        "documents (hours)": rounded(one.part_hours("documents")),
        "tasks (hours)": None if one.unknown and not task_hours else rounded(task_hours),
        "timed rounds (hours)": rounded(one.part_hours("timed")),
    }


def describe_rates(plan: Plan) -> str:
    """Whose rates hours are told for."""
    return "this machine" if is_here(plan.device) else "an A100 with 80 GB, since this machine has no such device"


def gigabytes(count: int | None) -> float | None:
    """As a table shows bytes."""
    return None if count is None else round(count / 1e9, 2)


def rounded(hours: float | None) -> float | None:
    """As a table shows hours."""
    return None if hours is None else float(f"{hours:.2g}")


def _of(plan: Plan, subject: Subject) -> Outlook:
    methods = _methods(plan, subject)
    cases = tuple(plan.case(subject, method, control) for method, control in methods)
    unknown = tuple(ask.name for ask in plan.tasks if ask.name not in CATALOGUE)
    loaded = [ask.name for ask in plan.tasks if ask.name not in unknown and ask.data is None]
    data = sum(CATALOGUE[name].size.megabytes for name in loaded) * 1_000_000
    sizes = _sizes(plan, subject.model)
    if sizes is None:
        return Outlook(subject.model, cases, None, None, data, None, (), unknown)
    costs = Costs(plan, subject, sizes, rates_of(plan.device, subject.dtype))
    return Outlook(
        model=subject.model,
        cases=cases,
        weight_bytes=costs.weights,
        footprint=footprint(plan, subject, sizes),
        data_bytes=data,
        prepare_s=costs.prepare_s(),
        seconds=tuple(costs.seconds(method, control) for method, control in methods),
        unknown=unknown,
    )


def _sizes(plan: Plan, model: str) -> Sizes | None:
    """Sizes of a model; None where its configuration cannot be read."""
    held = plan.loaded.get(model)
    try:
        if held is not None:
            return Sizes.of(held.model.config)
        return sizes_of(f"shape:{PAPER_MODELS[model]}" if model in PAPER_MODELS else model)
    except (OSError, ValueError):
        return None


def _methods(plan: Plan, subject: Subject) -> list[tuple[Method, Control | None]]:
    """What is measured, with its controls: as a bench does, methods that a model's networks lack aside."""
    built = [method for method in plan.build() if subject.quality or is_timed(plan, subject, method)]
    found: list[tuple[Method, Control | None]] = [(method, None) for method in built]
    if subject.speed:
        found += [(method, "a_a") for method in built if method.name == "dense"]
    if subject.quality and plan.text is None and plan.documents > 1:
        found += [(method, "cross_domain") for method in built if method.name == "griffin"]
    return found

"""Cases that may be compared, put together from records."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tda.cases import requests_apart
from tda.records import Record, merge
from tda.statistics import BLIND, by_group, is_baseline, noise_floor, speedup
from tda.web.report.comparison import ComparedCase
from tda.web.report.measured import MeasuredCase
from tda.web.theme.style import rank


@dataclass(frozen=True)
class Setting:
    """Cases that may be compared: one model, device, type and request size.

    Attributes
    ----------
    cases : tuple of ComparedCase
        In the order of methods, then sparsity.
    details : str
        Seed and text, where another setting has the same model and sizes.
    """

    cases: tuple[ComparedCase, ...]
    details: str = ""

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.cases[0].record.case.model

    @property
    def title(self) -> str:
        """Model and sizes, e.g. ``"shape:0.3b · cpu, bfloat16, batch 1, 128 prompt + 16 new tokens"``."""
        case = self.cases[0].record.case
        sizes = f"{case.prompt_tokens} prompt + {case.new_tokens} new tokens"
        words = [*([f"text {self.text}"] if self.scored else []), *([self.details] if self.details else [])]
        return " · ".join([case.model, f"{case.device}, {case.dtype}, batch {case.batch}, {sizes}", *words])

    @property
    def text(self) -> str:
        """Name, size and digest of the evaluation text."""
        inputs = self.cases[0].record.inputs
        facts = [f"{inputs.text_bytes / 1e3:.3g} kB"] if inputs.text_bytes is not None else []
        facts += [inputs.text] if inputs.text is not None else []
        return (inputs.text_name or "not recorded") + (f" ({', '.join(facts)})" if facts else "")

    def name_among(self, settings: Iterable["Setting"]) -> str:
        """The model, and in brackets what tells this setting from others of it."""
        mine = self.cases[0].record
        others = [other.cases[0].record for other in settings if other.model == self.model]
        words = requests_apart(
            mine.case, [other.case for other in others], without=("execution", "layer_sparsity_from")
        )
        unlike = [other.inputs for other in others if other.inputs.setting != mine.inputs.setting]
        if unlike:
            named = mine.inputs.text_name or "text not recorded"
            words.append(str(mine.inputs) if named in {other.text_name for other in unlike} else named)
        if any(other.inputs.change != mine.inputs.change for other in others):
            words.append(_state(mine))
        return self.model + (f" ({', '.join(words)})" if words else "")

    @property
    def baseline(self) -> ComparedCase | None:
        """The dense case that ratios are taken to; None where none ran."""
        dense = next((case.dense for case in self.cases), None)
        return next((case for case in self.cases if case.record is dense), None)

    @property
    def tasks(self) -> list[str]:
        """Tasks that some case was scored on, in order of first appearance."""
        return list(dict.fromkeys(task for case in self.cases for task in case.tasks))

    @property
    def comparisons(self) -> int:
        """Differences of task scores to dense, which intervals hold for together."""
        return self.cases[0].comparisons

    @property
    def timed(self) -> list[ComparedCase]:
        """Cases with a speed, without the A/A control."""
        return [case for case in self.cases if case.timed and not case.is_control]

    @property
    def scored(self) -> list[ComparedCase]:
        """Cases with a quality, without dense."""
        return [case for case in self.cases if case.delta_nll is not None and not case.is_dense]

    def with_gaps(self, cases: Iterable[ComparedCase]) -> list[ComparedCase]:
        """Cases and all others of their curves: what is missing there is drawn as a gap."""
        curves = {case.series for case in cases}
        return [case for case in self.cases if case.series in curves]

    @property
    def processes(self) -> str:
        """What the intervals of its times are over, in words."""
        count = next((n for case in self.timed if (n := case.record.conditions.get("processes"))), 1)
        return "within one process" if count == 1 else f"over {count:.0f} processes"

    @property
    def rounds(self) -> int:
        """Timed rounds of the case that has most."""
        return max((len(case.groups("decode_ms")) for case in self.cases), default=0)

    @property
    def documents(self) -> int:
        """Documents scored in the case that has most."""
        return max((len(case.groups("nll_nats")) for case in self.cases), default=0)

    @property
    def warning(self) -> str:
        """What a caption adds about numbers that cannot be trusted; nothing where there are none."""
        found = [case.label for case in self.timed if case.warnings and not case.is_dense]
        return f" Grey, since it cannot be trusted (see the flags): {', '.join(found)}." if found else ""

    @property
    def noise_floor(self) -> float | None:
        """What ratios stay within when nothing changes; None without a control or with too few rounds."""
        return self.cases[0].floor


def settings(records: Iterable[Record]) -> list[Setting]:
    """Merge rounds and put cases that may be compared together, in order of first appearance."""
    held: dict[tuple[str, str, str | None], list[Record]] = {}
    for record in merge(records):
        held.setdefault(record.setting, []).append(record)
    found = [_setting(members) for members in held.values()]
    alike: dict[str, list[tuple[str, ...]]] = {}
    for setting in found:
        alike.setdefault(setting.title, []).append(_details(setting))
    return [replace(setting, details=_differing(_details(setting), alike[setting.title])) for setting in found]


def _differing(words: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> str:
    """Those of some words that are not the same in all others."""
    return ", ".join(word for word, *seen in zip(words, *others, strict=True) if len(set(seen)) > 1)


def _details(setting: Setting) -> tuple[str, ...]:
    record = setting.cases[0].record
    return f"seed {record.case.seed}", str(record.inputs), _state(record)


def _state(record: Record) -> str:
    change = record.inputs.change
    return f"uncommitted change {change[:6]}" if change is not None else "no uncommitted change"


def _setting(members: Sequence[Record]) -> Setting:
    baselines = [record for record in members if is_baseline(record) and record.status == "ok"]
    own_kernel_last = sorted(baselines, key=lambda record: record.case.options.get("dense_kernel") == "own")
    dense = own_kernel_last[0] if own_kernel_last else None
    judged = [record for record in members if record.samples("nll_nats") and record.case.control != "a_a"]
    scored = [frozenset(by_group(record.measurements["nll_nats"])) for record in judged]
    shared = frozenset.intersection(*scored) if scored else frozenset()
    among = tuple(record.case for record in members)
    documents = max(map(len, scored), default=0)
    floor, spoiled = _noise(members, dense)
    cases = []
    for record in members:
        several = len({one.inputs.calibration for one in members if one.case == record.case}) > 1
        suffix = record.inputs.calibrated if several else ""
        cases.append(
            ComparedCase(
                record,
                dense,
                among=among,
                shared=shared,
                documents=documents,
                floor=floor,
                spoiled=spoiled,
                suffix=suffix,
            )
        )
    compared = max(sum(case.compared_tasks for case in cases), 1)
    return Setting(tuple(sorted((replace(case, comparisons=compared) for case in cases), key=_order)))


def _noise(members: Sequence[Record], dense: Record | None) -> tuple[float | None, str]:
    """The A/A floor of a setting, and why its ratios cannot be trusted: what the control says."""
    timed = [record for record in members if MeasuredCase(record).timed]
    control = next((record for record in timed if record.case.control == "a_a"), None)
    if dense not in timed or control is None or dense is None:
        return None, ""
    floor = noise_floor(control, dense, [one for one in timed if one.case.control is None and one is not dense])
    spoiled = []
    if floor is not None and floor > BLIND:
        spoiled.append(f"dense differs from itself by up to {floor:.0%}")
    itself = speedup(control, dense)
    if itself is not None and itself.low is not None and itself.high is not None and not itself.low <= 1 <= itself.high:
        spoiled.append(f"dense is {itself} times as fast as itself")
    return floor, "; ".join(spoiled)


def _order(case: ComparedCase) -> tuple[object, ...]:
    return (*rank(case.method), case.is_control, case.series, case.sparsity or 0.0)

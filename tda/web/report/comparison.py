"""A case beside the dense case of its setting: every number that the report shows, from raw samples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tda.cases import CONTROLS, Case, Control, MethodSpec, describe, requests_apart
from tda.derived import NO_DENSE, NOT_FINITE, UNLIKE, Derived, Missing, above_limit, derive, unlike_kernels
from tda.records import SPEED, Record, flag_words, merge
from tda.statistics import (
    BLIND,
    MARGIN,
    Estimate,
    Verdict,
    bootstrap,
    by_group,
    finite,
    is_baseline,
    item_difference,
    item_score,
    noise_floor,
    paired_difference,
    speedup,
    standard_error,
    typical,
    verdict,
)
from tda.web.report.tasks import headline, task_scores, unlike
from tda.web.theme.style import rank

A_A = CONTROLS["a_a"]
ABOVE_LIMIT, FEW_DOCUMENTS = "above its roofline", "few documents"
"""Kinds of doubt that stand in no record: they follow from comparing."""
OF_QUALITY = frozenset({FEW_DOCUMENTS, "built in text"})
"""Doubts about a case's quality; all others are about its speed."""


@dataclass(frozen=True)
class Comparison:
    """One merged record and the dense record that it is compared with.

    Attributes
    ----------
    record : Record
        All rounds of one series.
    dense : Record or None
        The baseline of the same setting; None where there is none that ran.
    among : tuple of Case
        The cases that it must be told from.
    shared : frozenset of int
        Documents on which every case of the setting was scored.
    documents : int
        Documents of the case that was scored on most.
    floor : float or None
        What ratios of the setting stay within when nothing changes.
    spoiled : str
        Why no ratio of the setting can be trusted; empty where nothing says so.
    told : str
        What else tells it from others of its case: the calibration.
    comparisons : int
        Differences of task scores to dense in the setting, which intervals hold for together.
    """

    record: Record
    dense: Record | None
    among: tuple[Case, ...] = ()
    shared: frozenset[int] = frozenset()
    documents: int = 0
    floor: float | None = None
    spoiled: str = ""
    told: str = ""
    comparisons: int = 1

    # What it is.

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.record.case.method

    @property
    def sparsity(self) -> float | None:
        """Asked sparsity, or the mean achieved one where an error level was asked; None where nothing is left out."""
        asked = self.record.case.sparsity
        return asked if asked is not None else self.achieved or None

    @property
    def is_dense(self) -> bool:
        """Whether it is a dense run: baseline, other dense kernel or A/A control."""
        return self.method == "dense"

    @property
    def is_control(self) -> bool:
        """Whether it is the A/A control: dense once more."""
        return self.record.case.control == "a_a"

    @property
    def from_other_kind(self) -> bool:
        """Whether the set was selected on another kind of prompt: a control."""
        return self.record.case.control == "cross_domain"

    @property
    def series(self) -> str:
        """What its curve is called: the method, and what tells it from other cases of the method."""
        return describe(self.record.case, self.among, sparsity=False, model=False) + self.told

    @property
    def label(self) -> str:
        """Series and sparsity, e.g. ``"griffin 0.5"``."""
        return describe(self.record.case, self.among, model=False) + self.told

    @cached_property
    def variant(self) -> int:
        """Its place among the series of its method that options make: 0 has the method's own look."""
        case = self.record.case
        alike = [one for one in self.among if (one.method, one.control) == (case.method, case.control)]
        names = [describe(one, self.among, sparsity=False, model=False) for one in (*alike, case)]
        return list(dict.fromkeys(names)).index(names[-1])

    @property
    def identity(self) -> tuple[MethodSpec, Control | None]:
        """Equal for the same method at the same sparsity on two models."""
        return self.record.case.spec, self.record.case.control

    # What was measured.

    @property
    def timed(self) -> bool:
        """Whether it has a speed: masked runs skip nothing and the oracle is no method, so these never have one."""
        return (
            self.record.status == "ok"
            and self.method != "oracle"
            and "masked" not in (self.record.execution, self.record.case.execution)
            and bool(self.record.samples("decode_ms"))
            and finite(self.record, "decode_ms")
        )

    def samples(self, name: str) -> tuple[float, ...]:
        """Samples of a measurement; none where it failed, has no speed though this is one, or one is not finite."""
        if self.record.status != "ok" or (name in SPEED and not self.timed):
            return ()
        return self.record.samples(name) if finite(self.record, name) else ()

    def missing(self, name: str) -> str:
        """Why there are no samples of a measurement."""
        if self.record.status != "ok":
            return f"{self.record.outcome}: {self.record.reason}"
        found = self.record.measurements.get(name)
        if found is not None and found.missing:
            return found.missing
        if not finite(self.record, name):
            return NOT_FINITE
        if found is not None and name in SPEED:
            return "masked execution and the oracle skip nothing: no speed"
        return self.record.reason or "not measured"

    def groups(self, name: str) -> dict[int, float]:
        """Median sample of each round or document; empty where missing."""
        return by_group(self.record.measurements[name]) if self.samples(name) else {}

    def median(self, name: str) -> float | None:
        """Median over all samples; None where missing."""
        return self.percentile(name, 50)

    def percentile(self, name: str, percent: float) -> float | None:
        """Percentile over all samples (for `decode_ms`: tokens of all rounds); None where missing."""
        samples = self.samples(name)
        return float(np.percentile(samples, percent)) if samples else None

    def mean(self, name: str) -> Estimate | None:
        """Mean over documents with its interval; None where missing."""
        groups = self.groups(name)
        return bootstrap(list(groups.values())) if groups else None

    def level(self, name: str) -> Estimate | None:
        """Mean of the rounds' medians (geometric, of what is positive), with its interval; None where missing."""
        groups = self.groups(name)
        return typical(list(groups.values())) if groups else None

    @cached_property
    def decode_ms(self) -> Estimate | None:
        """A decode step."""
        return self.level("decode_ms")

    @property
    def achieved(self) -> float | None:
        """Mean over layers of the share left out."""
        layers = self.record.achieved_sparsity
        return float(np.mean(layers)) if layers else None

    @property
    def perplexity(self) -> float | None:
        """Exp of the mean NLL over the documents that every case of the setting shares."""
        groups = self.groups("perplexity")
        values = [groups[number] for number in groups if number in self.shared]
        return float(np.exp(np.mean(np.log(values)))) if values else None

    # Tasks.

    @cached_property
    def tasks(self) -> dict[str, list[str]]:
        """Names of the measurements of each task that was scored."""
        return task_scores(self.record) if self.record.status == "ok" else {}

    def headline(self, task: str) -> str | None:
        """The measurement that stands for a task."""
        return headline(task, self.tasks.get(task, ()))

    def is_share(self, name: str) -> bool:
        """Whether a measurement is a share; a score that a task tells on another scale is none."""
        found = self.record.measurements.get(name)
        return found is not None and found.unit == "share" and all(0 <= sample <= 1 for sample in found.samples)

    def score(self, name: str | None) -> Estimate | None:
        """A task's score over its items; None where missing."""
        groups = self.groups(name) if name is not None else {}
        return item_score(list(groups.values()), share=self.is_share(name)) if name is not None and groups else None

    def score_error(self, name: str) -> float | None:
        """Standard error of a task's score; None where missing or of one item."""
        groups = self.groups(name)
        return standard_error(list(groups.values())) if groups else None

    def score_missing(self, task: str) -> str:
        """Why a task has no score."""
        name, facts = self.headline(task), self.record.tasks.get(task)
        if facts is not None and facts.failure is not None:
            return f"it failed: {facts.failure}"
        if name is not None or self.record.status != "ok":
            return self.missing(name or "")
        return "no score was measured" if task in self.tasks else "not run"

    def task_difference(self, task: str) -> Derived:
        """A task's score less dense's, paired per item, at the level that holds for all `comparisons`; or why not."""
        return self._differences.get(task) or Missing(self.score_missing(task))

    @cached_property
    def _differences(self) -> dict[str, Derived]:
        return {task: self._not_compared(task) or self._difference(task) for task in self.tasks}

    def _difference(self, task: str) -> Derived:
        name = self.headline(task)
        assert name is not None
        assert self.dense is not None
        mine, dense = self.groups(name), Comparison(self.dense, self.dense).groups(name)
        found = item_difference(mine, dense, share=self.is_share(name), comparisons=self.comparisons)
        return Missing("no item was answered by both") if found is None else found

    def _not_compared(self, task: str) -> Missing | None:
        """Why a task that was scored is not held against dense; None where it is."""
        name = self.headline(task)
        if name is None or not self.samples(name):
            return Missing(self.score_missing(task))
        if self.dense is None:
            return NO_DENSE
        if self.record is self.dense:
            return Missing("it is what the others are compared with")
        dense = Comparison(self.dense, self.dense)
        if not dense.samples(name):
            return Missing(f"dense: {dense.score_missing(task)}")
        why = unlike(self.record.tasks[task], self.dense.tasks[task])
        return None if why is None else Missing(why)

    @property
    def compared_tasks(self) -> int:
        """Tasks whose score is held against dense's."""
        return sum(self._not_compared(task) is None for task in self.tasks)

    def task_verdict(self, task: str) -> Verdict | Missing:
        """What the difference says, at a margin of `MARGIN` for shares; or why there is none."""
        name, difference = self.headline(task), self.task_difference(task)
        if isinstance(difference, Missing):
            return difference
        assert name is not None
        better = self.record.measurements[name].better
        assert better is not None
        return verdict(difference, MARGIN if self.is_share(name) else None, better)

    @property
    def cache_resident(self) -> str | None:
        """Why its latency says nothing of a model whose weights come from memory; None where it does."""
        flag = self.record.flags.get("cache_resident")
        return f"cache-resident: {flag.detail}" if flag is not None and flag.raised and self.timed else None

    # Against dense.

    def derived(self, name: str) -> Derived:
        """One of `tda.derived.DERIVED`, or why it is missing."""
        if not self.timed:
            return Missing(self.missing("decode_ms"))
        return derive(name, self.record, self.dense)

    def estimate(self, name: str) -> Estimate | None:
        """One of `tda.derived.DERIVED`; None where it is missing."""
        found = self.derived(name)
        return None if isinstance(found, Missing) else found

    def faster(self, name: str) -> Estimate | None:
        """Dense time over this time, paired per round; None where either is missing."""
        if self.dense is None or not (self.samples(name) and finite(self.dense, name)):
            return None
        return speedup(self.record, self.dense, name)

    @cached_property
    def speedup(self) -> Estimate | None:
        """Speed-up of a decode step."""
        return self.estimate("speedup")

    @property
    def unlike_kernels(self) -> str | None:
        """Why a ratio of its times to dense's says more than what the method saves; None where it does not."""
        if self.dense is None or not (self.timed and Comparison(self.dense, self.dense).timed):
            return None
        return unlike_kernels(self.record.backend, self.dense.backend)

    @cached_property
    def doubts(self) -> dict[str, str]:
        """What speaks against its numbers: kinds of doubt, most general first, each with its detail."""
        found = {A_A: self.spoiled} if self.spoiled else {}
        found |= {flag_words(name): flag.detail for name, flag in self.record.flags.items() if flag.raised}
        ratio, limit = self.speedup if self.timed else None, self.limit
        above = above_limit(ratio.value, limit, self.floor or 0.0) if ratio is not None and limit is not None else None
        scored = len(self.groups("nll_nats"))
        is_few = 0 < scored < self.documents / 2 and self.record.case.control is None  # a control needs no more
        few = f"quality of {scored} of {self.documents} documents" if is_few else None
        known = {ABOVE_LIMIT: above, UNLIKE: self.unlike_kernels, FEW_DOCUMENTS: few}
        return found | {kind: detail for kind, detail in known.items() if detail is not None}

    @property
    def warnings(self) -> list[str]:
        """Why its numbers cannot be trusted; empty where nothing is known against them."""
        return [f"{kind} ({detail})" for kind, detail in self.doubts.items()]

    @cached_property
    def delta_nll(self) -> Estimate | None:
        """NLL less dense NLL in nats per token, paired per document; None where either is missing."""
        if self.dense is None or not (self.samples("nll_nats") and self.dense.samples("nll_nats")):
            return None
        if not finite(self.dense, "nll_nats"):
            return None
        return paired_difference(self.record.measurements["nll_nats"], self.dense.measurements["nll_nats"])

    @property
    def limit_ms(self) -> float | None:
        """The decode step that the roofline gives: dense's step over `roofline_speedup`."""
        if self.limit is None or self.dense is None:
            return None
        dense = Comparison(self.dense, self.dense).decode_ms
        return dense.value / self.limit if dense else None

    @property
    def limit(self) -> float | None:
        """The speed-up that the bytes of a step allow."""
        found = self.estimate("roofline_speedup")
        return found.value if found else None


@dataclass(frozen=True)
class Setting:
    """Cases that may be compared: one model, device, type and request size.

    Attributes
    ----------
    cases : tuple of Comparison
        In the order of methods, then sparsity.
    told : str
        Seed and text, where another setting has the same model and sizes.
    """

    cases: tuple[Comparison, ...]
    told: str = ""

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.cases[0].record.case.model

    @property
    def title(self) -> str:
        """Model and sizes, e.g. ``"shape:0.3b · cpu, bfloat16, batch 1, 128 prompt + 16 new tokens"``."""
        case = self.cases[0].record.case
        sizes = f"{case.prompt_tokens} prompt + {case.new_tokens} new tokens"
        words = [*([f"text {self.text}"] if self.scored else []), *([self.told] if self.told else [])]
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
    def baseline(self) -> Comparison | None:
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
    def timed(self) -> list[Comparison]:
        """Cases with a speed, without the A/A control."""
        return [case for case in self.cases if case.timed and not case.is_control]

    @property
    def scored(self) -> list[Comparison]:
        """Cases with a quality, without dense."""
        return [case for case in self.cases if case.delta_nll is not None and not case.is_dense]

    def with_gaps(self, cases: Iterable[Comparison]) -> list[Comparison]:
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
    def doubt(self) -> str:
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
        alike.setdefault(setting.title, []).append(_told(setting))
    return [replace(setting, told=_differing(_told(setting), alike[setting.title])) for setting in found]


def _differing(words: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> str:
    """Those of some words that are not the same in all others."""
    return ", ".join(word for word, *seen in zip(words, *others, strict=True) if len(set(seen)) > 1)


def _told(setting: Setting) -> tuple[str, ...]:
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
        told = record.inputs.calibrated if several else ""
        cases.append(Comparison(record, dense, among, shared, documents, floor, spoiled, told))
    compared = max(sum(case.compared_tasks for case in cases), 1)
    return Setting(tuple(sorted((replace(case, comparisons=compared) for case in cases), key=_order)))


def _noise(members: Sequence[Record], dense: Record | None) -> tuple[float | None, str]:
    """The A/A floor of a setting, and why its ratios cannot be trusted: what the control says."""
    timed = [record for record in members if Comparison(record, None).timed]
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


def _order(case: Comparison) -> tuple[object, ...]:
    return (*rank(case.method), case.is_control, case.series, case.sparsity or 0.0)

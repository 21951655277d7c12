"""One state of the code on several machines: what of a difference is the machine's, and what the method's."""

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tda.changes.quality import ROUNDING
from tda.records import Machine
from tda.statistics import LEVEL, MIN_GROUPS, Estimate, level_of, ratios, unpaired_ratio
from tda.web.report.comparison import ComparedCase
from tda.web.report.gather import Group
from tda.web.report.setting import Setting
from tda.web.report.tasks import unlike
from tda.web.theme.formatting import interval, number, size

COARSE_ROUNDING = 1e-2
"""Nats a token: a document's likelihood may move this much with another order of sums in a type of two bytes."""
INTERACTION, ALIKE = "method × machine", "alike within the intervals"


# The machines.


def names_of(groups: Iterable[Group]) -> dict[str, str]:
    """A short name for each machine by its fingerprint, in order of first appearance: A to Z, then A2 and on."""
    letters = string.ascii_uppercase
    fingerprints = dict.fromkeys(group.machine.fingerprint for group in groups)
    return {
        fingerprint: letters[place % len(letters)] + (str(place // len(letters) + 1) if place >= len(letters) else "")
        for place, fingerprint in enumerate(fingerprints)
    }


def differing_facts(machines: Sequence[Machine]) -> list[tuple[str, list[str]]]:
    """Name of each fact in which some machines differ, and what each of them has."""
    facts = {
        "CPU": [machine.cpu for machine in machines],
        "Cores": [machine.cores_told for machine in machines],
        "Threads": [str(machine.threads) for machine in machines],
        "Memory": _sizes([machine.memory_bytes for machine in machines]),
        "Last-level cache": _sizes([machine.cache_bytes for machine in machines]),
        "GPU": [machine.gpu or "none used" for machine in machines],
        "Driver": [machine.driver or "none" for machine in machines],
        "System": [machine.system for machine in machines],
        "Python": [machine.python for machine in machines],
        "torch": [machine.torch for machine in machines],
        "transformers": [machine.transformers for machine in machines],
        "Products": [machine.products or "not recorded" for machine in machines],
        "Compiler": [machine.compiler or "none" for machine in machines],
    }
    return [(name, values) for name, values in facts.items() if len(set(values)) > 1]


def _sizes(counts: Sequence[int | None]) -> list[str]:
    """Sizes in words; in full where unlike ones would read the same."""
    texts = ["not recorded" if count is None else size(count) for count in counts]
    if len(set(texts)) < len(set(counts)):
        return ["not recorded" if count is None else f"{count:,} B" for count in counts]
    return texts


# A case on several of them.


@dataclass(frozen=True)
class Between:
    """What one machine's numbers are of another's.

    Attributes
    ----------
    name, first : str
        The machine, and the one that it is held against.
    ratio : Estimate or None
        Of dense, its decode step over the first one's; of others, its speed-up over the first one's. None where either
        is missing.
    verdict : str
        What the ratio says, or why there is none.
    """

    name: str
    first: str
    ratio: Estimate | None
    verdict: str

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f" {interval(self.ratio, unit='×')}"
        return f"{self.name}/{self.first}{ratio}: {self.verdict}"


@dataclass(frozen=True)
class SideBySideRow:
    """A case that several machines measured.

    Attributes
    ----------
    cases : mapping of str to ComparedCase
        By the machine's name; each beside dense of its own machine.
    comparisons : int
        Ratios of speed-ups that verdicts hold for together.
    """

    cases: Mapping[str, ComparedCase]
    comparisons: int = 1

    @property
    def label(self) -> str:
        """What people call the case."""
        return next(iter(self.cases.values())).label

    @property
    def is_baseline(self) -> bool:
        """Whether it is the dense run that all speed-ups are over."""
        return all(case.record is case.dense for case in self.cases.values() if case.dense is not None) and all(
            case.record.case.is_baseline for case in self.cases.values()
        )

    @cached_property
    def between(self) -> list[Between]:
        """Every machine after the first one against it."""
        (first, reference), *others = self.cases.items()
        return [self._between(name, case, first, reference) for name, case in others]

    def _between(self, name: str, case: ComparedCase, first: str, reference: ComparedCase) -> Between:
        mine, theirs = (_steps(one, baseline=self.is_baseline) for one in (case, reference))
        for place, one, values in ((name, case, mine), (first, reference, theirs)):
            if not values:
                why = "no dense run there" if one.timed else one.missing("decode_ms")
                return Between(name, first, None, f"nothing to compare on {place} ({why})")
        level = max(level_of(case.record), level_of(reference.record))
        level = 1 - (1 - level) / (1 if self.is_baseline else self.comparisons)
        ratio = unpaired_ratio(mine, theirs, level)
        warning = "; not trusted" if not self.is_baseline and (case.warnings or reference.warnings) else ""
        return Between(name, first, ratio, self._verdict(ratio) + _kernels({first: reference, name: case}) + warning)

    def _verdict(self, ratio: Estimate) -> str:
        if self.is_baseline:
            return "the machine's"
        if ratio.low is None or ratio.high is None:
            return f"cannot tell with fewer than {MIN_GROUPS} rounds"
        return ALIKE if ratio.low <= 1 <= ratio.high else INTERACTION

    @cached_property
    def quality(self) -> list["Apart"]:
        """The largest differences of its likelihood and scores between two of its machines."""
        return list(_quality(self.cases))


def _steps(case: ComparedCase, *, baseline: bool) -> list[float]:
    """A value for each round: the decode step of dense, the speed-up of another; none where it is missing."""
    if baseline:
        return list(case.groups("decode_ms").values())
    dense = case.dense_case
    if dense is None or not (case.timed and dense.timed):
        return []
    return list(ratios(dense.record.measurements["decode_ms"], case.record.measurements["decode_ms"]).values())


def _kernels(cases: Mapping[str, ComparedCase]) -> str:
    """What is to be known of a ratio of machines that ran a case on unlike kernels."""
    backends = {name: (case.record.backend or "").split(" (")[0] for name, case in cases.items()}
    if "" in backends.values() or len(set(backends.values())) == 1:
        return ""
    return f"; kernels differ ({', '.join(f'{backend} on {name}' for name, backend in backends.items())})"


# Its quality.


@dataclass(frozen=True)
class Apart:
    """The largest difference of one score of a case between machines, document by document or item by item.

    Attributes
    ----------
    what, unit : str
        The score, and its unit.
    largest : float
        Largest absolute difference.
    unequal, of : int
        Documents or items that differ by more than rounding, of those that were compared.
    each : str
        What they are: documents or items.
    """

    what: str
    unit: str
    largest: float
    unequal: int
    of: int
    each: str

    def __str__(self) -> str:
        text = f"{self.what} differs by at most {number(self.largest, 2)} {self.unit}" if self.largest else ""
        text = text or f"{self.what} is equal"
        return text + (f" ({self.unequal} of {self.of} {self.each} by more than rounding)" if self.unequal else "")


def _quality(cases: Mapping[str, ComparedCase]) -> Iterator[Apart]:
    held = list(cases.values())
    rounding = ROUNDING if held[0].record.case.dtype == "float32" else COARSE_ROUNDING
    found = _apart("NLL", "nats/token", [case.groups("nll_nats") for case in held], rounding, "documents")
    if found is not None:
        yield found
    for task in dict.fromkeys(task for case in held for task in case.tasks):
        scored = [case for case in held if task in case.tasks]
        alike = [one for one in scored if unlike(one.record.tasks[task], scored[0].record.tasks[task]) is None]
        for name in scored[0].tasks[task]:
            unit, score = scored[0].record.measurements[name].unit, name.removeprefix(f"task_{task}_")
            if score != "output_tokens":
                values = [case.groups(name) for case in alike]
                found = _apart(f"{score} of {task}", unit, values, ROUNDING, "items")
                if found is not None:
                    yield found


def _apart(what: str, unit: str, values: Sequence[Mapping[int, float]], rounding: float, each: str) -> Apart | None:
    """Largest difference of two of some cases' values by document or item; None where fewer than two have one."""
    spread = {}
    for place in dict.fromkeys(place for one in values for place in one):
        own = [one[place] for one in values if place in one]
        if len(own) > 1:
            spread[place] = max(own) - min(own)
    if not spread:
        return None
    unequal = sum(apart > rounding for apart in spread.values())
    return Apart(what, unit, max(spread.values()), unequal, len(spread), each)


# All of it.


@dataclass(frozen=True)
class SideBySide:
    """A setting that several machines share.

    Attributes
    ----------
    title : str
        Model and sizes, and the commit where the page holds several.
    names : tuple of str
        The machines, in order.
    rows : tuple of SideBySideRow
        Cases that two machines or more have, dense first.
    """

    title: str
    names: tuple[str, ...]
    rows: tuple[SideBySideRow, ...]

    @property
    def messages(self) -> list[str]:
        """What the machines differ by, and what methods do: sentences."""
        found = [
            f"{row.label} decodes a step on {one.name} in {interval(one.ratio, unit='×')} of its time on {one.first}: "
            "this ratio is the machine's."
            for row in self.rows
            if row.is_baseline
            for one in row.between
            if one.ratio is not None
        ]
        judged = [
            (row, one) for row in self.rows if not row.is_baseline for one in row.between if one.ratio is not None
        ]
        apart = [(row, one) for row, one in judged if one.verdict.startswith(INTERACTION)]
        found += [
            f"{row.label} gains otherwise on {one.name}: its speed-up there is {interval(one.ratio, unit='×')} of that "
            f"on {one.first} ({one.verdict})."
            for row, one in apart
            if one.ratio is not None
        ]
        alike = sum(one.verdict.startswith(ALIKE) for _, one in judged)
        if alike:
            level = f"{1 - (1 - LEVEL) / len(judged):.4g}"
            found.append(
                f"{alike} of {len(judged)} ratios of speed-ups are {ALIKE} (each at a level of {level} or more)."
            )
        return found + self._quality_messages

    @property
    def _quality_messages(self) -> list[str]:
        scored = [row for row in self.rows if row.quality]
        unequal = [(row, one) for row in scored for one in row.quality if one.unequal]
        if scored and not unequal:
            return ["Quality is equal up to rounding in every case that two machines scored."]
        return [f"Quality is not equal: {row.label}, {one}." for row, one in unequal]


def side_by_side(groups: Sequence[Group]) -> list[SideBySide]:
    """Every setting that two machines measured with one state of the code; empty where there is none."""
    names = names_of(groups)
    states: dict[tuple[object, ...], list[Group]] = {}
    for group in groups:
        states.setdefault(_state(group), []).append(group)
    found = []
    for state in states.values():
        commit = f" · commit {(state[0].commit.hash or 'unknown')[:10]}" if len(states) > 1 else ""
        found += [replace(one, title=one.title + commit) for one in _shared(state, names)]
    return found


def _state(group: Group) -> tuple[object, ...]:
    """What ran: outside a checkout, where no commit is known, the version of this package stands for it."""
    version = group.machine.tda if group.commit.hash is None else None
    return group.commit, group.lines[0].inputs.change, version


def _shared(groups: Sequence[Group], names: Mapping[str, str]) -> Iterator[SideBySide]:
    """Settings of one state that two of its machines or more have cases of."""
    held: dict[tuple[object, ...], dict[str, Setting]] = {}
    for group in groups:
        for setting in group.settings:
            place = setting.cases[0].record.setting
            held.setdefault(place, {})[names[group.machine.fingerprint]] = setting
    for settings in held.values():
        cases: dict[tuple[str, str], dict[str, ComparedCase]] = {}
        for name, setting in settings.items():
            for case in setting.cases:
                if not case.is_control:
                    cases.setdefault(case.record.series, {})[name] = case
        rows = [SideBySideRow(found) for found in cases.values() if len(found) > 1]
        if rows:
            compared = sum(one.ratio is not None for row in rows if not row.is_baseline for one in row.between)
            title = next(iter(settings.values())).title
            yield SideBySide(title, tuple(settings), tuple(SideBySideRow(row.cases, max(compared, 1)) for row in rows))

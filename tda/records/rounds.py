"""The rounds of each case joined into one record."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

from tda.records.measurements import MIN_GROUPS, Measurement
from tda.records.record import Flag, FlagName, Record


def merge(records: Iterable[Record]) -> list[Record]:
    """Join the rounds of each series into one record, in the order in which the series first appeared.

    Samples are concatenated in order of rounds; where a measurement has no groups, its samples' group is their
    round. A round that two processes measured is two rounds, since only what ran side by side may be paired: the later
    one gets a number of its own, the same in all series. A failed round is left out of the samples while another round
    is ok; a series that only failed keeps its last failure. A flag that any round raised is raised. What needs no
    repetition may stand in several lines of round 0, e.g. a line for each task: a later one adds to those before it.
    """
    records = list(records)
    numbers = _numbers(records)
    rounds: dict[tuple[str, str], dict[int, Record]] = {}
    for record in records:
        held, number = rounds.setdefault(record.series, {}), numbers[turn(record)]
        before = held.get(number)
        if before is None or before.status != "ok":
            held[number] = record
        elif record.status == "ok":
            held[number] = record if number else _completed(before, record)
    return [_join(dict(sorted(held.items()))) for held in rounds.values()]


def _completed(before: Record, record: Record) -> Record:
    """A line of round 0 with what earlier ones hold beside it."""
    return record.model_copy(
        update={
            "achieved_sparsity": record.achieved_sparsity or before.achieved_sparsity,
            "execution": record.execution or before.execution,
            "backend": record.backend or before.backend,
            "measurements": before.measurements | record.measurements,
            "tasks": before.tasks | record.tasks,
            "flags": before.flags | record.flags,
            "started": before.started,
            "seconds": before.seconds + record.seconds,
        }
    )


def turn(record: Record) -> tuple[int, object]:
    """The round that a line is of, and the process that timed it; what is not timed repeats exactly."""
    return record.round, record.conditions.get("process") if record.round else None


def _numbers(records: Iterable[Record]) -> dict[tuple[int, object], int]:
    """A number for each round of each process: its own, or where an earlier process has it, one that none has."""
    turns = list(dict.fromkeys(turn(record) for record in records))
    first = {one[0]: one for one in reversed(turns)}
    free = itertools.count(max(first, default=0) + 1)
    return {one: one[0] if first[one[0]] == one else next(free) for one in turns}


def _join(lines: Mapping[int, Record]) -> Record:
    good = {number: line for number, line in lines.items() if line.status == "ok"}
    if not good:
        return list(lines.values())[-1]
    names = dict.fromkeys(name for line in good.values() for name in line.measurements)
    measurements = {name: _join_measurement(name, good) for name in names}
    last, done = list(good.values())[-1], {line.round for line in good.values()}
    failed = {line.round: line.reason for line in lines.values() if line.round not in done}
    told = f"{len(failed)} of {len(failed) + len(done)} rounds failed: {list(failed.values())[-1]}" if failed else None
    return last.model_copy(
        update={
            "reason": told,
            "achieved_sparsity": _mean_layers(
                [line.achieved_sparsity for line in good.values() if line.achieved_sparsity]
            ),
            "measurements": measurements,
            "tasks": {name: facts for line in good.values() for name, facts in line.tasks.items()},
            "flags": _counted(join_flags([line.flags for line in good.values()]), measurements.get("decode_ms")),
            "conditions": {**last.conditions, "processes": _processes(good.values())},
            "started": next(iter(good.values())).started,
            "seconds": sum(line.seconds for line in lines.values()),
        }
    )


def _processes(lines: Iterable[Record]) -> float | None:
    """Processes that timed rounds ran in; null where older records do not tell."""
    told = {line.conditions.get("process", line.conditions.get("processes")) for line in lines if line.round}
    counts = [one for one in told if isinstance(one, float)]
    return counts[0] if counts else float(len(told)) if told - {None} else None


def _counted(flags: dict[FlagName, Flag], timed: Measurement | None) -> dict[FlagName, Flag]:
    """Flags with the number of rounds that there are in the end: a line can only tell how many were planned."""
    if "few_samples" not in flags or timed is None:
        return flags
    return flags | {"few_samples": few_samples(len(set(timed.groups)))}


def few_samples(rounds: int) -> Flag:
    """The flag of so many rounds."""
    told = f"{rounds} round{'s' * (rounds != 1)}; an interval needs {MIN_GROUPS}"
    return Flag(raised=rounds < MIN_GROUPS, detail=told)


def _mean_layers(shares: list[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(sum(layer) / len(layer) for layer in zip(*shares, strict=True))


def join_flags(rounds: Sequence[Mapping[FlagName, Flag]]) -> dict[FlagName, Flag]:
    """Join the flags of several rounds: one that some of them raised says how many, and what the last of them saw."""
    flags: dict[FlagName, Flag] = {}
    for name in dict.fromkeys(name for found in rounds for name in found):
        seen = [found[name] for found in rounds if name in found]
        raised = [flag for flag in seen if flag.raised]
        if raised and len(raised) < len(seen):
            flags[name] = Flag(raised=True, detail=f"{len(raised)} of {len(seen)} rounds; {raised[-1].detail}")
        else:
            flags[name] = (raised or seen)[-1]
    return flags


def _join_measurement(name: str, lines: Mapping[int, Record]) -> Measurement:
    newest = {line.round: number for number, line in lines.items()}
    present = [(number, line) for number, line in lines.items() if name in line.measurements]
    filled = [
        (number, part)
        for number, line in present
        if (part := line.measurements[name]).samples
        and (not part.groups or newest[line.round] == number)  # what has groups, such as documents, counts once
    ]
    if not filled:
        return present[-1][1].measurements[name]
    samples = tuple(sample for _, part in filled for sample in part.samples)
    groups = tuple(group for number, part in filled for group in (part.groups or (number,) * len(part.samples)))
    return filled[0][1].model_copy(update={"samples": samples, "groups": groups})

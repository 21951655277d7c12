"""Whether a method is worth it: one stated rule over speed-up, quality and A/A noise."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tda.derived import Missing
from tda.records import Record
from tda.statistics import MARGIN, MIN_GROUPS, Estimate
from tda.web.report.comparison import A_A, OF_QUALITY, ComparedCase
from tda.web.report.sections import Block, Table
from tda.web.report.setting import Setting, settings
from tda.web.report.table import Cell, Column, named
from tda.web.theme.formatting import MISSING, number
from tda.worth import WorthRule

VerdictWord = Literal["worth it", "not", "cannot tell"]
Judgement = tuple[bool | None, str]
"""Whether speed or quality is good enough, None where the interval leaves it open, and the reason unless it is."""


@dataclass(frozen=True)
class Worth:
    """A verdict, and why."""

    word: VerdictWord
    why: str

    def __str__(self) -> str:
        return f"{self.word}: {self.why}" if self.why else self.word


def explained(rule: WorthRule) -> str:
    """The rule in words."""
    return (
        f"Worth it: the whole 95% interval of the speed-up is at least {rule.min_speedup:g}× beyond the A/A noise, and "
        f"that of ΔNLL at most {rule.max_loss_nats:g} nats per token; tasks are as good as dense within ±{MARGIN:g}. "
        "Not: one of these fails over its whole interval. Cannot tell: all else."
    )


CAUTION = (
    "The A/A noise is how far dense differs from itself; it widens the interval of the speed-up on both sides. Each "
    "line holds at 95% by itself: among many lines, some are wrong. Options --min-speedup and --max-loss set the rule."
)


def worth(case: ComparedCase, rule: WorthRule) -> Worth:
    """Judge a case by the rule."""
    if case.record.status != "ok":
        return Worth("cannot tell", case.record.outcome)
    if case.dense is None:
        return Worth("cannot tell", "no dense run succeeded")
    holds, why = _all([_speed(case, rule), _quality(case, rule)])
    if holds:
        return Worth("worth it", _from_tokens(case))
    return Worth("cannot tell" if holds is None else "not", why)


def _all(sides: Sequence[Judgement]) -> Judgement:
    """Whether all hold; the reasons are those that decide."""
    found = [holds for holds, _ in sides]
    decided = False if False in found else None if None in found else True
    return decided, "; ".join(why for holds, why in sides if holds is decided and why)


def _speed(case: ComparedCase, rule: WorthRule) -> Judgement:
    warnings = [kind for kind in case.warning_details if kind not in OF_QUALITY]
    ratio, noise = case.speedup, case.floor
    if not case.timed or ratio is None:
        return None, f"no speed ({_short(case.missing('decode_ms'))})"
    if ratio.low is None or ratio.high is None:
        return None, f"fewer than {MIN_GROUPS} rounds"
    if warnings:
        return None, f"speed not trusted ({', '.join(warnings)})"
    if noise is None:
        return None, f"no {A_A}"
    low, high = ratio.low / (1 + noise), ratio.high * (1 + noise)
    if high < rule.min_speedup:
        return False, f"speed-up below {rule.min_speedup:g}"
    if low >= rule.min_speedup:
        return True, ""
    return None, f"speed-up is {number(low)} to {number(high)} with the noise"


def _quality(case: ComparedCase, rule: WorthRule) -> Judgement:
    warnings = [kind for kind in case.warning_details if kind in OF_QUALITY]
    sides = [_likelihood(case.delta_nll, rule)] if case.delta_nll is not None else []
    sides += [_task(case, task) for task in case.tasks]
    if not sides:
        return None, f"no quality ({_short(case.missing('nll_nats'))})"
    if warnings:
        return None, f"quality not trusted ({', '.join(warnings)})"
    return _all(sides)


def _short(reason: str) -> str:
    """A reason without its details, which the table of all cases has."""
    return reason.partition(": ")[0]


def _likelihood(delta: Estimate, rule: WorthRule) -> Judgement:
    if delta.low is None or delta.high is None:
        return None, f"fewer than {MIN_GROUPS} documents"
    if delta.low > rule.max_loss_nats:
        return False, f"ΔNLL above {rule.max_loss_nats:g}"
    if delta.high <= rule.max_loss_nats:
        return True, ""
    return None, f"ΔNLL on both sides of {rule.max_loss_nats:g}"


def _task(case: ComparedCase, task: str) -> Judgement:
    found = case.task_verdict(task)
    if isinstance(found, Missing) or found == "cannot tell":
        return None, f"{task} unclear"
    return (False, f"worse on {task}") if found == "worse" else (True, "")


def _from_tokens(case: ComparedCase) -> str:
    """From how many generated tokens on, where these are more than were generated here."""
    tokens = case.estimate("break_even_tokens")
    if tokens is None:
        return ""
    bound = tokens.value if tokens.high is None else tokens.high
    if math.isinf(bound):
        return "break-even unclear"
    measured = case.record.case.new_tokens
    return f"from {math.ceil(bound):,} generated tokens on; measured {measured:,}" if bound > measured else ""


# Tables.


def judged(setting: Setting) -> list[ComparedCase]:
    """The cases that a verdict is about, in the order in which their methods were measured first, then by sparsity.

    Neither dense nor a control is a method, and the oracle is a bound for one.
    """
    cases = [
        case
        for case in setting.cases
        if not case.is_dense and case.record.case.control is None and case.method != "oracle"
    ]
    order = list(dict.fromkeys(case.method for case in cases[0].among)) if cases else []
    return sorted(cases, key=lambda case: order.index(case.method))  # stable: by series and sparsity within a method


def verdict_columns(rule: WorthRule) -> list[Column]:
    """Columns of a table of verdicts; that a number is not trusted is said once, by the verdict."""
    faster, limit, lost, tokens = named("speedup", "roofline_speedup", "delta_nll_nats", "break_even_tokens")
    limit = replace(limit, value=lambda case: case.limit)
    return [
        Column("method", "method", lambda case: case.label, _no_reason, numeric=False),
        *(replace(column, ratio=False) for column in (faster, limit, lost, tokens)),
        Column("noise", "A/A noise", lambda case: noise(case.floor), _no_reason, numeric=False),
        Column("verdict", "verdict", lambda case: str(worth(case, rule)), _no_reason, numeric=False),
    ]


def noise(floor: float | None) -> str:
    """A noise floor as text."""
    return MISSING if floor is None else f"±{number(100 * floor, 2)}%"


def _no_reason(case: ComparedCase) -> str:
    return ""


def verdict_rows(records: Iterable[Record], rule: WorthRule) -> list[dict[str, str]]:
    """A row of text for each verdict on lines of one machine and commit."""
    columns, found = verdict_columns(rule), settings(records)
    return [
        {"model": setting.name_among(found)} | {column.heading: column.cell(case).text for column in columns}
        for setting in found
        for case in judged(setting)
    ]


def verdict_blocks(found: Sequence[Setting], rule: WorthRule) -> list[Block]:
    """The verdicts as a page shows them, a table for each model that has a method to judge."""
    columns = verdict_columns(rule)
    return [
        Block(
            name,
            table=Table(
                f"Verdicts on {name}", columns, [(case.record.status, _cells(case, columns)) for case in cases]
            ),
        )
        for setting in found
        if (cases := judged(setting)) and (name := setting.name_among(found))
    ]


def _cells(case: ComparedCase, columns: Sequence[Column]) -> list[Cell]:
    return [column.cell(case) for column in columns]

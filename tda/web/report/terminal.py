"""Rows for a terminal: which columns leave first where it is narrow, and short heads."""

from collections.abc import Mapping, Sequence

from tda.records import Record
from tda.web.report.setting import settings
from tda.web.report.table import summary_rows
from tda.web.report.verdicts import judged, noise, worth
from tda.worth import WorthRule

SHORT_HEADS: Mapping[str, str] = {
    "asked sparsity": "sparsity",
    "decode p50 (ms)": "p50 (ms)",
    "speed-up (×)": "speed-up",
    "roofline speed-up (×)": "limit",
    "break-even (tokens)": "break-even",
    "ΔNLL (nats/token)": "ΔNLL",
    "KL (nats/token)": "KL",
    "standard error": "error",
}
SPARE = (
    "KL (nats/token)", "ran as", "break-even (tokens)", "roofline speed-up (×)", "decode p50 (ms)", "achieved",
    "standard error", "sparse tokens", "items", "decode (ms)",
)  # fmt: skip
"""Columns in the order in which they leave a table that is too wide."""


def judged_rows(records: Sequence[Record], rule: WorthRule) -> list[dict[str, str | None]]:
    """Rows of all cases with the verdicts on them, None for those that no verdict is about: for JSON."""
    found = settings(records)
    verdicts = {id(case): worth(case, rule) for setting in found for case in judged(setting)}
    rows: list[dict[str, str | None]] = []
    for row, case in zip(summary_rows(records), (case for setting in found for case in setting.cases), strict=True):
        one = verdicts.get(id(case))
        verdict = {"verdict": None, "why": None} if one is None else {"verdict": one.word, "why": one.why}
        rows.append({**row, "A/A noise": noise(case.floor), **verdict})
    return rows

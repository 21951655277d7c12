"""The table at the end: each figure, its goal, holds or falls short; and why parts have none."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.check import Outcome
from benchmarks.gpu_check.figures import NONE, Figure
from tda.results import write_whole

JSON, MARKDOWN = "summary.json", "summary.md"
FACTS = "machine/facts.json"
VERSIONS = ("torch", "triton", "transformers", "numpy", "vllm")
DRY = "dry run"
"""In place of a verdict: a CPU's figures say nothing about the goals."""
HEADINGS = ("part", "figure", "value", "goal", "verdict", "note")


@dataclass(frozen=True)
class Summary:
    """All that a check gave.

    Attributes
    ----------
    started : str
        When it began, UTC.
    dry : bool
        Whether it ran without a card.
    outcomes : sequence of Outcome
        One a part.
    facts : mapping
        Machine and commit as the first part found them; empty where it could not.
    dropped : sequence of str
        What found no room in the archive.
    """

    started: str
    dry: bool
    outcomes: Sequence[Outcome]
    facts: dict[str, Any]
    dropped: Sequence[str] = ()

    def verdict(self, figure: Figure) -> str:
        """A figure's verdict; of a dry run none is given."""
        return DRY if self.dry and figure.goal is not None else figure.verdict

    @property
    def short(self) -> list[str]:
        """Figures with a goal that is not reached."""
        return [
            f"{outcome.part}: {figure.name}"
            for outcome in self.outcomes
            for figure in outcome.figures
            if self.verdict(figure) not in (NONE, DRY, "holds")
        ]

    @property
    def troubles(self) -> list[str]:
        """Parts that did not end well."""
        return [outcome.part for outcome in self.outcomes if outcome.failed]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each figure, and one for each part that did not end well or was not begun."""
        found = []
        for outcome in self.outcomes:
            for figure in outcome.figures:
                goal = NONE if figure.goal is None else str(figure.goal)
                row = {"part": outcome.part, "figure": figure.name, "value": figure.text, "goal": goal}
                found.append({**row, "verdict": self.verdict(figure), "note": figure.note})
            if outcome.status != "ok":
                row = {"part": outcome.part, "figure": NONE, "value": NONE, "goal": NONE}
                found.append({**row, "verdict": outcome.status, "note": outcome.reason or ""})
        return found

    def versions(self) -> dict[str, str]:
        """Python and the packages that have a part in it."""
        here = {"python": platform.python_version()}
        for package in VERSIONS:
            try:
                here[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                here[package] = "not installed"
        return here

    def conditions(self) -> str:
        """What all figures were taken on, in one paragraph."""
        machine, commit = self.facts.get("machine", {}), self.facts.get("commit", {})
        place = machine.get("gpu") or (machine.get("cpu") if self.dry else None) or "unknown machine"
        words = [place, *([f"driver {machine['driver']}"] if machine.get("driver") else [])]
        words += [f"{name} {version}" for name, version in self.versions().items() if version != "not installed"]
        if machine.get("system"):
            words.append(machine["system"])
        changed = " with uncommitted changes" if commit.get("dirty") else ""
        words.append(f"commit {commit.get('hash') or 'unknown'}{changed}")
        return f"{', '.join(words)}. Started {self.started}."

    def markdown(self) -> str:
        """The table for readers."""
        title = "# GPU check" + (
            ": a dry run on the CPU, whose figures say nothing about the goals" if self.dry else ""
        )
        lines = [title, "", self.conditions(), "", _row(HEADINGS), _row(["---"] * len(HEADINGS))]
        lines += [_row([row[name] for name in HEADINGS]) for row in self.rows()]
        lines += ["", *self.sentences()]
        return "\n".join(lines) + "\n"

    def sentences(self) -> list[str]:
        """What the table comes to."""
        verdicts = [self.verdict(figure) for outcome in self.outcomes for figure in outcome.figures]
        judged = [verdict for verdict in verdicts if verdict not in (NONE, DRY)]
        told = [f"{judged.count('holds')} of {len(judged)} goals hold."] if judged else []
        skipped = [outcome.part for outcome in self.outcomes if outcome.status == "skipped"]
        lists = {
            "Short of their goals": self.short,
            "Did not end well": self.troubles,
            "Not run": skipped,
            "No room in the archive for": self.dropped,
        }
        return told + [f"{name}: {'; '.join(found)}." for name, found in lists.items() if found]

    def json(self) -> str:
        """The same for programs, with plain numbers."""
        parts = [
            {
                **outcome.model_dump(mode="json", exclude={"figures"}),
                "figures": [self._plain(figure) for figure in outcome.figures],
            }
            for outcome in self.outcomes
        ]
        whole = {"started": self.started, "dry_run": self.dry, **self.facts, "versions": self.versions()}
        return json.dumps({**whole, "parts": parts, "not_archived": list(self.dropped)}, indent=1) + "\n"

    def _plain(self, figure: Figure) -> dict[str, Any]:
        goal = None if figure.goal is None else str(figure.goal)
        return {**figure.model_dump(mode="json"), "goal": goal, "holds": None if self.dry else figure.holds}

    def write(self, out: Path) -> None:
        """Write both."""
        write_whole(out / JSON, self.json())
        write_whole(out / MARKDOWN, self.markdown())


def read_facts(scratch: Path) -> dict[str, Any]:
    """What the first part found out about the machine; empty where it did not come so far."""
    path = scratch / FACTS
    return json.loads(path.read_text()) if path.is_file() else {}


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "/") for cell in cells) + " |"

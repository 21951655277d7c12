"""Prove the nightly run: nights over a scratch history, where it is known what each commit did.

``python -m experiments.nightly.proof planted`` plants slow-downs, a drift, a wrong threshold and broken commits, and
says for each whether the nights found it and named it for what it is. ``... unchanged`` measures commits that change
nothing: every finding is false. Both take the machine for themselves; run them while nothing else runs. A plant is to
be at least twice what a night can see (its report says): `--times` makes all of them larger.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tda.history.findings import Finding
from tda.history.nights import History, Night
from tda.history.repository import Repository
from tda.nightly.config import load_config
from tda.nightly.data import NightData
from tda.nightly.detector import ChangeDetector
from tda.nightly.night import NightRun
from tda.nightly.publish import write_account
from tests.planted import Planted, Sizes, build, history, unchanged

CONFIG = Path(__file__).with_name("proof.toml")
NIGHTS = 3


@dataclass(frozen=True)
class Scratch:
    """A scratch history on disk: the repository, its nights, and what was planted in which commit."""

    folder: Path
    planted: list[tuple[str, Planted]]

    @classmethod
    def open(cls, folder: Path, plants: Sequence[Planted], sizes: Sizes) -> "Scratch":
        """Make it, or go on with the one that is there."""
        known = folder / "commits.json"
        if known.is_file():
            hashes = json.loads(known.read_text())
            return cls(folder, list(zip(hashes, [Planted("Begin"), *plants], strict=True)))
        planted = build(folder / "repository", sizes, plants)
        known.write_text(json.dumps([commit for commit, _ in planted]))
        return cls(folder, planted)

    @property
    def history(self) -> History:
        """Its nights."""
        return History(self.folder / "history")

    def measure(self, nights: int) -> None:
        """Run so many nights, each over the next part of the commits; those that have ended are not run again."""
        repository = Repository(self.folder / "repository")
        count = len(self.planted)
        ended = sum(night.finished is not None for night in self.history.nights()[0])
        for number in range(ended + 1, nights + 1):
            newest = self.planted[round(count * number / nights) - 1][0]
            run = NightRun(
                repository,
                self.history,
                load_config(CONFIG),
                self.folder / "work",
                newest,
                since=self.planted[0][0],
            )
            run.run()
            write_account(self.history, self.folder / "decisions.toml", self.folder / f"night-{number}")

    def judged(self) -> list[Night]:
        """Accounts of all nights, their units judged by the code of today."""
        repository, config = Repository(self.folder / "repository"), load_config(CONFIG)
        return [
            night.model_copy(
                update={"findings": ChangeDetector(NightData(self.history, night, config, repository)).findings()}
            )
            for night in self.history.nights()[0]
        ]


def compared(planted: Sequence[tuple[str, Planted]], nights: Sequence[Night]) -> pd.DataFrame:
    """One row a commit: what was planted, what was found, and whether that is right."""
    status = {commit.hash: commit.status for night in nights for commit in night.commits}
    place = {commit: number for number, (commit, _) in enumerate(planted)}
    subjects = {one.subject: number for number, (_, one) in enumerate(planted)}
    found: dict[str, list[Finding]] = {}
    for night in nights:
        for finding in night.findings:
            found.setdefault(_owner(finding, planted, place, subjects), []).append(finding)
    rows = []
    for commit, one in planted:
        findings = [finding for finding in found.get(commit, []) if finding.verdict != "warning"]
        right = [finding for finding in findings if _is(finding, one, place, subjects)]
        other = [finding for finding in findings if finding not in right and finding.split not in one.also]
        rows.append(
            {
                "commit": commit[:10],
                "subject": one.subject,
                "planted": _description(one),
                "status": status.get(commit, "not measured"),
                "found": "; ".join(finding.sentence for finding in findings),
                "right": status.get(commit) == one.status and bool(right) == (one.expected is not None),
                "false findings": len(other),
                "warnings": len(found.get(commit, [])) - len(findings),
            }
        )
    return pd.DataFrame(rows)


def _description(one: Planted) -> str:
    if one.expected is None:
        return "nothing" if one.status == "measured" else one.status
    return f"{one.expected.verdict}: {one.expected.split} of {one.expected.scope}"


def _owner(
    finding: Finding, planted: Sequence[tuple[str, Planted]], place: dict[str, int], subjects: dict[str, int]
) -> str:
    """The commit that a finding is held against: of a drift that a night saw before it ended, its last."""
    for commit, one in planted:
        if _is(finding, one, place, subjects) and finding.shape == "drift":
            return commit
    return finding.commit


def _is(finding: Finding, one: Planted, place: dict[str, int], subjects: dict[str, int]) -> bool:
    """Whether a finding is what was planted.

    A drift may begin a commit late or early, since a step of it is small, and end with the night that saw enough of it.
    """
    if one.expected is None:
        return False
    named = (finding.verdict, finding.split, finding.scope)
    if named != (one.expected.verdict, one.expected.split, one.expected.scope):
        return False
    if one.expected.since is None:
        return finding.shape == "step"
    first, last = subjects[one.expected.since], subjects[one.subject]
    begins = abs(place[finding.good] - (first - 1)) <= 1
    return finding.shape == "drift" and begins and first < place[finding.commit] <= last + 1


def main() -> int:
    """Run one of the proofs; exit 1 if it does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("planted", "unchanged"))
    parser.add_argument("--folder", type=Path, help="where it works, and goes on after an interruption")
    parser.add_argument("--times", type=float, default=1.0, help="how much larger the plants of `planted` are")
    parser.add_argument("--commits", type=int, default=20, help="of `unchanged`")
    chosen = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("tda").setLevel(logging.INFO)
    folder = chosen.folder or Path("results") / f"proof-{chosen.which}"
    sizes = Sizes.measured(chosen.times)
    plants = history(sizes) if chosen.which == "planted" else unchanged(chosen.commits)
    scratch = Scratch.open(folder, plants, sizes)
    scratch.measure(NIGHTS if chosen.which == "planted" else 1)
    table = compared(scratch.planted, scratch.judged())
    table.to_csv(folder / "table.csv", index=False)
    print(table.to_string(index=False, max_colwidth=90))
    wrong = int((~table["right"]).sum() + table["false findings"].sum())
    print(f"{len(table)} commits, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

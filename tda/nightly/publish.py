"""Write what a history says: ``nightly.md`` of its newest night, and ``alarms.json``."""

from dataclasses import dataclass
from pathlib import Path

from tda.changes.detect import Rules
from tda.history.findings import Alarm
from tda.history.nights import History
from tda.history.profiles import PROFILES_FOLDER, ProfileStore
from tda.nightly.alarms import raised_in, replay
from tda.nightly.config import load_decisions
from tda.nightly.report import nightly_report
from tda.results import write_whole

ALARMS = "alarms.json"
ACCOUNT = "nightly.md"


@dataclass(frozen=True)
class PublishedReport:
    """What was written: the report's path, the alarms that its night raised, and what was skipped."""

    path: Path
    raised: tuple[Alarm, ...]
    problems: tuple[str, ...]


def write_account(history: History, decisions: Path, out: Path, smallest: float = Rules.smallest) -> PublishedReport:
    """Write the newest finished night's report and the alarms as they stand.

    Relative changes below `smallest` are not worth telling.

    Raises
    ------
    ValueError
        If the decisions cannot be read, or no night has finished.
    """
    nights, problems = history.nights()
    finished = [night for night in nights if night.finished]
    if not finished:
        raise ValueError(f"no night has finished in {history.folder}")
    alarms, unknown = replay(finished, load_decisions(decisions), smallest)
    write_whole(history.folder / ALARMS, alarms.model_dump_json(indent=1) + "\n")
    raised = tuple(raised_in(alarms, finished[-1].id))
    ends = {commit for alarm in raised for commit in (alarm.finding.good, alarm.finding.commit)}
    profiles = ProfileStore(history.folder / PROFILES_FOLDER).read(ends)
    problems += [*unknown, *history.units(finished[-1].id)[1], *profiles.problems]
    path = out / ACCOUNT
    write_whole(path, nightly_report(finished[-1], alarms, problems, profiles))
    return PublishedReport(path, raised, tuple(problems))

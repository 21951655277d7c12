"""What a night measures beside its commits while time is left: profiles of what changed, and extra commands."""

import logging
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tda.changes.builds import Builds
from tda.history.nights import History, Night
from tda.history.profiles import PROFILES_FOLDER, ProfileStore
from tda.history.repository import Repository
from tda.nightly.config import Extra, NightlyConfig
from tda.nightly.explain import explainable, options_of
from tda.nightly.profiling import ProfileRequest, capture

logger = logging.getLogger(__name__)

PROFILE_SECONDS = 30.0
"""What a process is expected to take that profiles one case beside dense."""


@dataclass(frozen=True)
class SpareTime:
    """The time of a night that its own processes left.

    Attributes
    ----------
    repository, history, config
        As for `tda.nightly.night.NightRun`.
    builds : Builds
        Installs of its commits.
    deadline : float
        When the time cap is reached, on `time.monotonic`.
    """

    repository: Repository
    history: History
    config: NightlyConfig
    builds: Builds
    deadline: float

    def explain(self, night: Night) -> None:
        """Profile both commits of each alarm of time or memory, in turn, until the cap."""
        if not self.config.alarm_processes or night.machine is None:
            return
        store = ProfileStore(self.history.folder / PROFILES_FOLDER)
        for finding in filter(explainable, night.findings):
            if time.monotonic() + 2 * self.config.alarm_processes * PROFILE_SECONDS > self.deadline:
                logger.info(f"no time left to profile what changed at {finding.commit[:10]}")
                continue
            logger.info(f"profiling {finding.cases[0]} at {finding.good[:10]} and {finding.commit[:10]}")
            question = ProfileRequest(
                "alarm", options_of(finding), self.config.alarm_processes, self.config.unit_timeout_s
            )
            pair = [self.builds.install(commit) for commit in (finding.good, finding.commit)]
            capture(store, question, pair, night.machine.fingerprint)

    def run_extras(self, night: Night) -> None:
        """Run the extra commands, newest commit first, until the cap; one that fails is named and not tried again."""
        for listed in reversed([commit for commit in night.commits if commit.status == "measured"]):
            for extra in self.config.extras:
                names = {
                    "python": sys.executable,
                    "commit": listed.hash,
                    "parent": listed.parent or listed.hash,
                    "site": str(self.builds.install(listed.hash).site.resolve()),
                    "history": str(self.history.folder.resolve()),
                }
                if not self._ran(extra, names):
                    self._extra(extra, names)

    def _ran(self, extra: Extra, names: Mapping[str, str]) -> bool:
        pattern = Path(extra.produces.format(**names))
        return any(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))

    def _extra(self, extra: Extra, names: Mapping[str, str]) -> None:
        commit = names["commit"][:10]
        if time.monotonic() + 60 * extra.minutes > self.deadline:
            logger.info(f"no time left for {extra.name} of {commit}; a later night runs it")
            return
        logger.info(f"{extra.name} of {commit}")
        produced = Path(extra.produces.format(**names))
        if "*" not in str(produced.parent):
            produced.parent.mkdir(parents=True, exist_ok=True)
        command = [word.format(**names) for word in extra.command]
        done = subprocess.run(command, cwd=self.repository.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        if done.returncode:
            logger.warning(f"{extra.name} of {commit} ended with exit code {done.returncode}")

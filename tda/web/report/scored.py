"""Task scores of a case beside those of the dense case of its setting."""

from dataclasses import dataclass
from functools import cached_property

from tda.derived import NO_DENSE, Derived, Missing
from tda.records import Record
from tda.statistics import MARGIN, Verdict, item_difference, verdict
from tda.web.report.measured import MeasuredCase
from tda.web.report.tasks import unlike


@dataclass(frozen=True)
class ScoredCase(MeasuredCase):
    """One merged record and the dense record that its task scores are compared with.

    Attributes
    ----------
    dense : Record or None
        The baseline of the same setting; None where there is none that ran.
    comparisons : int
        Differences of task scores to dense in the setting, which intervals hold for together.
    """

    dense: Record | None
    comparisons: int = 1

    @cached_property
    def dense_case(self) -> MeasuredCase | None:
        """The dense record's own numbers; None where there is none."""
        return None if self.dense is None else MeasuredCase(self.dense)

    def task_difference(self, task: str) -> Derived:
        """A task's score less dense's, paired per item, at the level that holds for all `comparisons`; or why not."""
        return self._differences.get(task) or Missing(self.score_missing(task))

    @cached_property
    def _differences(self) -> dict[str, Derived]:
        return {task: self._not_compared(task) or self._difference(task) for task in self.tasks}

    def _difference(self, task: str) -> Derived:
        name = self.headline(task)
        assert name is not None
        assert self.dense_case is not None
        found = item_difference(
            self.groups(name), self.dense_case.groups(name), share=self.is_share(name), comparisons=self.comparisons
        )
        return Missing("no item was answered by both") if found is None else found

    def _not_compared(self, task: str) -> Missing | None:
        """Why a task that was scored is not held against dense; None where it is."""
        name = self.headline(task)
        if name is None or not self.samples(name):
            return Missing(self.score_missing(task))
        dense = self.dense_case
        if dense is None:
            return NO_DENSE
        if self.record is dense.record:
            return Missing("it is what the others are compared with")
        if not dense.samples(name):
            return Missing(f"dense: {dense.score_missing(task)}")
        why = unlike(self.record.tasks[task], dense.record.tasks[task])
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

"""Workers that pull groups from a queue, and are lost: a plain event simulation."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A group as it really is: hours to load it, and of each of its cells, one recorded after another."""

    load: float
    cells: tuple[float, ...]

    @property
    def hours(self) -> float:
        return self.load + sum(self.cells)


@dataclass(frozen=True)
class Ended:
    """When all jobs were done, how long each was worked at, and when the capacity of the workers sufficed for that."""

    hours: float
    worked: tuple[float, ...]
    capacity_hours: float

    @property
    def bound(self) -> float:
        """No order ends sooner: the longest job, or all work over all workers."""
        return max(*self.worked, self.capacity_hours)


def run(
    jobs: Sequence[Job],
    order: Sequence[int],
    workers: int,
    losses: Sequence[float] = (),
    *,
    replaced: bool = True,
) -> Ended:
    """Let workers pull jobs in an order; at each time of a loss the worker that is busy longest is lost.

    Its job is the next one to be pulled, and starts again: it is loaded, and goes on with the cell in progress.
    A lost worker is replaced at once, or not at all.
    """
    queue = list(reversed(order))
    done = [0] * len(jobs)  # cells recorded
    worked = [0.0] * len(jobs)
    free = [(0.0, worker) for worker in range(workers)]
    busy: list[tuple[float, float, int, int]] = []  # when it ends, when it began, job, worker
    coming, gone, ended, left = sorted(losses), [], 0.0, len(jobs)
    while left:
        while queue and free:
            now, worker = heapq.heappop(free)
            job = queue.pop()
            heapq.heappush(busy, (now + jobs[job].load + sum(jobs[job].cells[done[job] :]), now, job, worker))
        if coming and coming[0] < busy[0][0]:
            now = coming.pop(0)
            lost = min((one for one in busy if one[1] < now), key=lambda one: one[1], default=None)
            if lost is None or (not replaced and len(busy) + len(free) == 1):
                continue
            busy.remove(lost)
            heapq.heapify(busy)
            _, began, job, worker = lost
            worked[job] += now - began
            spent = now - began - jobs[job].load
            while spent > 0 and done[job] < len(jobs[job].cells) - 1 and jobs[job].cells[done[job]] <= spent:
                spent -= jobs[job].cells[done[job]]
                done[job] += 1
            queue.append(job)
            if replaced:
                free.append((now, worker))
            else:
                gone.append(now)
            free = [(max(at, now), one) for at, one in free]
            heapq.heapify(free)
            continue
        ended, began, job, worker = heapq.heappop(busy)
        worked[job] += ended - began
        left -= 1
        heapq.heappush(free, (ended, worker))
    return Ended(ended, tuple(worked), _sufficed(sum(worked), workers, gone))


def _sufficed(work: float, workers: int, gone: Sequence[float]) -> float:
    """When workers, some of whom leave at times, have had so many hours together."""
    at = 0.0
    for leaves in gone:
        if work <= workers * (leaves - at):
            break
        work, at, workers = work - workers * (leaves - at), leaves, workers - 1
    return at + work / workers

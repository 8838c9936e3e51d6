"""Many small jobs of many callers in few calls, without timers: while a call is under way, the next ones gather.

Whoever comes when a slot is free goes at once and alone; a thousand that come together share a call or two. Jobs of one
group only meet in one call: same digest function, same headers.

Rules for this file: a call belongs to the batcher and never to one of its callers, so that a caller who leaves takes
nothing from the others; a job is either queued, or in one call, or finished; what is queued is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from copy import copy
from typing import Generic, TypeVar

import trio

from nl.plugin import InternalError, NlError


class Submission:
    """Jobs that one caller waits for together."""

    __slots__ = ("done", "left")

    def __init__(self, count: int) -> None:
        self.left = count
        self.done = trio.Event()


class Job:
    """One thing to be done. `weight` is what it takes of a call's room. `error` is set where it failed."""

    __slots__ = ("error", "submission", "weight")

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.error: NlError | None = None
        self.submission: Submission | None = None
        """None when it is finished, or nobody waits any more."""

    def finish(self, error: NlError | None = None) -> None:
        """It is done, or has failed."""
        self.error = error
        submission, self.submission = self.submission, None
        if submission is not None:
            submission.left -= 1
            if not submission.left:
                submission.done.set()


J = TypeVar("J", bound=Job)
G = TypeVar("G", bound=Hashable)


class Batcher(Generic[G, J]):
    """See the module. `run` must be running. `send` makes the call for some jobs and finishes each; an NlError that it
    raises is that of all that are left. `room` is what a call can carry, in weights.
    """

    def __init__(
        self,
        send: Callable[[G, Sequence[J]], Awaitable[None]],
        *,
        room: Callable[[], Awaitable[int]],
        max_jobs: int,
        max_queued: int,
        slots: int,
    ) -> None:
        self.batches = 0
        self.jobs = 0
        self._send = send
        self._room = room
        self._max_jobs = max_jobs
        self._max_queued = max_queued
        self._slots = slots
        self._queues: dict[G, deque[J]] = {}
        self._queued = 0
        self._work = trio.lowlevel.ParkingLot()
        self._space = trio.lowlevel.ParkingLot()
        self._turn = trio.Lock()
        """Whose turn it is to wait for space: one is woken at a time, and a heavy job is not overtaken for ever."""
        self._running = False
        self._refusals = 0

    async def run(self, stopping: Callable[[], NlError]) -> None:
        """Sends, until cancelled; whoever waits then gets the error that `stopping` makes."""
        self._running = True
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self._slots):
                    nursery.start_soon(self._run_slot, stopping)
        finally:
            self._running = False
            for queue in self._queues.values():
                _fail(queue, stopping())
            self._queues.clear()
            self._queued = 0
            self._space.unpark_all()

    async def submit(self, group: G, jobs: Sequence[J]) -> None:
        """Returns when all are finished, each with or without an error of its own.

        *Cancellation*: what is queued is taken out; what is in a call is done, and nobody looks at its end.
        """
        await trio.lowlevel.checkpoint_if_cancelled()  # what nobody waits for any more is not begun with
        if not jobs:
            return
        submission = Submission(len(jobs))
        for job in jobs:
            job.submission = submission
        try:
            for job in jobs:
                if self._turn.locked() or not self._fits(job):
                    async with self._turn:
                        while not self._fits(job):
                            await self._space.park()
                        self._add(group, job)
                else:
                    self._add(group, job)
            if submission.left:
                await submission.done.wait()
        except BaseException:
            for job in jobs:
                job.submission = None
            raise

    def _fits(self, job: J) -> bool:
        return not (self._running and self._queued and self._queued + job.weight > self._max_queued)

    def _add(self, group: G, job: J) -> None:
        if not self._running:
            job.finish(InternalError("a batch was asked for while its store does not run"))
            return
        queue = self._queues.get(group)
        if queue is None:
            queue = self._queues[group] = deque()
        queue.append(job)
        self._queued += job.weight
        self._work.unpark()

    async def _run_slot(self, stopping: Callable[[], NlError]) -> None:
        while True:
            while not self._queues:
                await self._work.park()
            refusals = self._refusals
            try:
                room = await self._room()
            except NlError as error:
                if self._refusals == refusals:  # else who waited has been told, and who is queued came later
                    self._refusals += 1
                    for group in list(self._queues):
                        _fail(self._queues.pop(group), error)
                    self._made_space(self._queued)
                continue
            if self._queues:
                await self._send_next(room, stopping)

    async def _send_next(self, room: int, stopping: Callable[[], NlError]) -> None:
        group, jobs = self._take(room)
        if not jobs:
            return
        self.batches += 1
        self.jobs += len(jobs)
        try:
            await self._send(group, jobs)
        except NlError as error:
            _fail(jobs, error)
        finally:
            _fail(jobs, stopping())  # those that are left when this is cancelled

    def _take(self, room: int) -> tuple[G, list[J]]:
        """The next call's jobs, of the group that has waited longest. Those that nobody waits for are dropped."""
        group = next(iter(self._queues))
        queue = self._queues.pop(group)
        jobs: list[J] = []
        freed = 0
        while queue and len(jobs) < self._max_jobs:
            job = queue[0]
            if job.submission is not None:
                if jobs and job.weight > room:
                    break
                room -= job.weight
                jobs.append(job)
            freed += job.weight
            queue.popleft()
        if queue:
            self._queues[group] = queue  # behind the others
            self._work.unpark()
        self._made_space(freed)
        return group, jobs

    def _made_space(self, weight: int) -> None:
        self._queued -= weight
        self._space.unpark_all()


def _fail(jobs: Sequence[Job] | deque[Job], error: NlError) -> None:
    """Finishes those that are not, each with an error of its own: a traceback belongs to one task."""
    for job in jobs:
        if job.submission is not None:
            job.finish(copy(error))

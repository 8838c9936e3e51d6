"""Jobs gather while calls are under way, and each has an end of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.plugin import InternalError, NlError, UnavailableError
from nl.stores.grpc.batching import Batcher, Job


class Named(Job):
    """A job that can be told from others."""

    def __init__(self, name: str, weight: int = 1) -> None:
        super().__init__(weight)
        self.name = name


class Line:
    """Where batches go: each waits until the test lets it through."""

    def __init__(self, *, slots: int = 1, room: int = 100, max_jobs: int = 100, max_queued: int = 1000) -> None:
        self.sent: list[tuple[str, list[str]]] = []
        self.fails: NlError | None = None
        self.no_room: NlError | None = None
        self._gate = trio.Semaphore(0)
        self._room_size = room
        self.batcher: Batcher[str, Named] = Batcher(
            self._send, room=self._room, max_jobs=max_jobs, max_queued=max_queued, slots=slots
        )

    async def _room(self) -> int:
        if self.no_room is not None:
            raise self.no_room
        return self._room_size

    async def _send(self, group: str, jobs: Sequence[Named]) -> None:
        self.sent.append((group, [job.name for job in jobs]))
        await self._gate.acquire()
        if self.fails is not None:
            raise self.fails
        for job in jobs:
            job.finish()

    def let_through(self, count: int = 1) -> None:
        for _ in range(count):
            self._gate.release()


@asynccontextmanager
async def running(line: Line) -> AsyncIterator[trio.Nursery]:
    """The batcher, and a nursery for its callers."""
    async with trio.open_nursery() as outer:
        outer.start_soon(line.batcher.run, lambda: UnavailableError("stopping"))
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as callers:
            yield callers
            await wait_all_tasks_blocked()
        outer.cancel_scope.cancel()


async def test_what_comes_while_a_call_is_under_way_is_the_next_call() -> None:
    line = Line()
    async with running(line) as callers:
        callers.start_soon(line.batcher.submit, "g", [Named("a")])
        await wait_all_tasks_blocked()
        for name in "bcd":
            callers.start_soon(line.batcher.submit, "g", [Named(name)])
        await wait_all_tasks_blocked()
        assert line.sent == [("g", ["a"])]
        line.let_through(2)
    assert [sorted(names) for _, names in line.sent] == [["a"], ["b", "c", "d"]]


async def test_a_call_has_one_group_and_groups_take_turns() -> None:
    line = Line(max_jobs=2)
    async with running(line) as callers:
        callers.start_soon(line.batcher.submit, "x", [Named(f"x{number}") for number in range(6)])
        await wait_all_tasks_blocked()
        callers.start_soon(line.batcher.submit, "y", [Named("y0")])
        await wait_all_tasks_blocked()
        line.let_through(4)
    assert line.sent == [("x", ["x0", "x1"]), ("x", ["x2", "x3"]), ("y", ["y0"]), ("x", ["x4", "x5"])]


async def test_a_call_carries_what_there_is_room_for_and_at_least_one_job() -> None:
    line = Line(room=10)
    async with running(line) as callers:
        jobs = [Named("a", 6), Named("b", 4), Named("c", 1), Named("huge", 50), Named("d", 1)]
        callers.start_soon(line.batcher.submit, "g", jobs)
        line.let_through(4)
    assert [names for _, names in line.sent] == [["a", "b"], ["c"], ["huge"], ["d"]]


async def test_callers_wait_while_too_much_is_queued() -> None:
    line = Line(max_queued=10)
    async with running(line) as callers:
        callers.start_soon(line.batcher.submit, "g", [Named("first")])
        await wait_all_tasks_blocked()
        callers.start_soon(line.batcher.submit, "g", [Named("a", 8)])
        await wait_all_tasks_blocked()
        callers.start_soon(line.batcher.submit, "g", [Named("b", 8)])
        await wait_all_tasks_blocked()
        line.let_through()
        await wait_all_tasks_blocked()
        assert line.sent == [("g", ["first"]), ("g", ["a"])]
        line.let_through(2)
    assert line.sent[-1] == ("g", ["b"])


async def test_a_job_whose_caller_has_left_is_not_sent() -> None:
    line = Line()
    async with running(line) as callers:
        callers.start_soon(line.batcher.submit, "g", [Named("a")])
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await line.batcher.submit("g", [Named("never begun")])
        async with trio.open_nursery() as leaving:
            leaving.start_soon(line.batcher.submit, "g", [Named("leaves")])
            await wait_all_tasks_blocked()
            leaving.cancel_scope.cancel()
        callers.start_soon(line.batcher.submit, "g", [Named("b")])
        await wait_all_tasks_blocked()
        line.let_through(2)
    assert line.sent == [("g", ["a"]), ("g", ["b"])]


async def test_a_call_that_fails_fails_each_of_its_jobs_with_an_error_of_its_own() -> None:
    line = Line()
    line.fails = UnavailableError("gone")
    jobs = [Named("a"), Named("b")]
    async with running(line) as callers:
        callers.start_soon(line.batcher.submit, "g", jobs)
        line.let_through()
    one, two = (job.error for job in jobs)
    assert isinstance(one, UnavailableError) and isinstance(two, UnavailableError)
    assert one is not two and one.message == two.message == "gone"


async def test_what_stands_in_the_way_of_asking_for_the_room_fails_those_who_wait_and_nobody_later() -> None:
    line = Line(max_queued=3)
    line.no_room = UnavailableError("no answer")
    first, second = Named("a", 3), Named("b", 3)  # each as much as may wait
    async with running(line) as callers:
        await line.batcher.submit("g", [first])
        assert isinstance(first.error, UnavailableError)
        line.no_room = None
        callers.start_soon(line.batcher.submit, "g", [second])
        line.let_through()
    assert second.error is None and line.sent == [("g", ["b"])]


async def test_of_two_calls_that_found_no_room_at_once_the_later_fails_nobody_who_came_since() -> None:
    line = Line(slots=2)
    asked, go_on = 0, [trio.Event() for _ in range(3)]

    async def room() -> int:
        nonlocal asked
        asked += 1
        mine = asked
        await go_on[min(mine, 3) - 1].wait()
        if mine <= 2:
            raise UnavailableError("no answer")
        return 100

    line.batcher._room = room
    first, second, since = Named("a"), Named("b"), Named("c")
    async with running(line) as callers:
        for job in (first, second):
            callers.start_soon(line.batcher.submit, "g", [job])
            await wait_all_tasks_blocked()
        go_on[0].set()
        await wait_all_tasks_blocked()
        assert isinstance(first.error, UnavailableError) and isinstance(second.error, UnavailableError)
        callers.start_soon(line.batcher.submit, "g", [since])
        await wait_all_tasks_blocked()
        go_on[1].set()
        await wait_all_tasks_blocked()
        go_on[2].set()
        line.let_through()
    assert since.error is None and line.sent == [("g", ["c"])]


async def test_who_waits_when_the_store_ends_is_told_so() -> None:
    line = Line()
    under_way, queued, late = Named("a"), Named("b"), Named("c")
    async with trio.open_nursery() as callers, trio.open_nursery() as outer:
        outer.start_soon(line.batcher.run, lambda: UnavailableError("stopping"))
        await wait_all_tasks_blocked()
        for job in (under_way, queued):
            callers.start_soon(line.batcher.submit, "g", [job])
            await wait_all_tasks_blocked()
        outer.cancel_scope.cancel()
    assert all(isinstance(job.error, UnavailableError) for job in (under_way, queued))
    await line.batcher.submit("g", [late])
    assert isinstance(late.error, InternalError)


@pytest.mark.parametrize("slots", [1, 3])
async def test_as_many_calls_as_there_are_slots_are_under_way(slots: int) -> None:
    line = Line(slots=slots, max_jobs=1)
    async with running(line) as callers:
        callers.start_soon(line.batcher.submit, "g", [Named(str(number)) for number in range(5)])
        await wait_all_tasks_blocked()
        assert len(line.sent) == slots
        line.let_through(5)
    assert len(line.sent) == 5


class Steps(trio.abc.Instrument):
    """How often tasks were woken."""

    count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def test_callers_who_wait_are_not_woken_for_the_room_of_others() -> None:
    line = Line(room=1, max_queued=1)
    steps = Steps()
    async with running(line) as callers:
        for number in range(300):
            callers.start_soon(line.batcher.submit, "g", [Named(str(number))])
        await wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(steps)
        line.let_through(300)
        await wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(steps)
    assert len(line.sent) == 300
    assert steps.count < 300 * 15


async def test_a_heavy_job_that_waits_is_not_overtaken_by_light_ones() -> None:
    line = Line(max_jobs=1, max_queued=10)
    async with running(line) as callers:
        for name, weight in [("first", 1), *((f"queued {number}", 2) for number in range(4)), ("heavy", 9)]:
            callers.start_soon(line.batcher.submit, "g", [Named(name, weight)])
            await wait_all_tasks_blocked()
        for number in range(5):
            callers.start_soon(line.batcher.submit, "g", [Named(f"light {number}", 1)])
            await wait_all_tasks_blocked()
        for _ in range(11):
            line.let_through()
            await wait_all_tasks_blocked()
            assert line.batcher._queued <= 10
    names = [name for _, (name,) in line.sent]
    assert names.index("heavy") == 5
    assert len(names) == 11


async def test_a_job_that_is_heavier_than_all_that_may_gather_goes_where_nothing_else_waits() -> None:
    line = Line(max_queued=10)
    async with running(line) as callers:
        for name in "ab":
            callers.start_soon(line.batcher.submit, "g", [Named(name, 20)])
            await wait_all_tasks_blocked()
        assert line.sent == [("g", ["a"])]
        line.let_through(2)
        await wait_all_tasks_blocked()
        assert line.sent == [("g", ["a"]), ("g", ["b"])]


async def test_a_caller_who_leaves_while_it_is_its_turn_to_wait_lets_the_next_in() -> None:
    line = Line(max_queued=1)
    async with running(line) as callers:
        for name in "ab":
            callers.start_soon(line.batcher.submit, "g", [Named(name)])
            await wait_all_tasks_blocked()
        with trio.CancelScope() as leaving:
            callers.start_soon(leave_soon, leaving)
            await line.batcher.submit("g", [Named("leaves")])
        callers.start_soon(line.batcher.submit, "g", [Named("c")])
        await wait_all_tasks_blocked()
        line.let_through(3)
        await wait_all_tasks_blocked()
    assert [names for _, names in line.sent] == [["a"], ["b"], ["c"]]


async def leave_soon(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_who_waits_for_space_when_the_store_ends_is_told() -> None:
    line = Line(max_queued=10)
    errors: list[NlError | None] = []

    async def submit(job: Named) -> None:
        await line.batcher.submit("g", [job])
        errors.append(job.error)

    async with trio.open_nursery() as callers:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.batcher.run, lambda: UnavailableError("stopping"))
            await wait_all_tasks_blocked()
            for number in range(6):
                callers.start_soon(submit, Named(str(number), weight=8))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with trio.fail_after(60):
            while len(errors) < 6:
                await trio.lowlevel.checkpoint()
    assert all(isinstance(error, (UnavailableError, InternalError)) for error in errors)


async def test_what_was_sent_is_counted_by_calls_and_by_jobs() -> None:
    line = Line()
    async with running(line) as callers:
        assert (line.batcher.batches, line.batcher.jobs) == (0, 0)
        callers.start_soon(line.batcher.submit, "g", [Named("a")])
        await wait_all_tasks_blocked()
        callers.start_soon(line.batcher.submit, "g", [Named("b"), Named("c")])
        await wait_all_tasks_blocked()
        line.let_through(2)
    assert (line.batcher.batches, line.batcher.jobs) == (2, 3)


@pytest.mark.parametrize(("weights", "sent"), [
    ([50, 50, 1], [["0", "1"], ["2"]]), ([50, 51], [["0"], ["1"]]), ([200, 1], [["0"], ["1"]]),
    ([1, 200], [["0"], ["1"]]), ([100], [["0"]]),
])  # fmt: skip
async def test_a_call_carries_what_it_has_room_for_to_the_byte(weights: list[int], sent: list[list[str]]) -> None:
    line = Line(room=100)
    async with running(line) as callers:
        callers.start_soon(line.batcher.submit, "first", [Named("x")])
        await wait_all_tasks_blocked()
        jobs = [Named(str(number), weight) for number, weight in enumerate(weights)]
        callers.start_soon(line.batcher.submit, "g", jobs)
        await wait_all_tasks_blocked()
        line.let_through(1 + len(sent))
    assert [names for _, names in line.sent[1:]] == sent


async def test_a_job_whose_caller_has_left_gives_its_room_in_the_queue_back() -> None:
    line = Line(max_queued=10)
    async with running(line) as callers:
        callers.start_soon(line.batcher.submit, "g", [Named("first")])
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as leaving:
            leaving.start_soon(line.batcher.submit, "g", [Named("leaves", 8)])
            await wait_all_tasks_blocked()
            leaving.cancel_scope.cancel()
        line.let_through()
        await wait_all_tasks_blocked()
        callers.start_soon(line.batcher.submit, "g", [Named("a", 8)])
        await wait_all_tasks_blocked()
        callers.start_soon(line.batcher.submit, "g", [Named("b", 8)])
        await wait_all_tasks_blocked()
        callers.start_soon(line.batcher.submit, "g", [Named("c", 8)])
        await wait_all_tasks_blocked()
        line.let_through(3)
        await wait_all_tasks_blocked()
        assert [names for _, names in line.sent] == [["first"], ["a"], ["b"], ["c"]]

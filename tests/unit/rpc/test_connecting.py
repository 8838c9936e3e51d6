"""Shared attempts and the pauses between them, on a clock that jumps."""

import pytest
import trio
from grpclib.const import Status

from nl.rpc.connecting import Attempts, Backoff
from nl.rpc.errors import NotProcessed


def no_jitter(low, high):
    return (low + high) / 2


def test_pauses_double_up_to_the_maximum_and_start_again_after_a_success():
    backoff = Backoff(0.5, 3, uniform=no_jitter)
    assert [backoff.failed() for _ in range(5)] == [0.5, 1, 2, 3, 3]
    backoff.reset()
    assert [backoff.failed() for _ in range(2)] == [0.5, 1]


def test_pauses_vary_by_the_jitter():
    asked = []
    backoff = Backoff(1, 10, jitter=0.25, uniform=lambda low, high: asked.append((low, high)) or high)
    assert backoff.failed() == 1.25
    assert asked == [(0.75, 1.25)]


def test_a_thousand_failures_are_no_overflow():
    backoff = Backoff(1, 10, uniform=no_jitter)
    assert {backoff.failed() for _ in range(2000)} == {1, 2, 4, 8, 10}


class Work:
    def __init__(self, *, takes=1.0):
        self.begun = []
        self.cancelled = 0
        self.ended = 0
        self.fails = True
        self.takes = takes
        self.attempts = Attempts(self, backoff=Backoff(10, 100, uniform=no_jitter), ended=self.end)

    async def __call__(self):
        self.begun.append(trio.current_time())
        try:
            await trio.sleep(self.takes)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if self.fails:
            raise NotProcessed(Status.UNAVAILABLE, "no")

    def end(self):
        self.ended += 1


async def test_an_attempt_is_run_once_however_many_want_it(autojump_clock, nursery):
    work = Work()
    for _ in range(10):
        work.attempts.start(nursery)
    assert work.attempts.is_running
    await trio.sleep(2)
    assert len(work.begun) == work.attempts.runs == work.ended == work.attempts.failures == 1
    assert work.attempts.error.message == "no"
    assert not work.attempts.is_running


async def test_after_a_failure_nothing_is_begun_before_the_pause_is_over(autojump_clock, nursery):
    work = Work()
    start = trio.current_time()
    for _ in range(60):
        work.attempts.start(nursery)
        await trio.sleep(1)
    assert [round(each - start) for each in work.begun] == [0, 11, 32]


async def test_a_cancelled_attempt_is_no_failure_and_may_begin_again_at_once(autojump_clock, nursery):
    work = Work()
    work.attempts.start(nursery)
    await trio.sleep(0.5)
    work.attempts.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert (work.cancelled, work.ended, work.attempts.failures, work.attempts.error) == (1, 1, 0, None)
    assert work.attempts.is_due


async def test_an_attempt_that_is_cancelled_before_its_first_step_is_over(autojump_clock, nursery):
    work = Work()
    work.attempts.start(nursery)
    work.attempts.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert not work.attempts.is_running
    assert work.ended == 1


async def test_a_success_forgets_the_error_but_the_pauses_only_when_it_was_of_use(autojump_clock, nursery):
    work = Work(takes=0)
    for _ in range(2):
        work.attempts.start(nursery)
        await trio.sleep(50)
    work.fails = False
    work.attempts.start(nursery)
    await trio.sleep(1)
    assert work.attempts.error is None
    work.attempts.fail(NotProcessed(Status.UNAVAILABLE, "it said goodbye at once"))
    assert work.attempts.due_at == pytest.approx(trio.current_time() + 40)
    work.attempts.succeeded()
    work.attempts.fail(NotProcessed(Status.UNAVAILABLE, "later"))
    assert work.attempts.due_at == pytest.approx(trio.current_time() + 10)


def test_by_default_pauses_vary_by_a_fifth():
    found = {Backoff(1, 10).failed() for _ in range(50)}
    assert len(found) > 1
    assert all(0.8 <= each <= 1.2 for each in found)

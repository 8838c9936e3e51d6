"""The items of a request are handled by a few tasks, which leave room for others."""

import gc
import weakref
from contextlib import suppress

import pytest
import trio
import trio.testing

from nl.errors import UnavailableError
from nl.storage import concurrent
from nl.storage.concurrent import for_each


@pytest.mark.parametrize("count", [0, 1, 3, 100])
async def test_each_number_is_handled_once(count):
    seen = []

    async def act(number):
        seen.append(number)

    await for_each(count, act)
    assert seen == list(range(count))


async def test_several_are_under_way_at_once_when_they_wait():
    started, most = 0, 0

    async def act(number):
        nonlocal started, most
        started += 1
        most = max(most, started)
        await trio.testing.wait_all_tasks_blocked()
        started -= 1

    await for_each(20, act)
    assert 1 < most <= 8


async def test_a_batch_that_never_waits_lets_others_run(monkeypatch):
    monkeypatch.setattr(concurrent, "SLICE_S", 0.0)
    turns = []

    async def act(number):
        turns.append("batch")

    async def other():
        for _ in range(20):
            turns.append("other")
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(for_each, 100, act)
        nursery.start_soon(other)
    assert turns.index("other") < 100
    assert "".join(turn[0] for turn in turns).count("bo") > 3


@pytest.mark.parametrize("count", [1, 100])
async def test_a_batch_that_never_waits_goes_on_until_its_slice_is_over(monkeypatch, count):
    monkeypatch.setattr(concurrent, "SLICE_S", 1000.0)
    turns = []

    async def act(number):
        turns.append("batch")

    async def other():
        for _ in range(20):
            turns.append("other")
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await for_each(count, act)
    assert "b" * count in "".join(turn[0] for turn in turns)


async def test_no_more_are_under_way_at_once_than_was_said():
    started, most = 0, 0

    async def act(number):
        nonlocal started, most
        started += 1
        most = max(most, started)
        await trio.testing.wait_all_tasks_blocked()
        started -= 1

    for tasks in (1, 3):
        most = 0
        await for_each(20, act, tasks=tasks)
        assert most == tasks


async def test_a_bug_in_one_ends_the_others_and_is_raised_as_it_is():
    async def act(number):
        if number == 3:
            raise UnavailableError("away")
        await trio.sleep_forever()

    with pytest.raises(UnavailableError, match="away"):
        await for_each(10, act)


@pytest.mark.parametrize(("tasks", "slices"), [(1, range(9, 15)), (2, range(4, 10))])
async def test_others_have_a_turn_every_five_milliseconds_of_work(monkeypatch, tasks, slices):
    now, turns = 0.0, 0
    monkeypatch.setattr(concurrent, "perf_counter", lambda: now)

    async def act(number):
        nonlocal now
        now += 0.001

    async def other():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()  # one for each pass of the loop, in which every task has its turn
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        before = turns
        await for_each(60, act, tasks=tasks)
        assert turns - before in slices
        nursery.cancel_scope.cancel()


async def test_of_several_failures_the_first_is_raised():
    async def act(number):
        if number == 0:
            await trio.testing.wait_all_tasks_blocked()
            raise UnavailableError("the first")
        try:
            await trio.sleep_forever()
        finally:
            raise UnavailableError("because of the first")

    for _ in range(3):
        with pytest.raises(UnavailableError, match="^the first$"):
            await for_each(3, act)


async def test_a_failure_that_was_handled_keeps_nothing_alive():
    """Without a circle of an error, its frames and what lists it: what they hold may be large."""

    class Payload:
        pass

    alive = []

    async def act(number):
        payload = Payload()
        alive.append(weakref.ref(payload))
        raise UnavailableError("away")

    gc.collect()
    gc.disable()
    try:
        with suppress(UnavailableError):
            await for_each(3, act)
        await trio.lowlevel.checkpoint()
        assert alive and [each() for each in alive] == [None] * len(alive)
    finally:
        gc.enable()

"""Who goes on in the next turn of the loop: few at a time, in the order in which they came."""

import time

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.rpc.turns import AT_ONCE, TURN_S, Turns, turns_of_this_run


class Count(trio.abc.Instrument):
    """Counts the turns of the loop."""

    def __init__(self):
        self.turn = 0

    def after_io_wait(self, timeout):
        self.turn += 1


@pytest.fixture
async def count():
    count = Count()
    trio.lowlevel.add_instrument(count)
    yield count
    trio.lowlevel.remove_instrument(count)


async def test_a_turn_has_a_budget_from_its_beginning_on():
    turns = turns_of_this_run()
    assert turns_of_this_run() is turns
    await trio.lowlevel.checkpoint()
    assert time.perf_counter() < turns.until <= time.perf_counter() + TURN_S
    time.sleep(2 * TURN_S)
    assert time.perf_counter() > turns.until
    await trio.lowlevel.checkpoint()
    assert time.perf_counter() < turns.until


async def test_who_is_alone_waits_for_one_turn(count, turns):
    for _ in range(3):
        before = count.turn
        await turns.wait()
        assert count.turn == before + 1


class Endless(Turns):
    """Turns that never end, whatever else the machine does. pytest-trio has every such fixture watch the loop."""

    def __init__(self):
        super().__init__()
        self.until = float("inf")

    def after_io_wait(self, timeout):
        super().after_io_wait(timeout)
        self.until = float("inf")


@pytest.fixture
def turns():
    return Endless()


async def test_those_who_wait_go_on_in_their_order_some_in_each_turn(nursery, count, turns):
    asked, went, number = [], [], 5 * AT_ONCE

    async def one(name):
        asked.append(name)
        await turns.wait()
        went.append((name, count.turn))

    for name in range(number):
        nursery.start_soon(one, name)
    with trio.fail_after(60):
        while len(went) < number:
            await trio.lowlevel.checkpoint()
    by_turn = {}
    for name, turn in went:
        by_turn.setdefault(turn, set()).add(name)
    groups = [set(asked[at : at + AT_ONCE]) for at in range(0, number, AT_ONCE)]
    assert list(by_turn.values()) == groups  # within a turn, the order is trio's


async def test_one_that_always_wants_more_lets_the_others_go_first(nursery, turns):
    went = []

    async def greedy():
        while len(went) < 10:
            await turns.wait()

    async def modest(name):
        await turns.wait()
        went.append(name)

    for _ in range(20):
        nursery.start_soon(greedy)
    await trio.lowlevel.checkpoint()
    for name in range(10):
        nursery.start_soon(modest, name)
    with trio.fail_after(60):
        while len(went) < 10:
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("first", [0, AT_ONCE])
async def test_who_is_cancelled_keeps_nobody_from_going_on(nursery, turns, first):
    """Neither one that is due in the next turn, nor one that stands in line."""
    went, scopes = [], []

    async def one():
        with trio.CancelScope() as scope:
            scopes.append(scope)
            if len(scopes) == 3 * AT_ONCE:  # all have begun in the same turn, so nobody has gone on yet
                for each in scopes[first : first + AT_ONCE]:
                    each.cancel()
            await turns.wait()
            went.append(scope)

    for _ in range(3 * AT_ONCE):
        nursery.start_soon(one)
    await wait_all_tasks_blocked()
    assert set(went) == set(scopes) - set(scopes[first : first + AT_ONCE])
    with trio.fail_after(60):
        await turns.wait()


async def test_of_those_who_wait_one_goes_on_in_a_turn_that_it_uses_up(nursery, count):
    turns, went = turns_of_this_run(), []

    async def one():
        await turns.wait()
        went.append(count.turn)
        time.sleep(2 * TURN_S)

    for _ in range(2 * AT_ONCE):
        nursery.start_soon(one)
    with trio.fail_after(60):
        while len(went) < 2 * AT_ONCE:
            await trio.lowlevel.checkpoint()
    assert len(set(went)) == len(went)


async def test_at_most_so_many_are_due_at_once_and_none_when_all_have_gone_on(nursery, turns):
    most, went = [], []

    async def one():
        await turns.wait()
        most.append(turns._due)
        went.append(1)

    for _ in range(5 * AT_ONCE):
        nursery.start_soon(one)
    with trio.fail_after(60):
        while len(went) < 5 * AT_ONCE:
            await trio.lowlevel.checkpoint()
            assert 0 <= turns._due <= AT_ONCE
    assert (turns._due, turns._line) == (0, {})
    assert max(most) <= AT_ONCE
    await turns.wait()
    assert turns._due == 0


async def test_when_a_turn_is_used_up_only_the_first_goes_on_and_the_next_in_the_next(nursery, count):
    turns, went = Turns(), []
    turns.until = float("-inf")  # used up for good: this one watches no loop

    async def one():
        await turns.wait()
        went.append(count.turn)

    trio.lowlevel.add_instrument(Beginnings(turns))
    for _ in range(3):
        nursery.start_soon(one)
    with trio.fail_after(60):
        while len(went) < 3:
            await trio.lowlevel.checkpoint()
    assert len(set(went)) == 3


class Beginnings(trio.abc.Instrument):
    """Tells that a turn begins, whose budget is used up already."""

    def __init__(self, turns):
        self.turns = turns

    def after_io_wait(self, timeout):
        self.turns.after_io_wait(timeout)
        self.turns.until = float("-inf")

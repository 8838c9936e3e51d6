"""What a listener's clients make it hold: counted as it grows, and those who hold the most are ended."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.rpc.held import Held


class Client:
    def __init__(self, held, size=0):
        self.size = size
        self.counted = 0
        self.asked = 0
        self.reason = None
        held.enter(self)

    def held_bytes(self):
        self.asked += 1
        return self.size

    def give_up(self, reason):
        self.reason = reason


@pytest.fixture
def held():
    return Held(1000)


def test_what_has_grown_is_counted_and_what_has_left_is_not(held):
    one, other = Client(held, 300), Client(held, 200)
    assert not held.count(one)
    assert not held.count(other)
    one.size = 400
    held.count(one)
    assert held.total == 600
    held.leave(one)
    assert held.total == 200
    held.count(one)
    assert held.total == 200
    held.leave(one)
    assert held.total == 200


def test_those_who_hold_the_most_are_ended_until_the_bound_is_kept(held):
    clients = [Client(held, size) for size in (100, 500, 300, 400)]
    assert [held.count(client) for client in clients] == [False, False, False, True]
    held.look()
    assert held.total == 800
    assert [client.reason for client in clients if client.reason] == [
        "the server holds too much for its clients, 500 bytes of it for this one"
    ]


def test_who_has_become_smaller_unnoticed_is_not_ended_for_it(held):
    one, other = Client(held, 800), Client(held, 500)
    held.count(one)
    one.size = 100
    assert held.count(other)
    held.look()
    assert (one.reason, other.reason, held.total) == (None, None, 600)


def test_near_the_bound_everybody_is_looked_at_once_for_each_thirtieth_of_it(held):
    """Else each count would cost a look at all, while those that became smaller keep the sum below the bound."""
    crowd = [Client(held, 99) for _ in range(10)]
    growing = Client(held)
    for client in crowd:
        held.count(client)
    looks = 0
    for size in range(100):
        growing.size = size
        crowd[0].size = 99 - size  # which nobody counts
        if held.count(growing):
            held.look()
            looks += 1
    assert 1 <= looks <= 4
    assert not any(client.reason for client in crowd)
    assert held.total <= 1000 * 33 // 32


async def test_the_watch_ends_when_it_is_too_much_and_at_once_if_it_is(held, nursery):
    client, seen = Client(held, 900), []

    async def watch():
        await held.wait_over()
        seen.append(held.total)

    nursery.start_soon(watch)
    await wait_all_tasks_blocked()
    held.count(client)
    await wait_all_tasks_blocked()
    assert not seen
    client.size = 1001
    held.count(client)
    await wait_all_tasks_blocked()
    assert seen == [1001]
    with trio.fail_after(60):
        await watch()
    held.look()
    assert held.total == 0


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_the_bound_may_be_reached_and_not_exceeded(held, over):
    one, other = Client(held, 600), Client(held, 400 + over)
    held.count(one)
    assert held.count(other) == (over > 0)
    held.look()
    assert [bool(each.reason) for each in (one, other)] == [over > 0, False]
    assert held.total == (1000 + over if over <= 0 else 401)


def test_who_comes_again_is_counted_from_nothing(held):
    client = Client(held, 300)
    held.count(client)
    held.leave(client)
    assert client.counted == 0
    client.counted = 77
    held.enter(client)
    held.count(client)
    assert held.total == 300


def test_a_look_counts_everybody_once_and_who_leaves_then_takes_all_of_it_along(held):
    clients = [Client(held, 100) for _ in range(3)]
    held.look()
    assert held.total == 300
    held.look()
    assert held.total == 300
    for client in clients:
        held.leave(client)
    assert held.total == 0


def test_far_below_the_bound_nobody_is_looked_at(held):
    one = Client(held, 10)
    held.count(one)
    held.look()
    one.size = 1000
    assert not held.count(one)
    one.size = 1001
    assert held.count(one)


def test_who_is_not_counted_is_nobodys_reason_to_look(held):
    stranger = Client(held, 5000)
    held.leave(stranger)
    assert held.count(stranger) is False
    assert held.total == 0


async def test_the_watch_can_be_begun_again(held, nursery):
    client = Client(held, 2000)
    for _ in range(2):
        seen = []

        async def watch(seen=seen):
            await held.wait_over()
            seen.append(held.total)

        client.size = 10
        held.enter(client)
        nursery.start_soon(watch)
        await wait_all_tasks_blocked()
        assert not seen
        client.size = 2000
        held.count(client)
        await wait_all_tasks_blocked()
        assert seen == [2000]
        held.look()
        assert held.total == 0

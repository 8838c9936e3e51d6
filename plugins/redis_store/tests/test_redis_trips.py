"""What goes in which trip, to whom, how often and for how long, over servers in memory."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing
from redis_peer import CLOSE, SILENCE, Peer, dialer

from nl.plugin import RefusedError, RetryOptions, RetryPolicy, TransientError
from nl_redis_store.addresses import Address, slot_of
from nl_redis_store.client import Client, Op
from nl_redis_store.cluster import Cluster
from nl_redis_store.connection import Command, packed
from nl_redis_store.errors import MovedError
from nl_redis_store.node import Node, Request
from nl_redis_store.single import Single
from nl_redis_store.topology import Topology

KIB, MIB = 1024, 1024 * 1024
PING: Command = (b"PING",)
ONCE = RetryOptions()


def request(commands: int = 1, *, sends: int = 0, receives: int = 0) -> Request:
    return Request([PING] * commands, sends=sends, receives=receives)


def get(name: bytes, *, sends: int = 0, receives: int = 0) -> Op:
    return Op(name, ((b"GET", name),), sends, receives)


@asynccontextmanager
async def node_to(peer: Peer, *, connections: int = 1, timeout_s: float = 30) -> AsyncIterator[Node]:
    node = Node("peer", peer.connect, connections=connections, timeout_s=timeout_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.run)
        yield node
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def client_over(
    topology: Topology, *, permits: int = 500, retry: RetryOptions = ONCE
) -> AsyncIterator[Client]:
    async with trio.open_nursery() as nursery:
        await nursery.start(topology.run)
        yield Client(topology, retry.policy(), permits=permits)
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------------------------------------------------ trips


@pytest.mark.parametrize(("gathered", "trips"), [
    ([(1, 0, 0)] * 513, [512, 1]), ([(256, 0, 0), (256, 0, 0), (1, 0, 0)], [512, 1]),
    ([(1, 0, 0), (512, 0, 0), (1, 0, 0)], [1, 512, 1]), ([(600, 0, 0), (1, 0, 0)], [600, 1]),
    ([(1, 512 * KIB, 0), (1, 512 * KIB, 0), (1, 1, 0)], [2, 1]), ([(1, 2 * MIB, 0), (1, 1, 0)], [1, 1]),
    ([(1, 0, 3 * MIB), (1, 0, MIB), (1, 0, 1)], [2, 1]), ([(1, 0, 5 * MIB), (1, 0, 0)], [1, 1]),
    ([(1, MIB, 4 * MIB), (1, 0, 0)], [2]),
])  # fmt: skip
async def test_what_has_gathered_goes_in_trips_of_512_commands_1_mib_there_and_4_mib_back(
    nursery: trio.Nursery, gathered: list[tuple[int, int, int]], trips: list[int]
) -> None:
    peer = Peer(nursery)
    requests = [request(commands, sends=sends, receives=receives) for commands, sends, receives in gathered]
    async with node_to(peer) as node:
        for each in requests:
            node.enqueue(each)
        for each in requests:
            await each.done.wait()
            assert each.replies == [b"OK"] * len(each.commands)
    assert peer.took() == trips
    assert node.trips == len(trips)


@pytest.mark.parametrize(("ops", "trips"), [
    ([get(b"x")] * 600, [512, 88]),
    ([get(b"x", sends=600 * KIB)] * 3, [1, 1, 1]),
    ([get(b"x", sends=512 * KIB)] * 3, [2, 1]),
    ([get(b"x", receives=2 * MIB)] * 3, [2, 1]),
    ([get(b"x", receives=5 * MIB)] * 2, [1, 1]),
])  # fmt: skip
async def test_one_call_for_many_keys_is_cut_into_such_trips(
    nursery: trio.Nursery, ops: list[Op], trips: list[int]
) -> None:
    peer = Peer(nursery)
    async with client_over(Single(dialer(peer))) as client:
        assert await client.many(ops) == [[b"OK"]] * len(ops)
    assert peer.took() == trips


async def test_no_more_connections_are_made_than_the_config_says_and_each_has_one_trip(nursery: trio.Nursery) -> None:
    peer = Peer(nursery)
    peer.held = trio.Event()
    async with node_to(peer, connections=3) as node:
        assert peer.connections == 0, "none before something is asked"
        requests = [request(600) for _ in range(5)]
        for each in requests:
            node.enqueue(each)
        await trio.testing.wait_all_tasks_blocked()
        assert (node.open, peer.connections, len(peer.trips)) == (3, 3, 3)
        peer.held.set()
        for each in requests:
            await each.done.wait()
        assert (node.open, peer.connections, len(peer.trips)) == (3, 3, 5)
    await trio.testing.wait_all_tasks_blocked()
    assert (node.open, peer.open) == (0, 0)


def test_what_is_large_leaves_as_it_is_and_what_is_small_together() -> None:
    large, small = bytearray(16 * KIB), bytes(16 * KIB - 1)
    first, itself, last = packed([(b"SET", b"a", large), (b"SET", b"b", small)])
    assert itself is large
    assert bytes(first) == b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$16384\r\n"
    assert bytes(last) == b"\r\n*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$16383\r\n" + small + b"\r\n"
    assert len(packed([PING] * 100)) == 1


# ------------------------------------------------------------------------------------------- connections that break


async def test_a_server_that_says_nothing_has_the_time_of_one_trip_and_is_not_asked_twice(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    peer = Peer(nursery)
    async with node_to(peer, timeout_s=7) as node:
        node.enqueue(first := request())
        await first.done.wait()
        peer.answer = lambda command: SILENCE
        began = trio.current_time()
        node.enqueue(late := request())
        await late.done.wait()
        assert trio.current_time() - began == pytest.approx(7)
        assert isinstance(late.error, TransientError)
        assert (late.error.code, str(late.error)) == ("DeadlineExceeded", "peer did not answer within 7 s")
        assert (peer.connections, len(peer.trips), node.open, node.trips) == (1, 2, 0, 1)
        peer.answer = lambda command: b"OK"
        node.enqueue(again := request())
        await again.done.wait()
        assert again.replies == [b"OK"], "over another connection: a late answer to the other is nobody's"
        assert (peer.connections, node.open) == (2, 1)


async def test_a_connection_that_was_of_use_and_is_closed_costs_a_second_attempt_and_a_new_one_an_error(
    nursery: trio.Nursery
) -> None:
    peer = Peer(nursery)
    async with node_to(peer) as node:
        peer.answer = lambda command: CLOSE
        node.enqueue(refused := request())
        await refused.done.wait()
        assert "has closed the connection" in str(refused.error)
        assert peer.connections == 1
        peer.answer = lambda command: b"OK"
        node.enqueue(good := request())
        await good.done.wait()
        answers = [CLOSE, b"OK"]
        peer.answer = lambda command: answers.pop(0)
        node.enqueue(again := request())
        await again.done.wait()
        assert again.replies == [b"OK"]
        assert peer.connections == 3
        peer.answer = lambda command: CLOSE
        node.enqueue(lost := request())
        await lost.done.wait()
        assert "has closed the connection" in str(lost.error)
        assert (peer.connections, node.open) == (4, 0)


async def test_connections_are_made_anew_before_they_are_used_again_where_they_lead_to_a_replica(
    nursery: trio.Nursery
) -> None:
    peer = Peer(nursery, answer=lambda command: Exception("READONLY You can't write against a read only replica."))
    async with client_over(Single(dialer(peer)), retry=RetryOptions(max_retries=1, delay=0.01)) as client:
        with pytest.raises(TransientError, match="READONLY"):
            await client.one(get(b"x"))
        assert (peer.connections, len(peer.trips)) == (2, 2)
        peer.answer = lambda command: b"OK"
        for _ in range(3):
            assert await client.one(get(b"x")) == [b"OK"]
        assert peer.connections == 3


async def test_who_waits_for_an_answer_when_a_node_ends_is_told(nursery: trio.Nursery) -> None:
    peer = Peer(nursery, answer=lambda command: SILENCE)
    async with node_to(peer) as node:
        node.enqueue(under_way := request())
        await trio.testing.wait_all_tasks_blocked()
        node.enqueue(waiting := request())
        assert (under_way.taken, waiting.taken) == (True, False)
    for each in (under_way, waiting):
        assert str(each.error) == "peer is not asked any more"


async def test_a_server_that_does_not_let_us_in_is_told_to_all_that_wait(nursery: trio.Nursery) -> None:
    async def connect() -> None:
        raise RefusedError("wrong password")

    node = Node("peer", connect, connections=1, timeout_s=30)  # type: ignore[arg-type]
    nursery.start_soon(node.run)
    requests = [request(), request()]
    for each in requests:
        node.enqueue(each)
    for each in requests:
        await each.done.wait()
        assert isinstance(each.error, RefusedError)
    assert node.open == 0


# ------------------------------------------------------------------------------------------------------ cancellation


async def test_what_a_cancelled_caller_asked_is_not_sent_any_more(nursery: trio.Nursery) -> None:
    peer = Peer(nursery)
    peer.held = trio.Event()
    async with client_over(Single(dialer(peer))) as client:
        nursery.start_soon(client.one, get(b"first"))
        await trio.testing.wait_all_tasks_blocked()
        for changes in (False, True):
            async with trio.open_nursery() as callers:
                callers.start_soon(partial(client.one, get(b"second"), changes=changes))
                await trio.testing.wait_all_tasks_blocked()
                callers.cancel_scope.cancel()
        peer.held.set()
        await client.one(get(b"third"))
    assert [command[1] for trip in peer.trips for command in trip] == [b"first", b"third"]


async def test_a_cancelled_caller_waits_for_what_it_changes_and_not_for_what_it_looks_at(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    peer = Peer(nursery)
    async with client_over(Single(dialer(peer))) as client:
        for changes, waited in ((False, 1), (True, 3)):
            peer.held = trio.Event()
            began = trio.current_time()
            with trio.move_on_after(1):
                nursery.start_soon(_after, 3, peer.held)
                await client.one(get(b"x"), changes=changes)
            assert trio.current_time() - began == pytest.approx(waited)
            await peer.held.wait()
        assert peer.connections == 1, "it was answered: nothing is cut"


async def test_it_waits_for_five_seconds_and_then_the_connection_is_cut(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    peer = Peer(nursery, answer=lambda command: SILENCE)
    async with client_over(Single(dialer(peer))) as client:
        began = trio.current_time()
        with trio.move_on_after(1):
            await client.one(get(b"x"), changes=True)
        assert trio.current_time() - began == pytest.approx(6)
        await trio.testing.wait_all_tasks_blocked()
        assert peer.open == 0
        peer.answer = lambda command: b"OK"
        assert await client.one(get(b"x")) == [b"OK"]


async def test_who_gives_up_has_its_buffers_back_when_the_connection_is_cut_and_not_before(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    peer = Peer(nursery, answer=lambda command: SILENCE)
    async with node_to(peer) as node:
        node.enqueue(given_up := request())
        node.enqueue(twin := request())
        await trio.testing.wait_all_tasks_blocked()
        await given_up.settle(2)
        assert given_up.done.is_set()
        assert (node.open, peer.open) == (0, 0)
        assert twin.done.is_set(), "it went in the same trip"


async def _after(seconds: float, event: trio.Event) -> None:
    await trio.sleep(seconds)
    event.set()


# ----------------------------------------------------------------------------------------------------- trying again


async def test_only_what_failed_is_asked_again_after_the_longest_of_its_pauses(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    refusals = {b"a": ["LOADING"], b"b": [], b"c": ["LOADING", "LOADING"], b"d": ["WRONGTYPE"]}

    def answer(command: Command) -> object:
        told = refusals[bytes(command[1])]
        return Exception(told.pop(0)) if told else b"of " + bytes(command[1])

    peer = Peer(nursery, answer=answer)
    async with client_over(Single(dialer(peer)), retry=RetryOptions(max_retries=3, delay=1)) as client:
        began = trio.current_time()
        a, b, c, d = await client.many([get(name) for name in refusals])
        assert trio.current_time() - began == pytest.approx(2 + 4)
        assert (a, b, c) == ([b"of a"], [b"of b"], [b"of c"])
        assert isinstance(d, RefusedError)
        asked = [b"".join(command[1] for command in trip) for trip in peer.trips]
        assert asked == [b"abcd", b"ac", b"c"]
        assert client.policy.retries == 2
        refusals[b"a"] = ["LOADING"] * 10
        with pytest.raises(TransientError, match="peer:1 says: LOADING"):
            await client.one(get(b"a"))
        assert len(refusals[b"a"]) == 6


async def test_the_first_error_among_its_replies_is_an_ops_outcome(nursery: trio.Nursery) -> None:
    answers = [b"OK", Exception("WRONGTYPE first"), Exception("LOADING second"), b"OK"]
    peer = Peer(nursery, answer=lambda command: answers.pop(0))
    async with client_over(Single(dialer(peer))) as client:
        first, second = await client.many([Op(b"a", (PING, PING, PING)), Op(b"b", (PING,))])
    assert "WRONGTYPE first" in str(first)
    assert second == [b"OK"]


async def test_no_more_calls_than_are_permitted_are_under_way(nursery: trio.Nursery) -> None:
    peer = Peer(nursery)
    peer.held = trio.Event()
    async with client_over(Single(dialer(peer, connections=10)), permits=3) as client:
        for _ in range(5):
            nursery.start_soon(client.one, get(b"x"))
        await trio.testing.wait_all_tasks_blocked()
        assert sum(peer.took()) == 3
        assert client.waiting == 2
        peer.held.set()
        await trio.testing.wait_all_tasks_blocked()
        assert client.waiting == 0
        assert sum(peer.took()) == 2


async def test_what_all_servers_are_asked_is_asked_once(nursery: trio.Nursery) -> None:
    peer = Peer(nursery, answer=lambda command: Exception("LOADING"))
    async with client_over(Single(dialer(peer)), retry=RetryOptions(max_retries=5)) as client:
        with pytest.raises(TransientError, match="LOADING"):
            await client.everywhere(PING)
        peer.answer = lambda command: CLOSE
        with pytest.raises(TransientError, match="closed"):
            await client.everywhere(PING)
        peer.answer = lambda command: b"PONG"
        assert await client.everywhere(PING) == [b"PONG"]


# ----------------------------------------------------------------------------------------------------------- cluster


class Masters:
    """A cluster of two in memory: the first has the slots below 8000."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.one, self.other = Peer(nursery, 1), Peer(nursery, 2)
        self.map = [[0, 7999, [b"peer", 1, b"id"]], [8000, 16383, [b"peer", 2, b"id"]]]
        self.asked = 0
        """For the map."""
        self.replies: dict[bytes, object] = {}
        """What the first has to say of a key."""
        for peer in (self.one, self.other):
            peer.answer = lambda command, peer=peer: self._answer(peer, command)

    def _answer(self, peer: Peer, command: Command) -> object:
        if command[0] == b"CLUSTER":
            self.asked += 1
            return list(self.map)
        if command[0] == b"ASKING":
            return b"OK"
        if peer is self.one and command[1] in self.replies:
            return self.replies[bytes(command[1])]
        return b"%d" % peer.address.port

    def took(self) -> list[list[Command]]:
        """What was asked of keys since the last time."""
        trips = [trip for peer in (self.one, self.other) for trip in peer.trips if trip[0][0] != b"CLUSTER"]
        self.one.trips.clear()
        self.other.trips.clear()
        return trips


@pytest.fixture
def masters(nursery: trio.Nursery) -> Masters:
    return Masters(nursery)


LOW, HIGH = b"bar", b"foo"
"""Keys of the first master and of the second."""


def test_the_keys_are_where_they_are_said_to_be() -> None:
    assert slot_of(LOW) < 8000 <= slot_of(HIGH)


async def test_each_key_goes_to_its_master_and_the_map_is_asked_for_once(
    masters: Masters, autojump_clock: trio.testing.MockClock
) -> None:
    async with client_over(cluster := Cluster(dialer(masters.one, masters.other))) as client:
        for _ in range(3):
            assert await client.many([get(LOW), get(HIGH)]) == [[b"1"], [b"2"]]
        await trio.sleep(100)
        assert masters.asked == 1
        assert len(masters.took()) == 6
        await trio.testing.wait_all_tasks_blocked()
        assert (masters.one.open, masters.other.open) == (1, 1), "that of the map is closed"
        names = [cluster.node_of(slot).name for slot in (0, 7999, 8000, 16383)]
        assert names == ["peer:1", "peer:1", "peer:2", "peer:2"]


async def test_who_is_said_to_have_a_slot_is_asked_at_once_and_from_then_on(
    masters: Masters, autojump_clock: trio.testing.MockClock
) -> None:
    async with client_over(Cluster(dialer(masters.one, masters.other))) as client:
        masters.replies[LOW] = Exception(f"MOVED {slot_of(LOW)} peer:2")
        assert await client.one(get(LOW)) == [b"2"]
        assert len(masters.took()) == 2
        assert await client.one(get(LOW)) == [b"2"]
        assert len(masters.took()) == 1
        assert client.policy.retries == 0
        await trio.sleep(1)
        assert masters.asked == 2, "what else has moved is found out as well"
        assert await client.one(get(LOW)) == [b"2"]
        assert len(masters.took()) == 2, "the map says something else again"


async def test_of_a_slot_that_only_just_moves_each_command_is_asked_specially_and_the_map_stays(
    masters: Masters, autojump_clock: trio.testing.MockClock
) -> None:
    async with client_over(Cluster(dialer(masters.one, masters.other))) as client:
        masters.replies[LOW] = Exception(f"ASK {slot_of(LOW)} peer:2")
        use: Command = (b"EXPIRE", LOW, b"1")
        assert await client.one(Op(LOW, ((b"GET", LOW), use))) == [b"2", b"2"]
        asking: Command = (b"ASKING",)
        assert masters.took() == [[(b"GET", LOW), use], [asking, (b"GET", LOW), asking, use]]
        del masters.replies[LOW]
        assert await client.many([get(LOW), get(HIGH)]) == [[b"1"], [b"2"]]
        await trio.sleep(1)
        assert masters.asked == 1


async def test_servers_that_send_us_round_in_a_circle_are_left_after_five_times(
    masters: Masters, autojump_clock: trio.testing.MockClock
) -> None:
    async with client_over(Cluster(dialer(masters.one, masters.other))) as client:
        masters.replies[LOW] = Exception(f"MOVED {slot_of(LOW)} peer:1")
        with pytest.raises(MovedError):
            await client.one(get(LOW))
        assert len(masters.took()) == 6
        assert await client.one(get(HIGH)) == [b"2"]


async def test_one_that_names_no_host_means_itself(masters: Masters, autojump_clock: trio.testing.MockClock) -> None:
    """At the host by which it is known to us, and another port."""
    async with client_over(Cluster(dialer(masters.one, masters.other))) as client:
        masters.replies[LOW] = Exception(f"MOVED {slot_of(LOW)} :2")
        assert await client.one(get(LOW)) == [b"2"]
        masters.map = [[0, 16383, [None, 2, b"id"]]]
        await trio.sleep(1)
        assert await client.one(get(LOW)) == [b"2"]
        assert len(await client.everywhere(PING_OF_KEY)) == 1


PING_OF_KEY: Command = (b"PING", b"x")


async def test_a_master_that_fails_makes_the_map_be_asked_for_again_no_more_than_ten_times_a_second(
    masters: Masters, autojump_clock: trio.testing.MockClock
) -> None:
    async with client_over(Cluster(dialer(masters.one, masters.other))) as client:
        await client.one(get(LOW))
        await trio.sleep(1)
        masters.replies[LOW] = Exception("LOADING")
        for _ in range(5):
            with pytest.raises(TransientError):
                await client.one(get(LOW))
        await trio.testing.wait_all_tasks_blocked()
        assert masters.asked == 2
        await trio.sleep(0.11)
        assert masters.asked == 3
        await trio.sleep(10)
        assert masters.asked == 3
        masters.replies[LOW] = CLOSE
        with pytest.raises(TransientError):
            await client.one(get(LOW))
        await trio.sleep(10)
        assert masters.asked == 4


async def test_a_master_that_is_away_when_all_are_asked_makes_the_map_be_asked_for_again(
    masters: Masters, autojump_clock: trio.testing.MockClock
) -> None:
    async with client_over(Cluster(dialer(masters.one, masters.other))) as client:
        masters.replies[b"x"] = CLOSE
        with pytest.raises(TransientError, match="peer:1 has closed the connection"):
            await client.everywhere(PING_OF_KEY)
        await trio.sleep(1)
        assert masters.asked == 2


async def test_a_master_that_has_left_the_cluster_is_not_asked_any_more(
    masters: Masters, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with client_over(Cluster(dialer(masters.one, masters.other))) as client:
        assert len(await client.everywhere(PING_OF_KEY)) == 2
        masters.map = [[0, 16383, [b"peer", 2, b"id"]]]
        masters.replies[LOW] = Exception("LOADING")
        with pytest.raises(TransientError):
            await client.one(get(LOW))
        await trio.sleep(1)
        assert masters.one.open == 0
        masters.took()
        assert await client.many([get(LOW), get(HIGH)]) == [[b"2"], [b"2"]]
        assert await client.everywhere(PING_OF_KEY) == [b"2"]
        assert [record.getMessage() for record in caplog.records] == ["the cluster's masters are now peer:2"]


async def test_the_map_is_asked_of_the_masters_first_and_of_the_configured_nodes_where_these_have_gone(
    masters: Masters, autojump_clock: trio.testing.MockClock
) -> None:
    leads = dialer(masters.one)
    leads.peers[masters.other.address] = masters.other
    async with client_over(Cluster(leads)) as client:
        assert await client.many([get(LOW), get(HIGH)]) == [[b"1"], [b"2"]]
        del leads.peers[masters.one.address]
        masters.replies[LOW] = CLOSE
        masters.map = [[0, 16383, [b"peer", 2, b"id"]]]
        with pytest.raises(TransientError):
            await client.one(get(LOW))
        await trio.sleep(1)
        assert await client.one(get(LOW)) == [b"2"]
        leads.peers[masters.one.address] = leads.peers.pop(masters.other.address)
        masters.map = [[0, 16383, [b"peer", 1, b"id"]]]
        says: list[object] = [CLOSE, b"new"]
        masters.other.answer = lambda command: list(masters.map) if command[0] == b"CLUSTER" else says.pop(0)
        with pytest.raises(TransientError):
            await client.one(get(LOW))
        await trio.sleep(1)
        assert await client.one(get(LOW)) == [b"new"]


async def test_a_slot_that_nobody_has_is_unavailable_and_looked_for_and_the_others_are_there(
    masters: Masters, autojump_clock: trio.testing.MockClock
) -> None:
    masters.map = masters.map[1:]
    async with client_over(Cluster(dialer(masters.one, masters.other))) as client:
        lost, found = await client.many([get(LOW), get(HIGH)])
        assert "no master of the cluster has the slot" in str(lost)
        assert found == [b"2"]
        masters.map = [[0, 16383, [b"peer", 2, b"id"]]]
        await trio.sleep(1)
        assert await client.one(get(LOW)) == [b"2"]


async def test_the_map_is_asked_of_whoever_answers_and_else_all_calls_say_why_there_is_none(
    masters: Masters, autojump_clock: trio.testing.MockClock
) -> None:
    stranger = Peer(trio.lowlevel.current_task().parent_nursery, 3)  # type: ignore[arg-type]
    leads = dialer(stranger, masters.one, masters.other)
    del leads.peers[stranger.address]
    async with client_over(Cluster(leads)) as client:
        assert await client.one(get(LOW)) == [b"1"]
    for peer in (masters.one, masters.other):
        del leads.peers[peer.address]
    async with client_over(Cluster(leads)) as client:
        for _ in range(2):
            with pytest.raises(TransientError, match="cannot connect to peer:2"):
                await client.one(get(LOW))
            with pytest.raises(TransientError, match="cannot connect to peer:2"):
                await client.everywhere(PING)
        leads.peers[masters.one.address], leads.peers[masters.other.address] = masters.one, masters.other
        assert await client.one(get(LOW)) == [b"1"]
        began = trio.current_time()
        masters.one.answer = masters.other.answer = lambda command: SILENCE
    async with client_over(Cluster(leads)) as client:
        with pytest.raises(TransientError, match="peer:2 does not answer"):
            await client.one(get(LOW))
        assert trio.current_time() - began == pytest.approx(6), "three seconds for each of the two"


@pytest.mark.parametrize("reply", [[], None, b"PONG", [[0, 16383]], [[0, 16383, []]]])
async def test_a_server_that_says_of_no_slot_who_has_it_is_no_cluster_that_was_reached(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, reply: object
) -> None:
    peer = Peer(nursery, answer=lambda command: reply if command[0] == b"CLUSTER" else b"OK")
    async with client_over(Cluster(dialer(peer))) as client:
        for ask in (client.everywhere(PING), client.one(get(LOW))):
            with pytest.raises(TransientError, match="peer:1 knows no slots of the cluster yet"):
                await ask


async def test_one_that_names_no_host_means_its_own_and_not_that_of_whoever_was_asked_first(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    first, second, moved = Peer(nursery, 1), Peer(nursery, 1), Peer(nursery, 2)
    second.address, moved.address = Address(host="second", port=1), Address(host="second", port=2)
    slots = [[0, 7999, [b"peer", 1, b"id"]], [8000, 16383, [b"second", 1, b"id"]]]
    first.answer = lambda command: slots if command[0] == b"CLUSTER" else b"first"
    second.answer = lambda command: Exception(f"MOVED {slot_of(HIGH)} :2")
    moved.answer = lambda command: b"moved"
    async with client_over(Cluster(dialer(first, second, moved))) as client:
        assert await client.one(get(LOW)) == [b"first"]
        assert await client.one(get(HIGH)) == [b"moved"]


@pytest.mark.parametrize("chances", [(0.0, 0.999), (0.999, 0.0)])
async def test_of_several_that_failed_the_longest_pause_is_made(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, chances: tuple[float, float]
) -> None:
    peer, told = Peer(nursery), iter(chances)
    refuse = iter([Exception("LOADING")] * 2)
    peer.answer = lambda command: next(refuse, b"OK")
    async with client_over(Single(dialer(peer))) as client:
        client.policy = RetryPolicy(1, delay=5, jitter=1, chance=lambda: next(told))
        began = trio.current_time()
        assert await client.many([get(LOW), get(HIGH)]) == [[b"OK"], [b"OK"]]
    assert trio.current_time() - began == pytest.approx(15, abs=0.1), "10 s, spread over 5 to 15"

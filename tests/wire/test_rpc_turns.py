"""Many connections with much to do: nobody else waits for all of them."""

import time

import pytest
import trio
from grpclib.const import Cardinality, Handler
from trio.testing import wait_all_tasks_blocked

from nl.errors import Code
from nl.rpc import frames as fr
from tests.wire.raw_h2 import RawClient, headers, message
from tests.wire.rpc_hosting import serving
from tests.wire.rpc_service import RawService

BUSY = 30
"""Connections ..."""
CALLS = 20
"""... and requests on each, which take a millisecond of the loop."""


class Turning(trio.abc.Instrument):
    """How many requests were handled in each turn of the loop, and by whom."""

    def __init__(self):
        self.turns = [[]]

    def after_io_wait(self, timeout):
        if self.turns[-1]:
            self.turns.append([])

    async def work(self, stream):
        name = await stream.recv_message()
        self.turns[-1].append(name)
        until = time.perf_counter() + 0.001
        while time.perf_counter() < until:
            pass
        await stream.send_message(b"")

    def __mapping__(self):
        return {"/t.S/Work": Handler(self.work, Cardinality.UNARY_UNARY, bytes, bytes)}


@pytest.fixture
async def turning():
    turning = Turning()
    trio.lowlevel.add_instrument(turning)
    yield turning
    trio.lowlevel.remove_instrument(turning)
    RawClient.close_all()


async def requests(client, name):
    sids = range(1, 2 * CALLS, 2)
    await client.send(*(headers(sid, "Work") + message(sid, name) for sid in sids))


async def test_a_turn_of_the_loop_is_short_however_many_connections_have_much_to_do(turning):
    async with serving(turning) as (_, port):
        clients = [await RawClient.connect(port) for _ in range(BUSY)]
        for client in clients:
            await client.settled()
        async with trio.open_nursery() as nursery:
            for number, client in enumerate(clients):
                nursery.start_soon(requests, client, b"%d" % number)
        with trio.fail_after(30):
            for client in clients:
                while sum(frame[0] == 0 for frame in client.seen) < CALLS:
                    await client.frame()
    handled = [name for turn in turning.turns for name in turn]
    assert len(handled) == BUSY * CALLS
    # Each does a little when it is read from; later only those whose turn it is, and they until it is over.
    assert max(map(len, turning.turns)) <= BUSY + 8
    # Everybody gets on: the last one has its first answers before anybody has all.
    firsts = [handled.index(b"%d" % number) for number in range(BUSY)]
    lasts = [len(handled) - handled[::-1].index(b"%d" % number) for number in range(BUSY)]
    assert max(firsts) < min(lasts)


async def test_a_busy_connection_alone_goes_on_for_as_long_as_a_turn_lasts(turning):
    async with serving(turning) as (_, port):
        client = await RawClient.connect(port)
        await client.settled()
        await requests(client, b"alone")
        with trio.fail_after(30):
            while sum(frame[0] == 0 for frame in client.seen) < CALLS:
                await client.frame()
    assert len(turning.turns) <= CALLS
    assert max(map(len, turning.turns)) <= 6


class Steps(trio.abc.Instrument):
    """How many steps tasks have made in each turn of the loop."""

    def __init__(self):
        self.turns = [0]

    def after_io_wait(self, timeout):
        self.turns.append(0)

    def before_task_step(self, task):
        self.turns[-1] += 1


@pytest.mark.parametrize("how", ["leaves", "breaks the protocol"])
async def test_the_calls_of_a_client_that_is_gone_end_some_at_a_time(how):
    """A thousand handlers take tens of milliseconds to be cancelled."""
    service, steps = RawService(), Steps()
    async with serving(service) as (server, port):
        client = await RawClient.connect(port)
        await client.send(*(headers(sid, "Hang") + message(sid) for sid in range(1, 1001, 2)))
        await client.settled()
        await wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living
        trio.lowlevel.add_instrument(steps)
        if how == "leaves":
            await client.stream.aclose()
        else:
            await client.send(fr.window_update(0, 0))
        with trio.fail_after(10):
            while server._connections:
                await trio.sleep(0.001)
        trio.lowlevel.remove_instrument(steps)
        assert trio.lowlevel.current_statistics().tasks_living < tasks - 500
        assert sum(steps.turns) > 500
        assert max(steps.turns) < 100
        assert server.outcomes == {Code.CANCELLED: 500}
    RawClient.close_all()

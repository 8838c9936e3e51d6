"""A full listener: who makes room, who waits, who is never touched."""

import pytest
import trio

from nl.rpc import frames as fr
from nl.rpc import server as rpc_server
from nl.rpc.options import ServerOptions
from tests.wire.raw_h2 import RawClient, headers, message
from tests.wire.rpc_hosting import serving
from tests.wire.rpc_service import RawService


@pytest.fixture(autouse=True)
async def _no_socket_outlives_its_test():
    yield
    RawClient.close_all()


async def test_sockets_that_say_nothing_count_and_make_room_for_one_that_does():
    async with serving(RawService(), options=ServerOptions(max_connections=4)) as (server, port):
        silent = [await RawClient.connect(port, hello=False) for _ in range(8)]
        with trio.fail_after(20):
            while server.statistics()["handshakes"] < 4:
                await trio.sleep(0.01)
        assert server.statistics()["connections"] == 4
        speaks = await RawClient.connect(port)
        await speaks.settled()
        await silent[0].closed()


async def test_a_connection_that_was_idle_for_a_while_is_asked_to_leave_when_others_wait(monkeypatch):
    monkeypatch.setattr(rpc_server, "IDLE_S", 0.05)
    async with serving(RawService(), options=ServerOptions(max_connections=2)) as (_, port):
        idle, busy = await RawClient.connect(port), await RawClient.connect(port)
        await busy.send(headers(1, "Hang", end=False))
        await busy.settled()
        await idle.send(headers(1), message(1, b"used once"))
        await idle.settled()
        late = await RawClient.connect(port)
        await late.settled()
        assert await idle.goaway_code() is fr.ErrorCode.NO_ERROR
        await busy.settled()


async def test_connections_in_use_are_never_touched_and_the_next_one_waits_for_the_end_of_one(monkeypatch):
    monkeypatch.setattr(rpc_server, "IDLE_S", 0.0)
    async with serving(RawService(), options=ServerOptions(max_connections=1)) as (server, port):
        first = await RawClient.connect(port)
        await first.send(headers(1, "Hang", end=False))
        await first.settled()
        second = await RawClient.connect(port)
        with trio.move_on_after(0.5) as scope:
            await second.frame()
        assert scope.cancelled_caught and server.statistics()["accepted"] == 1
        await first.settled()
        await first.stream.aclose()
        await second.settled()

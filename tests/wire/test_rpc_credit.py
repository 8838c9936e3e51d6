"""Flow-control credit is never lost and never kept to ourselves: else calls hang in which nobody has done wrong."""

import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.frames import ErrorCode, Setting
from nl.rpc.h2.limits import Limits
from nl.rpc.options import ServerOptions
from nl.rpc.outbox import HIGH_WATER, Outbox, Socket
from nl.rpc.transport import SocketTransport
from tests.wire.raw_h2 import RawClient, headers, message
from tests.wire.rpc_hosting import serving
from tests.wire.rpc_service import RawService

MIB = 1 << 20
WIDE = {Setting.INITIAL_WINDOW_SIZE: fr.MAX_WINDOW}


@pytest.fixture
async def service():
    yield RawService()
    RawClient.close_all()


async def receive_data(client, count):
    """Reads DATA of whatever stream until so much has come."""
    with trio.fail_after(20):
        while count > 0:
            kind, _, _, payload = await client.frame()
            if kind == fr.DATA:
                count -= len(payload)
    assert count == 0


async def test_a_sender_cancelled_while_it_waits_for_its_turn_returns_its_credit(service):
    granted = 64 * MIB
    async with serving(service) as (_, port):
        client = await RawClient.connect(port, settings=WIDE)
        await client.send(fr.window_update(0, granted - fr.DEFAULT_WINDOW), headers(1, "Pour"), message(1))
        await wait_all_tasks_blocked()  # stream 1 has filled the kernel's buffers
        for sid in range(3, 43, 2):
            await client.send(headers(sid, "Pour"), message(sid))
        await wait_all_tasks_blocked()
        for sid in range(3, 43, 2):
            await client.send(fr.rst_stream(sid, ErrorCode.CANCEL))
        await wait_all_tasks_blocked()
        await receive_data(client, granted)


async def test_credit_returned_by_a_cancelled_sender_wakes_another(service):
    async with serving(service) as (server, port):
        client = await RawClient.connect(port, settings=WIDE)
        await client.send(headers(1, "Pour"), message(1))
        await wait_all_tasks_blocked()
        [connection] = server._connections
        granted = fr.DEFAULT_WINDOW
        # until the kernel takes no more: all credit is charged, and not all is used
        while connection.outbox.socket is Socket.FREE:
            await client.send(fr.window_update(0, 256 * 1024))
            granted += 256 * 1024
            await wait_all_tasks_blocked()
        await client.send(headers(3, "Pour"), message(3))
        await wait_all_tasks_blocked()
        assert connection.h2.send_window == 0
        await client.send(fr.rst_stream(1, ErrorCode.CANCEL))
        await wait_all_tasks_blocked()
        await receive_data(client, granted)


async def test_a_task_that_takes_messages_gives_their_credit_back_at_once(service):
    """Many small messages are taken in one go by a task that then waits for more; nobody else would send the update."""
    limits = Limits(stream_window=fr.DEFAULT_WINDOW, connection_window=fr.DEFAULT_WINDOW)
    async with serving(service, options=ServerOptions(limits=limits)) as (_, port):
        client = await RawClient.connect(port)
        await client.send(headers(1, "Total"))
        await wait_all_tasks_blocked()  # the handler waits in a task of its own
        count = fr.DEFAULT_WINDOW // 1005
        await client.send(message(1, bytes(1000), end=False) * count)
        returned = 0
        while returned < fr.DEFAULT_WINDOW * 2 // 5:  # credit comes in halves of the window
            returned += fr.U32.unpack(await client.until(fr.WINDOW_UPDATE, sid=1))[0]
        await client.send(message(1, b"x"))
        assert await client.until(fr.DATA, sid=1) == message(1, b"%d" % (1000 * count + 1))[fr.HEADER_SIZE :]


async def test_whoever_empties_the_queue_wakes_those_who_wait_for_room(nursery):
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setblocking(False)
        outbox = Outbox(SocketTransport(ours, unsent_max=MIB), on_room=lambda: None)
        outbox.add(bytes(4 * MIB))
        waited = trio.Event()

        async def wait() -> None:
            await outbox.wait_room()
            waited.set()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert outbox.size > HIGH_WATER and not waited.is_set()
        while outbox.queue:  # as the reader does it, before the writer has come to run
            theirs.recv(MIB)
            outbox.flush()
        with trio.fail_after(5):
            await waited.wait()
        outbox.transport.close()


async def test_a_reply_that_leaves_bit_by_bit_is_not_taken_for_one_that_nobody_takes(service):
    longest = 60.0
    async with serving(service, options=ServerOptions(window_timeout=longest)) as (server, port):
        client = await RawClient.connect(port, settings={Setting.INITIAL_WINDOW_SIZE: 0})
        await client.send(headers(1), message(1, bytes(100)))
        await client.settled()
        [connection] = server._connections
        [call] = connection.held_back
        since = call.blocked_since
        await trio.sleep(0.05)
        await client.send(fr.window_update(1, 10))
        assert len(await client.until(fr.DATA, sid=1)) == 10
        connection._end_blocked_calls(since + longest + 0.02)
        assert list(connection.held_back) == [call]
        await client.send(fr.window_update(1, 95))
        assert len(await client.until(fr.DATA, sid=1)) == 95
        assert await client.until(fr.HEADERS, sid=1) == hpack.TRAILERS_OK


async def test_streams_with_open_windows_share_the_connection(service):
    """In turns: one large download does not hold up all that come after it."""
    async with serving(service) as (_, port):
        client = await RawClient.connect(port, settings=WIDE)
        sids = range(1, 11, 2)
        await client.send(fr.window_update(0, fr.MAX_WINDOW - fr.DEFAULT_WINDOW))
        await client.send(*[headers(sid, "Pour") + message(sid) for sid in sids])
        got = dict.fromkeys(sids, 0)
        with trio.fail_after(20):
            while sum(got.values()) < 40 * MIB:
                kind, _, sid, payload = await client.frame()
                if kind == fr.DATA:
                    got[sid] += len(payload)
        assert min(got.values()) > 4 * MIB, got

"""What all clients together may make a server hold is bounded, and those who make it hold the most pay for that."""

import struct

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.pb import bytestream
from nl.pb.codec import encode, varint
from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.arena import ARENA_SIZE
from nl.rpc.frames import ErrorCode, Setting
from nl.rpc.options import ServerOptions
from nl.rpc.server_connection import CALL_COST, TASK_COST
from nl.services.bytestream import ByteStreamInstance, ByteStreamService
from nl.storage.contract import SMALL
from tests.support.serving import memory_store
from tests.wire.raw_h2 import GRPC, RawClient, headers, message
from tests.wire.rpc_hosting import serving
from tests.wire.rpc_service import RawService

MIB = 1 << 20
SMALL_SERVER = ServerOptions(max_held=4 * MIB)


@pytest.fixture
async def service():
    yield RawService()
    RawClient.close_all()


def data_frames(sid, data):
    return b"".join(fr.frame(fr.DATA, 0, sid, data[at : at + 16_384]) for at in range(0, len(data), 16_384))


async def half_a_message(client, sid, *, sent, announced):
    await client.send(headers(sid, "Echo"), data_frames(sid, fr.PREFIX.pack(0, announced) + bytes(sent)))


async def is_told_to_calm_down(client):
    payload = await client.until(fr.GOAWAY)
    assert struct.unpack(">I", payload[4:8])[0] == ErrorCode.ENHANCE_YOUR_CALM
    assert b"holds too much" in payload


async def test_who_sends_the_beginnings_of_many_messages_is_ended_and_others_are_not(service):
    async with serving(service, options=SMALL_SERVER) as (_, port):
        bystander = await RawClient.connect(port)
        await half_a_message(bystander, 1, sent=50_000, announced=60_000)
        greedy = await RawClient.connect(port)
        for sid in (1, 3, 5):
            await half_a_message(greedy, sid, sent=2 * MIB, announced=4 * MIB - 1)
        await is_told_to_calm_down(greedy)
        await bystander.send(fr.frame(fr.DATA, fr.END_STREAM, 1, bytes(10_000)))
        await bystander.send(fr.window_update(0, MIB), fr.window_update(1, MIB))
        await bystander.until(fr.DATA, sid=1)


async def test_who_asks_for_much_and_takes_nothing_is_ended(service):
    async with serving(service, options=SMALL_SERVER) as (_, port):
        greedy = await RawClient.connect(port, settings={Setting.INITIAL_WINDOW_SIZE: 0})
        for sid in range(1, 17, 2):
            await greedy.send(headers(sid, "Big"), message(sid, b"1000000"))
        await is_told_to_calm_down(greedy)


async def test_who_sends_what_no_handler_reads_is_ended(service):
    async with serving(service, options=SMALL_SERVER) as (_, port):
        greedy = await RawClient.connect(port)
        for sid in (1, 3, 5):
            await greedy.send(headers(sid, "Hang"), message(sid, b"and", end=False), data_frames(sid, bytes(2 * MIB)))
        await is_told_to_calm_down(greedy)


async def test_what_is_held_is_what_is_there_and_nothing_in_the_end(service):
    async with serving(service) as (server, port):
        client = await RawClient.connect(port, settings={Setting.INITIAL_WINDOW_SIZE: 0})
        await half_a_message(client, 1, sent=100_000, announced=200_000)
        await client.send(headers(3, "Hang"), message(3, b"and", end=False), data_frames(3, bytes(50_000)))
        await client.send(headers(5, "Big"), message(5, b"300000"))
        await wait_all_tasks_blocked()
        [connection] = server._connections
        buffers = connection.inbox.kept_bytes()  # of which parts are held
        assert connection.held_bytes() == 100_000 + 50_000 + 300_005 + buffers + 3 * (CALL_COST + TASK_COST)
        assert buffers <= 2 * ARENA_SIZE
        for sid in (1, 3, 5):
            await client.send(fr.rst_stream(sid, ErrorCode.CANCEL))
        await wait_all_tasks_blocked()
        assert connection.held_bytes() == 0


class Watch(trio.abc.Instrument):
    """The most that a server's connections have held at the beginning of any turn of the loop."""

    def __init__(self, server):
        self.server = server
        self.most = 0

    def after_io_wait(self, timeout):
        self.most = max(self.most, self.server.statistics()["held_bytes"])


async def begin_write(client, sid, encoded, *, missing):
    path = hpack.encode_path(b"/google.bytestream.ByteStream/Write")
    block = hpack.METHOD_POST + hpack.SCHEME_HTTP + path + GRPC
    body = (fr.PREFIX.pack(0, len(encoded)) + encoded)[:-missing]
    await client.send(fr.frame(fr.HEADERS, fr.END_HEADERS, sid, block), data_frames(sid, body))


@pytest.mark.parametrize(("what", "size"), [("data first", MIB), ("small", SMALL)])
async def test_uploads_that_are_here_in_part_are_held_although_their_bytes_are_copied(service, what, size):
    """A message whose data comes first is taken whole, and so is a small blob; their credit has gone back by then."""
    name = encode(bytestream.WriteRequest(resource_name=f"uploads/u/blobs/{'a' * 64}/{size}", finish_write=True))
    data = b"\x52" + varint(size) + bytes(size)
    encoded = data + name if what == "data first" else name + data
    async with serving(ByteStreamService({"": ByteStreamInstance(memory_store())})) as (server, port):
        client = await RawClient.connect(port)
        for sid in (1, 3, 5, 7):
            await begin_write(client, sid, encoded, missing=1)
        await client.settled()
        await wait_all_tasks_blocked()
        held = server.statistics()["held_bytes"]
        assert 4 * size < held < 4 * (size + CALL_COST + TASK_COST) + 3 * ARENA_SIZE
        for sid in (1, 3, 5, 7):
            await client.send(fr.frame(fr.DATA, fr.END_STREAM, sid, encoded[-1:]))
        for _ in range(4):
            await client.until(fr.HEADERS)
        await client.settled()
        await wait_all_tasks_blocked()
        assert server.statistics()["held_bytes"] < ARENA_SIZE


async def test_the_bound_is_kept_at_all_times_not_only_when_somebody_looks(service):
    """Thirty clients at once ask for 100 KB each, three hundred times, and read nothing of it."""
    options = ServerOptions(max_held=16 * MIB)
    async with serving(service, options=options) as (server, port):
        watch = Watch(server)
        trio.lowlevel.add_instrument(watch)
        wide = {Setting.INITIAL_WINDOW_SIZE: fr.MAX_WINDOW}
        clients = [await RawClient.connect(port, settings=wide) for _ in range(30)]
        await wait_all_tasks_blocked()
        for client in clients:
            calls = (headers(sid, "Echo") + message(sid, bytes(12_000)) for sid in range(1, 601, 2))
            await client.send(fr.window_update(0, 1 << 30), *calls)
        await wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(watch)
        assert server.statistics()["http2_connections"] < 30
        assert 14 * MIB < watch.most < options.max_held * 1.1


async def test_a_client_that_is_given_up_frees_its_calls_before_it_has_been_told(service):
    """It may take its time to read the goodbye."""
    options = ServerOptions(max_held=4 * MIB)
    async with serving(service, options=options) as (server, port):
        greedy = await RawClient.connect(port)
        for sid in range(1, 13, 2):
            await half_a_message(greedy, sid, sent=MIB, announced=2 * MIB)
        with trio.fail_after(5):
            while sum(server.outcomes.values()) < 3:
                await trio.lowlevel.checkpoint()
        [connection] = server._connections
        assert not connection.h2.streams
        assert connection.held_bytes() < 2 * ARENA_SIZE
        await is_told_to_calm_down(greedy)

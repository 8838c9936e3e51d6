"""Peers that live but do not read, and peers that reset calls whose handlers take their time: how many handlers there
are at once, what waits for such a peer, and when it is let go. Seen from the wire and from the handlers alone.
"""

from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from grpclib.const import Cardinality, Handler

from nl.rpc import frames as fr
from nl.rpc.frames import ErrorCode, Setting
from nl.rpc.h2.limits import Limits
from nl.rpc.options import ServerOptions
from tests.wire.raw_h2 import RawClient, headers, message
from tests.wire.rpc_hosting import serving
from tests.wire.rpc_service import RawService

MIB = 1 << 20
WIDE = {Setting.INITIAL_WINDOW_SIZE: fr.MAX_WINDOW}
WIDE_CONNECTION = fr.window_update(0, fr.MAX_WINDOW - fr.DEFAULT_WINDOW)
KERNEL = 12 * MIB
"""More than the buffers of both ends of a loopback connection hold for a peer that does not read."""


class SlowService(RawService):
    """Besides: handlers that do not end when they are cancelled, and replies in many small messages."""

    def __init__(self):
        super().__init__()
        self.running = self.most = self.begun = 0
        self.dripped = 0
        self.let_go = trio.Event()

    async def stubborn(self, stream):
        await stream.recv_message()
        self.begun += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            with trio.CancelScope(shield=True):
                await self.let_go.wait()
            await stream.send_message(b"late")
        finally:
            self.running -= 1

    async def drip(self, stream):
        count = int(await stream.recv_message())
        for _ in range(count):
            await stream.send_message(bytes(8000))
            self.dripped += 8000

    def __mapping__(self):
        return super().__mapping__() | {
            "/t.S/Stubborn": Handler(self.stubborn, Cardinality.UNARY_UNARY, bytes, bytes),
            "/t.S/Drip": Handler(self.drip, Cardinality.UNARY_STREAM, bytes, bytes),
        }


@pytest.fixture
async def service():
    yield SlowService()
    RawClient.close_all()


@asynccontextmanager
async def serving_slowly(service, options=None):
    """As `serving`; whatever becomes of the test, the handlers that it has left waiting end."""
    async with serving(service, options=options) as served:
        try:
            yield served
        finally:
            service.let_go.set()


async def until(holds, within_s=10):
    with trio.fail_after(within_s):
        while not holds():
            await trio.sleep(0.005)


# -- resets under slow handlers --------------------------------------------------------------------------------------


async def test_resetting_calls_does_not_get_a_client_more_handlers_than_streams(service):
    """Its streams are gone at once, what it has made us run is not: until then its next calls are refused."""
    options = ServerOptions(limits=Limits(max_concurrent_streams=10))
    async with serving_slowly(service, options) as (_, port):
        client = await RawClient.connect(port)
        for sid in range(1, 21, 2):
            await client.send(headers(sid, "Stubborn"), message(sid))
        await until(lambda: service.running == 10)
        for sid in range(1, 21, 2):
            await client.send(fr.rst_stream(sid, ErrorCode.CANCEL))
        for sid in range(21, 61, 2):
            await client.send(headers(sid, "Stubborn"), message(sid))
        for sid in range(21, 61, 2):
            assert await client.reset_code(sid) is ErrorCode.REFUSED_STREAM
        assert (service.most, service.begun) == (10, 10)
        service.let_go.set()
        await until(lambda: service.running == 0)
        for sid in range(61, 81, 2):  # every place is free again, not only some
            await client.send(headers(sid, "Stubborn"), message(sid))
        for sid in range(61, 81, 2):
            assert (await client.until(fr.DATA, sid=sid)).endswith(b"late")


async def test_a_call_reset_before_its_handler_waits_leaves_no_place_taken(service):
    """Request and reset are read in one go: the handler runs, or not, and is not counted twice or for ever."""
    options = ServerOptions(limits=Limits(max_concurrent_streams=2))
    async with serving_slowly(service, options) as (_, port):
        client = await RawClient.connect(port)
        for sid in range(1, 41, 2):
            await client.send(headers(sid, "Hang"), message(sid), fr.rst_stream(sid, ErrorCode.CANCEL))
            await client.settled()
        await client.send(headers(41), message(41, b"one"), headers(43), message(43, b"two"))
        assert (await client.until(fr.DATA, sid=41)).endswith(b"one")
        assert (await client.until(fr.DATA, sid=43)).endswith(b"two")


async def test_a_client_that_leaves_takes_no_handler_with_it_that_others_wait_for(service):
    """The handlers of a lost connection wind down; those of another go on, and the server ends in order."""
    async with serving_slowly(service) as (_, port):
        gone, stays = await RawClient.connect(port), await RawClient.connect(port)
        await gone.send(headers(1, "Stubborn"), message(1))
        await stays.send(headers(1, "Stubborn"), message(1))
        await until(lambda: service.running == 2)
        await gone.stream.aclose()
        await stays.settled()
        service.let_go.set()
        assert (await stays.until(fr.DATA, sid=1)).endswith(b"late")
        await until(lambda: service.running == 0)


# -- peers that live and do not read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["Pour", "Drip"])
async def test_a_peer_that_pings_and_never_reads_is_let_go_like_a_silent_one(service, method):
    """A stall is a matter of what the peer takes from us; what it says meanwhile changes nothing."""
    async with serving(service, options=ServerOptions(stall_timeout=0.5)) as (_, port):
        client = await RawClient.connect(port, settings=WIDE)
        await client.send(WIDE_CONNECTION, headers(1, method), message(1, b"1000000"))
        began = trio.current_time()
        with trio.fail_after(10):
            while True:
                try:
                    await client.stream.send_all(fr.ping(b"still on"))
                except trio.BrokenResourceError:
                    break
                await trio.sleep(0.05)
        assert trio.current_time() - began > 0.5
        if method == "Pour":
            await service.finished.wait()
        assert service.dripped < 64 << 20  # nobody goes on filling the queue of a connection that is lost


async def test_a_peer_that_reads_slowly_is_not_let_go(service):
    """Ten times the stall timeout, and always something to take."""
    async with serving(service, options=ServerOptions(stall_timeout=0.3)) as (_, port):
        client = await RawClient.connect(port, settings=WIDE)
        await client.send(WIDE_CONNECTION, headers(1, "Pour"), message(1))
        until_then = trio.current_time() + 3
        while trio.current_time() < until_then:
            assert await client.stream.receive_some(MIB)
            await trio.sleep(0.03)
        assert not service.finished.is_set()


async def test_small_replies_wait_for_a_peer_that_pauses_and_none_is_lost(service):
    """1,000 calls that are answered with 15 MB altogether: more than may ever be queued for one peer."""
    async with serving(service) as (_, port):
        client = await RawClient.connect(port, settings=WIDE)
        await client.send(WIDE_CONNECTION)
        sids = range(1, 2001, 2)
        await client.send(*[headers(sid, "Big") + message(sid, b"15000") for sid in sids])
        await client.send(fr.ping(b"all sent"))
        await trio.testing.wait_all_tasks_blocked()
        missing = dict.fromkeys(sids, 15_005)
        with trio.fail_after(30):
            while missing:
                frame = await client.frame()
                assert frame is not None and frame[0] not in (fr.GOAWAY, fr.RST_STREAM), client.seen[-1]
                if frame[0] == fr.DATA:
                    missing[frame[2]] -= len(frame[3])
                elif frame[0] == fr.HEADERS and frame[1] & fr.END_STREAM:
                    assert missing.pop(frame[2]) == 0


async def test_a_stream_of_small_messages_waits_for_its_reader(service):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port, settings=WIDE)
        await client.send(WIDE_CONNECTION, headers(1, "Drip"), message(1, b"2500"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert 0 < service.dripped < KERNEL
        with trio.fail_after(30):
            while (await client.frame())[1:3] != (fr.END_HEADERS | fr.END_STREAM, 1):
                pass
        assert sum(len(frame[3]) for frame in client.seen if frame[0] == fr.DATA) == 2500 * 8005

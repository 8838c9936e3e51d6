"""Answers that cannot leave yet, and what an answered call is worth. Seen from the wire."""

import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.rpc import frames as fr
from nl.rpc import hpack, packing
from nl.rpc.frames import ErrorCode, Setting
from nl.rpc.h2.limits import Limits
from nl.rpc.options import ServerOptions
from tests.wire.raw_h2 import RawClient, headers, message
from tests.wire.rpc_hosting import serving
from tests.wire.rpc_service import RawService

SHUT = {Setting.INITIAL_WINDOW_SIZE: 0}


@pytest.fixture
async def service():
    yield RawService()
    RawClient.close_all()


async def test_answered_calls_pay_resets_back(service):
    """Four times as many resets as there may be, each beside a call that was answered."""
    options = ServerOptions(limits=Limits(reset_burst=10, reset_per_s=0))
    async with serving(service, options=options) as (_, port):
        client = await RawClient.connect(port)
        for sid in range(1, 161, 4):
            await client.send(headers(sid, "Hang"), message(sid), fr.rst_stream(sid, ErrorCode.CANCEL))
            await client.send(headers(sid + 2), message(sid + 2, b"x"))
            await client.until(fr.DATA, sid=sid + 2)


async def test_without_answers_resets_end_the_connection(service):
    options = ServerOptions(limits=Limits(reset_burst=10, reset_per_s=0))
    async with serving(service, options=options) as (_, port):
        client = await RawClient.connect(port)
        for sid in range(1, 31, 2):
            await client.send(headers(sid, "Hang"), message(sid), fr.rst_stream(sid, ErrorCode.CANCEL))
        assert await client.goaway_code() is ErrorCode.ENHANCE_YOUR_CALM


async def test_a_reply_that_waits_for_credit_leaves_when_there_is_some(service):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port, settings=SHUT)
        await client.send(*[headers(sid) + message(sid, b"hello") for sid in (1, 3, 5)])
        await client.settled()
        for sid in (5, 1, 3):
            await client.send(fr.window_update(sid, 10))
            assert await client.until(fr.DATA, sid=sid) == fr.PREFIX.pack(0, 5) + b"hello"


async def test_a_reply_leaves_as_far_as_there_is_credit_and_the_rest_follows(service):
    """A client opens its window for what has come: one that must take all of a reply at once would never get it."""
    async with serving(service) as (_, port):
        client = await RawClient.connect(port, settings={Setting.INITIAL_WINDOW_SIZE: 1000})
        await client.send(headers(1), message(1, b"x" * 4500))
        received = b""
        while len(received) < 4505:
            payload = await client.until(fr.DATA, sid=1)
            received += payload
            await client.send(fr.window_update(1, len(payload)))
        assert received == fr.PREFIX.pack(0, 4500) + b"x" * 4500
        await client.until(fr.HEADERS, sid=1)


async def test_a_reply_that_waits_for_its_stream_leaves_the_connections_credit_to_others(service):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port, settings={Setting.INITIAL_WINDOW_SIZE: 10})
        await client.send(headers(1, "Big"), fr.window_update(1, fr.DEFAULT_WINDOW), message(1, b"65530"))
        await client.until(fr.HEADERS, sid=1)
        await client.send(*[headers(sid) + message(sid, b"x" * 95) for sid in (3, 5, 7, 9)])
        await client.send(fr.window_update(9, 90))
        await client.settled()
        assert not {sid for kind, _, sid, _ in client.seen if kind == fr.DATA and sid > 1}
        await client.send(fr.window_update(0, 3 * 10 + 100))
        await client.settled()
        got = {sid: len(payload) for kind, _, sid, payload in client.seen if kind == fr.DATA and sid > 1}
        assert got == {3: 10, 5: 10, 7: 10, 9: 100}


async def test_replies_that_wait_for_the_connections_credit_leave_as_it_comes(service):
    """Each WINDOW_UPDATE has room for three of them, and none is forgotten."""
    async with serving(service) as (_, port):
        client = await RawClient.connect(port)
        await client.send(headers(1, "Big"), message(1, b"65530"))
        await client.until(fr.HEADERS, sid=1)
        sids = range(3, 23, 2)
        await client.send(*[headers(sid) + message(sid, b"x" * 95) for sid in sids])
        await client.settled()
        got = {sid for kind, _, sid, payload in client.seen if kind == fr.DATA and payload and sid > 1}
        assert not got
        for _ in range(4):
            await client.send(fr.window_update(0, 300))
            await client.settled()
        got = {sid: payload for kind, _, sid, payload in client.seen if kind == fr.DATA and sid > 1}
        assert got == dict.fromkeys(sids, fr.PREFIX.pack(0, 95) + b"x" * 95)


async def test_a_reply_that_nobody_has_credit_for_ends_with_its_deadline(service):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port, settings=SHUT)
        await client.send(headers(1, extra=[(b"grpc-timeout", b"300m")]), message(1, b"hello"))
        assert b"grpc-status\x014" in await client.until(fr.HEADERS, sid=1)


async def test_a_reply_that_nobody_has_credit_for_ends_with_the_servers_grace(service):
    async with serving(service) as (server, port):
        client = await RawClient.connect(port, settings=SHUT)
        await client.send(headers(1), message(1, b"hello"))
        await client.settled()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.shutdown, 0.1)
                assert b"grpc-status\x0214" in await client.until(fr.HEADERS, sid=1)


async def test_a_lame_duck_leaves_with_the_last_reply_that_has_waited_for_credit(service):
    async with serving(service) as (server, port):
        client = await RawClient.connect(port, settings=SHUT)
        await client.send(headers(1), message(1, b"hello"))
        await client.settled()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.shutdown, 60)
            await client.send(fr.ping(await client.until(fr.PING), ack=True))
            await client.until(fr.GOAWAY)
            await client.settled()
            await client.send(fr.window_update(1, 100))
            assert (await client.until(fr.DATA, sid=1)).endswith(b"hello")
            await client.closed()


async def test_a_call_that_is_reset_while_its_reply_waits_leaves_nothing_behind(service):
    async with serving(service) as (server, port):
        client = await RawClient.connect(port, settings=SHUT)
        for sid in range(1, 41, 2):
            await client.send(headers(sid), message(sid, b"hello"))
            await client.settled()
            await client.send(fr.rst_stream(sid, ErrorCode.CANCEL))
        await client.settled()
        [connection] = server._connections
        assert not connection.held_back
        assert not connection._need_room
        await client.send(headers(41), message(41, b"hello"), fr.window_update(41, 100))
        assert (await client.until(fr.DATA, sid=41)).endswith(b"hello")


async def test_a_lame_duck_takes_what_was_sent_before_it_was_heard(service):
    """Its PING says when that is. An answer to another PING says nothing."""
    async with serving(service) as (server, port):
        client = await RawClient.connect(port)
        await client.send(headers(1, "Hang"), message(1))
        await client.settled()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.shutdown, 5)
            first = await client.until(fr.GOAWAY)
            assert fr.U32.unpack_from(first)[0] == fr.MAX_STREAM_ID
            asked = await client.until(fr.PING)
            await client.send(fr.ping(b"whatever", ack=True), headers(3), message(3, b"late"))
            assert (await client.until(fr.DATA, sid=3)).endswith(b"late")
            await client.send(fr.ping(asked, ack=True))
            last = await client.until(fr.GOAWAY)
            assert fr.U32.unpack_from(last)[0] == 3
            await client.send(headers(5), message(5, b"too late"))
            await client.settled()
            assert 5 not in {sid for _, _, sid, _ in client.seen}
            await wait_all_tasks_blocked()
            service.release.set()
            await client.closed()


@pytest.mark.parametrize(("accepts", "packed"), [
    (b"gzip", True), (b"identity,deflate,gzip", True), (b"identity, gzip", True), (b"identity", False),
    (b"gzipped", False), (None, False),
])  # fmt: skip
async def test_large_replies_are_packed_for_those_who_accept_it(service, accepts, packed):
    extra = [] if accepts is None else [(b"grpc-accept-encoding", accepts)]
    async with serving(service, options=ServerOptions(send_compression="gzip", compress_from=1024)) as (_, port):
        client = await RawClient.connect(port)
        for sid, size in ((1, b"1023"), (3, b"1024")):
            await client.send(headers(sid, "Big", extra=extra), message(sid, size))
            flag, length = fr.PREFIX.unpack_from(await client.until(fr.DATA, sid=sid))
            assert (flag, length < int(size)) == ((1, True) if packed and size == b"1024" else (0, False))


@pytest.mark.parametrize("accepts", [b"gzip", b"identity", None])
@pytest.mark.parametrize("method", ["Echo", "Big", "Repeat", "Metadata"])
async def test_replies_are_announced_as_packed_only_to_those_who_accept_it(service, method, accepts):
    """Whichever way the headers leave: with a small reply, before a large one or a stream, or by themselves."""
    extra = [] if accepts is None else [(b"grpc-accept-encoding", accepts)]
    async with serving(service, options=ServerOptions(send_compression="gzip")) as (_, port):
        client = await RawClient.connect(port)
        await client.send(headers(1, method, extra=extra), message(1, b"20000"))
        told = hpack.HeaderDecoder().decode(await client.until(fr.HEADERS, sid=1))
        assert (b"grpc-encoding", b"gzip") in [(name, value) for name, value, _, _ in told] or accepts != b"gzip"
        assert b"grpc-encoding" not in [name for name, *_ in told] or accepts == b"gzip"


async def test_a_peer_that_says_anything_lives_also_without_an_answer_to_ping(service):
    options = ServerOptions(keepalive_interval=0.1, keepalive_timeout=0.1)
    async with serving(service, options=options) as (_, port):
        client = await RawClient.connect(port)
        for _ in range(3):
            await client.until(fr.PING)
            await client.send(fr.window_update(0, 1000))
        await client.send(headers(1), message(1, b"alive"))
        assert (await client.until(fr.DATA, sid=1)).endswith(b"alive")


JSON = hpack.METHOD_POST + hpack.SCHEME_HTTP + hpack.encode_path(b"/") + hpack.encode([(b":authority", b"x")])


async def test_a_request_that_is_not_grpc_is_answered_before_its_end_if_that_is_far(service):
    """Nobody keeps what it sends, and nobody opens its window for more."""
    async with serving(service) as (_, port):
        client = await RawClient.connect(port)
        await client.send(fr.frame(fr.HEADERS, fr.END_HEADERS, 1, JSON))
        await client.send(fr.frame(fr.DATA, 0, 1, bytes(10_000)))
        await client.settled()
        assert not [kind for kind, _, sid, _ in client.seen if sid == 1]
        await client.send(*[fr.frame(fr.DATA, 0, 1, bytes(10_000))] * 6)
        await client.until(fr.HEADERS, sid=1)
        assert await client.reset_code(1) is ErrorCode.NO_ERROR
        await client.send(headers(3), message(3, b"hello"))
        assert (await client.until(fr.DATA, sid=3)).endswith(b"hello")


async def test_a_lame_duck_leaves_after_an_answer_that_is_not_grpc(service):
    async with serving(service) as (server, port):
        client = await RawClient.connect(port)
        await client.send(fr.frame(fr.HEADERS, fr.END_HEADERS, 1, JSON))
        await client.settled()
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.shutdown, 60)
                await client.send(fr.ping(await client.until(fr.PING), ack=True))
                await client.until(fr.GOAWAY)
                await client.send(fr.frame(fr.DATA, fr.END_STREAM, 1, b""))
                await client.until(fr.HEADERS, sid=1)
                await client.closed()


async def test_a_lame_duck_leaves_after_a_call_that_was_reset_before_it_ran(service):
    async with serving(service) as (server, port):
        client = await RawClient.connect(port)
        await client.send(fr.frame(fr.HEADERS, fr.END_HEADERS, 1, JSON))
        await client.settled()
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.shutdown, 60)
                ack = fr.ping(await client.until(fr.PING), ack=True)
                cancels = [fr.rst_stream(sid, ErrorCode.CANCEL) for sid in (1, 3)]
                await client.send(headers(3), cancels[0], ack, cancels[1])
                await client.closed()


async def test_a_lame_duck_waits_for_a_slow_line_to_have_taken_the_last_reply(service):
    """The call is over and its reply in the kernel's buffers; to close now would throw away what is not delivered."""
    async with serving(service) as (server, port):
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        await sock.connect(("127.0.0.1", port))
        client = RawClient(trio.SocketStream(sock))
        await client.send(fr.PREFACE, fr.settings({Setting.INITIAL_WINDOW_SIZE: fr.MAX_WINDOW}))
        await client.send(fr.window_update(0, 1 << 20), headers(1, "Big"), message(1, b"1000000"))
        await wait_all_tasks_blocked()
        received = 0
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.shutdown, 20)
                while received < 1_000_005:
                    payload = await client.until(fr.DATA, sid=1)
                    received += len(payload)
                    await trio.sleep(0.015)
                    await client.send(fr.window_update(0, len(payload)))
                await client.until(fr.HEADERS, sid=1)


async def test_a_lame_duck_does_not_wait_for_a_client_that_reads_nothing(service):
    async with serving(service) as (server, port):
        client = await RawClient.connect(port, settings={Setting.INITIAL_WINDOW_SIZE: fr.MAX_WINDOW})
        await client.send(fr.window_update(0, 1 << 30), headers(1, "Big"), message(1, b"8000000"))
        await wait_all_tasks_blocked()
        await client.send(fr.rst_stream(1, ErrorCode.CANCEL))
        await wait_all_tasks_blocked()
        with trio.fail_after(5):
            await server.shutdown(20)


async def test_calls_of_a_client_that_leaves_are_counted_too(service):
    async with serving(service) as (server, port):
        client = await RawClient.connect(port)
        await client.send(*[headers(sid, "Hang") + message(sid) for sid in (1, 3)])
        await client.send(headers(5), message(5, b"hello"))
        await client.until(fr.DATA, sid=5)
        await client.stream.aclose()
        await wait_all_tasks_blocked()
        assert server.outcomes == {0: 1, 1: 2}


async def test_a_reply_that_waits_to_be_packed_is_counted(service):
    """Packing has two threads for all connections, so replies can queue for it: max_held must see them."""
    async with serving(service, options=ServerOptions(send_compression="gzip")) as (server, port):
        limiter, others = packing._threads(), [object() for _ in range(packing._THREADS)]
        for other in others:
            await limiter.acquire_on_behalf_of(other)
        client = await RawClient.connect(port)
        await client.send(headers(1, "Big", extra=[(b"grpc-accept-encoding", b"gzip")]), message(1, b"3000000"))
        await wait_all_tasks_blocked()
        assert server.statistics()["held_bytes"] > 3_000_000
        for other in others:
            limiter.release_on_behalf_of(other)
        await client.until(fr.DATA, sid=1)


class Tidies(RawService):
    """Its Fail answers at once and works on."""

    def __init__(self):
        super().__init__()
        self.running = self.most = self.tidied = 0

    async def fail(self, stream):
        await stream.recv_message()
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await stream.send_message(b"x")
            await stream.send_trailing_metadata()
            await trio.sleep(0.2)
            self.tidied += 1
        finally:
            self.running -= 1


@pytest.mark.parametrize("half_closed", [True, False])
async def test_a_handler_that_works_on_after_its_answer_counts_as_concurrent_and_is_not_cancelled(half_closed):
    service = Tidies()
    async with serving(service, options=ServerOptions(limits=Limits(max_concurrent_streams=5))) as (server, port):
        client = await RawClient.connect(port)
        for sid in range(1, 40, 2):
            await client.send(headers(sid, "Fail"), message(sid, b"", end=half_closed))
            await client.settled()
        [connection] = server._connections
        assert connection.h2.winding_down == 5
        with trio.fail_after(10):
            while service.running:
                await trio.sleep(0.01)
        await wait_all_tasks_blocked()
        assert (service.most, service.tidied) == (5, 5)
        assert (connection.h2.winding_down, connection.h2.streams) == (0, {})
        RawClient.close_all()

"""Hostile peers: each attack meets a bound and the right error, and the server stays well for everybody else."""

import resource

import pytest
import trio

from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.frames import ErrorCode, Setting
from nl.rpc.h2.limits import Limits
from nl.rpc.options import ServerOptions
from tests.wire.raw_h2 import RawClient, headers, message, request_block
from tests.wire.rpc_hosting import serving
from tests.wire.rpc_service import RawService


@pytest.fixture
async def service():
    yield RawService()
    RawClient.close_all()


async def is_well(port):
    client = await RawClient.connect(port)
    await client.send(headers(1), message(1, b"hello"))
    assert await client.until(fr.DATA, sid=1) == fr.PREFIX.pack(0, 5) + b"hello"
    await client.stream.aclose()


async def meets(service, *sent, options=None):
    """The GOAWAY code that the bytes meet after a proper hello."""
    async with serving(service, options=options) as (_, port):
        client = await RawClient.connect(port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, *sent)
            code = await client.goaway_code()
            await client.closed()
            nursery.cancel_scope.cancel()
        await is_well(port)
        return code


async def test_continuation_flood(service):
    start = fr.frame(fr.HEADERS, 0, 1, request_block())
    flood = [fr.frame(fr.CONTINUATION, 0, 1, b"")] * 100_000
    assert await meets(service, start, *flood) is ErrorCode.ENHANCE_YOUR_CALM


async def test_continuation_flood_with_payload(service):
    start = fr.frame(fr.HEADERS, 0, 1, request_block())
    flood = [fr.frame(fr.CONTINUATION, 0, 1, hpack.encode([(b"x", b"y" * 8000)]))] * 50
    assert await meets(service, start, *flood) is ErrorCode.ENHANCE_YOUR_CALM


async def test_rapid_reset(service):
    flood = [headers(sid) + fr.rst_stream(sid, ErrorCode.CANCEL) for sid in range(1, 20_001, 2)]
    assert await meets(service, *flood) is ErrorCode.ENHANCE_YOUR_CALM
    assert len(service.seen) == 0


async def test_rapid_reset_of_running_handlers_does_not_exceed_the_stream_limit(service):
    options = ServerOptions(limits=Limits(max_concurrent_streams=10))
    async with serving(service, options=options) as (_, port):
        client = await RawClient.connect(port)
        for sid in range(1, 201, 2):
            await client.send(headers(sid, "Hang"), message(sid))
        codes = [await client.reset_code(sid) for sid in range(21, 201, 2)]
        assert set(codes) == {ErrorCode.REFUSED_STREAM}


async def test_ping_flood(service):
    assert await meets(service, *[fr.ping(b"12345678")] * 50_000) is ErrorCode.ENHANCE_YOUR_CALM


async def test_settings_flood(service):
    assert await meets(service, *[fr.settings({})] * 50_000) is ErrorCode.ENHANCE_YOUR_CALM


async def test_empty_data_flood(service):
    flood = [fr.frame(fr.DATA, 0, 1)] * 50_000
    assert await meets(service, headers(1, "Total"), *flood) is ErrorCode.ENHANCE_YOUR_CALM


async def test_priority_flood(service):
    flood = [fr.frame(fr.PRIORITY, 0, 1, b"\0\0\0\0\x10")] * 50_000
    assert await meets(service, *flood) is ErrorCode.ENHANCE_YOUR_CALM


async def test_flood_of_unknown_frames(service):
    assert await meets(service, *[fr.frame(0x42, 0, 1, b"x")] * 50_000) is ErrorCode.ENHANCE_YOUR_CALM


async def test_flood_of_tiny_window_updates(service):
    assert await meets(service, *[fr.window_update(0, 1)] * 50_000) is ErrorCode.ENHANCE_YOUR_CALM


async def test_a_few_priority_and_unknown_frames_are_ignored(service):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port)
        await client.send(fr.frame(fr.PRIORITY, 0, 1, b"\0\0\0\0\x10"), fr.frame(0x42, 0xFF, 7, b"whatever" * 1000))
        await client.send(headers(1), message(1, b"hello"))
        assert await client.until(fr.DATA, sid=1) == fr.PREFIX.pack(0, 5) + b"hello"


async def test_window_overflow_of_the_connection(service):
    update = fr.window_update(0, fr.MAX_WINDOW)
    assert await meets(service, update, update) is ErrorCode.FLOW_CONTROL_ERROR


async def test_window_overflow_of_a_stream_costs_the_stream(service):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port)
        await client.send(headers(1, "Total"), fr.window_update(1, fr.MAX_WINDOW), fr.window_update(1, fr.MAX_WINDOW))
        assert await client.reset_code(1) is ErrorCode.FLOW_CONTROL_ERROR
        await client.send(headers(3), message(3, b"alive"))
        assert (await client.until(fr.DATA, sid=3)).endswith(b"alive")


async def test_more_data_than_the_streams_window_costs_the_stream(service):
    options = ServerOptions(limits=Limits(stream_window=65_535))
    async with serving(service, options=options) as (_, port):
        client = await RawClient.connect(port)
        await client.send(headers(1, "Hang"), message(1, end=False))
        await client.send(*[fr.frame(fr.DATA, 0, 1, bytes(16_384))] * 5)
        assert await client.reset_code(1) is ErrorCode.FLOW_CONTROL_ERROR
        await client.send(headers(3), message(3, b"alive"))
        assert (await client.until(fr.DATA, sid=3)).endswith(b"alive")


@pytest.mark.parametrize("declared", [b"5", b"7"])
async def test_a_request_that_is_not_as_long_as_it_declared_costs_the_stream(service, declared):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port)
        await client.send(headers(1, extra=[(b"content-length", declared)]), message(1, b"x"))
        assert await client.reset_code(1) is ErrorCode.PROTOCOL_ERROR
        await client.send(headers(3, extra=[(b"content-length", b"6")]), message(3, b"x"))
        assert await client.until(fr.DATA, sid=3) == fr.PREFIX.pack(0, 1) + b"x"


async def test_more_data_than_the_connections_window_ends_it(service):
    options = ServerOptions(limits=Limits(stream_window=1 << 20, connection_window=1 << 20))
    blocks = [fr.frame(fr.DATA, 0, sid, bytes(16_384)) for sid in (1, 3) for _ in range(40)]
    sent = [headers(sid, "Hang") + message(sid, end=False) for sid in (1, 3)]
    assert await meets(service, *sent, *blocks, options=options) is ErrorCode.FLOW_CONTROL_ERROR


ENTRY = b"\x40" + b"\x01a" + b"\x7f\x81\x1e" + b"v" * 3968
"""A header that fills the dynamic table; b"\xbe" refers to it."""


async def test_a_header_list_that_is_too_large_costs_only_the_call(service):
    block = fr.frame(fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, 1, request_block() + ENTRY + b"\xbe" * 60)
    async with serving(service) as (_, port):
        client = await RawClient.connect(port)
        await client.send(block)
        assert b"metadata is over" in await client.until(fr.HEADERS, sid=1)
        await client.send(headers(3), message(3, b"alive"))
        assert (await client.until(fr.DATA, sid=3)).endswith(b"alive")


async def test_an_hpack_bomb_costs_little_and_ends_its_connection(service):
    bomb = fr.frame(fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, 1, request_block() + ENTRY + b"\xbe" * 8000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert await meets(service, bomb) is ErrorCode.ENHANCE_YOUR_CALM
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


BROKEN = [b"\x00", b"\x40\x05ab", b"\xff\xff\xff\xff\xff\xff", b"\x80", b"\xbf", b"\x3f\xff\xff\x7f"]


@pytest.mark.parametrize("block", BROKEN)
async def test_broken_header_blocks_are_compression_errors(service, block):
    sent = fr.frame(fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, 1, block)
    assert await meets(service, sent) is ErrorCode.COMPRESSION_ERROR


async def test_too_many_streams_are_refused(service):
    options = ServerOptions(limits=Limits(max_concurrent_streams=3))
    async with serving(service, options=options) as (_, port):
        client = await RawClient.connect(port)
        await client.send(*[headers(sid, "Hang") + message(sid) for sid in (1, 3, 5, 7)])
        assert await client.reset_code(7) is ErrorCode.REFUSED_STREAM


async def test_a_message_that_announces_too_much_is_resource_exhausted_before_it_arrives(service):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port)
        await client.send(headers(1), fr.frame(fr.DATA, 0, 1, fr.PREFIX.pack(0, 1 << 30) + b"x"))
        assert b"grpc-status\x018" in await client.until(fr.HEADERS, sid=1)
        assert await client.reset_code(1) is ErrorCode.NO_ERROR


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ([message(1, b"")[:9].replace(b"\x05", b"\x00", 1)], b"3"),  # no message at all
        ([fr.frame(fr.DATA, fr.END_STREAM, 1, fr.PREFIX.pack(0, 10) + b"short")], b"3"),
        ([fr.frame(fr.DATA, fr.END_STREAM, 1, b"\0\0")], b"3"),
        ([fr.frame(fr.DATA, fr.END_STREAM, 1, fr.PREFIX.pack(1, 2) + b"no")], b"3"),
        ([fr.frame(fr.DATA, fr.END_STREAM, 1, fr.PREFIX.pack(7, 2) + b"no")], b"3"),
    ],
)
async def test_a_call_that_is_not_one_whole_message_is_invalid(service, sent, status):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port)
        await client.send(headers(1), *sent)
        assert b"grpc-status\x01" + status in await client.until(fr.HEADERS, sid=1)


@pytest.mark.parametrize(("end", "extra", "status"), [
    (True, [], b"grpc-status\x013"),
    (True, [(b"grpc-timeout", b"soon")], b"grpc-status\x013"),
    (False, [(b"grpc-encoding", b"zstd")], b"grpc-accept-encoding"),
])  # fmt: skip
async def test_bad_requests_are_answered_with_the_right_status(service, end, extra, status):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port)
        await client.send(headers(1, end=end, extra=extra))
        assert status in await client.until(fr.HEADERS, sid=1)


async def test_a_wrong_content_type_is_http_415(service):
    block = hpack.METHOD_POST + hpack.SCHEME_HTTP + hpack.encode_path(b"/t.S/Echo")
    block += hpack.encode([(b"content-type", b"text/html")])
    async with serving(service) as (_, port):
        client = await RawClient.connect(port)
        await client.send(fr.frame(fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, 1, block))
        assert (await client.until(fr.HEADERS, sid=1)).startswith(hpack.encode_status(415))


async def test_anything_but_post_is_http_405(service):
    block = b"\x82" + hpack.SCHEME_HTTP + b"\x84"
    async with serving(service) as (_, port):
        client = await RawClient.connect(port)
        await client.send(fr.frame(fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, 1, block))
        assert (await client.until(fr.HEADERS, sid=1)).startswith(hpack.encode_status(405))


async def test_silence_instead_of_a_preface_ends_the_connection(service, autojump_clock):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port, hello=False)
        await client.closed()


async def test_a_preface_without_settings_ends_the_connection(service):
    async with serving(service, options=ServerOptions(handshake_timeout=0.5)) as (server, port):
        client = await RawClient.connect(port, hello=False)
        await client.send(fr.PREFACE)
        await client.closed()


async def test_a_peer_that_answers_no_ping_is_dropped_and_its_calls_are_cancelled(service):
    options = ServerOptions(keepalive_interval=0.1, keepalive_timeout=0.1)
    async with serving(service, options=options) as (_, port):
        client = await RawClient.connect(port)
        await client.send(headers(1, "Hang"), message(1))
        with trio.fail_after(20):
            await service.finished.wait()
        assert service.cancelled == ["/t.S/Hang"]


async def test_a_zero_window_holds_back_the_handler_and_not_the_connection(service):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port, settings={Setting.INITIAL_WINDOW_SIZE: 0})
        await client.send(headers(1, "Pour"), message(1))
        await client.settled()
        assert service.poured == 0
        await client.send(fr.window_update(1, 100))
        assert len(await client.until(fr.DATA, sid=1)) == 100
        await client.send(fr.rst_stream(1, ErrorCode.CANCEL))
        with trio.fail_after(5):
            await service.finished.wait()
        await client.settled()


async def test_a_window_that_stays_shut_ends_the_call(service):
    async with serving(service, options=ServerOptions(window_timeout=0.1)) as (_, port):
        client = await RawClient.connect(port, settings={Setting.INITIAL_WINDOW_SIZE: 0})
        await client.send(headers(1, "Pour"), message(1))
        with trio.fail_after(20):
            await service.finished.wait()
        await client.until(fr.HEADERS, sid=1)


async def test_a_peer_that_stops_reading_holds_one_chunk_and_loses_its_connection(service):
    async with serving(service, options=ServerOptions(stall_timeout=0.5)) as (server, port):
        huge = {Setting.INITIAL_WINDOW_SIZE: fr.MAX_WINDOW}
        client = await RawClient.connect(port, settings=huge)
        await client.send(fr.window_update(0, fr.MAX_WINDOW - fr.DEFAULT_WINDOW), headers(1, "Pour"), message(1))
        with trio.fail_after(30):
            await service.finished.wait()
        assert service.poured < 40 << 20  # what two kernel buffers hold, not what the window would allow
        await is_well(port)


async def test_a_peer_that_asks_and_never_reads_is_cut_off(service):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port)
        with trio.move_on_after(30) as scope:
            async with trio.open_nursery() as nursery:

                async def flood():
                    sid = 1
                    try:
                        while True:
                            bad = [(b"grpc-timeout", b"x" * 3000)]  # the answer repeats it
                            sent = [headers(each, end=True, extra=bad) for each in range(sid, sid + 400, 2)]
                            await client.stream.send_all(b"".join(sent))
                            sid += 400
                    except trio.BrokenResourceError:
                        nursery.cancel_scope.cancel()

                nursery.start_soon(flood)
        assert not scope.cancelled_caught
        await is_well(port)


async def test_two_hundred_slow_readers_cost_little_memory(service):
    async with serving(service) as (_, port):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        clients = []
        for _ in range(200):
            client = await RawClient.connect(port, settings={Setting.INITIAL_WINDOW_SIZE: 1024})
            await client.send(headers(1, "Pour"), message(1))
            clients.append(client)
        for client in clients:
            await client.until(fr.DATA, sid=1)
        # all handlers of this service send the same block of 1 MiB
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


async def test_many_one_byte_frames_of_a_message_arrive_whole(service):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port)
        text = bytes(range(256)) * 4
        whole = fr.PREFIX.pack(0, len(text)) + text
        frames = [fr.frame(fr.DATA, 0, 1, whole[i : i + 1]) for i in range(len(whole) - 1)]
        last = fr.frame(fr.DATA, fr.END_STREAM, 1, whole[-1:])
        await client.send(headers(1), *frames, last)
        assert await client.until(fr.DATA, sid=1) == whole


async def test_padding_is_removed_and_its_credit_returned(service):
    options = ServerOptions(limits=Limits(stream_window=65_535, connection_window=65_535))
    async with serving(service, options=options) as (_, port):
        client = await RawClient.connect(port)
        data = fr.PREFIX.pack(0, 5) + b"hello"
        padded = fr.frame(fr.DATA, fr.PADDED, 1, b"\xff" + b"" + bytes(255))
        for sid in range(1, 9, 2):
            await client.send(headers(sid, "Total"))
            await client.send(*[padded.replace(b"\0\0\0\1\xff", sid.to_bytes(4, "big") + b"\xff", 1)] * 200)
            await client.send(fr.frame(fr.DATA, fr.PADDED | fr.END_STREAM, sid, b"\x03" + data + bytes(3)))
            assert await client.until(fr.DATA, sid=sid) == fr.PREFIX.pack(0, 1) + b"5"

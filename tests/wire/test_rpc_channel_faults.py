"""What a server may do to a channel: it costs a call or a connection, never the channel, and is told as a GRPCError."""
# ruff: noqa: SIM117  # nested blocks say which ends first

import socket

import pytest
import trio
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError

from nl.pb import health
from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.channel import Channel
from nl.rpc.client_connection import ClientCall
from nl.rpc.errors import NotProcessed
from nl.rpc.options import ChannelOptions
from nl.rpc.origin import Endpoint
from nl.rpc.retry import RetryPolicy
from tests.wire.raw_server import only_trailers, raw_server, trailers


async def unary(channel, message=b"", *, reply_type=bytes, how="recv_message", **kwargs):
    async with channel.request("/t.S/Echo", Cardinality.UNARY_UNARY, bytes, reply_type, **kwargs) as stream:
        await stream.send_message(message, end=True)
        return await getattr(stream, how)()


async def read_body(channel):
    async with channel.request("/t.S/Echo", Cardinality.UNARY_UNARY, bytes, bytes) as stream:
        await stream.send_message(b"", end=True)
        body = await stream.receive_body()
        got = b""
        while parts := await body.receive_parts():
            got += b"".join(map(bytes, parts))
        return got


def status_block(value):
    return b"\x08" + hpack._length(len(value)) + value


def message(data):
    return fr.PREFIX.pack(0, len(data)) + data


def headers(block, *, end=False):
    return lambda sid: fr.header_frames(block, sid, end_stream=end, max_frame=16384)


def data(payload, *, end=False):
    return lambda sid: fr.frame(fr.DATA, fr.END_STREAM if end else 0, sid, payload)


HEAD = headers(hpack.RESPONSE)
ODD = {
    "a status of 5,000 digits": [headers(status_block(b"9" * 5000), end=True)],
    "a status that is none": [headers(status_block(b"-20"), end=True)],
    "a short 1xx": [headers(status_block(b"1"), end=True)],
    "a grpc-status of 5,000 digits": [
        headers(hpack.RESPONSE + hpack.encode([(b"grpc-status", b"9" * 5000)]), end=True),
    ],
    "a grpc-status with a sign": [headers(hpack.RESPONSE + hpack.encode([(b"grpc-status", b"+0")]), end=True)],
    "no status": [HEAD, data(b"", end=True)],
    "data without headers": [data(b"", end=True)],
    "another content-type": [
        headers(hpack.STATUS_200 + hpack.encode([(b"content-type", b"t" * 9000)])),
        data(b"<html>", end=True),
    ],
    "a compressed message without an encoding": [HEAD, data(b"\x01\0\0\0\1x")],
    "a message that is no gzip": [
        headers(hpack.RESPONSE + hpack.encode([(b"grpc-encoding", b"gzip")])),
        data(b"\x01\0\0\0\1x"),
    ],
    "an unknown encoding": [
        headers(hpack.RESPONSE + hpack.encode([(b"grpc-encoding", b"zz")])),
        data(b"\x01\0\0\0\1x"),
    ],
    "a message over the limit": [HEAD, data(fr.PREFIX.pack(0, 1 << 30))],
    "half a message": [HEAD, data(b"\0\0\0\0\5ab", end=True)],
    "half a prefix": [HEAD, data(b"\0\0", end=True)],
    "a -bin header that is no base64": [
        headers(hpack.RESPONSE + hpack.encode([(b"x-bin", b"***")])),
        data(message(b"x")),
        lambda sid: trailers(sid, 0),
    ],
    "a -bin trailer that is no base64": [
        HEAD, data(message(b"x")), lambda sid: trailers(sid, 0, (b"x-bin", b"***")),
    ],
    "details that are none": [lambda sid: only_trailers(sid, 5, (b"grpc-status-details-bin", b"/w"))],
    "a pseudo-header in the trailers": [HEAD, headers(status_block(b"200"), end=True)],
    "a name with capitals": [headers(hpack.RESPONSE + hpack.encode([(b"X-Y", b"z")]), end=True)],
    "a name that is no ASCII": [headers(hpack.RESPONSE + hpack.encode([(b"x-\xff", b"z")]), end=True)],
    "a header block that is none": [headers(b"\xff\xff\xff\xff\xff\xff\xff\xff")],
    "a header list over the limit": [headers(hpack.RESPONSE + hpack.encode([(b"x", b"y" * 17_000)]), end=True)],
    "a frame that is too large": [lambda sid: fr.header(1 << 20, fr.DATA, 0, sid)],
    "a push": [lambda sid: fr.frame(fr.PUSH_PROMISE, 0, sid, b"\0\0\0\2")],
    "headers of a stream that nobody opened": [lambda sid: headers(hpack.RESPONSE, end=True)(99)],
    "a reset with a code that is none": [lambda sid: fr.rst_stream(sid, 0xFFFF)],
    "a goaway with a code that is none": [lambda sid: fr.goaway(0, 0xFFFF)],
    "a connection that is cut": [lambda sid: b"\0"],
}


@pytest.mark.parametrize("how", ["recv_message", "receive_body"])
@pytest.mark.parametrize("name", ODD)
async def test_whatever_a_server_sends_is_a_grpc_error_and_the_next_call_works(name, how):
    async def script(connection):
        await connection.greet()
        sid = await connection.request()
        if connection.number == 1 and sid == 1:
            await connection.send(*[each(sid) for each in ODD[name]])
            if name == "a connection that is cut":
                return
            sid = await connection.request()
        while sid:
            await connection.reply(sid, b"fine")
            sid = await connection.request()

    call = read_body if how == "receive_body" else unary
    async with raw_server(script) as server, Channel(f"127.0.0.1:{server.port}") as channel:
        with trio.fail_after(20):
            if name in {"a -bin trailer that is no base64"}:  # only seen by those who ask for trailers
                how = "recv_trailing_metadata"
                with pytest.raises(GRPCError):
                    await unary(channel, how=how)
            else:
                with pytest.raises(GRPCError) as caught:
                    await call(channel)
                assert len(caught.value.message or "") < 500
            assert await unary(channel, b"again") == b"fine"


ONLY_THE_CALL = [name for name in ODD if "status" in name or "message" in name or "-bin" in name or name == "no status"]


@pytest.mark.parametrize("name", ONLY_THE_CALL)
async def test_an_odd_answer_costs_its_call_and_not_the_connection(name):
    async def script(connection):
        await connection.greet()
        sid = await connection.request()
        await connection.send(*[each(sid) for each in ODD[name]])
        while (sid := await connection.request()) is not None:
            await connection.reply(sid, b"fine")

    async with raw_server(script) as server, Channel(f"127.0.0.1:{server.port}") as channel:
        with trio.fail_after(20):
            with pytest.raises(GRPCError):
                await unary(channel, how="recv_trailing_metadata" if "trailer" in name else "recv_message")
            assert await unary(channel) == b"fine"
        assert server.accepted == 1


async def test_a_mistake_of_ours_while_reading_costs_the_connection_and_is_logged(monkeypatch, caplog):
    async def script(connection):
        await connection.greet()
        while (sid := await connection.request()) is not None:
            await connection.reply(sid, b"fine")

    def broken(self, status, fields):
        raise ZeroDivisionError("ours")

    async with raw_server(script) as server, Channel(f"127.0.0.1:{server.port}") as channel:
        with trio.fail_after(20):
            with monkeypatch.context() as patch:
                patch.setattr(ClientCall, "_check_response", broken)
                with pytest.raises(GRPCError, match="ZeroDivisionError"):
                    await unary(channel)
            assert await unary(channel) == b"fine"
        assert server.accepted == 2
    assert "Traceback" in caplog.text


async def test_a_call_is_not_sent_again_when_its_answer_has_begun_while_it_was_being_sent():
    requests = []

    async def script(connection):
        await connection.greet()
        while (sid := await connection.request()) is not None:
            requests.append(sid)
            await connection.send(HEAD(sid), trailers(sid, 14))

    policy = RetryPolicy(max_retries=3, delay=0.01, methods=frozenset({"/t.S/Echo"}))
    options = ChannelOptions(retry=policy)
    async with raw_server(script) as server, Channel(f"127.0.0.1:{server.port}", options=options) as channel:
        with trio.fail_after(20), pytest.raises(GRPCError) as caught:
            await unary(channel, bytes(1_000_000))  # the window is 65,535 bytes
    assert caught.value.status is Status.UNAVAILABLE
    assert len(requests) == 1


async def test_a_reply_that_cannot_be_decoded_is_internal_and_names_the_method():
    async def script(connection):
        await connection.greet()
        await connection.reply(await connection.request(), b"\xff\xff")
        await connection.to_the_end()

    async with raw_server(script) as server, Channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(GRPCError, match="/t.S/Echo") as caught:
            await unary(channel, reply_type=health.HealthCheckResponse)
    assert caught.value.status is Status.INTERNAL


async def test_the_deadline_holds_inside_of_a_body():
    async def script(connection):
        await connection.greet()
        sid = await connection.request()
        await connection.send(HEAD(sid), data(fr.PREFIX.pack(0, 100) + b"x")(sid))
        await connection.to_the_end()

    async with raw_server(script) as server, Channel(f"127.0.0.1:{server.port}") as channel:
        with trio.fail_after(20), pytest.raises(GRPCError) as caught:
            async with channel.request("/t.S/E", Cardinality.UNARY_UNARY, bytes, bytes, timeout=0.3) as stream:
                await stream.send_message(b"", end=True)
                body = await stream.receive_body()
                while await body.receive_parts():
                    pass
    assert caught.value.status is Status.DEADLINE_EXCEEDED


async def test_ten_calls_to_a_dead_port_fail_together_after_one_attempt():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        options = ChannelOptions(backoff_initial=5)
        errors = []

        async def one():
            try:
                await unary(channel)
            except NotProcessed as exc:
                errors.append(exc)

        async with Channel(f"127.0.0.1:{port}", options=options) as channel:
            with trio.fail_after(4):
                async with trio.open_nursery() as nursery:
                    for _ in range(10):
                        nursery.start_soon(one)
                await one()  # within the pause: the same answer, without an attempt
            assert channel.statistics().addresses[f"127.0.0.1:{port}"].attempts == 1
        assert len(set(map(id, errors))) == len(errors) == 11
        assert all(f"127.0.0.1:{port}: Connection refused" in exc.message for exc in errors)


async def test_a_server_that_says_goaway_at_once_gets_a_pause_that_grows():
    async def script(connection):
        await connection.send(fr.settings({}), fr.goaway(0, 0))
        await connection.to_the_end()

    options = ChannelOptions(backoff_initial=0.1, backoff_jitter=0)
    async with raw_server(script) as server, Channel(f"127.0.0.1:{server.port}", options=options) as channel:
        with pytest.raises(NotProcessed, match="going away"):
            await unary(channel)
        assert server.accepted == 1
        with pytest.raises(GRPCError) as caught:  # 0.1 s, 0.2 s, 0.4 s, ...
            await unary(channel, wait_for_ready=True, timeout=1)
        assert caught.value.status is Status.DEADLINE_EXCEEDED
        assert 2 <= server.accepted <= 5


async def test_a_server_that_takes_no_call_and_goes_away_gets_a_pause():
    async def script(connection):
        await connection.greet()
        await connection.request()
        await connection.send(fr.goaway(0, 0))
        await connection.to_the_end()

    options = ChannelOptions(backoff_initial=60)
    async with raw_server(script) as server, Channel(f"127.0.0.1:{server.port}", options=options) as channel:
        for _ in range(5):
            with pytest.raises(NotProcessed, match="going away"):
                await unary(channel)
        assert server.accepted == 2


@pytest.mark.parametrize("goaway", [False, True])
async def test_a_connection_that_drains_keeps_its_keepalive(goaway):
    async def script(connection):
        await connection.greet()
        sid = await connection.request()
        if connection.number == 1:
            if goaway:
                await connection.send(fr.goaway(sid, 0))
            await trio.sleep_forever()  # answers no PING
        await connection.reply(sid, b"new")
        await connection.to_the_end()

    options = ChannelOptions(keepalive_interval=0.5, keepalive_timeout=0.5)
    async with raw_server(script) as server, Channel(f"127.0.0.1:{server.port}", options=options) as channel:

        async def hanging():
            with pytest.raises(GRPCError, match="keepalive"):
                await unary(channel)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hanging)
                if goaway:
                    while not channel.statistics().draining:
                        await trio.sleep(0.01)
                    assert await unary(channel) == b"new"


async def test_refused_streams_and_those_above_a_goaway_are_not_processed():
    async def script(connection):
        await connection.greet()
        sid = await connection.request()
        if sid is None:
            return
        if connection.number == 1:
            await connection.send(fr.rst_stream(sid, fr.ErrorCode.REFUSED_STREAM))
            sid = await connection.request()
            await connection.send(fr.goaway(sid - 2, 0))
        else:
            await connection.send(fr.rst_stream(sid, fr.ErrorCode.INTERNAL_ERROR))
        await connection.to_the_end()

    async with raw_server(script) as server, Channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(NotProcessed, match="REFUSED_STREAM"):
            await unary(channel)
        with pytest.raises(NotProcessed, match="going away"):
            await unary(channel)
        with pytest.raises(GRPCError) as caught:
            await unary(channel)
        assert not isinstance(caught.value, NotProcessed)


async def test_a_closed_channel_says_so():
    channel = Channel("127.0.0.1:1")
    with pytest.raises(NotProcessed, match="not open"):
        await unary(channel)
    async with channel:
        pass
    with pytest.raises(NotProcessed, match="not open"):
        await unary(channel)
    assert channel.statistics().connections == 0


async def test_a_server_that_is_pinged_too_often_is_pinged_half_as_often_from_then_on():
    asked = []

    async def script(connection):
        await connection.greet()
        await connection.request()
        began = trio.current_time()
        while (frame := await connection.frame()) is not None:
            if frame[0] == fr.PING:
                asked.append(trio.current_time() - began)
                await connection.send(fr.goaway(0, fr.ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings"))

    options = ChannelOptions(keepalive_interval=0.9, backoff_initial=0.01)
    async with raw_server(script) as server, Channel(f"127.0.0.1:{server.port}", options=options) as channel:
        for _ in range(2):
            with trio.fail_after(20), pytest.raises(NotProcessed, match="ENHANCE_YOUR_CALM"):
                await unary(channel, wait_for_ready=True)
    assert asked[1] >= 1.7


@pytest.mark.parametrize(("size", "packed"), [(1023, 0), (1024, 1), (200_000, 1)])
async def test_only_requests_that_are_worth_it_are_packed(size, packed):
    flags = []

    async def script(connection):
        await connection.greet()
        sid = await connection.request()
        while (frame := await connection.frame())[0] != fr.DATA:
            pass
        flags.append(frame[3][0])
        await connection.reply(sid, b"got it")
        await connection.to_the_end()

    async with raw_server(script) as server:
        async with Channel([Endpoint(f"127.0.0.1:{server.port}", compression="gzip")]) as channel:
            assert await unary(channel, b"z" * size) == b"got it"
    assert flags == [packed]

"""A listener as a whole: who makes room when it is full, who waits, and what HTTP/1.1 beside gRPC gets."""

import pytest
import trio

from nl.rpc import frames as fr
from nl.rpc import server as rpc_server
from nl.rpc.options import ServerOptions
from nl.web.server import HttpLimits, HttpServer, Response, Route
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


async def test_an_idle_http_1_connection_makes_room_as_well(monkeypatch):
    monkeypatch.setattr(rpc_server, "IDLE_S", 0.05)
    http1 = HttpServer({}).serve
    async with serving(RawService(), options=ServerOptions(max_connections=2), http1=http1) as (_, port):
        kept = [await raw(port, b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(2)]
        for each in kept:
            assert (await each.receive_some()).startswith(b"HTTP/1.1 404")
        late = await RawClient.connect(port)
        with trio.fail_after(10):
            await late.settled()
            assert await kept[0].receive_some() == b""
        await kept[1].send_all(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await kept[1].receive_some()).startswith(b"HTTP/1.1 404")
        for each in kept:
            await each.aclose()


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


async def raw(port, data):
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(data)
    return stream


async def answer_to(port, data):
    """Everything that comes back until the end."""
    stream = await raw(port, data)
    async with stream:
        with trio.fail_after(10):
            try:
                return b"".join([chunk async for chunk in stream])
            except trio.BrokenResourceError:
                return b""


@pytest.mark.parametrize("broken", [b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", b"PRI * HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_a_preface_that_went_wrong_is_not_answered_in_http_1(broken):
    async def page(request):
        return Response(body=b"page")

    http1 = HttpServer({"/": Route(page), "*": Route(page)}).serve
    async with serving(RawService(), http1=http1) as (_, port):
        assert await answer_to(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert await answer_to(port, broken) == b""


async def test_the_answer_to_an_upload_that_is_not_wanted_arrives_before_the_connection_ends():
    """TCP would take it back, with a reset, if the server closed while bytes of the client are unread."""
    async def wants_none(request):
        return Response(status=403, body=b"not here")

    http1 = HttpServer({"/": Route(wants_none, frozenset({"PUT"}))}, limits=HttpLimits(max_body=1000)).serve
    async with serving(RawService(), http1=http1) as (_, port):
        for _ in range(5):
            head = f"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 20}\r\n\r\n".encode()
            stream = await raw(port, head + bytes(300_000))
            await trio.sleep(0.05)
            with trio.fail_after(10):
                await stream.send_eof()
                assert b"".join([chunk async for chunk in stream]).endswith(b"not here")
            await stream.aclose()


async def test_what_http_1_clients_do_not_read_counts_and_ends_the_largest_of_them():
    async def big(request):
        return Response(body=bytes(96 << 20))

    http1 = HttpServer({"/big": Route(big)}).serve
    options = ServerOptions(max_held=200 << 20)
    async with serving(RawService(), options=options, http1=http1) as (server, port):
        streams = [await raw(port, b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(3)]
        with trio.fail_after(30):
            while (server.statistics()["accepted"], server.statistics()["connections"]) != (3, 2):
                await trio.sleep(0.01)
        await trio.sleep(1.2)
        assert server.statistics()["http1_connections"] == 2
        assert 2 * (96 << 20) <= server.statistics()["held_bytes"] <= options.max_held
        for stream in streams:
            await trio.aclose_forcefully(stream)


async def test_an_http_1_request_in_progress_has_the_grace_and_an_idle_connection_goes_at_once():
    working, go = trio.Event(), trio.Event()

    async def slow(request):
        working.set()
        await go.wait()
        return Response(body=b"done")

    http1 = HttpServer({"/slow": Route(slow)}).serve
    async with serving(RawService(), http1=http1) as (server, port), trio.open_nursery() as nursery:
        idle = await raw(port, b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await idle.receive_some()).startswith(b"HTTP/1.1 404")
        busy = await raw(port, b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await working.wait()
        nursery.start_soon(server.shutdown, 30)
        with trio.fail_after(5):
            assert await idle.receive_some() == b""
        go.set()
        with trio.fail_after(5):
            answer = b"".join([chunk async for chunk in busy])
        assert answer.endswith(b"done")
        await idle.aclose()
        await busy.aclose()


async def test_an_http_1_request_that_outlives_the_grace_is_cut():
    async def stuck(request):
        await trio.sleep_forever()

    http1 = HttpServer({"/": Route(stuck)}).serve
    async with serving(RawService(), http1=http1) as (server, port):
        stream = await raw(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with trio.fail_after(10):
            while server.statistics()["http1_connections"] != 1:
                await trio.sleep(0.01)
            await server.shutdown(0.2)
            assert await stream.receive_some() == b""
        await stream.aclose()

"""The HTTP/1.1 side, spoken to in bytes."""

import socket

import pytest
import trio
import trio.testing

from nl.rpc.leaving import Leaving
from nl.rpc.transport import SocketTransport
from nl.rpc.transport_stream import TransportStream
from nl.web import connection
from nl.web.server import HttpLimits, HttpServer, Response, Route


async def hello(request):
    return Response(body=f"{request.method} {request.path}?{request.query}".encode())


async def echo(request):
    return Response(body=await request.read())


async def pieces(request):
    async def body():
        for _ in range(3):
            yield b"piece"

    return Response(body=body())


async def broken(request):
    raise RuntimeError("secret")


ROUTES = {
    "/hello": Route(hello), "/sub/": Route(hello), "/echo": Route(echo, frozenset({"PUT", "POST"})),
    "/pieces": Route(pieces), "/broken": Route(broken),
}  # fmt: skip


def stream_pair(leaving=None):
    """A client's end, and the stream that the server is given."""
    ours, theirs = socket.socketpair()
    transport = SocketTransport(theirs, unsent_max=1 << 20)
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), TransportStream(transport, leaving=leaving)


async def talk(*sent, limits=None, first=b"", routes=ROUTES):
    """Everything that the server answers until it closes or the client has nothing more to say."""
    client, server = stream_pair()
    received = bytearray()

    async def serve():
        await HttpServer(routes, limits=limits).serve(server, first)
        await trio.aclose_forcefully(server)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        for data in sent:
            await client.send_all(data)
        await client.send_eof()
        async for chunk in client:
            received += chunk
    await client.aclose()
    return bytes(received)


def get(path, method="GET", extra=""):
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{extra}\r\n".encode()


async def test_a_route_answers_and_the_connection_is_kept():
    answer = await talk(get("/hello?a=1") + get("/sub/deep"))
    assert answer.count(b"HTTP/1.1 200") == 2
    assert b"GET /hello?a=1" in answer and answer.endswith(b"GET /sub/deep?")


async def test_bytes_that_were_read_already_count():
    assert b"GET /hello?" in await talk(get("/hello")[10:], first=get("/hello")[:10])


async def test_head_has_the_headers_of_get_and_no_body():
    answer = await talk(get("/hello", "HEAD"))
    assert b"Content-Length: 12" in answer.title() and answer.endswith(b"\r\n\r\n")


async def test_an_unknown_path_is_404_and_names_it():
    answer = await talk(get("/nothing?x=1"))
    assert answer.startswith(b"HTTP/1.1 404") and answer.endswith(b"No route for /nothing?x=1")


async def test_a_wrong_method_is_405_and_names_the_right_ones():
    answer = await talk(get("/echo"))
    assert answer.startswith(b"HTTP/1.1 405") and b"POST, PUT" in answer


async def test_a_body_is_read():
    answer = await talk(get("/echo", "PUT", "Content-Length: 5\r\n"), b"hello")
    assert answer.endswith(b"\r\n\r\nhello")


async def test_a_body_over_the_limit_is_413():
    limits = HttpLimits(max_body=10)
    answer = await talk(get("/echo", "PUT", "Content-Length: 50\r\n"), bytes(50), limits=limits)
    assert answer.startswith(b"HTTP/1.1 413")


async def test_an_iterator_is_sent_in_chunks():
    answer = await talk(get("/pieces"))
    assert b"chunked" in answer.lower() and answer.count(b"piece") == 3


async def test_a_broken_page_is_500_and_keeps_its_secret():
    answer = await talk(get("/broken") + get("/hello"))
    assert answer.startswith(b"HTTP/1.1 500") and b"secret" not in answer
    assert b"HTTP/1.1 200" in answer


@pytest.mark.parametrize("rubbish", [b"\x00\x01\x02\r\n\r\n", b"INVALID CONNECTION PREFACE\r\n\r\n"])
async def test_what_is_no_http_gets_no_answer(rubbish):
    assert await talk(rubbish) == b""


@pytest.mark.parametrize("rubbish", [b"GET / HTTP/9\r\n\r\n", b"GET /" + b"a" * 70_000])
async def test_rubbish_is_refused(rubbish):
    answer = await talk(rubbish)
    assert answer.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("answered", [0, 1])
async def test_a_connection_without_a_request_ends_after_the_time_for_idle_ones(autojump_clock, answered):
    client, server = stream_pair()
    await client.send_all(get("/hello") * answered)
    with trio.fail_after(100):
        await HttpServer(ROUTES, limits=HttpLimits(idle_timeout=50, header_timeout=5, stall_timeout=7)).serve(server)
    assert trio.current_time() == pytest.approx(50, abs=1)
    await client.aclose()
    await trio.aclose_forcefully(server)


async def drip(client, data, *, every):
    """Sends a byte at a time for as long as somebody takes them; when that ended."""
    try:
        for at in range(len(data)):
            await client.send_all(data[at : at + 1])
            await trio.sleep(every)
    except trio.BrokenResourceError:
        pass
    return trio.current_time()


async def test_a_head_that_comes_byte_by_byte_has_the_time_of_one_head_and_no_more(autojump_clock, nursery):
    client, server = stream_pair()
    limits = HttpLimits(header_timeout=10, stall_timeout=60, idle_timeout=75, handler_timeout=300)
    nursery.start_soon(closing(HttpServer(ROUTES, limits=limits).serve, server))
    assert 10 <= await drip(client, get("/hello", extra="X: " + "x" * 500 + "\r\n"), every=3) < 20
    await client.aclose()


async def test_the_rest_of_a_body_that_nobody_read_is_waited_for_as_long_as_for_a_head(autojump_clock, nursery):
    client, server = stream_pair()
    limits = HttpLimits(header_timeout=10, stall_timeout=60, idle_timeout=75, handler_timeout=300)
    site = HttpServer({"/hello": Route(hello, frozenset({"PUT"}))}, limits=limits)
    nursery.start_soon(closing(site.serve, server))
    await client.send_all(get("/hello", "PUT", "Content-Length: 500\r\n"))
    assert (await client.receive_some()).startswith(b"HTTP/1.1 200")
    assert 10 <= await drip(client, bytes(500), every=3) < 20
    await client.aclose()


async def test_a_connection_ends_after_its_last_request():
    answer = await talk(get("/hello") * 5, limits=HttpLimits(max_requests=2))
    assert answer.count(b"HTTP/1.1 200") == 2 and b"close" in answer.lower()


async def test_a_route_that_works_at_lame_duck_finishes_and_says_that_it_was_the_last(nursery):
    leaving, working, go = Leaving(), trio.Event(), trio.Event()

    async def slow(request):
        working.set()
        await go.wait()
        return Response(body=b"done")

    client, server = stream_pair(leaving)
    nursery.start_soon(closing(HttpServer({"/slow": Route(slow)}).serve, server))
    await client.send_all(get("/slow"))
    await working.wait()
    leaving.begin()
    go.set()
    answer = b"".join([chunk async for chunk in client])
    assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer.lower() and answer.endswith(b"done")
    await client.aclose()


async def test_a_kept_connection_without_a_request_ends_at_once_at_lame_duck(nursery):
    leaving = Leaving()
    client, server = stream_pair(leaving)
    nursery.start_soon(closing(HttpServer(ROUTES).serve, server))
    await client.send_all(get("/hello"))
    assert (await client.receive_some()).startswith(b"HTTP/1.1 200")
    leaving.begin()
    with trio.fail_after(2):
        assert await client.receive_some() == b""
    await client.aclose()


async def test_a_request_that_has_begun_to_arrive_at_lame_duck_is_answered(nursery):
    leaving = Leaving()
    client, server = stream_pair(leaving)
    nursery.start_soon(closing(HttpServer(ROUTES).serve, server))
    await client.send_all(get("/hello")[:10])
    await trio.testing.wait_all_tasks_blocked()
    await trio.testing.wait_all_tasks_blocked(0.05)
    leaving.begin()
    await client.send_all(get("/hello")[10:])
    answer = b"".join([chunk async for chunk in client])
    assert answer.startswith(b"HTTP/1.1 200")
    await client.aclose()


def closing(serve, stream):
    """As rpc.Server does: the stream ends with its server."""

    async def run():
        try:
            await serve(stream)
        finally:
            await trio.aclose_forcefully(stream)

    return run


async def test_a_download_may_take_longer_than_any_timeout_as_long_as_it_moves(autojump_clock):
    limits = HttpLimits(stall_timeout=5, handler_timeout=20)

    async def drip(request):
        async def body():
            for _ in range(10):
                await trio.sleep(15)
                yield b"drop"

        return Response(body=body(), length=40)

    client, server = stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(closing(HttpServer({"/drip": Route(drip)}, limits=limits).serve, server))
        await client.send_all(get("/drip", extra="Connection: close\r\n"))
        answer = b"".join([chunk async for chunk in client])
    assert answer.endswith(b"drop" * 10)
    assert trio.current_time() >= 150
    await client.aclose()


async def test_an_upload_may_take_longer_than_any_timeout_as_long_as_it_moves(autojump_clock):
    client, server = stream_pair()
    site = HttpServer(ROUTES, limits=HttpLimits(header_timeout=5, stall_timeout=17, handler_timeout=20))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(closing(site.serve, server))
        await client.send_all(get("/echo", "PUT", "Content-Length: 10\r\nConnection: close\r\n"))
        assert await drip(client, b"0123456789", every=15) >= 150
        answer = b"".join([chunk async for chunk in client])
    assert answer.endswith(b"\r\n\r\n0123456789")
    await client.aclose()


async def test_a_route_that_does_nothing_for_too_long_is_cut(autojump_clock):
    async def stuck(request):
        await trio.sleep_forever()

    client, server = stream_pair()
    site = HttpServer({"/": Route(stuck)}, limits=HttpLimits(handler_timeout=20))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(closing(site.serve, server))
        await client.send_all(get("/"))
        assert b"".join([chunk async for chunk in client]) == b""
    assert 20 <= trio.current_time() < 30
    await client.aclose()


async def test_a_client_that_takes_nothing_is_let_go_and_what_was_held_for_it_is_counted(autojump_clock):
    limits = HttpLimits(stall_timeout=5)

    async def big(request):
        return Response(body=bytes(64 << 20))

    client, server = stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HttpServer({"/big": Route(big)}, limits=limits).serve, server)
        await client.send_all(get("/big"))
        await trio.sleep(4)
        assert server.held == 64 << 20
    assert server.held == 0
    assert trio.current_time() < 20
    await client.aclose()
    await trio.aclose_forcefully(server)


async def test_a_body_that_stops_coming_ends_the_request_and_frees_what_was_read(autojump_clock):
    client, server = stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HttpServer(ROUTES, limits=HttpLimits(stall_timeout=5)).serve, server)
        await client.send_all(get("/echo", "PUT", "Content-Length: 5000\r\n") + bytes(4000))
        await trio.sleep(2)
        assert server.held == 4000
    assert server.held == 0
    assert trio.current_time() < 20  # and it is this limit that has ended it, not the one of the route
    await client.aclose()
    await trio.aclose_forcefully(server)


async def test_head_of_an_iterator_has_its_length_and_runs_its_end():
    ended = []

    async def pieces():
        try:
            yield b"x" * 7
        finally:
            ended.append(True)

    async def route(request):
        body = pieces()
        await anext(body)
        return Response(body=body, length=7)

    client, server = stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(closing(HttpServer({"/": Route(route)}).serve, server))
        await client.send_all(get("/", "HEAD", "Connection: close\r\n"))
        answer = b"".join([chunk async for chunk in client])
    assert b"content-length: 7" in answer.lower() and answer.endswith(b"\r\n\r\n")
    assert ended
    await client.aclose()


@pytest.mark.parametrize("status", [204, 304])
async def test_what_has_no_body_has_no_length_either(status):
    async def route(request):
        return Response(status=status)

    client, server = stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(closing(HttpServer({"/": Route(route)}).serve, server))
        await client.send_all(get("/", extra="Connection: close\r\n"))
        answer = b"".join([chunk async for chunk in client])
    assert answer.startswith(f"HTTP/1.1 {status}".encode())
    assert b"content-" not in answer.lower() and b"transfer-encoding" not in answer.lower()
    await client.aclose()


async def test_an_answer_to_an_upload_that_was_not_read_arrives(nursery):
    client, server = stream_pair()
    nursery.start_soon(closing(HttpServer(ROUTES, limits=HttpLimits(max_body=10)).serve, server))
    await client.send_all(get("/echo", "PUT", f"Content-Length: {1 << 20}\r\n") + bytes(100_000))
    answer = b"".join([chunk async for chunk in client])
    assert answer.startswith(b"HTTP/1.1 413")
    await client.aclose()


@pytest.mark.parametrize(("size", "status"), [(9, 200), (10, 200), (11, 413)])
async def test_how_large_a_body_may_be(size, status):
    upload = get("/echo", "PUT", f"Content-Length: {size}\r\n") + bytes(size)
    answer = await talk(upload, limits=HttpLimits(max_body=10))
    assert answer.startswith(b"HTTP/1.1 %d" % status)
    assert (b"body over 10 bytes" in answer) is (status == 413)


@pytest.mark.parametrize(("size", "again"), [(10, True), (11, False), (100, False)])
async def test_a_body_that_nobody_reads_is_dropped_up_to_that_size_and_else_the_connection_ends(size, again):
    unread = get("/hello", "GET", f"Content-Length: {size}\r\n") + bytes(size)
    first = bytes(unread[: -size or None])
    answer = await talk(first, *[b"x"] * size, get("/hello?again"), limits=HttpLimits(max_body=10))
    assert answer.count(b"HTTP/1.1 200") == 1 + again


def test_what_a_connection_may_cost_that_says_nothing():
    limits = HttpLimits()
    assert (limits.header_timeout, limits.idle_timeout, limits.stall_timeout) == (10.0, 75.0, 60.0)
    assert (limits.handler_timeout, limits.max_body, limits.max_requests) == (300.0, 1 << 20, 1000)
    assert (connection.MAX_HEADERS, connection.SEND_SIZE, connection.LINGER_S) == (16_384, 65_536, 1.0)


async def test_the_longest_prefix_has_the_path_and_an_exact_one_goes_before_all():
    def route(name):
        async def answer(request):
            return Response(body=name)

        return Route(answer)

    routes = {"/a/": route(b"short"), "/a/b/": route(b"long"), "/a/b/c": route(b"exact"), "/": route(b"any")}
    found = []
    for path in ("/a/x", "/a/b/x", "/a/b/c", "/a/b/c/d", "/a/b", "/a", "/"):
        found.append((await talk(get(path), routes=routes)).rpartition(b"\r\n\r\n")[2])
    assert found == [b"short", b"long", b"exact", b"long", b"short", b"any", b"any"]


@pytest.mark.parametrize(("beyond", "status"), [(-200, 200), (200, 431)])
async def test_how_long_a_head_may_be_before_it_is_whole(beyond, status):
    head = get("/hello", extra=f"X: {'x' * (connection.MAX_HEADERS + beyond)}\r\n")
    assert (await talk(head[-2:], first=head[:-2])).startswith(b"HTTP/1.1 %d" % status)


async def test_of_headers_of_one_name_the_first_counts_and_one_that_is_not_there_is_none():
    seen = []

    async def look(request):
        seen.extend([request.header("x-a"), request.header("x-b"), request.method, request.query])
        return Response()

    head = get("/look?q=1&r=?", extra="X-A: caf\u00e9\r\nx-a: 2\r\n").decode().encode("latin-1")
    assert (await talk(head, routes={"/look": Route(look)})).startswith(b"HTTP/1.1 200")
    assert seen == ["caf\u00e9", None, "GET", "q=1&r=?"]


async def test_the_last_request_of_a_connection_says_so():
    limits = HttpLimits(max_requests=2)
    answer = await talk(get("/hello") * 3, limits=limits)
    first, second = answer.split(b"HTTP/1.1 200")[1:]
    assert b"close" not in first.lower()
    assert b"connection: close" in second.lower()


async def test_a_wrong_method_of_a_page_names_head_too():
    answer = await talk(get("/hello", "DELETE"))
    assert answer.startswith(b"HTTP/1.1 405")
    assert b"allow: GET, HEAD\r\n" in answer.replace(b"Allow", b"allow")
    assert b"DELETE is not one of GET, HEAD" in answer


async def test_a_client_that_is_gone_is_one_line(caplog):
    caplog.set_level("INFO", "nl.web")
    client, server = stream_pair()
    await client.send_all(get("/echo", "PUT", "Content-Length: 5\r\n"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HttpServer(ROUTES, limits=HttpLimits(stall_timeout=0.05)).serve, server)
    await client.aclose()
    await trio.aclose_forcefully(server)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == ["nothing has moved for 0.05 s"]


async def test_a_body_that_breaks_the_protocol_is_the_clients_mistake_and_not_ours(caplog):
    head = get("/echo", "PUT", "Transfer-Encoding: chunked\r\n")
    answer = await talk(head + b"5\r\nhello\r\nnonsense\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"bad request: " in answer
    assert caplog.records == []


async def test_a_client_that_has_gone_in_the_middle_of_its_body_is_one_line_and_no_error(caplog):
    caplog.set_level("INFO", "nl.web")
    client, server = stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HttpServer(ROUTES).serve, server)
        await client.send_all(get("/echo", "PUT", "Content-Length: 50\r\nExpect: 100-continue\r\n"))
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()  # what it was told to go on with is unread: a reset
    await trio.aclose_forcefully(server)
    assert [record.levelname for record in caplog.records] == ["INFO"]

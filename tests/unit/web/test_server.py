"""The HTTP/1.1 side, spoken to in bytes."""

import pytest
import trio
from trio.testing import memory_stream_pair

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


async def talk(*sent, limits=None, first=b""):
    """Everything that the server answers until it closes or the client has nothing more to say."""
    client, server = memory_stream_pair()
    received = bytearray()

    async def serve():
        await HttpServer(ROUTES, limits=limits).serve(server, first)
        await server.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        for data in sent:
            await client.send_all(data)
        await client.send_stream.aclose()
        async for chunk in client.receive_stream:
            received += chunk
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


async def test_silence_ends_the_connection(autojump_clock):
    client, server = memory_stream_pair()
    await HttpServer(ROUTES).serve(server)
    assert trio.current_time() >= HttpLimits().header_timeout
    await client.aclose()


async def test_a_connection_ends_after_its_last_request():
    answer = await talk(get("/hello") * 5, limits=HttpLimits(max_requests=2))
    assert answer.count(b"HTTP/1.1 200") == 2 and b"close" in answer.lower()

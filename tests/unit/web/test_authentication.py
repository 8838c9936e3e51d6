"""Who asks over HTTP/1.1, and what is answered to those who may not."""

import h11
import pytest
import trio

from nl.errors import UnauthenticatedError, UnavailableError
from nl.model.access import Grant, Identity, Right
from nl.web.server import HttpServer, Response, Route
from tests.unit.web.test_server import stream_pair

READER = Identity("reader", [Grant(("main",), Right.READ_CAS)])
NOBODY = Identity("anonymous", [], is_anonymous=True)


def authenticate(peer, certificate, header):
    if header not in (None, b"Bearer right"):
        raise UnauthenticatedError("the token is not known here")
    return NOBODY if header is None else READER


async def blob(request):
    request.identity.require(Right.READ_CAS if request.method == "GET" else Right.WRITE_CAS, "main")
    return Response(body=request.identity.name.encode() + await request.read())


ROUTES = {"/blob": Route(blob, frozenset({"GET", "PUT"}))}


async def ask(*headers, method="GET", body=b"", authenticate=authenticate):
    """(status, headers, body)."""
    client, server = stream_pair()
    peer = h11.Connection(h11.CLIENT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(HttpServer(ROUTES, authenticate=authenticate).serve, server)
        sent = [("Host", "x"), ("Content-Length", str(len(body))), *headers]
        request = peer.send(h11.Request(method=method, target="/blob", headers=sent))
        await client.send_all(request + peer.send(h11.Data(data=body)) + peer.send(h11.EndOfMessage()))
        status, found, received = 0, [], b""
        while not isinstance(event := peer.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                peer.receive_data(await client.receive_some(4096))
            elif isinstance(event, h11.Response):
                status, found = event.status_code, [(bytes(k), bytes(v)) for k, v in event.headers]
            else:
                received += bytes(event.data)
        nursery.cancel_scope.cancel()
    await client.aclose()
    await trio.aclose_forcefully(server)
    return status, found, received


async def test_who_may_gets_what_it_asks_for():
    assert (await ask(("Authorization", "Bearer right")))[::2] == (200, b"reader")


async def test_who_asks_nobody_in_particular_is_everyone_where_there_is_no_door():
    assert (await ask(("Authorization", "Bearer wrong"), authenticate=None))[::2] == (200, b"everyone")


@pytest.mark.parametrize(
    ("headers", "text"),
    [((), b"read_cas for instance 'main' needs credentials; none were given"),
     ((("Authorization", "Bearer wrong"),), b"the token is not known here")],
)  # fmt: skip
async def test_no_credentials_and_wrong_ones_are_401_and_the_client_is_asked_for_some(headers, text):
    status, found, received = await ask(*headers)
    assert (status, received) == (401, text)
    challenges = [value for name, value in found if name == b"www-authenticate"]
    assert challenges == [b'Basic realm="nl", charset="UTF-8"', b'Bearer realm="nl"']


async def test_right_credentials_without_the_right_are_403_whatever_was_sent():
    status, _, received = await ask(("Authorization", "Bearer right"), method="PUT", body=b"x" * 100_000)
    assert (status, received) == (403, b"'reader' does not have write_cas for instance 'main'")


async def test_what_cannot_be_told_now_is_503_and_no_mistake_of_ours(caplog):
    def authenticate(peer, certificate, header):
        raise UnavailableError("the keys of ci are being fetched; try again in a few seconds")

    status, headers, received = await ask(("Authorization", "Bearer a.b.c"), authenticate=authenticate)
    assert (status, received) == (503, b"the keys of ci are being fetched; try again in a few seconds")
    assert (b"retry-after", b"5") in headers
    assert not caplog.records, "a line, and a traceback, for whatever a stranger sends"


async def test_two_headers_are_none():
    headers = [("Authorization", "Bearer right"), ("Authorization", "Bearer wrong")]
    assert (await ask(*headers))[::2] == (400, b"there is more than one authorization header")

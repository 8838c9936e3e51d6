"""Answers that no object store gives, but proxies, broken servers and hostile ones do, to the providers that speak HTTP
themselves: each is one of the client's errors, and costs bounded memory and time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from azure_support import ACCOUNT, KEY
from cloud_support import QUICK, running

from nl.plugin import ActionKey, BackendError, DigestFunction, RefusedError, TransientError, UnavailableError
from nl_cloud_object_store import CloudObjectStoreOptions
from nl_cloud_object_store.azure import AzureClient, AzureSettings
from nl_cloud_object_store.client import ObjectClient, ObjectMissingError
from nl_cloud_object_store.gcs import GcsClient, GcsSettings
from nl_cloud_object_store.gcs_auth import Credentials
from nl_cloud_object_store.http import MAX_ANSWER, MAX_ERROR, Http

PROVIDERS = ("azure", "gcs")
MIB = 1024 * 1024


class Hostile:
    """A server that answers each request with the bytes that `answer` makes of it, and hangs up."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answer: Callable[[str, str], Iterator[bytes]] = lambda method, path: iter(())
        self.asked = 0
        self.sent = 0
        self.done = threading.Semaphore(0)

    def says(self, *parts: bytes) -> None:
        self.answer = lambda method, path: iter(parts)


class _Handler(BaseHTTPRequestHandler):
    hostile: Hostile

    def log_message(self, *args: object) -> None:
        pass

    def _any(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.close_connection = True
        self.hostile.asked += 1
        try:
            for part in self.hostile.answer(self.command, self.path):
                self.wfile.write(part)
                self.hostile.sent += len(part)
        except OSError:
            pass  # the client has had enough
        finally:
            self.hostile.done.release()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _any


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        hostile = Hostile(f"http://127.0.0.1:{server.server_address[1]}")
        server.RequestHandlerClass = type("Handler", (_Handler,), {"hostile": hostile})
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hostile
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def client_of(provider: str, url: str, *, read_timeout: float = 60) -> Iterator[ObjectClient]:
    http = Http(connections=1, connect_timeout=20, read_timeout=read_timeout, ca_file=None)
    client: ObjectClient
    if provider == "gcs":
        client = GcsClient(GcsSettings(bucket="b", endpoint=url), http, Credentials(None))
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AZURE_STORAGE_KEY", KEY)
            client = AzureClient(AzureSettings(account=ACCOUNT, container="b", endpoint=url), http)
    try:
        yield client
    finally:
        client.close()


def answer(status: str, body: bytes = b"", *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 " + status.encode(), b"Connection: close", *headers]
    if not any(line.lower().startswith((b"content-length", b"transfer-encoding")) for line in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body])


REQUESTS: dict[str, Callable[[ObjectClient], object]] = {
    "list": lambda client: client.list_page("", "", 10),
    "head": lambda client: client.head("k"),
    "get": lambda client: client.get("k"),
    "range": lambda client: client.get("k", span=(1, 2), etag="1"),
    "put": lambda client: client.put("k", b"data"),
    "create": lambda client: client.create_upload("k"),
    "part": lambda client: client.upload_part("k", "u", 1, bytes(256 * 1024), 0),
    "complete": lambda client: client.complete_upload("k", "u", ["0:"]),
    "delete": lambda client: client.delete("k"),
}


@pytest.mark.parametrize(("status", "request_name", "most"), [
    ("200 OK", "list", MAX_ANSWER), ("400 No", "list", MAX_ERROR), ("500 No", "put", MAX_ERROR),
    ("403 No", "get", MAX_ERROR), ("500 No", "part", MAX_ERROR),
])  # fmt: skip
@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_answer_that_does_not_end_is_not_taken_in(
    hostile: Hostile, provider: str, status: str, request_name: str, most: int
) -> None:
    whole = 3 * MAX_ANSWER
    head = answer(status, b"", b"Content-Length: %d" % whole)
    hostile.answer = lambda method, path: iter([head, *[b"x" * MIB] * (whole // MIB)])
    with client_of(provider, hostile.url) as client, pytest.raises(BackendError):
        REQUESTS[request_name](client)
    hostile.done.acquire()
    assert hostile.sent < most + 24 * MIB  # what lies in the buffers of two sockets


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_answer_that_drips_is_given_up_in_time(hostile: Hostile, provider: str) -> None:
    def drips(method: str, path: str) -> Iterator[bytes]:
        yield answer("500 No", b"", b"Content-Length: 5000")
        for _ in range(5000):
            time.sleep(0.01)
            yield b"x"

    hostile.answer = drips
    with client_of(provider, hostile.url, read_timeout=0.3) as client, pytest.raises(TransientError):
        client.put("k", b"data")
    hostile.done.acquire()
    assert hostile.sent < 5000


ODD = {
    "negative length": [b"Content-Length: -5"],
    "no number": [b"Content-Length: many"],
    "other digits": [b"Content-Length: 1_0"],
    "no length": [b"Transfer-Encoding: chunked"],
    "endless length": [b"Content-Length: " + b"9" * 5000],
    "odd date": [b"Last-Modified: yesterday", b"Content-Length: 3"],
    "impossible date": [b"Last-Modified: Mon, 99 Jan 99999 00:00:00 +9999", b"Content-Length: 3"],
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_object_whose_headers_cannot_be_true_may_be_something_else_soon(
    hostile: Hostile, provider: str, odd: str
) -> None:
    body = b"0\r\n\r\n" if odd == "no length" else b"abc"
    hostile.says(answer("200 OK", body, *ODD[odd]))
    with client_of(provider, hostile.url) as client, pytest.raises(TransientError):
        client.get("k")


BODIES = {
    "nested JSON": b"[" * 20_000,
    "a number without bounds": b'{"items": [{"name": "k", "size": Infinity}], "size": 1e999}',
    "a long number": b'{"size": ' + b"9" * 5000 + b"}",
    "a year that is none": b'{"size": "1", "generation": "1", "timeCreated": "0001-01-01T00:00:00+23:59"}',
    "another encoding": b'<?xml version="1.0" encoding="x-none"?><a/>',
    "several bytes a letter": b'<?xml version="1.0" encoding="utf-7"?><a/>',
    "nested XML": b"<a>" * 20_000,
    "a page": b"<!DOCTYPE html><html><body>Log in</body></html>",
    "bytes": bytes(range(256)),
    "nothing": b"",
}


@pytest.mark.parametrize("status", ["101 Switching", "200 OK", "302 Found", "400 No", "404 No", "500 No", "999 No"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_whatever_the_body_is_what_is_raised_is_the_clients_and_one_line(
    hostile: Hostile, provider: str, status: str
) -> None:
    said = []
    with client_of(provider, hostile.url) as client:
        for body in BODIES.values():
            hostile.says(answer(status, body))
            for ask in REQUESTS.values():
                try:
                    ask(client)
                except BackendError as error:
                    said.append(str(error))
    assert len(said) >= len(BODIES)
    assert not [each for each in said if "\n" in each or len(each) > 600]


@pytest.mark.parametrize("name", ["list", "put", "part", "complete"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_page_that_comes_in_place_of_an_answer_is_no_success(hostile: Hostile, provider: str, name: str) -> None:
    hostile.says(answer("200 OK", BODIES["a page"]))
    with client_of(provider, hostile.url) as client, pytest.raises(BackendError):
        REQUESTS[name](client)


@pytest.mark.parametrize("name", ["put", "create"])
def test_an_upload_to_a_bucket_that_has_gone_is_refused_and_not_told_that_its_blob_is_missing(
    hostile: Hostile, name: str
) -> None:
    hostile.says(answer("404 Not Found", b'{"error": {"message": "The specified bucket does not exist."}}'))
    with client_of("gcs", hostile.url) as client:
        with pytest.raises(RefusedError, match="the bucket b does not exist"):
            REQUESTS[name](client)
        with pytest.raises(ObjectMissingError):
            client.head("k")


async def test_a_server_that_never_has_the_object_it_has_just_told_of_is_given_up(hostile: Hostile) -> None:
    """A proxy that leaves out the header with the generation makes each object one that has been replaced."""

    def objects(method: str, path: str) -> Iterator[bytes]:
        if path.startswith("/download"):
            yield answer("206 Partial", b"alu", b"Content-Range: bytes 1-3/5")
        elif "/o?" in path:
            yield answer("200 OK", b"{}")
        else:
            yield answer("200 OK", b'{"size": "5", "generation": "7", "timeCreated": "2020-01-01T00:00:00Z"}')

    hostile.answer = objects
    options = CloudObjectStoreOptions(
        provider="gcs", bucket="b", endpoint=hostile.url, insecure_allow_http=True, retry=QUICK
    )
    async with running(options) as store:
        with pytest.raises(UnavailableError, match="has been replaced"):
            async with store.open(ActionKey("a" * 64, 5, DigestFunction.SHA256), offset=1, length=3):
                pass
    assert 2 < hostile.asked < 60

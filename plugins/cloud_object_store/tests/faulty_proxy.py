"""A real HTTP proxy in front of an S3 server, which fails as it is told to. It keeps a record of every request."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Kinds = dict[str, tuple[str, str]]
"""Methods and forms of paths by what such requests are called here, the first that fits."""
GCS_KINDS: Kinds = {
    "create": ("POST", r"uploadType=resumable"),
    "put": ("POST", r"uploadType=media"),
    "part": ("PUT", r"upload_id="),
    "abort": ("DELETE", r"upload_id="),
    "get": ("GET", r"^/download/"),
    "head": ("GET", r"/o/"),
    "list": ("GET", r"/o\?"),
    "delete": ("DELETE", r""),
}
AZURE_KINDS: Kinds = {
    "part": ("PUT", r"comp=block&"),
    "complete": ("PUT", r"comp=blocklist"),
    "list": ("GET", r"comp=list"),
    "head": ("HEAD", r""),
    "get": ("GET", r""),
    "put": ("PUT", r""),
    "delete": ("DELETE", r""),
}
KINDS: Kinds = {
    "create": ("POST", r"[?&]uploads"),
    "part": ("PUT", r"partNumber="),
    "complete": ("POST", r"uploadId="),
    "abort": ("DELETE", r"uploadId="),
    "uploads": ("GET", r"[?&]uploads"),
    "list": ("GET", r"list-type="),
    "head": ("HEAD", r""),
    "get": ("GET", r""),
    "put": ("PUT", r""),
    "delete": ("DELETE", r""),
}


@dataclass
class Request:
    kind: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Fault:
    """What becomes of requests of some kind."""

    kind: str
    """A key of KINDS, or `any`."""
    what: Literal["status", "refuse", "lose answer", "cut answer", "silence", "call"]
    """Answer with `status` and `code`; end the connection at once; pass the request on and end the connection when the
    answer is there; pass on `after` bytes of the answer's body, then end the connection; say nothing for `seconds`;
    only call `action`."""
    times: int = 1
    """How many requests, those that come first."""
    skip: int = 0
    """So many pass before that."""
    status: int = 500
    code: str = "InternalError"
    after: int = 0
    seconds: float = 0.0
    abrupt: bool = False
    """End connections with a reset."""
    action: Callable[[], None] | None = None
    """Called when the fault happens."""


@dataclass
class FaultyProxy:
    target: int
    port: int = 0
    kinds_of_requests: Kinds = field(default_factory=lambda: KINDS)
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    busy: int = 0
    most_busy: int = 0
    seen: Callable[[Request], None] | None = None
    """Called for every request, before it is passed on."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kinds(self) -> list[str]:
        return [request.kind for request in self.requests]

    def count(self, kind: str) -> int:
        return self.kinds().count(kind)

    def fault_of(self, request: Request) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.kind in ("any", request.kind) and fault.times > 0:
                    if fault.skip > 0:
                        fault.skip -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None


def kind_of(method: str, path: str, kinds: Kinds) -> str:
    return next(kind for kind, (verb, form) in kinds.items() if verb == method and re.search(form, path))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: object) -> None:
        pass

    def handle_any(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = kind_of(self.command, self.path, proxy.kinds_of_requests)
        request = Request(kind, self.path, dict(self.headers), body)
        with proxy.lock:
            proxy.requests.append(request)
            proxy.busy += 1
            proxy.most_busy = max(proxy.busy, proxy.most_busy)
        try:
            if proxy.seen is not None:
                proxy.seen(request)
            self._handle(request, proxy.fault_of(request))
        except OSError:
            self.close_connection = True  # the client or the server has gone: that is what is being tested
        finally:
            with proxy.lock:
                proxy.busy -= 1

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def _handle(self, request: Request, fault: Fault | None) -> None:
        if fault is not None and fault.action is not None:
            fault.action()
        if fault is None or fault.what == "call":
            self._answer(self._pass_on(request))
        elif fault.what == "status":
            self._answer_error(fault)
        elif fault.what == "refuse":
            self._end(fault)
        elif fault.what == "lose answer":
            self._pass_on(request)
            self._end(fault)
        elif fault.what == "cut answer":
            self._answer(self._pass_on(request), fault)
        else:
            time.sleep(fault.seconds)
            self._end(fault)

    def _pass_on(self, request: Request) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.proxy.target, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders(request.body)
            reply = connection.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        finally:
            connection.close()

    def _answer(self, reply: tuple[int, list[tuple[str, str]], bytes], fault: Fault | None = None) -> None:
        status, headers, body = reply
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = next((v for n, v in headers if n.lower() == "content-length" and self.command == "HEAD"), len(body))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if fault is None or len(body) <= fault.after:
            self.wfile.write(body)
        else:
            self.wfile.write(body[: fault.after])
            self._end(fault)

    def _answer_error(self, fault: Fault) -> None:
        text = f"<Error><Code>{fault.code}</Code><Message>as told</Message></Error>" if fault.code else ""
        body = b"" if self.command == "HEAD" else text.encode()
        self.send_response_only(fault.status)
        if fault.code:
            self.send_header("x-ms-error-code", fault.code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _end(self, fault: Fault) -> None:
        self.close_connection = True
        self.wfile.flush()
        if fault.abrupt:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            if not fault.abrupt:
                self.connection.shutdown(socket.SHUT_RDWR)
            self.connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    proxy: FaultyProxy

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a connection that ended early


@contextmanager
def faulty_proxy(target: int, kinds: Kinds = KINDS) -> Iterator[FaultyProxy]:
    """A proxy for the server at port `target` of this machine."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.proxy = proxy = FaultyProxy(target, server.server_address[1], kinds)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()

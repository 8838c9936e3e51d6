"""An HTTP server that answers what it is told and notes what it was asked, for tests of the clients of providers."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit


class Asked(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Answering:
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    """One for each request that comes: status, headers, body. `Content-Length` may say more than there is. Status 0 is
    none: the connection ends.
    """

    def will(self, status: int = 200, headers: Mapping[str, str] = {}, body: bytes | str = b"") -> None:
        self.answers.append((status, dict(headers), body.encode() if isinstance(body, str) else body))

    def took(self) -> Asked:
        """The one request since the last time."""
        (asked,) = self.asked
        self.asked.clear()
        return asked


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_: Answering

    def log_message(self, *args: object) -> None:
        pass

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.server_.asked.append(Asked(self.command, parts.path, query, self.headers, body))
        status, headers, data = self.server_.answers.pop(0)
        if not status:
            self.close_connection = True
            return
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return  # what it says of a body is no promise, and a client that keeps the connection must not meet its end
        self.wfile.write(data)
        self.close_connection = int(headers.get("Content-Length", len(data))) > len(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any


@contextmanager
def answering(tls: ssl.SSLContext | None = None) -> Iterator[Answering]:
    told = Answering()
    handler = type("Handler", (_Handler,), {"server_": told})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        told.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield told
        finally:
            server.shutdown()
            thread.join()

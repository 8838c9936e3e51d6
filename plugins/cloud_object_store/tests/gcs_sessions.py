"""Google's resumable uploads as its documentation has them, over HTTP: what fake-gcs-server does not do.

It keeps multiples of 256 KiB of what a request brings, tells what it has when it is asked, ignores what it has already,
and can be told to take less, or to lose an answer. (fake-gcs-server appends whatever comes, and ends a session that is
asked.)
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from cloud_support import QUICK

from nl_cloud_object_store import CloudObjectStoreOptions

GRANULE = 256 * 1024


@dataclass
class Sessions:
    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    open: dict[str, bytearray] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """The Content-Range of each request."""
    faults: list[str] = field(default_factory=list)
    """For the next requests with bytes: `lose answer`, `half`, `500`, `forget`, `pass`."""

    def options(self, **more: object) -> CloudObjectStoreOptions:
        """Options that lead there, without waiting long between retries."""
        return CloudObjectStoreOptions(**{
            "provider": "gcs", "bucket": "a-bucket", "endpoint": self.url, "insecure_allow_http": True,
            "key_prefix": "cas/", "retry": QUICK, **more,
        })


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sessions: Sessions

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(200, body={"items": []})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        number = str(len(self.sessions.asked))
        self.sessions.open[number] = bytearray()
        self._answer(200, {"Location": f"https://elsewhere.example/upload?upload_id={number}"})

    def do_DELETE(self) -> None:
        self.sessions.open.pop(parse_qs(urlsplit(self.path).query)["upload_id"][0], None)
        self._answer(499)

    def do_PUT(self) -> None:
        sessions, asked = self.sessions, parse_qs(urlsplit(self.path).query)
        upload, name = asked["upload_id"][0], asked["name"][0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        sessions.asked.append(place := self.headers["Content-Range"])
        fault = sessions.faults.pop(0) if sessions.faults and place != "bytes */*" else "pass"
        if fault == "forget":
            sessions.open.pop(upload, None)
        if fault == "500":
            return self._answer(500)
        if name in sessions.objects:
            return self._answer(200, body={"size": str(len(sessions.objects[name]))})
        if upload not in sessions.open:
            return self._answer(404)
        have = sessions.open[upload]
        found = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", place)
        assert found, place
        if found[1] is not None:
            first = int(found[1])
            assert len(body) == int(found[2]) - first + 1
            assert first <= len(have), "a hole"
            body = body[len(have) - first :]
            last = found[3] != "*" and len(have) + len(body) == int(found[3])
            take = len(body) // 2 if fault == "half" else len(body)
            have += body[: take if last and fault != "half" else take - take % GRANULE]
        if found[3] not in ("*", None) and len(have) == int(found[3]):
            sessions.objects[name] = bytes(sessions.open.pop(upload))
            return self._end(fault) or self._answer(200, body={"size": found[3]})
        self._end(fault) or self._answer(308, {"Range": f"bytes=0-{len(have) - 1}"} if have else {})

    def _end(self, fault: str) -> bool:
        if fault == "lose answer":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        return fault == "lose answer"

    def _answer(self, status: int, headers: dict[str, str] | None = None, body: object = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response_only(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def resumable_sessions() -> Iterator[Sessions]:
    sessions = Sessions()
    handler = type("Handler", (_Handler,), {"sessions": sessions})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        sessions.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield sessions
        finally:
            server.shutdown()
            thread.join()

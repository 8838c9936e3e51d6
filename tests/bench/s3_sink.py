"""A server that takes what S3 clients send and forgets it, and gives as many zeros as an object's name says.

It speaks as much of S3 as the object store needs. A real one keeps and hashes what comes, and on a small machine its
work would be most of what is measured. `python -m tests.bench.s3_sink` prints its port.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from tests.support.processes import ROOT

_PIECE: Final = 256 * 1024
_ZEROS: Final = bytes(_PIECE)
_SIZE: Final = re.compile(r"-(\d+)$")
_UPLOAD: Final = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
_COMPLETED: Final = b"<CompleteMultipartUploadResult><ETag>&quot;e&quot;</ETag></CompleteMultipartUploadResult>"
_LISTS: Final = {
    "uploads": b"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>",
    "list-type=2": b"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>0</KeyCount></ListBucketResult>",
}


class Sink(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = _PIECE
    disable_nagle_algorithm = True

    def do_PUT(self) -> None:  # noqa: N802 - http.server wants this name
        self._take()
        self._answer()

    def do_POST(self) -> None:  # noqa: N802
        self._take()
        self._answer(_UPLOAD if self.path.endswith("uploads") else _COMPLETED)

    def do_GET(self) -> None:  # noqa: N802
        for query, listed in _LISTS.items():
            if query in self.path:
                return self._answer(listed)
        found = _SIZE.search(self.path)
        size = int(found[1]) if found else 0
        first, last = 0, size - 1
        if span := re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(span[1]), min(int(span[2]), size - 1)
        more = [("Content-Range", f"bytes {first}-{last}/{size}")] if span else []
        self._head(206 if span else 200, last + 1 - first, more)
        for left in range(last + 1 - first, 0, -_PIECE):
            self.wfile.write(_ZEROS[:left])

    def handle_expect_100(self) -> bool:
        """The client waits for it, so it must not wait for more to be written."""
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def _take(self) -> None:
        left = int(self.headers.get("Content-Length", 0))
        while left and (got := self.rfile.read(min(left, _PIECE))):
            left -= len(got)

    def _answer(self, body: bytes = b"") -> None:
        self._head(200, len(body))
        self.wfile.write(body)

    def _head(self, status: int, length: int, more: list[tuple[str, str]] | None = None) -> None:
        self.send_response(status)
        for name, value in (("Content-Length", str(length)), ("ETag", '"e"'), *(more or ())):
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def running() -> Iterator[str]:
    """The URL of one in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.s3_sink"], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

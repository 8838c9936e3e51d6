"""Reading an object: small ones whole in one request, large ones streamed, resumed where a connection breaks.

No thread waits for a slow consumer: each piece of up to LATER_PIECE bytes is one hop, and between hops only the
connection is held. A server that ends it meanwhile is asked for the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from nl.plugin import CHUNK, BackendError, Buffer, InternalError, Reader, RetryPolicy, Threads
from nl_cloud_object_store.client import ObjectBody, ObjectChangedError, ObjectClient

PIECE = 1024 * 1024
"""Bytes of the first hop to a thread. What is no larger is read by the hop that opens it."""
LATER_PIECE = 2 * PIECE
"""Bytes per hop of who reads on, and what a reader keeps in memory at most. With 1 MiB, hops are a third of the cost;
buffers of 4 MiB the allocator gives back each time, and the kernel makes them anew page by page."""


class Download:
    """The thread's side of a reader: one response at a time, reopened where it broke.

    `fetch` runs in threads, one at a time; `close` may be called while an abandoned `fetch` still runs, which then
    closes the response itself.
    """

    def __init__(
        self, client: ObjectClient, key: str, *, offset: int = 0, count: int = -1, total: int = -1,
        etag: str | None = None, immutable: bool = False,
    ) -> None:
        """`count` bytes from `offset`, -1 for the whole object. `total` and `etag` are the object's, where they are
        known already; it is an ObjectChangedError if it has others.

        An `immutable` object of the same size has the same bytes, however often it was written: its etag may change.
        """
        self._client = client
        self._key = key
        self._at = offset
        self._etag = etag
        self._immutable = immutable
        self._body: ObjectBody | None = None
        self._lock = threading.Lock()
        self._busy = False
        self._closed = False
        self.left = count
        """Bytes that are still to be fetched; -1 if that is not known yet."""
        self.total = total
        """The object's size, once it is known."""

    def fetch(self, most: int) -> bytes:
        """The next bytes, up to `most` and not more than are left. If it raises, nothing is lost: the next call goes on
        from the same place, with a new request.
        """
        with self._lock:
            self._busy = not self._closed
        if not self._busy:
            raise InternalError(f"{self._key} is read although its reader was closed")
        whole = False
        try:
            body = self._body
            if body is None:
                body = self._body = self._open()
            data = body.read(min(most, self.left)) if self.left else b""
            self._at += len(data)
            self.left -= len(data)
            whole = True
        finally:
            with self._lock:
                self._busy = False
                done = self._closed or not whole or not self.left
            if done:
                self._drop()
        return data

    def close(self) -> None:
        """No more is wanted. Does not block."""
        with self._lock:
            self._closed = True
            busy = self._busy
        if not busy:
            self._drop()

    def _open(self) -> ObjectBody:
        span = None if self.left < 0 or (not self._at and self.left == self.total) else (self._at, self.left)
        try:
            body = self._client.get(self._key, span=span, etag=self._etag)
        except ObjectChangedError:
            if self._etag is None or not self._immutable:
                raise
            body = self._client.get(self._key, span=span)
        size = body.info.size
        if self.total not in (-1, size):
            body.close()
            raise ObjectChangedError(f"{self._key} has {size} bytes; expected {self.total}")
        self.total = size
        self._etag = body.info.etag or None
        if self.left < 0:
            self.left = size
        return body

    def _drop(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.close()


class Fetcher:
    """The loop's side of downloads: which threads, how often tried again."""

    def __init__(self, threads: Threads, policy: RetryPolicy) -> None:
        self._threads = threads
        self._policy = policy

    async def piece(self, download: Download, most: int = PIECE) -> bytes:
        """The next bytes. The number of retries counts anew for each piece: what makes progress goes on."""
        return await self._policy.run(lambda: self._threads.look(download.fetch, most))

    async def rest(self, download: Download, first: bytes) -> bytes:
        """`first` and all bytes that are left."""
        if not download.left:
            return first
        pieces = [first]
        while download.left:
            pieces.append(await self.piece(download, download.left))
        return b"".join(pieces)

class DownloadReader(Reader):
    """A download whose first piece is here."""

    __slots__ = ("_download", "_fetcher", "_left", "_translate", "_view", "size")

    def __init__(
        self, download: Download, first: bytes, *, fetcher: Fetcher,
        translate: Callable[[BackendError], Exception],
    ) -> None:
        """`translate` makes an error of the store's contract of one of a client."""
        self._download = download
        self._view = memoryview(first)
        self._fetcher = fetcher
        self._translate = translate
        self.size = self._left = len(first) + download.left

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if not self._left:
            return ()
        if not len(self._view):
            try:
                self._view = memoryview(await self._fetcher.piece(self._download, LATER_PIECE))
            except BackendError as error:
                raise self._translate(error) from error
        part = self._view[:max_bytes]
        self._view = self._view[max_bytes:]
        self._left -= len(part)
        return (part,)

    async def aclose(self) -> None:
        """No more is wanted."""
        self._download.close()

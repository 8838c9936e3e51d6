"""A range of a blob, out of its chunks: fetched several at once, in order, and ahead of whoever reads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from nl.plugin import CHUNK, Buffer, Digest, Reader
from nl.stores.dedup.ahead import Ahead, Pending
from nl.stores.dedup.chunk_index import ChunkIndex

Fetch = Callable[[Sequence[Digest]], Awaitable[list[Buffer]]]
WINDOW_BYTES: Final = 2 * 1024 * 1024
"""How much is fetched at once, but for a single chunk that is larger; twice that is held."""


class ChunkReader(Reader):
    """Bytes [offset, offset + size) of the blob that `index` lists. `fetch` gets chunks, checked, or raises.

    Chunks come in windows: while one is handed out, the next is fetched. Both together have at most `at_once` chunks.
    To be begun and closed.
    """

    __slots__ = (
        "_ahead", "_at", "_end", "_fetch", "_index", "_next", "_offset", "_pending", "_ready", "_window", "size",
    )  # fmt: skip

    def __init__(
        self, index: ChunkIndex, fetch: Fetch, *, offset: int, size: int, at_once: int, ahead: Ahead
    ) -> None:
        self.size = size
        self._index = index
        self._fetch = fetch
        self._ahead = ahead if at_once > 1 else None
        self._window = max(at_once // 2, 1)
        self._offset = offset
        self._end = offset + size
        self._at = self._next = index.chunk_at(offset)
        self._pending: Pending[list[Buffer]] | None = None
        self._ready: list[Buffer] = []

    async def begin(self) -> None:
        """Fetches the first chunks, so that what is missing among them is missing when the blob is opened."""
        if self._offset < self._end:
            await self._fetch_next()

    def close(self) -> None:
        """Ends what is being fetched."""
        if self._pending is not None:
            self._pending.cancel()

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if not self._ready:
            if self._offset >= self._end:
                return ()
            await self._fetch_next()
        taken: list[Buffer] = []
        while self._ready and max_bytes:
            part = self._ready[-1]
            if len(part) > max_bytes:
                view = memoryview(part)
                taken.append(view[:max_bytes])
                self._ready[-1] = view[max_bytes:]
                break
            taken.append(self._ready.pop())
            max_bytes -= len(part)
        return taken

    async def _fetch_next(self) -> None:
        """Makes the next window ready, and begins with the one after it."""
        pending, self._pending = self._pending, None
        chunks = await (pending.result() if pending is not None else self._fetch(self._next_window()))
        self._make_ready(chunks)
        if self._ahead is not None and (window := self._next_window()):
            self._pending = self._ahead.start(partial(self._fetch, window))
            if self._pending is None:
                self._next = self._at

    def _next_window(self) -> list[Digest]:
        """The chunks to be fetched next; none where the range ends."""
        index = self._index
        window: list[Digest] = []
        total = 0
        while self._next < len(index.chunks) and len(window) < self._window and index.start_of(self._next) < self._end:
            chunk = index.chunks[self._next]
            total += chunk.size
            if window and total > WINDOW_BYTES:
                break
            window.append(chunk)
            self._next += 1
        return window

    def _make_ready(self, chunks: Sequence[Buffer]) -> None:
        """Puts what has been fetched into `_ready`, the last first, without what is outside of the range."""
        for data in chunks:
            start = self._index.start_of(self._at)
            view = memoryview(data)[max(self._offset - start, 0) : self._end - start]
            self._offset += len(view)
            self._at += 1
            if len(view):
                self._ready.append(view)
        self._ready.reverse()

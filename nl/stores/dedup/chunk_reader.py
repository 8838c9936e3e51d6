"""A range of a blob, out of its chunks: several are fetched at once, in order, and each is checked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from nl.plugin import CHUNK, MAX_WHOLE, Buffer, Digest, Reader
from nl.stores.dedup.chunk_index import ChunkIndex

Fetch = Callable[[Sequence[Digest]], Awaitable[list[Buffer]]]


class ChunkReader(Reader):
    """Bytes [offset, offset + size) of the blob that `index` lists. `fetch` gets chunks, checked, or raises.

    Chunks are fetched when the ones before have been handed out: at most `at_once`, and MAX_WHOLE bytes, are held.
    """

    __slots__ = ("_at", "_at_once", "_end", "_fetch", "_index", "_offset", "_ready", "size")

    def __init__(self, index: ChunkIndex, fetch: Fetch, *, offset: int, size: int, at_once: int) -> None:
        self.size = size
        self._index = index
        self._fetch = fetch
        self._offset = offset
        self._end = offset + size
        self._at_once = at_once
        self._at = index.chunk_at(offset)
        self._ready: list[Buffer] = []

    async def begin(self) -> None:
        """Fetches the first chunks, so that what is missing among them is missing when the blob is opened."""
        if self._offset < self._end:
            await self._fetch_next()

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
        """Fetches the chunks that come next. They are in reverse order in `_ready`."""
        index, first = self._index, self._at
        wanted: list[Digest] = []
        total = 0
        while self._at < len(index.chunks) and len(wanted) < self._at_once:
            chunk = index.chunks[self._at]
            total += chunk.size
            if wanted and (total > MAX_WHOLE or index.start_of(self._at) >= self._end):
                break
            wanted.append(chunk)
            self._at += 1
        for at, data in enumerate(await self._fetch(wanted), first):
            start = index.start_of(at)
            view = memoryview(data)[max(self._offset - start, 0) : self._end - start]
            if len(view):
                self._ready.append(view)
        self._offset = min(index.start_of(self._at - 1) + index.chunks[self._at - 1].size, self._end)
        self._ready.reverse()

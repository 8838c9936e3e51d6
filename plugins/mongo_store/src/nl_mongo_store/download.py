"""Reading large values: some chunks at a time, only those that the range needs; the first when it is opened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from nl.plugin import CHUNK, Buffer, Reader, split_parts
from nl_mongo_store.documents import Value

Fetch = Callable[[Value, int, int], Awaitable[list[bytes]]]
"""Gets so many chunks of a value from a number on; each has the size that it must have, or it raises."""


class ChunkReader(Reader):
    """Bytes [offset, offset + count) of a value that is in chunks."""

    __slots__ = ("_at", "_end", "_fetch", "_parts", "_per_trip", "_value", "size")

    def __init__(self, value: Value, *, offset: int, count: int, per_trip: int, fetch: Fetch) -> None:
        """`per_trip`: bytes to ask for at once, in whole chunks."""
        self._value = value
        self._at = offset
        self._end = offset + count
        self._per_trip = max(1, per_trip // value.chunk)
        self._fetch = fetch
        self._parts: Sequence[Buffer] = ()
        self.size = count

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if not self._parts:
            if self._at == self._end:
                return ()
            await self.advance()
        parts, self._parts = split_parts(self._parts, max_bytes)
        return parts

    async def advance(self) -> None:
        """Fetches the next chunks."""
        chunk = self._value.chunk
        first = self._at // chunk
        count = min(self._per_trip, (self._end - 1) // chunk - first + 1)
        views = [memoryview(data) for data in await self._fetch(self._value, first, count)]
        end = min(self._end, (first + count) * chunk)
        if cut := (first + count) * chunk - end:  # behind the range; the last chunk of all may be shorter by itself
            views[-1] = views[-1][: chunk - cut]
        views[0] = views[0][self._at - first * chunk :]
        self._at = end
        self._parts = views


def whole_chunks(value: Value, first: int, found: Sequence[bytes | None]) -> list[bytes] | None:
    """Chunks from number `first` on if all are there and have their sizes, else None."""
    chunks: list[bytes] = []
    for number, data in enumerate(found, first):
        if data is None or len(data) != min(value.chunk, value.size - number * value.chunk):
            return None
        chunks.append(data)
    return chunks

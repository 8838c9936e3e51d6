"""The last bytes of a stream, kept once for all who follow it. Pure but for waiting.

However many readers follow, each chunk is copied once, and no more than `RING_BYTES` are kept. Whoever falls behind the
start of the ring has missed some, and gets the rest from elsewhere.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from operator import itemgetter

from trio.lowlevel import ParkingLot

from nl.plugin import Buffer

RING_BYTES = 1024 * 1024
"""How far behind the stream a reader may be."""


class Ring:
    """Bytes [start, end) of a stream. Nothing is kept, or copied, while nobody watches."""

    __slots__ = ("_chunks", "_lot", "end", "start", "watchers")

    def __init__(self) -> None:
        self._chunks: deque[tuple[int, bytes]] = deque()  # with the offset of its first byte; no gaps between
        self._lot = ParkingLot()
        self.start = 0
        self.end = 0
        self.watchers = 0

    def append(self, parts: Sequence[Buffer]) -> None:
        """Takes what follows, and wakes who waits for it. The buffers stay the caller's."""
        start = self.end
        self.end += sum(map(len, parts))
        if self.watchers:
            self._chunks.append((start, parts[0] if len(parts) == 1 and type(parts[0]) is bytes else b"".join(parts)))
            while self.end - self._chunks[0][0] > RING_BYTES and len(self._chunks) > 1:
                self._chunks.popleft()
            self.start = self._chunks[0][0]
        else:
            self._chunks.clear()
            self.start = self.end
        self.wake()

    def piece(self, at: int) -> memoryview:
        """The rest of a chunk, not copied, from offset `at` on, which is in [start, end)."""
        offset, data = self._chunks[bisect_right(self._chunks, at, key=itemgetter(0)) - 1]
        return memoryview(data)[at - offset :]

    async def wait(self) -> None:
        """Until something is appended, or `wake` is called."""
        await self._lot.park()

    def wake(self) -> None:
        """Has all who wait look again."""
        self._lot.unpark_all()

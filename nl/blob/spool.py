"""A reader that can be read again from its start, as long as not too much of it has been read.

For stores far away that try again: what a client streams comes once, and a first attempt that fails early needs it all.
"""

from __future__ import annotations

from collections.abc import Sequence

from nl.blob.reader import CHUNK, Buffer, Reader
from nl.errors import InternalError


class SpoolingReader(Reader):
    """Delivers what `reader` does and keeps a copy of it, up to `limit` bytes in all. Beyond, it cannot be rewound."""

    __slots__ = ("_at", "_ended", "_kept", "_limit", "_reader", "_total", "size")

    def __init__(self, reader: Reader, *, limit: int) -> None:
        self._reader = reader
        self._limit = limit
        self._kept: list[bytes] | None = []
        self._total = 0
        self._at = 0
        self._ended = False
        self.size = reader.size

    @property
    def can_rewind(self) -> bool:
        return self._kept is not None

    async def rewind(self) -> None:
        if self._kept is None:
            raise InternalError(f"more than {self._limit} bytes of a reader have been read: it cannot be rewound")
        self._at = 0

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        kept = self._kept
        if kept is not None and self._at < len(kept):
            part = kept[self._at]
            if len(part) > max_bytes:
                kept[self._at : self._at + 1] = [part[:max_bytes], part[max_bytes:]]
                part = kept[self._at]
            self._at += 1
            return (part,)
        if self._ended:
            return ()
        parts = await self._reader.receive_parts(max_bytes)
        self._ended = not parts
        if kept is not None:
            self._total += sum(map(len, parts))
            if self._total > self._limit:
                self._kept = None
            else:
                kept.extend(map(bytes, parts))
                self._at = len(kept)
        return parts

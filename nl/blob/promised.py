"""A reader taken in pieces of the caller's size, whose end is checked against what was promised.

For backends that take an upload in parts, each of which they want whole and may want again.
"""

from __future__ import annotations

from nl.blob.reader import CHUNK, Reader
from nl.errors import UploadMismatchError


class PromisedSource:
    """`size` is how many bytes were promised, -1 if that is not known; `name` is for messages."""

    def __init__(self, reader: Reader, size: int, name: str) -> None:
        self._reader = reader
        self.size = size
        self._name = name
        self.taken = 0
        """Bytes so far."""
        self.ended = False
        """Whether all bytes have been taken."""

    async def take(self, into: bytearray) -> bytearray:
        """The next bytes, as many as `into` has room for; at the end fewer, and it is cut off there. Returns `into`.

        Raises what the reader raises, and UploadMismatchError if it does not deliver the bytes that were promised.
        """
        room = len(into) if self.size < 0 else min(len(into), self.size - self.taken)
        at = 0
        with memoryview(into) as view:
            while at < room:
                parts = await self._reader.receive_parts(min(CHUNK, room - at))
                if not parts:
                    self.ended = True
                    break
                for part in parts:
                    view[at : at + len(part)] = part
                    at += len(part)
        if at < len(into):
            del into[at:]
        self.taken += at
        if self.size >= 0:
            await self._check_end()
        return into

    async def start_again(self) -> bool:
        """Goes back to the beginning; False if the reader cannot."""
        if not self._reader.can_rewind:
            return False
        await self._reader.rewind()
        self.taken = 0
        self.ended = False
        return True

    async def _check_end(self) -> None:
        if self.ended:
            promised = f"{self.size} bytes were promised"
            raise UploadMismatchError(f"{self._name}: the upload ended after {self.taken} bytes; {promised}")
        if self.taken == self.size:
            if await self._reader.receive_parts(1):
                raise UploadMismatchError(f"{self._name}: the upload has more than the {self.size} bytes promised")
            self.ended = True

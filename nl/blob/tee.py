"""One source, two consumers: each gets every byte, nothing is copied, and nothing piles up.

The two sides go in lockstep: the next bytes are pulled from the source only when both sides have asked for them, so the
buffers that a side was handed stay valid until it asks again, as the Reader contract has it, and the slower side sets
the pace. A side that is closed (it failed, or is done) no longer holds the other one up.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from nl.blob.reader import CHUNK, Buffer, Reader
from nl.errors import UnavailableError


class Tee:
    """`left` and `right` deliver what `source` does; each is for one task.

    What the source raises, both sides raise; it is kept in `error`. *Cancellation*: whoever leaves calls `close` on
    its side. A side cancelled while it was the one that pulled breaks the source, and so the other side too.
    """

    def __init__(self, source: Reader) -> None:
        self._source = source
        self.error: BaseException | None = None
        self.ended = False
        self.left = TeeSide(self, source.size)
        self.right = TeeSide(self, source.size)
        self.left.other = self.right
        self.right.other = self.left

    async def pull(self, max_bytes: int) -> Sequence[Buffer]:
        """The source's next bytes; called by the side that asked last."""
        if self.error is not None:
            raise self.error
        try:
            parts = await self._source.receive_parts(max_bytes)
        except trio.Cancelled:
            self.error = UnavailableError("reading was cancelled halfway")
            raise
        except BaseException as error:
            self.error = error
            raise
        self.ended = not parts
        return parts


class TeeSide(Reader):
    """One of the two readers of a Tee."""

    __slots__ = ("_asked", "_closed", "_news", "_parts", "_pulling", "_tee", "other", "size")

    other: TeeSide

    def __init__(self, tee: Tee, size: int) -> None:
        self._tee = tee
        self.size = size
        self._parts: Sequence[Buffer] | None = None  # pulled by the other side, not taken yet
        self._asked = 0  # how much this side waits for; 0 if it does not
        self._pulling = False
        self._closed = False
        self._news = trio.Event()

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if self._tee.ended and self._parts is None:
            return ()
        self._asked = max_bytes
        other = self.other
        try:
            while self._parts is None:
                if self._tee.error is not None:
                    raise self._tee.error
                if other._closed or (other._asked and not other._pulling and other._parts is None):
                    return await self._pull(max_bytes)
                self._news = trio.Event()
                await self._news.wait()
            parts, self._parts = self._parts, None
            return parts
        finally:
            self._asked = 0

    def close(self) -> None:
        """Says that this side wants no more. Harmless if repeated."""
        self._closed = True
        self._parts = None
        self.other._news.set()

    async def _pull(self, max_bytes: int) -> Sequence[Buffer]:
        other = self.other
        self._pulling = True
        try:
            parts = await self._tee.pull(min(max_bytes, other._asked) if other._asked else max_bytes)
            if not other._closed:
                other._parts = parts
            return parts
        finally:
            self._pulling = False
            other._news.set()

"""One source, two consumers: each gets every byte, nothing is copied, and nothing piles up.

The two go in lockstep: the next bytes are pulled from the source only when both have asked for them, so the buffers
that a side was handed stay valid until it asks again, as the Reader contract has it, and the slower side sets the pace.

They are not alike. The **leader** alone pulls, so what happens to the follower (a timeout of its own that cancels its
reading, an error, leaving early) never touches the source, and costs the leader nothing. Only when the leader has left
does the follower read on by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from nl.blob.reader import CHUNK, Buffer, BytesReader, Reader
from nl.errors import UnavailableError


class Tee:
    """`leader` and `follower` deliver what `source` does; each is for one task.

    What the source raises, both raise; it is kept in `error`. *Cancellation*: whoever leaves calls `close` on its side.
    A leader that is cancelled while it pulls breaks the source, and so the follower too.
    """

    def __init__(self, source: Reader) -> None:
        self._source = source
        self.error: BaseException | None = None
        self.ended = False
        self.leader = Leader(self, source.size)
        self.follower = Follower(self, source.size)

    def forget(self) -> None:
        """Both sides are done: lets go of the source, and of what it raised. The sides and this one know each other, so
        what it holds would wait for the cycle collector, which is rare; the source may be a coder of many MiB.
        """
        self.error = None
        self._source = BytesReader(b"")

    async def pull(self, max_bytes: int) -> Sequence[Buffer]:
        """The source's next bytes."""
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


class Leader(Reader):
    """The side that pulls."""

    __slots__ = ("_closed", "_may_pull", "_tee", "size")

    def __init__(self, tee: Tee, size: int) -> None:
        self._tee = tee
        self._closed = False
        self._may_pull = trio.Event()
        self.size = size

    @property
    def closed(self) -> bool:
        """Whether it wants no more."""
        return self._closed

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        follower = self._tee.follower
        if self._tee.ended:
            return ()
        while not follower.closed and not follower.asked:
            self._may_pull = trio.Event()
            await self._may_pull.wait()
        try:
            parts = await self._tee.pull(min(max_bytes, follower.asked) if follower.asked else max_bytes)
        except BaseException:
            follower.wake()
            raise
        follower.take(parts)
        return parts

    def wake(self) -> None:
        """The follower has asked, or left."""
        self._may_pull.set()

    def close(self) -> None:
        """Says that this side wants no more. Harmless if repeated."""
        self._closed = True
        self._tee.follower.wake()


class Follower(Reader):
    """The side that is handed what the leader has pulled."""

    __slots__ = ("_news", "_parts", "_tee", "asked", "closed", "size")

    def __init__(self, tee: Tee, size: int) -> None:
        self._tee = tee
        self._parts: Sequence[Buffer] | None = None  # pulled by the leader, not taken yet
        self._news = trio.Event()
        self.asked = 0
        """How many bytes this side waits for; 0 if it does not."""
        self.closed = False
        self.size = size

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        leader = self._tee.leader
        if self._parts is None and not self._tee.ended:
            self.asked = max_bytes
            leader.wake()
            try:
                while self._parts is None and self._tee.error is None and not leader.closed:
                    self._news = trio.Event()
                    await self._news.wait()
            finally:
                self.asked = 0
        if self._parts is not None:
            parts, self._parts = self._parts, None
            return parts
        return () if self._tee.ended else await self._tee.pull(max_bytes)

    def take(self, parts: Sequence[Buffer]) -> None:
        """The leader has pulled these, as this side had asked. Not if it has left meanwhile."""
        if not self.closed:
            self._parts = parts
            self.asked = 0
            self._news.set()

    def wake(self) -> None:
        """The source has failed, or the leader has left."""
        self._news.set()

    def close(self) -> None:
        """Says that this side wants no more. Harmless if repeated."""
        self.closed = True
        self._parts = None
        self._tee.leader.wake()

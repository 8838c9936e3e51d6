"""Readers: how the bytes of a blob move. By pull: the consumer awaits `receive_parts`, so back-pressure is an await.

A reader hands out *lists of buffers* so that what the network or a file left in several pieces is hashed and written
without being joined first. Not here: stores (storage/), hashing readers (blob/verify.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from nl.errors import InternalError

Buffer = bytes | bytearray | memoryview
CHUNK = 256 * 1024
"""Default upper bound for one `receive_parts`, in bytes: large enough to amortise a call, small enough for L2."""


class Reader(ABC):
    """A blob being read, once, front to back.

    *Ownership*: the buffers returned are valid until the next `receive_parts` or until the reader is closed; whoever
    needs them longer copies them. *Cancellation*: a cancelled `receive_parts` leaves the reader unusable but for
    closing. *Concurrency*: one task at a time.
    """

    __slots__ = ()

    size: int
    """How many bytes the reader delivers in all, from where it was opened; -1 if that is not known beforehand."""

    @abstractmethod
    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        """The next bytes as non-empty buffers, at most `max_bytes` together; an empty sequence at the end only.

        A source that ends before `size` bytes raises; it never returns an early empty sequence.
        """

    @property
    def can_rewind(self) -> bool:
        """Whether `rewind` works now: for whoever may have to try again."""
        return False

    async def rewind(self) -> None:
        """Begins again at the start, also after an error or at the end. Buffers handed out before are invalid then."""
        raise InternalError(f"a {type(self).__name__} cannot be rewound")


class BytesReader(Reader):
    """Bytes that are already in memory; hands out views, no copies."""

    __slots__ = ("_view", "_whole", "size")

    def __init__(self, data: Buffer) -> None:
        self._whole = self._view = memoryview(data)
        self.size = len(self._view)

    @property
    def can_rewind(self) -> bool:
        return True

    async def rewind(self) -> None:
        self._view = self._whole

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        view = self._view
        if not len(view):
            return ()
        self._view = view[max_bytes:]
        return (view[:max_bytes],)


async def read_all(reader: Reader) -> bytes:
    """All bytes of a reader in one object. For small blobs: the caller has checked `reader.size`."""
    parts: list[bytes] = []
    while got := await reader.receive_parts():
        parts.extend(map(bytes, got))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def split_parts(parts: Sequence[Buffer], max_bytes: int) -> tuple[Sequence[Buffer], Sequence[Buffer]]:
    """The first `max_bytes` of some buffers, and what is left; nothing is copied."""
    taken = 0
    for at, part in enumerate(parts):
        taken += len(part)
        if taken > max_bytes:
            view, cut = memoryview(part), len(part) - (taken - max_bytes)
            head = [*parts[:at], view[:cut]] if cut else list(parts[:at])
            return head, [view[cut:], *parts[at + 1 :]]
    return parts, ()

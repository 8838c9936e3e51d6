"""Reading values that are larger than a request: the first piece is here when a reader is opened, the others follow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from nl.plugin import CHUNK, Buffer, Reader, UnavailableError
from nl_redis_store.client import Op
from nl_redis_store.connection import Command

Fetch = Callable[[Op], Awaitable[bytes]]


def piece(name: bytes, offset: int, count: int, *further: Command) -> Op:
    """Bytes [offset, offset + count) of a value, fewer where it ends; `further` commands come after that."""
    first = (b"GETRANGE", name, b"%d" % offset, b"%d" % (offset + count - 1))
    return Op(name, (first, *further), receives=count)


class PieceReader(Reader):
    """A range of a value whose first piece is here."""

    __slots__ = ("_ask", "_at", "_end", "_fetch", "_view", "_what", "size")

    def __init__(
        self, first: bytes, *, at: int, end: int, ask: Callable[[int, int], Op], fetch: Fetch, what: str
    ) -> None:
        """`first` are the bytes before `at`, `end` is where the range ends. `ask` makes the Op of a piece at an offset
        that is to end before `end`, `fetch` carries it out. `what` is for messages.
        """
        self._view = memoryview(first)
        self._at = at
        self._end = end
        self._ask = ask
        self._fetch = fetch
        self._what = what
        self.size = len(first) + end - at

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if not len(self._view):
            if self._at == self._end:
                return ()
            await self._next_piece()
        part = self._view[:max_bytes]
        self._view = self._view[max_bytes:]
        return (part,)

    async def _next_piece(self) -> None:
        op = self._ask(self._at, self._end)
        data = await self._fetch(op)
        if len(data) != op.receives:
            raise UnavailableError(f"{self._what} left the server while it was being read")
        self._at += len(data)
        self._view = memoryview(data)

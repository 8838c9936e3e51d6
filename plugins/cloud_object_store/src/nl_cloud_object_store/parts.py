"""How an upload is cut into parts, where these lie in memory, and how much of it all uploads may have."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import trio


def part_size(size: int, *, smallest: int, most: int, granule: int = 1) -> int:
    """The size of all parts but the last, in bytes, of an upload of `size` bytes (-1 if that is not known).

    Equal parts (some providers demand that), each at least `smallest` and a multiple of `granule`, at most `most` of
    them.
    """
    return -(-max(smallest, -(-size // most)) // granule) * granule


class Buffers:
    """Buffers for parts, used again while uploads are under way: new memory costs more than to copy into old."""

    def __init__(self, most: int) -> None:
        """Up to `most` free ones are kept."""
        self._most = most
        self._free: list[bytearray] = []
        self._users = 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While an upload lasts. With the last one all free buffers go."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._free.clear()

    def take(self, size: int) -> bytearray:
        """A buffer of `size` bytes with anything in it."""
        if self._free and len(self._free[-1]) == size:
            return self._free.pop()
        return bytearray(size)

    def give_back(self, buffer: bytearray) -> None:
        """Nobody, above all no thread, uses this one any more."""
        if self._users and len(self._free) < self._most:
            self._free.append(buffer)


class Reservation:
    """Bytes of a Budget that are in use until `release`."""

    __slots__ = ("_budget", "_count")

    def __init__(self, budget: Budget, count: int) -> None:
        self._budget = budget
        self._count = count

    def release(self) -> None:
        """They are free again. Once only, however often it is called."""
        count, self._count = self._count, 0
        self._budget.give_back(count)


class Budget:
    """Bytes of uploads in memory, over all uploads of a store. Who does not fit waits, in order of arrival."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: deque[tuple[int, trio.Event]] = deque()

    async def reserve(self, count: int) -> Reservation:
        """Waits until `count` bytes are free. What is larger than the limit goes when it has all of it."""
        count = min(count, self.limit)
        if not self._waiting and self.used + count <= self.limit:
            self.used += count
            return Reservation(self, count)
        turn = (count, trio.Event())
        self._waiting.append(turn)
        try:
            await turn[1].wait()
        except trio.Cancelled:
            if turn[1].is_set():
                self.used -= count
            else:
                self._waiting.remove(turn)
            self._admit()
            raise
        return Reservation(self, count)

    def give_back(self, count: int) -> None:
        """For Reservation."""
        self.used -= count
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.used + self._waiting[0][0] <= self.limit:
            count, turn = self._waiting.popleft()
            self.used += count
            turn.set()

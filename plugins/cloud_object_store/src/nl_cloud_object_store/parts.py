"""How an upload is cut into parts, and how much of all uploads may lie in memory. Pure, but for the waiting."""

from __future__ import annotations

from collections import deque

import trio


def part_size(size: int, *, smallest: int, most: int) -> int:
    """The size of all parts but the last, in bytes, of an upload of `size` bytes (-1 if that is not known).

    Equal parts (some providers demand that), each at least `smallest`, and at most `most` of them.
    """
    return max(smallest, -(-size // most))


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

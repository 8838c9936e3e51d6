"""What clients make a listener hold, counted as it grows, and bounded as a whole.

Ending is the one remedy that cannot deadlock: who waits for the rest of a message, or for its peer to read, gives
nothing back by being held up. Whoever serves a client counts what it holds wherever that may have grown; that it has
become less is found out when it matters.
"""

from __future__ import annotations

from typing import Protocol

import trio

_LOOK_PART = 32
"""Everybody is looked at again when the count has grown by this part of the bound: looking costs the more, the more
there are, and so costs little for each byte."""


class Holder(Protocol):
    """Who holds something for one client."""

    counted: int
    """What it held when it was counted last: Held's own."""

    def held_bytes(self) -> int:
        """What it holds now, without a loop over calls: it is asked often."""
        ...

    def give_up(self, reason: str) -> None:
        """Ends the client's connection, and frees what it can at once."""
        ...


class Held:
    """The count, and who is in it."""

    def __init__(self, bound: int) -> None:
        """`bound` in bytes. At a look, those who hold the most are ended until it is kept."""
        self.bound = bound
        self.total = 0
        self._look_at = bound
        self._holders: set[Holder] = set()
        self._over: trio.Event | None = None

    def enter(self, holder: Holder) -> None:
        """Counts a holder from now on."""
        holder.counted = 0
        self._holders.add(holder)

    def leave(self, holder: Holder) -> None:
        """What it holds is free, or about to be."""
        if holder in self._holders:
            self._holders.discard(holder)
            self.total -= holder.counted
            holder.counted = 0

    def count(self, holder: Holder) -> bool:
        """Counts again what one holds; whether somebody should `look`, which happens soon in any case."""
        if holder not in self._holders:
            return False
        count = holder.held_bytes()
        self.total += count - holder.counted
        holder.counted = count
        if self.total <= self._look_at:
            return False
        if self._over is not None:
            self._over.set()
        return True

    def look(self) -> None:
        """Counts everybody, and gives up whoever holds the most while that is too much.

        Not for whoever is in the middle of something that the end of its own connection would change.
        """
        for holder in self._holders:
            count = holder.held_bytes()
            self.total += count - holder.counted
            holder.counted = count
        while self.total > self.bound:
            largest = max(self._holders, key=lambda each: each.counted)
            count = largest.counted
            self.leave(largest)
            largest.give_up(f"the server holds too much for its clients, {count} bytes of it for this one")
        self._look_at = max(self.bound, self.total + self.bound // _LOOK_PART)

    async def wait_over(self) -> None:
        """Until somebody should look."""
        if self.total <= self._look_at:
            self._over = trio.Event()
            await self._over.wait()
            self._over = None

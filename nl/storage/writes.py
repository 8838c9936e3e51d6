"""Which objects are being written and which were of late: who has found one wrong must not delete the one after it.

For kinds that check what their backend has, and delete what is wrong there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import trio

from nl.model.digest import Key

MAX_RECENT = 4096
"""Writes that have ended and are remembered; who asks about earlier ones is told that there was one, to be safe."""


class Writes:
    """The writes and the deletions of one store, by key of its backend."""

    def __init__(self) -> None:
        self._under_way: dict[Key, int] = {}
        self._deleting: dict[Key, trio.Event] = {}
        self._recent: OrderedDict[Key, int] = OrderedDict()
        self._forgotten = 0  # ends up to this one are not in `_recent` any more
        self.now = 0
        """The number of writes that have ended: a clock for `replaced_since`."""

    @asynccontextmanager
    async def under_way(self, places: Sequence[Key]) -> AsyncIterator[None]:
        """Around writing objects: a deletion that has begun is waited for."""
        for place in places:
            self._under_way[place] = self._under_way.get(place, 0) + 1
        try:
            for place in places:
                while (done := self._deleting.get(place)) is not None:
                    await done.wait()
            yield
        finally:
            for place in places:
                self._end(place)

    def replaced_since(self, place: Key, began: int) -> bool:
        """Whether a write of an object may have ended since `now` was `began`."""
        return began < self._forgotten or self._recent.get(place, 0) > began

    def may_delete(self, place: Key) -> bool:
        """Whether nobody else is about to change an object."""
        return place not in self._under_way and place not in self._deleting

    @contextmanager
    def deleting(self, place: Key) -> Iterator[None]:
        """Around a deletion that `may_delete` has allowed."""
        done = self._deleting[place] = trio.Event()
        try:
            yield
        finally:
            del self._deleting[place]
            done.set()

    def _end(self, place: Key) -> None:
        self._under_way[place] -= 1
        if not self._under_way[place]:
            del self._under_way[place]
        self.now += 1
        self._recent[place] = self.now
        self._recent.move_to_end(place)
        if len(self._recent) > MAX_RECENT:
            _, self._forgotten = self._recent.popitem(last=False)

"""Threads for a backend whose driver blocks, as most do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Args = TypeVarTuple("Args")


class Threads:
    """Runs blocking calls, at most `count` at once, abandoned ones included; others wait in order of arrival.

    The limiter is the store's own: trio's default one serves files, and would starve behind a slow network.
    """

    def __init__(self, count: int) -> None:
        self.limiter = trio.CapacityLimiter(count)

    async def look(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """For calls whose result may be thrown away: a cancelled caller leaves at once, the thread ends by itself."""
        return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True, limiter=self.limiter)

    async def change(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """For calls that change something: a cancelled caller waits for the end of one that has begun, so that what it
        does next (tidy up, write the key again) comes after it at the server, too. The driver's time limits bound that.
        """
        return await trio.to_thread.run_sync(function, *args, limiter=self.limiter)

"""How many connections there may be: for a listener, and for the process, whose descriptors all listeners share.

A connection takes a slot when it is accepted, before it has said anything. When all are taken, the one that has been
silent since then for the longest makes room, or else one that has been idle for a while (its client connects again when
it has a call to make). If there is none, new ones wait in the kernel's backlog. So neither a crowd of clients nor
sockets that never speak keep others out, or take a descriptor from those who are being served.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from nl.telemetry.limited import LimitedLog

log = logging.getLogger(__name__)
GREETING_S = 1.0
"""How long a connection may always take for its first words, however many wait for its slot."""
IDLE_S = 10.0
"""How long a connection is always left in peace after its last call."""
_RELIEF_S = 0.1


class Slots:
    """`limit` slots, each of which is also one of `shared`. `remedy` says in the log what would give more of them."""

    def __init__(self, limit: int, *, remedy: str, shared: Slots | None = None) -> None:
        self.limit = limit
        self.taken = 0
        self.greeting: dict[trio.CancelScope, float] = {}
        """Connections that have not said yet what they speak, with when they came; the first one first."""
        self.relief: list[Callable[[], bool]] = []
        """Asked when all are taken: to let a connection go that has been idle for IDLE_S; whether there was one."""
        self._remedy = remedy
        self._shared = shared
        self._released: trio.Event | None = None
        self._log = LimitedLog(log)

    def take(self) -> None:
        """Takes a slot. It may be one more than there are: who is in the accept loop already is let in."""
        self.taken += 1
        if self._shared is not None:
            self._shared.take()

    def release(self) -> None:
        """Gives a slot back."""
        self.taken -= 1
        if self._released is not None:
            self._released.set()
            self._released = None
        if self._shared is not None:
            self._shared.release()

    @contextmanager
    def greets(self, scope: trio.CancelScope) -> Iterator[None]:
        """While a connection says its first words: its slot can be taken from it, by cancelling `scope`."""
        self.greeting[scope] = trio.current_time()
        try:
            if self._shared is None:
                yield
            else:
                with self._shared.greets(scope):
                    yield
        finally:
            del self.greeting[scope]

    async def wait_free(self) -> None:
        """Until a slot is free, here and in `shared`."""
        while True:
            while self.taken >= self.limit:
                self._log.warn("all %d connections are taken, new ones wait; %s", self.limit, self._remedy)
                await self._wait_released()
            if self._shared is None:
                return
            await self._shared.wait_free()
            if self.taken < self.limit:
                return

    async def _wait_released(self) -> None:
        if self._released is None:
            self._released = trio.Event()
        released = self._released
        oldest = next((scope for scope in self.greeting if not scope.cancel_called), None)
        patience = GREETING_S
        if oldest is not None:
            patience = max(0.0, self.greeting[oldest] + GREETING_S - trio.current_time())
            if not patience:
                oldest.cancel()
        elif any(let_go() for let_go in self.relief):
            patience = _RELIEF_S
        with trio.move_on_after(patience or GREETING_S):
            await released.wait()

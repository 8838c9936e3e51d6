"""Lame duck, as connections see it that this room does not know: HTTP/1.1's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Leaving:
    """Whether the server wants its connections to end. What is in progress goes on; what only waits is woken."""

    def __init__(self) -> None:
        self.begun = False
        self._idle: dict[trio.CancelScope, float] = {}
        """With since when; the one that has been idle for the longest first."""

    def begin(self) -> None:
        """No new work from now on."""
        self.begun = True
        for scope in self._idle:
            scope.cancel()

    @contextmanager
    def idle(self) -> Iterator[trio.CancelScope]:
        """A scope for a wait that may be cut short: it is cancelled when this begins, or at once if it has."""
        with trio.CancelScope() as scope:
            if self.begun:
                scope.cancel()
            self._idle[scope] = trio.current_time()
            try:
                yield scope
            finally:
                del self._idle[scope]

    def longest_idle(self) -> tuple[float, trio.CancelScope | None]:
        """Seconds for which one of them has been idle, and what ends its wait. 0 and None if none is."""
        scope = next((each for each in self._idle if not each.cancel_called), None)
        return (0.0, None) if scope is None else (trio.current_time() - self._idle[scope], scope)

"""Lame duck, as connections see it that this room does not know: HTTP/1.1's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Leaving:
    """Whether the server wants its connections to end. What is in progress goes on; what only waits is woken."""

    def __init__(self) -> None:
        self.begun = False
        self._idle: set[trio.CancelScope] = set()

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
            self._idle.add(scope)
            try:
                yield scope
            finally:
                self._idle.discard(scope)

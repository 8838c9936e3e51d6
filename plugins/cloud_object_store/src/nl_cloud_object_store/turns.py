"""Renewing a token in threads, one at a time: who waits meanwhile needs what comes of it, the token or the failure."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

from nl.plugin import BackendError


class Turns:
    """One caller after the other. A server of tokens that is away takes all retries of whoever asks it: those that came
    while one was asking do not ask again, one behind the other, but fail as it did.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._failure = BackendError()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Blocks until it is the caller's. Raises the BackendError of a turn that has ended meanwhile, if one did."""
        before = self._failures
        with self._lock:
            if self._failures != before:
                raise copy(self._failure)
            try:
                yield
            except BackendError as error:
                self._failure = copy(error)  # without the frames that it passes, and what they hold
                self._failures += 1
                raise

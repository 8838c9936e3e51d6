"""Log lines about what a peer may cause as often as it likes: one a minute, with the number of those left out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable


class LimitedLog:
    """`warn` writes the first of its lines at once, then at most one in `period_s` seconds."""

    def __init__(
        self, log: logging.Logger, *, period_s: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._period_s = period_s
        self._clock = clock
        self._next = float("-inf")
        self._left_out = 0

    def warn(self, text: str, *arguments: object) -> None:
        """Logs a warning, or counts it."""
        now = self._clock()
        if now < self._next:
            self._left_out += 1
            return
        self._next = now + self._period_s
        if self._left_out:
            text += " (and %d times more since the last such line)"
            arguments = (*arguments, self._left_out)
            self._left_out = 0
        self._log.warning(text, *arguments)

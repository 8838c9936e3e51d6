"""Two clocks: files have access times of the wall clock, which anybody may set; ages are counted on the monotonic one.

A wall clock that jumps while the store runs changes nobody's age. A change that lasts is taken over after a minute,
so that the access times that are written are right in the end.
"""

from __future__ import annotations

import time

_JUMP_S = 1.0
_LASTING_S = 60.0


class Clock:
    """`time.monotonic()`, and what it means in the times of files."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()
        self._other_offset = self._offset
        self._other_since = 0.0

    def watch(self) -> None:
        """Looks whether the wall clock has been set. Call it now and then."""
        now = time.monotonic()
        offset = time.time() - now
        if abs(offset - self._offset) <= _JUMP_S:
            self._offset = self._other_offset = offset
        elif abs(offset - self._other_offset) > _JUMP_S:
            self._other_offset, self._other_since = offset, now
        elif now - self._other_since > _LASTING_S:
            self._offset = offset

    def of_file(self, atime: float) -> float:
        """When a file was used, by its atime; never in the future."""
        return min(atime - self._offset, time.monotonic())

    def for_file(self, used: float) -> float:
        """The atime of a file that was used at a time."""
        return used + self._offset

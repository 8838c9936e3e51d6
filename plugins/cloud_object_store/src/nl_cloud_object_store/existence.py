"""Objects that were there a moment ago, so that asking twice does not cost two requests.

Only of blobs, never of names whose value may change; only what is there, never what is missing (another server may be
uploading it). Whoever meets a remembered object that is gone says so (`forget`).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from nl.plugin import Digest


class Remembered:
    """Up to `most` digests for `seconds` each, those that were asked for the longest ago dropped first."""

    def __init__(self, seconds: float, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._until: OrderedDict[Digest, float] = OrderedDict()
        self.hits = 0
        self.forgotten = 0
        """Counts calls of `forget` that met something or might have: see `add`."""

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, digest: Digest) -> bool:
        until = self._until.get(digest)
        if until is None:
            return False
        if until <= self._clock():
            del self._until[digest]
            return False
        self._until.move_to_end(digest)
        self.hits += 1
        return True

    def add(self, digest: Digest, *, seconds: float | None = None, since: int | None = None) -> None:
        """Remembers for at most `seconds`, if that is less. `since` is `forgotten` as it was when the question was
        asked: what was forgotten meanwhile may have been this one.
        """
        lasts = self._seconds if seconds is None else min(seconds, self._seconds)
        if lasts <= 0 or (since is not None and since != self.forgotten):
            return
        self._until[digest] = self._clock() + lasts
        self._until.move_to_end(digest)
        while len(self._until) > self._most:
            self._until.popitem(last=False)

    def forget(self, digests: Iterable[Digest]) -> None:
        """They have been found missing, or were deleted."""
        self.forgotten += 1
        for digest in digests:
            self._until.pop(digest, None)

"""A file that is read again when it changes; a wrong one leaves what was read before."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import trio

from nl.errors import ConfigError

_log = logging.getLogger("nl.auth")
LOOK_S = 0.5
"""How often is looked. A change is taken up when two looks have seen the same, so never a file half-written."""
RETRY_S = 10.0
"""How often a file that could not be read is tried again: what was in the way may go without changing the file."""
_Signature = tuple[int, int, int, int]


class WatchedFile:
    """`load(path)` reads the file; it raises ConfigError, and then has changed nothing."""

    def __init__(self, path: str, load: Callable[[str], None]) -> None:
        self.path = path
        self._load = load
        self._loaded: _Signature | None = None
        self._seen: _Signature | None = None
        self._failed_at: float | None = None
        self._problem = ""
        self.on_change: Callable[[], None] | None = None

    def load(self) -> None:
        """For the first time. Raises ConfigError."""
        self._loaded = self._seen = self._signature()
        self._load(self.path)

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Reads the file again if it has changed and is at rest."""
        before, self._seen = self._seen, self._signature()
        if self._seen != before or (self._seen == self._loaded and not self._is_to_be_tried_again()):
            return
        is_news, self._loaded = self._seen != self._loaded, self._seen
        try:
            await trio.to_thread.run_sync(self._load, self.path)
        except ConfigError as exc:
            problem = str(exc)
            if is_news or problem != self._problem:
                _log.error("%s; what was read before stays in force", problem)
            self._failed_at, self._problem = trio.current_time(), problem
            return
        self._failed_at, self._problem = None, ""
        _log.info("read %s again", self.path)
        if self.on_change is not None:
            self.on_change()

    def _is_to_be_tried_again(self) -> bool:
        return self._failed_at is not None and trio.current_time() - self._failed_at >= RETRY_S

    def _signature(self) -> _Signature | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns  # ctime: chmod and chown mend, too

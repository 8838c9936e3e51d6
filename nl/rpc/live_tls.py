"""A listener's TLS that follows its files: certificates are renewed without a restart."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable, Sequence

import trio

from nl.errors import ConfigError

log = logging.getLogger(__name__)
_Signature = tuple[tuple[int, int, int] | None, ...]


class LiveContext:
    """`context` is what new connections get; `run` loads it again when one of the files has changed.

    A change makes a new context, and so ends the resumption of sessions that the old one has begun: a certificate that
    was revoked meanwhile cannot come back by way of a ticket.
    """

    def __init__(self, load: Callable[[], ssl.SSLContext], files: Sequence[str], *, interval_s: float) -> None:
        """Loads at once, and lets out what that raises. `load` raises ConfigError if the files cannot be used."""
        self._load = load
        self._files = tuple(files)
        self._interval_s = interval_s
        self._seen = self._look()
        self.context = load()

    async def run(self) -> None:
        """Looks at the files until cancelled."""
        while True:
            await trio.sleep(self._interval_s)
            await trio.to_thread.run_sync(self._reload, abandon_on_cancel=True)

    def _reload(self) -> None:
        found = self._look()
        if found == self._seen:
            return
        self._seen = found
        try:
            self.context = self._load()
        except ConfigError as exc:
            log.error("TLS files have changed and cannot be used, the earlier ones stay: %s", exc)
        else:
            log.info("TLS files have changed, new connections get them: %s", ", ".join(self._files))

    def _look(self) -> _Signature:
        return tuple(map(_signature, self._files))


def _signature(file: str) -> tuple[int, int, int] | None:
    """What changes when a file is written anew, replaced, or behind a link that points elsewhere now."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns

"""Keys whose value may change and whose last upload the fast store does not have. Pure."""

from __future__ import annotations

import logging

from nl.plugin import Key

MAX_STALE = 50_000
_log = logging.getLogger(__name__)


class Stale:
    """What the fast store must not answer for. Too many to remember are all of them: speed is lost, never the truth."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._keys: set[Key] = set()
        self._all = False

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: Key) -> bool:
        return self._all or key in self._keys

    def add(self, key: Key) -> None:
        """The fast store may have an old value of `key`."""
        if len(self._keys) < MAX_STALE:
            self._keys.add(key)
        elif not self._all:
            self._all = True
            _log.warning(
                "%s: the fast store did not take %d uploads; it serves no action results until the server starts anew",
                self._name, MAX_STALE,
            )  # fmt: skip

    def discard(self, key: Key) -> None:
        """The fast store has the value of `key`, or none."""
        self._keys.discard(key)

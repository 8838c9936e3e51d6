"""Failures of the fast store, which cost speed and never an answer: counted and logged, no more."""

from __future__ import annotations

import logging

from nl.plugin import NlError

_log = logging.getLogger(__name__)


class FastTrouble:
    """The failures of one store's fast side."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.count = 0

    def note(self, verb: str, key: object, error: NlError) -> None:
        """The fast store could not `verb` (read, write, adopt, touch, delete) `key`."""
        self.count += 1
        _log.info("%s: the fast store could not %s %s: %r", self._name, verb, key, error)

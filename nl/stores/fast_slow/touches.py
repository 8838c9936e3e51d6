"""What the fast store answered counts as a use in the slow one, too, or what is used most would be evicted there first.

Hits are gathered and told once a second, many in one trip: a hit costs an entry in a dict. An upload has them told
sooner, as it may be what evicts.
"""

from __future__ import annotations

import logging

import trio

from nl.plugin import Key, NlError, Store

INTERVAL_S = 1.0
REST = 10
"""Between two trips, however many uploads there are, so many times as long as the last one took."""
MAX_TOUCHES = 50_000
"""Keys that wait to be told, some 5 MiB. Beyond, further ones go untold until the next trip."""
MAX_PER_TRIP = 1000
_LAST_S = 5.0
_log = logging.getLogger(__name__)


class Touches:
    """Uses of one store's blobs that it has not been told of. Off until `run`, and where the store takes no notice."""

    def __init__(self, store: Store, *, name: str) -> None:
        self._store = store
        self._name = name
        self._keys: dict[Key, None] = {}
        self._some = trio.Event()
        self._soon = trio.Event()
        self._on = False

    def add(self, key: Key) -> None:
        """`key` was used elsewhere."""
        if self._on and len(self._keys) < MAX_TOUCHES:
            self._keys[key] = None
            if not self._some.is_set():
                self._some.set()

    def tell_soon(self) -> None:
        """Something is about to be evicted, maybe."""
        if self._keys:
            self._soon.set()

    async def run(self) -> None:
        """Tells them, until cancelled, and then once more: the store outlives who stands in front of it."""
        self._on = self._store.traits.tracks_use
        try:
            while True:
                await self._some.wait()
                with trio.move_on_after(INTERVAL_S):
                    await self._soon.wait()
                began = trio.current_time()
                await self._flush()
                await trio.sleep(min(REST * (trio.current_time() - began), INTERVAL_S))
        finally:
            self._on = False
            with trio.move_on_after(_LAST_S, shield=True):
                await self._flush()

    async def _flush(self) -> None:
        keys, self._keys = list(self._keys), {}
        self._some = trio.Event()
        self._soon = trio.Event()
        for at in range(0, len(keys), MAX_PER_TRIP):
            try:
                await self._store.touch(keys[at : at + MAX_PER_TRIP])
            except NlError as error:
                _log.info("%s: the slow store was not told what is used: %r", self._name, error)
                return
            await trio.lowlevel.checkpoint()

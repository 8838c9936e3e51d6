"""Uses of a store's blobs that it does not see, because somebody in front of it has answered: they are told it.

Else what is used most would be evicted there first. A use costs an entry in a dict; many are told in one trip. What a
store refuses because it is away is kept and told when it is back, within a bound.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import chain, islice
from typing import Final

import trio

from nl.errors import DeadlineError, ExhaustedError, NlError
from nl.model.digest import Key
from nl.storage.contract import Store

INTERVAL_S: Final = 1.0
"""The longest pause between two rounds, and the pause after one that was refused."""
REST: Final = 10
"""Between two rounds, however many uses there are, so many times as long as the last one took."""
MAX_USES: Final = 100_000
"""Keys that wait to be told, some 10 MiB. Beyond, further ones go untold until the next round."""
MAX_PER_TRIP: Final = 5000
"""A few milliseconds in a store on this machine."""
LAST_S: Final = 5.0
"""How long the last round may take, when the store in front ends."""
_log = logging.getLogger(__name__)


class Uses:
    """Uses of one store's blobs that it has not been told of. Off until `run`, and where the store takes no notice.

    `name` and `role` say in the log who could not tell whom; `gather_s` is how long the first use waits for others.
    """

    def __init__(self, store: Store, *, name: str, role: str, gather_s: float = 0.0) -> None:
        self._store = store
        self._name = name
        self._role = role
        self._gather_s = gather_s
        self._keys: dict[Key, None] = {}
        self._some = trio.Event()
        self._soon = trio.Event()
        self._on = False
        self._refused = False

    def add(self, key: Key) -> None:
        """`key` was used elsewhere."""
        if self._on and len(self._keys) < MAX_USES:
            self._keys[key] = None
            if not self._some.is_set():
                self._some.set()

    async def add_all(self, keys: Iterable[Key]) -> None:
        """All of these were. If too many wait then, the store is told before this returns, unless it was just away."""
        if not self._on or (self._refused and len(self._keys) >= MAX_USES):
            return
        self._keys.update(dict.fromkeys(keys))
        if self._keys and not self._some.is_set():
            self._some.set()
        if len(self._keys) > MAX_USES:
            await self._tell()

    def forget(self, key: Key) -> None:
        """`key` has gone: nothing is to be told of it."""
        self._keys.pop(key, None)

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
                if self._gather_s:
                    with trio.move_on_after(self._gather_s):
                        await self._soon.wait()
                began = trio.current_time()
                await self._tell()
                took = trio.current_time() - began
                await trio.sleep(INTERVAL_S if self._refused else min(REST * took, INTERVAL_S))
        finally:
            self._on = False
            with trio.move_on_after(LAST_S, shield=True):
                await self._tell()

    async def _tell(self) -> None:
        """One round. *Cancellation*: what has not been told by then waits for the next one."""
        untold, self._keys = list(self._keys), {}
        self._some = trio.Event()
        self._soon = trio.Event()
        at = 0
        try:
            while at < len(untold):
                if await self._tell_some(untold[at : at + MAX_PER_TRIP]):
                    return
                at += MAX_PER_TRIP
                await trio.lowlevel.checkpoint()
        finally:
            if at < len(untold):
                self._keys = dict.fromkeys(islice(chain(untold[at:], self._keys), MAX_USES))
                self._some.set()

    async def _tell_some(self, keys: list[Key]) -> bool:
        """One trip; whether it is to be made again."""
        try:
            await self._store.touch(keys)
        except NlError as error:
            if not self._refused:
                _log.info("%s: %s could not be told of %d uses: %r", self._name, self._role, len(keys), error)
            self._refused = error.retryable or isinstance(error, (DeadlineError, ExhaustedError))
            return self._refused
        self._refused = False
        return False

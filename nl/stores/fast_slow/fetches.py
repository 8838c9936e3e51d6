"""Moving blobs from the slow store to the fast one: once per blob, whoever and however many ask.

A `Fetch` is one such move, a task of the store and not of the reader that caused it: it ends whole, also when that
reader hangs up. Readers watch it through a `Tap` (taps.py).

Rules for this file: at most one fetch per key is in `Fetches.running`; a fetch that leaves `running` has set `done`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack

import trio

from nl.plugin import CHUNK, SMALL, Buffer, Digest, Key, NlError, Reader, Store, TooLargeError
from nl.stores.fast_slow.ring import Ring
from nl.stores.fast_slow.source import Source
from nl.stores.fast_slow.stale import Stale

MAX_FETCHES = 64
"""Fetches at once, a batch of small blobs being one. Beyond it readers are served from the slow store and nothing is
filled."""
_log = logging.getLogger(__name__)


class Fetch:
    """One blob on its way. `whole` is its content if it came in one piece; `slow_error` is why it never came."""

    __slots__ = ("done", "key", "news", "ring", "slow_error", "whole")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.done = trio.Event()
        self.news = trio.Event()  # set when it is known whether the blob is there; `whole` or an error is set by then
        self.whole: Buffer | None = None
        self.ring = Ring()
        self.slow_error: NlError | None = None

    def finish(self) -> None:
        """Says that it has ended, well or not."""
        self.done.set()
        self.news.set()
        self.ring.wake()


class _Passing(Reader):
    """The slow store's bytes on their way into the fast one, shown to who follows as they pass."""

    __slots__ = ("_fetch", "_is_usable", "_reader", "size")

    def __init__(self, reader: Reader, fetch: Fetch) -> None:
        self._reader = reader
        self._fetch = fetch
        self._is_usable = True
        self.size = reader.size

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        self._is_usable = False  # until it returns: a reader that was cancelled, or has failed, can only be closed
        try:
            parts = await self._reader.receive_parts(max_bytes)
        except NlError as error:
            self._fetch.slow_error = error
            raise
        self._fetch.ring.append(parts)
        self._is_usable = bool(parts)
        return parts

    async def go_on_for_followers(self) -> None:
        """To the end, where the fast store takes no more: who has had the first bytes needs the check of them all."""
        while self._is_usable and self._fetch.ring.watchers:
            await self.receive_parts()
            await trio.lowlevel.checkpoint()


class Fetches:
    """The fetches of one store. `nursery` is set while the store runs; without it nothing is fetched."""

    def __init__(self, *, fast: Store, source: Source, stale: Stale, name: str) -> None:
        self._fast = fast
        self._source = source
        self._stale = stale
        self._name = name
        self._warned = False
        self._tasks = 0
        self.running: dict[Key, Fetch] = {}
        self.nursery: trio.Nursery | None = None
        self.completed = 0
        self.failed = 0

    def join(self, key: Key) -> Fetch | None:
        """The fetch of `key` under way, or a new one as a task of the store; None if there is no room for more."""
        fetch = self.running.get(key)
        if fetch is None and self.nursery is not None and self._tasks < MAX_FETCHES:
            fetch = self.running[key] = Fetch(key)
            self._tasks += 1
            self.nursery.start_soon(self._fetch, [fetch])
        return fetch

    def join_many(self, keys: Sequence[Key]) -> list[Fetch]:
        """The fetches of small blobs, as far as there is room for more: new ones are one trip, and one task."""
        new: list[Fetch] = []
        fetches: list[Fetch] = []
        if self.nursery is None:
            return fetches
        for key in keys:
            fetch = self.running.get(key)
            if fetch is None and self._tasks < MAX_FETCHES:
                fetch = self.running[key] = Fetch(key)
                new.append(fetch)
            if fetch is not None:
                fetches.append(fetch)
        if new:
            self._tasks += 1
            self.nursery.start_soon(self._fetch, new)
        return fetches

    async def fetch_here(self, keys: Sequence[Key]) -> list[Fetch]:
        """The fetches of one blob, or of several small ones, finished; new ones in the caller's task."""
        fetches: list[Fetch] = []
        new: list[Fetch] = []
        for key in dict.fromkeys(keys):
            fetch = self.running.get(key)
            if fetch is None:
                fetch = self.running[key] = Fetch(key)
                new.append(fetch)
            fetches.append(fetch)
        if new:
            self._tasks += 1
            await self._fetch(new)
        for fetch in fetches:
            await fetch.done.wait()
        return fetches

    async def wait_idle(self) -> None:
        """Returns when no fetch is under way."""
        while self.running:
            await next(iter(self.running.values())).done.wait()

    async def _fetch(self, fetches: list[Fetch]) -> None:
        try:
            key = fetches[0].key
            if len(fetches) > 1:
                await self._carry_many(fetches)
            elif isinstance(key, Digest) and key.size > SMALL:
                await self._stream(fetches[0])
            else:
                await self._carry(fetches[0])
        except Exception as error:  # noqa: BLE001 - a bug in one store must not end the task that runs them all
            # Readers fall back on the slow store and meet its errors themselves; a fast store that fails costs speed.
            untold = [fetch for fetch in fetches if fetch.slow_error is None]
            if untold:
                self._note_failure(untold, error)
        else:
            self._warned = False
        finally:
            self._tasks -= 1
            for fetch in fetches:
                del self.running[fetch.key]
                fetch.finish()

    async def _carry(self, fetch: Fetch) -> None:
        """A small blob: whole."""
        try:
            data = await self._source.get(fetch.key)
        except TooLargeError:
            return await self._stream(fetch)
        except NlError as error:
            fetch.slow_error = error
            raise
        fetch.whole = data
        fetch.news.set()
        await self._fast.put(fetch.key, data)
        self._filled(fetch.key)
        return None

    async def _carry_many(self, fetches: list[Fetch]) -> None:
        """Small blobs: in one trip."""
        came: list[tuple[Fetch, Buffer]] = []
        try:
            found = await self._source.get_many([fetch.key for fetch in fetches])
        except NlError as error:
            for fetch in fetches:
                fetch.slow_error = error
            raise
        for fetch, data in zip(fetches, found, strict=True):
            if isinstance(data, NlError):
                fetch.slow_error = data
            else:
                fetch.whole = data
                came.append((fetch, data))
            fetch.news.set()
        failed = await self._fast.put_many([(fetch.key, data) for fetch, data in came])
        for (fetch, _), refusal in zip(came, failed, strict=True):
            if refusal is None:
                self._filled(fetch.key)
            else:
                self._note_failure([fetch], refusal)

    async def _stream(self, fetch: Fetch) -> None:
        """A large blob: piece by piece."""
        async with AsyncExitStack() as stack:
            try:
                reader = await self._source.open(fetch.key, stack)
            except NlError as error:
                fetch.slow_error = error
                raise
            fetch.news.set()
            passing = _Passing(reader, fetch)
            try:
                await self._fast.write(fetch.key, passing)
            except NlError:
                await passing.go_on_for_followers()
                raise
        self._filled(fetch.key)

    def _filled(self, key: Key) -> None:
        self.completed += 1
        self._stale.discard(key)

    def _note_failure(self, fetches: Sequence[Fetch], error: Exception) -> None:
        self.failed += len(fetches)
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        _log.log(level, "%s: the fast store did not take %s: %r", self._name, fetches[0].key, error)

"""Moving blobs from the slow store to the fast one: once per blob, whoever and however many ask.

A `Fetch` is one such move, a task of the store and not of the reader that caused it: it ends whole, also when that
reader hangs up. Readers watch it through a `Tap`, which never holds it up: a tap that falls too far behind lets go,
waits for the fetch to end and continues from the fast store, or from the slow one if that did not work out.

Rules for this file: at most one fetch per key is in `Fetches.running`; a fetch that leaves `running` has set `done`;
a tap delivers exactly the bytes of its range, whichever store they come from.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Protocol

import trio

from nl.plugin import CHUNK, SMALL, Buffer, Digest, ExhaustedError, Key, NlError, Reader, Store

MAX_FETCHES = 64
"""Fetches at once. Beyond it readers are served from the slow store and nothing is filled."""
MAX_LAG = 1024 * 1024
"""Bytes that a tap holds for its reader, and how far ahead of a fetch a tap may wait for its first byte."""
_log = logging.getLogger(__name__)


class Fetch:
    """One blob on its way. `whole` is its content if it came in one piece; `slow_error` is why it never came."""

    __slots__ = ("done", "key", "news", "position", "slow_error", "taps", "whole")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.done = trio.Event()
        self.news = trio.Event()  # set when it is known whether the blob is there; `whole` or an error is set by then
        self.whole: Buffer | None = None
        self.position = 0
        self.taps: list[Tap] = []
        self.slow_error: NlError | None = None


class _Passing(Reader):
    """The slow store's bytes on their way into the fast one, shown to the taps as they pass."""

    __slots__ = ("_fetch", "_reader", "size")

    def __init__(self, reader: Reader, fetch: Fetch) -> None:
        self._reader = reader
        self._fetch = fetch
        self.size = reader.size

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        fetch = self._fetch
        try:
            parts = await self._reader.receive_parts(max_bytes)
        except NlError as error:
            fetch.slow_error = error
            raise
        start = fetch.position
        fetch.position += sum(map(len, parts))
        for tap in fetch.taps:
            tap.feed(parts, start=start)
        return parts


class Fetches:
    """The fetches of one store. `nursery` is set while the store runs; without it nothing is fetched."""

    def __init__(self, *, fast: Store, slow: Store, name: str) -> None:
        self._fast = fast
        self._slow = slow
        self._name = name
        self._warned = False
        self.running: dict[Key, Fetch] = {}
        self.nursery: trio.Nursery | None = None
        self.completed = 0
        self.failed = 0

    def join(self, key: Key) -> Fetch | None:
        """The fetch of `key` under way, or a new one as a task of the store; None if there is no room for more."""
        fetch = self.running.get(key)
        if fetch is None and self.nursery is not None and len(self.running) < MAX_FETCHES:
            fetch = self.running[key] = Fetch(key)
            self.nursery.start_soon(self._run, fetch)
        return fetch

    async def fetch_here(self, key: Key) -> Fetch:
        """The fetch of `key`, finished; it runs in the caller's task unless one is under way."""
        fetch = self.running.get(key)
        if fetch is not None:
            await fetch.done.wait()
        else:
            fetch = self.running[key] = Fetch(key)
            await self._run(fetch)
        return fetch

    async def wait_idle(self) -> None:
        """Returns when no fetch is under way."""
        while self.running:
            await next(iter(self.running.values())).done.wait()

    async def _run(self, fetch: Fetch) -> None:
        try:
            if isinstance(fetch.key, Digest) and fetch.key.size > SMALL:
                await self._stream(fetch)
            else:
                await self._carry(fetch)
        except Exception as error:  # noqa: BLE001 - a bug in one store must not end the task that runs them all
            # Readers fall back on the slow store and meet its errors themselves; a fast store that fails costs speed.
            if fetch.slow_error is None:
                self.failed += 1
                level = logging.DEBUG if self._warned else logging.WARNING
                self._warned = True
                _log.log(level, "%s: the fast store did not take %s: %r", self._name, fetch.key, error)
        else:
            self._warned = False
            self.completed += 1
        finally:
            del self.running[fetch.key]
            fetch.done.set()
            fetch.news.set()
            for tap in fetch.taps:
                tap.news.set()

    async def _carry(self, fetch: Fetch) -> None:
        """Small blobs: whole."""
        try:
            data = await self._slow.get(fetch.key)
        except ExhaustedError:
            return await self._stream(fetch)
        except NlError as error:
            fetch.slow_error = error
            raise
        fetch.whole = data
        fetch.news.set()
        await self._fast.put(fetch.key, data)
        return None

    async def _stream(self, fetch: Fetch) -> None:
        """Large blobs: piece by piece."""
        async with AsyncExitStack() as stack:
            try:
                reader = await stack.enter_async_context(self._slow.open(fetch.key))
            except NlError as error:
                fetch.slow_error = error
                raise
            fetch.news.set()
            await self._fast.write(fetch.key, _Passing(reader, fetch))


class Reopen(Protocol):
    """How a tap gets a reader over the rest of its range when the fetch has ended."""

    async def __call__(self, *, offset: int, length: int) -> Reader:
        """A reader that is closed together with the tap."""
        ...


class Tap(Reader):
    """Bytes [offset, offset + size) of a blob that is being fetched, for one reader."""

    __slots__ = (
        "_at", "_buffered", "_end", "_fed", "_fetch", "_later", "_let_go", "_pieces", "_reopen", "news", "size",
    )

    def __init__(self, fetch: Fetch, *, offset: int, size: int, reopen: Reopen) -> None:
        self._fetch = fetch
        self._at = self._fed = offset
        self._end = offset + size
        self._pieces: deque[memoryview] = deque()
        self._buffered = 0
        self._let_go = False
        self._later: Reader | None = None
        self._reopen = reopen
        self.size = size
        self.news = trio.Event()
        fetch.taps.append(self)

    def feed(self, parts: Sequence[Buffer], *, start: int) -> None:
        """Takes what passes: bytes from `start` on. Copies, as the buffers are the fetch's."""
        if self._let_go or start > self._fed:
            self._let_go = True
        for part in parts:
            if self._let_go or self._fed >= self._end:
                break
            stop = start + len(part)
            if stop > self._fed:
                piece = bytes(memoryview(part)[self._fed - start : self._end - start])
                if self._buffered + len(piece) > MAX_LAG:
                    self._let_go = True
                    break
                self._pieces.append(memoryview(piece))
                self._buffered += len(piece)
                self._fed += len(piece)
            start = stop
        self.news.set()

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        while self._at < self._end:
            if self._pieces:
                return self._take(max_bytes)
            if self._later is not None:
                return await self._later.receive_parts(max_bytes)
            if self._let_go or self._fetch.done.is_set():
                await self._fetch.done.wait()
                self._later = await self._reopen(offset=self._at, length=self._end - self._at)
            else:
                self.news = trio.Event()
                await self.news.wait()
        return ()

    def close(self) -> None:
        """Takes no more."""
        self._let_go = True
        self._pieces.clear()
        if self in self._fetch.taps:
            self._fetch.taps.remove(self)

    def _take(self, max_bytes: int) -> Sequence[Buffer]:
        piece = self._pieces[0]
        got = piece[:max_bytes]
        if len(got) == len(piece):
            self._pieces.popleft()
        else:
            self._pieces[0] = piece[max_bytes:]
        self._buffered -= len(got)
        self._at += len(got)
        return (got,)

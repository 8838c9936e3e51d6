"""A reader of a blob that is being fetched: it follows the fetch and never holds it up.

A tap that falls behind the fetch's ring lets go, waits for the fetch to end and continues from the fast store, or from
the slow one if that did not take the blob, which then has been checked to its end all the same, or if the fetch stands
still. It delivers exactly the bytes of its range, whichever store they come from. Once it has delivered some, it ends
with the slow store's failure: nobody could say whether what another attempt brings belongs to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import trio

from nl.plugin import CHUNK, Buffer, CorruptBlobError, Reader, UnavailableError
from nl.stores.fast_slow.fetches import Fetch

FOLLOWER_WAIT_S = 60.0
"""How long a reader waits for more of a fetch, or for its end, before it reads the slow store by itself."""


class Reopen(Protocol):
    """How a tap gets a reader over the rest of its range when the fetch has ended."""

    async def __call__(self, *, offset: int, length: int) -> Reader:
        """A reader that is closed together with the tap."""
        ...


class Tap(Reader):
    """Bytes [offset, offset + size) of a blob that is being fetched, for one reader."""

    __slots__ = ("_at", "_begin", "_closed", "_end", "_fetch", "_later", "_reopen", "size")

    def __init__(self, fetch: Fetch, *, offset: int, size: int, reopen: Reopen) -> None:
        self._fetch = fetch
        self._begin = self._at = offset
        self._end = offset + size
        self._later: Reader | None = None
        self._reopen = reopen
        self._closed = False
        self.size = size
        fetch.ring.watchers += 1

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        ring, fetch = self._fetch.ring, self._fetch
        while self._at < self._end:
            if self._later is not None:
                return await self._later.receive_parts(max_bytes)
            if ring.start <= self._at < ring.end:
                piece = ring.piece(self._at)[: min(max_bytes, self._end - self._at)]
                self._at += len(piece)
                return (piece,)
            with trio.move_on_after(FOLLOWER_WAIT_S):
                if self._at >= ring.end and not fetch.done.is_set():
                    await ring.wait()
                    continue
                await fetch.done.wait()
            self.close()
            if isinstance(fetch.slow_error, CorruptBlobError):
                raise CorruptBlobError(fetch.slow_error.message)
            if fetch.slow_error is not None and self._at > self._begin:
                raise UnavailableError(f"{fetch.key}: the slow store failed midway: {fetch.slow_error.message}")
            self._later = await self._reopen(offset=self._at, length=self._end - self._at)
        return ()

    def close(self) -> None:
        """Follows no more. Harmless if repeated."""
        if not self._closed:
            self._closed = True
            self._fetch.ring.watchers -= 1

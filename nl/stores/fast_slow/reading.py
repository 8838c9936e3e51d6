"""Reading through a fast_slow store: the fast store, else a fetch that fills it, else the slow store by itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import cast

import trio

from nl.plugin import (
    MAX_WHOLE,
    SMALL,
    Buffer,
    CorruptBlobError,
    Digest,
    Key,
    NlError,
    NotFoundError,
    RangeError,
    Reader,
    Store,
    TooLargeError,
    Uses,
    clamp,
    slice_bytes,
)
from nl.stores.fast_slow.fetches import Fetch, Fetches
from nl.stores.fast_slow.options import Routes
from nl.stores.fast_slow.ring import RING_BYTES
from nl.stores.fast_slow.source import Source, found_nowhere
from nl.stores.fast_slow.stale import Stale
from nl.stores.fast_slow.taps import FOLLOWER_WAIT_S, Tap
from nl.stores.fast_slow.trouble import FastTrouble
from nl.stores.fast_slow.uploads import Uploads


class Reading:
    """The reading half of one store. `threshold`: digests at least so large never fill the fast store; 0: all may."""

    def __init__(
        self, routes: Routes, *, fast: Store, source: Source, fetches: Fetches, uploads: Uploads, stale: Stale,
        uses: Uses, trouble: FastTrouble, threshold: int,
    ) -> None:
        self._routes = routes
        self._fast = fast
        self._source = source
        self._fetches = fetches
        self._uploads = uploads
        self._stale = stale
        self._uses = uses
        self._trouble = trouble
        self._threshold = threshold
        self.hits = 0
        self.misses = 0
        self.bypassed = 0
        self.follower_timeouts = 0

    # --- whole blobs

    async def get(self, key: Key) -> Buffer:
        """See `Store.get`."""
        if self._reads_fast(key):
            try:
                data = await self._fast.get(key)
            except TooLargeError:
                raise  # it is there; the slow store would say the same
            except NotFoundError:
                pass
            except NlError as error:
                self._trouble.note("read", key, error)
            else:
                self._count_hit(key)
                return data
        self.misses += 1
        return await self._get_missed(key)

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        """See `Store.get_many`: what the fast store lacks comes from the slow one in one trip."""
        found: dict[int, Buffer | NlError] = {}
        asked = [at for at, key in enumerate(keys) if self._reads_fast(key)]
        if asked:
            for at, data in zip(asked, await self._get_many_fast([keys[at] for at in asked]), strict=True):
                if not isinstance(data, NlError):
                    self._count_hit(keys[at])
                    found[at] = data
                elif isinstance(data, TooLargeError):
                    found[at] = data
                elif not isinstance(data, NotFoundError):
                    self._trouble.note("read", keys[at], data)
        missed = [at for at in range(len(keys)) if at not in found]
        self.misses += len(missed)
        if missed:
            found.update(zip(missed, await self._get_many_missed([keys[at] for at in missed]), strict=True))
        return [found[at] for at in range(len(keys))]

    async def _get_many_fast(self, keys: Sequence[Key]) -> Sequence[Buffer | NlError]:
        try:
            return await self._fast.get_many(keys)
        except NlError as error:
            return [error] * len(keys)

    async def _get_many_missed(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        found: dict[Key, Buffer | NlError] = {}
        filling = [key for key in dict.fromkeys(keys) if _is_whole(key) and self._fills(key)]
        with trio.move_on_after(FOLLOWER_WAIT_S) as scope:
            for fetch in self._fetches.join_many(filling):
                if (data := await _outcome(fetch)) is not None:
                    found[fetch.key] = data
        self.follower_timeouts += scope.cancelled_caught
        rest = [key for key in dict.fromkeys(keys) if key not in found]
        if rest:
            found.update(zip(rest, await self._source.get_many(rest), strict=True))
        return [found[key] for key in keys]

    async def _get_missed(self, key: Key) -> Buffer:
        """A whole blob that the fast store has not: by a fetch, its own or one under way, else from the slow store."""
        if _is_whole(key) and self._fills(key) and (fetch := self._fetches.join(key)) is not None:
            data: Buffer | NlError | None = None
            with trio.move_on_after(FOLLOWER_WAIT_S) as scope:
                data = await _outcome(fetch)
            self.follower_timeouts += scope.cancelled_caught
            if isinstance(data, NlError):
                raise data
            if data is not None:
                return data
            if fetch.slow_error is None and fetch.done.is_set():
                try:
                    return await self._fast.get(key)
                except TooLargeError:
                    raise
                except NlError:
                    pass  # evicted again, or never taken: the slow store has it
        return await self._source.get(key)

    # --- readers

    async def open(self, key: Key, stack: AsyncExitStack, *, offset: int, length: int | None) -> Reader:
        """A reader as `Store.open` has it, closed by `stack`."""
        if self._reads_fast(key):
            reader = await self._open_fast(key, stack, offset=offset, length=length)
            if reader is not None:
                self._count_hit(key)
                return reader
        self.misses += 1
        if self._fills(key):
            if not isinstance(key, Digest) or key.size <= SMALL:
                try:
                    return slice_bytes(await self._get_missed(key), offset=offset, length=length)
                except TooLargeError:
                    pass  # a large value under a key that does not tell: streamed below
            elif (fetch := self._fetches.join(key)) is not None:
                reader = await self._follow(fetch, stack, offset=offset, length=length)
                if reader is not None:
                    return reader
        return await self._source.open(key, stack, offset=offset, length=length)

    async def _follow(self, fetch: Fetch, stack: AsyncExitStack, *, offset: int, length: int | None) -> Reader | None:
        """A reader fed by a fetch, from the fast store when it has ended; None if the slow store is to be read."""
        key = cast(Digest, fetch.key)
        if offset - fetch.ring.end > RING_BYTES:
            return None  # a range far ahead: sooner read by itself, while the fetch goes on
        if offset < fetch.ring.start:
            with trio.move_on_after(FOLLOWER_WAIT_S) as scope:
                await fetch.done.wait()
            self.follower_timeouts += scope.cancelled_caught
            return await self._open_fast(key, stack, offset=offset, length=length)

        async def reopen(*, offset: int, length: int) -> Reader:
            self.follower_timeouts += not fetch.done.is_set()
            reader = await self._open_fast(key, stack, offset=offset, length=length)
            return reader or await self._source.open(key, stack, offset=offset, length=length)

        tap = Tap(fetch, offset=offset, size=clamp(key.size, offset, length), reopen=reopen)
        stack.callback(tap.close)
        await fetch.news.wait()
        if fetch.whole is not None:
            return slice_bytes(fetch.whole, offset=offset, length=length)
        return None if fetch.slow_error is not None and not fetch.ring.end else tap

    async def _open_fast(
        self, key: Key, stack: AsyncExitStack, *, offset: int, length: int | None
    ) -> Reader | None:
        try:
            return await stack.enter_async_context(self._fast.open(key, offset=offset, length=length))
        except RangeError:
            raise
        except NotFoundError:
            return None
        except NlError as error:
            self._trouble.note("read", key, error)
            return None

    # --- who takes part

    def _reads_fast(self, key: Key) -> bool:
        """Whether the fast store may answer. Not with a value that a later upload did not replace there."""
        return self._routes.reads_fast and (type(key) is Digest or key not in self._stale)

    def _fills(self, key: Key) -> bool:
        """Whether a miss of `key` is to fill the fast store. Not while the key's value is being changed."""
        if not self._routes.fills_fast:
            return False
        if not isinstance(key, Digest):
            return key not in self._uploads
        if self._threshold and key.size >= self._threshold:
            self.bypassed += 1
            return False
        return True

    def _count_hit(self, key: Key) -> None:
        self.hits += 1
        self._uses.add(key)


def _is_whole(key: Key) -> bool:
    """Whether the blob can be had whole; of keys that are no digests it is not known before."""
    return not isinstance(key, Digest) or key.size <= MAX_WHOLE


async def _outcome(fetch: Fetch) -> Buffer | NlError | None:
    """A fetch's blob, or why there is none; None if the stores are to be asked."""
    await fetch.news.wait()
    if fetch.whole is None and fetch.slow_error is None:
        await fetch.done.wait()  # it comes as a stream
    if isinstance(fetch.slow_error, (NotFoundError, CorruptBlobError)):
        return found_nowhere(fetch.key)
    return fetch.whole

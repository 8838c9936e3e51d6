"""The `fast_slow` store itself: who is asked, in which order, and what a failure of either side means.

The slow store is the truth. What it has not, `has` does not report, even if the fast one has it, so that clients
upload again what the slow store lost. Trouble in the fast store costs speed, never an answer: reads fall through,
uploads succeed when the slow store has them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cached_property
from typing import TypeVar, cast

import trio

from nl.plugin import (
    CHUNK,
    MAX_WHOLE,
    SMALL,
    BlobNotFoundError,
    BlobSizeLimit,
    Buffer,
    Digest,
    Discards,
    ExhaustedError,
    Key,
    LocalFiles,
    NlError,
    NotFoundError,
    RangeError,
    Reader,
    Store,
    StoreContext,
    Tee,
    clamp,
    slice_bytes,
)
from nl.stores.fast_slow.fetches import MAX_LAG, Fetch, Fetches, Tap
from nl.stores.fast_slow.files import FastSlowFiles
from nl.stores.fast_slow.options import FastSlowOptions, Routes
from nl.stores.fast_slow.uploads import Uploads

C = TypeVar("C")
FOLLOWER_WAIT_S = 60.0
"""How long a reader that came late waits for a fetch under way before it reads the slow store by itself."""
MAX_STALE = 50_000
"""Changeable keys whose last value the fast store did not take."""
_log = logging.getLogger(__name__)


class FastSlowStore(Store):
    """See the module. `run` owns the fetches: they end whole even if the readers that caused them are gone."""

    Options = FastSlowOptions

    def __init__(self, options: FastSlowOptions, context: StoreContext) -> None:
        self._options = options
        self._name = context.name
        self.fast = context.child(options.fast)
        self.slow = context.child(options.slow)
        self.fetches = Fetches(fast=self.fast, slow=self.slow, name=context.name)
        self.uploads = Uploads()
        self._stale: set[Key] = set()
        self._hits = 0
        self._misses = 0
        self._fast_failures = 0
        self._bypassed = 0
        self._follower_timeouts = 0

    @cached_property
    def routes(self) -> Routes:
        """Who takes part in what. Known only when the store runs, as a child may be a reference to a later store."""
        return Routes.plan(self._options, fast=self.fast, slow=self.slow)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self.fetches.nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self.fetches.nursery = None

    # --- existence

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        routes = self.routes
        if not routes.reads_slow:
            return await self.fast.has(keys)
        sizes = await self.slow.has(keys)
        if self.uploads and routes.writes_slow and None in sizes:
            waited = await self.uploads.wait_for([key for key, size in zip(keys, sizes, strict=True) if size is None])
            await _fill_in(sizes, keys, waited, self.slow)
        if not routes.writes_slow and routes.reads_fast and None in sizes:
            # Uploads go to the fast store alone, so it is the truth about them.
            await _fill_in(sizes, keys, set(keys), self.fast)
        return sizes

    # --- reading

    async def get(self, key: Key) -> Buffer:
        if self._reads_fast(key):
            try:
                data = await self.fast.get(key)
            except NotFoundError:
                pass
            except ExhaustedError:
                raise
            except NlError as error:
                self._note_fast_failure("read", key, error)
            else:
                self._hits += 1
                return data
        self._misses += 1
        return await self._get_missed(key)

    async def _get_missed(self, key: Key) -> Buffer:
        """A whole blob that the fast store has not: by a fetch, its own or one under way, else from the slow store."""
        too_large = isinstance(key, Digest) and key.size > MAX_WHOLE
        if not too_large and self._fills(key) and (fetch := self.fetches.join(key)) is not None:
            with trio.move_on_after(FOLLOWER_WAIT_S) as scope:
                await fetch.news.wait()
                if fetch.whole is None:
                    await fetch.done.wait()
            if fetch.whole is not None:
                return fetch.whole
            self._follower_timeouts += scope.cancelled_caught
            if fetch.slow_error is None and fetch.done.is_set():
                try:
                    return await self.fast.get(key)
                except ExhaustedError:
                    raise
                except NlError:
                    pass  # evicted again, or never taken: the slow store has it
        return await self._get_slow(key)

    async def _get_slow(self, key: Key) -> Buffer:
        try:
            return await self.slow.get(key)
        except NotFoundError as error:
            raise _found_nowhere(key) from error

    @asynccontextmanager
    async def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AsyncIterator[Reader]:
        async with AsyncExitStack() as stack:
            yield await self._open(key, offset=offset, length=length, stack=stack)

    async def _open(self, key: Key, *, offset: int, length: int | None, stack: AsyncExitStack) -> Reader:
        if self._reads_fast(key):
            reader = await self._open_fast(key, offset=offset, length=length, stack=stack)
            if reader is not None:
                self._hits += 1
                return reader
        self._misses += 1
        if self._fills(key):
            if not isinstance(key, Digest) or key.size <= SMALL:
                try:
                    return slice_bytes(await self._get_missed(key), offset=offset, length=length)
                except ExhaustedError:
                    pass  # a large value under a key that does not tell: streamed below
            elif (fetch := self.fetches.join(key)) is not None:
                reader = await self._follow(fetch, offset=offset, length=length, stack=stack)
                if reader is not None:
                    return reader
        return await self._open_slow(key, offset=offset, length=length, stack=stack)

    async def _follow(
        self, fetch: Fetch, *, offset: int, length: int | None, stack: AsyncExitStack
    ) -> Reader | None:
        """A reader fed by a fetch, from the fast store when it has ended; None if the slow store is to be read."""
        key = cast(Digest, fetch.key)
        if offset - fetch.position > MAX_LAG:
            return None  # a range far ahead: sooner read by itself, while the fetch goes on
        if fetch.position > offset:
            with trio.move_on_after(FOLLOWER_WAIT_S) as scope:
                await fetch.done.wait()
            if scope.cancelled_caught:
                self._follower_timeouts += 1
            return await self._open_fast(key, offset=offset, length=length, stack=stack)

        async def reopen(*, offset: int, length: int) -> Reader:
            reader = await self._open_fast(key, offset=offset, length=length, stack=stack)
            return reader or await self._open_slow(key, offset=offset, length=length, stack=stack)

        tap = Tap(fetch, offset=offset, size=clamp(key.size, offset, length), reopen=reopen)
        stack.callback(tap.close)
        await fetch.news.wait()
        return None if fetch.slow_error is not None else tap

    async def _open_fast(
        self, key: Key, *, offset: int, length: int | None, stack: AsyncExitStack
    ) -> Reader | None:
        try:
            return await stack.enter_async_context(self.fast.open(key, offset=offset, length=length))
        except RangeError:
            raise
        except NotFoundError:
            return None
        except NlError as error:
            self._note_fast_failure("read", key, error)
            return None

    async def _open_slow(self, key: Key, *, offset: int, length: int | None, stack: AsyncExitStack) -> Reader:
        try:
            return await stack.enter_async_context(self.slow.open(key, offset=offset, length=length))
        except NotFoundError as error:
            raise _found_nowhere(key) from error

    def _reads_fast(self, key: Key) -> bool:
        """Whether the fast store may answer. Not with a value that a later upload did not replace there."""
        routes = self.routes
        if isinstance(key, Digest) or not routes.writes_slow:
            return routes.reads_fast
        return routes.writes_fast and key not in self._stale

    def _fills(self, key: Key) -> bool:
        """Whether a miss of `key` is to fill the fast store. Not while the key's value is being changed."""
        if not self.routes.fills_fast:
            return False
        if not isinstance(key, Digest) and (key in self.uploads or not self._reads_fast(key)):
            return False
        threshold = self._options.bypass_dedup_threshold_bytes
        if threshold and isinstance(key, Digest) and key.size >= threshold:
            self._bypassed += 1
            return False
        return True

    # --- writing

    async def put(self, key: Key, data: Buffer) -> None:
        routes = self.routes
        async with self.uploads.under_way(key):
            await self._settle(key)
            if routes.writes_slow:
                await self.slow.put(key, data)
            if routes.writes_fast:
                try:
                    await self.fast.put(key, data)
                except NlError as error:
                    if not routes.writes_slow:
                        raise
                    self._note_not_written(key, error)
                else:
                    self._stale.discard(key)

    async def write(self, key: Key, reader: Reader) -> None:
        routes = self.routes
        async with self.uploads.under_way(key):
            await self._settle(key)
            if routes.writes_slow and routes.writes_fast:
                await self._write_both(key, reader)
            elif routes.writes_slow:
                await self.slow.write(key, reader)
            elif routes.writes_fast:
                await self.fast.write(key, reader)
            else:
                while await reader.receive_parts():
                    pass

    async def _write_both(self, key: Key, reader: Reader) -> None:
        """Both at once, but the fast store meets the end of the bytes only when the slow one has them all."""
        tee = Tee(reader)
        slow_has_it = trio.Event()
        failures: list[Exception] = []
        refusals: list[NlError] = []

        async def write_fast() -> None:
            try:
                await self.fast.write(key, _HeldBack(tee.left, slow_has_it))
            except NlError as error:
                if tee.error is None:
                    refusals.append(error)
            except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery that would wrap it
                failures.append(error)
            else:
                self._stale.discard(key)
            finally:
                tee.left.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_fast)
            try:
                await self.slow.write(key, tee.right)
                slow_has_it.set()
            except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery that would wrap it
                failures.insert(0, error)
                nursery.cancel_scope.cancel()
            finally:
                tee.right.close()
        if failures:
            raise failures[0]
        if refusals:
            self._note_not_written(key, refusals[0])

    async def _settle(self, key: Key) -> None:
        """Before a changeable key is written: lets a fetch of its old value end; none starts until the upload has."""
        if not isinstance(key, Digest) and (fetch := self.fetches.running.get(key)) is not None:
            await fetch.done.wait()

    def _note_not_written(self, key: Key, error: NlError) -> None:
        """The upload is in the slow store only. An old value of a changeable key in the fast one must not be served.

        Raises `error` if too many keys are in that state to remember another: better a failed upload than a lie.
        """
        self._note_fast_failure("write", key, error)
        if not isinstance(key, Digest):
            if len(self._stale) >= MAX_STALE:
                raise error
            self._stale.add(key)

    def _note_fast_failure(self, verb: str, key: Key, error: NlError) -> None:
        self._fast_failures += 1
        _log.info("%s: the fast store could not %s %s: %r", self._name, verb, key, error)

    # --- the rest

    def capability(self, kind: type[C]) -> C | None:
        if kind is LocalFiles:
            files = self.fast.capability(LocalFiles) if self.routes.reads_fast else None
            if files is not None:
                return cast(C, FastSlowFiles(self, files))
            return cast("C | None", self.slow.capability(LocalFiles) if self.routes.writes_slow else None)
        if kind is BlobSizeLimit:  # what the slow store has taken is kept, whether the fast one has it or not
            return (self.slow if self.routes.writes_slow else self.fast).capability(kind)
        if kind is Discards and not (self.routes.reads_fast or self.routes.reads_slow):
            return self.slow.capability(kind)
        return None

    def statistics(self) -> Mapping[str, int | float | str]:
        return {
            "fast_hits": self._hits,
            "fast_misses": self._misses,
            "fast_failures": self._fast_failures,
            "fetches": len(self.fetches.running),
            "fetches_completed": self.fetches.completed,
            "fetches_failed": self.fetches.failed,
            "bypassed": self._bypassed,
            "stale_in_fast": len(self._stale),
            "follower_timeouts": self._follower_timeouts,
        }

    def __repr__(self) -> str:
        return f"<FastSlowStore {self._name!r}: {self.fast!r} in front of {self.slow!r}>"


class _HeldBack(Reader):
    """A reader that ends only when an event is set."""

    __slots__ = ("_event", "_reader", "size")

    def __init__(self, reader: Reader, event: trio.Event) -> None:
        self._reader = reader
        self._event = event
        self.size = reader.size

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        parts = await self._reader.receive_parts(max_bytes)
        if not parts:
            await self._event.wait()
        return parts


async def _fill_in(sizes: list[int | None], keys: Sequence[Key], wanted: set[Key], store: Store) -> None:
    """Asks `store` about those `wanted` keys that have no size yet."""
    at = [index for index, size in enumerate(sizes) if size is None and keys[index] in wanted]
    if at:
        for index, size in zip(at, await store.has([keys[index] for index in at]), strict=True):
            sizes[index] = size


def _found_nowhere(key: Key) -> BlobNotFoundError:
    return BlobNotFoundError(
        key,
        message=f"Object {key} not found in either fast or slow store. If using multiple workers, ensure all workers "
        "share the same CAS storage path.",
    )

"""The `existence_cache` kind: remembers what a store far away has, so that asking again costs no trip.

Only a yes is remembered. It is forgotten when the backend says that the blob has gone (`Removals`), when reading it
finds nothing, and after a while in any case where the backend cannot say so: an upload is never left out because of
what is remembered there (`Traits.authoritative`). An answer that was under way when its blob went is given, since it
was true when the backend gave it, but not remembered (`_Meanwhile`). What is answered from memory is a use all the
same: the backend is told of it in batches.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import field, replace
from functools import cached_property
from typing import Final, TypeVar, cast

import trio

from nl.plugin import (
    EMPTY_DIGESTS,
    BlobNotFoundError,
    BlobSizeLimit,
    Buffer,
    CorruptBlobError,
    Deletes,
    Digest,
    EvictionPolicy,
    Key,
    LruIndex,
    NlError,
    Options,
    Pins,
    Reader,
    RemovalFeed,
    Removals,
    Scans,
    StoreContext,
    StoreSpec,
    StoreWrapper,
    Traits,
    Uses,
)

C = TypeVar("C")
ENTRY_BYTES: Final = 400
"""What a remembered digest takes (measured, CPython 3.11)."""
DEFAULT_MAX_COUNT: Final = 1_000_000
UNTOLD_S: Final = 60.0
"""For how long a yes is believed if nobody says that blobs go, and the config does not say for how long."""
_MAX_GONE: Final = 100_000
"""Keys that are known to have gone while operations were under way: beyond, any may have."""


class ExistenceCacheOptions(Options):
    """Remembers which blobs the store behind it has.

    For stores that are far away. One that cannot say what leaves it (an object store) is asked again after a minute,
    or `max_seconds`.
    """

    EXAMPLE = (
        '{ existence_cache: { backend: { ref_store: { name: "SHARED" } }, eviction_policy: { max_seconds: "30s" } } }'
    )

    backend: StoreSpec
    """The store asked for what is not remembered."""
    eviction_policy: EvictionPolicy = field(default_factory=EvictionPolicy)
    """How much is remembered (without `max_bytes` and `max_count`, a million digests), and for how long a yes is
    believed, counted from when it was learnt."""


class _Meanwhile:
    """What has gone while operations of the backend are under way.

    The news of it may be taken by one question while the answer to another, given before, is still on its way.
    """

    def __init__(self) -> None:
        self._under_way = 0
        self._now = 0
        self._gone: dict[Key, int] = {}
        self._all_gone = 0

    @contextmanager
    def operation(self) -> Iterator[int]:
        """Around an operation: gives the `since` of `is_gone`."""
        self._under_way += 1
        try:
            yield self._now
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._gone.clear()

    def gone(self, key: Key) -> None:
        """A key has gone."""
        if len(self._gone) >= _MAX_GONE:
            self.all_gone()
        elif self._under_way:
            self._now += 1
            self._gone[key] = self._now

    def all_gone(self) -> None:
        """Any key may have gone."""
        self._now += 1
        self._all_gone = self._now
        self._gone.clear()

    def is_gone(self, key: Key, since: int) -> bool:
        """Whether a key may have gone since an operation began."""
        return max(self._all_gone, self._gone.get(key, 0)) > since


class ExistenceCacheStore(StoreWrapper):
    """See the module. Values under keys that are not digests can change, and are not remembered."""

    Options = ExistenceCacheOptions

    def __init__(
        self, options: ExistenceCacheOptions, context: StoreContext, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(context.child(options.backend))
        self._policy = options.eviction_policy
        self._clock = clock
        self._uses = Uses(self._backend, name=context.name, role="the backend")
        self._meanwhile = _Meanwhile()
        self._hits = 0
        self._misses = 0
        self._withdrawn = 0

    @cached_property
    def _feed(self) -> RemovalFeed | None:
        """News from the backend; known only when the stores run, as the backend may be a reference to a later one."""
        removals = self.backend.capability(Removals)
        return None if removals is None else removals.watch_removals()

    @cached_property
    def _known(self) -> LruIndex[Key, int]:
        """The sizes of what is there."""
        policy = self._policy
        if not policy.max_bytes and not policy.max_count:
            policy = replace(policy, max_count=DEFAULT_MAX_COUNT)
        if self._feed is None and not policy.max_seconds:
            policy = replace(policy, max_seconds=UNTOLD_S)
        return LruIndex(policy, clock=self._clock)

    @property
    def traits(self) -> Traits:
        backend = self.backend.traits
        return replace(backend, authoritative=backend.authoritative and self._feed is not None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._catch_up()  # from here on it is told of removals, before it has learnt anything
        task_status.started()
        await self._uses.run()  # told at once: until it has heard, the backend may evict what it was said to have

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        self._catch_up()
        peek = self._known.peek
        sizes: list[int | None] = [peek(key) for key in keys]
        await self._uses.add_all(key for key, size in zip(keys, sizes, strict=True) if size is not None)
        unknown = [at for at, size in enumerate(sizes) if size is None]
        self._hits += len(keys) - len(unknown)
        self._misses += len(unknown)
        if unknown:
            with self._meanwhile.operation() as since:
                for at, size in zip(unknown, await self.backend.has([keys[at] for at in unknown]), strict=True):
                    sizes[at] = size
                    if size is not None:
                        self._learn(keys[at], size, since)
        return sizes

    async def get(self, key: Key) -> Buffer:
        with self._learning_of_absence(key), self._meanwhile.operation() as since:
            data = await self.backend.get(key)
            self._learn(key, len(data), since)
        return data

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        with self._meanwhile.operation() as since:
            found = await self.backend.get_many(keys)
            for key, data in zip(keys, found, strict=True):
                if not isinstance(data, NlError):
                    self._learn(key, len(data), since)
                elif isinstance(data, (BlobNotFoundError, CorruptBlobError)):
                    self._forget(key)
        return found

    @asynccontextmanager
    async def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AsyncIterator[Reader]:
        with self._learning_of_absence(key), ExitStack() as opening:
            since = opening.enter_context(self._meanwhile.operation())
            async with self.backend.open(key, offset=offset, length=length) as reader:
                if isinstance(key, Digest):
                    self._learn(key, key.size, since)
                opening.close()
                yield reader

    async def put(self, key: Key, data: Buffer) -> None:
        with self._meanwhile.operation() as since:
            await self.backend.put(key, data)
            self._learn(key, len(data), since)

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        with self._meanwhile.operation() as since:
            failed = await self.backend.put_many(blobs)
            for (key, data), error in zip(blobs, failed, strict=True):
                if error is None:
                    self._learn(key, len(data), since)
        return failed

    async def write(self, key: Key, reader: Reader) -> None:
        with self._meanwhile.operation() as since:
            await self.backend.write(key, reader)
            if isinstance(key, Digest):
                self._learn(key, key.size, since)

    def capability(self, kind: type[C]) -> C | None:
        if kind is Deletes and self.backend.capability(Deletes) is not None:
            return cast("C", self)
        return self.backend.capability(kind) if kind in (BlobSizeLimit, Removals, Scans, Pins) else None

    async def delete(self, keys: Sequence[Key]) -> None:
        """See `Deletes`."""
        deletes = self.backend.capability(Deletes)
        assert deletes is not None
        try:
            await deletes.delete(keys)
        finally:
            for key in keys:
                self._forget(key)

    def statistics(self) -> Mapping[str, int | float | str]:
        return {
            "remembered": len(self._known),
            "hits": self._hits,
            "misses": self._misses,
            "withdrawn": self._withdrawn,
            "told_of_removals": "yes" if self._feed is not None else "no",
        }

    def _catch_up(self) -> None:
        """Forgets what the backend has lost since the last question."""
        feed = self._feed
        if feed is None:
            return
        gone = feed.take()
        if gone is None:
            self._withdrawn += len(self._known)
            self._meanwhile.all_gone()
            for key in list(self._known):
                self._known.discard(key)
        else:
            for key in gone:
                self._forget(key)

    def _learn(self, key: Key, size: int, since: int) -> None:
        if isinstance(key, Digest) and key not in EMPTY_DIGESTS and not self._meanwhile.is_gone(key, since):
            self._known.insert(key, size, size=ENTRY_BYTES)

    def _forget(self, key: Key) -> None:
        self._withdrawn += self._known.discard(key) is not None
        self._uses.forget(key)
        self._meanwhile.gone(key)

    @contextmanager
    def _learning_of_absence(self, key: Key) -> Iterator[None]:
        try:
            yield
        except (BlobNotFoundError, CorruptBlobError):
            self._forget(key)
            raise

"""The `fast_slow` store itself: who is asked, in which order, and what a failure of either side means.

The slow store is the truth. What it has not, `has` does not report, even if the fast one has it, so that clients
upload again what the slow store lost. Trouble in the fast store costs speed, never an answer: reads fall through,
uploads succeed when the slow store has them.

Reading: reading.py, with fetches.py, taps.py, ring.py (how blobs move from slow to fast) and source.py (the slow store,
checked). Writing: writing.py, with uploads.py and stale.py. Local files: files.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cached_property
from typing import TypeVar, cast

import trio

from nl.plugin import (
    BlobSizeLimit,
    Buffer,
    Deletes,
    Discards,
    Key,
    LocalFiles,
    NlError,
    Reader,
    Store,
    StoreContext,
    Traits,
    Uses,
)
from nl.stores.fast_slow import offers
from nl.stores.fast_slow.fetches import Fetches
from nl.stores.fast_slow.files import FastSlowFiles
from nl.stores.fast_slow.options import FastSlowOptions, Routes
from nl.stores.fast_slow.reading import Reading
from nl.stores.fast_slow.source import Source
from nl.stores.fast_slow.stale import Stale
from nl.stores.fast_slow.trouble import FastTrouble
from nl.stores.fast_slow.uploads import Uploads
from nl.stores.fast_slow.writing import Writing

C = TypeVar("C")
GATHER_S = 1.0
"""How long the first hit of the fast store waits for others to be told with it, but for uploads, which may evict."""


class FastSlowStore(Store):
    """See the module. `run` owns the fetches: they end whole even if the readers that caused them are gone."""

    Options = FastSlowOptions

    def __init__(self, options: FastSlowOptions, context: StoreContext) -> None:
        self._options = options
        self._name = context.name
        self.fast = context.child(options.fast)
        self.slow = context.child(options.slow)
        self._coder_memory = context.coder_memory
        self.uploads = Uploads()
        self._stale = Stale(context.name)
        self._trouble = FastTrouble(context.name)
        self._uses = Uses(self.slow, name=context.name, role="the slow store", gather_s=GATHER_S)
        self._source = Source(self.slow, uploads=self.uploads, name=context.name)
        self.fetches = Fetches(fast=self.fast, source=self._source, stale=self._stale, name=context.name)

    # Which store takes part in what is known only when the store runs: a child may be a reference to a later one.

    @cached_property
    def routes(self) -> Routes:
        """Who takes part in what."""
        return Routes.plan(self._options, fast=self.fast, slow=self.slow)

    @cached_property
    def traits(self) -> Traits:
        return offers.traits(self.routes, fast=self.fast, slow=self.slow)

    @cached_property
    def _reading(self) -> Reading:
        return Reading(
            self.routes, fast=self.fast, source=self._source, fetches=self.fetches, uploads=self.uploads,
            stale=self._stale, uses=self._uses, trouble=self._trouble,
            threshold=self._options.bypass_dedup_threshold_bytes,
        )

    @cached_property
    def _writing(self) -> Writing:
        return Writing(
            self.routes, fast=self.fast, slow=self.slow, source=self._source, fetches=self.fetches,
            uploads=self.uploads, stale=self._stale, uses=self._uses, trouble=self._trouble,
            coder_memory=self._coder_memory,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self.fetches.nursery = nursery
            try:
                task_status.started()
                if self.routes.reads_fast and self.routes.reads_slow:
                    await self._uses.run()
                await trio.sleep_forever()
            finally:
                self.fetches.nursery = None

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        routes = self.routes
        if not routes.reads_slow:
            return await self.fast.has(keys)
        sizes = await self._source.has(keys)
        if self.uploads and routes.writes_slow and None in sizes:
            waited = await self.uploads.wait_for([key for key, size in zip(keys, sizes, strict=True) if size is None])
            await _fill_in(sizes, keys, waited, self._source)
        if not routes.writes_slow and routes.reads_fast and None in sizes:
            # Uploads go to the fast store alone, so it is the truth about them.
            await _fill_in(sizes, keys, set(keys), self.fast)
        return sizes

    async def touch(self, keys: Sequence[Key]) -> None:
        if self.routes.reads_slow:
            await self.slow.touch(keys)
        if self.routes.reads_fast:
            try:
                await self.fast.touch(keys)
            except NlError as error:
                self._trouble.note("touch", f"{len(keys)} keys", error)

    async def get(self, key: Key) -> Buffer:
        return await self._reading.get(key)

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        return await self._reading.get_many(keys)

    @asynccontextmanager
    async def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AsyncIterator[Reader]:
        async with AsyncExitStack() as stack:
            yield await self._reading.open(key, stack, offset=offset, length=length)

    async def put(self, key: Key, data: Buffer) -> None:
        await self._writing.put(key, data)

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        return await self._writing.put_many(blobs)

    async def write(self, key: Key, reader: Reader) -> None:
        await self._writing.write(key, reader)

    def capability(self, kind: type[C]) -> C | None:
        routes, fast, slow = self.routes, self.fast, self.slow
        if kind is LocalFiles:
            files = fast.capability(LocalFiles) if routes.reads_fast else None
            if files is not None:
                return cast(C, self._local_files(files))
            return cast("C | None", slow.capability(LocalFiles) if routes.writes_slow else None)
        if kind is BlobSizeLimit:  # what the slow store has taken is kept, whether the fast one has it or not
            return (slow if routes.writes_slow else fast).capability(kind)
        if kind is Discards and not (routes.reads_fast or routes.reads_slow):
            return slow.capability(kind)
        if kind is Deletes:
            return cast("C | None", offers.DeletesBoth.of(
                routes, fast=fast, slow=slow, fetches=self.fetches, stale=self._stale
            ))
        return offers.of_the_truth(routes, kind, fast=fast, slow=slow)

    def _local_files(self, fast_files: LocalFiles) -> FastSlowFiles:
        return FastSlowFiles(
            fast_files, slow=self.slow, source=self._source, routes=self.routes, uploads=self.uploads,
            fetches=self.fetches, uses=self._uses, trouble=self._trouble,
        )

    def statistics(self) -> Mapping[str, int | float | str]:
        reading = self._reading
        return {
            "fast_hits": reading.hits,
            "fast_misses": reading.misses,
            "fast_failures": self._trouble.count,
            "fetches": len(self.fetches.running),
            "fetches_completed": self.fetches.completed,
            "fetches_failed": self.fetches.failed,
            "bypassed": reading.bypassed,
            "stale_in_fast": len(self._stale),
            "wrong_in_slow": self._source.wrong_blobs,
            "follower_timeouts": reading.follower_timeouts,
        }

    def __repr__(self) -> str:
        return f"<FastSlowStore {self._name!r}: {self.fast!r} in front of {self.slow!r}>"


async def _fill_in(sizes: list[int | None], keys: Sequence[Key], wanted: set[Key], store: Store | Source) -> None:
    """Asks `store` about those `wanted` keys that have no size yet."""
    at = [index for index, size in enumerate(sizes) if size is None and keys[index] in wanted]
    if at:
        for index, size in zip(at, await store.has([keys[index] for index in at]), strict=True):
            sizes[index] = size

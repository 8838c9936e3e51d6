"""Writing through a fast_slow store: the slow store decides, the fast one can only be late or leave."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from nl.plugin import CHUNK, Buffer, CoderMemory, Deletes, Digest, Key, NlError, Reader, Store, Tee, Uses
from nl.stores.fast_slow.fetches import Fetches
from nl.stores.fast_slow.options import Routes
from nl.stores.fast_slow.source import Source
from nl.stores.fast_slow.stale import Stale
from nl.stores.fast_slow.trouble import FastTrouble
from nl.stores.fast_slow.uploads import Uploads

_CLEAN_UP_S = 5.0

class Writing:
    """The writing half of one store."""

    def __init__(
        self, routes: Routes, *, fast: Store, slow: Store, source: Source, fetches: Fetches, uploads: Uploads,
        stale: Stale, uses: Uses, trouble: FastTrouble, coder_memory: CoderMemory,
    ) -> None:
        self._routes = routes
        self._fast = fast
        self._slow = slow
        self._source = source
        self._fetches = fetches
        self._uploads = uploads
        self._stale = stale
        self._uses = uses
        self._trouble = trouble
        self._coder_memory = coder_memory

    async def put(self, key: Key, data: Buffer) -> None:
        """See `Store.put`."""
        async with self._uploads.under_way(key):
            await self._settle(key)
            try:
                await self._put(key, data)
            except BaseException:
                with trio.move_on_after(_CLEAN_UP_S, shield=True):
                    await self._left_halfway(key)
                raise

    async def _put(self, key: Key, data: Buffer) -> None:
        if self._routes.writes_slow:
            await self._slow.put(key, data)
            self._source.replaced(key)
        if self._routes.writes_fast:
            try:
                await self._fast.put(key, data)
            except NlError as error:
                await self._not_in_fast(key, error)
            else:
                self._stale.discard(key)

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        """See `Store.put_many`: one trip to each store for what cannot change, one by one what can."""
        failed: list[NlError | None] = [None] * len(blobs)
        together = [at for at, (key, _) in enumerate(blobs) if isinstance(key, Digest)]
        digests = [key for key, _ in blobs if isinstance(key, Digest)]
        with self._uploads.many_under_way(digests):
            self._uses.tell_soon()
            for digest in digests:
                await self._source.wait_for_deletion(digest)
            if self._routes.writes_slow:
                results = await self._slow.put_many([blobs[at] for at in together])
                for at, result in zip(together, results, strict=True):
                    failed[at] = result
                    if result is None:
                        self._source.replaced(blobs[at][0])
            kept = [at for at in together if failed[at] is None]
            if self._routes.writes_fast:
                for at, result in zip(kept, await self._put_many_fast([blobs[at] for at in kept]), strict=True):
                    if result is not None and self._routes.writes_slow:
                        self._trouble.note("write", blobs[at][0], result)
                    else:
                        failed[at] = result
        for at, (key, data) in enumerate(blobs):
            if not isinstance(key, Digest):
                try:
                    await self.put(key, data)
                except NlError as error:
                    failed[at] = error
        return failed

    async def _put_many_fast(self, blobs: Sequence[tuple[Key, Buffer]]) -> Sequence[NlError | None]:
        try:
            return await self._fast.put_many(blobs)
        except NlError as error:
            return [error] * len(blobs)

    async def write(self, key: Key, reader: Reader) -> None:
        """See `Store.write`."""
        async with self._uploads.under_way(key):
            await self._settle(key)
            try:
                await self._write(key, reader)
            except BaseException:
                with trio.move_on_after(_CLEAN_UP_S, shield=True):
                    await self._left_halfway(key)
                raise

    async def _write(self, key: Key, reader: Reader) -> None:
        routes = self._routes
        if routes.writes_slow and routes.writes_fast:
            with self._coder_memory.together():  # neither can go on without the other
                error = await _write_both(key, reader, slow=self._slow, fast=self._fast)
            if error is None:
                self._stale.discard(key)
            else:
                await self._not_in_fast(key, error)
            self._source.replaced(key)
        elif routes.writes_slow:
            await self._slow.write(key, reader)
            self._source.replaced(key)
        elif routes.writes_fast:
            await self._fast.write(key, reader)
        else:
            while await reader.receive_parts():
                pass

    async def _settle(self, key: Key) -> None:
        """Before a key is written: lets end what would not bear it."""
        self._uses.tell_soon()
        await self._source.wait_for_deletion(key)
        if isinstance(key, Digest):
            return
        if (fetch := self._fetches.running.get(key)) is not None:
            await fetch.done.wait()  # it has an old value; no other begins while the upload is under way
        if self._routes.writes_slow and self._routes.reads_fast and not self._routes.writes_fast:
            await self._outdate(key)

    async def _not_in_fast(self, key: Key, error: NlError) -> None:
        """The upload is in the slow store only."""
        if not self._routes.writes_slow:
            raise error
        self._trouble.note("write", key, error)
        if not isinstance(key, Digest):
            await self._outdate(key)

    async def _left_halfway(self, key: Key) -> None:
        """An upload has failed, or its client has left: whether the slow store has the new value is not known, so the
        fast one must not answer with the old one.
        """
        if not isinstance(key, Digest) and self._routes.writes_slow and self._routes.reads_fast:
            await self._outdate(key)

    async def _outdate(self, key: Key) -> None:
        """An old value in the fast store must not be served again: not while this process runs, and not later either
        if it can be deleted.
        """
        self._stale.add(key)
        fast = self._fast
        deletes = fast.capability(Deletes) if self._routes.fills_fast or self._routes.writes_fast else None
        try:
            if deletes is not None:
                await deletes.delete([key])
            elif not fast.traits.authoritative or (await fast.has([key])) != [None]:
                return
        except NlError as error:
            self._trouble.note("delete", key, error)
        else:
            self._stale.discard(key)


async def _write_both(key: Key, reader: Reader, *, slow: Store, fast: Store) -> NlError | None:
    """Raises what the slow store, or the reader, does, and then neither has the blob. Returns what the fast store
    raises, which the slow one does not notice.

    The fast store meets the end of the bytes only when the slow one has them all.
    """
    tee = Tee(reader)
    slow_has_it = trio.Event()
    failures: list[Exception] = []
    refusals: list[NlError] = []

    async def write_fast() -> None:
        try:
            await fast.write(key, _HeldBack(tee.follower, slow_has_it))
        except NlError as error:
            if tee.error is None:
                refusals.append(error)
        except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery that would wrap it
            failures.append(error)
        finally:
            tee.follower.close()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_fast)
            try:
                await slow.write(key, tee.leader)
                slow_has_it.set()
            except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery that would wrap it
                failures.insert(0, error)
                nursery.cancel_scope.cancel()
            finally:
                tee.leader.close()
        if failures:
            raise failures[0]
        return refusals[0] if refusals else None
    finally:
        # Errors know the frames that they have passed, and with them these lists and all that the stores held: circles,
        # which the cycle collector rarely looks for.
        failures.clear()
        refusals.clear()
        tee.forget()


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

"""What a kind promises that honours an EvictionPolicy. Derive from it beside StoreConformance."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nl.plugin import Digest, EvictionPolicy, Removals, Store, TooLargeError, digest_of
from nl.testing.context import BareContext, started
from nl.testing.observing import find, make_blob, read, same
from nl.testing.readers import PartsReader, split

SIZE = 20_000
"""Large beside what an entry may cost on top."""
USES: dict[str, Callable[[Store, Digest], Awaitable[object]]] = {
    "has": lambda store, digest: store.has([digest]),
    "touch": lambda store, digest: store.touch([digest]),
    "get": lambda store, digest: store.get(digest),
    "get_many": lambda store, digest: store.get_many([digest]),
    "open": lambda store, digest: read(store, digest, length=10),
    "put": lambda store, digest: store.put(digest, _blob_of(digest)),
    "write": lambda store, digest: store.write(digest, PartsReader(split(_blob_of(digest), 9999))),
}
_BLOBS = [make_blob(SIZE, seed=number) for number in range(40)]
_DIGESTS = [digest_of(blob) for blob in _BLOBS]


def _blob_of(digest: Digest) -> bytes:
    return _BLOBS[_DIGESTS.index(digest)]


class EvictingStoreConformance:
    """Tests of stores with a bound."""

    pytestmark = pytest.mark.trio

    def make_bounded_store(self, context: BareContext, folder: Path, policy: EvictionPolicy) -> Store:
        """A fresh store, not started, that keeps to `policy`."""
        raise NotImplementedError("define make_bounded_store(self, context, folder, policy)")

    @asynccontextmanager
    async def bounded(self, folder: Path, **policy: int) -> AsyncIterator[Store]:
        """A running one."""
        context = BareContext()
        async with started(self.make_bounded_store(context, folder, EvictionPolicy(**policy)), context) as store:
            yield store

    @pytest.mark.parametrize("bound", [{"max_count": 5}, {"max_bytes": 5 * SIZE + 15_000}], ids=["count", "bytes"])
    async def test_the_oldest_go_and_the_newest_stay(self, tmp_path: Path, bound: dict[str, int]) -> None:
        async with self.bounded(tmp_path, **bound) as store:
            for number in range(20):
                await store.put(_DIGESTS[number], _BLOBS[number])
                sizes = await store.has(_DIGESTS[: number + 1])  # in the order in which they came, which so stays
                count = len(sizes) - sizes.count(None)
                assert sizes[-count:].count(None) == 0, f"of {sizes} others are there than the newest {count}"
                assert min(number + 1, 3) <= count <= 5
                assert same(await store.get(_DIGESTS[number]), _BLOBS[number])

    @pytest.mark.parametrize("use", USES)
    async def test_what_was_used_last_is_the_last_to_go(self, tmp_path: Path, use: str) -> None:
        async with self.bounded(tmp_path, max_count=4) as store:
            for number in range(4):
                await store.put(_DIGESTS[number], _BLOBS[number])
            await USES[use](store, _DIGESTS[0])
            for number in range(4, 7):
                await store.put(_DIGESTS[number], _BLOBS[number])
            assert await store.has(_DIGESTS[1:4]) == [None] * 3
            assert same(await find(store, _DIGESTS[0]), _BLOBS[0])

    async def test_the_bound_holds_after_every_upload(self, tmp_path: Path) -> None:
        async with self.bounded(tmp_path, max_bytes=7 * SIZE) as store:
            for number, (digest, blob) in enumerate(zip(_DIGESTS, _BLOBS, strict=True)):
                if number % 2:
                    await store.put(digest, blob)
                else:
                    await store.write(digest, PartsReader(split(blob, 999)))
                sizes = await store.has(_DIGESTS)
                assert sum(size for size in sizes if size is not None) <= 7 * SIZE

    async def test_what_never_fits_is_refused_and_nothing_goes_for_it(self, tmp_path: Path) -> None:
        large = make_blob(5 * SIZE + 1)
        async with self.bounded(tmp_path, max_bytes=4 * SIZE) as store:
            await store.put(_DIGESTS[0], _BLOBS[0])
            with pytest.raises(TooLargeError):
                await store.put(digest_of(large), large)
            with pytest.raises(TooLargeError):
                await store.write(digest_of(large), PartsReader(split(large, 9999)))
            assert await store.has([_DIGESTS[0], digest_of(large)]) == [SIZE, None]

    async def test_news_of_removals_name_all_that_went(self, tmp_path: Path) -> None:
        async with self.bounded(tmp_path, max_count=3) as store:
            removals = store.capability(Removals)
            if removals is None:
                pytest.skip("does not offer Removals")
            feed, believed = removals.watch_removals(), set()
            for number in range(20):
                await store.put(_DIGESTS[number], _BLOBS[number])
                believed.add(_DIGESTS[number])
                gone = feed.take()
                believed = set() if gone is None else believed - set(gone)
                there = await store.has(list(believed))
                assert None not in there, "a blob has gone and nobody was told"

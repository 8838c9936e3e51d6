"""The promises of the Store contract about what happens at once. Part of StoreConformance."""

from __future__ import annotations

from typing import ClassVar

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import CHUNK, SMALL, BlobNotFoundError, BytesReader, Store, UnavailableError
from nl.testing.observing import find, make_blob, read, same
from nl.testing.readers import BlockingReader, FailingReader, PartsReader, drain, split, write_blocked


class ConcurrencyConformance:
    """Tests of concurrent use. Uses the fixture `store` of the class it is mixed into."""

    hides_writes_under_way: ClassVar[bool] = True
    """Set to False where `has` waits for a write that is under way."""

    # --- at once

    async def test_a_blob_is_invisible_until_it_is_whole(self, store: Store) -> None:
        for size in (1000, 2 * CHUNK):
            digest = digest_of(data := make_blob(size))
            reader = BlockingReader(split(data[:-1], 9999), rest=data[-1:])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_blocked, store, digest, reader)
                await reader.blocked.wait()
                if self.hides_writes_under_way:
                    assert await store.has([digest]) == [None]
                with pytest.raises(BlobNotFoundError):
                    await store.get(digest)
                with pytest.raises(BlobNotFoundError):
                    await read(store, digest)
                reader.go_on.set()
            assert same(await find(store, digest), data)

    @pytest.mark.parametrize("size", [100, SMALL + 1, 2 * CHUNK])
    async def test_writers_of_one_blob_at_once_all_succeed(self, store: Store, size: int) -> None:
        digest = digest_of(data := make_blob(size))
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(store.write, digest, PartsReader(split(data, 997 + number * 1000)))
                nursery.start_soon(store.put, digest, data)
        assert same(await find(store, digest), data)

    async def test_a_failing_twin_does_not_hurt_a_good_upload(self, store: Store) -> None:
        digest = digest_of(data := make_blob(2 * CHUNK))
        good = BlockingReader(split(data[:CHUNK], 9999), rest=data[CHUNK:])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_blocked, store, digest, good)
            await good.blocked.wait()
            with pytest.raises(UnavailableError):
                await store.write(digest, FailingReader([data[:5000]], UnavailableError("cut"), size=len(data)))
            good.go_on.set()
        assert same(await find(store, digest), data)

    async def test_a_cancelled_twin_does_not_hurt_a_good_upload(self, store: Store) -> None:
        digest = digest_of(data := make_blob(2 * CHUNK))
        cut = BlockingReader(split(data[:CHUNK], 9999), rest=data[CHUNK:])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_blocked, store, digest, cut)
            await cut.blocked.wait()
            await store.write(digest, PartsReader(split(data, CHUNK)))
            nursery.cancel_scope.cancel()
        assert same(await find(store, digest), data)

    async def test_many_different_blobs_at_once(self, store: Store) -> None:
        blobs = [make_blob(size, seed=9) for size in [10, 5000, SMALL + 5, CHUNK + 5] * 10]

        async def there_and_back(number: int) -> None:
            data = blobs[number] + b"%d" % number
            digest = digest_of(data)
            await store.write(digest, PartsReader(split(data, 33_333)))
            assert same(await find(store, digest), data)

        async with trio.open_nursery() as nursery:
            for number in range(len(blobs)):
                nursery.start_soon(there_and_back, number)

    async def test_readers_of_one_blob_at_once_do_not_mix(self, store: Store) -> None:
        digest = digest_of(data := make_blob(3 * CHUNK))
        await store.put(digest, data)
        async with store.open(digest) as one, store.open(digest, offset=5) as two:
            assert same(b"".join(map(bytes, await one.receive_parts(1000))), data[:1000])
            assert same(await drain(two), data[5:])
            assert same(await drain(one, taken=1000), data[1000:])

    async def test_a_cancelled_reader_leaves_the_store_as_it_was(self, store: Store) -> None:
        for size in (100, 2 * CHUNK):
            digest = digest_of(data := make_blob(size))
            await store.put(digest, data)
            with trio.CancelScope() as scope:
                scope.cancel()
                await find(store, digest)
            assert same(await find(store, digest), data)

    async def test_an_upload_that_was_cancelled_may_be_made_again(self, store: Store) -> None:
        for size in (1000, 2 * CHUNK):
            digest = digest_of(data := make_blob(size))
            cut = BlockingReader(split(data[:-1], 9999), rest=data[-1:])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_blocked, store, digest, cut)
                await cut.blocked.wait()
                nursery.cancel_scope.cancel()
            await store.write(digest, BytesReader(data))
            assert same(await find(store, digest), data)

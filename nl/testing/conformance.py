"""StoreConformance: every promise of the Store contract as a test, inherited by the tests of every kind.

Built-in kinds and third parties use the same suite. No test here sleeps or looks at the clock; readers that block say
so with events.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from nl.blob.hashing import digest_of
from nl.plugin import (
    CHUNK,
    EMPTY_DIGESTS,
    MAX_WHOLE,
    SMALL,
    ActionKey,
    BlobNotFoundError,
    Buffer,
    BytesReader,
    Digest,
    DigestFunction,
    Key,
    LocalFiles,
    RangeError,
    Store,
    TooLargeError,
    UnavailableError,
    VerifyingReader,
)
from nl.testing.capabilities import CapabilityConformance
from nl.testing.concurrency import ConcurrencyConformance
from nl.testing.histories import HistoryConformance
from nl.testing.local_files import LocalFilesConformance
from nl.testing.observing import NAMES, SIZES, find, make_blob, read, same
from nl.testing.readers import FailingReader, PartsReader, drain, split


class StoreConformance(ConcurrencyConformance, CapabilityConformance, HistoryConformance):
    """Derive, name the class `Test...`, and define `make_store`."""

    # --- has

    async def test_has_keeps_order_and_duplicates(self, store: Store) -> None:
        blobs = [make_blob(size) for size in (5, 6, 7)]
        digests = [digest_of(blob) for blob in blobs]
        missing = digest_of(b"missing")
        empty = next(iter(EMPTY_DIGESTS))
        for digest, blob in zip(digests, blobs, strict=True):
            await store.put(digest, blob)
        asked = [digests[2], missing, digests[0], digests[2], empty, missing, digests[1]]
        assert await store.has(asked) == [7, None, 5, 7, 0, None, 6]

    async def test_has_of_many_is_right_for_each(self, store: Store) -> None:
        digests = [digest_of(b"many %d" % number) for number in range(300)]
        for number in range(0, 300, 3):
            await store.put(digests[number], b"many %d" % number)
        assert await store.has(digests) == [
            digest.size if number % 3 == 0 else None for number, digest in enumerate(digests)
        ]

    async def test_the_right_hash_with_a_wrong_size_is_not_there(self, store: Store) -> None:
        digest = digest_of(data := b"size is part of the name")
        await store.put(digest, data)
        assert await store.has([Digest(digest.hash, digest.size + 1)]) == [None]
        with pytest.raises(BlobNotFoundError):
            await store.get(Digest(digest.hash, digest.size - 1))

    # --- the two ways have one meaning

    @pytest.mark.parametrize("size", SIZES)
    async def test_what_put_stores_every_way_of_reading_finds(self, store: Store, size: int) -> None:
        digest = digest_of(data := make_blob(size))
        await store.put(digest, data)
        assert same(await find(store, digest), data)

    @pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
    @pytest.mark.parametrize("size", SIZES)
    async def test_what_write_stores_every_way_of_reading_finds(
        self, store: Store, size: int, known: bool
    ) -> None:
        digest = digest_of(data := make_blob(size))
        await store.write(digest, PartsReader(split(data, 10_007), size=None if known else -1))
        assert same(await find(store, digest), data)

    async def test_blake3_blobs_are_kept_like_any_other(self, store: Store) -> None:
        digest = digest_of(data := make_blob(1000), DigestFunction.BLAKE3)
        await store.write(digest, VerifyingReader(BytesReader(data), digest))
        assert same(await find(store, digest), data)

    async def test_a_blob_larger_than_a_whole_one_is_streamed_only(self, store: Store) -> None:
        digest = digest_of(data := make_blob(MAX_WHOLE + 1))
        await store.write(digest, PartsReader(split(data, CHUNK)))
        assert await store.has([digest]) == [len(data)]
        assert same(await read(store, digest), data)
        with pytest.raises(TooLargeError):
            await store.get(digest)

    async def test_a_blob_of_exactly_the_whole_limit_is_got(self, store: Store) -> None:
        digest = digest_of(data := make_blob(MAX_WHOLE))
        await store.put(digest, data)
        assert same(await store.get(digest), data)

    # --- ranges

    async def test_every_range_of_a_small_blob(self, store: Store) -> None:
        digest = digest_of(data := b"0123456789")
        await store.put(digest, data)
        for offset in range(11):
            for length in (None, *range(12)):
                end = len(data) if length is None else offset + length
                assert same(await read(store, digest, offset=offset, length=length), data[offset:end]), (offset, length)

    async def test_ranges_of_a_large_blob(self, store: Store) -> None:
        digest = digest_of(data := make_blob(3 * CHUNK + 7))
        await store.write(digest, BytesReader(data))
        chance = random.Random(1)
        edges = [0, 1, SMALL, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, len(data) - 1, len(data)]
        for offset in edges + [chance.randrange(len(data)) for _ in range(20)]:
            for length in (None, 0, 1, CHUNK, chance.randrange(len(data)), 2**62):
                end = len(data) if length is None else offset + length
                got = await read(store, digest, offset=offset, length=length)
                assert same(got, data[offset:end]), (offset, length)

    async def test_an_offset_outside_of_the_blob_is_a_range_error(self, store: Store) -> None:
        for size in (10, CHUNK + 1):
            digest = digest_of(data := make_blob(size))
            await store.put(digest, data)
            for offset in (size + 1, 2**62, -1):
                with pytest.raises(RangeError):
                    await read(store, digest, offset=offset)
                with pytest.raises(RangeError):
                    await read(store, digest, offset=offset, length=0)

    async def test_a_reader_hands_out_no_more_than_asked_for(self, store: Store) -> None:
        for size in (100, SMALL + 10, CHUNK * 2):
            digest = digest_of(data := make_blob(size))
            await store.put(digest, data)
            for most in (7, 4096, CHUNK):
                async with store.open(digest, length=20_000) as reader:
                    assert same(await drain(reader, most), data[:20_000])

    async def test_a_reader_may_be_left_halfway(self, store: Store) -> None:
        digest = digest_of(data := make_blob(CHUNK * 3))
        await store.put(digest, data)
        async with store.open(digest) as reader:
            await reader.receive_parts(1000)
        with pytest.raises(ZeroDivisionError):
            async with store.open(digest) as reader:
                await reader.receive_parts(1000)
                raise ZeroDivisionError
        assert same(await find(store, digest), data)

    # --- ownership

    async def test_put_does_not_keep_the_callers_buffer(self, store: Store) -> None:
        for size in (1000, SMALL + 1, CHUNK + 1):
            data = make_blob(size)
            digest = digest_of(data)
            for lend in (lambda buffer: buffer, memoryview):
                buffer = bytearray(data)
                await store.put(digest, lend(buffer))
                buffer[:] = bytes(len(buffer))
                assert same(await find(store, digest), data)

    async def test_what_get_returned_may_be_kept(self, store: Store) -> None:
        kept: list[tuple[bytes, Buffer]] = []
        for number in range(20):
            data = make_blob(3000 + number)
            await store.put(digest_of(data), data)
            kept.append((data, await store.get(digest_of(data))))
        for data, got in kept:
            assert same(got, data)

    # --- keys

    async def test_a_digest_is_written_again_without_harm(self, store: Store) -> None:
        digest = digest_of(data := make_blob(70_000))
        for _ in range(3):
            await store.put(digest, data)
            await store.write(digest, PartsReader(split(data, 8192)))
        assert same(await find(store, digest), data)

    @pytest.mark.parametrize("make_key", [lambda d: ActionKey(d.hash, d.size), str], ids=["ActionKey", "str"])
    async def test_the_last_write_to_a_mutable_key_wins(self, store: Store, make_key: Callable[[Digest], Key]) -> None:
        key = make_key(digest_of(b"an action"))
        for size in (300, 10, CHUNK + 1, 300, 1):
            data, other = self.make_value(size, seed=1), self.make_value(size + 5, seed=2)
            await store.put(key, data)
            assert same(await find(store, key), data)
            await store.write(key, PartsReader(split(other, 9999)))
            assert same(await find(store, key), other)

    async def test_a_write_that_fails_leaves_what_was_there(self, store: Store) -> None:
        digest = digest_of(data := make_blob(5000))
        keys: list[Key] = [digest, ActionKey(*digest), "name"]
        values = [data, self.make_value(300), b"value"]
        for key, value in zip(keys, values, strict=True):
            await store.put(key, value)
            for delivered in (0, 100, 5000):
                error = UnavailableError("the source broke")
                with pytest.raises(UnavailableError):
                    await store.write(key, FailingReader(split(data[:delivered], 99), error, size=5000))
            assert same(await find(store, key), value), key

    async def test_an_open_reader_survives_an_overwrite(self, store: Store) -> None:
        key = ActionKey("ab" * 32, 7)
        for size in (1000, 3 * CHUNK):
            old, new = self.make_value(size, seed=1), self.make_value(size, seed=2)
            await store.put(key, old)
            async with store.open(key) as reader:
                first = b"".join(map(bytes, await reader.receive_parts(500)))
                await store.put(key, new)
                assert first + await drain(reader, taken=len(first)) == old
            assert same(await find(store, key), new)

    async def test_equal_text_in_different_types_names_different_things(self, store: Store) -> None:
        digest = digest_of(data := b"the blob itself")
        action, name = ActionKey(*digest), str(digest)
        await store.put(digest, data)
        assert await store.has([digest, action, name]) == [len(data), None, None]
        await store.put(action, result := self.make_value(100))
        await store.put(name, b"named")
        assert [await find(store, key) for key in (digest, action, name)] == [data, result, b"named"]

    async def test_equal_text_of_two_digest_functions_names_two_things(self, store: Store) -> None:
        digest = digest_of(data := b"hashed by one function")
        other = Digest(digest.hash, digest.size, DigestFunction.BLAKE3)
        action, other_action = ActionKey(*digest), ActionKey(*other)
        await store.put(digest, data)
        await store.put(action, result := self.make_value(100))
        assert await store.has([digest, other, action, other_action]) == [len(data), None, len(result), None]
        for key in (other, other_action):
            with pytest.raises(BlobNotFoundError):
                await store.get(key)
        assert await find(store, digest) == data

    async def test_any_text_is_a_key(self, store: Store) -> None:
        for number, name in enumerate(NAMES):
            await store.put(name, b"value %d" % number)
        for number, name in enumerate(NAMES):
            assert await find(store, name) == b"value %d" % number, name

    async def test_an_empty_value_under_a_name_is_a_value(self, store: Store) -> None:
        await store.put("name", b"")
        assert await find(store, "name") == b""

    # --- many at once

    async def test_many_are_put_and_got_in_order_each_with_its_own_fate(self, store: Store) -> None:
        blobs: list[tuple[Key, Buffer]] = [(digest_of(data), data) for data in map(make_blob, (5, 70_000, 6, 300_000))]
        action = ActionKey(*digest_of(b"an action"))
        blobs.append((action, self.make_value(40)))
        assert await store.put_many(blobs) == [None] * 5
        missing, empty = digest_of(b"missing"), next(iter(EMPTY_DIGESTS))
        asked: list[Key] = [blobs[3][0], missing, empty, action, blobs[0][0], blobs[3][0], blobs[1][0]]
        got = await store.get_many(asked)
        for at, expected in ((0, blobs[3][1]), (2, b""), (3, blobs[4][1]), (4, blobs[0][1]), (5, blobs[3][1])):
            assert bytes(got[at]) == expected  # type: ignore[arg-type]
        assert isinstance(got[1], BlobNotFoundError) and got[1].key == missing

    async def test_of_several_values_for_one_key_in_a_batch_the_last_is_kept(self, store: Store) -> None:
        digest, action, other = digest_of(data := make_blob(7)), *(ActionKey(*digest_of(name)) for name in (b"1", b"2"))
        blobs: list[tuple[Key, Buffer]] = [
            (action, self.make_value(70_000, seed=1)), (digest, data), (other, self.make_value(40, seed=2)),
            (action, self.make_value(300, seed=3)), (digest, data), (other, self.make_value(70_000, seed=4)),
        ]  # fmt: skip
        assert await store.put_many(blobs) == [None] * len(blobs)
        for key, value in ((action, blobs[3][1]), (other, blobs[5][1]), (digest, data)):
            assert same(await find(store, key), bytes(value)), key

    async def test_none_of_many_is_nothing(self, store: Store) -> None:
        assert [await store.has([]), await store.get_many([]), await store.put_many([])] == [[], [], []]

    async def test_touching_harms_nothing(self, store: Store) -> None:
        digest = digest_of(data := make_blob(10))
        await store.put(digest, data)
        await store.touch([digest, digest_of(b"missing"), *EMPTY_DIGESTS])
        assert await find(store, digest) == data

    async def test_a_running_store_finds_nothing_wrong_with_itself(self, store: Store) -> None:
        await store.check()

    # --- capabilities

    async def test_a_kind_that_hands_out_files_is_tested_for_it(self, store: Store) -> None:
        if store.capability(LocalFiles) is not None:
            assert isinstance(self, LocalFilesConformance), "derive from LocalFilesConformance as well"

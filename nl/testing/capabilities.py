"""What the capabilities promise. Part of StoreConformance: a kind is tested for those that it offers."""

from __future__ import annotations

from typing import TypeVar

import pytest

from nl.blob.zstd import compress, decompress
from nl.plugin import (
    EMPTY_DIGESTS,
    ActionKey,
    BlobNotFoundError,
    Buffer,
    Deletes,
    Digest,
    EncodedBlobs,
    Encoding,
    Key,
    Pins,
    Removals,
    Scans,
    Store,
    UnavailableError,
    digest_of,
)
from nl.testing.forgetful import ForgetfulStoreConformance
from nl.testing.observing import find, make_blob, same
from nl.testing.readers import FailingReader, PartsReader, drain, split

C = TypeVar("C")


def offered(store: Store, kind: type[C]) -> C:
    """The capability, or the test is skipped."""
    found = store.capability(kind)
    if found is None:
        pytest.skip(f"does not offer {kind.__name__}")
    return found


class CapabilityConformance(ForgetfulStoreConformance):
    """Tests that need the fixture `store`; each is skipped where the kind does not offer what it is about."""

    # --- Deletes

    async def test_what_is_deleted_is_gone_and_can_be_stored_again(self, store: Store) -> None:
        deletes = offered(store, Deletes)
        data, other = make_blob(5), make_blob(100_000)
        kept = digest_of(b"kept")
        await store.put(kept, b"kept")
        keys: list[Key] = [digest_of(data), digest_of(other), ActionKey(*digest_of(data)), "name"]
        values: list[Buffer] = [data, other, self.make_value(30), b"value"]
        for _ in range(2):
            assert await store.put_many(list(zip(keys, values, strict=True))) == [None] * 4
            await deletes.delete(keys[:3])
            assert await store.has([*keys, kept]) == [None, None, None, 5, 4]
            for key in keys[:3]:
                with pytest.raises(BlobNotFoundError):
                    await store.get(key)
            await deletes.delete(keys)
            assert await store.has(keys) == [None] * 4
        assert await find(store, kept) == b"kept"

    async def test_deleting_what_is_not_there_or_empty_is_no_error(self, store: Store) -> None:
        await offered(store, Deletes).delete([*EMPTY_DIGESTS, digest_of(b"never"), "never"])
        assert await store.has(list(EMPTY_DIGESTS)) == [0] * len(EMPTY_DIGESTS)

    async def test_a_reader_goes_on_when_its_blob_is_deleted(self, store: Store) -> None:
        deletes = offered(store, Deletes)
        digest = digest_of(data := make_blob(600_000))
        await store.put(digest, data)
        async with store.open(digest) as reader:
            first = b"".join(map(bytes, await reader.receive_parts(500)))
            await deletes.delete([digest])
            assert await store.has([digest]) == [None]
            assert same(first + await drain(reader, taken=len(first)), data)

    # --- Removals

    async def test_a_feed_tells_what_was_deleted_since_the_last_look(self, store: Store) -> None:
        feed, deletes = offered(store, Removals).watch_removals(), offered(store, Deletes)
        digests = [digest_of(b"%d" % number) for number in range(10)]
        await store.put_many([(digest, b"%d" % number) for number, digest in enumerate(digests)])
        assert not feed.take()
        await deletes.delete(digests[:5])
        gone = feed.take()
        assert gone is None or set(gone) >= set(digests[:5])
        assert not set(gone or ()) & set(digests[5:])
        assert not feed.take()

    # --- Scans

    async def test_a_scan_lists_every_key_once_in_pages(self, store: Store) -> None:
        scans = offered(store, Scans)
        keys: list[Key] = [digest_of(b"%d" % number) for number in range(23)]
        keys += [ActionKey(*digest) for digest in keys if isinstance(digest, Digest)][:5]
        for key in keys:
            await store.put(key, self.make_value(50) if isinstance(key, ActionKey) else await _content(key, 23))
        found: list[Key] = []
        cursor = ""
        while True:
            page = await scans.scan(cursor, limit=7)
            assert len(page.entries) <= 7
            found += [key for key, _ in page.entries]
            cursor = page.cursor
            if not cursor:
                break
        assert sorted(map(str, found)) == sorted(map(str, keys)) and set(found) == set(keys)

    # --- Pins

    async def test_pinning_what_is_not_there_is_no_error(self, store: Store) -> None:
        with offered(store, Pins).pin([digest_of(b"never")]):
            assert await store.has([digest_of(b"never")]) == [None]

    # --- EncodedBlobs

    async def test_an_encoded_blob_is_given_as_accepted(self, store: Store) -> None:
        encoded = offered(store, EncodedBlobs)
        for size in (1, 3000, 300_000):
            digest = digest_of(data := make_blob(size))
            await store.put(digest, data)
            for accept in ((Encoding.IDENTITY,), (Encoding.IDENTITY, Encoding.ZSTD)):
                async with encoded.open_encoded(digest, accept) as opened:
                    assert opened.encoding in accept
                    assert opened.encoded_size in (-1, opened.reader.size)
                    assert same(_decoded(opened.encoding, await drain(opened.reader), size), data)

    async def test_an_encoded_blob_is_given_from_any_offset(self, store: Store) -> None:
        encoded = offered(store, EncodedBlobs)
        digest = digest_of(data := make_blob(300_000))
        await store.put(digest, data)
        async with encoded.open_encoded(digest, tuple(Encoding)) as opened:
            whole = await drain(opened.reader)
            total = opened.encoded_size
        for offset in (1, 70_000, len(whole) - 1, len(whole)):
            async with encoded.open_encoded(digest, tuple(Encoding), offset=offset) as opened:
                assert opened.encoded_size == total
                assert same(await drain(opened.reader), whole[offset:])

    async def test_what_is_written_encoded_is_the_blob_itself(self, store: Store) -> None:
        encoded = offered(store, EncodedBlobs)
        for number, size in enumerate((0, 1, 3000, 300_000) * 4):
            digest = digest_of(data := make_blob(size, seed=number))
            encoding = Encoding.ZSTD if number < 8 else Encoding.IDENTITY
            form = compress(data) if encoding is Encoding.ZSTD else data
            known = None if number % 8 < 4 else -1
            await encoded.write_encoded(digest, PartsReader(split(form, 9999), size=known), encoding)
            assert same(await find(store, digest), data)

    async def test_an_encoded_write_that_fails_leaves_nothing(self, store: Store) -> None:
        encoded = offered(store, EncodedBlobs)
        digest = digest_of(data := make_blob(300_000))
        form = compress(data)
        source = FailingReader(split(form, 9999), UnavailableError("the source broke"), size=len(form))
        with pytest.raises(UnavailableError, match="the source broke"):
            await encoded.write_encoded(digest, source, Encoding.ZSTD)
        assert await find(store, digest) is None
        with pytest.raises(BlobNotFoundError, match=str(digest)):
            async with encoded.open_encoded(digest, tuple(Encoding)):
                pass


def _decoded(encoding: Encoding, form: bytes, size: int) -> bytes:
    return decompress(form, size) if encoding is Encoding.ZSTD else form


async def _content(key: Key, count: int) -> bytes:
    return next(b"%d" % number for number in range(count) if digest_of(b"%d" % number) == key)

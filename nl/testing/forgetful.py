"""The promises of the Store contract that hold even for a store that keeps nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import (
    CHUNK,
    EMPTY_DIGESTS,
    SMALL,
    BlobNotFoundError,
    BytesReader,
    Digest,
    RangeError,
    Store,
    UnavailableError,
    UploadMismatchError,
    VerifyingReader,
)
from nl.testing.context import BareContext, started
from nl.testing.observing import find, make_blob, read
from nl.testing.readers import BlockingReader, CancellingReader, FailingReader, PartsReader, split, write_blocked


class ForgetfulStoreConformance:
    """For kinds that may drop at once what was written. All others use StoreConformance."""

    pytestmark = pytest.mark.trio

    def make_store(self, context: BareContext, folder: Path) -> Store:
        """A fresh store, not started. `folder` is an empty directory; `context.spec(store)` makes a child of one."""
        raise NotImplementedError("define make_store(self, context, folder)")

    def make_value(self, size: int, *, seed: int = 0) -> bytes:
        """Something to store under an ActionKey, about `size` bytes. A kind that looks at values overrides it."""
        return make_blob(size, seed=seed)

    @asynccontextmanager
    async def running_store(self, folder: Path) -> AsyncIterator[Store]:
        """A running store. A kind that needs a server around it overrides this instead of `make_store`."""
        context = BareContext()
        async with started(self.make_store(context, folder), context) as store:
            yield store

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        """The store under test, running."""
        folder = tmp_path / "store"
        folder.mkdir()
        async with self.running_store(folder) as store:
            yield store

    # --- the empty blob

    @pytest.mark.parametrize("digest", sorted(EMPTY_DIGESTS), ids=["blake3", "sha256"])
    async def test_the_empty_blob_is_there_without_being_written(self, store: Store, digest: Digest) -> None:
        assert await find(store, digest) == b""

    @pytest.mark.parametrize("digest", sorted(EMPTY_DIGESTS), ids=["blake3", "sha256"])
    async def test_writing_the_empty_blob_changes_nothing(self, store: Store, digest: Digest) -> None:
        await store.put(digest, b"")
        await store.write(digest, BytesReader(b""))
        assert await find(store, digest) == b""

    async def test_offset_zero_of_the_empty_blob_is_an_empty_read(self, store: Store) -> None:
        for digest in EMPTY_DIGESTS:
            assert await read(store, digest, offset=0, length=10) == b""
            with pytest.raises(RangeError):
                await read(store, digest, offset=1)

    # --- what is not there

    async def test_a_blob_never_written_is_not_found(self, store: Store) -> None:
        digest = digest_of(b"never written")
        assert await find(store, digest) is None

    async def test_not_found_names_the_key(self, store: Store) -> None:
        digest = digest_of(b"never written")
        with pytest.raises(BlobNotFoundError, match=str(digest)):
            await store.get(digest)

    async def test_opening_fails_on_entering_not_on_calling(self, store: Store) -> None:
        opened = store.open(digest_of(b"never written"))
        with pytest.raises(BlobNotFoundError):
            async with opened:
                pass

    async def test_has_of_nothing_is_nothing(self, store: Store) -> None:
        assert await store.has([]) == []

    # --- whole or not at all

    async def test_write_consumes_its_reader_to_the_end(self, store: Store) -> None:
        digest = digest_of(data := make_blob(CHUNK + 5))
        for _ in range(2):
            reader = PartsReader(split(data, 50_000))
            await store.write(digest, reader)
            assert not await reader.receive_parts()

    @pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
    @pytest.mark.parametrize("delivered", [0, 1, 1000, CHUNK + 1, 2 * CHUNK])
    async def test_a_reader_that_raises_leaves_nothing(self, store: Store, known: bool, delivered: int) -> None:
        digest = digest_of(data := make_blob(2 * CHUNK))
        error = UnavailableError("the source broke")
        reader = FailingReader(split(data[:delivered], 9999), error, size=len(data) if known else -1)
        with pytest.raises(UnavailableError, match="the source broke"):
            await store.write(digest, reader)
        assert await find(store, digest) is None

    @pytest.mark.parametrize("size", [100, SMALL + 1, 2 * CHUNK])
    async def test_an_upload_that_does_not_match_leaves_nothing(self, store: Store, size: int) -> None:
        digest = digest_of(make_blob(size))
        wrong = [make_blob(size, seed=1), make_blob(size - 1), make_blob(size) + b"x"]
        for data in wrong:
            source = PartsReader(split(data, 9999), size=-1)
            with pytest.raises(UploadMismatchError):
                await store.write(digest, VerifyingReader(source, digest))
            assert await find(store, digest) is None

    @pytest.mark.parametrize("delivered", [0, 1, 1000, SMALL + 1, CHUNK + 1, 2 * CHUNK])
    async def test_a_cancelled_write_leaves_nothing(self, store: Store, delivered: int) -> None:
        digest = digest_of(data := make_blob(2 * CHUNK))
        reader = BlockingReader(split(data[:delivered], 9999), rest=data[delivered:])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_blocked, store, digest, reader)
            await reader.blocked.wait()
            nursery.cancel_scope.cancel()
        assert await find(store, digest) is None

    async def test_a_write_cancelled_at_any_checkpoint_is_whole_or_nothing(self, store: Store) -> None:
        for size in (10, SMALL + 1):
            for step in range(12):
                data = make_blob(size, seed=100 + step)
                digest = digest_of(data)
                with trio.CancelScope() as scope:
                    reader = CancellingReader(split(data, 9999), scope, at_call=step)
                    await store.write(digest, reader)
                assert await find(store, digest) in (None, data)
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await store.put(digest, data)
                assert await find(store, digest) in (None, data)

    # --- what is told

    async def test_statistics_are_plain_numbers_and_texts(self, store: Store) -> None:
        data = make_blob(10)
        await store.put(digest_of(data), data)
        for name, value in store.statistics().items():
            assert isinstance(name, str)
            assert isinstance(value, (int, float, str)), name

    async def test_an_unknown_capability_is_none(self, store: Store) -> None:
        class Unheard:
            pass

        assert store.capability(Unheard) is None

import os

import pytest

from nl.blob.hashing import digest_of
from nl.plugin import EvictionPolicy, Link, LocalFiles, TooLargeError, UnavailableError, UploadMismatchError
from nl.stores.fast_slow import FastSlowOptions, FastSlowStore
from nl.stores.filesystem import FilesystemOptions, FilesystemStore
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, LocalFilesConformance, StoreConformance, started


def make_store(context, folder, *, slow=None, fast_direction="both", slow_direction="both", **policy):
    slow = slow or MemoryStore(MemoryOptions(), context)
    options = FilesystemOptions(
        content_path=str(folder / "content"), temp_path=str(folder / "temp"), eviction_policy=EvictionPolicy(**policy)
    )
    fast = FilesystemStore(options, context)
    sides = FastSlowOptions(
        fast=context.spec(fast), slow=context.spec(slow), fast_direction=fast_direction, slow_direction=slow_direction
    )
    return FastSlowStore(sides, context)


class TestFilesystemInFrontOfMemoryConformance(LocalFilesConformance, StoreConformance):
    hides_writes_under_way = False

    def make_store(self, context, folder):
        return make_store(context, folder)


@pytest.mark.parametrize("limit", [0, 8192], ids=["roomy", "too small"])
async def test_blobs_only_in_the_slow_store_are_linked_even_if_the_fast_one_is_too_small(tmp_path, limit):
    context = BareContext()
    store = make_store(context, tmp_path, max_bytes=limit)
    async with started(store, context):
        blobs = [os.urandom(5000 + number) for number in range(20)] + [os.urandom(300_000)]
        for data in blobs:
            await store.slow.put(digest_of(data), data)
        links = [Link(digest_of(data), str(tmp_path / f"in{n}"), n % 2 == 0) for n, data in enumerate(blobs)]
        assert await store.capability(LocalFiles).link_files(links) == []
        for (_, path, executable), data in zip(links, blobs, strict=True):
            with open(path, "rb") as file:
                assert file.read() == data
            assert os.stat(path).st_mode & 0o777 == (0o555 if executable else 0o444)


async def test_an_adopted_file_is_in_both_stores(tmp_path):
    context = BareContext()
    store = make_store(context, tmp_path)
    async with started(store, context):
        (tmp_path / "out").write_bytes(b"output")
        await store.capability(LocalFiles).adopt_file(digest_of(b"output"), str(tmp_path / "out"))
        assert await store.slow.get(digest_of(b"output")) == b"output"
        assert await store.fast.get(digest_of(b"output")) == b"output"


async def test_a_file_that_the_fast_store_cannot_take_is_in_the_slow_one_and_fails_nobody(tmp_path):
    context = BareContext()
    store = make_store(context, tmp_path, max_bytes=8192)
    async with started(store, context):
        digest = digest_of(data := os.urandom(300_000))
        (tmp_path / "out").write_bytes(data)
        await store.capability(LocalFiles).adopt_file(digest, str(tmp_path / "out"))
        assert await store.get(digest) == data
        assert store.statistics()["fast_failures"] == 1
        (tmp_path / "other").write_bytes(data[::-1])
        with pytest.raises(UploadMismatchError):
            await store.capability(LocalFiles).adopt_file(digest_of(b"small"), str(tmp_path / "other"))


async def test_a_file_that_neither_store_takes_is_told(tmp_path):
    context = BareContext()
    store = make_store(context, tmp_path, slow_direction="get", max_bytes=8192)
    async with started(store, context):
        digest = digest_of(data := os.urandom(300_000))
        (tmp_path / "out").write_bytes(data)
        with pytest.raises(TooLargeError):
            await store.capability(LocalFiles).adopt_file(digest, str(tmp_path / "out"))


async def test_a_slow_store_that_is_away_is_not_told_as_missing_blobs(tmp_path):
    class Away(MemoryStore):
        async def get(self, key):
            raise UnavailableError("away")

    context = BareContext()
    store = make_store(context, tmp_path, slow=Away(MemoryOptions(), context))
    async with started(store, context):
        with pytest.raises(UnavailableError):
            await store.capability(LocalFiles).link_files([Link(digest_of(b"x"), str(tmp_path / "x"), False)])

"""Small blobs that come together: each is judged by itself, and what is in the way of one is dealt with as if alone."""

import errno
import os

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import SMALL, Digest, TooLargeError, UnavailableError, UploadMismatchError
from nl.stores.filesystem import lock
from nl.testing import make_blob

from .conftest import put
from .test_disk_space import BLOCK, Disk, fill, left
from .test_writing import lock_held


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_on_a_disk_that_the_store_fills_a_batch_gets_room_by_eviction(place, monkeypatch, which):
    """Which of its blobs meets the full disk makes no difference."""
    async with place.running(min_free=BLOCK) as store:
        disk, real, writes = Disk(monkeypatch, store, total=20), os.writev, 0
        digests = await fill(store, 20)

        def writev(fd, views):
            nonlocal writes
            writes += 1
            if writes > which and disk.facts().f_bavail == 0:
                raise OSError(errno.ENOSPC, "no space left")
            return real(fd, views)

        monkeypatch.setattr(os, "writev", writev)
        blobs = [(digest_of(blob), blob) for blob in (b"one", b"two", b"three")]
        assert await store.put_many(blobs) == [None] * 3
        assert await store.has([digest for digest, _ in blobs]) == [3, 3, 5]
        assert 0 < await left(store, digests) < 20
        assert place.temp_files() == []


async def test_a_size_that_is_wrong_is_refused_also_of_what_is_there_and_of_nothing(place):
    async with place.running() as store:
        there, none = await put(store, make_blob(1000)), Digest("0" * 64, 5)
        failed = await store.put_many([(there, make_blob(999)), (none, b""), (digest_of(b"right"), b"right")])
        assert [type(error) for error in failed] == [UploadMismatchError, UploadMismatchError, type(None)]
        assert await store.has([there, none]) == [1000, None]


async def test_a_lock_that_nobody_gives_back_is_waited_for_once_and_not_for_each_blob(place, monkeypatch):
    monkeypatch.setattr(lock, "_TIMEOUT_S", 0.01)
    async with place.running() as store:
        with lock_held(place):
            failed = await store.put_many([(digest_of(blob), blob) for blob in (b"one", b"two", b"three")])
        assert type(failed[0]) is UnavailableError and failed[0] is failed[1] is failed[2]


async def test_a_batch_of_many_blobs_lets_others_run(place):
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    blobs = [(digest_of(b"%d" % number), b"%d" % number) for number in range(100)]
    async with place.running() as store, trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await trio.lowlevel.checkpoint()
        turns = 0
        assert await store.put_many(blobs) == [None] * 100
        assert turns >= 5
        nursery.cancel_scope.cancel()


async def test_among_blobs_of_all_sizes_each_outcome_is_that_of_its_own_blob(place):
    large, too_large = make_blob(SMALL + 1), make_blob(2 * SMALL)
    blobs = [
        (digest_of(b"small"), b"small"), (digest_of(large), large), (Digest("0" * 64, 5), b"four"), ("name", b"value"),
        (digest_of(too_large), too_large), (digest_of(b"more"), b"more"), (Digest("1" * 64, SMALL + 1), too_large),
    ]  # fmt: skip
    async with place.running(policy={"max_bytes": 2 * SMALL - 1}) as store:
        failed = await store.put_many(blobs)
        kinds = [None, None, UploadMismatchError, None, TooLargeError, None, UploadMismatchError]
        assert [error and type(error) for error in failed] == kinds
        assert str(blobs[2][0]) in failed[2].message and str(blobs[6][0]) in failed[6].message
        sizes = [len(data) if kind is None else None for (_, data), kind in zip(blobs, kinds, strict=True)]
        assert await store.has([key for key, _ in blobs]) == sizes
        assert await store.put_many([]) == []

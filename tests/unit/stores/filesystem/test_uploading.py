"""Uploads that meet something on their way: a blob that goes at the last moment, a size that was a lie, a disk that is
full more than once, a client that gives up.
"""

import errno
import os

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import (
    EMPTY_DIGESTS,
    BytesReader,
    Digest,
    ExhaustedError,
    TooLargeError,
    UnavailableError,
    UploadMismatchError,
)
from nl.testing import BlockingReader, FailingReader, PartsReader, make_blob, split

from .conftest import put
from .test_disk_space import BLOCK, Disk

MIB = 1 << 20


def descriptors():
    return len(os.listdir("/proc/self/fd"))


async def test_a_blob_that_goes_when_its_upload_has_just_found_it_is_written(place, monkeypatch):
    data = make_blob(5000)
    async with place.running() as store:
        digest = await put(store, data)
        real, blobs = os.open, store._layout.blobs

        def leave_and_open(path, flags, *args, dir_fd=None):
            if dir_fd == blobs.fd:
                place.file(digest).unlink(missing_ok=True)
            return real(path, flags, *args, dir_fd=dir_fd)

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", leave_and_open)
            await store.write(digest, PartsReader(split(data, 999)))
        assert await store.get(digest) == data
        assert store.statistics()["written_blobs"] == 2


async def test_a_blob_that_is_cut_short_while_it_is_uploaded_anew_is_not_acknowledged_whatever_its_time(place):
    """The clock of a file system may stand still for milliseconds."""
    data = make_blob(5000)
    async with place.running() as store:
        digest = await put(store, data)
        upload, failed = BlockingReader([data]), []

        async def write():
            try:
                await store.write(digest, upload)
            except UnavailableError as error:
                failed.append(error.message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await upload.blocked.wait()
            before = place.file(digest).stat()
            place.file(digest).chmod(0o644)
            os.truncate(place.file(digest), 4999)
            os.utime(place.file(digest), ns=(before.st_atime_ns, before.st_mtime_ns))
            upload.go_on.set()
        assert len(failed) == 1 and "upload it again" in failed[0]
        await store.write(digest, BytesReader(data))
        assert await store.get(digest) == data
        assert place.temp_files() == []


async def test_no_descriptor_stays_behind_of_an_upload_of_what_is_there(place):
    data = make_blob(5000)
    async with place.running() as store:
        digest = await put(store, data)
        before = descriptors()
        await store.write(digest, BytesReader(data))
        with pytest.raises(UploadMismatchError):
            await store.write(digest, PartsReader([data, b"x"], size=-1))
        with pytest.raises(ZeroDivisionError):
            await store.write(digest, FailingReader([data[:5]], ZeroDivisionError(), size=len(data)))
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                upload = BlockingReader([data])
                nursery.start_soon(store.write, digest, upload)
                await upload.blocked.wait()
                scope.cancel()
        assert descriptors() == before


async def test_what_a_digest_says_to_be_too_large_is_refused_before_it_is_received(place):
    async with place.running(policy={"max_bytes": 2 * BLOCK}) as store:
        reader = PartsReader([bytes(100)], size=-1)
        with pytest.raises(TooLargeError, match="max_bytes is 8192"):
            await store.write(Digest("ab" * 32, 2 * BLOCK + 1), reader)
        assert reader.calls == 0


async def test_an_upload_that_is_larger_than_it_said_fills_no_disk_before_it_is_refused(place):
    async with place.running(policy={"max_bytes": 2 * BLOCK}) as store:
        reader = PartsReader(split(bytes(4 * MIB), 64 * 1024), size=100)
        with pytest.raises(TooLargeError, match="max_bytes is 8192"):
            await store.write("name", reader)
        assert sum(map(len, reader._parts)) > 3 * MIB, "most of it was not even received"
        assert place.temp_files() == []


@pytest.mark.parametrize("key", sorted(EMPTY_DIGESTS))
async def test_an_upload_of_the_empty_blob_is_consumed_to_its_end(place, key):
    async with place.running() as store:
        reader = PartsReader([], size=0)
        await store.write(key, reader)
        assert reader.calls == 1
        assert store.statistics()["blobs"] == 0


async def test_an_upload_that_is_given_up_no_longer_counts_among_those_that_keep_something(place):
    """Of what all uploads together keep in memory depends how much each may."""
    async with place.running() as store:
        pace = store._uploader._pace
        for cancelled in (True, False):
            upload = BlockingReader([make_blob(1000)], rest=b"rest")
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(store.write, "name", upload)
                    await upload.blocked.wait()
                    assert pace.gathered == 1000
                    if cancelled:
                        scope.cancel()
                    upload.go_on.set()
            assert pace.gathered == 0
        with pytest.raises(ZeroDivisionError):
            await store.write("name", FailingReader([make_blob(1000)], ZeroDivisionError(), size=2000))
        assert pace.gathered == 0


@pytest.mark.parametrize(("refusals", "fails"), [(1, False), (2, False), (5, False), (6, True)])
async def test_a_file_that_finds_no_room_is_begun_again_a_few_times(place, monkeypatch, refusals, fails):
    """Others take what was made for it, or the error is from before."""
    async with place.running(min_free=0) as store:
        Disk(monkeypatch, store, total=1000)
        real, left = os.open, refusals

        def refuse(path, flags, *args, **options):
            nonlocal left
            if flags & os.O_EXCL and left:
                left -= 1
                raise OSError(errno.ENOSPC, "no space left")
            return real(path, flags, *args, **options)

        monkeypatch.setattr(os, "open", refuse)
        data = make_blob(10, seed=1000)
        if fails:
            with pytest.raises(ExhaustedError, match=str(place.file(digest_of(data)))):
                await store.put(digest_of(data), data)
        else:
            await store.put(digest_of(data), data)
            assert await store.get(digest_of(data)) == data
        assert place.temp_files() == []


@pytest.mark.parametrize("refusals", [0, 1, 5])
async def test_a_copy_of_what_went_is_hashed_before_it_is_served_however_often_its_name_found_no_room(
    place, monkeypatch, refusals
):
    data, real, left = make_blob(5000), os.rename, refusals
    async with place.running() as store:
        digest = await put(store, data)
        upload = BlockingReader([data])
        evicted = store._space.make_room_for_name

        def rename(source, target, **folders):
            nonlocal left
            if target == str(digest) and left:
                left -= 1
                raise OSError(errno.ENOSPC, "no space left")
            real(source, target, **folders)

        async def make_room_for_name(error, *, attempt):
            await evicted(error, attempt=attempt)
            return True

        monkeypatch.setattr(store._space, "make_room_for_name", make_room_for_name)
        monkeypatch.setattr(os, "rename", rename)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, digest, upload)
            await upload.blocked.wait()
            place.file(digest).unlink()
            upload.go_on.set()
        hashed = store.statistics()["hashed_blobs"]
        assert left == 0 and await store.get(digest) == data
        assert store.statistics()["hashed_blobs"] == hashed + 1
        assert place.temp_files() == []

"""A file is altered behind the store at a chosen moment: while it is hashed, before it is uploaded again, once it has
been opened. What leaves the store is right, or nothing does; and an upload that is acknowledged is on the disk.
"""

import os
import threading
from contextlib import suppress

import pytest
import trio
import trio.testing

from nl.blob.hashing import digest_of
from nl.plugin import (
    SMALL,
    BlobNotFoundError,
    BytesReader,
    Digest,
    DigestFunction,
    Link,
    LocalFiles,
    UploadMismatchError,
)
from nl.stores.filesystem import mirror, verify
from nl.stores.filesystem.watch import WatchUnavailableError
from nl.testing import find, make_blob

from .conftest import put
from .test_verification import flip, overwrite, replace

ALTERATIONS = {
    "written to": lambda path, data: overwrite(path, flip(data)),
    "grown": lambda path, data: overwrite(path, data + b"x"),
    "cut short": lambda path, data: overwrite(path, data[:-1]),
}
SIZES = [5000, SMALL + 1]  # hashed at once, and in a thread of the store


@pytest.fixture(params=["watched", "unwatched"])
def watched(request, monkeypatch):
    def refuse():
        raise WatchUnavailableError("there are too many")

    if request.param == "unwatched":
        monkeypatch.setattr(mirror, "Watch", refuse)


class Once:
    """Does something after a file was read for hashing, at the first time."""

    def __init__(self, monkeypatch, act):
        self._act = act
        self._reads = {"preadv": os.preadv, "update": verify._update}
        monkeypatch.setattr(os, "preadv", self._preadv)
        monkeypatch.setattr(verify, "_update", self._update)

    def _after(self, result):
        act, self._act = self._act, None
        if act is not None:
            act()
        return result

    def _preadv(self, *args):
        result = self._reads["preadv"](*args)
        return result if threading.current_thread() is not threading.main_thread() else self._after(result)

    def _update(self, *args):
        return self._after(self._reads["update"](*args))


@pytest.mark.parametrize("alteration", ALTERATIONS)
@pytest.mark.parametrize("size", SIZES)
async def test_what_is_altered_while_it_is_hashed_is_not_served(place, monkeypatch, watched, size, alteration):
    data = make_blob(size)
    async with place.running() as store:
        digest = await put(store, data)
    async with place.running() as store:
        Once(monkeypatch, lambda: ALTERATIONS[alteration](place.file(digest), data))
        with pytest.raises(BlobNotFoundError):
            await store.get(digest)
        assert await find(store, digest) is None
        await store.put(digest, data)
        assert await find(store, digest) == data


@pytest.mark.parametrize("size", SIZES)
async def test_what_is_touched_while_it_is_hashed_is_hashed_again_and_served(place, monkeypatch, watched, size):
    data = make_blob(size)
    async with place.running() as store:
        digest = await put(store, data)
    async with place.running() as store:
        Once(monkeypatch, lambda: os.utime(place.file(digest), ns=(1, 1)))
        assert await store.get(digest) == data
        assert await store.get(digest) == data
        assert store.statistics()["hashed_blobs"] == 2


@pytest.mark.parametrize("size", SIZES)
async def test_what_somebody_writes_to_all_the_time_is_missing(place, monkeypatch, size):
    data = make_blob(size)
    async with place.running() as store:
        digest = await put(store, data)
    times = iter(range(1, 1000))

    def touch_again():
        with suppress(FileNotFoundError):  # it is set aside by now, and hashed for the log
            os.utime(place.file(digest), ns=(1, next(times)))
        once._act = touch_again

    async with place.running() as store:
        once = Once(monkeypatch, touch_again)
        with pytest.raises(BlobNotFoundError):
            await store.get(digest)
        assert store.statistics()["hashed_blobs"] == 3


async def test_who_waits_for_the_hash_of_a_file_that_is_replaced_meanwhile_does_not_get_the_new_one(
    place, monkeypatch, watched
):
    data = make_blob(SMALL + 1)
    async with place.running() as store:
        digest = await put(store, data)
    is_hashing, may_end, real = threading.Event(), threading.Event(), verify._update

    def update(*args):
        real(*args)
        is_hashing.set()
        assert may_end.wait(60)

    monkeypatch.setattr(verify, "_update", update)
    async with place.running() as store:
        found = {}

        async def ask(name):
            found[name] = None
            with suppress(BlobNotFoundError):
                found[name] = await store.get(digest)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "before")
            while not is_hashing.is_set():
                await trio.sleep(0.001)
            replace(place.file(digest), flip(data))
            nursery.start_soon(ask, "after")
            await trio.testing.wait_all_tasks_blocked()
            may_end.set()
        assert found["after"] is None
        assert found["before"] in (data, None)


@pytest.mark.parametrize("size", SIZES)
async def test_a_variant_that_is_altered_while_it_is_hashed_is_not_linked(place, monkeypatch, size):
    data = make_blob(size)
    async with place.running() as store:
        digest = await put(store, data)
        files = store.capability(LocalFiles)
        assert await files.link_files([Link(digest, str(place.inputs / "tool"), True)]) == []
    os.unlink(place.inputs / "tool")
    variant = place.executables / place.file(digest).name
    async with place.running() as store:
        files = store.capability(LocalFiles)
        assert await store.get(digest) == data  # the blob itself is known from here on

        def alter():
            overwrite(variant, flip(data))
            os.chmod(variant, 0o555)

        Once(monkeypatch, alter)
        assert await files.link_files([Link(digest, str(place.inputs / "again"), True)]) == []
        assert (place.inputs / "again").read_bytes() == data


@pytest.mark.parametrize("size", SIZES)
async def test_an_output_that_is_altered_while_it_is_hashed_is_refused(place, monkeypatch, size):
    data = make_blob(size)
    path = place.inputs / "out"
    path.write_bytes(data)
    async with place.running() as store:
        fd = os.open(path, os.O_RDONLY)

        def alter():
            os.chmod(f"/proc/self/fd/{fd}", 0o644)
            with open(f"/proc/self/fd/{fd}", "r+b") as file:
                file.write(flip(data))

        Once(monkeypatch, alter)
        with pytest.raises(UploadMismatchError):
            await store.capability(LocalFiles).adopt_file(digest_of(data), str(path))
        os.close(fd)
        assert await find(store, digest_of(data)) is None
        assert path.read_bytes() == flip(data)
        assert place.temp_files() == []


@pytest.mark.parametrize("alteration", ALTERATIONS)
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upload_of_what_was_altered_since_it_was_found_right_is_written(place, watched, chunked, alteration):
    data = make_blob(5000)
    async with place.running() as store:
        digest = await put(store, data)
        assert await store.get(digest) == data
        ALTERATIONS[alteration](place.file(digest), data)
        await (store.write(digest, BytesReader(data)) if chunked else store.put(digest, data))
        assert place.file(digest).read_bytes() == data
        assert store.statistics()["written_blobs"] == 2


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upload_of_what_was_replaced_by_other_bytes_of_its_size_is_written(place, watched, chunked):
    data = make_blob(5000)
    async with place.running() as store:
        digest = await put(store, data)
        before = place.file(digest).stat()
        replace(place.file(digest), flip(data))
        os.utime(place.file(digest), ns=(before.st_atime_ns, before.st_mtime_ns))  # the inode alone tells
        await (store.write(digest, BytesReader(data)) if chunked else store.put(digest, data))
        assert place.file(digest).read_bytes() == data


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upload_of_what_is_intact_is_not_written(place, watched, chunked):
    data = make_blob(5000)
    async with place.running() as store:
        digest = await put(store, data)
        inode = place.file(digest).stat().st_ino
        await (store.write(digest, BytesReader(data)) if chunked else store.put(digest, data))
        assert place.file(digest).stat().st_ino == inode
        assert store.statistics()["written_blobs"] == 1


async def test_a_file_that_is_altered_while_it_is_hashed_does_not_get_its_full_name(place, monkeypatch):
    data = make_blob(5000)
    digest = digest_of(data, DigestFunction.BLAKE3)
    path = place.lay(Digest(digest.hash, digest.size), data)
    async with place.running() as store:
        Once(monkeypatch, lambda: overwrite(path, flip(data)))
        with pytest.raises(BlobNotFoundError):
            await store.get(digest)
        assert await find(store, digest) is None


async def test_a_file_whose_name_tells_no_function_and_that_is_neither_blob_is_set_aside(place):
    data = make_blob(5000)
    digest = digest_of(data, DigestFunction.BLAKE3)
    place.lay(Digest(digest.hash, digest.size), flip(data))
    async with place.running() as store:
        assert await store.has([digest]) == [5000], "it may be the blob"
        with pytest.raises(BlobNotFoundError):
            await store.get(digest)
        assert await store.has([digest]) == [None], "or nobody would ever upload it"
        assert len(os.listdir(place.corrupt)) == 1
        await store.put(digest, data)
        assert await find(store, digest) == data

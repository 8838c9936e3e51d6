"""BLAKE3 blobs whose names do not tell their function: found, used, deleted, and what is in their way."""

import errno
import os

import pytest
import trio

from nl.plugin import BlobNotFoundError, Deletes, Digest, DigestFunction, UnavailableError, digest_of
from nl.stores.filesystem import mirror
from nl.testing import find, make_blob

from .conftest import put


@pytest.fixture(params=["watched", "unwatched"])
def watched(request, monkeypatch):
    if request.param == "unwatched":
        monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")


def lay_unmarked(place, data):
    """A blob as others name it; its digest."""
    digest = digest_of(data, DigestFunction.BLAKE3)
    return digest, place.lay(Digest(digest.hash, digest.size), data)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


async def test_asking_for_it_is_a_use(place):
    async with place.running(policy={"max_count": 3}) as store:
        digest, path = lay_unmarked(place, make_blob(5000))
        await put(store, b"a")
        await put(store, b"b")
        assert await store.has([digest]) == [5000]
        await put(store, b"c")
        assert path.exists()


async def test_one_of_another_size_is_not_it(place):
    digest, _ = lay_unmarked(place, make_blob(5000))
    async with place.running() as store:
        assert await store.has([Digest(digest.hash, 4999, DigestFunction.BLAKE3)]) == [None]
        assert await store.has([digest]) == [5000]


async def test_what_it_is_found_to_be_is_known_under_that_name_and_no_descriptor_stays_behind(place, watched):
    digest, _ = lay_unmarked(place, data := make_blob(5000))
    sha256 = digest_of(other := make_blob(300_000))
    place.lay(sha256, other)
    wrong = Digest("ab" * 32, 10, DigestFunction.BLAKE3)
    place.lay(Digest("ab" * 32, 10), b"neither of")
    async with place.running() as store:
        before = descriptors()
        assert await find(store, digest) == data
        for absent in (Digest(*sha256[:2], DigestFunction.BLAKE3), wrong):
            with pytest.raises(BlobNotFoundError):
                await store.get(absent)
        hashed = store.statistics()["hashed_blobs"]
        assert await find(store, digest) == data and await find(store, sha256) == other
        assert store.statistics()["hashed_blobs"] == hashed, "all that was found out is remembered"
        assert descriptors() == before
        assert [name.partition("-")[0] for name in os.listdir(place.corrupt)] == [wrong.hash]


@pytest.mark.parametrize("instead", ["nothing", "FIFO", "link"])
async def test_what_has_taken_its_place_unseen_is_not_waited_for_nor_followed(place, monkeypatch, instead):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    digest, path = lay_unmarked(place, data := make_blob(5000))
    async with place.running() as store:
        assert len(store._index) == 1
        path.unlink()
        if instead == "FIFO":
            os.mkfifo(path)
        elif instead == "link":
            (place.root / "elsewhere").write_bytes(data)
            path.symlink_to(place.root / "elsewhere")
        before = descriptors()
        with trio.fail_after(60):
            if instead == "link":
                with pytest.raises(Exception, match=f"cannot check {path}: Too many levels of symbolic links"):
                    await store.get(digest)
            else:
                assert await find(store, digest) is None
        assert descriptors() == before


@pytest.mark.parametrize("what", ["get", "delete"])
async def test_what_keeps_from_looking_at_it_is_told_with_its_path(place, monkeypatch, what):
    digest, path = lay_unmarked(place, make_blob(5000))
    real = os.open

    def refuse(name, *args, **kwargs):
        if name == path.name:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(name, *args, **kwargs)

    async with place.running() as store:
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", refuse)
            with pytest.raises(UnavailableError, match=f"cannot check {path}.*ulimit -n"):
                await (store.get(digest) if what == "get" else store.capability(Deletes).delete([digest]))
        assert await store.get(digest) == make_blob(5000)


async def test_what_keeps_from_looking_at_a_file_of_another_size_is_told_with_its_path(place, monkeypatch):
    digest = digest_of(make_blob(500))
    path = place.lay(digest, b"cut short")
    real = os.open

    def refuse(name, *args, **kwargs):
        if name == path.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(name, *args, **kwargs)

    async with place.running() as store:
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", refuse)
            with pytest.raises(UnavailableError, match=f"cannot check {path}.*I/O error"):
                await store.get(digest)
        assert await find(store, digest) is None
        assert not path.exists()


async def test_what_was_grown_unseen_is_not_taken_for_it(place, monkeypatch):
    """It begins with all bytes of the blob."""
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    digest, path = lay_unmarked(place, data := make_blob(5000))
    async with place.running() as store:
        assert await store.has([digest]) == [5000]
        path.write_bytes(data + b"x")
        assert await find(store, digest) is None
        assert await store.has([digest]) == [None]
        await store.put(digest, data)
        assert await find(store, digest) == data

"""Wrong files leave the folder, its sum and its variants; what has taken their place stays."""

import os
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest

from nl.plugin import BlobNotFoundError, Link, LocalFiles, digest_of, key_text
from nl.stores.filesystem import quarantine
from nl.stores.filesystem.journal import Journal
from nl.testing import find, make_blob

from .conftest import put
from .test_evicting import watched as watched  # a fixture
from .test_verification import flip, overwrite

BLOCK = 4096


def told_sum(store):
    """What whoever has the lock next will believe."""
    journal = Journal(store._layout)
    journal.read()
    return journal.sum


class CoarseClock:
    """`os`, but that all files in a folder were changed at the same time."""

    def __getattr__(self, name):
        return getattr(os, name)

    @contextmanager
    def scandir(self, fd):
        with os.scandir(fd) as items:
            yield [SimpleNamespace(name=item.name, stat=partial(self._stat, item)) for item in items]

    @staticmethod
    def _stat(item, *, follow_symlinks):
        return SimpleNamespace(st_ctime_ns=1, st_size=item.stat(follow_symlinks=follow_symlinks).st_size)


async def refused(store, digest):
    with pytest.raises(BlobNotFoundError):
        await store.get(digest)


async def test_a_wrong_blob_takes_its_variant_and_the_bytes_of_both_with_it(place, watched):
    async with place.running() as store:
        kept, digest = await put(store, b"kept"), await put(store, make_blob(3 * BLOCK))
        await store.capability(LocalFiles).link_files([Link(digest, str(place.inputs / "tool"), True)])
        assert os.listdir(place.executables) == [key_text(digest)]
        overwrite(place.file(digest), flip(make_blob(3 * BLOCK)))
        await refused(store, digest)
        assert os.listdir(place.executables) == []
        assert store.statistics()["bytes"] == place.used() == BLOCK
        assert watched or told_sum(store) == BLOCK
        assert await store.has([kept]) == [4]


async def test_a_file_of_a_wrong_size_is_taken_off_the_sum_with_the_size_it_has(place, watched):
    digest = digest_of(make_blob(5 * BLOCK))
    place.lay(digest, make_blob(2 * BLOCK))
    async with place.running() as store:
        await put(store, b"kept")
        await refused(store, digest)
        assert store.statistics()["bytes"] == place.used() == BLOCK
        assert watched or told_sum(store) == BLOCK


async def test_what_is_gone_or_replaced_when_it_is_to_be_set_aside_is_left_alone(place):
    async with place.running() as store:
        digest = await put(store, b"right")
        wrong, blobs = store._quarantine, store._layout.blobs
        with place.file(digest).open("rb") as file:
            place.file(digest).unlink()
            await wrong.set_aside(blobs, digest, file.fileno())
            await put(store, b"right")
            await wrong.set_aside(blobs, digest, file.fileno())
        assert await find(store, digest) == b"right"
        assert os.listdir(place.corrupt) == [] and store.statistics()["corrupt_blobs"] == 0


@pytest.mark.parametrize("clock", ["fine", "coarse"])
async def test_the_latest_to_be_set_aside_are_kept_whenever_they_were_written(place, monkeypatch, clock):
    if clock == "coarse":  # as of most file systems: all was changed in the same moment
        monkeypatch.setattr(quarantine, "os", CoarseClock())
    async with place.running(policy={"max_bytes": 60 * BLOCK}) as store:  # of which a twentieth is three
        digests = [await put(store, make_blob(BLOCK, seed=seed)) for seed in range(6)]
        for age, digest in enumerate(digests):
            overwrite(place.file(digest), bytes(BLOCK))
            os.utime(place.file(digest), (1, 1_000_000 - age))
            await refused(store, digest)
        assert sorted(name[:64] for name in os.listdir(place.corrupt)) == sorted(d.hash for d in digests[3:])


async def test_a_file_that_is_found_wrong_again_takes_no_earlier_ones_place(place):
    async with place.running() as store:
        for number in range(3):
            digest = await put(store, b"right")
            overwrite(place.file(digest), b"%05d" % number)
            await refused(store, digest)
        contents = sorted((place.corrupt / name).read_bytes() for name in os.listdir(place.corrupt))
        assert contents == [b"00000", b"00001", b"00002"]
        assert store.statistics()["corrupt_blobs"] == 3


@pytest.mark.parametrize(("bound", "kept"), [(BLOCK, 1), (BLOCK - 1, 0)])
async def test_a_large_store_sets_no_more_aside_than_the_bound(place, monkeypatch, bound, kept):
    monkeypatch.setattr(quarantine, "MAX_BYTES", bound)
    async with place.running(policy={"max_bytes": 1 << 40}) as store:
        digest = await put(store, make_blob(BLOCK))
        overwrite(place.file(digest), flip(make_blob(BLOCK)))
        await refused(store, digest)
        assert len(os.listdir(place.corrupt)) == kept and not place.file(digest).exists()


@pytest.mark.parametrize("moment", ["looked at", "deleted"])
async def test_what_another_process_deletes_meanwhile_of_what_was_set_aside_is_no_error(place, monkeypatch, moment):
    monkeypatch.setattr(quarantine, "MAX_FILES", 2)
    async with place.running() as store:
        digests = [await put(store, make_blob(100, seed=seed)) for seed in range(4)]
        for digest in digests:
            overwrite(place.file(digest), bytes(100))
        for digest in digests[:2]:
            await refused(store, digest)
        first = next(place.corrupt.glob(f"{digests[0].hash}*"))
        with monkeypatch.context() as patched:
            if moment == "looked at":
                patched.setattr(quarantine, "os", LeavingFile(first))
            else:
                real = os.unlink

                def unlink(path, **options):
                    if path == first.name:
                        first.unlink()
                    real(path, **options)

                patched.setattr(os, "unlink", unlink)
            await refused(store, digests[2])
        await refused(store, digests[3])
        assert sorted(name[:64] for name in os.listdir(place.corrupt)) == sorted(d.hash for d in digests[2:])


class LeavingFile:
    """`os`, but that a file goes as soon as its folder was listed."""

    def __init__(self, path):
        self._path = path

    def __getattr__(self, name):
        return getattr(os, name)

    @contextmanager
    def scandir(self, fd):
        with os.scandir(fd) as items:
            found = list(items)
        self._path.unlink(missing_ok=True)
        yield found

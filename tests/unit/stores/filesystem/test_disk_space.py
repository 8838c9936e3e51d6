"""Room on the disk: what is lacking, whether this store is what fills it, and how far it shrinks. The figures of the
file system are made up, the files that are evicted are real.
"""

import errno
import os
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import ExhaustedError, Link, LocalFiles
from nl.stores.filesystem import evicting
from nl.stores.filesystem.disk_space import Lacking
from nl.testing import make_blob

from .conftest import put

FULL = OSError(errno.ENOSPC, "no space left")
BLOCK = 4096


class Disk:
    """A file system of `total` blocks, of which others take `others` and the store what its files do."""

    def __init__(self, monkeypatch, store, *, total, others=0):
        self.store, self.total, self.others = store, total, others
        self.inodes = self.free_inodes = 0
        self.reserved_for_root = self.inodes_for_root = 0
        monkeypatch.setattr(os, "fstatvfs", lambda fd: self.facts())

    def facts(self):
        free = self.total - self.others - self.store._index.bytes // BLOCK
        return SimpleNamespace(
            f_frsize=BLOCK, f_blocks=self.total, f_bfree=free, f_bavail=max(free - self.reserved_for_root, 0),
            f_files=self.inodes, f_ffree=self.free_inodes, f_favail=self.free_inodes - self.inodes_for_root,
        )  # fmt: skip


async def fill(store, count):
    return [await put(store, make_blob(BLOCK, seed=number)) for number in range(count)]


async def left(store, digests):
    """How many are there; asked last, as it is a use."""
    sizes = await store.has(digests)
    return len(sizes) - sizes.count(None)


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT])
async def test_other_errors_than_a_lack_of_room_evict_nothing(place, monkeypatch, number):
    error = OSError(number, os.strerror(number))
    async with place.running(min_free=BLOCK) as store:
        disk = Disk(monkeypatch, store, total=10)
        digests = await fill(store, 10)
        assert not await store._space.make_room(error, 1)
        assert not await store._space.make_room_for_name(error, attempt=0)
        assert store._space.advice(error, 1) == ""
        disk.total = 1000
        assert not await store._space.make_room(error, 1), "that there is room is no reason to try again"
        disk.total = 10
        assert await left(store, digests) == 10
        assert disk.facts().f_bavail == 0


async def test_room_is_made_for_the_bytes_and_the_reserve_and_not_for_more(place, monkeypatch):
    async with place.running(min_free=2 * BLOCK) as store:
        Disk(monkeypatch, store, total=20)
        digests = await fill(store, 20)
        assert await store._space.make_room(FULL, 3 * BLOCK)
        assert store.statistics()["made_room_on_disk"] == 1
        assert [size is not None for size in await store.has(digests)] == [False] * 5 + [True] * 15
        assert await store._space.make_room(FULL, 3 * BLOCK), "there is room: whoever has made it, since the error"
        assert store.statistics()["made_room_on_disk"] == 1
        assert await left(store, digests) == 15


@pytest.mark.parametrize(("others", "kept"), [(8, 7), (9, 8), (10, 9), (11, 9), (0, 5)])
async def test_it_shrinks_until_it_has_less_than_others_and_not_by_a_slice_more(place, monkeypatch, others, kept):
    async with place.running(min_free=15 * BLOCK) as store:
        Disk(monkeypatch, store, total=20, others=others)
        digests = await fill(store, 20 - others)
        made = await store._space.make_room(FULL, 0)
        assert made == (others < 10 or None in await store.has(digests))
        assert await left(store, digests) == kept


async def test_what_root_alone_may_use_is_not_free(place, monkeypatch):
    async with place.running(min_free=2 * BLOCK) as store:
        Disk(monkeypatch, store, total=20).reserved_for_root = 5
        digests = await fill(store, 18)
        await store._space.keep_reserve()
        assert await left(store, digests) == 13


async def test_nor_is_it_room_for_an_upload(place, monkeypatch):
    async with place.running(min_free=0) as store:
        Disk(monkeypatch, store, total=20).reserved_for_root = 5
        digests = await fill(store, 18)
        assert await store._space.make_room(FULL, BLOCK)
        assert await left(store, digests) == 14
        assert store.statistics()["made_room_on_disk"] == 1


@pytest.mark.parametrize(("others", "kept"), [(8, 7), (9, 8)])
async def test_nor_is_it_what_others_have_taken(place, monkeypatch, others, kept):
    async with place.running(min_free=15 * BLOCK) as store:
        Disk(monkeypatch, store, total=20, others=others).reserved_for_root = 4
        digests = await fill(store, 8)
        assert await store._space.make_room(FULL, 0) is (others == 8)
        assert await left(store, digests) == kept


@pytest.mark.parametrize(("free", "kept"), [(4, 16), (5, 15), (6, 14)])
async def test_the_reserve_is_kept_to_the_byte(place, monkeypatch, free, kept):
    async with place.running(min_free=free * BLOCK) as store:
        Disk(monkeypatch, store, total=20)
        digests = await fill(store, 15)
        await store._space.keep_reserve()
        assert store.statistics()["made_room_on_disk"] == (free > 5)
        assert await left(store, digests) == min(kept, 15)


@pytest.mark.parametrize(
    ("total", "reserve"), [(1000, 10), (1099, 10), (100 << 18, 1 << 18), (200 << 18, 1 << 18)]
)
async def test_the_usual_reserve_is_a_hundredth_and_at_most_a_gibibyte(place, monkeypatch, total, reserve):
    async with place.running() as store:
        disk = Disk(monkeypatch, store, total=total)
        assert store._space._reserve(disk.facts()) // BLOCK == reserve
        disk.others = total - total // 100
        assert store._space._reserve(disk.facts()) // BLOCK == reserve, "however full it is"
    async with place.running(min_free=0) as store:
        assert store._space._reserve(disk.facts()) == 0, "none is wanted"


async def test_what_is_lacking_is_told_apart(place, monkeypatch):
    async with place.running(min_free=2 * BLOCK) as store:
        disk = Disk(monkeypatch, store, total=20, others=10)
        space = store._space
        assert space._lacking(disk.facts(), 8 * BLOCK) is Lacking.BYTES, "all that is free is needed"
        assert space._lacking(disk.facts(), 8 * BLOCK - 1) is Lacking.NAMES
        disk.inodes, disk.free_inodes = 100, 0
        assert space._lacking(disk.facts(), 1) is Lacking.INODES
        disk.inodes, disk.free_inodes = 100, 1
        assert space._lacking(disk.facts(), 1) is Lacking.NAMES
        assert space.advice(FULL, 1) == Lacking.NAMES.value
        disk.others = 20
        assert "max_bytes" in space.advice(FULL, 1)


@pytest.mark.parametrize(("used", "evicts"), [(2 * (100 + 64), True), (2 * (100 + 64) + 1, False)])
async def test_inodes_are_made_free_if_half_of_those_used_are_ours(place, monkeypatch, used, evicts):
    async with place.running(min_free=0) as store:
        digests = await fill(store, 100)
        disk = Disk(monkeypatch, store, total=10_000)
        disk.inodes, disk.free_inodes = used, 0
        assert await store._space.make_room(FULL, 1) is evicts
        assert await left(store, digests) == (100 - 64 if evicts else 100)


async def test_inodes_that_root_alone_may_use_are_not_free_and_not_used(place, monkeypatch):
    async with place.running(min_free=0) as store:
        digests = await fill(store, 100)
        disk = Disk(monkeypatch, store, total=10_000)
        disk.inodes, disk.free_inodes, disk.inodes_for_root = 2 * (100 + 64) + 50, 50, 50
        assert await store._space.make_room(FULL, 1)
        assert await left(store, digests) == 100 - 64


async def test_inodes_of_executable_variants_are_ours(place, monkeypatch):
    async with place.running(min_free=0) as store:
        digests = await fill(store, 100)
        links = [Link(digest, str(place.inputs / digest.hash), True) for digest in digests[:20]]
        assert await store.capability(LocalFiles).link_files(links) == []
        disk = Disk(monkeypatch, store, total=10_000)
        disk.inodes, disk.free_inodes = 2 * (100 + 20 + 64), 0
        assert await store._space.make_room(FULL, 1)
        assert await left(store, digests) == 100 - 64


@contextmanager
def turns_of_others():
    """As many as the times that others have had their turn."""
    turns = []

    class Others(trio.abc.Instrument):
        def before_io_wait(self, timeout):
            turns.append(timeout)

    instrument = Others()
    trio.lowlevel.add_instrument(instrument)
    try:
        yield turns
    finally:
        trio.lowlevel.remove_instrument(instrument)


@pytest.mark.parametrize(("attempt", "evicted"), [(0, 64), (1, 128), (2, 256)])
async def test_where_a_folder_is_full_of_names_each_attempt_evicts_twice_as_many(place, monkeypatch, attempt, evicted):
    async with place.running(min_free=0) as store:
        digests = await fill(store, 300)
        Disk(monkeypatch, store, total=10_000)
        assert await store._space.make_room_for_name(FULL, attempt=attempt)
        assert await left(store, digests) == 300 - evicted
        assert store.statistics()["made_room_on_disk"] == 1


async def test_where_much_is_evicted_others_have_their_turn_after_each_slice(place, monkeypatch):
    async with place.running(min_free=0) as store:
        await fill(store, 300)
        Disk(monkeypatch, store, total=10_000)
        with turns_of_others() as turns:
            assert await store._space.make_room_for_name(FULL, attempt=2)
        assert len(turns) >= 256 // 64


async def test_what_was_evicted_is_freed_before_it_is_looked_what_is_missing(place, monkeypatch):
    """Or as much again would be evicted, of which the blocks are not free yet either."""
    monkeypatch.setattr(evicting, "_LARGE", BLOCK)
    async with place.running(min_free=0) as store:
        Disk(monkeypatch, store, total=20)
        digests = await fill(store, 20)
        before = len(os.listdir("/proc/self/fd"))
        assert await store._space.make_room(FULL, 3 * BLOCK)
        assert len(os.listdir("/proc/self/fd")) == before
        assert await left(store, digests) == 17


async def test_on_a_disk_that_others_fill_no_file_goes_for_a_name_either(place, monkeypatch):
    async with place.running(min_free=0) as store:
        digests = await fill(store, 5)
        Disk(monkeypatch, store, total=100, others=95)
        assert not await store._space.make_room_for_name(FULL, attempt=0)
        assert await left(store, digests) == 5 and store.statistics()["made_room_on_disk"] == 0


async def test_nothing_more_to_evict_is_no_room(place, monkeypatch):
    async with place.running(min_free=BLOCK) as store:
        Disk(monkeypatch, store, total=0)
        assert not await store._space.make_room(FULL, BLOCK)
        assert not await store._space.make_room_for_name(FULL, attempt=0)
        assert store.statistics()["made_room_on_disk"] == 0


@pytest.mark.parametrize(
    ("size", "missing", "refused"),
    [(1000, 0, False), (1000, 1, True), (1000, 1000, True), (1000, 1001, False)],
)
async def test_an_output_is_not_kept_where_without_it_the_reserve_would_be_free(
    place, monkeypatch, size, missing, refused
):
    async with place.running(min_free=5 * BLOCK + missing) as store:
        Disk(monkeypatch, store, total=100, others=95)
        path = place.inputs / "out"
        path.write_bytes(bytes(size))
        if refused:
            with pytest.raises(ExhaustedError, match=f"it fills the disk, of which {5 * BLOCK + missing} bytes"):
                store._space.refuse_to_keep(digest_of(bytes(size)), str(path))
        else:
            store._space.refuse_to_keep(digest_of(bytes(size)), str(path))


async def test_an_output_on_another_disk_and_one_on_a_disk_that_is_ours_are_kept(place, monkeypatch, tmp_path):
    async with place.running(min_free=6 * BLOCK) as store:
        disk = Disk(monkeypatch, store, total=100, others=95)
        (place.inputs / "out").write_bytes(bytes(BLOCK))
        digest = digest_of(bytes(BLOCK))
        with pytest.raises(ExhaustedError):
            store._space.refuse_to_keep(digest, str(place.inputs / "out"))
        store._space.refuse_to_keep(digest, "/proc/self/status")
        disk.total = disk.others = 0
        await fill(store, 5)
        disk.total = 10
        store._space.refuse_to_keep(digest, str(place.inputs / "out"))

"""A listing in itself: pieces and slices, what is passed over, when the next one may be made."""

import errno
import os
import stat
import time
from types import SimpleNamespace

import pytest
import trio

from nl.plugin import digest_of
from nl.stores.filesystem import mirror, scanning
from nl.stores.filesystem.scanning import Piece

from .conftest import put, until
from .test_scanning import held_scan

BLOCK = 4096


class Entry:
    """A file in a folder that is listed."""

    def __init__(self, name, *, mode=stat.S_IFREG, error=None):
        self.name = name
        self._mode = mode
        self._error = error

    def stat(self, *, follow_symlinks):
        assert not follow_symlinks
        if self._error is not None:
            raise OSError(self._error, os.strerror(self._error))
        return SimpleNamespace(st_mode=self._mode, st_atime=1.0, st_mtime=2.0, st_ctime=3.0, st_size=4)


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 2500, 3000])
def test_a_folder_is_listed_a_thousand_entries_at_a_time_of_which_any_may_be_passed_over(count):
    items = iter([Entry(f"{number}", error=errno.ENOENT if number % 2 else None) for number in range(count)])
    found, pieces = [], 0
    while True:
        piece = scanning._list_piece(None, items)
        assert len(piece.files) <= 500 and piece.unreadable == []
        found += piece.files
        pieces += 1
        if piece.is_last:
            break
    assert found == [(1.0, f"{number}", 4) for number in range(0, count, 2)]
    assert pieces == count // 1000 + 1


def test_what_is_no_regular_file_is_passed_over_and_what_cannot_be_looked_at_is_told():
    kinds = (stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
    items = [*(Entry("other", mode=mode) for mode in kinds), Entry("bad", error=errno.EIO), Entry("good")]
    files, unreadable, is_last = scanning._list_piece(None, iter(items))
    assert files == [(1.0, "good", 4)] and is_last
    assert [(name, error.errno) for name, error in unreadable] == [("bad", errno.EIO)]


async def test_what_was_found_is_added_a_thousand_at_a_time_and_others_run_between(place, monkeypatch):
    def list_piece(folder, items):
        blobs = range(2500) if folder.path.endswith("content/d") else ()
        return Piece([(1.0, f"{number:064x}-1", 1) for number in blobs], [], is_last=True)

    monkeypatch.setattr(scanning, "_list_piece", list_piece)
    merged, turns = [], [0]
    monkeypatch.setattr(scanning.Scanner, "_merge", lambda self, folder, files: merged.append((len(files), turns[0])))

    async def others():
        while True:
            await trio.lowlevel.checkpoint()
            turns[0] += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        async with place.running():
            pass
        nursery.cancel_scope.cancel()
    assert [count for count, _ in merged] == [1000, 1000, 500]
    assert len({turn for _, turn in merged}) >= 2, "others run before or after, so two may see the same"


async def test_what_could_not_be_looked_at_is_told_once_in_each_listing(place, monkeypatch, caplog):
    def list_piece(folder, items):
        error = OSError(errno.EIO, os.strerror(errno.EIO))
        return Piece([], [("one", error), ("two", error)], is_last=True)

    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    monkeypatch.setattr(scanning, "_list_piece", list_piece)
    async with place.running() as store:
        for scans in (1, 2):
            await until(lambda scans=scans: store._scanner.scans == scans and store._scanner.began_at < 0)
            texts = [record.getMessage() for record in caplog.records if "cannot look at" in record.getMessage()]
            assert len(texts) == scans and f"{place.content}/d/one: Input/output error" in texts[-1]
            store._mirror.scan_wanted = True
            store._scanner.asked.set()


async def test_empty_files_under_other_keys_than_blobs_are_values(place):
    async with place.running() as store:
        await store.put("empty", b"")
    async with place.running() as store:
        await until(lambda: store._scanner.asked.statistics().tasks_waiting == 1)
        assert await store.has(["empty"]) == [0] and (place.content / "s" / "empty").exists()


async def test_a_listing_goes_by_the_clock_that_files_have(place):
    """When they were used last, not when they were written, and on a clock of which uses of now are later."""
    async with place.running() as store:
        digests = [await put(store, b"%d" % number) for number in range(3)]
    for table in place.content.glob(".uses-*"):
        table.unlink()
    now = time.time()
    for atime, mtime, digest in ((1000, 3000, digests[0]), (3000, 1000, digests[1]), (2000, 2000, digests[2])):
        os.utime(place.file(digest), (now - atime, now - mtime))
    async with place.running(policy={"max_count": 3}) as store:
        for number, gone in enumerate((1, 2, 0)):
            await put(store, b"new %d" % number)
            assert not place.file(digests[gone]).exists()
            assert len(os.listdir(place.content / "d")) == 3


async def test_what_is_found_while_the_folder_is_listed_is_known_before_all_is(place, monkeypatch):
    """So that an upload that waits for something to evict goes on with it."""
    monkeypatch.setattr(scanning, "_PIECE", 1)
    async with place.running() as store:
        for number in range(4):
            await put(store, b"%d" % number)
    with held_scan(monkeypatch) as go_on:
        async with place.running(scanned=False, policy={"max_count": 4}) as store:
            woken, progress = [], store._scanner._progress
            await until(lambda: store._scanner.began_at >= 0)
            monkeypatch.setattr(store._scanner, "_progress", SimpleNamespace(unpark_all=lambda: woken.append(1)))
            go_on()
            await until(lambda: store._scanner.scans == 1)
            assert len(woken) > 4
            monkeypatch.setattr(store._scanner, "_progress", progress)
            assert await store.has([digest_of(b"0")]) == [1]


async def test_what_another_has_replaced_unseen_has_its_new_size_with_the_next_listing(place, monkeypatch):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    async with place.running() as store:
        await store.put("name", b"value")
        (place.root / "new").write_bytes(bytes(2 * BLOCK + 1))
        os.rename(place.root / "new", place.content / "s" / "name")
        store._mirror.scan_wanted = True
        store._scanner.asked.set()
        await until(lambda: store._scanner.scans == 2)
        assert store.statistics()["blobs"] == 1 and store.statistics()["bytes"] == 3 * BLOCK


async def test_what_has_gone_unseen_is_forgotten_by_the_next_listing(place, monkeypatch):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    async with place.running() as store:
        gone, kept = await put(store, b"gone"), await put(store, b"kept")
        place.file(gone).unlink()
        store._mirror.scan_wanted = True
        store._scanner.asked.set()
        await until(lambda: store._scanner.scans == 2)
        assert list(store._index.slots) == [kept.hash] and store.statistics()["bytes"] == BLOCK

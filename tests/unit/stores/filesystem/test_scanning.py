"""Listing the folder takes as long as it takes, and nobody waits for it."""

import errno
import os
import threading
from contextlib import contextmanager

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import ActionKey, BytesReader, Link, LocalFiles
from nl.stores.filesystem import FilesystemStore, commit, journal, mirror, scanning
from nl.testing import BareContext, find, make_blob, started

from .conftest import put, until

BLOCK = 4096


@contextmanager
def held_scan(monkeypatch):
    """Scans find nothing more until what this gives is called."""
    go_on = threading.Event()
    real = scanning._list_piece

    def list_piece(folder, items):
        go_on.wait(120)
        return real(folder, items)

    monkeypatch.setattr(scanning, "_list_piece", list_piece)
    try:
        yield go_on.set
    finally:
        go_on.set()


@pytest.mark.parametrize("policy", [{}, {"max_bytes": 1 << 20}, {"max_count": 1000}], ids=str)
async def test_while_the_folder_is_listed_everything_goes_on(place, monkeypatch, policy):
    monkeypatch.setattr(commit, "_PATIENCE_S", 0.5)
    async with place.running() as store:
        old, tool = await put(store, b"old"), await put(store, make_blob(100_000))
        await store.put(ActionKey("ab" * 32, 7), b"result")
    with held_scan(monkeypatch) as go_on:
        async with place.running(scanned=False, policy=policy) as store:
            with trio.fail_after(60):
                for number in range(20):
                    data = b"%d" % number
                    assert await store.get(await put(store, data)) == data
                    await store.write(digest_of(data * 50_000), BytesReader(data * 50_000))
                keys = [old, tool, digest_of(b"none"), ActionKey("ab" * 32, 7)]
                assert await store.has(keys) == [3, 100_000, None, 6]
                assert await find(store, tool) == make_blob(100_000)
                links = [Link(tool, str(place.inputs / "tool"), True), Link(old, str(place.inputs / "old"), False)]
                assert await store.capability(LocalFiles).link_files(links) == []
                (place.inputs / "out").write_bytes(b"output")
                await store.capability(LocalFiles).adopt_file(digest_of(b"output"), str(place.inputs / "out"))
            assert store.statistics()["state"] == "scanning"
            go_on()


async def test_max_bytes_holds_while_one_process_still_lists_the_folder(place, monkeypatch):
    monkeypatch.setattr(commit, "_PATIENCE_S", 0.1)
    policy = {"max_bytes": 20 * BLOCK}
    async with place.running(policy=policy) as one:
        for number in range(20):
            await put(one, b"old %d" % number)
        with held_scan(monkeypatch) as go_on:
            async with place.running(scanned=False, policy=policy) as two:
                news = [await put(one, b"one %d" % number) for number in range(5)]
                for number in range(30):
                    news.append(await put((one, two)[number % 2], b"both %d" % number))
                    assert place.used() <= 20 * BLOCK
                    if number % 2:
                        assert await two.has(news[-2:]) == [len(b"both %d" % number)] * 2
                go_on()
                await until(lambda: two.statistics()["state"] == "exact")
                assert await one.has(news[-2:]) == await two.has(news[-2:]) == [7, 7]
                assert one.statistics()["bytes"] == two.statistics()["bytes"] == place.used()


async def test_where_a_scan_stands_still_uploads_wait_for_it_once_and_then_no_more(place, monkeypatch):
    monkeypatch.setattr(commit, "_PATIENCE_S", 0.5)
    policy = {"max_bytes": 20 * BLOCK}
    async with place.running(policy=policy) as store:
        for number in range(20):
            await put(store, b"old %d" % number)
    with held_scan(monkeypatch) as go_on:
        async with place.running(scanned=False, policy=policy) as store:
            began = trio.current_time()
            for number in range(10):
                await put(store, b"new %d" % number)
            assert trio.current_time() - began < 5, "half a second for the whole scan, not for each"
            assert place.used() == 21 * BLOCK, "after the first, there is something to evict"
            go_on()
    async with place.running(policy=policy):
        await until(lambda: place.used() == 20 * BLOCK)


async def test_while_little_is_known_an_upload_waits_rather_than_evict_what_may_be_newer(place, monkeypatch):
    policy = {"max_bytes": 4 * BLOCK}
    async with place.running(policy=policy) as one:
        old, *_ = [await put(one, name) for name in (b"old", b"b", b"c", b"d")]
        with held_scan(monkeypatch) as go_on:
            async with place.running(scanned=False, policy=policy) as two, trio.open_nursery() as nursery:
                seen = [digest_of(b"b"), digest_of(b"c")]
                assert await two.has(seen) == [1, 1], "it knows these two, and they were used just now"
                nursery.start_soon(put, two, b"new")
                await until(lambda: two._scanner._progress.statistics().tasks_waiting)
                assert place.used() == 4 * BLOCK
                go_on()
            assert await one.has([old, *seen, digest_of(b"d"), digest_of(b"new")]) == [None, 1, 1, 1, 3]


async def test_a_file_that_cannot_be_looked_at_is_left_alone(place, monkeypatch, caplog):
    async with place.running() as store:
        digests = [await put(store, b"%d" % number) for number in range(5)]
    bad = str(digests[2])

    class Entry:
        def __init__(self, entry):
            self.name, self._entry = entry.name, entry

        def stat(self, *, follow_symlinks):
            if self.name == bad:
                raise OSError(errno.EIO, os.strerror(errno.EIO), self.name)
            return self._entry.stat(follow_symlinks=follow_symlinks)

    real = scanning._list_piece
    monkeypatch.setattr(scanning, "_list_piece", lambda folder, items: real(folder, map(Entry, items)))
    async with place.running(policy={"max_bytes": 3 * BLOCK}) as store:
        await until(lambda: store.statistics()["state"] == "exact")
        assert f"cannot look at {place.file(digests[2])}" in caplog.text
        for number in range(10):
            await put(store, b"new %d" % number)
        assert place.used() == 4 * BLOCK
        assert place.file(digests[2]).exists()


async def test_a_scan_in_many_pieces_finds_all_and_keeps_their_order(place, monkeypatch):
    monkeypatch.setattr(scanning, "_PIECE", 7)
    monkeypatch.setattr(scanning, "_SLICE", 3)
    async with place.running() as store:
        digests = [await put(store, b"%03d" % number) for number in range(100)]
        await store.put(ActionKey("ab" * 32, 7), b"result")
    for age, digest in enumerate(digests):
        os.utime(place.file(digest), (1_000_000 + age * 37 % 100, 1))
    for table in place.content.glob(".uses-*"):
        table.unlink()
    async with place.running() as store:
        assert store.statistics()["blobs"] == 101
    options = place.options(policy={"max_count": 11})
    async with started(FilesystemStore(options, BareContext())) as store:
        await until(lambda: store.statistics()["blobs"] == 11)
        left = {digest for digest, size in zip(digests, await store.has(digests), strict=True) if size}
    assert left == {digest for age, digest in enumerate(digests) if age * 37 % 100 >= 90}


async def test_without_inotify_the_sum_of_all_stays_under_max_bytes_and_uses_count(place, monkeypatch):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    policy = {"max_bytes": 30 * BLOCK}
    async with (
        place.running(policy=policy) as one, place.running(policy=policy) as two, place.running(policy=policy) as three
    ):  # fmt: skip
        kept = await put(one, b"always asked for")
        for number in range(60):
            for at, store in enumerate((one, two, three)):
                await put(store, b"%d of %d" % (number, at))
                assert await two.has([kept]) == [16]
                assert place.used() <= 30 * BLOCK
        assert place.used() >= 28 * BLOCK


async def test_a_sum_that_is_wrong_after_a_crash_is_set_right_by_the_next_scan(place, monkeypatch):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    async with place.running() as store:
        await put(store, b"x")
        await store._committer.lock.acquire()
        store._committer.journal.read()
        store._committer.journal.tell(1 << 40)
        store._committer.lock.unlock()
    async with place.running(policy={"max_bytes": 3 * BLOCK}) as store:
        await put(store, b"y")
        assert place.used() == 2 * BLOCK
        store._committer.journal.read()
        assert store._committer.journal.sum == 2 * BLOCK


async def test_between_scans_none_is_under_way_and_whoever_needs_one_has_it_begin(place):
    async with place.running() as store:
        await put(store, b"x")
        scanner = store._scanner
        assert scanner.began_at == -1.0
        assert scanner.scans == 1
        store._mirror.scan_wanted = False
        with trio.fail_after(60):
            assert await scanner.progress(patience_s=60), "the background work begins with it"
        await until(lambda: scanner.scans == 2 and scanner.began_at == -1.0)
        assert not await scanner.progress(patience_s=0)


async def test_a_scan_that_has_lasted_too_long_is_waited_for_no_longer(place):
    async with place.running() as store:
        scanner = store._scanner
        scanner.began_at = trio.current_time() - 5.0
        with trio.fail_after(60):
            assert not await scanner.progress(patience_s=4.0)
        assert not store._mirror.scan_wanted, "it is under way"
        scanner.began_at = -1.0


async def test_without_inotify_a_listing_that_takes_longer_than_the_journal_lasts_is_no_reason_for_another(
    place, monkeypatch
):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    monkeypatch.setattr(journal, "RING", 1000)  # a dozen changes
    monkeypatch.setattr(scanning, "_PIECE", 5)
    real, new = scanning._list_piece, []
    async with place.running() as one:
        for number in range(50):
            await put(one, b"%d" % number)

        async def upload():
            new.append(await put(one, b"new %d" % len(new)))

        def list_piece(folder, items):
            for _ in range(5 if len(new) < 50 else 0):
                trio.from_thread.run(upload)
            return real(folder, items)

        monkeypatch.setattr(scanning, "_list_piece", list_piece)
        async with place.running() as two:
            assert len(new) == 50
            await two._committer.lock.acquire()
            with two._committer.locked():
                assert two._mirror.is_complete and two._scanner.scans == 1
                assert two.statistics()["blobs"] == 100


async def test_after_a_listing_that_proves_nothing_no_variant_is_taken_for_one_whose_blob_has_gone(place, monkeypatch):
    """Its blob came meanwhile, and the kernel has lost the event that said so."""
    real, is_there = scanning._list_piece, threading.Event()
    digest = digest_of(b"tool")
    variant = place.executables / str(digest)

    def list_piece(folder, items):
        assert is_there.wait(60)
        if folder is store._layout.executables and not place.file(digest).exists():
            place.lay(digest, b"tool")
            variant.write_bytes(b"tool")
            variant.chmod(0o555)
            store._mirror._watch.read()
            trio.from_thread.run_sync(store._mirror.lose_track)
        return real(folder, items)

    monkeypatch.setattr(scanning, "_list_piece", list_piece)
    async with place.running(scanned=False) as store:
        is_there.set()
        await store._mirror.scanned.wait()
        await until(lambda: store.statistics()["state"] == "exact")
        assert variant.exists() and store.statistics()["executables"] == 1


async def test_a_variant_that_a_listing_does_not_find_any_more_takes_no_blob_with_it(place, monkeypatch):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    async with place.running() as store:
        digest = await put(store, b"tool")
        await store.capability(LocalFiles).link_files([Link(digest, str(place.inputs / "tool"), True)])
        (place.executables / str(digest)).unlink()
        scans = store._scanner.scans
        store._mirror.want_scan()
        await until(lambda: store._scanner.scans > scans)
        figures = store.statistics()
        assert (figures["blobs"], figures["executables"], figures["bytes"]) == (1, 0, BLOCK)

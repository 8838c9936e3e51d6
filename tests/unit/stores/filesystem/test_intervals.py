"""When what happens by itself happens: on a clock that nobody moves but the test."""

import fcntl
import os
import threading
import time
from functools import partial

import pytest
import trio
import trio.testing

from nl.blob.hashing import digest_of
from nl.plugin import Digest
from nl.stores.filesystem import FilesystemStore, clock, mirror, scanning
from nl.stores.filesystem.journal import Change, Journal
from nl.stores.filesystem.layout import Layout
from nl.stores.filesystem.uses import CELLS
from nl.testing import BareContext, started

from .conftest import put
from .test_scanning import held_scan

BLOCK = 4096


async def really(condition):
    """Waits for threads and other tasks, while the clock stands still."""
    for _ in range(20_000):
        if condition():
            return
        await trio.to_thread.run_sync(time.sleep, 0.001)
    raise AssertionError("it does not happen")


async def sooner_or_later(event, clock):
    """Waits for what comes after pauses whose beginnings cannot be seen: the clock goes on meanwhile."""
    for _ in range(20_000):
        if event.is_set():
            return
        clock.jump(1)
        await trio.to_thread.run_sync(time.sleep, 0.001)
    raise AssertionError("it does not happen")


async def idle(store):
    """Until the background work has done what is due, and waits for the clock."""
    await trio.testing.wait_all_tasks_blocked()
    await really(lambda: store._scanner.asked.statistics().tasks_waiting == 1)


async def passes(seconds, store, clock):
    """The clock moves on, and the background work does what is due then."""
    await idle(store)
    clock.jump(seconds)
    await idle(store)


@pytest.fixture
def unwatched(monkeypatch):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")


async def test_without_inotify_the_folder_is_listed_once_a_minute(place, unwatched, mock_clock):
    async with place.running() as store:
        await passes(0, store, mock_clock)
        place.lay(digest_of(b"of another machine"), b"of another machine")
        await passes(59.5, store, mock_clock)
        assert store.statistics()["blobs"] == 0
        await passes(0.75, store, mock_clock)
        assert store.statistics()["blobs"] == 1
        await passes(59.5, store, mock_clock)
        assert store._scanner.scans == 2
        await passes(0.75, store, mock_clock)
        assert store._scanner.scans == 3


async def test_without_inotify_what_other_processes_place_is_learned_several_times_a_second(
    place, unwatched, mock_clock
):
    """Before it is more than the journal holds."""
    async with place.running() as store:
        await passes(0.25, store, mock_clock)
        digest, journal = digest_of(b"x"), Journal(store._layout)
        journal.read()
        journal.write(Change(store._layout.blobs, place.lay(digest, b"x").name, 1))
        journal.tell(BLOCK)
        assert store.statistics()["blobs"] == 0
        await passes(0.3, store, mock_clock)
        assert store.statistics()["blobs"] == 1


async def test_with_inotify_it_is_listed_once_and_others_changes_are_learned_several_times_a_second(place, mock_clock):
    async with place.running() as store:
        await passes(0, store, mock_clock)
        place.lay(digest_of(b"of another process"), b"of another process")
        await passes(0.2, store, mock_clock)
        assert store.statistics()["blobs"] == 0
        await passes(0.1, store, mock_clock)
        assert store.statistics()["blobs"] == 1
        await passes(3600, store, mock_clock)
        assert store._scanner.scans == 1


async def test_uses_are_written_to_the_disk_every_five_seconds(place, mock_clock):
    def ages(digests):
        return [place.file(digest).stat().st_atime == 1 for digest in digests]

    async with place.running() as store:
        digests = [await put(store, b"used"), await put(store, b"not used")]
        await passes(5.25, store, mock_clock)
        for digest in digests:
            os.utime(place.file(digest), (1, place.file(digest).stat().st_mtime))
        await store.has(digests[:1])
        await passes(4.5, store, mock_clock)
        assert ages(digests) == [True, True]
        await passes(0.75, store, mock_clock)
        assert ages(digests) == [False, True], "what was not used since the last time is not written again"


async def test_what_is_too_old_is_deleted_within_five_seconds(place, mock_clock):
    async with place.running(policy={"max_seconds": 100}) as store:
        old, young = [await put(store, b"%d" % number) for number in range(3)], await put(store, b"young")
        await passes(5.25, store, mock_clock)
        index, used = store._index, time.monotonic() - 101
        for digest in old:
            index.used[index.blob(digest)] = used
        index.order.add_found([(used, index.blob(digest)) for digest in old])
        await passes(4.5, store, mock_clock)
        assert len(os.listdir(place.content / "d")) == 4
        await passes(0.75, store, mock_clock)
        assert os.listdir(place.content / "d") == [str(young)]


@pytest.mark.parametrize(
    ("stands_still", "least", "most"),
    [pytest.param(False, 0.15, 0.3, id="told"), pytest.param(True, 1.9, 2.2, id="not told")],
)
async def test_who_comes_waits_for_what_the_other_has_used_but_two_seconds_at_most(
    place, mock_clock, monkeypatch, stands_still, least, most
):
    async with place.running() as one, trio.open_nursery() as nursery:
        await idle(one)
        if stands_still:
            monkeypatch.setattr(one._uses, "has_company", lambda: False)
        come = trio.Event()

        async def run_another():
            async with place.running(scanned=False) as two:
                assert two._uses.is_complete and two._uses.is_late is stands_still
                come.set()
                await trio.sleep_forever()

        nursery.start_soon(run_another)
        await really(lambda: one._uses.times[CELLS] > 1.0)
        mock_clock.jump(least)
        await trio.testing.wait_all_tasks_blocked()
        assert not come.is_set()
        mock_clock.jump(most - least)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(0.02)  # it looks every hundredth of a second
        await really(come.is_set)
        nursery.cancel_scope.cancel()


async def test_an_upload_that_finds_nothing_to_evict_waits_for_a_listing_that_is_under_way_but_ten_seconds_at_most(
    place, mock_clock, monkeypatch
):
    policy = {"max_bytes": 20 * BLOCK}
    async with place.running() as store:
        for number in range(20):
            await put(store, b"old %d" % number)
    with held_scan(monkeypatch) as go_on:
        async with place.running(scanned=False, policy=policy) as store, trio.open_nursery() as nursery:
            nursery.start_soon(put, store, b"new")
            await really(lambda: store._scanner._progress.statistics().tasks_waiting == 1)
            mock_clock.jump(9.9)
            await trio.testing.wait_all_tasks_blocked()
            assert store.statistics()["written_blobs"] == 0
            mock_clock.jump(0.2)
            await really(lambda: store.statistics()["written_blobs"] == 1)
            assert place.used() == 21 * BLOCK
            go_on()


async def test_an_upload_that_finds_nothing_to_evict_goes_on_with_what_a_listing_finds(place, mock_clock, monkeypatch):
    policy = {"max_bytes": 20 * BLOCK}
    async with place.running() as store:
        for number in range(20):
            await put(store, b"old %d" % number)
    with held_scan(monkeypatch) as go_on:
        async with place.running(scanned=False, policy=policy) as store, trio.open_nursery() as nursery:
            nursery.start_soon(put, store, b"new")
            await really(lambda: store._scanner._progress.statistics().tasks_waiting == 1)
            go_on()
            await really(lambda: store.statistics()["written_blobs"] == 1)
            assert place.used() == 20 * BLOCK


async def test_background_evictions_leave_the_lock_to_others_for_a_millisecond_after_each_slice(place, mock_clock):
    async with place.running() as store:
        for number in range(130):
            await put(store, b"%d" % number)
    async with place.running(policy={"max_count": 1}) as store:
        for evicted in (64, 128):
            await really(lambda evicted=evicted: store.statistics()["evicted_blobs"] >= evicted)
            await trio.testing.wait_all_tasks_blocked()
            assert store.statistics()["evicted_blobs"] == evicted
            assert store._committer.lock.try_lock()
            store._committer.lock.unlock()
            mock_clock.jump(0.001)
        await really(lambda: store.statistics()["evicted_blobs"] == 129)


async def test_files_of_eight_mebibytes_are_freed_by_a_thread_and_smaller_ones_where_they_are(place, mock_clock):
    """Which takes the file system 0.4 ms."""
    large, small = Digest("a" * 64, 8 << 20), Digest("b" * 64, (8 << 20) - 1)
    for digest in (large, small):
        os.truncate(place.lay(digest, b""), digest.size)
    async with place.running() as store:
        assert await store.has([small, large]) == [small.size, large.size]
        await passes(0, store, mock_clock)
        assert await store._committer.evict_some(1)
        assert not place.file(small).exists() and len(store._committer._closing) == 0
        assert await store._committer.evict_some(1)
        assert not place.file(large).exists() and len(store._committer._closing) == 1
        await passes(0.25, store, mock_clock)
        assert len(store._committer._closing) == 0


async def test_access_times_of_fifty_thousand_files_at_most_are_written_at_once_those_used_last(place, mock_clock):
    async with place.running() as store:
        await idle(store)
        await store.put("first", b"x")
        index = store._index
        for number in range(49_999):
            index.add(f"sname{number}", 1, used=time.monotonic())
        await store.put("last", b"x")
        first, last = (place.content / "s" / name for name in ("first", "last"))
        for file in (first, last):
            os.utime(file, (1, 1))
        await store._recency.flush()
        assert store._recency.flushed_blobs == 50_000
        assert first.stat().st_atime == 1 < last.stat().st_atime


async def test_an_upload_waits_for_the_first_that_a_listing_finds_and_not_for_its_end(place, mock_clock, monkeypatch):
    monkeypatch.setattr(scanning, "_PIECE", 10)
    policy = {"max_bytes": 20 * BLOCK}
    async with place.running() as store:
        for number in range(20):
            await put(store, b"old %d" % number)
    real, pieces, go_on = scanning._list_piece, [], threading.Event()

    def list_piece(folder, items):
        pieces.append(folder)
        if len(pieces) > 1:
            go_on.wait(120)
        return real(folder, items)

    monkeypatch.setattr(scanning, "_list_piece", list_piece)
    async with place.running(scanned=False, policy=policy) as store, trio.open_nursery() as nursery:
        try:
            nursery.start_soon(put, store, b"new")
            await really(lambda: store.statistics()["written_blobs"] == 1)
            assert place.used() == 20 * BLOCK and not store._mirror.scanned.is_set()
        finally:
            go_on.set()


async def test_the_sum_is_told_every_five_seconds_to_whoever_comes_if_this_process_is_killed(place, mock_clock):
    async with place.running() as store:
        await passes(0, store, mock_clock)
        await put(store, b"x")
        journal = Journal(store._layout)
        await passes(4.5, store, mock_clock)
        journal.read()
        assert journal.sum == 0
        await passes(0.75, store, mock_clock)
        journal.read()
        assert journal.sum == BLOCK


async def test_after_the_wall_clock_was_set_for_good_access_times_are_its_own(place, mock_clock, monkeypatch):
    monkeypatch.setattr(clock, "_LASTING_S", 0.0)
    real = time.time
    async with place.running() as store:
        digest = await put(store, b"used")
        monkeypatch.setattr(time, "time", lambda: real() + 7200)
        for _ in range(3):
            await passes(0.25, store, mock_clock)
        await store.has([digest])
        await passes(5.25, store, mock_clock)
        assert abs(place.file(digest).stat().st_atime - time.time()) < 600


async def test_where_a_process_stands_still_with_the_lock_a_store_ends_after_five_seconds(place, mock_clock):
    runs, may_end, ended = trio.Event(), trio.Event(), trio.Event()

    async def run():
        async with place.running():
            runs.set()
            await may_end.wait()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await runs.wait()
        lock = os.open(place.content / ".lock", os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            may_end.set()
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(4.9)
            await trio.testing.wait_all_tasks_blocked()
            assert not ended.is_set()
            await sooner_or_later(ended, mock_clock)
        finally:
            os.close(lock)
            mock_clock.jump(60)


async def test_where_a_process_stands_still_with_the_lock_a_store_begins_all_the_same_and_serves(place, mock_clock):
    digest = digest_of(b"blob")
    async with place.running() as store:
        await put(store, b"blob")
    lock = os.open(place.content / ".lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    store = FilesystemStore(place.options(), BareContext("CAS"))

    async def serve():
        async with started(store):
            assert await store.get(digest) == b"blob"
            os.close(lock)
            await put(store, b"new")
            served.set()

    served = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await really(lambda: store._committer.lock.waits == 1)
        await sooner_or_later(served, mock_clock)


async def test_whoever_needs_a_listing_has_it_begin_at_once(place, mock_clock):
    async with place.running() as store, trio.open_nursery() as nursery:
        await passes(0, store, mock_clock)
        nursery.start_soon(partial(store._scanner.progress, patience_s=1000.0))
        await really(lambda: store._scanner.scans == 2)


async def test_without_inotify_what_comes_to_a_new_folder_while_it_is_first_listed_is_known(
    place, unwatched, mock_clock, monkeypatch
):
    real, go_on = scanning._list_piece, threading.Event()

    def list_piece(folder, items):
        if folder is one._layout.actions:
            go_on.wait(120)
        return real(folder, items)

    one, serves = FilesystemStore(place.options(), BareContext("CAS")), trio.Event()
    monkeypatch.setattr(scanning, "_list_piece", list_piece)

    async def serve():
        async with started(one):
            await one._mirror.scanned.wait()
            await passes(0.25, one, mock_clock)
            assert one.statistics()["blobs"] == 1
            serves.set()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await really(lambda: one._scanner.has_sample)
            layout = Layout(content_path=str(place.content), temp_path=str(place.temp), name="OTHER")
            await trio.to_thread.run_sync(layout.open)
            try:
                journal = Journal(layout)
                journal.read()
                journal.write(Change(layout.blobs, place.lay(digest_of(b"x"), b"x").name, 1))
                journal.tell(BLOCK)
            finally:
                layout.close()
            go_on.set()
            await serves.wait()
    finally:
        go_on.set()

"""When what happens by itself happens: on a clock that nobody moves but the test."""

import os
import time

import pytest
import trio
import trio.testing

from nl.blob.hashing import digest_of
from nl.plugin import Digest
from nl.stores.filesystem import mirror
from nl.stores.filesystem.journal import Change, Journal
from nl.stores.filesystem.uses import CELLS

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

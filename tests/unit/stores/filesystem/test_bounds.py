"""How much is done in one go, kept open or kept in memory: the numbers that hold the loop, the disk and memory free."""

import errno
import fcntl
import os
import random
from array import array

import pytest
import trio
import trio.testing

from nl.plugin import Deletes, UnavailableError, digest_of
from nl.stores.filesystem import FilesystemStore, use_order, verify
from nl.stores.filesystem.use_order import UseOrder
from nl.testing import BareContext, make_blob

from .conftest import put


def test_a_run_of_uses_has_four_thousand_lines_and_scans_are_sorted_into_it():
    used = array("d", [0.0])
    order = UseOrder(used)
    for number in range(1, 10_001):
        used[0] = float(number)
        order.note(0, float(number))
    assert [len(run) for _, _, run in order._runs] == [4096, 4096]
    order.note_all([0] * 20_000, 10_001.0)
    assert all(len(run) <= 2 * 4096 for _, _, run in order._runs)


def test_a_thousand_stale_lines_are_dropped_before_others_have_their_turn():
    used = array("d", [0.0, 1.0])
    order = UseOrder(used)
    for number in range(3000):
        used[0] = float(number)
        order.note(0, float(number))
    used[0] = float("nan")
    order.note(1, 1.0)
    used[1] = 3000.0
    order.note(1, 3000.0)
    found = [order.oldest() for _ in range(3)]
    assert found == [None, None, 1] and not order.is_empty


def test_the_order_of_use_stays_right_while_it_is_swept(monkeypatch):
    monkeypatch.setattr(use_order, "RUN", 4)
    monkeypatch.setattr(use_order, "_SLACK", 0)
    chance = random.Random(7)
    used = array("d", [0.0] * 30)
    order = UseOrder(used)
    now = 1.0
    for _ in range(1500):
        now += 1.0
        if chance.random() < 0.3:  # a listing finds some that were used long ago
            found = chance.sample(range(30), 5)
            for slot in found:
                used[slot] = chance.uniform(0.0, now)
            order.add_found([(used[slot], slot) for slot in found])
        else:
            slot = chance.randrange(30)
            used[slot] = now
            order.note(slot, now)
        order.sweep(3)
        oldest = min((when, slot) for slot, when in enumerate(used) if when)
        assert order.oldest() == oldest[1]


def test_what_is_used_in_turn_again_and_again_takes_twice_its_lines_at_most(monkeypatch):
    monkeypatch.setattr(use_order, "RUN", 4)
    monkeypatch.setattr(use_order, "_SLACK", 0)
    used = array("d", [0.0] * 100)
    order = UseOrder(used)
    most = 0
    for number in range(1000):
        used[number % 100] = number + 1.0
        order.note(number % 100, number + 1.0)
        order.sweep(100)
        most = max(most, order.lines)
    assert 200 <= most <= 208


def test_uses_of_few_files_take_no_more_memory_than_some_ten_thousand_lines():
    used = array("d", [0.0])
    order = UseOrder(used)
    most = 0
    for number in range(1, 100_000):
        used[0] = float(number)
        order.note(0, float(number))
        order.sweep(1)
        most = max(most, order.lines)
    assert 8 * 4096 <= most <= 10 * 4096


async def test_deletions_let_others_have_the_lock_after_some_dozens(place):
    async with place.running() as store:
        digests = [await put(store, b"%d" % number) for number in range(200)]
        most, before = 0, 200

        async def look():
            nonlocal most, before
            while True:
                left = len(store._index)
                most, before = max(most, before - left), left
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await trio.lowlevel.checkpoint()
            await store.capability(Deletes).delete(digests)
            nursery.cancel_scope.cancel()
        assert 64 <= most <= 128, "whoever looks comes before or after, so it may see two"
        assert os.listdir(place.content / "d") == []


async def test_sixteen_small_blobs_of_a_batch_are_placed_together(place, monkeypatch):
    async with place.running() as store:
        commit_together, sections = store._committer.commit_together, []

        async def note_and_commit(files):
            sections.append(len(files))
            return await commit_together(files)

        monkeypatch.setattr(store._committer, "commit_together", note_and_commit)
        blobs = [(digest_of(b"%d" % number), b"%d" % number) for number in range(40)]
        assert await store.put_many(blobs) == [None] * 40
        assert sections == [16, 16, 8]


async def test_what_a_broken_disk_does_not_place_of_a_batch_fails_by_itself(place, monkeypatch):
    blobs = [(digest_of(b"%d" % number), b"%d" % number) for number in range(5)]
    bad, real = str(blobs[2][0]), os.rename

    def rename(source, target, **options):
        if target == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target, **options)

    async with place.running() as store:
        monkeypatch.setattr(os, "rename", rename)
        failed = await store.put_many(blobs)
        assert [type(error) for error in failed] == [type(None)] * 2 + [UnavailableError] + [type(None)] * 2
        assert f"cannot write {place.content}/d/{bad}: the disk reports" in failed[2].message
        assert len(os.listdir(place.content / "d")) == 4 and place.temp_files() == []


@pytest.mark.parametrize(("wanted", "threads"), [(0, 8), (1, 1), (3, 3), (20, 20)])
async def test_as_many_threads_write_as_the_options_say(place, wanted, threads):
    store = FilesystemStore(place.options(max_concurrent_writes=wanted), BareContext())
    writers = [store._uploader._threads, store._local_files.linker._threads, store._local_files.adopter._threads]
    assert [each.total_tokens for each in writers] == [threads] * 3 and len(set(map(id, writers))) == 1
    readers = [store._access._threads, store._verifier._threads]
    assert [each.total_tokens for each in readers] == [8, 8] and readers[0] is readers[1] is not writers[0]


@pytest.mark.parametrize(("wanted", "largest"), [(1, 4096), (100_000, 100_000), (1 << 40, 4 << 20)])
async def test_a_reader_takes_as_much_at_a_time_as_the_options_say_within_reason(place, wanted, largest):
    data = make_blob(5 << 20)
    async with place.running(read_buffer_size=wanted) as store:
        digest = await put(store, data)
        async with store.open(digest) as reader:
            assert sum(map(len, await reader.receive_parts(8 << 20))) == largest


async def test_thirty_two_files_are_hashed_at_a_time_each_in_pieces_of_sixty_four_mebibytes(place, monkeypatch):
    """Which take a thread forty milliseconds."""
    data, hashed = b"x" * 300_000, trio.Event()
    real, pieces = trio.to_thread.run_sync, []

    async def run_sync(function, *args, **options):
        if function is verify._update:
            pieces.append(args[2:])
            await hashed.wait()
        return await real(function, *args, **options)

    digests = [digest_of(data + b"%d" % number) for number in range(40)]
    for number, digest in enumerate(digests):
        place.lay(digest, data + b"%d" % number)
    async with place.running() as store:
        monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
        async with trio.open_nursery() as nursery:
            for digest in digests:
                nursery.start_soon(store.get, digest)
            await trio.testing.wait_all_tasks_blocked()
            assert len(pieces) == len(store._verifier._jobs) == 32
            hashed.set()
        assert pieces == [(0, 64 << 20)] * 40


async def test_who_waits_for_the_lock_looks_for_it_every_millisecond(place, mock_clock):
    async with place.running() as store:
        await put(store, b"x")
        with (place.content / ".lock").open("r+b") as file, trio.CancelScope() as scope:
            fcntl.flock(file, fcntl.LOCK_EX)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(put, store, b"waits")
                for _ in range(20):
                    await trio.testing.wait_all_tasks_blocked()
                    mock_clock.jump(0.001)
                await trio.testing.wait_all_tasks_blocked()
                assert store.statistics()["written_blobs"] == 1 and store._committer.lock.waits == 1
                fcntl.flock(file, fcntl.LOCK_UN)
                mock_clock.jump(0.0011)
                await trio.testing.wait_all_tasks_blocked()
                assert store.statistics()["written_blobs"] == 2
                scope.cancel()

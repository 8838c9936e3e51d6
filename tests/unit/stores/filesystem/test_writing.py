"""Files under way: room is reserved before it is written to, and writes move to threads when the disk is slow."""

import ctypes
import errno
import fcntl
import os
import time
from contextlib import ExitStack, contextmanager, nullcontext

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import (
    CHUNK,
    SMALL,
    BytesReader,
    Digest,
    ExhaustedError,
    TooLargeError,
    UnavailableError,
    UploadMismatchError,
)
from nl.stores.filesystem import lock, reserving, writing
from nl.stores.filesystem.layout import Layout
from nl.stores.filesystem.reserving import reserve
from nl.stores.filesystem.writing import DiskPace, Gatherer, TempFile, seconds_waited
from nl.testing import PartsReader, make_blob, split

MIB = 1 << 20


@pytest.fixture
def layout(tmp_path):
    layout = Layout(content_path=str(tmp_path / "content"), temp_path=str(tmp_path / "temp"), name="CAS")
    layout.open()
    yield layout
    layout.close()


async def no_room(error, size):
    return False


def blocks(file):
    return os.fstat(file.fd).st_blocks * 512


def test_a_large_file_has_room_ahead_of_its_bytes_but_no_more_than_it_needs(layout):
    with TempFile(layout, expected=20 * MIB) as file:
        if not reserve(file.fd, offset=0, count=1):
            pytest.skip("this file system reserves nothing")
        file.append([bytes(1000)])
        assert os.fstat(file.fd).st_size == file.size == 1000
        assert 8 * MIB <= blocks(file) <= 9 * MIB
        for _ in range(20):
            file.append([bytes(MIB)] if file.size + MIB <= 20 * MIB else [bytes(20 * MIB - file.size)])
        assert 20 * MIB <= blocks(file) <= 21 * MIB
        assert file.finish().st_size == 20 * MIB


@pytest.mark.parametrize("can", [True, False])
def test_room_is_reserved_in_a_row_each_time_before_what_there_is_would_not_do(layout, monkeypatch, can):
    asked = []

    def reserve(fd, *, offset, count):
        asked.append((os.fstat(fd).st_size, offset, count))
        return can

    monkeypatch.setattr(writing, "reserve", reserve)
    with TempFile(layout, expected=20 * MIB) as file:
        for size in (3, 3, 3, 3, 3, 3, 2):
            file.append([bytes(size * MIB)])
    assert asked == [(at * MIB, offset * MIB, count * MIB) for at, offset, count in (
        [(0, 0, 8), (6, 8, 6), (12, 14, 6)] if can else [(0, 0, 8)]
    )]  # fmt: skip


@pytest.mark.parametrize("expected", [-1, 0, 1, MIB - 1])
def test_for_small_files_and_files_of_unknown_size_nothing_is_reserved(layout, expected):
    with TempFile(layout, expected=expected) as file:
        file.append([b"x"])
        assert blocks(file) < MIB


def test_one_append_may_be_larger_than_what_is_reserved_at_a_time(layout):
    data = make_blob(30 * MIB)
    with TempFile(layout, expected=len(data)) as file:
        file.append(split(data, 7 * MIB))
        file.append([])
        assert file.finish().st_size == len(data)


async def test_more_than_the_expected_size_is_written_all_the_same(layout):
    with TempFile(layout, expected=MIB) as file:
        file.append([bytes(MIB)])
        file.append([bytes(9 * MIB)])
        assert file.finish().st_size == 10 * MIB


def test_a_file_system_that_cannot_reserve_is_no_error():
    reading, writing = os.pipe()
    try:
        assert reserve(writing, offset=0, count=MIB) is False
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EOPNOTSUPP, errno.EINTR, errno.EFBIG])
def test_only_a_disk_or_a_quota_that_is_full_is_an_error_before_anything_is_written(monkeypatch, number):
    def refuse(fd, mode, offset, count):
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(reserving, "_fallocate", refuse)
    if number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(OSError) as caught:
            reserve(0, offset=0, count=MIB)
        assert caught.value.errno == number and caught.value.strerror == os.strerror(number)
    else:
        assert reserve(0, offset=0, count=MIB) is False


def test_where_the_c_library_has_no_such_call_nothing_is_reserved(monkeypatch):
    monkeypatch.setattr(reserving, "_fallocate", None)
    assert reserve(0, offset=0, count=MIB) is False


def test_one_slow_write_turns_to_threads_and_many_fast_ones_turn_back():
    pace = DiskPace()
    for _ in range(100):
        pace.note(0.001)
    assert pace.is_fast
    pace.note(0.1)
    assert not pace.is_fast
    for _ in range(31):
        pace.note(0.001)
    pace.note(0.1)
    for _ in range(31):
        pace.note(0.001)
        assert not pace.is_fast
    pace.note(0.001)
    assert pace.is_fast


def test_a_write_is_slow_if_it_has_waited_and_not_if_the_machine_had_other_things_to_do():
    def busy(parts):
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass

    def waiting(parts):
        time.sleep(0.02)

    # More than once, as this process has other threads, too, which may want the interpreter now and then.
    assert 0.0 in [seconds_waited(busy, []) for _ in range(10)]
    assert seconds_waited(waiting, []) >= 0.02


@pytest.mark.parametrize("step", [1000, 70_000, 300_000, 2 * MIB])
@pytest.mark.parametrize("slow", [False, True])
async def test_what_is_gathered_is_written_whole_at_either_pace_and_when_it_changes(layout, step, slow):
    data = make_blob(5 * MIB + 17)
    pace = DiskPace()
    with TempFile(layout, expected=len(data)) as file:
        gatherer = Gatherer(file, pace=pace, threads=trio.CapacityLimiter(1), make_room=no_room)
        for number, part in enumerate(split(data, step)):
            if slow and number == 3:
                pace.note(1.0)
            passing = bytearray(part)
            await gatherer.add([memoryview(passing)])
            passing[:] = bytes(len(passing))  # as a reader's buffers do
        await gatherer.flush()
        assert file.finish().st_size == len(data)
        file.committed = True
    with open(f"{layout.temp.path}/{file.name}", "rb") as written:
        assert written.read() == data


@pytest.mark.parametrize("slow", [False, True])
async def test_what_comes_in_small_and_large_parts_is_written_in_order(layout, slow):
    sizes = [1000, 3 * MIB, 10, MIB // 2, 300, 70_000, 2 * MIB, 1]
    data, pace = make_blob(sum(sizes)), DiskPace()
    with TempFile(layout) as file:
        gatherer = Gatherer(file, pace=pace, threads=trio.CapacityLimiter(1), make_room=no_room)
        at = 0
        for size in sizes:
            pace.is_fast = not slow
            await gatherer.add([data[at : at + size]])
            at += size
        await gatherer.flush()
        file.finish()
        file.committed = True
    with open(f"{layout.temp.path}/{file.name}", "rb") as written:
        assert written.read() == data


async def test_writes_are_measured_on_the_spot_and_in_threads(layout, monkeypatch):
    takes = [0.1]

    def measured(write, parts):
        write(parts)
        return takes[0]

    monkeypatch.setattr(writing, "seconds_waited", measured)
    pace = DiskPace()
    with TempFile(layout) as file:
        gatherer = Gatherer(file, pace=pace, threads=trio.CapacityLimiter(1), make_room=no_room)
        await gatherer.add([bytes(MIB // 2)])
        assert not pace.is_fast
        takes[0] = 0.0
        for _ in range(32):
            assert not pace.is_fast
            await gatherer.add([bytes(MIB // 2)])
        assert pace.is_fast


async def test_stalled_uploads_keep_little_together_whatever_the_disk_and_nothing_once_they_are_gone(layout):
    pace = DiskPace()
    pace.note(1.0)
    threads = trio.CapacityLimiter(1)
    with ExitStack() as files:
        gatherers = []
        for _ in range(100):
            file = files.enter_context(TempFile(layout, expected=MIB))
            gatherers.append(Gatherer(file, pace=pace, threads=threads, make_room=no_room))
            await gatherers[-1].add([memoryview(bytearray(200_000))])
        assert 4 * MIB < pace.gathered < 12 * MIB
        pace.note(0.0)
        for gatherer in gatherers:
            gatherer.forget()
        assert pace.gathered == 0


async def test_a_batch_stays_under_max_bytes_and_each_blob_has_an_outcome_of_its_own(place):
    blobs = [make_blob(4096, seed=seed) for seed in range(40)]
    batch = [(digest_of(blob), blob) for blob in blobs]
    large, wrong = make_blob(50_000), Digest("0" * 64, 5)
    batch[10:10] = [(digest_of(large), large), (digest_of(b""), b""), (wrong, b"four"), batch[9]]
    async with place.running(policy={"max_bytes": 40_960}) as store:
        await store.put(*batch[0])
        failed = await store.put_many(batch)
        assert [type(error) for error in failed if error] == [TooLargeError, UploadMismatchError]
        assert failed[10] and failed[12]
        assert place.used() == 40_960
        there = await store.has([digest_of(blob) for blob in blobs])
        assert there == [None] * 30 + [4096] * 10, "the latest ones"
        assert await store.get(digest_of(blobs[39])) == blobs[39]
        assert store.statistics()["written_blobs"] == 41
    assert not place.temp_files()


@contextmanager
def lock_held(place):
    with open(place.content / ".lock", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


async def test_a_batch_that_is_cancelled_while_it_waits_for_the_lock_leaves_nothing(place):
    blobs = [(digest_of(blob), blob) for blob in (b"one", b"two", b"three")]
    async with place.running() as store:
        with lock_held(place):
            with trio.move_on_after(0.05) as scope:
                await store.put_many(blobs)
            assert scope.cancelled_caught
            assert not place.temp_files()
        assert await store.has([digest for digest, _ in blobs]) == [None] * 3
        assert await store.put_many(blobs) == [None] * 3
        assert await store.has([digest for digest, _ in blobs]) == [3, 3, 5]


async def test_a_batch_fails_as_a_whole_when_a_process_stands_still_with_the_lock(place, monkeypatch):
    blobs = [(digest_of(blob), blob) for blob in (b"one", b"two", b"three")]
    monkeypatch.setattr(lock, "_TIMEOUT_S", 0.01)
    async with place.running() as store:
        with lock_held(place):
            failed = await store.put_many(blobs)
        assert [type(error) for error in failed] == [UnavailableError] * 3
    assert not place.temp_files()


@pytest.mark.parametrize("goes", ["evicted", "deleted by somebody", "cut short", "replaced by another", "not at all"])
async def test_a_blob_that_goes_while_it_is_uploaded_anew_is_acknowledged_only_if_it_is_there_in_the_end(place, goes):
    data = make_blob(10_000)
    digest = digest_of(data)

    class LeavingReader(PartsReader):
        async def receive_parts(self, max_bytes=CHUNK):
            parts = await super().receive_parts(max_bytes)
            if not parts and goes == "evicted":
                await store._committer.evict_some()
            elif not parts and goes == "deleted by somebody":
                place.file(digest).unlink()
            elif not parts and goes == "cut short":
                os.chmod(place.file(digest), 0o644)
                os.truncate(place.file(digest), 9_999)
            elif not parts and goes == "replaced by another":
                place.file(digest).unlink()
                place.lay(digest, data)
            return parts

    async with place.running() as store:
        await store.put(digest, data)
        with nullcontext() if goes != "cut short" else pytest.raises(UnavailableError, match="upload it again"):
            await store.write(digest, LeavingReader(split(data, 3000)))
            assert await store.get(digest) == data
        await store.write(digest, PartsReader(split(data, 3000)))
        assert await store.get(digest) == data


async def test_an_upload_that_never_waits_lets_others_run(place):
    data = make_blob(8 * MIB)
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with place.running() as store, trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await trio.lowlevel.checkpoint()
        turns = 0
        await store.write(digest_of(data), BytesReader(data))
        assert turns >= 7
        await store.write(digest_of(data[1:]), PartsReader(split(data[1:], 100_000)))
        nursery.cancel_scope.cancel()


class Room:
    """Makes room so many times; notes how much was wanted."""

    def __init__(self, times):
        self.times = times
        self.wanted = []

    async def __call__(self, error, size):
        assert error.errno == errno.ENOSPC
        self.wanted.append(size)
        self.times -= 1
        return self.times >= 0


class FullDisk:
    """The kernel takes so many bytes, then has no room, so many times; after each of these it takes `more`."""

    def __init__(self, monkeypatch, *, takes, refusals, more=0):
        self.takes, self.refusals, self.more, self.real = takes, refusals, more, os.writev
        monkeypatch.setattr(os, "writev", self.writev)

    def writev(self, fd, views):
        if self.takes is None:
            return self.real(fd, views)
        if not self.takes:
            if not self.refusals:
                self.takes = None
                return self.real(fd, views)
            self.refusals -= 1
            self.takes = self.more
            raise OSError(errno.ENOSPC, "no space left")
        part = memoryview(views[0])[: self.takes]
        written = self.real(fd, [part])
        self.takes -= written
        return written


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("more", [0, 50], ids=["no room was made", "too little room was made"])
async def test_after_a_full_disk_it_goes_on_with_the_byte_that_was_next(layout, monkeypatch, slow, small, more):
    data = make_blob(1000 if small else 3 * MIB)
    pace, room = DiskPace(), Room(5)
    if slow:
        pace.note(1.0)
    FullDisk(monkeypatch, takes=700, refusals=5, more=more)
    with TempFile(layout) as file:
        gatherer = Gatherer(file, pace=pace, threads=trio.CapacityLimiter(1), make_room=room)
        await gatherer.add(split(data, 300))
        await gatherer.flush()
        file.finish()
        file.committed = True
    assert room.wanted == [len(data) - 700 - more * tried for tried in range(5)]
    with open(f"{layout.temp.path}/{file.name}", "rb") as written:
        assert written.read() == data


@pytest.mark.parametrize("takes", [0, 300])
async def test_after_a_full_disk_the_little_that_is_left_is_written_too(layout, monkeypatch, takes):
    data = make_blob(MIB + 700)
    with TempFile(layout) as file:
        gatherer = Gatherer(file, pace=DiskPace(), threads=trio.CapacityLimiter(1), make_room=Room(1))
        await gatherer.add([data[:MIB]])
        assert file.size == MIB
        FullDisk(monkeypatch, takes=takes, refusals=1)
        await gatherer.add([data[MIB:]])
        await gatherer.flush()
        file.finish()
        file.committed = True
    with open(f"{layout.temp.path}/{file.name}", "rb") as written:
        assert written.read() == data


async def test_room_is_made_a_few_times_and_then_the_error_is_the_last(layout, monkeypatch):
    room = Room(100)
    FullDisk(monkeypatch, takes=0, refusals=100)
    with TempFile(layout, expected=5 * MIB) as file:
        gatherer = Gatherer(file, pace=DiskPace(), threads=trio.CapacityLimiter(1), make_room=room)
        with pytest.raises(OSError, match="no space left"):
            await gatherer.add([bytes(MIB)])
    assert room.wanted == [5 * MIB] * 5, "room is made for all that is still to come"


async def test_where_no_room_can_be_made_nothing_is_tried_again(layout, monkeypatch):
    room = Room(0)
    disk = FullDisk(monkeypatch, takes=0, refusals=100)
    with TempFile(layout) as file:
        gatherer = Gatherer(file, pace=DiskPace(), threads=trio.CapacityLimiter(1), make_room=room)
        with pytest.raises(OSError, match="no space left"):
            await gatherer.add([bytes(MIB)])
    assert room.wanted == [MIB] and disk.refusals == 99


def test_what_the_kernel_takes_in_part_is_written_on(layout, monkeypatch):
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, views: real(fd, [memoryview(views[0])[:7]]))
    parts = [bytes([number]) * size for number, size in enumerate((5, 7, 8, 20, 1))]
    with TempFile(layout) as file:
        file.append(parts)
        assert file.size == 41 == file.finish().st_size
        file.committed = True
    with open(f"{layout.temp.path}/{file.name}", "rb") as written:
        assert written.read() == b"".join(parts)


def test_more_parts_than_one_call_takes_are_written_in_several(layout):
    parts = [b"%d" % (number % 10) for number in range(2500)]
    with TempFile(layout) as file:
        file.append(parts)
        file.finish()
        file.committed = True
    with open(f"{layout.temp.path}/{file.name}", "rb") as written:
        assert written.read() == b"".join(parts)


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("finished", [False, True])
def test_a_temporary_file_is_closed_and_gone_unless_it_was_committed(layout, committed, finished):
    before = len(os.listdir("/proc/self/fd"))
    with TempFile(layout) as file:
        file.append([b"x"])
        if finished:
            assert file.finish().st_size == 1
        file.committed = committed
    assert len(os.listdir("/proc/self/fd")) == before
    assert os.path.exists(f"{layout.temp.path}/{file.name}") is committed


@pytest.mark.parametrize("expected", [-1, 0, 1, MIB])
def test_a_temporary_file_that_is_not_committed_is_gone_whatever_was_expected(layout, expected):
    with TempFile(layout, expected=expected) as file:
        assert os.path.exists(f"{layout.temp.path}/{file.name}")
    assert not os.path.exists(f"{layout.temp.path}/{file.name}")


def test_a_temporary_file_that_somebody_has_deleted_is_no_second_error(layout):
    with TempFile(layout) as file:
        os.unlink(f"{layout.temp.path}/{file.name}")


def test_what_is_still_expected_is_known_for_large_files_only(layout):
    for expected, missing in ((-1, 0), (MIB - 1, 0), (MIB, MIB - 10), (20 * MIB, 20 * MIB - 10)):
        with TempFile(layout, expected=expected) as file:
            file.append([bytes(10)])
            assert file.missing == missing
    with TempFile(layout, expected=MIB) as file:
        file.append([bytes(2 * MIB)])
        assert file.missing == 0


def test_how_much_an_upload_gathers_depends_on_the_disk_and_on_what_all_have():
    pace = DiskPace()
    for fast, little, much in ((True, 64 * 1024, CHUNK), (False, 2 * SMALL, MIB)):
        for gathered, enough in ((0, much), (8 * MIB, much), (8 * MIB + 1, little)):
            pace.gathered = gathered
            assert pace.is_fast is fast and pace.enough == enough
        pace.note(0.0051)
    pace = DiskPace()
    pace.note(0.005)
    assert pace.is_fast, "not longer than a write may take"


@pytest.mark.parametrize("slow", [False, True])
async def test_only_what_is_worth_it_goes_to_a_thread(layout, monkeypatch, slow):
    real, sizes = trio.to_thread.run_sync, []

    async def run_sync(function, parts, **options):
        sizes.append(sum(map(len, parts)))
        return await real(function, parts, **options)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    pace = DiskPace()
    if slow:
        pace.note(1.0)
    with TempFile(layout) as file:
        gatherer = Gatherer(file, pace=pace, threads=trio.CapacityLimiter(1), make_room=no_room)
        assert gatherer.wants == (MIB if slow else CHUNK)
        for size in (MIB // 2, MIB // 2 - 1, SMALL):
            pace.is_fast = not slow
            await gatherer.add([bytes(size)])
        await gatherer.flush()
        await gatherer.add([bytes(SMALL)])
        await gatherer.flush()
        assert file.size == MIB - 1 + 2 * SMALL
    assert sizes == ([MIB // 2, MIB // 2 - 1 + SMALL] if slow else [])


async def test_what_cannot_change_is_kept_as_it_is_and_what_can_is_copied(layout):
    lasting, passing = bytes(1000), bytearray(1000)
    with TempFile(layout) as file:
        gatherer = Gatherer(file, pace=DiskPace(), threads=trio.CapacityLimiter(1), make_room=no_room)
        views = [memoryview(passing), memoryview(passing).toreadonly()]
        await gatherer.add([lasting, memoryview(lasting)[5:], passing, *views])
        kept = gatherer._parts
        assert kept[0] is lasting and kept[1].obj is lasting
        assert [type(part) for part in kept[2:]] == [bytes] * 3
        gatherer.forget()


async def test_many_small_parts_are_written_before_they_are_too_many_for_one_call(layout):
    with TempFile(layout) as file:
        gatherer = Gatherer(file, pace=DiskPace(), threads=trio.CapacityLimiter(1), make_room=no_room)
        for _ in range(511):
            await gatherer.add([b"x"])
        assert file.size == 0
        await gatherer.add([b"x"])
        assert file.size == 512 and not gatherer._parts


@pytest.mark.parametrize(("size", "flushed"), [(SMALL, False), (SMALL + 1, True)])
@pytest.mark.parametrize("wanted", [False, True])
async def test_large_uploads_are_written_through_to_the_disk_where_that_is_wanted(
    place, monkeypatch, size, flushed, wanted
):
    synced, advised = [], []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_size))
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, length, advice: advised.append(
        (offset, length, advice)))  # fmt: skip
    data = make_blob(size)
    async with place.running(evict_page_cache=wanted) as store:
        await store.write(digest_of(data), BytesReader(data))
    assert synced == ([size] if wanted and flushed else [])
    assert advised == ([(0, 0, os.POSIX_FADV_DONTNEED)] if wanted and flushed else [])


async def test_a_file_whose_name_finds_no_room_is_tried_again_a_few_times(place, monkeypatch):
    real, refusals = os.rename, 0

    def rename(source, target, **folders):
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise OSError(errno.ENOSPC, "no space left")
        real(source, target, **folders)

    async with place.running() as store:
        attempts = []

        async def make_room_for_name(error, *, attempt):
            attempts.append(attempt)
            return True

        monkeypatch.setattr(store._space, "make_room_for_name", make_room_for_name)
        monkeypatch.setattr(os, "rename", rename)
        for count, fails in ((5, False), (6, True)):
            refusals, data = count, b"%d" % count
            attempts.clear()
            if fails:
                with pytest.raises(ExhaustedError):
                    await store.put(digest_of(data), data)
            else:
                await store.put(digest_of(data), data)
            assert attempts == [0, 1, 2, 3, 4]
        assert place.temp_files() == []
        assert store.statistics()["written_blobs"] == 1 and store.statistics()["written_bytes"] == 1


async def rest_of(reader):
    while parts := await reader.receive_parts():
        for part in parts:
            yield part


async def test_an_upload_of_unknown_size_ends_when_it_is_larger_than_could_be_kept(place):
    async with place.running(policy={"max_bytes": 8192}, block_size=1) as store:
        key = "name"
        await store.write(key, PartsReader([bytes(8192)], size=-1))
        source = PartsReader(split(bytes(20 * MIB), 64 * 1024), size=-1)
        with pytest.raises(TooLargeError, match="max_bytes is 8192"):
            await store.write(key, source)
        left = sum(map(len, [part async for part in rest_of(source)]))
        assert left > 15 * MIB, "a disk is not filled before it is refused"
        with pytest.raises(TooLargeError):
            await store.put(key, bytes(8193))
        reader = PartsReader([bytes(8193)])
        with pytest.raises(TooLargeError):
            await store.write(key, reader)
        assert reader.calls == 0, "its size is known beforehand"
        assert await store.has([key]) == [8192]
        assert place.temp_files() == []

"""Reading files: which buffers, how many at a time, what is handed back, and what is not passed off as good."""

import errno
import os
from contextlib import AsyncExitStack

import pytest
import trio

from nl.plugin import SMALL, CorruptBlobError
from nl.stores.filesystem import readers
from nl.stores.filesystem.readers import FileAccess, FileReader
from nl.testing import make_blob

from .conftest import put


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(make_blob(100_000))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def make_access(**options):
    return FileAccess(**{"buffer_size": 10_000, "threads": trio.CapacityLimiter(1), **options})


def reader_of(access, fd, *, offset=0, size=100_000):
    return FileReader(access, os.dup(fd), offset=offset, size=size, mtime_ns=os.fstat(fd).st_mtime_ns, what="the blob")


@pytest.mark.parametrize("offset", [0, 1, 99_999, 100_000])
@pytest.mark.parametrize("most", [1000, 10_000, 1 << 20])
async def test_a_range_comes_in_pieces_of_a_buffer_at_the_most(file, offset, most):
    reader = reader_of(make_access(), file, offset=offset, size=min(30_001, 100_000 - offset))
    got = bytearray()
    while parts := await reader.receive_parts(most):
        [part] = parts
        assert 0 < len(part) <= min(most, 10_000)
        got += part
    assert got == make_blob(100_000)[offset : offset + 30_001]
    reader.close()


async def test_a_large_blob_takes_one_buffer_that_is_used_again_and_a_small_one_takes_its_size(file):
    access = make_access(spare_buffers=2)
    reader = reader_of(access, file)
    [first] = await reader.receive_parts()
    [second] = await reader.receive_parts()
    assert first.obj is second.obj and len(first.obj) == 10_000
    buffer = first.obj
    first.release()
    second.release()
    reader.close()
    assert access.take_buffer(10_000) is buffer
    assert len(access.take_buffer(9_999)) == 9_999
    assert len(access.take_buffer(1)) == 4096
    assert len(access.take_buffer(1 << 20)) == 10_000


def test_spare_buffers_are_bounded_and_of_one_size():
    access = make_access(spare_buffers=2)
    for size in (10_000, 9_999, 10_001, 10_000, 10_000):
        access.give_back(bytearray(size))
    assert list(map(len, access._spare)) == [10_000, 10_000]


async def test_a_buffer_that_is_too_small_is_replaced_by_a_larger_one(file):
    reader = reader_of(make_access(), file)
    assert len((await reader.receive_parts(10))[0].obj) == 4096
    assert len((await reader.receive_parts(4096))[0].obj) == 4096
    assert len((await reader.receive_parts(4097))[0].obj) == 4097
    reader.close()


async def test_what_was_changed_or_cut_short_meanwhile_is_not_passed_off_as_good(file):
    for change in (lambda: os.utime(file, ns=(1, 1)), lambda: os.truncate(file, 100)):
        reader = reader_of(make_access(), file)
        await reader.receive_parts()
        change()
        with pytest.raises(CorruptBlobError, match="the blob was changed or cut short while it was being read"):
            while await reader.receive_parts():
                pass
        reader.close()


async def test_a_file_that_is_shorter_than_it_should_be_is_not_read_whole(file):
    access = make_access()
    assert await access.read_whole(file, 100_000) == make_blob(100_000)
    assert await access.read_whole(file, 0) == b""
    with pytest.raises(EOFError):
        await access.read_whole(file, 100_001)


@pytest.mark.parametrize("size", [SMALL, SMALL + 1])
@pytest.mark.parametrize("number", readers.NO_NOWAIT)
async def test_a_file_system_without_the_flag_is_asked_with_it_once_and_small_ones_cost_no_thread(
    file, monkeypatch, size, number
):
    real, flags = os.preadv, []

    def preadv(fd, buffers, offset, flag=0):
        flags.append(flag)
        if flag:
            raise OSError(number, "not here")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    access = make_access()
    for _ in range(3):
        assert await access.read_whole(file, size) == make_blob(100_000)[:size]
    assert flags == [os.RWF_NOWAIT, 0, 0, 0]
    assert access.cold_reads == (1 if size <= SMALL else 3)


async def test_a_broken_disk_is_no_reason_to_read_again(file, monkeypatch):
    def preadv(fd, buffers, offset, flag=0):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "preadv", preadv)
    access = make_access()
    with pytest.raises(OSError, match="broken"):
        await access.read_whole(file, 100)
    assert access.cold_reads == 0 and access.nowait


async def test_what_is_not_in_memory_is_read_in_threads_however_short_the_reads_are(file, monkeypatch):
    real = os.preadv

    def preadv(fd, buffers, offset, flag=0):
        if flag:
            raise BlockingIOError
        return real(fd, [memoryview(buffers[0])[:3000]], offset)

    monkeypatch.setattr(os, "preadv", preadv)
    access = make_access()
    assert await access.read_whole(file, 10_000) == make_blob(100_000)[:10_000]
    assert access.cold_reads == 4
    reader = reader_of(access, file, size=7000)
    got = bytearray()
    while parts := await reader.receive_parts():
        got += parts[0]
    assert got == make_blob(100_000)[:7000]
    reader.close()


async def test_a_closed_reader_has_closed_its_file(file):
    before = len(os.listdir("/proc/self/fd"))
    reader = reader_of(make_access(), file)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_readers_at_once_have_each_a_buffer_of_its_own_also_of_those_that_were_used_before(file):
    access = make_access()
    for _ in range(2):
        readers_of_it = [reader_of(access, file, offset=at * 20_000, size=20_000) for at in range(3)]
        got = [(await reader.receive_parts())[0] for reader in readers_of_it]
        assert [bytes(part) for part in got] == [make_blob(100_000)[at : at + 10_000] for at in (0, 20_000, 40_000)]
        del got
        for reader in readers_of_it:
            reader.close()


@pytest.mark.parametrize("size", [1, 10_000, 10_001, 100_000])
async def test_a_change_right_before_the_last_piece_is_noticed(file, size):
    reader = reader_of(make_access(), file, size=size)
    while reader._left > 10_000:
        await reader.receive_parts()
    os.utime(file, ns=(1, 1))
    with pytest.raises(CorruptBlobError, match="was changed or cut short"):
        await reader.receive_parts()
    reader.close()


async def test_a_store_keeps_sixteen_spare_buffers(place):
    async with place.running() as store:
        digest = await put(store, make_blob(300_000))
        async with AsyncExitStack() as stack:
            for _ in range(20):
                reader = await stack.enter_async_context(store.open(digest))
                await reader.receive_parts()
        assert len(store._access._spare) == 16

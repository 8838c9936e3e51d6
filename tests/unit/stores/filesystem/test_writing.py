"""Files under way: room is reserved before it is written to, and writes move to threads when the disk is slow."""

import os
from contextlib import ExitStack, nullcontext

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import CHUNK, BytesReader, UnavailableError
from nl.stores.filesystem.layout import Layout
from nl.stores.filesystem.reserving import reserve
from nl.stores.filesystem.writing import DiskPace, Gatherer, TempFile
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


@pytest.mark.parametrize("goes", ["evicted", "deleted by somebody", "replaced by another", "not at all"])
async def test_a_blob_that_goes_while_it_is_uploaded_anew_is_not_acknowledged(place, goes):
    data = make_blob(10_000)
    digest = digest_of(data)

    class LeavingReader(PartsReader):
        async def receive_parts(self, max_bytes=CHUNK):
            parts = await super().receive_parts(max_bytes)
            if not parts and goes == "evicted":
                await store._committer.evict_some()
            elif not parts and goes == "deleted by somebody":
                place.file(digest).unlink()
            elif not parts and goes == "replaced by another":
                place.file(digest).unlink()
                place.lay(digest, data)
            return parts

    async with place.running() as store:
        await store.put(digest, data)
        stays = goes in {"replaced by another", "not at all"}
        with nullcontext() if stays else pytest.raises(UnavailableError, match="upload it again"):
            await store.write(digest, LeavingReader(split(data, 3000)))
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

"""A packed Read: what is passed on and what is packed, and which files are open meanwhile."""

import hashlib
import random
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.blob.reader import BytesReader
from nl.blob.zstd import compress, decompress
from nl.errors import UnavailableError
from nl.model.digest import Digest
from nl.model.encoding import Encoding
from nl.services import packed_reads
from nl.services.packed_reads import MAX_PACKING, PackedReadSender
from nl.services.packing import BOTH, PackedTarget, Packing
from nl.services.reads import MAX_PATIENT, PATIENCE_S, ReadSender
from nl.storage.capabilities import EncodedReader
from nl.storage.contract import SMALL
from tests.unit.services.test_reads import Client, content

DATA = random.Random(7).randbytes(300_000) + bytes(100_000)
DIGEST = Digest(hashlib.sha256(DATA).hexdigest(), len(DATA))
FRAMES = compress(DATA)


@pytest.fixture(autouse=True)
def without_threads(monkeypatch):
    """Packs where it is: a clock that jumps does not wait for threads."""
    monkeypatch.setattr("nl.blob.coding.INLINE", 1 << 30)


class Store:
    """Has one blob, plain and perhaps packed, and counts what is open."""

    def __init__(self, data=DATA, frames=None):
        self.data, self.frames = data, frames
        self.now = self.times = 0
        self.gets = []
        self.offsets = []

    async def get(self, key):
        self.gets.append(key)
        return self.data

    @asynccontextmanager
    async def _opened(self, what, offset):
        self.times += 1
        self.now += 1
        self.offsets.append(offset)
        try:
            yield BytesReader(memoryview(what)[offset:])
        finally:
            self.now -= 1

    @asynccontextmanager
    async def open(self, key, *, offset=0, length=None):
        async with self._opened(self.data, offset) as reader:
            yield reader

    @asynccontextmanager
    async def open_encoded(self, key, accept, *, offset=0):
        assert accept == BOTH
        if self.frames is None:
            async with self._opened(self.data, offset) as reader:
                yield EncodedReader(Encoding.IDENTITY, reader)
        else:
            async with self._opened(self.frames, offset) as reader:
                yield EncodedReader(Encoding.ZSTD, reader, len(self.frames))


def sender_of(*, max_open=10):
    reads = ReadSender(max_open)
    return PackedReadSender(reads, Packing()), reads


def target_of(store, *, passes=False):
    return PackedTarget(store, store if passes else None)


async def test_what_the_store_keeps_packed_is_passed_on_as_it_lies(autojump_clock):
    store, client = Store(frames=FRAMES), Client(1 << 30)
    sender, reads = sender_of()
    await sender.send(client, target_of(store, passes=True), DIGEST, offset=0)
    assert content(client.got) == FRAMES
    assert (store.times, store.gets, reads.open, reads.reopened) == (1, [], 0, 0)


@pytest.mark.parametrize("passes", [True, False])
@pytest.mark.parametrize("offset", [0, 1, len(DATA) - 1, len(DATA)])
async def test_what_it_does_not_is_packed_from_where_it_is_asked_for(autojump_clock, passes, offset):
    store, client = Store(), Client(1 << 30)
    sender, reads = sender_of()
    await sender.send(client, target_of(store, passes=passes), DIGEST, offset=offset)
    assert decompress(content(client.got), len(DATA) - offset) == DATA[offset:]
    assert store.offsets[-1] == offset
    assert (store.gets, store.now, reads.open, reads.reopened, sender.packing) == ([], 0, 0, 0, 0)


async def test_a_blob_that_is_kept_packed_is_packed_anew_where_only_its_end_is_asked_for(autojump_clock):
    store, client = Store(frames=FRAMES), Client(1 << 30)
    sender, _ = sender_of()
    await sender.send(client, target_of(store, passes=True), DIGEST, offset=1)
    assert decompress(content(client.got), len(DATA) - 1) == DATA[1:]
    assert store.offsets == [1]


@pytest.mark.parametrize(("size", "is_whole"), [(SMALL - 1, True), (SMALL, True), (SMALL + 1, False)])
@pytest.mark.parametrize("offset", [0, 1])
async def test_small_blobs_are_taken_whole_and_without_a_file(autojump_clock, size, is_whole, offset):
    data = DATA[:size]
    store, client = Store(data), Client(1 << 30)
    sender, _ = sender_of()
    await sender.send(client, target_of(store), Digest(hashlib.sha256(data).hexdigest(), size), offset=offset)
    assert decompress(content(client.got), size - offset) == data[offset:]
    assert (len(store.gets), store.times) == ((1, 0) if is_whole and not offset else (0, 1))


@pytest.mark.parametrize(("busy", "packs"), [(MAX_PACKING - 1, True), (MAX_PACKING, False), (MAX_PACKING + 1, False)])
async def test_so_many_reads_pack_at_once_and_others_get_what_costs_no_memory(autojump_clock, busy, packs):
    data = bytes(200_000)
    store, client = Store(data), Client(1 << 30)
    sender, _ = sender_of()
    sender.packing = busy
    await sender.send(client, target_of(store), Digest(hashlib.sha256(data).hexdigest(), len(data)), offset=0)
    got = content(client.got)
    assert decompress(got, len(data)) == data
    assert (len(got) < 10_000) is packs
    assert sender.packing == busy


async def test_reads_that_pack_are_counted_until_they_end_however_they_end(autojump_clock):
    store, client = Store(), Client(5_000)
    sender, reads = sender_of()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: sender.send(client, target_of(store), DIGEST, offset=0))
        await wait_all_tasks_blocked()
        assert (sender.packing, reads.open, store.now) == (1, 1, 1)
        await trio.sleep(PATIENCE_S + 0.1)
        assert (sender.packing, reads.open, store.now) == (1, 0, 0)
        nursery.cancel_scope.cancel()
    assert (sender.packing, reads.open) == (0, 0)


@pytest.mark.parametrize("passes", [True, False])
async def test_a_file_is_closed_when_credit_is_long_in_coming_and_what_follows_joins_on(autojump_clock, passes):
    store, client = Store(frames=FRAMES if passes else None), Client(100_000)
    sender, reads = sender_of()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: sender.send(client, target_of(store, passes=passes), DIGEST, offset=0))
        await wait_all_tasks_blocked()
        for reopened in range(3 if passes else 1):  # what is packed already is sent before the file is needed again
            await trio.sleep(PATIENCE_S - 0.1)
            assert (store.now, reads.open, reads.reopened) == (1, 1, reopened)
            await trio.sleep(0.2)
            assert (store.now, reads.open, reads.reopened) == (0, 0, reopened)
            client.give(50_000)
            await wait_all_tasks_blocked()
        client.give(1 << 30)
    got = content(client.got)
    assert decompress(got, len(DATA)) == DATA
    assert got == FRAMES or not passes
    assert reads.reopened == store.times - 1
    assert store.now == reads.open == 0


@pytest.mark.parametrize("passes", [True, False])
async def test_credit_that_comes_in_time_keeps_the_file_open(autojump_clock, passes):
    store, client = Store(frames=FRAMES if passes else None), Client(50_000)
    sender, reads = sender_of()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: sender.send(client, target_of(store, passes=passes), DIGEST, offset=0))
        for _ in range(10):
            await trio.sleep(PATIENCE_S / 2)
            client.give(50_000)
    assert decompress(content(client.got), len(DATA)) == DATA
    assert reads.reopened == 0


@pytest.mark.parametrize(("others", "waits"), [(MAX_PATIENT - 1, True), (MAX_PATIENT, False)])
@pytest.mark.parametrize("passes", [True, False])
async def test_where_many_files_are_open_none_is_kept_for_a_client_that_gives_no_credit(
    autojump_clock, passes, others, waits
):
    store, client = Store(frames=FRAMES if passes else None), Client(50_000)
    sender, reads = sender_of(max_open=1000)
    reads.open = others
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: sender.send(client, target_of(store, passes=passes), DIGEST, offset=0))
        await wait_all_tasks_blocked()
        assert store.now == waits
        client.give(1 << 30)
    assert decompress(content(client.got), len(DATA)) == DATA
    assert reads.open == others


@pytest.mark.parametrize("passes", [True, False])
@pytest.mark.parametrize("others", [9, 10, 11])
async def test_where_as_many_files_are_open_as_may_be_each_piece_is_sent_with_its_file_closed(
    autojump_clock, passes, others
):
    store, client = Store(frames=FRAMES if passes else None), Client(1 << 30)
    sender, reads = sender_of(max_open=10)
    reads.open = others
    client.is_stuck = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: sender.send(client, target_of(store, passes=passes), DIGEST, offset=0))
        await wait_all_tasks_blocked()
        assert store.now == (others < 10)
        client.is_stuck = False
        client.give(0)
    got = content(client.got)
    assert decompress(got, len(DATA)) == DATA
    if passes:
        assert got == FRAMES
    assert reads.open == others


@pytest.mark.parametrize("frames", [compress(DATA, 9) + compress(b""), None])
async def test_a_blob_that_is_packed_in_another_way_when_the_read_goes_on_ends_it(autojump_clock, frames):
    store, client = Store(frames=FRAMES), Client(100_000)
    sender, _ = sender_of()
    ends = []

    async def send():
        with pytest.raises(UnavailableError, match=f"{DIGEST.hash}.*has been replaced while it was read"):
            await sender.send(client, target_of(store, passes=True), DIGEST, offset=0)
        ends.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.sleep(PATIENCE_S + 0.1)
        store.frames = frames
        client.give(1 << 30)
    assert ends == [True]
    assert len(content(client.got)) < 100_000


def test_as_many_reads_pack_as_the_design_says():
    assert packed_reads.MAX_PACKING == 64
    assert Packing().threads.total_tokens == 4

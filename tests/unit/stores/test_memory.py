import gc
import os

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import CHUNK, ActionKey, BlobNotFoundError, BytesReader, EvictionPolicy, ExhaustedError
from nl.stores.memory import ENTRY_OVERHEAD, MemoryOptions, MemoryStore
from nl.testing import BareContext, BlockingReader, EvictingStoreConformance, StoreConformance, drain, split


class TestMemoryConformance(StoreConformance):
    def make_store(self, context, folder):
        return MemoryStore(MemoryOptions(), context)


class TestEvictingMemoryConformance(EvictingStoreConformance):
    def make_bounded_store(self, context, folder, policy):
        return MemoryStore(MemoryOptions(eviction_policy=policy), context)


class TestBoundedMemoryConformance(StoreConformance):
    def make_store(self, context, folder):
        policy = EvictionPolicy(max_bytes=64 * 2**20, evict_bytes=2**20, max_seconds=3600, max_count=100_000)
        return MemoryStore(MemoryOptions(eviction_policy=policy), context)


def make_bounded(**policy):
    return MemoryStore(MemoryOptions(eviction_policy=EvictionPolicy(**policy)), BareContext("CAS"))


def room_for(count, size):
    return count * (size + ENTRY_OVERHEAD)


async def put_each(store, names, size=1000):
    for name in names:
        await store.put(name, bytes(size))


async def names_in(store, names):
    """Which are there, asked in an order that keeps recency as it was."""
    return "".join(name for name, size in zip(names, await store.has(list(names)), strict=True) if size is not None)


async def test_the_least_recently_used_goes_first():
    store = make_bounded(max_bytes=room_for(3, 1000))
    await put_each(store, "abcd")
    assert await names_in(store, "abcd") == "bcd"


async def test_asking_for_a_blob_keeps_it():
    store = make_bounded(max_bytes=room_for(3, 1000))
    await put_each(store, "abc")
    await store.has(["a"])
    await put_each(store, "d")
    assert await names_in(store, "abcd") == "acd"


@pytest.mark.parametrize("chunked", [False, True])
async def test_reading_a_blob_keeps_it(chunked):
    store = make_bounded(max_bytes=room_for(3, 1000))
    await put_each(store, "abc")
    if chunked:
        async with store.open("a") as reader:
            await drain(reader)
    else:
        await store.get("a")
    await put_each(store, "d")
    assert await names_in(store, "abcd") == "acd"


async def test_evict_bytes_makes_room_in_batches():
    store = make_bounded(max_bytes=room_for(4, 1000), evict_bytes=room_for(2, 1000))
    await put_each(store, "abcd")
    assert await names_in(store, "abcd") == "abcd"
    await put_each(store, "e")
    assert await names_in(store, "abcde") == "de"


async def test_a_batch_never_takes_the_blob_that_was_just_written():
    store = make_bounded(max_bytes=room_for(4, 1000), evict_bytes=room_for(4, 1000))
    await put_each(store, "abcde")
    assert await names_in(store, "abcde") == "e"


async def test_max_count_bounds_the_number_of_blobs():
    store = make_bounded(max_count=2)
    await put_each(store, "abc")
    assert await names_in(store, "abc") == "bc"


async def test_overwriting_counts_the_new_size_only():
    store = make_bounded(max_bytes=room_for(3, 1000))
    await put_each(store, "aaaaaabb")
    assert store.statistics()["bytes"] == room_for(2, 1000)


async def test_an_evicted_blob_is_not_found_and_is_counted():
    store = make_bounded(max_bytes=room_for(1, 1000))
    await put_each(store, "ab")
    with pytest.raises(BlobNotFoundError):
        await store.get("a")
    statistics = store.statistics()
    assert (statistics["evicted_blobs"], statistics["misses"], statistics["blobs"]) == (1, 1, 1)


async def test_eviction_does_not_disturb_an_open_reader():
    store = make_bounded(max_bytes=room_for(1, 2 * CHUNK))
    data = os.urandom(2 * CHUNK)
    await store.put("a", data)
    async with store.open("a") as reader:
        first = bytes((await reader.receive_parts(1000))[0])
        await store.put("b", bytes(2 * CHUNK))
        assert await store.has(["a"]) == [None]
        assert first + await drain(reader, taken=len(first)) == data


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_blob_that_never_fits_is_refused_and_evicts_nothing(chunked):
    store = make_bounded(max_bytes=room_for(2, 1000))
    await put_each(store, "ab")
    with pytest.raises(ExhaustedError, match="never fit"):
        await (store.write("c", BytesReader(bytes(5000))) if chunked else store.put("c", bytes(5000)))
    assert await names_in(store, "abc") == "ab"


async def test_an_upload_evicts_nothing_before_it_is_whole():
    store = make_bounded(max_bytes=room_for(4, 1000))
    await put_each(store, "abcd")
    upload = BlockingReader(split(bytes(3500), 500))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.write, "e", upload)
        await upload.blocked.wait()
        assert store.statistics()["uploading_bytes"] == 3500
        nursery.cancel_scope.cancel()
    assert store.statistics()["uploading_bytes"] == 0
    assert await names_in(store, "abcde") == "abcd"
    await store.write("e", BytesReader(bytes(3500)))
    assert await names_in(store, "abcde") == "de"


async def test_an_upload_whose_source_never_waits_gives_others_their_turn():
    store = make_bounded()
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await store.write("large", BytesReader(bytes(20 * 2**20)))
        nursery.cancel_scope.cancel()
    assert turns >= 18


async def test_uploads_under_way_are_bounded_too():
    store = make_bounded(max_bytes=10_000)
    uploads = [BlockingReader([bytes(4000)], rest=bytes(1000)) for _ in range(2)]
    async with trio.open_nursery() as nursery:
        for number, upload in enumerate(uploads):
            nursery.start_soon(store.write, str(number), upload)
            await upload.blocked.wait()
        with pytest.raises(ExhaustedError, match="under way"):
            await store.write("x", BytesReader(bytes(4000)))
        nursery.cancel_scope.cancel()


async def test_action_results_count_like_blobs():
    store = make_bounded(max_count=1)
    await store.put(ActionKey("ab" * 32, 1), b"result")
    await store.put(digest_of(b"blob"), b"blob")
    assert await store.has([ActionKey("ab" * 32, 1), digest_of(b"blob")]) == [None, 4]


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_tiny_blobs_take_no_more_memory_than_max_bytes():
    limit = 32 * 2**20
    store = make_bounded(max_bytes=limit)
    gc.collect()
    before = resident_bytes()
    for number in range(150_000):
        data = b"%d" % number
        await store.put(digest_of(data), data)
    assert store.statistics()["evicted_blobs"] > 0
    assert resident_bytes() - before < limit * 1.25

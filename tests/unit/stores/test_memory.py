import gc
import os

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import (
    CHUNK,
    EMPTY_DIGESTS,
    MAX_WHOLE,
    ActionKey,
    BlobNotFoundError,
    BlobSizeLimit,
    BytesReader,
    Deletes,
    Digest,
    EvictionPolicy,
    ExhaustedError,
    LocalFiles,
    Removals,
    TooLargeError,
    UploadMismatchError,
)
from nl.storage import concurrent
from nl.stores.memory import ENTRY_OVERHEAD, MemoryOptions, MemoryStore
from nl.testing import (
    BareContext,
    BlockingReader,
    EvictingStoreConformance,
    PartsReader,
    StoreConformance,
    drain,
    split,
)


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
    assert 18 <= turns <= 40, "each MiB"


async def test_uploads_under_way_are_bounded_too():
    store = make_bounded(max_bytes=10_000)
    uploads = [BlockingReader([bytes(4000)], rest=bytes(1000)) for _ in range(2)]
    async with trio.open_nursery() as nursery:
        for number, upload in enumerate(uploads):
            nursery.start_soon(store.write, str(number), upload)
            await upload.blocked.wait()
        with pytest.raises(ExhaustedError, match="under way") as caught:
            await store.write("x", BytesReader(bytes(4000)))
        assert not isinstance(caught.value, TooLargeError), "it may be tried again"
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


def room_of(size):
    return size + ENTRY_OVERHEAD


@pytest.mark.parametrize("chunked", [False, True])
async def test_the_largest_blob_that_is_said_to_fit_does_and_one_byte_more_does_not(chunked):
    store = make_bounded(max_bytes=room_of(1000))
    assert store.capability(BlobSizeLimit).max_blob_bytes() == 1000
    for size in (1001, 1000):
        upload = store.write("a", BytesReader(bytes(size))) if chunked else store.put("a", bytes(size))
        if size > 1000:
            with pytest.raises(TooLargeError, match="'CAS' of 1640 bytes"):
                await upload
        else:
            await upload
    assert await store.has(["a"]) == [1000]
    assert store.statistics()["uploading_bytes"] == 0


async def test_an_upload_of_unknown_size_is_refused_when_it_is_too_large_and_lets_go_of_what_it_held():
    store = make_bounded(max_bytes=room_of(1000))
    with pytest.raises(TooLargeError):
        await store.write("a", PartsReader([bytes(1001)], size=-1))
    with pytest.raises(ExhaustedError, match="under way"):
        await store.write("a", PartsReader([bytes(room_of(1000) + 1)], size=-1))
    assert store.statistics()["uploading_bytes"] == 0
    assert await store.has(["a"]) == [None]


async def test_uploads_may_take_exactly_as_much_again():
    store = make_bounded(max_bytes=10_000)
    first = BlockingReader([bytes(6000)], rest=bytes(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.write, "a", first)
        await first.blocked.wait()
        await store.write("b", PartsReader([bytes(4000)], size=-1))
        with pytest.raises(ExhaustedError):
            await store.write("c", PartsReader([bytes(4001)], size=-1))
        assert store.statistics()["uploading_bytes"] == 6000
        nursery.cancel_scope.cancel()


async def test_what_is_larger_than_may_be_had_whole_is_streamed():
    store = make_bounded()
    await store.put("a", bytes(MAX_WHOLE))
    await store.put("b", bytes(MAX_WHOLE + 1))
    assert len(await store.get("a")) == MAX_WHOLE
    with pytest.raises(TooLargeError, match=f"b has {MAX_WHOLE + 1} bytes"):
        await store.get("b")
    async with store.open("b") as reader:
        assert reader.size == MAX_WHOLE + 1


@pytest.mark.parametrize("size", [CHUNK, CHUNK + 1])
async def test_nobody_can_change_what_is_kept(size):
    store = make_bounded()
    data = bytearray(size)
    await store.write("written", BytesReader(data))
    await store.put("put", data)
    data[0] = 1
    for name in ("written", "put"):
        kept = await store.get(name)
        assert memoryview(kept).readonly
        assert bytes(kept) == bytes(size)


async def test_reads_are_hits_or_misses_and_questions_are_neither():
    store = make_bounded(max_bytes=10_000)
    await store.put("a", b"1")
    await store.has(["a", "b"])
    await store.get("a")
    async with store.open("a"):
        pass
    for attempt in (store.get("b"), store.open("b").__aenter__()):
        with pytest.raises(BlobNotFoundError, match="the memory store 'CAS'"):
            await attempt
    await store.get(digest_of(b""))
    assert store.statistics() == {
        "blobs": 1, "bytes": room_of(1), "max_bytes": 10_000, "uploading_bytes": 0, "evicted_blobs": 0,
        "evicted_bytes": 0, "hits": 2, "misses": 2,
    }  # fmt: skip


async def test_whatever_leaves_is_told_once_whichever_way_it_left():
    store = make_bounded(max_count=2)
    await put_each(store, "a")
    feed = store.capability(Removals).watch_removals()
    await put_each(store, "abc")
    assert feed.take() == ["a"], "b and c pushed it out; being written again is no removal"
    await store.write("d", BytesReader(b"1"))
    assert feed.take() == ["b"]
    await store.capability(Deletes).delete(["c", "c", "never there"])
    assert feed.take() == ["c"]
    assert await names_in(store, "abcd") == "d"


def test_what_it_can_do_depends_on_its_policy():
    unbounded, bounded, ageing = make_bounded(), make_bounded(max_bytes=100), make_bounded(max_seconds=9)
    offered = [
        [store.capability(kind) is not None for kind in (BlobSizeLimit, Deletes, Removals, LocalFiles)]
        for store in (unbounded, bounded, ageing)
    ]
    assert offered == [[False, True, True, False], [True, True, True, False], [False, True, False, False]]
    assert bounded.capability(BlobSizeLimit).max_blob_bytes() == 0, "it is too small for what an entry costs"


async def test_all_that_one_upload_pushes_out_is_told():
    store = make_bounded(max_bytes=room_for(4, 1000), evict_bytes=room_for(3, 1000))
    feed = store.capability(Removals).watch_removals()
    await put_each(store, "abcde")
    assert feed.take() == ["a", "b", "c", "d"]


async def test_a_value_without_a_byte_is_a_value_and_its_deletion_is_told():
    store = make_bounded()
    await store.put("empty", b"")
    await store.write("written", BytesReader(b""))
    feed = store.capability(Removals).watch_removals()
    assert await store.has(["empty", "written"]) == [0, 0]
    assert await store.get("empty") == await store.get("written") == b""
    assert store.statistics()["hits"] == 2
    await store.capability(Deletes).delete(["empty", "written"])
    assert feed.take() == ["empty", "written"]
    assert await store.has(["empty", "written"]) == [None, None]


async def test_what_comes_as_the_empty_blob_is_read_to_its_end_where_it_may_be_found_wrong():
    class Wrong(PartsReader):
        async def receive_parts(self, max_bytes=CHUNK):
            if parts := await super().receive_parts(max_bytes):
                return parts
            raise UploadMismatchError("it has bytes")

    store = make_bounded()
    with pytest.raises(UploadMismatchError):
        await store.write(digest_of(b""), Wrong([b"some", b"bytes"], size=-1))
    assert store.statistics()["blobs"] == 0


async def test_of_many_what_is_too_large_fails_by_itself():
    store = make_bounded(max_bytes=room_for(1, 6 * 2**20))
    whole = {"a": b"1", "large": bytes(MAX_WHOLE + 1), "never": bytes(7 * 2**20), "b": b"2"}
    failed = await store.put_many(list(whole.items()))
    assert [type(each) for each in failed] == [type(None), type(None), TooLargeError, type(None)]
    found = await store.get_many(list(whole))
    assert found[::3] == [b"1", b"2"]
    assert [type(each) for each in found[1:3]] == [TooLargeError, BlobNotFoundError]


async def test_only_the_empty_blob_is_there_without_being_kept():
    store = make_bounded()
    for digest in EMPTY_DIGESTS:
        await store.put(digest, b"")
        await store.write(digest, BytesReader(b""))
    assert store.statistics()["blobs"] == 0
    nearly = [ActionKey(next(iter(EMPTY_DIGESTS)).hash, 0), Digest("ab" * 32, 0), ""]
    assert await store.has([*EMPTY_DIGESTS, *nearly]) == [0] * len(EMPTY_DIGESTS) + [None] * 3


async def test_many_at_once_let_others_have_their_turn(monkeypatch):
    monkeypatch.setattr(concurrent, "SLICE_S", 0.0)
    store, turns = make_bounded(), 0

    async def count():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    names = [str(number) for number in range(100)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        assert await store.put_many([(name, b"x") for name in names]) == [None] * 100
        assert turns >= 90
        turns = 0
        assert await store.get_many(names) == [b"x"] * 100
        assert turns >= 90
        nursery.cancel_scope.cancel()


async def test_what_was_streamed_is_kept_without_spare_room_if_it_is_small_and_without_a_copy_if_it_is_large():
    store = make_bounded()
    for size, kind in ((CHUNK, bytes), (CHUNK + 1, memoryview)):
        await store.write(str(size), PartsReader([bytes(size)], size=size))
        assert type(await store.get(str(size))) is kind

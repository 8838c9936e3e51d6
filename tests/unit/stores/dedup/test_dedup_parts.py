"""The parts of a dedup store by themselves: lists to the byte, windows of a reader, what is counted and remembered."""

import random
import struct

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from nl.config.types import EvictionPolicy
from nl.errors import ConfigError
from nl.plugin import (
    MAX_WHOLE,
    ActionKey,
    BlobNotFoundError,
    BytesReader,
    CodingError,
    CorruptBlobError,
    Deletes,
    Digest,
    DigestFunction,
    ExhaustedError,
    ForeignKey,
    LocalFiles,
    TooLargeError,
    Traits,
    UnavailableError,
    digest_of,
    key_text,
)
from nl.stores.dedup import DedupOptions, DedupStore, chunk_reader, store
from nl.stores.dedup.ahead import Ahead
from nl.stores.dedup.chunk_index import ChunkIndex
from nl.stores.dedup.chunk_reader import ChunkReader
from nl.stores.dedup.chunker import Chunker
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, FaultyStore, PartsReader, away, drain, find, read, same, started

SIZES = {"min_size": 1024, "normal_size": 4096, "max_size": 16384}


def blob(size, seed=0):
    return random.Random(seed * 7919 + size).randbytes(size)


def chunk(number, size):
    return Digest(f"{number:064x}", size, DigestFunction.BLAKE3)


class Part(MemoryStore):
    """Notes what it is asked; its traits and abilities are given."""

    traits_ = Traits()
    deletes = True

    def __init__(self, **policy):
        super().__init__(MemoryOptions(eviction_policy=EvictionPolicy(**policy)), BareContext())
        self.asked = []

    @property
    def traits(self):
        return self.traits_

    def capability(self, kind):
        return None if kind is Deletes and not self.deletes else super().capability(kind)

    async def has(self, keys):
        self.asked.append(("has", len(keys)))
        return await super().has(keys)

    async def put_many(self, blobs):
        self.asked.append(("put", len(blobs)))
        return await super().put_many(blobs)


def make_store(lists=None, content=None, **options):
    context = BareContext("CAS")
    specs = {"index_store": context.spec(lists or Part()), "content_store": context.spec(content or Part())}
    return DedupStore(DedupOptions(**specs, **{**SIZES, **options}), context)


# --- lists


@given(st.lists(st.integers(1, 50), max_size=30))
def test_a_list_knows_where_each_byte_is(sizes):
    index = ChunkIndex([chunk(number, size) for number, size in enumerate(sizes)])
    assert index.size == sum(sizes)
    assert index.encoded_size == len(index.encode()) == 8 + 40 * len(sizes)
    assert ChunkIndex.decode(index.encode()).chunks == index.chunks
    owners = [number for number, size in enumerate(sizes) for _ in range(size)]
    assert [index.chunk_at(offset) for offset in range(index.size)] == owners
    assert [index.start_of(number) for number in range(len(sizes))] == [sum(sizes[:at]) for at in range(len(sizes))]


@pytest.mark.parametrize("size", [1, (1 << 32) - 1])
def test_a_chunk_may_have_any_size_that_one_can_have(size):
    assert ChunkIndex.decode(ChunkIndex([chunk(1, size)]).encode()).size == size


@pytest.mark.parametrize(
    "data",
    [
        b"", bytes(7), struct.pack("<Q", 1), struct.pack("<Q", 0) + b"x", struct.pack("<Q", 1) + bytes(39),
        ChunkIndex([chunk(1, 1 << 32)]).encode(), ChunkIndex([chunk(1, 5), chunk(2, 0)]).encode(),
    ],
)  # fmt: skip
def test_what_is_no_list_is_refused(data):
    with pytest.raises(CodingError):
        ChunkIndex.decode(data)


# --- readers


def make_reader(sizes, *, offset=0, size=None, at_once=10, ahead=None):
    """A reader over chunks of these sizes, and the windows that it fetches."""
    data = [blob(size, seed=number) for number, size in enumerate(sizes)]
    index = ChunkIndex([chunk(number, size) for number, size in enumerate(sizes)])
    windows = []

    async def fetch(chunks):
        windows.append([each.size for each in chunks])
        return [data[int(each.hash, 16)] for each in chunks]

    size = index.size - offset if size is None else size
    reader = ChunkReader(index, fetch, offset=offset, size=size, at_once=at_once, ahead=ahead or Ahead())
    return reader, windows, b"".join(data)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), most=st.integers(1, 20), at_once=st.integers(1, 6),
    data=st.data(),
)
async def test_any_range_comes_in_pieces_no_larger_than_asked_for(sizes, most, at_once, data):
    offset = data.draw(st.integers(0, sum(sizes)))
    size = data.draw(st.integers(0, sum(sizes) - offset))
    reader, _, whole = make_reader(sizes, offset=offset, size=size, at_once=at_once)
    assert reader.size == size
    await reader.begin()
    got = bytearray()
    while parts := await reader.receive_parts(most):
        assert 0 < sum(map(len, parts)) <= most and all(map(len, parts))
        got += b"".join(parts)
    assert got == whole[offset : offset + size]
    assert await reader.receive_parts() == ()
    reader.close()


async def test_a_window_is_bounded_by_bytes_but_for_a_single_chunk(monkeypatch):
    monkeypatch.setattr(chunk_reader, "WINDOW_BYTES", 100)
    reader, windows, whole = make_reader([40, 60, 1, 99, 1, 500, 100, 7], at_once=100)
    await reader.begin()
    assert await drain(reader) == whole
    assert windows == [[40, 60], [1, 99], [1], [500], [100], [7]]


async def test_only_the_chunks_of_the_range_are_fetched():
    reader, windows, whole = make_reader([10] * 10, offset=20, size=30, at_once=4)
    await reader.begin()
    assert await drain(reader) == whole[20:50]
    assert windows == [[10, 10], [10]]
    reader, windows, whole = make_reader([10] * 10, offset=19, size=2, at_once=100)
    await reader.begin()
    assert await drain(reader) == whole[19:21]
    assert windows == [[10, 10]]
    reader, windows, _ = make_reader([10] * 10, offset=100, size=0)
    await reader.begin()
    assert await reader.receive_parts() == () and windows == []


async def test_who_may_have_one_chunk_fetches_nothing_ahead():
    ahead = Ahead()
    async with trio.open_nursery() as nursery:
        await nursery.start(ahead.run)
        for at_once, begun in ((1, 1), (2, 2), (10, 2)):
            reader, windows, _ = make_reader([10] * 40, at_once=at_once, ahead=ahead)
            await reader.begin()
            await trio.testing.wait_all_tasks_blocked()
            assert len(windows) == begun
            assert {len(window) for window in windows} == {max(at_once // 2, 1)}
            reader.close()
        nursery.cancel_scope.cancel()


async def test_what_runs_ahead_ends_with_the_store_and_its_reader_is_told():
    ahead = Ahead()
    assert ahead.start(trio.sleep_forever) is None, "nobody would own it"
    async with trio.open_nursery() as nursery:
        await nursery.start(ahead.run)
        pending = ahead.start(trio.sleep_forever)
        nursery.cancel_scope.cancel()
    with pytest.raises(UnavailableError, match="the store was stopped"):
        await pending.result()
    assert ahead.start(trio.sleep_forever) is None


# --- cutting


def test_a_chunker_is_full_when_its_buffer_has_no_room_for_another_part():
    chunker = Chunker(**SIZES, batch=100_000)
    chunker.feed([bytes(60_000), bytes(39_999)])
    assert (chunker.is_full, chunker.waiting) == (False, 99_999)
    chunker.feed([b"x"])
    assert (chunker.is_full, chunker.waiting) == (True, 100_000)
    large = Chunker(min_size=1024, normal_size=4096, max_size=16384, batch=1)
    large.feed([bytes(2 * 16384 - 1)])
    assert not large.is_full, "two of the largest chunks fit into any batch"
    large.feed([b"x"])
    assert large.is_full


# --- the store


@pytest.mark.parametrize("which", ["lists", "content"])
def test_it_can_be_relied_on_as_far_as_both_of_its_stores(which):
    assert make_store().traits == Traits()
    for traits in (Traits(authoritative=False), Traits(tracks_use=False)):
        part = Part()
        part.traits_ = traits
        assert make_store(**{which: part}).traits == traits


async def test_it_deletes_where_its_lists_can_be_deleted():
    lists, content = Part(), Part()
    content.deletes = False
    dedup = make_store(lists, content)
    assert dedup.capability(Deletes) is dedup and dedup.capability(LocalFiles) is None
    data = blob(50_000)
    await dedup.put(digest_of(data), data)
    await dedup.delete([digest_of(data)])
    assert await dedup.has([digest_of(data)]) == [None]
    lists.deletes = False
    assert dedup.capability(Deletes) is None


async def test_what_was_cut_stored_and_remembered_is_counted():
    dedup = make_store()
    nothing = {"cut_bytes": 0, "stored_bytes": 0, "corrupt_chunks": 0, "remembered_lists": 0, "remembered_bytes": 0}
    assert dedup.statistics() == nothing
    assert dedup._threads.total_tokens == 4, "they share the interpreter with the loop"
    small, large = blob(1000), blob(100_000)
    await dedup.put(digest_of(small), small)
    await dedup.put(digest_of(large), large)
    assert dedup.statistics() == nothing | {"cut_bytes": 101_000, "stored_bytes": 101_000}
    await dedup.write(digest_of(large), PartsReader([large]))
    assert dedup.statistics() == nothing | {"cut_bytes": 201_000, "stored_bytes": 101_000}
    await dedup.has([digest_of(small), ActionKey("ab" * 32, 1)])
    assert dedup.statistics()["remembered_lists"] == 1
    assert dedup.statistics()["remembered_bytes"] == 2 * store.CHUNK_COST


async def test_lists_that_are_remembered_are_not_read_again_unless_they_are_others():
    lists = Part()
    dedup = make_store(lists)
    one, other = blob(10_000), blob(60_000)
    digest = digest_of(one)
    await dedup.put(digest, one)
    read_lists, real = [], lists.get_many

    async def get_many(keys):
        read_lists.extend(keys)
        return await real(keys)

    lists.get_many = get_many
    for _ in range(3):
        assert await dedup.has([digest]) == [len(one)]
    assert read_lists == [key_text(digest) + store.SUFFIX]
    await dedup.put(digest_of(other), other)
    await lists.put(key_text(digest) + store.SUFFIX, await lists.get(key_text(digest_of(other)) + store.SUFFIX))
    assert await dedup.has([digest]) == [None], "its list is another blob's now"


async def test_a_list_that_would_fill_the_memory_for_lists_is_not_remembered(monkeypatch):
    monkeypatch.setattr(store, "REMEMBERED_BYTES", 5 * store.CHUNK_COST)
    dedup = make_store()
    small, large = blob(1000), blob(200_000)
    for data in (small, large):
        await dedup.put(digest_of(data), data)
        assert await dedup.has([digest_of(data)]) == [len(data)]
    assert dedup.statistics()["remembered_bytes"] == 2 * store.CHUNK_COST, "and takes no other's place"
    assert dedup.statistics()["remembered_lists"] == 1


async def test_wrong_chunks_that_cannot_be_deleted_are_remembered_within_a_bound(monkeypatch):
    monkeypatch.setattr(store, "_MAX_SPOILED", 2)
    content = Part()
    content.deletes = False
    dedup = make_store(content=content)
    digests = []
    for number in range(3):
        data = blob(1000, seed=number)
        digests.append(digest_of(data))
        await dedup.put(digests[-1], data)
        chunk = digest_of(data, DigestFunction.BLAKE3)
        content._insert(chunk, bytes(1000))
        with pytest.raises(Exception, match="its chunk .* is wrong"):
            await dedup.get(digests[-1])
    assert await dedup.has(digests) == [1000, None, None]
    assert dedup.statistics()["corrupt_chunks"] == 3


class NoDeletion(Part):
    """Deletions fail."""

    async def delete(self, keys):
        raise UnavailableError("read only")


async def test_a_wrong_chunk_that_cannot_be_deleted_now_is_said_to_be_wrong_and_counts_as_missing(caplog):
    content = NoDeletion()
    dedup = make_store(content=content)
    data = blob(1000)
    digest, chunk = digest_of(data), digest_of(data, DigestFunction.BLAKE3)
    await dedup.put(digest, data)
    content._insert(chunk, bytes(1000))
    with pytest.raises(CorruptBlobError, match="its chunk .* is wrong"):
        await dedup.get(digest)
    assert "read only" in caplog.text
    assert await dedup.has([digest]) == [None]
    await dedup.put(digest, data)
    assert await dedup.get(digest) == data


async def test_chunks_are_checked_in_turns_of_the_loop_and_only_large_ones_in_a_thread(monkeypatch):
    """Whoever reads much of what is in memory stops nobody, and pays for a thread only where it is worth it."""
    usual = {"min_size": 64 * 1024, "normal_size": 256 * 1024, "max_size": 512 * 1024}
    dedup = make_store(**usual)
    data, few = bytes(MAX_WHOLE), bytes(512 * 1024)
    await dedup.put(digest_of(data), data)
    await dedup.put(digest_of(few), few)
    hops, turns, real = [], [0], trio.to_thread.run_sync

    async def run_sync(*args, **kwargs):
        hops.append(args)
        return await real(*args, **kwargs)

    async def others(*, task_status=trio.TASK_STATUS_IGNORED):
        task_status.started()
        while True:
            turns[0] += 1
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    async with trio.open_nursery() as nursery:
        await nursery.start(others)
        before = turns[0]
        assert await dedup.get(digest_of(few)) == few
        assert turns[0] == before, "what is no more than a turn's worth is checked at once"
        before = turns[0]
        assert await dedup.get(digest_of(data)) == data
        assert turns[0] - before >= 5, "of eight chunks"
        nursery.cancel_scope.cancel()
    assert not hops
    large = make_store(**{**usual, "normal_size": 1024 * 1024, "max_size": MAX_WHOLE})
    await large.put(digest_of(data), data)
    hops.clear()
    assert await large.get(digest_of(data)) == data
    assert len(hops) == 1


async def test_what_may_be_had_whole_is_bounded_to_the_byte_and_a_use_all_the_same():
    dedup = make_store(min_size=64 * 1024, normal_size=256 * 1024, max_size=512 * 1024)
    exact, large = bytes(MAX_WHOLE), bytes(MAX_WHOLE + 1)
    for data in (exact, large):
        await dedup.put(digest_of(data), data)
    assert len(await dedup.get(digest_of(exact))) == MAX_WHOLE
    with pytest.raises(TooLargeError, match=f"has {MAX_WHOLE + 1} bytes"):
        await dedup.get(digest_of(large))


async def test_a_content_store_that_may_be_wrong_about_what_it_has_is_given_every_chunk():
    content = Part()
    content.traits_ = Traits(authoritative=False)
    dedup = make_store(content=content)
    data = blob(1000)
    for _ in range(2):
        await dedup.put(digest_of(data), data)
    assert dedup.statistics()["stored_bytes"] == 2000
    assert content.asked == [("put", 1)] * 2


async def test_a_blob_of_two_chunks_whose_second_is_gone_cannot_be_opened():
    """Not even if the first is all that is fetched at once."""
    content, lists = Part(), Part()
    dedup = make_store(lists, content, max_concurrent_fetch_per_get=1)
    for size in range(1500, 12_000, 500):
        await dedup.put(digest := digest_of(data := blob(size)), data)
        (index,) = await dedup._find([digest])
        if len(index.chunks) == 2:
            break
    await content.delete([index.chunks[1]])
    with pytest.raises(BlobNotFoundError):
        async with dedup.open(digest):
            pass


async def test_an_upload_is_refused_if_a_chunk_is_found_wrong_just_before_its_end_and_cannot_be_deleted():
    """What a reader has found wrong counts as missing, and only who uploads it anew mends it."""

    class Lists(Part):
        reads = False

        async def put(self, key, data):
            await super().put(key, data)
            if self.reads:
                with pytest.raises(CorruptBlobError):
                    await dedup.get(digest)

    lists, content = Lists(), Part()
    content.deletes = False
    dedup = make_store(lists, content)
    await dedup.put(digest := digest_of(data := blob(500)), data)
    (chunk_key,) = (key for key in content._index if isinstance(key, Digest))
    await content.put(chunk_key, bytes(500))
    lists.reads = True
    with pytest.raises(UnavailableError, match="was found wrong"):
        await dedup.put(digest, data)
    lists.reads = False
    await dedup.put(digest, data)
    assert await dedup.has([digest]) == [500]


async def test_messages_name_the_store_and_what_is_lacking():
    content = Part()
    dedup = make_store(content=content)
    data = blob(100_000)
    digest = digest_of(data)
    with pytest.raises(BlobNotFoundError, match="the dedup store 'CAS'$"):
        await dedup.get(digest)
    await dedup.put(digest, data)
    await content.delete([next(key for key in content._index if isinstance(key, Digest))])
    for attempt in (dedup.get(digest), read(dedup, digest)):
        with pytest.raises(BlobNotFoundError, match="the dedup store 'CAS': some of its chunks are gone"):
            await attempt


async def test_the_empty_blob_is_nowhere_and_always_there():
    lists, content = Part(), Part()
    dedup = make_store(lists, content)
    empty = digest_of(b"")
    await dedup.put(empty, b"")
    await dedup.write(empty, BytesReader(b""))
    assert len(lists._index) == len(content._index) == 0
    assert await dedup.has([empty]) == [0] and await dedup.get(empty) == b""


async def test_what_is_no_larger_than_the_smallest_chunk_is_one():
    for size, chunks in ((SIZES["min_size"], 1), (0, 0)):
        content = Part()
        dedup = make_store(content=content)
        await dedup.put("name", blob(size))
        assert len(content._index) == chunks
        assert await dedup.get("name") == blob(size)
        assert await dedup.has(["name"]) == [size]


@pytest.mark.parametrize(
    ("sizes", "is_right"),
    [
        ({"min_size": 256, "normal_size": 257, "max_size": 1024}, True), ({"min_size": 255}, False),
        ({"min_size": 256, "normal_size": 257, "max_size": 1023}, False), ({"max_size": MAX_WHOLE}, True),
        ({"max_size": MAX_WHOLE + 1}, False), ({"min_size": 4096}, False), ({"max_size": 4096}, False),
        ({"max_concurrent_fetch_per_get": 1}, True), ({"max_concurrent_fetch_per_get": 100}, True),
        ({"max_concurrent_fetch_per_get": 101}, False),
    ],
)
def test_the_bounds_of_the_options_are_exact(sizes, is_right):
    context = BareContext()
    stores = {"index_store": context.spec(Part()), "content_store": context.spec(Part())}
    options = DedupOptions(**stores, **{**SIZES, **sizes})
    if is_right:
        options.check()
    else:
        with pytest.raises(ConfigError):
            options.check()


async def test_a_store_that_runs_fetches_ahead_and_one_that_does_not_works_too():
    context = BareContext()
    content = Part()
    dedup = DedupStore(
        DedupOptions(index_store=context.spec(Part()), content_store=context.spec(content), **SIZES), context
    )
    data = blob(300_000)
    await dedup.put(digest_of(data), data)
    assert await read(dedup, digest_of(data)) == data
    async with started(dedup, context):
        assert await read(dedup, digest_of(data)) == data


async def test_a_list_that_nativelink_has_kept_is_deleted_too():
    store = make_store()
    digest = digest_of(data := blob(50_000))
    await store.put(digest, data)
    own = key_text(digest) + ".chunks"
    await store._lists.put(ForeignKey(digest.hash, digest.size), await store._lists.get(own))
    await store._lists.delete([own])
    assert same(await find(store, digest), data)
    await store.delete([digest])
    assert await find(store, digest) is None


def test_a_list_that_was_written_once_is_read_for_ever():
    encoded = bytes.fromhex(
        "0200000000000000" + "ab" * 32 + "0500000000000000" + "01" * 32 + "0201000000000000"
    )
    chunks = (Digest("ab" * 32, 5, DigestFunction.BLAKE3), Digest("01" * 32, 258, DigestFunction.BLAKE3))
    assert ChunkIndex(chunks).encode() == encoded
    assert ChunkIndex.decode(encoded).chunks == chunks


@pytest.mark.parametrize("function", list(DigestFunction))
async def test_lists_have_names_of_their_own_and_chunks_the_names_of_what_they_are(function):
    lists, content = Part(), Part()
    dedup = make_store(lists, content)
    data = blob(1000)
    digest = digest_of(data, function)
    suffix = "" if function is DigestFunction.SHA256 else ".blake3"
    await dedup.put(digest, data)
    await dedup.put(ActionKey(*digest), data)
    assert list(lists._index) == [f"{digest}{suffix}.chunks", f"{digest}{suffix}.ac.chunks"]
    assert list(content._index) == [digest_of(data, DigestFunction.BLAKE3)]
    assert await dedup.has([digest, ActionKey(*digest)]) == [1000, 1000]
    other = next(each for each in DigestFunction if each is not function)
    assert await dedup.has([Digest(digest.hash, digest.size, other)]) == [None]


async def test_how_many_lists_and_how_much_of_a_blob_are_in_memory_at_once_is_bounded():
    lists = Part()
    dedup = make_store(lists)
    trips, real = [], lists.get_many

    async def get_many(keys):
        trips.append(len(keys))
        return await real(keys)

    lists.get_many = get_many
    keys = [f"{number}" for number in range(1100)]
    assert await dedup.put_many([(key, b"x") for key in keys]) == [None] * 1100
    assert await dedup.has(keys) == [1] * 1100
    assert trips == [500, 500, 100]
    assert chunk_reader.WINDOW_BYTES == 2 * 1024 * 1024 and store.REMEMBERED_BYTES == 32 * 1024 * 1024


async def test_all_that_many_keys_have_in_common_is_asked_about_once():
    content = Part()
    dedup = make_store(content=content)
    data = blob(100_000)
    for key in ("a", "b", digest_of(data)):
        await dedup.put(key, data)
    content.asked.clear()
    assert await dedup.has(["a", "b", digest_of(data), "none"]) == [100_000] * 3 + [None]
    assert content.asked == [("has", len(content._index))]


@pytest.mark.parametrize("which", ["lists", "content"])
async def test_a_store_behind_it_that_is_away_is_neither_a_miss_nor_a_wrong_chunk(which):
    parts = {"lists": FaultyStore(Part()), "content": FaultyStore(Part())}
    dedup = make_store(parts["lists"], parts["content"])
    data = blob(60_000)
    digest = digest_of(data)
    await dedup.put(digest, data)
    for operation, ask in (
        ("has", lambda: dedup.has([digest])), ("get", lambda: dedup.get(digest)), ("get", lambda: read(dedup, digest)),
        ("put", lambda: dedup.put("other", blob(50_000, seed=3))),
    ):  # fmt: skip
        dedup._known.discard(digest)
        parts[which].plan(operation, away())
        with pytest.raises(UnavailableError):
            await ask()
        parts[which].heal()
    assert await dedup.has([digest, "other"]) == [60_000, None]
    assert await find(dedup, digest) == data
    assert dedup.statistics()["corrupt_chunks"] == 0


async def test_a_wrong_chunk_is_deleted_reported_and_mended_by_the_next_upload(caplog):
    content = Part()
    dedup = make_store(content=content)
    data = blob(60_000)
    digest = digest_of(data)
    await dedup.put(digest, data)
    wrong = next(iter(content._index))
    for bad in (bytes(wrong.size), bytes(wrong.size - 1)):
        content._insert(wrong, bad)
        for ask in (dedup.get, lambda key: read(dedup, key)):
            with pytest.raises(CorruptBlobError, match=f"^{digest}: its chunk {wrong} is wrong in the content store"):
                await ask(digest)
            assert await content.has([wrong]) == [None]
            assert await dedup.has([digest]) == [None]
            content._insert(wrong, bad)
        await content.delete([wrong])
        await dedup.put(digest, data)
        assert await find(dedup, digest) == data
    assert {record.getMessage() for record in caplog.records} == {f"CAS: the stored chunk {wrong} is wrong"}


async def test_a_list_that_says_another_size_counts_as_missing_and_the_log_says_why(caplog):
    lists = Part()
    dedup = make_store(lists)
    digest = Digest("ab" * 32, 100)
    for data in (ChunkIndex([chunk(1, 99)]).encode(), b"rubbish"):
        await lists.put(f"{digest}.chunks", data)
        assert await dedup.has([digest]) == [None]
        with pytest.raises(BlobNotFoundError):
            await dedup.get(digest)
    assert caplog.records[0].getMessage() == (
        f"CAS: the list of the chunks of {digest} counts as missing: its chunks have 99 bytes together"
    )


async def test_an_upload_whose_first_chunks_were_evicted_by_its_last_is_refused():
    content = Part(max_count=10)
    dedup = make_store(content=content)
    data = blob(5_000_000)
    with pytest.raises(ExhaustedError, match=r"the content store of 'CAS' has evicted chunks while they came in"):
        await dedup.write(digest_of(data), PartsReader([data]))
    assert await dedup.has([digest_of(data)]) == [None]


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        (
            {"min_size": 255},
            "min_size 255, normal_size 4096, max_size 16384; expected each larger than the one before, from 256 on, "
            "and max_size from 1024 to 4194304",
        ),
        ({"max_concurrent_fetch_per_get": 101}, "max_concurrent_fetch_per_get: 101; expected 1 to 100"),
        ({"max_concurrent_fetch_per_get": 0}, "max_concurrent_fetch_per_get: 0; expected 1 to 100"),
    ],
)
def test_a_wrong_option_is_one_line_that_says_what_was_expected(sizes, text):
    context = BareContext()
    options = DedupOptions(
        index_store=context.spec(Part()), content_store=context.spec(Part()), **{**SIZES, **sizes}
    )
    with pytest.raises(ConfigError) as caught:
        options.check()
    assert str(caught.value) == text


def test_what_nobody_configures_is_the_usual():
    context = BareContext()
    usual = DedupOptions(index_store=context.spec(Part()), content_store=context.spec(Part()))
    sizes = (usual.min_size, usual.normal_size, usual.max_size, usual.max_concurrent_fetch_per_get)
    assert sizes == (64 * 1024, 256 * 1024, 512 * 1024, 10)

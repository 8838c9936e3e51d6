import os
import random
import struct

import pytest
import trio
import trio.testing
from blake3 import blake3

from nl.config.types import EvictionPolicy
from nl.errors import ConfigError
from nl.plugin import (
    CHUNK,
    ActionKey,
    BlobNotFoundError,
    BytesReader,
    CorruptBlobError,
    Deletes,
    Digest,
    DigestFunction,
    ExhaustedError,
    UnavailableError,
    digest_of,
    key_text,
)
from nl.stores.dedup import DedupOptions, DedupStore
from nl.stores.dedup.chunk_index import ChunkIndex
from nl.stores.dedup.chunker import Chunker
from nl.stores.filesystem import FilesystemOptions, FilesystemStore
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, PartsReader, StoreConformance, find, read, split, started
from nl.testing.observing import same

SIZES = {"min_size": 1024, "normal_size": 4096, "max_size": 16384}


def memory(context=None, **policy):
    return MemoryStore(MemoryOptions(eviction_policy=EvictionPolicy(**policy)), context or BareContext())


def make_store(context=None, lists=None, content=None, **options):
    context = context or BareContext()
    return DedupStore(
        DedupOptions(
            index_store=context.spec(lists or memory()),
            content_store=context.spec(content or memory()),
            **{**SIZES, **options},
        ),
        context,
    )


def filesystem(folder):
    options = FilesystemOptions(content_path=f"{folder}/content", temp_path=f"{folder}/temp")
    return FilesystemStore(options, BareContext())


class TestDedupConformance(StoreConformance):
    def make_store(self, context, folder):
        return make_store(context)


class TestDedupOverFilesConformance(StoreConformance):
    def make_store(self, context, folder):
        sizes = {"min_size": 64 * 1024, "normal_size": 256 * 1024, "max_size": 512 * 1024}
        return make_store(context, filesystem(folder / "lists"), filesystem(folder / "chunks"), **sizes)


def blob(size, seed=0):
    return random.Random(seed * 7919 + size).randbytes(size)


async def test_what_two_blobs_have_in_common_is_kept_once():
    store = make_store()
    common = blob(500_000)
    await store.put(digest_of(common), common)
    before = store.statistics()["stored_bytes"]
    other = blob(10, seed=1) + common[:250_000] + blob(33, seed=2) + common[250_000:]
    await store.write(digest_of(other), PartsReader(split(other, 10_007)))
    assert store.statistics()["stored_bytes"] - before < 60_000, "the chunks around what was inserted, and no others"
    assert same(await find(store, digest_of(common)), common)
    assert same(await find(store, digest_of(other)), other)


async def test_the_same_bytes_make_the_same_chunks_however_they_come():
    data = blob(700_000)
    for size in (999, 70_000, 700_000):
        store = make_store()
        await store.put(digest_of(data), data)
        before = store.statistics()["stored_bytes"]
        action = ActionKey(*digest_of(b"again"))
        await store.write(action, PartsReader(split(data, size), size=-1))
        assert store.statistics()["stored_bytes"] == before == len(data)


def test_chunks_keep_to_their_sizes_and_are_cut_alike_in_a_stream_and_at_once():
    data = blob(3_000_000)
    for step in (1000, 16384, 100_000, CHUNK):
        chunker = Chunker(**SIZES, batch=40_000)
        chunks = []
        for piece in [*split(data, step), b""]:
            chunker.feed([piece])
            if not piece or chunker.is_full:
                chunks += [(digest, bytes(view)) for digest, view in chunker.cut(is_last=not piece)]
                chunker.drop()
                assert chunker.waiting <= SIZES["max_size"]
        assert not chunker.waiting
        assert b"".join(piece for _, piece in chunks) == data
        assert all(SIZES["min_size"] <= len(piece) <= SIZES["max_size"] for _, piece in chunks[:-1])
        assert all(digest == digest_of(piece, DigestFunction.BLAKE3) for digest, piece in chunks)
        if step == 1000:
            expected = chunks
        assert chunks == expected
    assert 2000 < len(data) / len(expected) < 8000


async def test_a_list_has_the_form_of_nativelink():
    pieces = [b"one", b"another"]
    by_hand = struct.pack("<Q", 2) + b"".join(blake3(each).digest() + struct.pack("<Q", len(each)) for each in pieces)
    chunks = [digest_of(each, DigestFunction.BLAKE3) for each in pieces]
    assert ChunkIndex(chunks).encode() == by_hand
    assert list(ChunkIndex.decode(by_hand).chunks) == chunks
    store = make_store()
    await store.put(digest_of(b"small"), b"small")
    kept = await store._lists.get(key_text(digest_of(b"small")) + ".chunks")
    assert kept == struct.pack("<Q", 1) + blake3(b"small").digest() + struct.pack("<Q", 5)


async def test_what_nativelink_has_kept_is_found(tmp_path):
    """A list under the name of its blob; chunks under theirs, without a word about the function of their hash."""
    pieces = [b"one", b"another"]
    whole = digest_of(b"oneanother")
    for folder in ("lists", "chunks"):
        (tmp_path / folder / "content" / "d").mkdir(parents=True)
    by_hand = struct.pack("<Q", 2) + b"".join(blake3(each).digest() + struct.pack("<Q", len(each)) for each in pieces)
    (tmp_path / "lists" / "content" / "d" / str(whole)).write_bytes(by_hand)
    for piece in pieces:
        (tmp_path / "chunks" / "content" / "d" / f"{blake3(piece).hexdigest()}-{len(piece)}").write_bytes(piece)
    context = BareContext()
    lists, chunks = filesystem(tmp_path / "lists"), filesystem(tmp_path / "chunks")
    store = make_store(context, lists, chunks)
    async with started(store, context):
        with trio.fail_after(20):
            while {lists.statistics()["state"], chunks.statistics()["state"]} != {"exact"}:
                await trio.sleep(0.01)
        assert await store.get(whole) == b"oneanother"
        assert await find(store, whole) == b"oneanother"
        assert await read(store, whole, offset=2, length=5) == b"eanot"


@pytest.mark.parametrize("lost", ["first", "middle", "last"])
async def test_a_blob_without_all_of_its_chunks_is_not_there(lost):
    store = make_store()
    data = blob(100_000)
    digest = digest_of(data)
    await store.put(digest, data)
    assert await store.has([digest]) == [len(data)]
    kept = ChunkIndex.decode(await store._lists.get(key_text(digest) + ".chunks")).chunks
    gone = {"first": kept[0], "middle": kept[len(kept) // 2], "last": kept[-1]}[lost]
    await store._content.delete([gone])
    assert await find(store, digest) is None
    with pytest.raises(BlobNotFoundError, match=str(digest)):
        await read(store, digest, offset=5, length=10)
    await store.put(digest, data)
    assert same(await find(store, digest), data)


async def test_a_blob_without_its_list_is_not_there():
    store = make_store()
    digest = digest_of(data := blob(50_000))
    await store.put(digest, data)
    await store.capability(Deletes).delete([digest])
    assert await find(store, digest) is None


async def test_asking_for_a_blob_keeps_its_chunks(tmp_path):
    content = memory(max_bytes=200_000)
    store = make_store(content=content)
    wanted, other = blob(60_000), blob(60_000, seed=1)
    await store.put(digest_of(wanted), wanted)
    await store.put(digest_of(other), other)
    assert await store.has([digest_of(wanted)]) == [60_000]
    third = blob(60_000, seed=2)
    await store.put(digest_of(third), third)
    assert await store.has([digest_of(wanted), digest_of(other)]) == [60_000, None]


async def test_a_blob_larger_than_its_content_store_is_refused_and_leaves_no_list():
    store = make_store(content=memory(max_bytes=2_000_000))
    data = blob(5_000_000)
    with pytest.raises(ExhaustedError):
        await store.write(digest_of(data), BytesReader(data))
    assert await find(store, digest_of(data)) is None


def wrong_lists(right):
    yield b""
    yield right[:-1]
    yield right + b"x"
    yield right[:-40]
    yield struct.pack("<Q", 1 << 63) + right[8:]
    yield os.urandom(len(right))
    for at in range(0, len(right), 5):
        yield right[:at] + bytes([right[at] ^ 4]) + right[at + 1 :]


async def test_a_list_that_was_changed_is_a_miss():
    store = make_store()
    digest = digest_of(data := blob(50_000))
    await store.put(digest, data)
    place = key_text(digest) + ".chunks"
    right = bytes(await store._lists.get(place))
    for wrong in wrong_lists(right):
        await store._lists.put(place, wrong)
        store._known.discard(digest)
        assert await find(store, digest) is None
    await store.put(digest, data)
    assert same(await find(store, digest), data)


class Lying(MemoryStore):
    """Changes a byte of what it gives."""

    lies = False

    async def get_many(self, keys):
        found = await super().get_many(keys)
        return [bytes([data[0] ^ 1]) + bytes(data[1:]) if self.lies else data for data in found]


@pytest.mark.parametrize("deletes", [True, False])
async def test_a_chunk_that_is_wrong_is_never_given_and_mended_by_the_next_upload(deletes):
    content = Lying(MemoryOptions(), BareContext())
    if not deletes:
        content.capability = lambda kind: None
    store = make_store(content=content)
    digest = digest_of(data := blob(300_000))
    await store.put(digest, data)
    content.lies = True
    with pytest.raises(CorruptBlobError, match=str(digest)):
        await store.get(digest)
    with pytest.raises((CorruptBlobError, BlobNotFoundError)):
        await read(store, digest)
    content.lies = False
    assert await store.has([digest]) == [None]
    await store.put(digest, data)
    assert same(await find(store, digest), data)


async def test_a_chunk_that_was_stored_anew_after_it_was_read_wrong_is_not_deleted():
    class Late(Lying):
        async def get_many(self, keys):
            found = await super().get_many(keys)
            if self.lies:
                self.lies = False
                await mended()
            return found

    content = Late(MemoryOptions(), BareContext())
    store = make_store(content=content)
    digest = digest_of(data := blob(3000))
    await store.put(digest, data)

    async def mended():
        await content.delete([key for key in content._index if isinstance(key, Digest)])  # as another reader does
        await store.put(digest, data)

    content.lies = True
    with pytest.raises(CorruptBlobError, match=str(digest)):
        await store.get(digest)
    assert await store.has([digest]) == [len(data)]
    assert same(await find(store, digest), data)


async def test_a_list_of_many_chunks_is_read_in_pieces_and_ranges():
    store = make_store(min_size=256, normal_size=300, max_size=1024)
    digest = digest_of(data := blob(1_000_000))
    await store.put(digest, data)
    chance = random.Random(3)
    for _ in range(30):
        offset, length = chance.randrange(len(data)), chance.randrange(CHUNK)
        assert same(await read(store, digest, offset=offset, length=length), data[offset : offset + length])


@pytest.mark.parametrize(("at_once", "window"), [(1, 1), (2, 1), (7, 3), (10, 5)])
async def test_a_reader_holds_no_more_chunks_than_it_may(at_once, window):
    context = BareContext()
    content = Counting(MemoryOptions(), BareContext())
    store = make_store(context, content=content, max_concurrent_fetch_per_get=at_once)
    async with started(store, context):
        digest = digest_of(data := blob(200_000))
        await store.put(digest, data)
        assert same(await read(store, digest), data)
        assert max(content.asked) == window
        content.asked.clear()
        await read(store, digest, offset=100_000, length=10)
        assert content.asked == [1]


async def test_the_next_chunks_are_fetched_while_the_ones_before_are_read():
    context = BareContext()
    content = Counting(MemoryOptions(), BareContext())
    store = make_store(context, content=content, max_concurrent_fetch_per_get=4)
    async with started(store, context):
        digest = digest_of(data := blob(300_000))
        await store.put(digest, data)
        async with store.open(digest) as reader:
            await trio.testing.wait_all_tasks_blocked()
            assert content.asked == [2, 2], "one window to be read, one ahead"
            got = bytearray()
            while parts := await reader.receive_parts(999):
                got += b"".join(parts)
            assert same(got, data)


async def test_what_goes_wrong_ahead_is_raised_where_it_is_read_and_whoever_leaves_leaves_nothing():
    context = BareContext()
    content = Counting(MemoryOptions(), BareContext())
    store = make_store(context, content=content, max_concurrent_fetch_per_get=4)
    digest = digest_of(data := blob(300_000))
    async with started(store, context):
        await store.put(digest, data)
        got = bytearray()
        with pytest.raises(UnavailableError, match="away"):
            async with store.open(digest) as reader:
                content.error = UnavailableError("away")
                while parts := await reader.receive_parts(999):
                    got += b"".join(parts)
        assert 0 < len(got) < len(data)
        assert same(got, data[: len(got)])
        content.error, content.blocked = None, trio.Event()
        content.asked.clear()
        with pytest.raises(ZeroDivisionError):
            with trio.fail_after(20):
                async with store.open(digest) as reader:
                    raise ZeroDivisionError
        await trio.testing.wait_all_tasks_blocked()
        assert not store._ahead._nursery.child_tasks


class Counting(MemoryStore):
    """Notes how many it is asked for at once; fails, or waits from the second question on, where it is told so."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = []
        self.error = None
        self.blocked = None

    async def get_many(self, keys):
        self.asked.append(len(keys))
        if self.error is not None:
            raise self.error
        if self.blocked is not None and len(self.asked) > 1:
            await self.blocked.wait()
        return await super().get_many(keys)


@pytest.mark.parametrize(
    "sizes",
    [
        {"min_size": 100}, {"min_size": 5000}, {"normal_size": 16384}, {"max_size": 5 << 20},
        {"max_concurrent_fetch_per_get": 0},
    ],
)
def test_sizes_between_which_nothing_can_be_cut_are_refused(sizes):
    context = BareContext()
    stores = {"index_store": context.spec(memory()), "content_store": context.spec(memory())}
    options = DedupOptions(**stores, **{**SIZES, **sizes})
    with pytest.raises(ConfigError, match="expected"):
        options.check()


class HeldLists(MemoryStore):
    """An index store whose writing waits."""

    def __init__(self):
        super().__init__(MemoryOptions(), BareContext())
        self.asked, self.go_on = trio.Event(), trio.Event()

    async def put(self, key, data):
        self.asked.set()
        await self.go_on.wait()
        await super().put(key, data)


@pytest.mark.parametrize("size", [1000, 100_000])
async def test_an_upload_whose_chunk_is_found_wrong_meanwhile_is_not_acknowledged(size):
    lists, content = HeldLists(), memory()
    store = make_store(lists=lists, content=content)
    data = blob(size)
    digest = digest_of(data)
    lists.go_on.set()
    await store.put(digest, data)
    chunk = next(key for key in content._index if isinstance(key, type(digest)))
    content._insert(chunk, bytes(chunk.size))
    lists.asked, lists.go_on = trio.Event(), trio.Event()

    async def upload():
        with pytest.raises(UnavailableError):
            await store.put(digest, data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload)
        await lists.asked.wait()
        with pytest.raises(CorruptBlobError):
            await store.get(digest)
        lists.go_on.set()
    await store.put(digest, data)
    assert await store.get(digest) == data

"""What happens to chunks while a blob is read or comes in."""

import random

import pytest
import trio
import trio.testing

from nl.plugin import (
    MAX_WHOLE,
    BlobNotFoundError,
    BytesReader,
    CoderMemory,
    CorruptBlobError,
    Deletes,
    Digest,
    DigestFunction,
    ExhaustedError,
    ForeignKey,
    TooLargeError,
    UnavailableError,
    UploadMismatchError,
    VerifyingReader,
    digest_of,
)
from nl.stores.dedup import DedupOptions, DedupStore
from nl.stores.dedup.chunk_index import ChunkIndex
from nl.stores.dedup.chunker import buffer_bytes
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, BlockingReader, PartsReader, drain, read, started

SIZES = {"min_size": 1024, "normal_size": 4096, "max_size": 16384}
DATA = random.Random(3).randbytes(300_000)
DIGEST = digest_of(DATA)


class Content(MemoryStore):
    """Deletes or not; what is stored can be held back once it lies there."""

    def __init__(self, *, deletes=True):
        super().__init__(MemoryOptions(), BareContext())
        self.deletes, self.waits = deletes, False
        self.placed, self.go_on = trio.Event(), trio.Event()

    def capability(self, kind):
        return None if kind is Deletes and not self.deletes else super().capability(kind)

    async def put_many(self, blobs):
        outcomes = await super().put_many(blobs)
        if self.waits:
            self.placed.set()
            await self.go_on.wait()
        return outcomes


def make_store(content=None, lists=None, coder_memory=None, **options):
    context = BareContext(coder_memory=coder_memory) if coder_memory is not None else BareContext()
    lists, content = lists or MemoryStore(MemoryOptions(), BareContext()), content or Content()
    specs = {"index_store": context.spec(lists), "content_store": context.spec(content)}
    return DedupStore(DedupOptions(**specs, **{**SIZES, **options}), context)


async def opened_wrong(content):
    """A store with a blob whose first chunk was changed, and that chunk."""
    store = make_store(content)
    await store.write(DIGEST, BytesReader(DATA))
    first = next(key for key in content._index if isinstance(key, Digest))
    content._insert(first, bytes(first.size))
    return store, first


class Late(Content):
    """Answers, where it is told so, after something else has happened."""

    meanwhile = None

    async def get_many(self, keys):
        found = await super().get_many(keys)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return found


@pytest.mark.parametrize("size", [500, 300_000])
async def test_an_upload_is_refused_if_a_chunk_is_found_wrong_while_it_is_being_told_that_the_chunk_is_there(size):
    class LateToTell(Content):
        meanwhile = None

        async def has(self, keys):
            sizes = await super().has(keys)
            if self.meanwhile is not None:
                meanwhile, self.meanwhile = self.meanwhile, None
                await meanwhile()
            return sizes

    content = LateToTell()
    store, data = make_store(content), DATA[:size]
    digest = digest_of(data)
    await store.put(digest, data)
    first = next(key for key in content._index if isinstance(key, Digest))
    content._insert(first, bytes(first.size))

    async def found_wrong():
        with pytest.raises(CorruptBlobError):
            await read(store, digest)

    content.meanwhile = found_wrong
    with pytest.raises(UnavailableError, match="was found wrong"):
        await store.put(digest, data)
    assert await store.has([digest]) == [None]
    await store.put(digest, data)
    assert await read(store, digest) == data


@pytest.mark.parametrize("deletes", [True, False])
async def test_who_finds_an_old_chunk_wrong_leaves_the_one_uploaded_meanwhile(deletes):
    content = Late(deletes=deletes)
    store, first = await opened_wrong(content)

    async def mended():
        content._index.discard(first)  # as eviction does
        await store.write(DIGEST, BytesReader(DATA))

    content.meanwhile = mended
    with pytest.raises(CorruptBlobError):
        await read(store, DIGEST)
    assert await store.has([DIGEST]) == [len(DATA)]
    assert await read(store, DIGEST) == DATA


async def test_who_finds_an_old_chunk_wrong_does_not_delete_the_one_that_is_just_being_written():
    content = Late()
    store, first = await opened_wrong(content)
    async with trio.open_nursery() as nursery:

        async def being_mended():
            content._index.discard(first)
            content.waits = True
            nursery.start_soon(store.write, DIGEST, BytesReader(DATA))
            await content.placed.wait()

        content.meanwhile = being_mended
        with pytest.raises(CorruptBlobError):
            await read(store, DIGEST)
        assert await content.has([first]) == [first.size]
        content.waits = False
        content.go_on.set()


async def test_what_comes_for_the_empty_blob_is_read_to_its_end():
    """Whoever checks uploads sees what is too much then."""
    store = make_store()
    for function in DigestFunction:
        empty = digest_of(b"", function)
        with pytest.raises(UploadMismatchError):
            await store.write(empty, VerifyingReader(PartsReader([b"too", b"much"], size=-1), empty))
        source = PartsReader([b"a", b"b", b"c", b"d", b"e"])
        await store.write(empty, source)
        assert await source.receive_parts() == []


async def test_an_upload_whose_client_is_silent_makes_room_for_who_waits_for_memory(autojump_clock):
    memory = CoderMemory(300_000)
    store = make_store(coder_memory=memory)
    refused = []

    async def silent():
        try:
            await store.write(DIGEST, BlockingReader([DATA[:10]], rest=DATA[10:]))
        except ExhaustedError as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(silent)
        await trio.sleep(1)
        assert memory.used
        await store.write("other", PartsReader([DATA], size=-1))
        assert len(refused) == 1
        assert await read(store, "other") == DATA
    assert memory.used == 0


async def test_a_blob_that_is_read_takes_its_part_of_the_memory_until_it_is_closed():
    memory = CoderMemory()
    store = make_store(coder_memory=memory, min_size=64 * 1024, normal_size=256 * 1024, max_size=512 * 1024)
    for size, held in ((100_000, 100_000), (5_000_000, 4 * 1024 * 1024)):
        data = random.Random(size).randbytes(size)
        await store.write(digest_of(data), BytesReader(data))
        for _ in range(2):
            async with store.open(digest_of(data)) as reader:
                assert memory.used == held
                await drain(reader)
            assert memory.used == 0


async def test_a_list_that_goes_between_two_looks_at_it_is_one_blob_missing_and_no_other():
    class Lists(MemoryStore):
        gone = None

        async def get_many(self, keys):
            if self.gone is not None:
                self._index.discard(self.gone)
            return await super().get_many(keys)

    content, lists = Content(), Lists(MemoryOptions(), BareContext())
    store = make_store(content, lists)
    await store.write(DIGEST, BytesReader(DATA))
    (lists.gone,) = lists._index
    await store.put("other", b"other")
    store = make_store(content, lists)  # remembers nothing
    assert await store.has([DIGEST, "other"]) == [None, 5]
    with pytest.raises(BlobNotFoundError, match=f"^{DIGEST} not found in the dedup store"):
        await store.get(DIGEST)


async def test_a_blob_of_one_huge_chunk_that_is_gone_is_missing_and_not_too_large():
    """NativeLink may have cut it so."""
    lists = MemoryStore(MemoryOptions(), BareContext())
    store = make_store(lists=lists)
    digest = Digest("ab" * 32, MAX_WHOLE + 1)
    chunks = ChunkIndex([Digest("cd" * 32, digest.size, DigestFunction.BLAKE3)])
    await lists.put(ForeignKey(digest.hash, digest.size), chunks.encode())
    with pytest.raises(BlobNotFoundError, match="some of its chunks are gone"):
        await store.get(digest)


async def test_a_list_that_its_store_does_not_give_whole_is_read_in_pieces():
    class Lists(MemoryStore):
        async def get_many(self, keys):
            return [TooLargeError("streams only") for _ in keys]

        async def get(self, key):
            raise TooLargeError("streams only")

    lists = Lists(MemoryOptions(), BareContext())
    store = make_store(lists=lists)
    await store.write(DIGEST, BytesReader(DATA))
    await store.put("other", b"other")
    assert await store.has([DIGEST, "other", "none"]) == [len(DATA), 5, None]
    assert await store.get(DIGEST) == DATA


async def test_an_upload_waits_for_the_deletion_of_the_wrong_chunk_that_it_brings_anew():
    class Slow(Content):
        def __init__(self):
            super().__init__()
            self.deleting, self.goes = trio.Event(), trio.Event()

        async def delete(self, keys):
            self.deleting.set()
            await self.goes.wait()
            await super().delete(keys)

    content = Slow()
    store, first = await opened_wrong(content)
    async with trio.open_nursery() as nursery:

        async def look():
            with pytest.raises(CorruptBlobError):
                await read(store, DIGEST)

        nursery.start_soon(look)
        await content.deleting.wait()
        content._index.discard(first)  # as eviction does
        nursery.start_soon(store.put, "other", DATA[: first.size])
        await trio.testing.wait_all_tasks_blocked()
        content.goes.set()
    assert await content.has([first]) == [first.size]
    assert await read(store, DIGEST) == DATA


async def test_a_chunk_that_was_found_wrong_and_deleted_is_there_when_another_server_has_written_it():
    content, lists = Content(), MemoryStore(MemoryOptions(), BareContext())
    store, other = make_store(content, lists), make_store(content, lists)
    await store.write(DIGEST, BytesReader(DATA))
    first = next(key for key in content._index if isinstance(key, Digest))
    content._insert(first, bytes(first.size))
    with pytest.raises(CorruptBlobError):
        await read(store, DIGEST)
    assert await store.has([DIGEST]) == await content.has([first]) == [None]
    await other.write(DIGEST, BytesReader(DATA))
    assert await store.has([DIGEST]) == [len(DATA)]


async def test_a_blob_whose_only_chunk_is_gone_is_missing_by_its_own_name():
    content = Content()
    store = make_store(content)
    await store.put(digest := digest_of(b"small"), b"small")
    (chunk,) = content._index
    content._index.discard(chunk)
    for ask in (store.get, lambda key: read(store, key)):
        with pytest.raises(BlobNotFoundError, match=f"^{digest} not found .*: some of its chunks are gone"):
            await ask(digest)


async def test_an_upload_among_very_many_is_cut_in_short_batches_and_into_the_same_chunks():
    content, crowded = Content(), CoderMemory(buffer_bytes(SIZES["max_size"], batch=0))
    await make_store(content).write("ample", BytesReader(DATA))
    stored, batches, real = len(content._index), [], content.has

    async def has(keys):
        batches.append(len(keys))
        return await real(keys)

    content.has = has
    store = make_store(content, coder_memory=crowded)
    await store.write(DIGEST, BytesReader(DATA))
    assert len(batches) >= 3, "and with much memory it is one"
    assert len(content._index) == stored and store.statistics()["stored_bytes"] == 0
    assert await read(store, DIGEST) == DATA


async def test_another_list_in_place_of_one_that_is_remembered_is_what_counts():
    content, lists = Content(), MemoryStore(MemoryOptions(), BareContext())
    store = make_store(content, lists)
    await store.write(DIGEST, BytesReader(DATA))
    (place,) = lists._index
    right = ChunkIndex.decode(await lists.get(place)).chunks
    others = [Digest(f"{number:064x}", chunk.size, chunk.function) for number, chunk in enumerate(right)]
    await lists.put(place, ChunkIndex(others).encode())  # as it was cut by somebody else
    store = make_store(content, lists)
    assert await store.has([DIGEST]) == [None]
    await store.write(DIGEST, BytesReader(DATA))
    assert await store.has([DIGEST]) == [len(DATA)]


async def test_a_wrong_chunk_that_is_fetched_ahead_is_its_readers_error_and_nobody_elses():
    context, content = BareContext(), Content()
    lists = context.spec(MemoryStore(MemoryOptions(), BareContext()))
    store = DedupStore(DedupOptions(index_store=lists, content_store=context.spec(content), **SIZES), context)
    async with started(store, context):
        await store.write(DIGEST, BytesReader(DATA))
        await store.write("other", BytesReader(DATA[:-1] + b"x"))
        last = (await store._find([DIGEST]))[0].chunks[-1]
        content._insert(last, bytes(last.size))
        for _ in range(2):
            with pytest.raises((CorruptBlobError, BlobNotFoundError)):
                await read(store, DIGEST)
        assert await read(store, "other") == DATA[:-1] + b"x"
        assert store.statistics()["corrupt_chunks"] == 1


async def test_a_chunk_that_was_found_wrong_is_there_again_once_it_was_read_right():
    """Another server has mended it, or its store has."""
    content = Content(deletes=False)
    store = make_store(content)
    await store.write(DIGEST, BytesReader(DATA))
    chunks = (await store._find([DIGEST]))[0].chunks
    right = {chunk: bytes(await content.get(chunk)) for chunk in (chunks[3], chunks[5])}
    for chunk in right:
        content._insert(chunk, bytes(chunk.size))
    await assert_wrong(store)
    content._insert(chunks[3], right[chunks[3]])
    await assert_wrong(store)
    content._insert(chunks[5], right[chunks[5]])
    assert await store.has([DIGEST]) == [None]
    assert await store.get(DIGEST) == DATA
    assert await store.has([DIGEST]) == [len(DATA)]


async def assert_wrong(store):
    with pytest.raises(CorruptBlobError):
        await store.get(DIGEST)
    assert await store.has([DIGEST]) == [None]

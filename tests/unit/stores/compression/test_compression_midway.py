"""What changes in the backend between two looks at it, and what is wrong there in more than one way."""

import random
from contextlib import asynccontextmanager

import pytest
import trio

from nl.plugin import (
    MAX_WHOLE,
    ActionKey,
    BlobNotFoundError,
    CorruptBlobError,
    Encoding,
    ForeignKey,
    TooLargeError,
    digest_of,
)
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, PartsReader, drain, read
from tests.unit.stores.compression.kinds import make_store

both = pytest.mark.parametrize("name", ["lz4", "zstd"])
DATA = bytes(range(256)) * 20
ONE = digest_of(DATA)
ACTION = ActionKey(*ONE)


class Backend(MemoryStore):
    """Cannot delete, unless it is told that it can; forgets all when it is about to be opened, if it is told so."""

    def __init__(self):
        super().__init__(MemoryOptions(), BareContext())
        self.deletes = self.forgets = False

    def capability(self, kind):
        return super().capability(kind) if self.deletes else None

    def open(self, key, *, offset=0, length=None):
        if self.forgets:
            self._index.discard(key)
        return super().open(key, offset=offset, length=length)


async def test_what_this_store_has_written_goes_before_what_nativelink_has():
    """Under an action's name lie two results: the own one is what is read, so its size is the one that is told."""
    backend = Backend()
    store = make_store("lz4", backend=backend)
    await store.put(ACTION, b"the own result")
    await store.put("other", b"a result of NativeLink's")
    own, other = backend._index
    await backend.put(ForeignKey(ONE.hash, ONE.size), await backend.get(other))
    assert await store.has([ACTION]) == [len(b"the own result")]
    assert await store.get(ACTION) == b"the own result"


@both
@pytest.mark.parametrize("key", ["name", ACTION])
async def test_a_wrong_value_that_cannot_be_deleted_counts_as_missing_also_where_no_digest_tells_its_size(name, key):
    backend = Backend()
    store = make_store(name, backend=backend)
    await store.put(key, DATA)
    (place,) = backend._index
    stored = bytearray(await backend.get(place))
    stored[len(stored) // 2] ^= 1
    await backend.put(place, bytes(stored))
    if name == "zstd":
        with pytest.raises(Exception, match="have changed"):
            await store.get(key)
    else:  # an LZ4 value has no checksum: only what cannot be unpacked is known to be wrong
        await backend.put(place, b"rubbish" + bytes(stored))
        with pytest.raises(Exception, match="does not begin like"):
            await store.get(key)
    assert await store.has([key]) == [None]
    await store.put(key, DATA)
    assert await store.has([key]) == [len(DATA)]


@both
async def test_a_value_that_is_shorter_than_the_end_of_any_object_is_not_there(name):
    backend = Backend()
    store = make_store(name, backend=backend)
    await store.put(ACTION, DATA)
    (place,) = backend._index
    for rubbish in (b"", b"x"):
        await backend.put(place, rubbish)
        assert await store.has([ACTION]) == [None]


@both
async def test_a_value_that_goes_while_its_size_is_looked_up_is_not_there(name):
    backend = Backend()
    store = make_store(name, backend=backend)
    await store.put(ACTION, DATA)
    backend.forgets = True
    assert await store.has([ACTION]) == [None]


@both
async def test_what_becomes_large_is_unpacked_in_a_thread_however_small_it_lies_there(name, monkeypatch):
    store = make_store(name)
    data = bytes(MAX_WHOLE)
    await store.put(digest_of(data), data)
    hops, real = [], trio.to_thread.run_sync

    async def run_sync(*args, **kwargs):
        hops.append(args)
        return await real(*args, **kwargs)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    assert await store.get(digest_of(data)) == data
    assert len(hops) == 1


@both
async def test_an_object_that_was_found_wrong_is_there_again_once_it_was_read_right(name):
    """Another server has mended it."""
    backend = Backend()
    store, other = make_store(name, backend=backend), make_store(name, backend=backend)
    await store.put(ONE, DATA)
    (place,) = backend._index
    await backend.put(place, b"rubbish" * 10)
    with pytest.raises(CorruptBlobError):
        await store.get(ONE)
    assert await store.has([ONE]) == [None]
    await other.put(ONE, DATA)
    assert await store.get(ONE) == DATA
    assert await store.has([ONE]) == [len(DATA)]


@both
async def test_a_value_that_does_not_shrink_is_never_gathered_beyond_what_may_be_had_whole(name):
    store = make_store(name)
    for size in (MAX_WHOLE, MAX_WHOLE + 1):
        await store.put(ACTION, data := random.Random(size).randbytes(size))
        if size > MAX_WHOLE:
            with pytest.raises(TooLargeError, match=f"has {MAX_WHOLE + 1} bytes or more"):
                await store.get(ACTION)
        else:
            assert await store.get(ACTION) == data


class Unsized(Backend):
    """Does not know how large what it reads is until it has read it, as a store that unpacks."""

    @asynccontextmanager
    async def open(self, key, *, offset=0, length=None):
        async with MemoryStore.open(self, key, offset=offset, length=length) as reader:
            data = await drain(reader)
        if self.forgets:
            self._index.discard(key)
        yield PartsReader([data], size=-1)


@both
async def test_objects_whose_size_their_reader_does_not_know_are_read_and_passed_on_all_the_same(name):
    backend = Unsized()
    store = make_store(name, backend=backend)
    digest = digest_of(data := DATA * 40)
    await store.put(digest, data)
    assert await read(store, digest) == data
    assert await read(store, digest, offset=100_000, length=5) == data[100_000:100_005]
    if name == "zstd":
        async with store.open_encoded(digest, {Encoding.ZSTD}) as whole:
            frames = await drain(whole.reader)
        async with store.open_encoded(digest, {Encoding.ZSTD}, offset=9) as rest:
            assert rest.encoded_size == len(frames) and await drain(rest.reader) == frames[9:]
    backend.forgets = True
    with pytest.raises(BlobNotFoundError, match=f"^{digest} not found in the compression store"):
        await read(store, digest)

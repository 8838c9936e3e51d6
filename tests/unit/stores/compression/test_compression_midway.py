"""What changes in the backend between two looks at it, and what is wrong there in more than one way."""

import random
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from nl.blob.zstd import compress, library
from nl.plugin import (
    CHUNK,
    MAX_WHOLE,
    ActionKey,
    BlobNotFoundError,
    BytesReader,
    CoderMemory,
    CorruptBlobError,
    DigestFunction,
    Encoding,
    ExhaustedError,
    ForeignKey,
    InvalidRequestError,
    TooLargeError,
    UploadMismatchError,
    VerifyingReader,
    digest_of,
)
from nl.stores.compression.sealing import SEAL_BYTES, UnsealingReader, seal
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, BlockingReader, PartsReader, drain, read, split
from tests.unit.stores.compression.kinds import make_store

both = pytest.mark.parametrize("name", ["lz4", "zstd"])
DATA = bytes(range(256)) * 20
ONE = digest_of(DATA)
ACTION = ActionKey(*ONE)
LARGE_DATA = random.Random(1).randbytes(100_000) * 2
LARGE = digest_of(LARGE_DATA)


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
@pytest.mark.parametrize("length", [None, LARGE.size - 1], ids=["whole", "all but a byte"])
async def test_a_large_object_that_was_found_wrong_is_there_again_once_it_was_streamed_right(name, length):
    backend = Backend()
    store, place = await opened_wrong(name, backend)
    with pytest.raises(CorruptBlobError):
        await read(store, LARGE)
    with pytest.raises(CorruptBlobError):
        await read(store, LARGE)
    assert await store.has([LARGE]) == [None], "nor is it there after having been read wrong again"
    await make_store(name, backend=backend).put(LARGE, LARGE_DATA)
    async with store.open(LARGE) as reader:
        await reader.receive_parts(100)
    assert await store.has([LARGE]) == [None], "who leaves halfway has not seen it all"
    assert await read(store, LARGE, length=length) == LARGE_DATA[:length]
    assert await store.has([LARGE]) == [LARGE.size]


@both
async def test_an_object_that_was_found_wrong_and_deleted_is_there_when_another_server_has_written_it(name):
    backend = Backend()
    backend.deletes = True
    store, place = await opened_wrong(name, backend)
    with pytest.raises(CorruptBlobError):
        await read(store, LARGE)
    assert await store.has([LARGE]) == await backend.has([place]) == [None]
    await make_store(name, backend=backend).put(LARGE, LARGE_DATA)
    assert await store.has([LARGE]) == [LARGE.size]


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


async def opened_wrong(name, backend):
    """A store with a large blob, and the same after its object was changed."""
    store = make_store(name, backend=backend)
    await store.put(LARGE, LARGE_DATA)
    (place,) = backend._index
    wrong = bytearray(await backend.get(place))
    wrong[len(wrong) // 2] ^= 1
    await backend.put(place, bytes(wrong))
    return store, place


@both
@pytest.mark.parametrize("deletes", [True, False])
@pytest.mark.parametrize("way", ["put", "put_many", "write", "write_encoded"])
async def test_who_streams_an_old_object_and_finds_it_wrong_leaves_the_one_uploaded_meanwhile(name, deletes, way):
    backend = Backend()
    backend.deletes = deletes
    store, _ = await opened_wrong(name, backend)
    with pytest.raises(CorruptBlobError):
        async with store.open(LARGE) as reader:
            if way == "put":
                await store.put(LARGE, LARGE_DATA)
            elif way == "put_many":
                assert await store.put_many([(LARGE, LARGE_DATA)]) == [None]
            elif way == "write" or name == "lz4":
                await store.write(LARGE, BytesReader(LARGE_DATA))
            else:
                await store.write_encoded(LARGE, BytesReader(compress(LARGE_DATA)), Encoding.ZSTD)
            await drain(reader)
    assert await store.has([LARGE]) == [LARGE.size]
    assert await read(store, LARGE) == LARGE_DATA


@both
async def test_a_backend_that_does_not_answer_holds_nobody_up_who_has_found_its_object_wrong(name, autojump_clock):
    class Hanging(Backend):
        def __init__(self):
            super().__init__()
            self.asked, self.go_on = trio.Event(), trio.Event()

        async def delete(self, keys):
            self.asked.set()
            await self.go_on.wait()

    backend, ended = Hanging(), []
    backend.deletes = True
    store, _ = await opened_wrong(name, backend)

    async def look():
        with pytest.raises(CorruptBlobError):
            await read(store, LARGE)
        ended.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await backend.asked.wait()  # what runs in threads is over, so the clock stands still until here
        began = trio.current_time()
        await trio.sleep(600)
        backend.go_on.set()
    assert 1 <= ended[0] - began <= 60, "it is tried for some seconds"
    assert await store.has([LARGE]) == [None]


@both
async def test_what_comes_for_the_empty_blob_is_read_to_its_end(name):
    """Whoever checks uploads sees what is too much then."""
    store = make_store(name)
    for function in DigestFunction:
        empty = digest_of(b"", function)
        for write in (store.write, partial(store.write_encoded, encoding=Encoding.ZSTD)):
            with pytest.raises(UploadMismatchError):
                await write(empty, VerifyingReader(PartsReader([b"too", b"much"], size=-1), empty))
            source = PartsReader([b"a", b"b", b"c", b"d", b"e"])
            await write(empty, source)
            assert await source.receive_parts() == []
    assert not list(store.backend._index), "and nothing is kept of it"


@both
async def test_an_upload_whose_client_is_silent_makes_room_for_who_waits_for_memory(name, autojump_clock):
    likes = make_store(name)._form.encoder_bytes(-1)[-1]
    memory = CoderMemory(likes)
    store = make_store(name, BareContext(coder_memory=memory))
    refused = []

    async def silent():
        try:
            await store.write(LARGE, BlockingReader([LARGE_DATA[:10]], rest=LARGE_DATA[10:]))
        except ExhaustedError as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(silent)
        await trio.sleep(1)
        assert memory.used
        await store.write("other", PartsReader([LARGE_DATA], size=-1))
        assert len(refused) == 1
        assert await read(store, "other") == LARGE_DATA
    assert memory.used == 0


class Streamed(Backend):
    """Notes which keys came whole."""

    def __init__(self):
        super().__init__()
        self.whole = []

    async def put(self, key, data):
        self.whole.append(key)
        await super().put(key, data)


@both
async def test_an_upload_that_does_not_say_how_large_it_is_is_never_gathered(name):
    backend = Streamed()
    store = make_store(name, backend=backend)
    await store.write(LARGE, PartsReader(split(LARGE_DATA, 999), size=-1))
    assert await read(store, LARGE) == LARGE_DATA
    if name == "zstd":
        await store.write_encoded(ONE, PartsReader(split(compress(DATA), 99), size=-1), Encoding.ZSTD)
        assert await store.get(ONE) == DATA
    assert not backend.whole
    await store.write(ONE, BytesReader(DATA))
    assert len(backend.whole) == 1


async def test_what_goes_out_plain_says_how_large_all_of_it_is():
    store = make_store("zstd")
    await store.put(LARGE, LARGE_DATA)
    await store.put("name", LARGE_DATA)
    for key, size in ((LARGE, LARGE.size), ("name", -1), (digest_of(b""), 0)):
        for offset in (0, 9 if size else 0):
            async with store.open_encoded(key, {Encoding.IDENTITY}, offset=offset) as opened:
                assert (opened.encoding, opened.encoded_size) == (Encoding.IDENTITY, size)
                assert await drain(opened.reader) == (LARGE_DATA if size else b"")[offset:]


async def test_the_object_of_another_blob_is_not_passed_out():
    """Its seal is right, and says what it is: not what was asked for."""
    store = make_store("zstd")
    await store.put(ONE, DATA)
    (place,) = store.backend._index
    await store.put(LARGE, LARGE_DATA)
    await store.backend.put(place, await store.backend.get(f"{LARGE}.zst"))
    with pytest.raises(CorruptBlobError, match="its digest"):
        async with store.open_encoded(ONE, {Encoding.ZSTD}) as opened:
            await drain(opened.reader)
    assert await store.has([ONE]) == [None]


async def test_frames_that_are_none_are_the_fault_of_who_brings_them_where_they_are_unpacked_at_once():
    store = make_store("zstd")
    with pytest.raises(InvalidRequestError, match="zstd frame"):
        await store.write_encoded("name", BytesReader(b"no frame"), Encoding.ZSTD)
    assert await store.has(["name"]) == [None]


@both
async def test_who_finds_an_old_object_wrong_does_not_delete_the_one_that_is_just_being_written(name):
    class Slow(Backend):
        def __init__(self):
            super().__init__()
            self.placed, self.go_on, self.waits = trio.Event(), trio.Event(), False

        async def put(self, key, data):
            await super().put(key, data)
            if self.waits:
                self.placed.set()
                await self.go_on.wait()

    backend = Slow()
    backend.deletes = True
    store, place = await opened_wrong(name, backend)
    async with trio.open_nursery() as nursery:
        with pytest.raises(CorruptBlobError):
            async with store.open(LARGE) as reader:
                backend.waits = True
                nursery.start_soon(store.put, LARGE, LARGE_DATA)
                await backend.placed.wait()
                await drain(reader)
        assert await backend.has([place]) != [None]
        backend.go_on.set()
    assert await store.has([LARGE]) == [LARGE.size]
    assert await read(store, LARGE) == LARGE_DATA


@pytest.mark.parametrize("data", [DATA, LARGE_DATA], ids=["small", "large"])
@pytest.mark.parametrize("change", [-1, 1])
async def test_frames_that_decode_to_another_size_than_they_were_brought_for_are_never_given(data, change):
    store = make_store("zstd")
    digest = digest_of(data)
    other = data[:change] if change < 0 else data + b"x"
    for ask in (store.get, partial(read, store), partial(read, store, offset=5)):
        await store.write_encoded(digest, BytesReader(compress(other)), Encoding.ZSTD)
        with pytest.raises(CorruptBlobError):
            await ask(digest)
        assert await store.has([digest]) == [None]


async def test_a_streamed_frame_says_how_large_its_content_is_if_that_is_known():
    store = make_store("zstd")
    for size, told in ((LARGE.size, LARGE.size), (-1, None)):
        await store.write(LARGE, PartsReader(split(LARGE_DATA, 9999), size=size))
        stored = bytes(await store.backend.get(f"{LARGE}.zst"))
        assert library().get_frame_info(stored).decompressed_size == told


@pytest.mark.parametrize("most", [7, 1000, CHUNK])
async def test_a_backend_is_told_how_much_comes_with_the_seal_and_takes_it_in_any_pieces(most):
    class Careful(Backend):
        async def write(self, key, reader):
            data = await drain(reader, most)
            assert reader.size in (-1, len(data))
            sizes.append(reader.size)
            await self.put(key, data)

    sizes, frames = [], compress(LARGE_DATA)
    store = make_store("zstd", backend=Careful())
    for size in (len(frames), -1):
        await store.write_encoded(LARGE, PartsReader(split(frames, 9999), size=size), Encoding.ZSTD)
        assert await read(store, LARGE) == LARGE_DATA
    assert sizes == [len(frames) + SEAL_BYTES, -1]


async def test_an_object_of_another_length_than_was_said_is_never_given_to_its_end():
    frames = compress(DATA)
    whole = seal(frames, len(DATA))
    for data, problem in (
        (whole[: len(frames) - 5], "ends before"), (whole + b"x", "longer"), (whole[:-1], "seal"), (whole[:-9], "seal"),
    ):
        source = PartsReader([data], size=-1)
        reader = UnsealingReader(
            source, stored_size=len(whole), decoded_size=len(DATA), failure=CorruptBlobError
        )
        with pytest.raises(CorruptBlobError, match=problem):
            await drain(reader)
    with pytest.raises(CorruptBlobError, match="too short"):
        UnsealingReader(source, stored_size=10, decoded_size=-1, failure=CorruptBlobError)

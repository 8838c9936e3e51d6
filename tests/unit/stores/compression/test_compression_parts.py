"""The parts of a compression store by themselves: ranges, news, bounds, what is counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nl.config.types import EvictionPolicy
from nl.errors import ConfigError
from nl.plugin import (
    CHUNK,
    MAX_WHOLE,
    SMALL,
    ActionKey,
    BlobNotFoundError,
    BlobSizeLimit,
    BytesReader,
    CorruptBlobError,
    Deletes,
    Digest,
    DigestFunction,
    EncodedBlobs,
    Encoding,
    ForeignKey,
    InvalidRequestError,
    LocalFiles,
    RangeError,
    Reader,
    Removals,
    TooLargeError,
    digest_of,
    key_text,
)
from nl.stores.compression import store as module
from nl.stores.compression.options import MAX_BLOCK, CompressionAlgorithm, Lz4Options, ZstdOptions
from nl.stores.compression.ranges import open_range
from nl.stores.compression.removals import DecodedRemovals
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, PartsReader, drain, read, split

from .kinds import make_store

DATA = bytes(range(256)) * 20
ONE = digest_of(DATA)
both = pytest.mark.parametrize("name", ["lz4", "zstd"])


class Backend(MemoryStore):
    """Deletes or not; notes what it is asked."""

    def __init__(self, *, deletes=True):
        super().__init__(MemoryOptions(), BareContext())
        self.deletes = deletes
        self.asked, self.deleted, self.touched = [], [], []

    def capability(self, kind):
        return None if kind is Deletes and not self.deletes else super().capability(kind)

    async def has(self, keys):
        self.asked.append(list(keys))
        return await super().has(keys)

    async def touch(self, keys):
        self.touched += keys

    async def delete(self, keys):
        self.deleted += keys
        await super().delete(keys)


# --- ranges


class Decoded(Reader):
    """Hands out objects of their own, as decoders do."""

    def __init__(self, parts, *, size):
        self.left, self.size = list(parts), size

    async def receive_parts(self, max_bytes=CHUNK):
        if not self.left:
            return ()
        part = self.left.pop(0)
        if len(part) > max_bytes:
            self.left.insert(0, part[max_bytes:])
        return (part[:max_bytes],)


@given(
    data=st.binary(max_size=40), offset=st.integers(0, 50), length=st.none() | st.integers(0, 50),
    step=st.integers(1, 9), most=st.integers(1, 9), known=st.booleans(),
)  # fmt: skip
async def test_a_range_is_pythons_and_its_source_is_read_to_the_end(data, offset, length, step, most, known):
    source = Decoded(split(data, step), size=len(data) if known else -1)
    if offset > len(data):
        with pytest.raises(RangeError):
            await open_range(source, offset=offset, length=length)
        return
    reader = await open_range(source, offset=offset, length=length)
    wanted = data[offset:] if length is None else data[offset : offset + length]
    assert reader.size == (len(wanted) if known else -1)
    got = bytearray()
    while parts := await reader.receive_parts(most):
        assert sum(map(len, parts)) <= most
        got += b"".join(parts)
    assert got == wanted
    if wanted:
        assert not source.left, "what is behind the range is checked, too"


@pytest.mark.parametrize("size", [10, -1])
async def test_nonsense_is_refused_whether_the_size_is_known_or_not(size):
    for offset, length, error in ((-1, None, RangeError), (0, -1, InvalidRequestError), (11, None, RangeError)):
        with pytest.raises(error):
            await open_range(PartsReader([bytes(10)], size=size), offset=offset, length=length)
    reader = await open_range(PartsReader([bytes(10)], size=size), offset=10, length=None)
    assert not await reader.receive_parts()


# --- news


class News:
    def __init__(self, *answers):
        self.answers = list(answers)

    def watch_removals(self):
        return self

    def take(self):
        return self.answers.pop(0)


def test_news_come_in_the_keys_of_the_store_in_front():
    blake3 = Digest("cd" * 32, 7, DigestFunction.BLAKE3)
    keys = [ONE, ActionKey(*ONE), blake3, ActionKey(*blake3)]
    places = [f"{key_text(key)}.zst" for key in keys]
    feed = DecodedRemovals(
        News(places, (), None, [ForeignKey(*ONE[:2]), ONE, "other", f"{key_text(ONE)}.lz4"], ["~name.zst"]), ".zst"
    ).watch_removals()
    assert feed.take() == keys
    assert feed.take() == ()
    assert feed.take() is None
    assert feed.take() == [ONE, ActionKey(*ONE)], "what is not of this store is nobody's business"
    assert feed.take() is None, "names cannot always be told"


# --- the store


@both
async def test_what_it_can_do_is_what_its_backend_can_and_its_form(name):
    for deletes in (True, False):
        store = make_store(name, backend=Backend(deletes=deletes))
        assert (store.capability(Deletes) is store) is deletes
        assert (store.capability(EncodedBlobs) is store) is (name == "zstd")
        assert isinstance(store.capability(Removals), DecodedRemovals)
        assert store.capability(LocalFiles) is None and store.capability(BlobSizeLimit) is None
    ageing = MemoryStore(MemoryOptions(eviction_policy=EvictionPolicy(max_seconds=9)), BareContext())
    assert make_store(name, backend=ageing).capability(Removals) is None


@both
async def test_what_was_stored_found_wrong_and_passed_on_is_counted(name):
    backend = Backend()
    store = make_store(name, backend=backend)
    nothing = {"stored_blobs": 0, "corrupt_blobs": 0, "passed_in_packed": 0, "passed_out_packed": 0}
    assert store.statistics() == nothing
    await store.put(ONE, DATA)
    await store.write(digest_of(DATA[1:]), PartsReader(split(DATA[1:], 999), size=-1))
    await store.put_many([(digest_of(DATA[2:]), DATA[2:]), (digest_of(b""), b"")])
    assert store.statistics() == nothing | {"stored_blobs": 3}
    if name == "zstd":
        async with store.open_encoded(ONE, {Encoding.ZSTD}) as found:
            packed = await drain(found.reader)
        await store.write_encoded(ONE, BytesReader(packed), Encoding.ZSTD)
        async with store.open_encoded(ONE, {Encoding.IDENTITY}) as found:
            assert (found.encoding, found.encoded_size) == (Encoding.IDENTITY, len(DATA))
        assert store.statistics() == nothing | {"stored_blobs": 4, "passed_in_packed": 1, "passed_out_packed": 1}
    place = store._key_of(ONE)
    await backend.put(place, b"rubbish" * 10)
    for wrong in (1, 2):
        with pytest.raises((CorruptBlobError, BlobNotFoundError)):
            await store.get(ONE)
        assert store.statistics()["corrupt_blobs"] == 1, f"at the attempt {wrong}"
    assert backend.deleted == [place]


@both
async def test_wrong_objects_that_cannot_be_deleted_are_remembered_within_a_bound(name, monkeypatch):
    monkeypatch.setattr(module, "_MAX_SPOILED", 2)
    backend = Backend(deletes=False)
    store = make_store(name, backend=backend)
    digests = [digest_of(DATA[number:]) for number in range(3)]
    for number, digest in enumerate(digests):
        await store.put(digest, DATA[number:])
        await backend.put(store._key_of(digest), b"rubbish" * 10)
        with pytest.raises(CorruptBlobError, match=f"{digest}: what the compression store .* has stored is wrong"):
            await store.get(digest)
    assert await store.has(digests) == [len(DATA), None, None]
    await store.put(digests[2], DATA[2:])
    assert await store.has(digests) == [len(DATA), None, len(DATA) - 2]


@both
async def test_touching_and_deleting_are_told_of_all_places(name):
    backend = Backend()
    store = make_store(name, backend=backend)
    places = [*store._places_of(ONE), *store._places_of("name")]
    await store.touch([ONE, "name"])
    await store.delete([ONE, "name"])
    assert backend.touched == backend.deleted == places
    foreign = [place for place in places if isinstance(place, ForeignKey)]
    assert len(foreign) == (1 if name == "lz4" else 0)


@both
async def test_a_question_about_many_keys_is_one_trip(name):
    backend = Backend()
    store = make_store(name, backend=backend)
    await store.put(ONE, DATA)
    backend.asked.clear()
    assert await store.has([ONE, digest_of(b"none"), digest_of(b"")]) == [len(DATA), None, 0]
    assert len(backend.asked) == 1


@both
async def test_what_may_be_had_whole_is_bounded_to_the_byte(name):
    store = make_store(name)
    exact, large = bytes(MAX_WHOLE), bytes(MAX_WHOLE + 1)
    for data in (exact, large):
        await store.put(digest_of(data), data)
        await store.put(f"{len(data)}", data)
    for key in (digest_of(exact), f"{len(exact)}"):
        assert len(await store.get(key)) == MAX_WHOLE
    for key in (digest_of(large), f"{len(large)}"):
        with pytest.raises(TooLargeError, match=f"has {MAX_WHOLE + 1} bytes or more"):
            await store.get(key)
        [error] = await store.get_many([key])
        assert isinstance(error, TooLargeError)
    with pytest.raises(BlobNotFoundError):
        await store.get(Digest("ab" * 32, MAX_WHOLE + 1))


@both
@pytest.mark.parametrize("size", [SMALL, SMALL + 1])
async def test_blobs_and_values_of_either_side_of_small_come_back(name, size):
    data = (DATA * 20)[:size]
    store = make_store(name)
    for key in (digest_of(data), "name", ActionKey(*digest_of(data))):
        await store.write(key, BytesReader(data))
        assert await store.get(key) == data
        assert await read(store, key, offset=size - 5) == data[-5:]
        assert await store.has([key]) == [size]


@pytest.mark.parametrize(
    ("options", "is_right"),
    [
        (Lz4Options(block_size=1024), True), (Lz4Options(block_size=1023), False),
        (Lz4Options(block_size=MAX_BLOCK), True),
        (Lz4Options(block_size=MAX_BLOCK + 1), False), (Lz4Options(max_decode_block_size=MAX_BLOCK), True),
        (Lz4Options(max_decode_block_size=MAX_BLOCK + 1), False), (Lz4Options(max_decode_block_size=64 * 1024), True),
        (Lz4Options(max_decode_block_size=64 * 1024 - 1), False), (Lz4Options(max_decode_block_size=0), True),
        (ZstdOptions(level=1), True), (ZstdOptions(level=0), False), (ZstdOptions(level=19), True),
        (ZstdOptions(level=20), False), (CompressionAlgorithm(), False), (CompressionAlgorithm(lz4=Lz4Options()), True),
        (CompressionAlgorithm(zstd=ZstdOptions()), True),
        (CompressionAlgorithm(lz4=Lz4Options(), zstd=ZstdOptions()), False),
    ],
    ids=str,
)  # fmt: skip
def test_the_bounds_of_the_options_are_exact(options, is_right):
    if is_right:
        options.check()
    else:
        with pytest.raises(ConfigError):
            options.check()

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
    CodingError,
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
    UnavailableError,
    digest_of,
    key_text,
)
from nl.stores.compression import store as module
from nl.stores.compression.formats import Lz4Form, ZstdForm
from nl.stores.compression.lz4_format import Lz4Decoder
from nl.stores.compression.options import MAX_BLOCK, CompressionAlgorithm, Lz4Options, ZstdOptions
from nl.stores.compression.ranges import open_range
from nl.stores.compression.removals import DecodedRemovals
from nl.stores.compression.sealing import SEAL_BYTES, decoded_size, seal, unseal
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, FaultyStore, PartsReader, away, drain, read, split

from .kinds import make_store
from .test_lz4_format import by_hand

DATA = bytes(range(256)) * 20
ONE = digest_of(DATA)
MIB = 1024 * 1024
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
        with pytest.raises(TooLargeError, match=f"has {MAX_WHOLE + 1} bytes( or more)?; more than {MAX_WHOLE} "):
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


# --- what lies in stores


def test_what_was_sealed_once_is_read_for_ever():
    sealed = bytes.fromhex(
        "6672616d6573 5e2a4d18 1c000000 6e6c3031 0600000000000000 b70dfb06f5b612310e9acc3d83c84e3f"
    )
    assert seal(b"frames", 6) == sealed
    assert unseal(sealed) == (b"frames", 6)
    assert decoded_size(sealed[-SEAL_BYTES:]) == 6 and SEAL_BYTES == 36


@both
async def test_objects_have_names_of_their_own_by_function_and_kind(name):
    backend = Backend()
    store = make_store(name, backend=backend)
    suffix = {"lz4": ".lz4", "zstd": ".zst"}[name]
    blake3 = digest_of(DATA, DigestFunction.BLAKE3)
    for key in (ONE, blake3, ActionKey(*ONE), ActionKey(*blake3), "a name"):
        await store.put(key, DATA)
        assert await store.has([key]) == [len(DATA)]
    assert list(backend._index) == [
        f"{ONE}{suffix}", f"{blake3}.blake3{suffix}", f"{ONE}.ac{suffix}", f"{blake3}.blake3.ac{suffix}",
        f"~a%20name{suffix}",
    ]  # fmt: skip


# --- forms


@pytest.mark.parametrize(("level", "mib"), [(1, 3), (4, 3), (5, 6), (8, 6), (9, 41), (12, 41), (13, 82), (19, 82)])
def test_what_a_zstd_coder_takes_depends_on_its_level_and_on_how_much_there_is(level, mib):
    form = ZstdForm(level)
    least, crowded = form.encoder_bytes(0)  # a context, and what is read and handed out in batches
    assert MIB < least == crowded < 4 * MIB
    for size, more in ((-1, (mib - 1) * MIB), (1 << 40, (mib - 1) * MIB), (10_000, 200_000)):
        assert form.encoder_bytes(size) == (least + more, crowded)
    base = form.decoder_bytes(0)
    assert [form.decoder_bytes(size) - base for size in (-1, 10_000, 1 << 40)] == [8 * MIB, 10_000, 8 * MIB]


def test_an_lz4_coder_takes_a_block_on_either_side():
    form = Lz4Form(Lz4Options(block_size=MIB, max_decode_block_size=2 * MIB))
    (least, crowded), batches = form.encoder_bytes(0), Lz4Decoder.batch + Lz4Decoder.output
    assert 0 < least == crowded < 4 * MIB and batches == 1.5 * MIB
    for size, block, small, decoded in (
        (-1, MIB, 65_536, 2 * MIB), (10 * MIB, MIB, 65_536, 2 * MIB), (100_000, 100_000, 65_536, 100_000),
        (10, 10, 10, 10),
    ):  # fmt: skip
        assert form.encoder_bytes(size) == (least + 2 * block, crowded + 2 * small)
        assert form.decoder_bytes(size) - 2 * decoded == (min(2 * size + CHUNK, batches) if size >= 0 else batches)


@pytest.mark.parametrize("form", [Lz4Form(Lz4Options()), ZstdForm(3)], ids=["lz4", "zstd"])
def test_a_value_without_a_digest_is_unpacked_up_to_a_size_and_its_tail_says_how_large_it_is(form):
    packed = form.encode(DATA)
    assert form.decode(packed, None, most=len(DATA)) == DATA
    assert form.decode(packed, None, most=len(DATA) - 1) is None
    assert form.decoded_size(packed[-form.tail_bytes :]) == len(DATA)
    for tail in (packed[-form.tail_bytes + 1 :], b"", packed[-form.tail_bytes - 1 :], bytes(form.tail_bytes)):
        with pytest.raises(CodingError):
            form.decoded_size(tail)


@pytest.mark.parametrize("form", [Lz4Form(Lz4Options()), ZstdForm(3)], ids=["lz4", "zstd"])
@pytest.mark.parametrize("function", list(DigestFunction))
def test_a_blob_is_compared_with_its_digest_by_its_own_function(form, function):
    packed = form.encode(DATA)
    assert form.decode(packed, digest_of(DATA, function), most=MAX_WHOLE) == DATA
    for size in (len(DATA) - 1, len(DATA) + 1):
        with pytest.raises(CodingError):
            form.decode(packed, Digest("ab" * 32, size, function), most=MAX_WHOLE)
    if form.suffix == ".lz4":  # of what has a seal it says that it was compared when it was written
        unsealed = by_hand(DATA, 10)
        assert form.decode(unsealed, digest_of(DATA, function), most=MAX_WHOLE) == DATA
        with pytest.raises(CodingError, match=f"has the {function.name} hash {digest_of(DATA, function).hash}"):
            form.decode(unsealed, Digest("ab" * 32, len(DATA), function), most=MAX_WHOLE)


@pytest.mark.parametrize("function", list(DigestFunction))
async def test_a_stream_without_a_seal_is_compared_with_its_digest_by_its_own_function(function):
    store = make_store("lz4")
    data = DATA * 20
    digest = digest_of(data, function)
    wrong = Digest("ab" * 32, len(data), function)
    for key in (digest, wrong):
        await store.backend.put(ForeignKey(key.hash, key.size), by_hand(data, 10))
    assert await read(store, digest) == data
    with pytest.raises(CorruptBlobError, match=f"{wrong}: .* {function.name} hash {digest.hash}"):
        await read(store, wrong)


# --- errors of the backend


@both
async def test_a_backend_that_is_away_is_neither_a_miss_nor_a_wrong_object(name):
    backend = FaultyStore(MemoryStore(MemoryOptions(), BareContext()))
    store = make_store(name, backend=backend)
    large = DATA * 20
    for key, data in ((ONE, DATA), (digest_of(large), large)):
        await store.put(key, data)
        backend.plan("get", away())
        backend.plan("open", away())
        with pytest.raises(UnavailableError):
            await store.get(key)
        backend.heal()
        backend.plan("open", away(after_bytes=20))
        backend.plan("get", away())
        with pytest.raises(UnavailableError):
            await read(store, key)
        backend.heal()
        backend.plan("get", away(), away())
        assert isinstance((await store.get_many([key]))[0], UnavailableError)
        backend.heal()
        assert await store.has([key]) == [len(data)]
        assert await read(store, key) == data
    backend.plan("has", away())
    with pytest.raises(UnavailableError):
        await store.has([ONE])
    assert store.statistics()["corrupt_blobs"] == 0


@both
async def test_an_upload_that_the_backend_refuses_is_not_counted_and_makes_nothing_right(name):
    backend = FaultyStore(Backend(deletes=False))
    store = make_store(name, backend=backend)
    large = DATA * 20
    for key, data in ((ONE, DATA), (digest_of(large), large)):
        await backend.put(store._key_of(key), b"rubbish" * 10)
        with pytest.raises(CorruptBlobError):
            await read(store, key)
        backend.plan("put", away(), away())
        backend.plan("write", away())
        with pytest.raises(UnavailableError):
            await store.put(key, data)
        assert isinstance((await store.put_many([(key, data)]))[0], UnavailableError)
        backend.heal()
        backend.plan("put", away())
        backend.plan("write", away())
        with pytest.raises(UnavailableError):
            await store.write(key, BytesReader(data))
        backend.heal()
        assert store.statistics()["stored_blobs"] == 0
        assert await store.has([key]) == [None], "it is as wrong as before"
    assert store._writes.may_delete(store._key_of(ONE))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (Lz4Options(block_size=1), "block_size: 1 bytes; expected 1024 to 67108864"),
        (
            Lz4Options(max_decode_block_size=MAX_BLOCK + 1),
            "max_decode_block_size: 67108865; expected at most 67108864",
        ),
        (
            Lz4Options(max_decode_block_size=5),
            "max_decode_block_size: 5 is less than block_size; expected at least 65536",
        ),
        (ZstdOptions(level=20), "level: 20; expected 1 to 19"),
        (CompressionAlgorithm(), "names none of lz4 and zstd, or both; expected one"),
    ],
    ids=str,
)
def test_a_wrong_option_is_one_line_that_says_what_was_expected(options, text):
    with pytest.raises(ConfigError) as caught:
        options.check()
    assert str(caught.value) == text


def test_what_nobody_configures_is_the_usual():
    lz4, zstd = Lz4Options(), ZstdOptions()
    assert (lz4.block_size, lz4.max_decode_block_size, lz4.find_nativelink_blobs, zstd.level) == (65536, 0, True, 3)

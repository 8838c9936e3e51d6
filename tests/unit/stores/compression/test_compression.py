import os
import random

import pytest
import trio
import trio.testing

from nl.blob.zstd import ZstdEncoder, compress, decompress
from nl.config.types import EvictionPolicy
from nl.plugin import (
    CHUNK,
    MAX_WHOLE,
    SMALL,
    ActionKey,
    BlobNotFoundError,
    BytesReader,
    CoderMemory,
    CorruptBlobError,
    Deletes,
    Digest,
    DigestFunction,
    EncodedBlobs,
    Encoding,
    Removals,
    digest_of,
    key_text,
)
from nl.stores.compression.formats import ZstdForm
from nl.stores.compression.options import CompressionAlgorithm, Lz4Options, ZstdOptions
from nl.stores.filesystem import FilesystemOptions, FilesystemStore
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import (
    BareContext,
    BlockingReader,
    PartsReader,
    StoreConformance,
    drain,
    find,
    make_blob,
    read,
    split,
    started,
)
from nl.testing.observing import same
from tests.unit.stores.compression.kinds import ALGORITHMS, make_store


async def test_deleting_leaves_a_blob_that_is_not_compressed_where_it_is(tmp_path):
    context = BareContext()
    options = FilesystemOptions(content_path=str(tmp_path / "content"), temp_path=str(tmp_path / "temp"))
    backend = FilesystemStore(options, context)
    store = make_store("lz4", context, backend)
    async with started(backend), started(store):
        plain, packed = digest_of(make_blob(5000)), digest_of(make_blob(6000))
        await backend.put(plain, make_blob(5000))
        await backend.put(packed, make_blob(6000))
        (tmp_path / "content" / "d" / str(packed)).write_bytes(b"as NativeLink has compressed it")
        await store.put(plain, make_blob(5000))
        await store.put(ActionKey(*plain), b"result")
        await store.capability(Deletes).delete([plain, ActionKey(*plain), packed])
        assert await store.has([plain, ActionKey(*plain)]) == [None, None]
        assert await backend.has([plain, packed]) == [5000, None]
        assert os.listdir(tmp_path / "content" / "d") == [str(plain)]


class TestLz4Conformance(StoreConformance):
    def make_store(self, context, folder):
        return make_store("lz4", context)


class TestZstdConformance(StoreConformance):
    def make_store(self, context, folder):
        return make_store("zstd", context)


class TestSealedLz4OverFilesConformance(StoreConformance):
    def make_store(self, context, folder):
        algorithm = CompressionAlgorithm(lz4=Lz4Options(block_size=5000, seal=True))
        return make_store(algorithm, context, filesystem(folder))


class TestZstdOverFilesConformance(StoreConformance):
    def make_store(self, context, folder):
        return make_store("zstd", context, filesystem(folder))


def filesystem(folder, context=None):
    options = FilesystemOptions(content_path=f"{folder}/content", temp_path=f"{folder}/temp")
    return FilesystemStore(options, context or BareContext())


def compressible(size):
    """Text-like: shrinks to a third or so."""
    chance = random.Random(size)
    words = [chance.randbytes(4).hex().encode() for _ in range(500)]
    data = bytearray()
    while len(data) < size:
        data += chance.choice(words) + b" "
    return bytes(data[:size])


SIZES = (100, SMALL + 1, 3 * CHUNK + 5)
both = pytest.mark.parametrize("name", ["lz4", "zstd"])


@both
@pytest.mark.parametrize("size", SIZES[1:])
async def test_what_is_kept_is_smaller(name, size):
    store = make_store(name)
    digest = digest_of(data := compressible(size))
    await store.write(digest, PartsReader(split(data, 9999)))
    assert store.backend.statistics()["bytes"] < size * 0.8 + 1000
    assert same(await find(store, digest), data)


@both
@pytest.mark.parametrize("size", SIZES)
async def test_every_changed_byte_and_every_cut_of_an_object_is_noticed(name, size):
    digest = digest_of(data := compressible(size))
    store = make_store(name)
    await store.put(digest, data)
    place = key_text(digest) + f".{'lz4' if name == 'lz4' else 'zst'}"
    kept = bytes(await store.backend.get(place))
    chance = random.Random(1)
    spots = range(len(kept)) if size == 100 else [*range(20), *range(len(kept) - 80, len(kept)), *(
        chance.randrange(len(kept)) for _ in range(60))]
    wrongs = [kept[:at] + bytes([kept[at] ^ (1 << chance.randrange(8))]) + kept[at + 1 :] for at in spots]
    wrongs += [kept[:at] for at in spots] + [kept + b"x", b"", os.urandom(len(kept)), bytes(len(kept))]
    for wrong in wrongs:
        store = make_store(name)
        for ask, right in (
            (store.get, data),
            (lambda key: read(store, key), data),
            (lambda key: read(store, key, offset=1, length=size // 2), data[1 : 1 + size // 2]),
        ):
            await store.backend.put(place, wrong)
            if name == "lz4" and len(wrong) == len(kept):
                # Some bits of a block's last token say nothing.
                try:
                    assert same(await ask(digest), right)
                    continue
                except CorruptBlobError:
                    pass
            else:
                with pytest.raises(CorruptBlobError, match=str(digest)):
                    await ask(digest)
            assert await store.has([digest]) == [None], "what is known to be wrong is not there"
        await store.put(digest, data)
        assert same(await find(store, digest), data)


@both
async def test_what_is_wrong_and_cannot_be_deleted_counts_as_missing_until_it_is_written_again(name, tmp_path):
    context = BareContext()
    backend = filesystem(tmp_path)
    backend.capability = lambda kind: None
    store = make_store(name, context, backend)
    async with started(store, context):
        digest = digest_of(data := compressible(100_000))
        place = key_text(digest) + (".lz4" if name == "lz4" else ".zst")
        await backend.put(place, b"something else")
        assert await store.has([digest]) == [len(data)]
        with pytest.raises(CorruptBlobError):
            await store.get(digest)
        assert await store.has([digest]) == [None]
        await store.put(digest, data)
        assert same(await find(store, digest), data)


@both
async def test_an_object_that_decodes_to_more_than_its_digest_says_is_never_unpacked(name):
    store = make_store(name)
    bomb = digest_of(bytes(200_000_000))
    await store.write(bomb, ZerosReader(bomb.size))
    suffix = ".lz4" if name == "lz4" else ".zst"
    packed = bytes(await store.backend.get(key_text(bomb) + suffix))
    digest = digest_of(compressible(100_000))
    for ask in (store.get, lambda key: read(store, key)):
        await store.backend.put(key_text(digest) + suffix, packed)
        with pytest.raises(CorruptBlobError):
            await ask(digest)


class ZerosReader(BytesReader):
    """Many zeros out of few."""

    def __init__(self, size):
        super().__init__(b"")
        self.size = self.left = size

    async def receive_parts(self, max_bytes=CHUNK):
        count = min(self.left, max_bytes)
        self.left -= count
        return (bytes(count),) if count else ()


async def test_blocks_larger_than_max_decode_block_size_are_refused():
    large = make_store(CompressionAlgorithm(lz4=Lz4Options(block_size=1 << 20)))
    small = make_store(CompressionAlgorithm(lz4=Lz4Options(block_size=1 << 16)), backend=large.backend)
    both_ = CompressionAlgorithm(lz4=Lz4Options(block_size=1 << 16, max_decode_block_size=1 << 20))
    wide = make_store(both_, backend=large.backend)
    digest = digest_of(data := compressible(300_000))
    await large.put(digest, data)
    assert same(await find(wide, digest), data)
    with pytest.raises(CorruptBlobError, match="1048576 bytes, more than the 65536 of max_decode_block_size"):
        await small.get(digest)


@both
async def test_one_backend_plain_and_compressed_has_two_different_things(name, tmp_path):
    context = BareContext()
    backend = filesystem(tmp_path)
    store = make_store(name, context, backend)
    async with started(store, context):
        digest = digest_of(data := compressible(50_000))
        await store.put(digest, data)
        assert await backend.has([digest]) == [None]
        await backend.put(digest, data)
        assert same(await find(backend, digest), data)
        assert same(await find(store, digest), data)
    async with started(again := make_store(name, context := BareContext(), filesystem(tmp_path)), context):
        assert same(await find(again, digest), data), "and after a restart"


@both
async def test_action_results_are_compressed_too(name):
    store = make_store(name)
    key = ActionKey(*digest_of(b"action"))
    await store.put(key, value := compressible(30_000))
    assert store.backend.statistics()["bytes"] < 20_000
    assert same(await find(store, key), value)
    await store.put(key, b"another")
    assert await find(store, key) == b"another"


@both
async def test_a_value_without_a_size_in_its_key_that_is_damaged_is_a_miss_or_an_error(name):
    store = make_store(name)
    await store.put("name", compressible(3000))
    place = key_text("name") + (".lz4" if name == "lz4" else ".zst")
    kept = bytes(await store.backend.get(place))
    await store.backend.put(place, kept[:-7])
    assert await store.has(["name"]) == [None]
    with pytest.raises(CorruptBlobError):
        await store.get("name")


@both
async def test_what_does_not_shrink_is_got_whole_up_to_the_limit(name):
    store = make_store(name)
    digest = digest_of(data := random.Random(5).randbytes(MAX_WHOLE))
    await store.put(digest, data)
    assert same(await store.get(digest), data)
    (got,) = await store.get_many([digest])
    assert same(got, data)


@both
async def test_a_cancelled_download_does_not_spoil_what_is_right(name):
    store = make_store(name)
    digest = digest_of(data := compressible(2_000_000))
    await store.put(digest, data)
    with trio.CancelScope() as scope:
        async with store.open(digest) as reader:
            await reader.receive_parts(10)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert same(await find(store, digest), data)


@both
async def test_what_is_found_wrong_is_taken_out_also_when_its_reader_is_cancelled_just_then(name):
    class Backend(MemoryStore):
        async def delete(self, keys):
            await trio.lowlevel.checkpoint()  # as any would that is not in memory
            await super().delete(keys)

    store = make_store(name, backend=Backend(MemoryOptions(), BareContext()))
    digest = digest_of(data := compressible(2_000_000))
    await store.put(digest, data)
    (place,) = (key for key in list(store.backend._index) if isinstance(key, str))
    kept = bytearray(await store.backend.get(place))
    kept[len(kept) // 2] ^= 1
    await store.backend.put(place, kept)
    with trio.CancelScope() as scope:
        async with store.open(digest) as reader:
            with pytest.raises(CorruptBlobError):
                await drain(reader)
            scope.cancel()
    assert await store.backend.has([place]) == [None]


@both
async def test_news_of_removals_names_what_was_asked_for(name):
    options = MemoryOptions(eviction_policy=EvictionPolicy(max_count=2))
    store = make_store(name, backend=MemoryStore(options, BareContext()))
    feed = store.capability(Removals).watch_removals()
    digests = [digest_of(b"%d" % n, function) for n in range(2) for function in DigestFunction]
    keys = [*digests, ActionKey(*digests[0]), ActionKey(*digests[1])]
    for key in keys:
        await store.put(key, bytes(5))
    assert list(feed.take()) == keys[:-2]
    await store.put("name", b"")
    await store.put("other", b"")
    assert list(feed.take()) == keys[-2:]
    await store.put("third", b"")
    assert feed.take() is None, "names cannot be told from what they became"


# --- zstd passes through


async def test_frames_go_in_and_out_as_they_are():
    store = make_store("zstd")
    encoded = store.capability(EncodedBlobs)
    for size in SIZES:
        digest = digest_of(data := compressible(size))
        frames = compress(data[:60], 5) + compress(data[60:], 9)
        await encoded.write_encoded(digest, PartsReader(split(frames, 999)), Encoding.ZSTD)
        async with encoded.open_encoded(digest, (Encoding.IDENTITY, Encoding.ZSTD)) as opened:
            assert opened.encoding is Encoding.ZSTD
            assert opened.encoded_size == opened.reader.size == len(frames)
            assert same(await drain(opened.reader), frames)
        for offset in (1, len(frames) - 1, len(frames)):
            async with encoded.open_encoded(digest, (Encoding.ZSTD,), offset=offset) as opened:
                assert opened.encoded_size == len(frames)
                assert same(await drain(opened.reader), frames[offset:])
        assert same(await find(store, digest), data)
        async with encoded.open_encoded(digest, (Encoding.IDENTITY,)) as opened:
            assert opened.encoding is Encoding.IDENTITY
            assert same(await drain(opened.reader), data)


async def test_what_came_plain_goes_out_packed():
    store = make_store("zstd")
    digest = digest_of(data := compressible(700_000))
    await store.write(digest, PartsReader(split(data, 50_000)))
    async with store.open_encoded(digest, (Encoding.ZSTD,)) as opened:
        frames = await drain(opened.reader)
    assert same(decompress(frames, len(data)), data)


async def test_changed_frames_are_not_passed_out_to_their_end():
    store = make_store("zstd")
    digest = digest_of(data := compressible(700_000))
    await store.put(digest, data)
    place = key_text(digest) + ".zst"
    kept = bytearray(await store.backend.get(place))
    for at in (0, 1000, len(kept) - 40, len(kept) - 36, len(kept) - 1):
        kept[at] ^= 1
        await store.backend.put(place, bytes(kept))
        kept[at] ^= 1
        passed = 0
        with pytest.raises(CorruptBlobError):
            async with store.open_encoded(digest, (Encoding.ZSTD,)) as opened:
                while parts := await opened.reader.receive_parts():
                    passed += sum(map(len, parts))
        assert passed < len(kept) - 36
        assert await store.has([digest]) == [None]


async def test_encoded_writes_of_every_kind_of_key_and_encoding():
    store = make_store("zstd")
    empty = Digest("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 0)
    await store.write_encoded(empty, BytesReader(compress(b"")), Encoding.ZSTD)
    async with store.open_encoded(empty, (Encoding.ZSTD,)) as opened:
        assert opened.encoding is Encoding.IDENTITY
        assert await drain(opened.reader) == b""
    await store.write_encoded("name", BytesReader(compress(b"value")), Encoding.ZSTD)
    assert await find(store, "name") == b"value"
    await store.write_encoded(digest_of(b"plain"), BytesReader(b"plain"), Encoding.IDENTITY)
    assert await find(store, digest_of(b"plain")) == b"plain"
    with pytest.raises(BlobNotFoundError):
        async with store.open_encoded(digest_of(b"never"), (Encoding.ZSTD,)):
            pass


async def test_lz4_is_no_encoding_that_clients_know():
    assert make_store("lz4").capability(EncodedBlobs) is None


async def test_uploads_beyond_the_memory_for_packing_are_packed_with_little(monkeypatch):
    """An encoder of level 19 takes 82 MiB: a thousand uploads that stall would take the machine."""
    levels = []

    class Noted(ZstdEncoder):
        def __init__(self, level, *, size=-1):
            levels.append(level)
            super().__init__(level, size=size)

    monkeypatch.setattr("nl.stores.compression.formats.ZstdEncoder", Noted)
    data = compressible(2 * CHUNK)
    digest = digest_of(data)
    liked, least = ZstdForm(19).encoder_bytes(len(data))
    memory = CoderMemory(2 * (2 * liked))
    store = make_store(CompressionAlgorithm(zstd=ZstdOptions(level=19)), BareContext(coder_memory=memory))
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(store.write, digest, BlockingReader([data[:10]], rest=data[10:]))
        await trio.testing.wait_all_tasks_blocked()
        assert levels == [19, 19, 1, 1]
        assert memory.used == 2 * liked + 2 * least
        await store.write(digest, BytesReader(data))
        assert levels.pop() == 1
        assert await read(store, digest) == data
        nursery.cancel_scope.cancel()
    await store.write(digest, BytesReader(data))
    assert levels.pop() == 19, "those that were given up have let go"
    assert memory.used == 0


async def test_lz4_uploads_beyond_it_have_small_blocks():
    memory = CoderMemory(3 * 1024 * 1024)
    context, backend = BareContext(coder_memory=memory), MemoryStore(MemoryOptions(), BareContext())
    store = make_store(CompressionAlgorithm(lz4=Lz4Options(block_size=1024 * 1024)), context, backend)
    data = compressible(3 * CHUNK)
    await store.write(digest_of(data), BytesReader(data))
    stored = bytes(await backend.get(f"{digest_of(data)}.lz4"))
    assert int.from_bytes(stored[1:5], "little") == 64 * 1024
    assert await read(store, digest_of(data)) == data


@pytest.mark.parametrize("name", list(ALGORITHMS))
async def test_blobs_that_are_unpacked_take_their_part_of_the_memory_until_they_are_closed(name):
    memory = CoderMemory()
    store = make_store(name, BareContext(coder_memory=memory))
    data = compressible(3 * CHUNK)
    await store.write(digest_of(data), BytesReader(data))
    assert memory.used == 0
    async with store.open(digest_of(data)) as reader:
        assert memory.used >= len(data) // 4
        await reader.receive_parts()
    assert memory.used == 0


class Held(MemoryStore):
    """A backend whose answers, and deletions, are held back."""

    def __init__(self):
        super().__init__(MemoryOptions(), BareContext())
        self.go_on = trio.Event()

    async def get(self, key):
        data = await super().get(key)
        await self.go_on.wait()
        return data

    async def delete(self, keys):
        await trio.testing.wait_all_tasks_blocked()
        await super().delete(keys)


@pytest.mark.parametrize("when", ["before it is found wrong", "while it is deleted"])
async def test_who_finds_an_old_object_wrong_leaves_the_one_uploaded_meanwhile(when):
    backend = Held()
    store = make_store("zstd", BareContext(), backend)
    data = compressible(1000)
    digest = digest_of(data)
    await backend.put(f"{digest}.zst", b"rotten" * 20)

    async def look():
        with pytest.raises(CorruptBlobError):
            await store.get(digest)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await trio.testing.wait_all_tasks_blocked()
        if when == "while it is deleted":
            backend.go_on.set()
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
        await store.put(digest, data)
        backend.go_on.set()
    assert await store.has([digest]) == [1000]
    assert await store.get(digest) == data


@pytest.mark.parametrize("size", [100, SMALL + 1, MAX_WHOLE + 1])
async def test_blobs_of_a_store_without_compression_in_the_same_folder_are_left_alone(tmp_path, size):
    async with started(filesystem(tmp_path)) as plain:
        store = make_store("lz4", BareContext(), plain)
        data = os.urandom(size)
        digest = digest_of(data)
        await plain.put(digest, data) if size <= MAX_WHOLE else await plain.write(digest, BytesReader(data))
        assert await store.has([digest]) == [None]
        for key in (digest, ActionKey(digest.hash, digest.size)):
            with pytest.raises(BlobNotFoundError):
                await read(store, key)
            assert isinstance((await store.get_many([key]))[0], BlobNotFoundError) or size > MAX_WHOLE
        assert await plain.has([digest]) == [size]
        await store.write(digest, BytesReader(data))
        assert await read(store, digest) == await read(plain, digest) == data


@pytest.mark.parametrize("way", ["put", "put_many", "write"])
async def test_who_finds_an_old_object_wrong_among_many_leaves_the_one_uploaded_meanwhile(way):
    backend = Held()
    store = make_store("zstd", BareContext(), backend)
    digest = digest_of(data := compressible(1000))
    await backend.put(f"{digest}.zst", b"rotten" * 20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.get_many, [digest])
        await trio.testing.wait_all_tasks_blocked()
        if way == "put":
            await store.put(digest, data)
        elif way == "put_many":
            assert await store.put_many([(digest, data)]) == [None]
        else:
            await store.write(digest, BytesReader(data))
        backend.go_on.set()
    assert await store.has([digest]) == [1000]
    assert await store.get(digest) == data

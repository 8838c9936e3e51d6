"""Ranges of blobs that are kept as LZ4: their blocks alone are read, and nothing wrong is ever given."""

import random
import tracemalloc

import pytest

from nl.plugin import (
    CHUNK,
    BlobNotFoundError,
    BytesReader,
    CoderMemory,
    CorruptBlobError,
    Deletes,
    DigestFunction,
    ForeignKey,
    RangeError,
    UnavailableError,
    digest_of,
)
from nl.stores.compression.formats import Lz4Form
from nl.stores.compression.lz4_format import HEAD_BYTES
from nl.stores.compression.lz4_seal import Blocks, Sealing, seal_bytes
from nl.stores.compression.options import CompressionAlgorithm, Lz4Options
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, read
from tests.unit.stores.compression.kinds import make_store

BLOCK = 64 * 1024
RANDOM = random.Random(7)
DATA = b"".join(RANDOM.choice((b"a" * 50, RANDOM.randbytes(50))) for _ in range(40_000))  # 2 MB
DIGEST = digest_of(DATA)
PLACE = f"{DIGEST}.lz4"


class Backend(MemoryStore):
    """Notes what is read of it, and deletes or not."""

    def __init__(self, *, deletes=True):
        super().__init__(MemoryOptions(), BareContext())
        self.deletes = deletes
        self.read = 0

    def capability(self, kind):
        return None if kind is Deletes and not self.deletes else super().capability(kind)

    def open(self, key, *, offset=0, length=None):
        size = len(self._find(key))
        self.read += min(size - offset, size if length is None else length)
        return super().open(key, offset=offset, length=length)


async def filled(backend=None, *, seal=True, **options):
    backend = backend or Backend()
    store = make_store(CompressionAlgorithm(lz4=Lz4Options(seal=seal, **options)), BareContext(), backend)
    await store.write(DIGEST, BytesReader(DATA))
    return store, backend


@pytest.mark.parametrize("offset", [0, 1, BLOCK - 1, BLOCK, 5 * BLOCK + 77, len(DATA) - 10, len(DATA)])
@pytest.mark.parametrize("length", [0, 1, BLOCK, BLOCK + 2, 5 * BLOCK, None])
async def test_a_range_is_what_python_says(offset, length):
    store, _ = await filled()
    expected = DATA[offset : None if length is None else offset + length]
    assert await read(store, DIGEST, offset=offset, length=length) == expected


async def test_only_the_blocks_of_a_range_and_the_seal_are_read():
    store, backend = await filled()
    backend.read = 0
    assert await read(store, DIGEST, offset=3 * BLOCK - 1, length=2) == DATA[3 * BLOCK - 1 : 3 * BLOCK + 1]
    assert backend.read < 2 * (BLOCK + 300) + seal_bytes(len(DATA), BLOCK) + 1
    backend.read = 0
    assert await read(store, DIGEST, offset=len(DATA) - BLOCK) == DATA[-BLOCK:]
    assert backend.read < 3 * BLOCK, "so does a Read that goes on where it was"


async def test_what_is_nearly_the_whole_blob_is_read_from_its_start():
    store, backend = await filled()
    backend.read = 0
    assert await read(store, DIGEST, offset=CHUNK) == DATA[CHUNK:]
    assert backend.read == len(await backend.get(PLACE))


@pytest.mark.parametrize("deletes", [True, False])
async def test_a_block_that_has_changed_is_never_given_and_the_blob_is_missing_then(deletes):
    store, backend = await filled(Backend(deletes=deletes))
    whole = bytearray(await backend.get(PLACE))
    whole[BLOCK * 3] ^= 1
    await backend.put(PLACE, bytes(whole))
    assert await read(store, DIGEST, offset=len(DATA) - 100) == DATA[-100:], "the others are right"
    with pytest.raises(CorruptBlobError):
        async with store.open(DIGEST, length=8 * BLOCK) as reader:
            while parts := await reader.receive_parts():
                for part in parts:
                    assert bytes(part) in DATA
    assert await store.has([DIGEST]) == [None]
    await store.write(DIGEST, BytesReader(DATA))
    assert await read(store, DIGEST, offset=BLOCK, length=8 * BLOCK) == DATA[BLOCK : 9 * BLOCK]


async def test_a_seal_that_has_changed_is_noticed():
    store, backend = await filled()
    whole = bytearray(await backend.get(PLACE))
    whole[-200] ^= 1
    await backend.put(PLACE, bytes(whole))
    with pytest.raises(CorruptBlobError):
        await read(store, DIGEST, offset=100, length=100)
    assert await store.has([DIGEST]) == [None]


async def test_objects_with_other_blocks_are_read_all_the_same():
    """Their seals are longer than expected."""
    _, backend = await filled(block_size=1024)
    store = make_store(CompressionAlgorithm(lz4=Lz4Options(seal=True)), BareContext(), backend)
    assert await read(store, DIGEST, offset=1000, length=100) == DATA[1000:1100]
    _, backend = await filled(block_size=128 * 1024)
    wider = Lz4Options(seal=True, max_decode_block_size=128 * 1024)
    store = make_store(CompressionAlgorithm(lz4=wider), BareContext(), backend)
    backend.read = 0
    assert await read(store, DIGEST, offset=1000, length=100) == DATA[1000:1100]
    assert backend.read < 200 * 1024


async def test_blocks_larger_than_max_decode_block_size_are_refused_in_ranges_too():
    _, backend = await filled(block_size=128 * 1024)
    store = make_store(CompressionAlgorithm(lz4=Lz4Options(seal=True)), BareContext(), backend)
    with pytest.raises(CorruptBlobError, match="more than the 65536 of max_decode_block_size"):
        await read(store, DIGEST, offset=1000, length=100)


async def test_a_crowded_upload_has_no_larger_blocks_than_may_be_read_again():
    memory = CoderMemory(1024 * 1024)
    algorithm = CompressionAlgorithm(lz4=Lz4Options(seal=True, block_size=4096))
    store = make_store(algorithm, BareContext(coder_memory=memory), Backend())
    await store.write(DIGEST, BytesReader(DATA))
    assert await read(store, DIGEST) == DATA


@pytest.mark.parametrize("other", [DATA[:5000], DATA[:5002]])
async def test_the_small_object_of_another_blob_is_not_given_either(other):
    store, backend = await filled()
    data = DATA[:5001]
    await store.put(digest_of(other), other)
    await backend.put(f"{digest_of(data)}.lz4", await backend.get(f"{digest_of(other)}.lz4"))
    with pytest.raises(CorruptBlobError, match="not 5001"):
        await store.get(digest_of(data))


def test_a_seal_of_more_than_a_mebibyte_is_not_read_for_a_range():
    form = Lz4Form(Lz4Options(seal=True))
    assert 0 < form.map_bytes(3 << 30) <= 1024 * 1024 and form.map_bytes(4 << 30) == 0


async def test_a_range_of_what_is_not_there_and_one_outside_are_errors():
    store, _ = await filled()
    other = digest_of(DATA, DigestFunction.BLAKE3)
    with pytest.raises(Exception, match="not found"):
        await read(store, other, offset=5, length=5)
    with pytest.raises(RangeError):
        await read(store, DIGEST, offset=len(DATA) + 1, length=5)


async def test_the_object_of_another_blob_is_not_read_in_ranges_either():
    """Its seal is right, and says what it is: not what was asked for."""
    store, backend = await filled()
    other = DATA + b"and more"
    await store.write(digest_of(other), BytesReader(other))
    await backend.put(PLACE, await backend.get(f"{digest_of(other)}.lz4"))
    with pytest.raises(CorruptBlobError, match=str(DIGEST)):
        await read(store, DIGEST, offset=BLOCK, length=10)


class Gone(Backend):
    """Evicts what is about to be opened."""

    evicts = False

    def open(self, key, *, offset=0, length=None):
        if self.evicts and isinstance(key, str):
            self._index.discard(key)
        return MemoryStore.open(self, key, offset=offset, length=length)


async def test_a_blob_that_goes_between_two_looks_at_it_is_missing_by_its_own_name_or_read_where_nativelink_has_it():
    store, backend = await filled(Gone())
    backend.evicts = True
    with pytest.raises(BlobNotFoundError, match=f"^{DIGEST} not found in the compression store 'TEST'"):
        await read(store, DIGEST, offset=BLOCK, length=10)
    backend.evicts = False
    await store.write(DIGEST, BytesReader(DATA))
    await backend.put(ForeignKey(DIGEST.hash, DIGEST.size), await backend.get(PLACE))
    backend.evicts = True
    assert await read(store, DIGEST, offset=BLOCK, length=10) == DATA[BLOCK : BLOCK + 10]
    assert await backend.has([PLACE]) == [None]


@pytest.mark.parametrize("deletes", [True, False])
async def test_who_reads_a_wrong_block_of_an_old_object_leaves_the_one_uploaded_meanwhile(deletes):
    store, backend = await filled(Backend(deletes=deletes))
    whole = bytearray(await backend.get(PLACE))
    whole[BLOCK // 2] ^= 1
    await backend.put(PLACE, bytes(whole))
    with pytest.raises(CorruptBlobError):
        async with store.open(DIGEST, length=10) as reader:
            await store.write(DIGEST, BytesReader(DATA))
            await reader.receive_parts()
    assert await store.has([DIGEST]) == [len(DATA)]
    assert await read(store, DIGEST) == DATA


async def test_a_range_of_an_object_that_is_shorter_than_any_seal_is_found_wrong():
    store, backend = await filled()
    for rubbish in (b"", b"x" * 100):
        await backend.put(PLACE, rubbish)
        with pytest.raises(CorruptBlobError, match=str(DIGEST)):
            await read(store, DIGEST, offset=BLOCK, length=10)
        assert await store.has([DIGEST]) == [None]


async def test_a_range_of_what_has_no_seal_costs_one_look_at_the_backend():
    store, backend = await filled(seal=False)
    opened = []
    real = backend.open
    backend.open = lambda key, **range_: opened.append(key) or real(key, **range_)
    assert await read(store, DIGEST, offset=BLOCK, length=10) == DATA[BLOCK : BLOCK + 10]
    assert opened == [PLACE]


class NoDeletion(Backend):
    """Deletions fail."""

    async def delete(self, keys):
        raise UnavailableError("read only")


@pytest.mark.parametrize("offset, length", [(0, None), (2 * BLOCK, 2 * BLOCK)])
async def test_a_wrong_object_that_cannot_be_deleted_now_is_said_to_be_wrong_and_counts_as_missing(
    offset, length, caplog
):
    store, backend = await filled(NoDeletion())
    whole = bytearray(await backend.get(PLACE))
    whole[BLOCK] ^= 1
    whole[BLOCK * 3 // 2] ^= 1
    await backend.put(PLACE, bytes(whole))
    with pytest.raises(CorruptBlobError):
        await read(store, DIGEST, offset=offset, length=length)
    assert "read only" in caplog.text
    assert await store.has([DIGEST]) == [None]
    await store.write(DIGEST, BytesReader(DATA))
    assert await read(store, DIGEST, offset=offset, length=length) == DATA[offset:][:length]


def test_what_a_seal_says_takes_no_more_memory_than_the_seal_and_eight_bytes_a_block():
    count = 5000
    sealing = Sealing()
    for _ in range(count):
        sealing.add(b"a block")
    content = sealing.content(size=count * BLOCK, block_size=BLOCK)
    tracemalloc.start()
    try:
        blocks = Blocks(content, head_bytes=HEAD_BYTES, stored_size=HEAD_BYTES + count * 12 + 5 + len(content))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert blocks.start(count) == HEAD_BYTES + count * 12
    assert held < count * (20 + 8) * 5 // 4
    blocks.check(count - 1, b"a block")


@pytest.mark.parametrize("size", [0, BLOCK, 1 << 30])
def test_what_a_seal_says_counts_as_memory_of_who_decodes(size):
    sealed, plain = (Lz4Form(Lz4Options(seal=seal)).decoder_bytes(size) for seal in (True, False))
    assert sealed - plain == 2 * seal_bytes(size, BLOCK)

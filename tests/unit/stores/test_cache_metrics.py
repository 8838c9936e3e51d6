"""What is counted, and that nothing else changes."""

import pytest

from nl.plugin import BlobNotFoundError, BytesReader, Deletes, EvictionPolicy, TooLargeError, digest_of
from nl.stores.cache_metrics import CacheMetricsOptions, CacheMetricsStore
from nl.stores.filesystem import FilesystemOptions, FilesystemStore
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, LocalFilesConformance, StoreConformance, drain, read

ONE, GONE = digest_of(b"one"), digest_of(b"gone")


def make(context, backend):
    return CacheMetricsStore(CacheMetricsOptions(cache_type="cas", backend=context.spec(backend)), context)


class TestCacheMetricsConformance(StoreConformance):
    def make_store(self, context, folder):
        return make(context, MemoryStore(MemoryOptions(), context))


class TestCacheMetricsOfFilesConformance(LocalFilesConformance, StoreConformance):
    def make_store(self, context, folder):
        options = FilesystemOptions(content_path=str(folder / "c"), temp_path=str(folder / "t"))
        return make(context, FilesystemStore(options, context))


@pytest.fixture
def store():
    context = BareContext()
    return make(context, MemoryStore(MemoryOptions(eviction_policy=EvictionPolicy(max_bytes=100_000)), context))


def counted(store):
    return {key: value for key, value in store.statistics().items() if value and not key.endswith("seconds")}


async def test_uploads_are_counted_with_their_bytes_and_their_failures(store):
    await store.put(ONE, b"one")
    await store.write(ONE, BytesReader(b"one"))
    too_large = digest_of(bytes(200_000))
    failed = await store.put_many([(ONE, b"one"), (too_large, bytes(200_000))])
    assert failed[0] is None and isinstance(failed[1], TooLargeError)
    with pytest.raises(TooLargeError):
        await store.put(too_large, bytes(200_000))
    with pytest.raises(TooLargeError):
        await store.write(too_large, BytesReader(bytes(200_000)))
    assert counted(store) == {"cache_type": "cas", "writes": 3, "written_bytes": 9, "write_errors": 3}
    assert store.statistics()["write_seconds"] > 0


async def test_reads_are_hits_or_misses(store):
    await store.put(ONE, b"one")
    await store.get(ONE)
    await read(store, ONE)
    async with store.open(ONE, offset=1, length=1) as reader:
        await drain(reader)
    found = await store.get_many([ONE, GONE])
    assert isinstance(found[1], BlobNotFoundError)
    for miss in (store.get(GONE), read(store, GONE)):
        with pytest.raises(BlobNotFoundError):
            await miss
    assert counted(store) == {
        "cache_type": "cas", "writes": 1, "written_bytes": 3, "hits": 4, "misses": 3, "read_bytes": 10,
    }  # fmt: skip


async def test_questions_are_counted_by_digest(store):
    await store.put(ONE, b"one")
    await store.has([ONE, GONE, ONE])
    assert (store.statistics()["asked"], store.statistics()["present"]) == (3, 2)


def test_what_the_backend_can_do_stays_possible(store):
    assert store.capability(Deletes) is store.backend.capability(Deletes)

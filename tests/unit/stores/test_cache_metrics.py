"""What is counted, and that nothing else changes."""

import pytest
import trio

from nl.plugin import (
    ActionKey,
    BlobNotFoundError,
    BytesReader,
    CorruptBlobError,
    Deletes,
    EvictionPolicy,
    TooLargeError,
    UnavailableError,
    digest_of,
)
from nl.stores.cache_metrics import CacheMetricsOptions, CacheMetricsStore
from nl.stores.filesystem import FilesystemOptions, FilesystemStore
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, Fault, FaultyStore, LocalFilesConformance, StoreConformance, drain, read

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
    await store.put_many([(ActionKey(*ONE), b"a result, of another size than its action")])
    assert store.statistics()["written_bytes"] == 50
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


class Away(MemoryStore):
    """Fails, and takes its time for it."""

    async def get(self, key):
        await trio.sleep(0.001)
        raise UnavailableError("away")

    async def get_many(self, keys):
        return [UnavailableError("away") for _ in keys]

    async def put(self, key, data):
        raise UnavailableError("away")

    async def write(self, key, reader):
        await drain(reader)
        raise ValueError("a bug")


async def test_failures_are_neither_hits_nor_misses_and_move_no_bytes():
    context = BareContext()
    store = make(context, Away(MemoryOptions(), context))
    with pytest.raises(UnavailableError):
        await store.get(ONE)
    await store.get_many([ONE, GONE])
    assert counted(store) == {"cache_type": "cas", "read_errors": 3}
    with pytest.raises(UnavailableError):
        await store.put(ONE, b"one")
    with pytest.raises(ValueError, match="a bug"):
        await store.write(ONE, BytesReader(b"one"))
    assert counted(store) == {"cache_type": "cas", "read_errors": 3, "write_errors": 2}


class Slow(MemoryStore):
    """Each blob takes two seconds by the clock of the test."""

    clock = None

    async def get(self, key):
        self.clock.now += 2
        return await super().get(key)

    async def put(self, key, data):
        self.clock.now += 2
        await super().put(key, data)

    async def write(self, key, reader):
        self.clock.now += 2
        await super().write(key, reader)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


async def test_times_are_the_seconds_that_the_backend_took(monkeypatch):
    context, clock = BareContext(), Clock()
    monkeypatch.setattr("nl.stores.cache_metrics.perf_counter", clock)
    backend = Slow(MemoryOptions(), context)
    backend.clock = clock
    store = make(context, backend)
    for seconds, way, arguments in (
        (2, "put", (ONE, b"one")), (4, "put_many", ([(ONE, b"one")],)), (6, "write", (ONE, BytesReader(b"one"))),
    ):  # fmt: skip
        await getattr(store, way)(*arguments)
        assert store.statistics()["write_seconds"] == seconds
    assert store.statistics()["read_seconds"] == 0
    await store.get(ONE)
    await store.get_many([ONE])
    assert store.statistics()["read_seconds"] == 4
    async with store.open(ONE) as reader:
        await drain(reader)
        clock.now += 3  # a reader counts for as long as it is open
    assert store.statistics()["read_seconds"] == 7
    assert store.statistics()["write_seconds"] == 6


async def test_a_write_that_begins_anew_is_counted_once():
    class Retrying(MemoryStore):
        async def write(self, key, reader):
            assert reader.can_rewind and reader.size == 3
            await drain(reader)
            await reader.rewind()
            await super().write(key, reader)

    context = BareContext()
    store = make(context, Retrying(MemoryOptions(), context))
    await store.write(ONE, BytesReader(b"one"))
    assert counted(store) == {"cache_type": "cas", "writes": 1, "written_bytes": 3}


async def test_questions_are_counted_by_digest(store):
    await store.put(ONE, b"one")
    await store.has([ONE, GONE, ONE, digest_of(b"")])
    assert (store.statistics()["asked"], store.statistics()["present"]) == (4, 3)


def test_what_the_backend_can_do_stays_possible(store):
    assert store.capability(Deletes) is store.backend.capability(Deletes)


async def test_a_download_that_cannot_begin_or_breaks_is_a_failure_like_any_other():
    context = BareContext()
    backend = FaultyStore(MemoryStore(MemoryOptions(), context))
    store = make(context, backend)
    await backend.put(ONE, b"one")
    backend.plan("open", Fault(UnavailableError("away")), Fault(CorruptBlobError("rotten"), after_bytes=2))
    with pytest.raises(UnavailableError):
        await read(store, ONE)
    assert counted(store) == {"cache_type": "cas", "read_errors": 1}
    with pytest.raises(CorruptBlobError):
        await read(store, ONE)
    assert counted(store) == {"cache_type": "cas", "read_errors": 2, "hits": 1, "read_bytes": 2}


async def test_what_goes_wrong_with_the_reader_of_a_blob_is_not_told_of_its_store(store):
    await store.put(ONE, b"one")
    with pytest.raises(BlobNotFoundError):
        async with store.open(ONE):
            raise BlobNotFoundError("something else that was looked for meanwhile")
    assert (store.statistics()["hits"], store.statistics()["misses"]) == (1, 0)


@pytest.mark.parametrize("way", ["put", "write"])
async def test_an_upload_that_is_given_up_is_no_failure_of_the_store(way):
    class Slow(MemoryStore):
        async def put(self, key, data):
            scope.cancel()
            await trio.sleep_forever()

        async def write(self, key, reader):
            await self.put(key, b"")

    context = BareContext()
    store = make(context, Slow(MemoryOptions(), context))
    with trio.CancelScope() as scope:
        await getattr(store, way)(ONE, b"one" if way == "put" else BytesReader(b"one"))
    assert scope.cancelled_caught
    assert counted(store) == {"cache_type": "cas"}

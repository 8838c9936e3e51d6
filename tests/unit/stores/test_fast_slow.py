import logging
import os
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from nl.blob.hashing import digest_of
from nl.plugin import (
    CHUNK,
    MAX_WHOLE,
    ActionKey,
    BlobNotFoundError,
    BytesReader,
    CorruptBlobError,
    Discards,
    EvictionPolicy,
    ExhaustedError,
    Reader,
    TooLargeError,
    UnavailableError,
    UploadMismatchError,
    VerifyingReader,
)
from nl.stores.fast_slow import FastSlowOptions, FastSlowStore
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.stores.noop import NoopOptions, NoopStore
from nl.testing import BareContext, BlockingReader, PartsReader, StoreConformance, drain, read, split, started

LARGE = 5 * CHUNK
RING_BYTES = 1024 * 1024
ACTION = ActionKey("ab" * 32, 5)


def make_memory(**policy):
    return MemoryStore(MemoryOptions(eviction_policy=EvictionPolicy(**policy)), BareContext())


class TestFastSlowConformance(StoreConformance):
    hides_writes_under_way = False

    def make_store(self, context, folder):
        options = FastSlowOptions(fast=context.spec(make_memory()), slow=context.spec(make_memory()))
        return FastSlowStore(options, context)


class TestSmallFastConformance(StoreConformance):
    """The fast store is too small for most blobs and always evicting."""

    hides_writes_under_way = False

    def make_store(self, context, folder):
        options = FastSlowOptions(fast=context.spec(make_memory(max_bytes=3000)), slow=context.spec(make_memory()))
        return FastSlowStore(options, context)


class TestNothingInFastConformance(StoreConformance):
    """Uploads go to the slow store only, so that every first read is a fetch."""

    hides_writes_under_way = False

    def make_store(self, context, folder):
        options = FastSlowOptions(
            fast=context.spec(make_memory()), slow=context.spec(make_memory()), fast_direction="get"
        )
        return FastSlowStore(options, context)


class TestReadOnlySlowConformance(StoreConformance):
    def make_store(self, context, folder):
        options = FastSlowOptions(
            fast=context.spec(make_memory()), slow=context.spec(make_memory()), slow_direction="get"
        )
        return FastSlowStore(options, context)


class TestFastIsNoopConformance(StoreConformance):
    hides_writes_under_way = False

    def make_store(self, context, folder):
        noop = NoopStore(NoopOptions(), context)
        return FastSlowStore(FastSlowOptions(fast=context.spec(noop), slow=context.spec(make_memory())), context)


class TestSlowIsNoopConformance(StoreConformance):
    def make_store(self, context, folder):
        noop = NoopStore(NoopOptions(), context)
        return FastSlowStore(FastSlowOptions(fast=context.spec(make_memory()), slow=context.spec(noop)), context)


class _Counting(Reader):
    def __init__(self, reader, store):
        self._reader, self._store, self.size = reader, store, reader.size

    async def receive_parts(self, max_bytes=CHUNK):
        store = self._store
        if store.chunks_allowed is not None:
            while not store.chunks_allowed:
                store.stopped.set()
                await store.more.wait()
            store.chunks_allowed -= 1
        parts = await self._reader.receive_parts(max_bytes)
        store.bytes_read += sum(map(len, parts))
        return parts


class Watched(MemoryStore):
    """A memory store that counts its reads, can be held up between chunks, and can be made to fail."""

    def __init__(self, **policy):
        super().__init__(MemoryOptions(eviction_policy=EvictionPolicy(**policy)), BareContext())
        self.reads = 0
        self.bytes_read = 0
        self.chunks_allowed = None
        self.more = trio.Event()
        self.stopped = trio.Event()
        self.read_error = None
        self.write_error = None

    def allow(self, chunks):
        self.chunks_allowed = chunks
        self.more.set()
        self.more = trio.Event()

    async def get(self, key):
        await trio.lowlevel.checkpoint()
        if self.read_error:
            raise self.read_error
        data = await super().get(key)
        self.reads += 1
        self.bytes_read += len(data)
        if self.chunks_allowed is not None:
            self.stopped.set()
            await self.more.wait()
        return data

    @asynccontextmanager
    async def open(self, key, *, offset=0, length=None):
        await trio.lowlevel.checkpoint()
        if self.read_error:
            raise self.read_error
        async with super().open(key, offset=offset, length=length) as reader:
            self.reads += 1
            yield _Counting(reader, self)

    async def put(self, key, data):
        if self.write_error:
            raise self.write_error
        await super().put(key, data)

    async def write(self, key, reader):
        if self.write_error:
            await reader.receive_parts(10)
            raise self.write_error
        await super().write(key, reader)


@asynccontextmanager
async def running(*, fast=None, slow=None, **options):
    context = BareContext("CAS")
    fast, slow = fast or Watched(), slow or Watched()
    specs = FastSlowOptions(fast=context.spec(fast), slow=context.spec(slow), **options)
    async with started(FastSlowStore(specs, context), context) as store:
        yield store


async def put_slow(store, size=LARGE):
    data = os.urandom(size)
    await store.slow.put(digest_of(data), data)
    return digest_of(data), data


async def has(store, key):
    return (await store.has([key])) != [None]


# --- who is asked


async def test_has_asks_the_slow_store_alone():
    async with running() as store:
        digest = digest_of(b"abc")
        await store.fast.put(digest, b"abc")
        assert await store.has([digest]) == [None]
        await store.slow.put(digest, b"abc")
        assert await store.has([digest]) == [3]


async def test_has_waits_for_an_upload_under_way():
    async with running() as store:
        data = os.urandom(LARGE)
        digest = digest_of(data)
        upload = BlockingReader([data[:-1]], rest=data[-1:])
        answers = []

        async def ask():
            answers.append(await store.has([digest_of(b"other"), digest]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, digest, upload)
            await upload.blocked.wait()
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert not answers
            upload.go_on.set()
        assert answers == [[None, LARGE]]


async def test_has_does_not_say_yes_when_the_upload_it_waited_for_failed():
    async with running() as store:
        upload = BlockingReader([b"abc"], rest=b"wrong")
        digest = digest_of(b"abcright")
        answers = []

        async def send():
            with pytest.raises(UploadMismatchError):
                await store.write(digest, VerifyingReader(upload, digest))

        async def ask():
            answers.append(await store.has([digest]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await upload.blocked.wait()
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            upload.go_on.set()
        assert answers == [[None]]


async def test_a_stalled_upload_does_not_stall_the_question_for_ever(autojump_clock):
    async with running() as store:
        upload = BlockingReader([b"abc"], rest=b"def")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, digest_of(b"abcdef"), upload)
            await upload.blocked.wait()
            assert await store.has([digest_of(b"abcdef")]) == [None]
            upload.go_on.set()


async def test_not_found_says_where_it_looked_and_what_may_be_wrong():
    async with running() as store:
        digest = digest_of(b"nowhere")
        text = (
            f"Object {digest.hash}-{digest.size} not found in either fast or slow store. "
            "If using multiple workers, ensure all workers share the same CAS storage path."
        )
        for size in (digest.size, LARGE):
            key = digest._replace(size=size)
            with pytest.raises(BlobNotFoundError) as raised:
                await store.get(key)
            assert raised.value.message == text.replace(str(digest), str(key))
            with pytest.raises(BlobNotFoundError) as raised:
                await read(store, key)
            assert raised.value.message == text.replace(str(digest), str(key))
            assert raised.value.key == key


# --- filling the fast store


@pytest.mark.parametrize("size", [100, CHUNK, LARGE])
@pytest.mark.parametrize("chunked", [False, True])
async def test_what_was_read_once_is_in_the_fast_store(size, chunked):
    async with running() as store:
        digest, data = await put_slow(store, size)
        for _ in range(2):
            got = await read(store, digest) if chunked else await store.get(digest)
            assert got == data
            await store.fetches.wait_idle()
            assert await has(store.fast, digest)
        assert store.slow.reads == 1
        assert store.statistics()["fast_hits"] == 1
        assert store.statistics()["fast_misses"] == 1


@pytest.mark.parametrize("size", [100, CHUNK, LARGE])
async def test_readers_at_once_cost_one_read_of_the_slow_store(size):
    async with running() as store:
        digest, data = await put_slow(store, size)
        got = []

        async def take(chunked):
            got.append(await read(store, digest) if chunked else bytes(await store.get(digest)))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(take, number % 2)
        assert got == [data] * 20
        assert store.slow.bytes_read == size


async def test_a_reader_that_hangs_up_does_not_stop_the_fetch():
    async with running() as store:
        digest, _ = await put_slow(store)
        store.slow.allow(2)
        async with store.open(digest) as reader:
            await reader.receive_parts(10)
        store.slow.allow(100)
        await store.fetches.wait_idle()
        assert await has(store.fast, digest)


async def test_a_reader_that_is_cancelled_does_not_stop_the_fetch():
    async with running() as store:
        digest, data = await put_slow(store, 100)
        store.slow.allow(0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.get, digest)
            await store.slow.stopped.wait()
            nursery.cancel_scope.cancel()
        store.slow.allow(100)
        await store.fetches.wait_idle()
        assert await store.fast.get(digest) == data


async def test_a_range_fills_the_fast_store_with_the_whole_blob():
    async with running() as store:
        digest, data = await put_slow(store)
        assert await read(store, digest, offset=CHUNK + 5, length=10) == data[CHUNK + 5 : CHUNK + 15]
        await store.fetches.wait_idle()
        assert await store.fast.get(digest) == data
        assert store.slow.bytes_read == LARGE


async def test_a_range_far_ahead_does_not_wait_for_the_fetch():
    async with running() as store:
        digest, data = await put_slow(store, RING_BYTES * 3)
        store.slow.allow(1)
        async with store.open(digest):
            await store.slow.stopped.wait()
            store.slow.chunks_allowed = 1
            assert await read_some(store, digest, offset=len(data) - 10, length=10) == data[-10:]
            assert not await has(store.fast, digest)
            store.slow.allow(1000)


async def read_some(store, digest, *, offset, length):
    async with store.open(digest, offset=offset, length=length) as reader:
        return b"".join(map(bytes, await reader.receive_parts()))


async def test_a_slow_reader_holds_up_neither_the_fetch_nor_memory():
    async with running() as store:
        digest, data = await put_slow(store, RING_BYTES * 3)
        async with store.open(digest) as reader:
            first = bytes((await reader.receive_parts(1000))[0])
            await store.fetches.wait_idle()
            assert await has(store.fast, digest)
            assert first + await drain(reader, taken=1000) == data
        assert store.slow.bytes_read == len(data)


async def test_a_late_follower_waits_for_the_fetch_and_reads_the_fast_store():
    async with running() as store:
        digest, data = await put_slow(store)
        store.slow.allow(2)
        got = []

        async def take():
            got.append(await read(store, digest))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await store.slow.stopped.wait()
            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            store.slow.allow(1000)
        assert got == [data, data]
        assert store.slow.bytes_read == len(data)


async def test_a_follower_of_a_stuck_fetch_reads_the_slow_store_by_itself(autojump_clock):
    async with running() as store:
        digest, data = await put_slow(store)
        store.slow.allow(2)
        async with store.open(digest):
            await store.slow.stopped.wait()
            store.slow.chunks_allowed = None
            assert await read(store, digest) == data
            assert store.statistics()["follower_timeouts"] == 1
            store.slow.allow(1000)


async def test_a_fetch_that_fails_halfway_does_not_cut_its_readers():
    """The fast store gives up in the middle; the reader goes on from the slow one where it was."""
    async with running(fast=Watched(max_bytes=LARGE + 1000)) as store:
        digest, data = await put_slow(store)
        hog = BlockingReader([bytes(2 * CHUNK)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.fast.write, "hog", hog)
            await hog.blocked.wait()
            assert await read(store, digest) == data
            assert store.statistics()["fetches_failed"] == 1
            nursery.cancel_scope.cancel()


async def test_a_slow_store_that_fails_is_told_as_it_is():
    async with running() as store:
        digest, _ = await put_slow(store)
        store.slow.read_error = UnavailableError("the backend is away")
        for key in (digest, digest_of(b"small")):
            with pytest.raises(UnavailableError, match="away"):
                await store.get(key)
            with pytest.raises(UnavailableError, match="away"):
                await read(store, key)


@pytest.mark.parametrize("error", [UnavailableError("away"), CorruptBlobError("rotten")])
@pytest.mark.parametrize("size", [100, LARGE])
async def test_a_fast_store_in_trouble_costs_speed_only(error, size):
    async with running() as store:
        digest, data = await put_slow(store, size)
        store.fast.read_error = store.fast.write_error = error
        assert await store.get(digest) == data
        assert await read(store, digest) == data
        other = os.urandom(size)
        await store.put(digest_of(other), other)
        third = os.urandom(size)
        await store.write(digest_of(third), PartsReader(split(third, 9999)))
        assert await store.slow.get(digest_of(other)) == other
        assert await store.slow.get(digest_of(third)) == third
        assert store.statistics()["fast_failures"] >= 4


async def test_a_bug_in_the_fast_store_does_not_take_the_server_down(caplog):
    async with running() as store:
        digest, data = await put_slow(store, 100)
        store.fast.write_error = ZeroDivisionError("a bug")
        assert await store.get(digest) == data
        await store.fetches.wait_idle()
        assert await store.get(digest) == data
        assert [record.levelno for record in caplog.records if "ZeroDivisionError" in record.getMessage()][:1] == [
            logging.WARNING
        ]


async def test_a_blob_over_the_threshold_is_read_past_the_fast_store():
    async with running(bypass_dedup_threshold_bytes=LARGE) as store:
        digest, data = await put_slow(store)
        small, _ = await put_slow(store, LARGE - 1)
        assert await read(store, digest) == data
        await read(store, small)
        await store.fetches.wait_idle()
        assert await store.fast.has([digest, small]) == [None, LARGE - 1]
        assert store.statistics()["bypassed"] == 1


async def test_get_of_a_blob_too_large_for_it_moves_nothing():
    async with running() as store:
        digest, _ = await put_slow(store, MAX_WHOLE + 1)
        with pytest.raises(ExhaustedError):
            await store.get(digest)
        assert isinstance((await store.get_many([digest]))[0], TooLargeError)
        await store.fetches.wait_idle()
        assert store.slow.bytes_read == 0 and await store.fast.has([digest]) == [None]


# --- directions


@pytest.mark.parametrize(
    ("direction", "uploads_fill", "reads_fill"),
    [("both", True, True), ("update", True, False), ("get", False, True), ("read_only", False, False)],
)
@pytest.mark.parametrize("size", [100, LARGE])
async def test_the_fast_direction_says_what_fills_the_fast_store(direction, uploads_fill, reads_fill, size):
    async with running(fast_direction=direction) as store:
        for upload in (store.put, lambda key, data: store.write(key, PartsReader(split(data, CHUNK)))):
            data = os.urandom(size)
            await upload(digest_of(data), data)
            assert await has(store.fast, digest_of(data)) == uploads_fill
            assert await has(store.slow, digest_of(data))
        for chunked in (False, True):
            digest, data = await put_slow(store, size)
            assert (await read(store, digest) if chunked else await store.get(digest)) == data
            await store.fetches.wait_idle()
            assert await has(store.fast, digest) == reads_fill


@pytest.mark.parametrize("direction", ["get", "read_only"])
async def test_a_slow_store_not_written_to_still_serves_and_uploads_are_found(direction):
    async with running(slow_direction=direction) as store:
        digest, data = await put_slow(store)
        mine = os.urandom(LARGE)
        await store.write(digest_of(mine), BytesReader(mine))
        assert not await has(store.slow, digest_of(mine))
        assert await store.has([digest, digest_of(mine)]) == [LARGE, LARGE]
        assert await store.get(digest) == data


async def test_with_neither_side_written_an_upload_is_consumed_and_gone():
    async with running(fast_direction="read_only", slow_direction="read_only") as store:
        digest = digest_of(b"abc")
        await store.put(digest, b"abc")
        await store.write(digest, BytesReader(b"abc"))
        assert not await has(store, digest)
        with pytest.raises(UploadMismatchError):
            await store.write(digest, VerifyingReader(BytesReader(b"abd"), digest))
        large = digest_of(bytes(LARGE))
        with pytest.raises(UploadMismatchError):
            await store.write(large, VerifyingReader(BytesReader(bytes(LARGE - 1) + b"x"), large))


async def test_two_sides_that_keep_nothing_keep_nothing():
    noop = NoopStore(NoopOptions(), BareContext())
    async with running(fast=noop, slow=NoopStore(NoopOptions(), BareContext())) as store:
        assert store.capability(Discards) is not None
    async with running(fast=noop) as store:
        assert store.capability(Discards) is None


# --- uploads


async def test_an_upload_that_the_slow_store_refuses_fails_and_leaves_nothing():
    async with running() as store:
        store.slow.write_error = ExhaustedError("disk full")
        data = os.urandom(LARGE)
        with pytest.raises(ExhaustedError, match="disk full"):
            await store.write(digest_of(data), PartsReader(split(data, CHUNK)))
        with pytest.raises(ExhaustedError, match="disk full"):
            await store.put(digest_of(data), data)
        assert not await has(store.fast, digest_of(data))


async def test_an_upload_too_large_for_the_fast_store_succeeds():
    async with running(fast=Watched(max_bytes=CHUNK)) as store:
        data = os.urandom(LARGE)
        await store.write(digest_of(data), PartsReader(split(data, CHUNK)))
        assert await read(store, digest_of(data)) == data


# --- keys whose value changes


async def test_a_fetch_of_an_old_value_never_lands_over_a_new_one():
    async with running(fast_direction="both") as store:
        key = ActionKey("ab" * 32, 5)
        await store.slow.put(key, b"old")
        store.slow.allow(0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.get, key)
            await store.slow.stopped.wait()
            nursery.start_soon(store.put, key, b"new")
            await trio.testing.wait_all_tasks_blocked()
            store.slow.chunks_allowed = None
            store.slow.more.set()
        await store.fetches.wait_idle()
        assert await store.fast.get(key) == b"new"
        assert await store.get(key) == b"new"


async def test_an_old_value_on_its_way_into_the_fast_store_lands_before_a_new_one():
    class Late(Watched):
        def __init__(self):
            super().__init__()
            self.puts, self.go_on = [], trio.Event()

        async def put(self, key, data):
            self.puts.append(data)
            if len(self.puts) == 1:
                await self.go_on.wait()
            await super().put(key, data)

    async with running(fast=Late()) as store:
        await store.slow.put(ACTION, b"old")
        assert await store.get(ACTION) == b"old"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.put, ACTION, b"new")
            await trio.testing.wait_all_tasks_blocked()
            store.fast.go_on.set()
        await store.fetches.wait_idle()
        assert store.fast.puts == [b"old", b"new"]
        assert await store.get(ACTION) == await store.fast.get(ACTION) == b"new"


async def test_where_uploads_go_to_the_fast_store_alone_one_that_fails_leaves_the_old_value():
    async with running(slow_direction="read_only") as store:
        await store.put("name", b"old")
        store.fast.write_error = UnavailableError("away")
        for upload in (store.put("name", b"new"), store.write("name", BytesReader(b"new"))):
            with pytest.raises(UnavailableError):
                await upload
        assert await store.get("name") == b"old"


async def test_nothing_is_deleted_in_a_fast_store_that_is_never_written_to():
    async with running(fast_direction="read_only") as store:
        await store.fast.put("name", b"old")
        await store.put("name", b"new")
        assert await store.get("name") == b"new"
        assert await store.fast.get("name") == b"old"


async def test_writers_of_one_key_at_once_leave_both_stores_alike():
    async with running() as store:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(store.put, "key", b"put %d" % number)
                nursery.start_soon(store.write, "key", PartsReader([b"write ", b"%d" % number]))
        assert await store.fast.get("key") == await store.slow.get("key")


async def test_a_new_value_that_the_fast_store_refused_is_served_all_the_same():
    async with running() as store:
        await store.put("key", b"old")
        store.fast.write_error = ExhaustedError("full")
        await store.put("key", b"new")
        assert await store.get("key") == b"new"
        await store.write("key", PartsReader([b"newer"]))
        assert await read(store, "key") == b"newer"
        store.fast.write_error = None
        await store.put("key", b"newest")
        assert await store.get("key") == b"newest"
        assert store.statistics()["stale_in_fast"] == 0


async def test_a_value_whose_upload_is_given_up_waits_seconds_for_the_fast_store_and_not_for_ever(autojump_clock):
    class Stuck(Watched):
        async def put(self, key, data):
            await trio.sleep_forever()

        write = put

        async def delete(self, keys):
            await trio.sleep_forever()

    async with running(fast=Stuck(), slow=Stuck()) as store:
        began = trio.current_time()
        for way in (store.put(ACTION, b"1"), store.write(ACTION, PartsReader([b"1"]))):
            with trio.move_on_after(1):
                await way
        assert trio.current_time() - began == pytest.approx(12)


async def test_the_fast_store_never_has_what_the_slow_one_has_not_yet():
    async with running() as store:
        data = os.urandom(LARGE)
        digest = digest_of(data)
        store.slow.write = hold = Held(store.slow.write)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, digest, PartsReader(split(data, CHUNK)))
            await hold.reached.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert await store.fast.has([digest]) == [None]
            hold.go_on.set()
        assert await store.fast.has([digest]) == [LARGE]


class Held:
    """Consumes the bytes, then waits before the blob is stored."""

    def __init__(self, write):
        self.write = write
        self.reached = trio.Event()
        self.go_on = trio.Event()

    async def __call__(self, key, reader):
        data = await drain(reader)
        self.reached.set()
        await self.go_on.wait()
        await self.write(key, BytesReader(data))


async def test_nothing_is_left_of_uploads_and_fetches_that_ended():
    async with running() as store:
        digest, _ = await put_slow(store)
        await read(store, digest)
        await store.put("key", b"value")
        await store.fetches.wait_idle()
        assert not store.uploads
        assert not store.fetches.running

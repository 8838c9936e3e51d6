"""What comes out of the slow store is hashed before anybody, and above all the fast store, takes it for right."""

import logging
import os
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from nl.blob.hashing import digest_of
from nl.plugin import (
    CHUNK,
    BlobNotFoundError,
    CorruptBlobError,
    Deletes,
    Digest,
    ExhaustedError,
    LocalFiles,
    Removals,
    UnavailableError,
    UploadMismatchError,
)
from nl.stores.fast_slow import FastSlowOptions, FastSlowStore
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import (
    BareContext,
    BlockingReader,
    Fault,
    FaultyStore,
    PartsReader,
    drain,
    make_blob,
    read,
    same,
    split,
    started,
)
from tests.unit.stores.test_fast_slow import LARGE, Watched, running

SIZES = [100, CHUNK, LARGE]


class KeepsAll(Watched):
    """A slow store that cannot delete."""

    def capability(self, kind):
        return None if kind is Deletes else super().capability(kind)


def put_wrong(store, size, *, wrong=None):
    """A blob whose bytes have rotted in the slow store."""
    data = os.urandom(size)
    rotten = wrong if wrong is not None else bytes([data[0] ^ 1]) + data[1:]
    store.slow._insert(digest_of(data), rotten)
    return digest_of(data), data


async def has(store, key):
    return (await store.has([key])) != [None]


async def read_wrong(store, digest):
    """What a reader meets: nothing at all, or an error in place of the last bytes."""
    with pytest.raises((BlobNotFoundError, CorruptBlobError)):
        await read(store, digest)


@pytest.mark.parametrize("direction", ["both", "update", "get", "read_only"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", SIZES)
async def test_wrong_bytes_are_nobodys_answer_and_never_reach_the_fast_store(direction, chunked, size):
    async with running(fast_direction=direction) as store:
        digest, data = put_wrong(store, size)
        if chunked:
            await read_wrong(store, digest)
        else:
            with pytest.raises(BlobNotFoundError):
                await store.get(digest)
        await store.fetches.wait_idle()
        assert not await has(store.fast, digest)
        assert not await has(store, digest)
        assert not await has(store.slow, digest), "it is deleted there"
        await store.put(digest, data)
        assert await has(store, digest)
        assert await store.get(digest) == data


@pytest.mark.parametrize("wrong", [b"", b"short", bytes(2 * LARGE)], ids=["empty", "short", "long"])
@pytest.mark.parametrize("size", SIZES)
async def test_a_wrong_size_is_wrong_bytes(size, wrong):
    async with running() as store:
        digest, _ = put_wrong(store, size, wrong=wrong)
        await read_wrong(store, digest)
        await store.fetches.wait_idle()
        assert not await has(store.fast, digest) and not await has(store.slow, digest)
        assert store.statistics()["wrong_in_slow"] == 1


async def test_what_cannot_be_deleted_is_missing_until_it_is_uploaded_and_told_once(caplog):
    async with running(slow=KeepsAll()) as store:
        digest, data = put_wrong(store, LARGE)
        with caplog.at_level(logging.ERROR):
            for _ in range(5):
                await read_wrong(store, digest)
                with pytest.raises(BlobNotFoundError):
                    await store.get(digest)
        assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
        assert await has(store.slow, digest)
        assert not await has(store, digest)
        assert store.capability(Removals) is None, "the slow store cannot know that it is missing"
        await store.write(digest, PartsReader(split(data, CHUNK)))
        assert await has(store, digest)
        assert await read(store, digest) == data
        assert store.statistics()["wrong_in_slow"] == 1


async def test_many_at_once_are_checked_each():
    async with running(slow=Watched()) as store:
        good = os.urandom(300)
        await store.slow.put(digest_of(good), good)
        digest, _ = put_wrong(store, 200)
        never = digest_of(b"never")
        first, second, third = await store.get_many([digest, digest_of(good), never])
        assert isinstance(first, BlobNotFoundError)
        assert second == good
        assert isinstance(third, BlobNotFoundError)
        await store.fetches.wait_idle()
        assert await store.fast.has([digest, digest_of(good)]) == [None, 300]


async def test_what_was_uploaded_while_the_wrong_bytes_were_read_is_not_deleted():
    async with running(fast_direction="update") as store:
        digest, data = put_wrong(store, LARGE)
        async with store.open(digest) as reader:
            first = await reader.receive_parts()
            assert first
            await store.put(digest, data)
            with pytest.raises(CorruptBlobError):
                while await reader.receive_parts():
                    pass
        assert await has(store.slow, digest)
        assert await read(store, digest) == data
        assert store.statistics()["wrong_in_slow"] == 0


@pytest.mark.parametrize("way", ["get", "get_many", "open"])
async def test_what_was_uploaded_while_the_wrong_bytes_were_on_their_way_is_not_deleted(way):
    class Far(Watched):
        def __init__(self):
            super().__init__()
            self.asked, self.go_on = trio.Event(), trio.Event()

        async def on_its_way(self):
            self.asked.set()
            await self.go_on.wait()

        async def get(self, key):
            data = await super().get(key)
            await self.on_its_way()
            return data

        @asynccontextmanager
        async def open(self, key, *, offset=0, length=None):
            async with super().open(key, offset=offset, length=length) as reader:
                await self.on_its_way()
                yield reader

    async with running(slow=Far(), fast_direction="update") as store:
        digest, data = put_wrong(store, 300)

        async def ask():
            if way == "get_many":
                assert isinstance((await store.get_many([digest]))[0], BlobNotFoundError)
            elif way == "open":
                await read_wrong(store, digest)
            else:
                with pytest.raises(BlobNotFoundError):
                    await store.get(digest)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await store.slow.asked.wait()
            await store.put(digest, data)
            store.slow.go_on.set()
        assert await has(store.slow, digest)
        assert await read(store, digest) == data
        assert store.statistics()["wrong_in_slow"] == 0


@pytest.mark.parametrize("way", ["put", "put many", "write"])
async def test_an_upload_waits_for_a_deletion_that_has_begun(way):
    class Deleting(Watched):
        def __init__(self):
            super().__init__()
            self.begun, self.go_on = trio.Event(), trio.Event()

        async def delete(self, keys):
            self.begun.set()
            await self.go_on.wait()
            await super().delete(keys)

    async with running(slow=Deleting()) as store:
        digest, data = put_wrong(store, 100)

        async def fail():
            with pytest.raises(BlobNotFoundError):
                await store.get(digest)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await store.slow.begun.wait()
            if way == "put":
                nursery.start_soon(store.put, digest, data)
            elif way == "put many":
                nursery.start_soon(store.put_many, [(digest_of(b"other"), b"other"), (digest, data)])
            else:
                nursery.start_soon(store.write, digest, PartsReader([data]))
            await trio.testing.wait_all_tasks_blocked()
            store.slow.go_on.set()
        assert await store.slow.has([digest]) == [100]
        assert await store.get(digest) == data


@pytest.mark.parametrize("leaves", [False, True], ids=["it fails", "its reader leaves"])
async def test_an_upload_does_not_wait_for_a_deletion_that_came_to_nothing(leaves):
    class Keeps(Watched):
        async def delete(self, keys):
            if leaves:
                scope.cancel()
                await trio.sleep_forever()
            raise UnavailableError("away")

    async with running(slow=Keeps(), fast_direction="update") as store:
        digest, data = put_wrong(store, 300)
        with trio.CancelScope() as scope, suppress(BlobNotFoundError):
            await store.get(digest)
        assert scope.cancelled_caught is leaves
        with trio.fail_after(60):
            await store.put(digest, data)
        assert await store.slow.get(digest) == data


@pytest.mark.parametrize("many", [False, True], ids=["one, and has waits for it", "many"])
async def test_a_wrong_blob_whose_upload_fails_is_missing_still(many):
    class Refuses(KeepsAll):
        def __init__(self):
            super().__init__()
            self.go_on = trio.Event()

        async def put(self, key, data):
            await self.go_on.wait()
            raise UnavailableError("away")

        async def put_many(self, blobs):
            return [UnavailableError("away")] * len(blobs)

    async with running(slow=Refuses()) as store:
        digest, data = put_wrong(store, 300)
        await read_wrong(store, digest)
        if many:
            assert isinstance((await store.put_many([(digest, data)]))[0], UnavailableError)
            assert await store.has([digest]) == [None]
            return

        async def upload():
            with pytest.raises(UnavailableError):
                await store.put(digest, data)

        async def ask():
            assert await store.has([digest]) == [None]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            store.slow.go_on.set()


async def test_readers_that_follow_a_wrong_fetch_are_told_at_its_end():
    async with running() as store:
        digest, data = put_wrong(store, LARGE, wrong=None)
        raised = []

        async def take():
            try:
                async with store.open(digest) as reader:
                    got = await drain(reader)
            except (CorruptBlobError, BlobNotFoundError) as error:
                raised.append(error)
            else:
                raise AssertionError(f"{len(got)} wrong bytes were served as right")

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(take)
        assert len(set(map(id, raised))) == 10, "each has an error of its own"


async def test_a_range_of_the_slow_store_is_served_as_it_is():
    """No digest speaks of it: whoever has to be sure reads the whole blob."""
    async with running(fast_direction="update") as store:
        digest, data = put_wrong(store, LARGE)
        assert await read(store, digest, offset=10, length=50) == data[10:60]


@pytest.mark.parametrize("size", [100, LARGE])
async def test_a_file_that_is_not_what_its_digest_says_is_adopted_by_neither(tmp_path, size):
    from nl.testing import started
    from tests.unit.stores.test_fast_slow_files import make_store

    context = BareContext()
    store = make_store(context, tmp_path, slow=MemoryStore(MemoryOptions(), context))
    async with started(store, context):
        digest = digest_of(os.urandom(size))
        for wrong in (os.urandom(size), os.urandom(size - 1), os.urandom(size + 1)):
            (tmp_path / "out").write_bytes(wrong)
            with pytest.raises(UploadMismatchError):
                await store.capability(LocalFiles).adopt_file(digest, str(tmp_path / "out"))
            assert await store.slow.has([digest]) == [None]
            assert await store.fast.has([digest]) == [None]
        assert isinstance(digest, Digest)


class RefusesMidway(MemoryStore):
    """A fast store that takes the first bytes and no more."""

    async def write(self, key, reader):
        await reader.receive_parts()
        raise ExhaustedError("full")


@pytest.mark.parametrize("which", ["right", "wrong at its end"])
async def test_what_follows_a_fetch_that_the_fast_store_breaks_off_is_checked_to_its_end(which):
    data = make_blob(2 << 20)
    digest = digest_of(data)
    stored = data if which == "right" else data[:-1] + bytes([data[-1] ^ 1])
    context = BareContext()
    fast, slow = RefusesMidway(MemoryOptions(), context), MemoryStore(MemoryOptions(), context)
    store = FastSlowStore(FastSlowOptions(fast=context.spec(fast), slow=context.spec(slow)), context)
    await slow.put(digest, stored)
    async with started(store, context):
        if which == "right":
            assert same(await read(store, digest), data)
        else:
            with pytest.raises(CorruptBlobError):
                await read(store, digest)
            assert await store.has([digest]) == [None]


async def test_a_slow_store_that_breaks_midway_ends_the_read_instead_of_going_on_unchecked():
    data = make_blob(2 << 20)
    digest = digest_of(data)
    context = BareContext()
    fast, slow = MemoryStore(MemoryOptions(), context), FaultyStore(MemoryStore(MemoryOptions(), context))
    store = FastSlowStore(FastSlowOptions(fast=context.spec(fast), slow=context.spec(slow)), context)
    await slow.put(digest, data)
    slow.plan("open", Fault(UnavailableError("cut"), after_bytes=1 << 20))
    async with started(store, context):
        with pytest.raises(UnavailableError, match="failed midway"):
            await read(store, digest)
        assert same(await read(store, digest), data)


async def test_a_stalled_upload_makes_one_question_wait_and_not_the_next(autojump_clock):
    context = BareContext()
    store = FastSlowStore(
        FastSlowOptions(
            fast=context.spec(MemoryStore(MemoryOptions(), context)),
            slow=context.spec(MemoryStore(MemoryOptions(), context)),
        ),
        context,
    )
    data = make_blob(200_000)
    digest = digest_of(data)
    reader = BlockingReader([data[:10]], rest=data[10:])
    async with started(store, context), trio.open_nursery() as nursery:
        nursery.start_soon(store.write, digest, reader)
        await reader.blocked.wait()
        waits = []
        for _ in range(3):
            began = trio.current_time()
            assert await store.has([digest]) == [None]
            waits.append(round(trio.current_time() - began))
        assert waits == [10, 0, 0]
        reader.go_on.set()


@pytest.mark.parametrize("direction", ["both", "get"])
@pytest.mark.parametrize("way", ["put", "put many", "write"])
async def test_whichever_way_a_wrong_blob_is_uploaded_again_it_is_there(way, direction):
    async with running(slow=KeepsAll(), fast_direction=direction) as store:
        digest, data = put_wrong(store, 1000)
        await read_wrong(store, digest)
        assert not await has(store, digest)
        if way == "put":
            await store.put(digest, data)
        elif way == "put many":
            assert await store.put_many([(digest, data)]) == [None]
        else:
            await store.write(digest, PartsReader(split(data, 300)))
        assert await has(store, digest)
        assert await read(store, digest) == data

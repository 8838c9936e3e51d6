"""What the two sides owe each other: uses are told, trouble of the fast one stays there, many are one trip."""

import os

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import (
    CHUNK,
    ActionKey,
    BlobNotFoundError,
    BytesReader,
    Deletes,
    EvictionPolicy,
    ExhaustedError,
    Link,
    LocalFiles,
    Removals,
    Traits,
    UnavailableError,
)
from nl.stores.fast_slow import FastSlowOptions, FastSlowStore
from nl.stores.fast_slow.ring import Ring
from nl.stores.fast_slow.stale import Stale
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, PartsReader, read, split, started
from tests.unit.stores.test_fast_slow import LARGE, RING_BYTES, Watched, put_slow, running
from tests.unit.stores.test_fast_slow_files import make_store

ACTION = ActionKey("ab" * 32, 5)


class Asked(Watched):
    """Remembers what it was asked, trip by trip."""

    traits = Traits()

    def __init__(self):
        super().__init__()
        self.touched, self.trips = [], []

    async def touch(self, keys):
        self.touched.append(list(keys))

    async def has(self, keys):
        self.trips.append(("has", len(keys)))
        return await super().has(keys)

    async def get_many(self, keys):
        self.trips.append(("get", len(keys)))
        return await super().get_many(keys)

    async def put_many(self, blobs):
        self.trips.append(("put", len(blobs)))
        return await super().put_many(blobs)


# --- uses


async def test_what_the_fast_store_answers_is_told_the_slow_one_in_one_trip(autojump_clock):
    async with running(slow=Asked()) as store:
        blobs = [os.urandom(100) for _ in range(10)]
        for data in blobs:
            await store.put(digest_of(data), data)
        for _ in range(20):
            for data in blobs:
                await store.get(digest_of(data))
                await read(store, digest_of(data))
        assert not store.slow.touched
        await trio.sleep(1.5)
        assert [sorted(trip) for trip in store.slow.touched] == [sorted(map(digest_of, blobs))]
        await trio.sleep(10)
        assert len(store.slow.touched) == 1


async def test_an_upload_has_uses_told_before_the_second_is_over(autojump_clock):
    async with running(slow=Asked()) as store:
        await store.put(digest_of(b"hot"), b"hot")
        await store.get(digest_of(b"hot"))
        await trio.testing.wait_all_tasks_blocked()
        await store.put(digest_of(b"other"), b"other")
        await trio.testing.wait_all_tasks_blocked()
        assert store.slow.touched == [[digest_of(b"hot")]]


async def test_the_last_uses_are_told_when_the_store_ends(autojump_clock):
    slow = Asked()
    async with running(slow=slow) as store:
        await store.put(digest_of(b"hot"), b"hot")
        await store.get(digest_of(b"hot"))
    assert slow.touched == [[digest_of(b"hot")]]


async def test_a_slow_store_that_takes_no_notice_is_not_told(autojump_clock):
    slow = Asked()
    slow.traits = Traits(tracks_use=False)
    async with running(slow=slow) as store:
        await store.put(digest_of(b"hot"), b"hot")
        await store.get(digest_of(b"hot"))
        await trio.sleep(5)
        assert store.traits == Traits(tracks_use=False)
    assert not slow.touched


async def test_a_blob_that_only_the_fast_store_serves_outlives_others_in_the_slow_one(autojump_clock):
    slow = MemoryStore(MemoryOptions(eviction_policy=EvictionPolicy(max_count=5)), BareContext())
    async with running(slow=slow) as store:
        await store.put(digest_of(b"hot"), b"hot")
        for number in range(30):
            assert await store.get(digest_of(b"hot")) == b"hot"
            await trio.testing.wait_all_tasks_blocked()
            await store.put(digest_of(b"%d" % number), b"%d" % number)
            await trio.sleep(0.01)
        assert await store.has([digest_of(b"hot")]) == [3]


async def test_linking_is_a_use(tmp_path, autojump_clock):
    context = BareContext()
    store = make_store(context, tmp_path, slow=Asked())
    async with started(store, context):
        await store.put(digest_of(b"input"), b"input")
        await store.capability(LocalFiles).link_files([Link(digest_of(b"input"), str(tmp_path / "in"), False)])
        with trio.fail_after(100):
            while not store.slow.touched:
                await trio.sleep(0.5)
        assert store.slow.touched == [[digest_of(b"input")]]


# --- trouble in the fast store


async def test_a_fast_store_that_times_out_leaves_the_upload_alone():
    class Timed(Watched):
        async def write(self, key, reader):
            with trio.move_on_after(0.02):
                while True:
                    await trio.sleep(0.001)
                    if not await reader.receive_parts():
                        return
            raise UnavailableError("the fast store timed out")

    class Slowly(PartsReader):
        async def receive_parts(self, max_bytes=CHUNK):
            await trio.sleep(0.005)
            return await super().receive_parts(max_bytes)

    async with running(fast=Timed()) as store:
        data = os.urandom(10_000)
        await store.write(digest_of(data), Slowly(split(data, 500)))
        assert await store.slow.get(digest_of(data)) == data
        assert store.statistics()["fast_failures"] == 1


@pytest.mark.parametrize("size", [100, LARGE])
async def test_a_fast_store_that_is_full_or_busy_fails_no_read(size):
    async with running() as store:
        digest, data = await put_slow(store, size)
        store.fast.read_error = store.fast.write_error = ExhaustedError("too many requests")
        assert await store.get(digest) == data
        assert await read(store, digest) == data
        assert await store.get_many([digest]) == [data]


# --- the ring


def test_a_ring_keeps_its_last_bytes_once_for_all():
    ring = Ring()
    ring.append([b"nobody watches"])
    assert (ring.start, ring.end) == (14, 14)
    ring.watchers = 300
    chunk = bytes(CHUNK)
    for _ in range(20):
        ring.append([chunk])
    assert ring.end == 14 + 20 * CHUNK
    assert ring.end - ring.start == RING_BYTES
    assert all(ring.piece(ring.end - 10).obj is chunk for _ in range(300))
    assert len(ring.piece(ring.end - 10)) == 10
    ring.append([b"a", memoryview(b"bc")])
    assert bytes(ring.piece(ring.end - 2)) == b"bc"
    ring.watchers = 0
    ring.append([b"d"])
    assert ring.start == ring.end


async def test_many_slow_readers_of_one_fetch_hold_the_same_bytes():
    async with running() as store:
        digest, data = await put_slow(store, 4 * RING_BYTES)
        store.slow.allow(1)
        readers, pieces = [], []
        async with trio.open_nursery() as nursery, trio.open_nursery() as holding:

            async def hold(*, task_status):
                async with store.open(digest) as reader:
                    readers.append(reader)
                    pieces.append((await reader.receive_parts(1000))[0])
                    task_status.started()
                    await trio.sleep_forever()

            for _ in range(50):
                await holding.start(hold)
            assert len({id(piece.obj) for piece in pieces}) == 1
            assert all(bytes(piece) == data[:1000] for piece in pieces)
            store.slow.allow(1000)
            await store.fetches.wait_idle()
            kept = readers[0]._fetch.ring
            assert kept.end - kept.start <= RING_BYTES
            holding.cancel_scope.cancel()
            nursery.cancel_scope.cancel()


# --- action results


@pytest.mark.parametrize("deletes", [True, False])
@pytest.mark.parametrize("direction", ["get", "read_only"])
async def test_action_results_are_read_through_a_fast_store_that_uploads_pass_by(direction, deletes):
    class Fast(Watched):
        def capability(self, kind):
            return super().capability(kind) if deletes else None

    async with running(fast=Fast(), fast_direction=direction) as store:
        if direction == "read_only":
            await store.fast.put(ACTION, b"one")
        await store.slow.put(ACTION, b"one")
        for _ in range(3):
            assert await store.get(ACTION) == b"one"
            await store.fetches.wait_idle()
        assert store.slow.reads == (1 if direction == "get" else 0)
        await store.put(ACTION, b"two")
        assert await store.slow.get(ACTION) == b"two"
        store.slow.reads = 0
        for _ in range(3):
            assert await store.get(ACTION) == b"two"
            await store.fetches.wait_idle()
        assert store.slow.reads == (1 if direction == "get" else 3)
        await store.write(ACTION, PartsReader([b"thr", b"ee"]))
        assert await read(store, ACTION) == b"three"
        assert store.statistics()["stale_in_fast"] <= 1


async def test_a_value_that_is_being_uploaded_is_not_filled():
    async with running(fast_direction="get") as store:
        await store.slow.put(ACTION, b"old")
        async with store.uploads.under_way(ACTION):
            assert await store.get(ACTION) == b"old"
            assert not store.fetches.running
        assert await store.fast.has([ACTION]) == [None]


def test_too_many_stale_keys_are_all_keys(monkeypatch):
    monkeypatch.setattr("nl.stores.fast_slow.stale.MAX_STALE", 3)
    stale = Stale("CAS")
    for key in "abc":
        stale.add(key)
    assert "d" not in stale
    stale.add("d")
    assert "d" in stale
    assert "anything" in stale


# --- many


async def test_many_blobs_are_one_trip_and_fill_the_fast_store():
    async with running(slow=Asked(), fast=Asked()) as store:
        blobs = [(digest_of(data), data) for data in (os.urandom(100 + n) for n in range(50))]
        assert await store.slow.put_many(blobs) == [None] * 50
        store.slow.trips.clear()
        for _ in range(2):
            assert await store.get_many([key for key, _ in blobs]) == [data for _, data in blobs]
            await store.fetches.wait_idle()
        assert store.slow.trips == [("get", 50)]
        assert store.fast.trips == [("get", 50), ("put", 50), ("get", 50)]
        assert (store.statistics()["fast_hits"], store.statistics()["fast_misses"]) == (50, 50)


async def test_many_that_are_being_fetched_already_are_not_fetched_again():
    async with running(slow=Asked()) as store:
        digest, data = await put_slow(store, 100)
        other, other_data = await put_slow(store, 200)
        store.slow.allow(0)
        got = []

        async def take(keys):
            got.append(await store.get_many(keys))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.get, digest)
            await store.slow.stopped.wait()
            nursery.start_soon(take, [digest, other, digest])
            await trio.testing.wait_all_tasks_blocked()
            store.slow.chunks_allowed = None
            store.slow.more.set()
        assert got == [[data, other_data, data]]
        assert store.slow.reads == 2


async def test_uploads_of_many_are_one_trip_to_each_and_the_slow_store_decides():
    async with running(slow=Asked(), fast=Asked()) as store:
        blobs = [(digest_of(data), data) for data in (os.urandom(100 + n) for n in range(20))]
        assert await store.put_many([*blobs, (ACTION, b"result")]) == [None] * 21
        assert store.slow.trips == store.fast.trips == [("put", 20)]
        assert await store.fast.get(ACTION) == await store.slow.get(ACTION) == b"result"
        store.fast.write_error = ExhaustedError("full")
        other = (digest_of(b"other"), b"other")
        assert await store.put_many([other]) == [None]
        store.slow.write_error = ExhaustedError("disk full")
        (refused,) = await store.put_many([(digest_of(b"third"), b"third")])
        assert isinstance(refused, ExhaustedError)
        assert await store.fast.has([digest_of(b"third")]) == [None]


async def test_links_that_the_fast_store_lacks_are_asked_for_together(tmp_path):
    context = BareContext()
    store = make_store(context, tmp_path, slow=Asked())
    async with started(store, context):
        blobs = [(digest_of(data), data) for data in (b"%d" % n for n in range(100))]
        await store.slow.put_many(blobs[:50])
        store.slow.trips.clear()
        links = [Link(digest, str(tmp_path / f"in{n}"), False) for n, (digest, _) in enumerate(blobs)]
        assert await store.capability(LocalFiles).link_files(links) == [digest for digest, _ in blobs[50:]]
        assert store.slow.trips == [("get", 100), ("has", 50)]


# --- deleting


async def test_what_is_deleted_is_gone_from_both_and_told():
    async with running() as store:
        feed = store.capability(Removals).watch_removals()
        await store.put(digest_of(b"abc"), b"abc")
        await store.capability(Deletes).delete([digest_of(b"abc")])
        assert await store.fast.has([digest_of(b"abc")]) == [None]
        assert feed.take() == [digest_of(b"abc")]
        with pytest.raises(BlobNotFoundError):
            await store.get(digest_of(b"abc"))


async def test_it_does_not_delete_where_a_side_that_is_read_cannot():
    class Keeps(Watched):
        def capability(self, kind):
            return None

    async with running(fast=Keeps()) as store:
        assert store.capability(Deletes) is None


class Late(MemoryStore):
    """A store whose writing can be made to wait."""

    waits = False

    async def put(self, key, data):
        if self.waits:
            await trio.sleep_forever()
        await super().put(key, data)

    async def write(self, key, reader):
        if self.waits:
            await trio.sleep_forever()
        await super().write(key, reader)


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_upload_given_up_between_the_stores_leaves_no_old_action_result_in_the_fast_one(streamed):
    context = BareContext()
    fast, slow = Late(MemoryOptions(), context), MemoryStore(MemoryOptions(), context)
    options = FastSlowOptions(fast=context.spec(fast), slow=context.spec(slow))
    async with started(FastSlowStore(options, context)) as store:
        key = ActionKey("ab" * 32, 5)
        await store.put(key, b"old")
        fast.waits = True
        with trio.move_on_after(0.05) as left:
            await (store.write(key, BytesReader(b"new")) if streamed else store.put(key, b"new"))
        assert left.cancelled_caught
        fast.waits = False
        assert bytes(await store.get(key)) == bytes(await slow.get(key))
        assert bytes(await store.get(key)) == bytes(await slow.get(key)), "also once it has been fetched"
        assert store.statistics()["stale_in_fast"] == 0


async def test_what_the_fast_store_answers_of_many_is_told_too(autojump_clock):
    async with running(slow=Asked()) as store:
        blobs = [os.urandom(100) for _ in range(10)]
        for data in blobs:
            await store.put(digest_of(data), data)
        assert await store.get_many([*map(digest_of, blobs[:5]), digest_of(b"none")])
        await trio.sleep(1.5)
        assert [sorted(trip) for trip in store.slow.touched] == [sorted(map(digest_of, blobs[:5]))]

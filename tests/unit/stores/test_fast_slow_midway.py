"""What happens to a fast_slow store while something else is under way: fetches, uploads and deletions of one blob."""

import os
from contextlib import nullcontext

import pytest
import trio
import trio.testing

from nl.blob.hashing import digest_of
from nl.plugin import (
    CHUNK,
    MAX_WHOLE,
    SMALL,
    ActionKey,
    BlobNotFoundError,
    BytesReader,
    CorruptBlobError,
    Deletes,
    ExhaustedError,
    Link,
    LocalFiles,
    RangeError,
    TooLargeError,
    Traits,
    UnavailableError,
)
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, BlockingReader, Fault, FaultyStore, PartsReader, away, read, split, started
from tests.unit.stores.test_fast_slow import LARGE, RING_BYTES, Watched, put_slow, running
from tests.unit.stores.test_fast_slow_files import make_store

ACTION = ActionKey("ab" * 32, 5)


class Held(Watched):
    """Its reads wait until `go_on` is set."""

    def __init__(self):
        super().__init__()
        self.go_on = trio.Event()

    async def get(self, key):
        await self.go_on.wait()
        return await super().get(key)


class ReadsFirst(Held):
    """What is read is so from before the wait. Deleting waits for `deletes`."""

    def __init__(self):
        super().__init__()
        self.deletes = trio.Event()

    async def get(self, key):
        data = await MemoryStore.get(self, key)
        await self.go_on.wait()
        return data

    async def delete(self, keys):
        await self.deletes.wait()
        await super().delete(keys)


class Deleting(Watched):
    """Deleting takes a while."""

    async def delete(self, keys):
        await trio.sleep(1)
        await super().delete(keys)


class Stuck(Watched):
    """Takes whole blobs for ever."""

    async def put(self, key, data):
        await trio.sleep_forever()

    async def put_many(self, blobs):
        await trio.sleep_forever()


# --- reading


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("direction", ["both", "update"])
async def test_a_blob_that_is_nowhere_is_missing_as_soon_as_it_is_opened(size, direction):
    missing = digest_of(bytes(size))
    async with running(fast_direction=direction) as store:
        entered = False
        with pytest.raises(BlobNotFoundError, match="not found in either fast or slow store"):
            async with store.open(missing):
                entered = True
        assert not entered
        assert store.statistics()["fetches_completed"] == 0
        if size == SMALL:
            (error,) = await store.get_many([missing])
            assert isinstance(error, BlobNotFoundError) and "in either fast or slow store" in error.message


async def test_a_blob_too_large_to_be_had_whole_is_not_asked_for_twice():
    data = bytes(MAX_WHOLE + 1)
    async with running() as store:
        await store.put(digest_of(data), data)
        (error,) = await store.get_many([digest_of(data)])
        assert isinstance(error, TooLargeError)
        with pytest.raises(TooLargeError):
            await store.get(digest_of(data))
        assert store.slow.reads == 0
        assert (store.statistics()["fast_misses"], store.statistics()["fast_failures"]) == (0, 0)


async def test_a_slow_store_that_has_failed_is_not_read_on():
    asked_after = []

    class Breaks(Watched):
        def open(self, key, *, offset=0, length=None):
            return Breaking(super().open(key, offset=offset, length=length))

    class Breaking:
        def __init__(self, inner):
            self.inner = inner

        async def __aenter__(self):
            self.reader, self.calls = await self.inner.__aenter__(), 0
            self.size = self.reader.size
            return self

        async def __aexit__(self, *error):
            return await self.inner.__aexit__(*error)

        async def receive_parts(self, max_bytes=CHUNK):
            await trio.testing.wait_all_tasks_blocked()
            self.calls += 1
            if self.calls == 3:
                raise UnavailableError("broken")
            asked_after.append(self.calls > 3)
            return await self.reader.receive_parts(max_bytes)

    async with running(slow=Breaks()) as store:
        digest, _ = await put_slow(store)
        with pytest.raises(UnavailableError, match="broken"):
            await read(store, digest)
        await store.fetches.wait_idle()
    assert asked_after and not any(asked_after)


async def test_values_of_stale_keys_come_from_the_slow_store_and_its_blobs_from_the_fast_one():
    async with running() as store:
        digest = digest_of(b"blob")
        await store.put(digest, b"blob")
        await store.put(ACTION, b"value")
        store._stale._all = True
        store.slow.reads = 0
        assert await store.get(digest) == b"blob" and store.slow.reads == 0
        assert await store.get_many([ACTION, digest]) == [b"value", b"blob"] and store.slow.reads == 1


@pytest.mark.parametrize("many", [False, True])
async def test_a_threshold_is_a_size_from_which_on_blobs_pass_by(many):
    async with running(bypass_dedup_threshold_bytes=1000) as store:
        for size, fills in ((999, True), (1000, False)):
            digest, data = await put_slow(store, size)
            assert (await store.get_many([digest]) if many else [await store.get(digest)]) == [data]
            await store.fetches.wait_idle()
            assert (await store.fast.has([digest]) != [None]) is fills


@pytest.mark.parametrize("direction", ["both", "update"])
async def test_a_key_that_is_asked_for_twice_is_had_once(direction):
    async with running(fast_direction=direction) as store:
        digest, data = await put_slow(store, 100)
        got = await store.get_many([digest, digest_of(b"none"), digest])
        assert got[0] == got[2] == data and isinstance(got[1], BlobNotFoundError)
        assert store.slow.reads == 1


async def test_a_range_is_far_ahead_by_where_the_fetch_is_and_not_by_where_the_blob_begins():
    async with running() as store:
        digest, data = await put_slow(store, 3 * RING_BYTES)
        store.slow.allow(9)
        async with store.open(digest):
            await store.slow.stopped.wait()  # a quarter of a ring before the range
            got = []

            async def take():
                got.append(await read(store, digest, offset=10 * CHUNK, length=10))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(take)
                await trio.testing.wait_all_tasks_blocked()
                store.slow.allow(1000)
        assert got == [data[10 * CHUNK :][:10]] and store.slow.reads == 1


async def test_who_comes_when_the_ring_has_gone_on_waits_for_the_fetch_and_reads_the_fast_store():
    async with running() as store:
        digest, data = await put_slow(store, 3 * RING_BYTES)
        store.slow.allow(6)
        got = []

        async def take():
            got.append(await read(store, digest))

        async with store.open(digest), trio.open_nursery() as nursery:
            await store.slow.stopped.wait()
            assert store.fetches.running[digest].ring.start > 0
            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            store.slow.allow(1000)
        assert got == [data] and store.slow.reads == 1


async def test_a_single_reader_has_each_chunk_as_it_comes():
    async with running() as store:
        digest, data = await put_slow(store, 3 * CHUNK)
        store.slow.allow(1)
        got = []

        async def take(reader):
            while len(got) < 3:
                got.append(b"".join(await reader.receive_parts()))

        async with store.open(digest) as reader, trio.open_nursery() as nursery:
            nursery.start_soon(take, reader)
            for number in range(1, 3):
                await trio.testing.wait_all_tasks_blocked()
                assert got == [data[at * CHUNK : (at + 1) * CHUNK] for at in range(number)]
                store.slow.allow(1)
        assert b"".join(got) == data


async def test_who_comes_late_to_a_fetch_that_stands_still_reads_the_slow_store_after_a_minute(autojump_clock):
    async with running() as store:
        digest, data = await put_slow(store, 3 * RING_BYTES)
        store.slow.allow(6)
        async with store.open(digest):
            await store.slow.stopped.wait()
            assert store.fetches.running[digest].ring.start > 0
            store.slow.chunks_allowed = None  # for who comes from now on
            began = trio.current_time()
            assert await read(store, digest) == data
            assert trio.current_time() - began == pytest.approx(60)
        assert store.statistics()["follower_timeouts"] == 1


@pytest.mark.parametrize("size", [100, LARGE])
async def test_a_range_beyond_the_blob_is_the_askers_mistake_and_nobodys_trouble(size):
    async with running() as store:
        digest = digest_of(data := os.urandom(size))
        await store.put(digest, data)
        with pytest.raises(RangeError):
            await read(store, digest, offset=size + 1)
        assert store.statistics()["fast_failures"] == store.slow.reads == 0


async def test_a_fetch_goes_on_for_those_who_still_follow_it_only():
    class Refusing(Watched):
        async def write(self, key, reader):
            await reader.receive_parts()
            raise ExhaustedError("full")

    async with running(fast=Refusing()) as store:
        digest, _ = await put_slow(store)
        store.slow.allow(0)
        async with store.open(digest):
            await store.slow.stopped.wait()
        store.slow.allow(1000)  # nobody follows any more when the fast store refuses
        await store.fetches.wait_idle()
        assert store.slow.bytes_read <= 2 * CHUNK


async def test_who_follows_a_fetch_that_only_goes_on_for_him_gets_his_turns():
    """A slow store that never waits would be read to its end before anybody has seen what the ring can hold."""

    class Refusing(Watched):
        async def write(self, key, reader):
            await reader.receive_parts()
            raise ExhaustedError("full")

    class AtOnce(MemoryStore):
        opened = 0

        def open(self, key, *, offset=0, length=None):
            self.opened += 1
            return super().open(key, offset=offset, length=length)

    slow = AtOnce(MemoryOptions(), BareContext())
    async with running(fast=Refusing(), slow=slow) as store:
        digest, data = await put_slow(store, 4 * RING_BYTES)
        got = bytearray()
        async with store.open(digest) as reader:
            while parts := await reader.receive_parts():
                got += b"".join(parts)
        assert got == data and slow.opened == 1


async def test_a_fast_store_that_uploads_pass_by_is_asked_for_what_a_slow_one_that_is_never_written_lacks():
    async with running(fast_direction="get", slow_direction="get") as store:
        await store.fast.put(digest := digest_of(b"from before"), b"from before")
        assert await store.has([digest]) == [digest.size]


async def test_a_range_of_a_blob_that_a_batch_brings_is_cut_from_it(autojump_clock):
    class Slow(Held):
        async def get_many(self, keys):
            await self.go_on.wait()
            return await super().get_many(keys)

    async with running(fast=Stuck(), slow=Slow()) as store:
        digest, data = await put_slow(store, SMALL + 1000)
        got = []

        async def take(offset, length):
            got.append(await read(store, digest, offset=offset, length=length))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.get_many, [digest, digest_of(b"other")])
            await trio.testing.wait_all_tasks_blocked()
            for offset, length in ((5, 7), (5, None), (0, 7)):
                nursery.start_soon(take, offset, length)
            await trio.testing.wait_all_tasks_blocked()
            store.slow.go_on.set()
            began = trio.current_time()
        assert sorted(got) == sorted([data[5:12], data[5:], data[:7]])
        assert trio.current_time() == began, "nor do they wait for the fast store"


async def test_a_wrong_blob_that_cannot_be_deleted_is_read_once_by_who_finds_it():
    class Keeps(Watched):
        def capability(self, kind):
            return None if kind is Deletes else super().capability(kind)

    async with running(slow=Keeps()) as store:
        digest = digest_of(os.urandom(LARGE))
        store.slow._insert(digest, os.urandom(LARGE))
        with pytest.raises(BlobNotFoundError, match="in either fast or slow"):
            await store.get(digest)
        assert store.slow.reads == 1


async def test_a_value_too_large_to_be_had_whole_fills_the_fast_store_as_a_stream():
    data = os.urandom(MAX_WHOLE + 1)
    async with running() as store:
        await store.slow.put("name", data)
        assert await read(store, "name") == data
        await store.fetches.wait_idle()
        assert await store.fast.has(["name"]) == [len(data)]


async def test_of_failures_in_a_row_the_first_is_told_and_the_first_after_a_success(caplog):
    async with running(fast_direction="get") as store:
        digests = [(await put_slow(store, 100 + number))[0] for number in range(6)]
        for digest, fails in zip(digests, (True, False, True, False, True, True), strict=True):
            store.fast.write_error = ExhaustedError("full") if fails else None
            await store.get(digest)
            await store.fetches.wait_idle()
        told = [record for record in caplog.records if "did not take" in record.getMessage()]
        assert [record.levelname for record in told if record.levelname == "WARNING"] == ["WARNING"] * 3
        assert store.statistics()["fetches_failed"] == 4


async def test_fetches_of_many_are_counted_one_by_one():
    async with running() as store:
        digests = [(await put_slow(store, 100 + number))[0] for number in range(3)]
        await store.get_many(digests)
        await store.fetches.wait_idle()
        assert store.statistics()["fetches_completed"] == 3

        async def put_many(blobs):
            raise ExhaustedError("full")

        store.fast.put_many = put_many
        await store.get_many([(await put_slow(store, 200 + number))[0] for number in range(4)])
        await store.fetches.wait_idle()
        assert store.statistics()["fetches_failed"] == 4


async def test_of_many_that_are_fetched_the_fast_store_keeps_what_it_takes_whatever_it_refuses():
    async with running(fast=Watched(max_bytes=3000)) as store:
        digests = [(await put_slow(store, size))[0] for size in (4000, 100, 200)]
        await store.get_many(digests)
        await store.fetches.wait_idle()
        assert await store.fast.has(digests) == [None, 100, 200]
        statistics = store.statistics()
        assert (statistics["fetches_completed"], statistics["fetches_failed"]) == (2, 1)


async def test_what_the_slow_store_lacks_or_fails_to_give_is_no_failure_of_the_fast_one(caplog):
    async def away(keys):
        raise UnavailableError("away")

    async with running() as store:
        digests = [digest_of(b"%d" % number) for number in range(3)]
        with pytest.raises(BlobNotFoundError):
            await store.get(digests[0])
        await store.get_many(digests)
        store.slow.get_many = away
        with pytest.raises(UnavailableError):
            await store.get_many(digests)
        await store.fetches.wait_idle()
        assert store.statistics()["fetches_failed"] == 0
        assert "did not take" not in caplog.text


async def test_readers_do_not_wait_for_the_fast_store(autojump_clock):
    async with running(fast=Stuck()) as store:
        began = trio.current_time()
        blobs = [await put_slow(store, 100) for _ in range(3)]
        *got, gone = await store.get_many([*(digest for digest, _ in blobs), digest_of(b"gone")])
        assert got == [data for _, data in blobs] and isinstance(gone, BlobNotFoundError)
        digest, data = await put_slow(store, 200)
        assert await store.get(digest) == data
        assert trio.current_time() == began


async def test_a_fast_store_that_is_away_costs_many_nothing_but_time():
    class Away(Watched):
        async def get_many(self, keys):
            raise UnavailableError("away")

        async def put_many(self, blobs):
            raise UnavailableError("away")

    async with running(fast=Away()) as store:
        blobs = [(digest_of(data := os.urandom(100 + number)), data) for number in range(3)]
        assert await store.put_many(blobs) == [None] * 3
        assert await store.get_many([digest for digest, _ in blobs]) == [data for _, data in blobs]
        assert store.statistics()["fast_failures"] == 6
    async with running(fast=Away(), slow_direction="read_only") as store:
        assert [type(each) for each in await store.put_many(blobs)] == [UnavailableError] * 3


async def test_readers_of_a_fetch_that_stands_still_ask_the_slow_store_after_a_minute(autojump_clock):
    class Stalls(Watched):
        stalled = 0

        async def get(self, key):
            self.stalled += 1
            if self.stalled == 1:
                await trio.sleep_forever()
            return await super().get(key)

        async def get_many(self, keys):
            return [await super(Stalls, self).get(key) for key in keys]

    async with running(slow=Stalls()) as store:
        digest, data = await put_slow(store, 100)
        began = trio.current_time()
        assert await store.get(digest) == data
        assert trio.current_time() - began == pytest.approx(60)
        assert store.statistics()["follower_timeouts"] == 1
        assert await store.get_many([digest]) == [data]
        assert trio.current_time() - began == pytest.approx(120)
        assert store.statistics()["follower_timeouts"] == 2


async def test_what_is_missing_is_asked_for_once():
    class Asked(Watched):
        trips = ()

        async def get_many(self, keys):
            self.trips = (*self.trips, len(keys))
            return await super().get_many(keys)

    async with running(slow=Asked()) as store:
        await store.get_many([digest_of(b"one"), digest_of(b"two")])
        assert store.slow.trips == (2,)


async def test_a_streamed_fetch_is_counted_and_makes_its_value_served():
    async with running() as store:
        digest, data = await put_slow(store)
        assert await read(store, digest) == data
        await store.fetches.wait_idle()
        assert (store.statistics()["fetches_completed"], store.statistics()["fetches_failed"]) == (1, 0)


async def test_a_wrong_blob_that_the_slow_store_does_not_delete_is_told_and_missing(caplog):
    class Refuses(Watched):
        async def delete(self, keys):
            raise UnavailableError("read-only")

    async with running(slow=Refuses()) as store:
        digest = digest_of(b"blob")
        store.slow._insert(digest, b"blub")
        with pytest.raises(BlobNotFoundError):
            await store.get(digest)
        assert f"could not delete {digest}: read-only" in caplog.text
        assert await store.has([digest]) == [None]


async def test_a_blob_that_can_just_be_had_whole_fills_the_fast_store():
    data = bytes(MAX_WHOLE)
    async with running() as store:
        await store.slow.put(digest_of(data), data)
        assert len(await store.get(digest_of(data))) == MAX_WHOLE
        await store.fetches.wait_idle()
        assert await store.fast.has([digest_of(data)]) == [MAX_WHOLE]


async def test_a_store_that_has_ended_still_reads_and_fills_nothing():
    async with running() as store:
        pass
    digest, data = await put_slow(store)
    small, more = await put_slow(store, 100)
    assert await read(store, digest) == data
    assert await store.get_many([small]) == [more] and await store.get(small) == more
    assert not store.fetches.running and await store.fast.has([digest, small]) == [None, None]


async def test_only_what_was_being_uploaded_is_asked_for_again():
    class Asked(Watched):
        asked = ()

        async def has(self, keys):
            self.asked = (*self.asked, list(keys))
            return await super().has(keys)

    async with running(slow=Asked()) as store:
        new, none = digest_of(b"new"), digest_of(b"none")
        reader = BlockingReader([b"n"], rest=b"ew")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, new, reader)
            await reader.blocked.wait()

            async def ask():
                assert await store.has([none, new]) == [None, 3]

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            reader.go_on.set()
        assert store.slow.asked == ([none, new], [new])


# --- uploads


async def test_an_upload_of_many_has_uses_told_before_it_may_evict():
    told = []

    class Told(Watched):
        async def touch(self, keys):
            told.extend(keys)

    async with running(slow=Told()) as store:
        digest = digest_of(b"used")
        await store.put(digest, b"used")
        await store.get(digest)
        await store.put_many([(digest_of(b"new"), b"new")])
        await trio.testing.wait_all_tasks_blocked()
        assert told == [digest], "and that is sooner than a second later"


async def test_an_upload_of_a_blob_does_not_wait_for_its_fetch_and_one_of_a_value_does():
    async with running(slow=Held()) as store:
        digest = digest_of(b"blob")
        await store.slow.put(digest, b"blob")
        await store.slow.put(ACTION, b"old")
        ended = []

        async def put(key, data):
            await store.put(key, data)
            ended.append(key)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.get, digest)
            nursery.start_soon(store.get, ACTION)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(put, digest, b"blob")
            nursery.start_soon(put, ACTION, b"new")
            await trio.testing.wait_all_tasks_blocked()
            assert ended == [digest]
            store.slow.go_on.set()
        assert await store.fast.get(ACTION) == await store.slow.get(ACTION) == b"new"


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_value_whose_upload_is_given_up_is_taken_out_of_the_fast_store(streamed, autojump_clock):
    class Stuck(Watched):
        stuck = False

        async def put(self, key, data):
            if self.stuck:
                await trio.sleep_forever()
            await super().put(key, data)

        async def write(self, key, reader):
            if self.stuck:
                await trio.sleep_forever()
            await super().write(key, reader)

    async with running(fast=Deleting(), slow=Stuck()) as store:
        await store.put(ACTION, b"old")
        store.slow.stuck = True
        with trio.move_on_after(1):
            await (store.write(ACTION, BytesReader(b"new")) if streamed else store.put(ACTION, b"new"))
        assert await store.fast.has([ACTION]) == [None]
        assert store.statistics()["stale_in_fast"] == 0


@pytest.mark.parametrize("direction", ["both", "update", "get"])
async def test_a_value_that_the_fast_store_does_not_take_is_taken_out_of_it(direction):
    async with running(fast_direction=direction) as store:
        await store.fast.put(ACTION, b"old")
        store.fast.write_error = ExhaustedError("full")
        await store.put(ACTION, b"new")
        assert await store.fast.has([ACTION]) == [None] and await store.get(ACTION) == b"new"
        assert store.statistics()["stale_in_fast"] == 0


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_value_that_the_fast_store_has_again_is_served_from_it(streamed):
    class Keeps(Watched):
        def capability(self, kind):
            return None if kind is Deletes else super().capability(kind)

    async with running(fast=Keeps()) as store:
        await store.put(ACTION, b"one")
        store.fast.write_error = ExhaustedError("full")
        await store.put(ACTION, b"two")
        assert store.statistics()["stale_in_fast"] == 1 and await store.get(ACTION) == b"two"
        store.fast.write_error = None
        await (store.write(ACTION, BytesReader(b"three")) if streamed else store.put(ACTION, b"three"))
        store.slow.reads = 0
        assert await store.get(ACTION) == b"three" and store.slow.reads == 0
        assert store.statistics()["stale_in_fast"] == 0


async def test_a_value_that_could_not_be_taken_out_of_the_fast_store_is_not_served_from_it():
    class Keeps(Watched):
        async def delete(self, keys):
            raise UnavailableError("away")

    async with running(fast=Keeps()) as store:
        await store.put(ACTION, b"old")
        store.fast.write_error = ExhaustedError("full")
        await store.put(ACTION, b"new")
        assert await store.fast.get(ACTION) == b"old" and await store.get(ACTION) == b"new"
        assert store.statistics()["stale_in_fast"] == 1


@pytest.mark.parametrize(("authoritative", "there", "stale"), [(True, False, 0), (True, True, 1), (False, False, 1)])
async def test_a_fast_store_that_cannot_delete_may_answer_again_if_it_surely_has_no_old_value(
    authoritative, there, stale
):
    class Keeps(Watched):
        traits = Traits(authoritative=authoritative)

        def capability(self, kind):
            return None if kind is Deletes else super().capability(kind)

    async with running(fast=Keeps()) as store:
        if there:
            await store.fast.put(ACTION, b"old")
        store.fast.write_error = ExhaustedError("full")
        await store.put(ACTION, b"new")
        assert store.statistics()["stale_in_fast"] == stale
        assert await store.get(ACTION) == b"new"


async def test_a_slow_store_that_takes_no_more_since_it_has_the_blob_stops_the_fast_one_nowhere():
    class HasIt(Watched):
        async def write(self, key, reader):
            await reader.receive_parts()

    data = os.urandom(LARGE)
    async with running(slow=HasIt()) as store:
        with trio.fail_after(60):
            await store.write(digest_of(data), PartsReader(split(data, 70_000)))
        assert await store.fast.get(digest_of(data)) == data


async def test_a_bug_in_the_fast_store_is_not_taken_for_a_success():
    class Buggy(Watched):
        async def write(self, key, reader):
            raise ZeroDivisionError("a bug")

    async with running(fast=Buggy()) as store:
        with pytest.raises(ZeroDivisionError):
            await store.write(digest_of(b"blob"), BytesReader(b"blob"))


@pytest.mark.parametrize("direction", ["get", "read_only"])
async def test_where_the_slow_store_is_not_written_to_what_the_fast_one_says_is_told(direction):
    digest = digest_of(b"blob")
    async with running(slow_direction=direction) as store:
        store.fast.write_error = ExhaustedError("full")
        for way in (store.put(digest, b"blob"), store.write(digest, PartsReader([b"blob"])), store.put(ACTION, b"x")):
            with pytest.raises(ExhaustedError):
                await way
        failures = await store.put_many([(digest, b"blob"), (ACTION, b"x")])
        assert [type(each) for each in failures] == [ExhaustedError] * 2
        assert await store.slow.has([digest, ACTION]) == [None, None]


async def test_what_the_slow_store_refuses_never_reaches_the_fast_one():
    digest = digest_of(b"blob")
    async with running() as store:
        store.slow.write_error = ExhaustedError("full")
        for key, way in (
            (digest, store.put(digest, b"blob")), (digest, store.write(digest, BytesReader(b"blob"))),
            (ACTION, store.put(ACTION, b"x")), (ACTION, store.write(ACTION, BytesReader(b"x"))),
        ):  # fmt: skip
            with pytest.raises(ExhaustedError):
                await way
            assert await store.fast.has([key]) == [None]
        failures = await store.put_many([(digest, b"blob"), (ACTION, b"x")])
        assert [type(each) for each in failures] == [ExhaustedError] * 2
        assert await store.fast.has([digest, ACTION]) == [None, None]


# --- deleting


async def test_what_is_deleted_while_it_is_fetched_does_not_come_back():
    async with running(slow=ReadsFirst()) as store:
        store.slow.deletes.set()
        keys = [digest_of(b"idle"), digest_of(b"fetched")]
        for key, data in zip(keys, (b"idle", b"fetched"), strict=True):
            await store.slow.put(key, data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.get, keys[1])
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(store.capability(Deletes).delete, keys)
            await trio.testing.wait_all_tasks_blocked()
            store.slow.go_on.set()
        await store.fetches.wait_idle()
        assert await store.fast.has(keys) == await store.has(keys) == [None, None]


async def test_a_fetch_that_begins_while_the_slow_store_deletes_brings_nothing_back():
    async with running(slow=ReadsFirst()) as store:
        digest = digest_of(b"blob")
        await store.slow.put(digest, b"blob")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.capability(Deletes).delete, [digest])
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(store.get, digest)
            await trio.testing.wait_all_tasks_blocked()
            store.slow.deletes.set()
            await trio.testing.wait_all_tasks_blocked()
            store.slow.go_on.set()
        await store.fetches.wait_idle()
        assert await store.fast.has([digest]) == await store.has([digest]) == [None]


class LeavesHalfway(Watched):
    """Deletes, and then the scope of who asked is cancelled, or it fails."""

    def __init__(self, then, scope):
        super().__init__()
        self.then, self.scope = then, scope

    async def delete(self, keys):
        await super().delete(keys)
        if self.then == "cancelled":
            self.scope.cancel()
            await trio.lowlevel.checkpoint()
        raise UnavailableError("gone away")


@pytest.mark.parametrize("fast_fails", [False, True])
@pytest.mark.parametrize("then", ["cancelled", "fails"])
async def test_what_the_slow_store_has_deleted_is_deleted_in_the_fast_one_whatever_came_between(
    then, fast_fails, caplog
):
    scope = trio.CancelScope()
    fast = LeavesHalfway("fails", scope) if fast_fails else Watched()
    async with running(slow=LeavesHalfway(then, scope), fast=fast) as store:
        keys = [digest_of(b"one"), digest_of(b"two")]
        for key, data in zip(keys, (b"one", b"two"), strict=True):
            await store.put(key, data)
        with scope, pytest.raises(UnavailableError) if then == "fails" else nullcontext():
            await store.capability(Deletes).delete(keys)
        assert scope.cancelled_caught is (then == "cancelled")
        assert await store.fast.has(keys) == [None, None]
    assert ("could not delete them" in caplog.text) is fast_fails


async def test_who_leaves_a_deletion_leaves_nothing_in_the_fast_store_that_was_on_its_way_there():
    async with running(slow=ReadsFirst()) as store:
        digest = digest_of(b"fetched")
        await store.slow.put(digest, b"fetched")
        store.slow.deletes.set()
        scope = trio.CancelScope()

        async def delete():
            with scope:
                await store.capability(Deletes).delete([digest])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.get, digest)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(delete)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            store.slow.go_on.set()
        assert scope.cancelled_caught
        assert await store.fast.has([digest]) == await store.has([digest]) == [None]


# --- files


@pytest.mark.parametrize("error", [BlobNotFoundError("gone meanwhile"), CorruptBlobError("rotten")])
async def test_a_blob_that_goes_or_turns_out_wrong_while_it_is_to_be_linked_is_missing_and_the_others_are_linked(
    tmp_path, error
):
    context = BareContext()
    slow = FaultyStore(MemoryStore(MemoryOptions(), context))
    store = make_store(context, tmp_path, slow=slow)
    async with started(store, context):
        bad, good = digest_of(b"bad"), digest_of(bytes(300_000))
        await slow.put(bad, b"bad")
        await store.fast.put(good, bytes(300_000))
        slow.plan("get", Fault(error))
        slow.plan("open", Fault(error))
        links = [Link(digest, str(tmp_path / f"in{at}"), False) for at, digest in enumerate((bad, good))]
        assert await store.capability(LocalFiles).link_files(links) == [bad]
        assert [os.path.exists(link.path) for link in links] == [False, True]
        assert slow.calls["open"] == 1


async def test_a_file_that_is_copied_out_is_whole_however_little_a_write_takes(tmp_path, monkeypatch):
    context = BareContext()
    store = make_store(context, tmp_path, fast_direction="update")
    async with started(store, context):
        digest = digest_of(data := os.urandom(50_000))
        await store.slow.put(digest, data)
        write = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:1000]))
        link = Link(digest, str(tmp_path / "in"), False)
        assert await store.capability(LocalFiles).link_files([link]) == []
        monkeypatch.undo()
        assert (tmp_path / "in").read_bytes() == data


async def test_links_fail_with_the_slow_store_and_are_not_tried_one_by_one(tmp_path):
    context = BareContext()
    slow = FaultyStore(MemoryStore(MemoryOptions(), context))

    async def get_many(keys):
        raise UnavailableError("away")

    slow.get_many = get_many
    store = make_store(context, tmp_path, slow=slow)
    async with started(store, context):
        blobs = [os.urandom(100 + number) for number in range(3)]
        for data in blobs:
            await slow.put(digest_of(data), data)
        links = [Link(digest_of(data), str(tmp_path / f"in{n}"), False) for n, data in enumerate(blobs)]
        with pytest.raises(UnavailableError, match="away"):
            await store.capability(LocalFiles).link_files(links)
        assert slow.calls["open"] == 0
        assert not list(tmp_path.glob("in*"))


async def test_a_link_copied_out_leaves_no_file_where_the_slow_store_fails(tmp_path):
    context = BareContext()
    slow = FaultyStore(MemoryStore(MemoryOptions(), context))
    store = make_store(context, tmp_path, slow=slow, max_bytes=8192)  # too small: the blob is copied out
    async with started(store, context):
        data = os.urandom(300_000)
        await slow.put(digest_of(data), data)
        link = Link(digest_of(data), str(tmp_path / "in"), True)
        slow.plan("open", None, away(after_bytes=200_000))
        with pytest.raises(UnavailableError):
            await store.capability(LocalFiles).link_files([link])
        assert not os.path.exists(link.path)
        assert await store.capability(LocalFiles).link_files([link]) == []
        with open(link.path, "rb") as file:
            assert file.read() == data


async def test_copying_links_out_leaves_no_descriptor_open(tmp_path):
    context = BareContext()
    store = make_store(context, tmp_path, max_bytes=8192)
    async with started(store, context):
        data = os.urandom(300_000)
        await store.slow.put(digest_of(data), data)

        async def link(name):
            await store.capability(LocalFiles).link_files([Link(digest_of(data), str(tmp_path / name), False)])

        await link("first")
        before = len(os.listdir("/proc/self/fd"))
        for number in range(30):
            await link(str(number))
        assert len(os.listdir("/proc/self/fd")) < before + 15


async def test_a_file_that_is_there_is_never_written_over(tmp_path):
    context = BareContext()
    store = make_store(context, tmp_path, max_bytes=8192)
    async with started(store, context):
        data = os.urandom(300_000)
        await store.slow.put(digest_of(data), data)
        (tmp_path / "in").write_bytes(b"somebody's")
        with pytest.raises(FileExistsError):
            await store.capability(LocalFiles).link_files([Link(digest_of(data), str(tmp_path / "in"), False)])
        assert (tmp_path / "in").read_bytes() == b"somebody's"


async def test_each_of_several_links_to_a_blob_is_made(tmp_path):
    context = BareContext()
    store = make_store(context, tmp_path, max_bytes=8192)
    async with started(store, context):
        data = os.urandom(300_000)
        await store.slow.put(digest_of(data), data)
        links = [Link(digest_of(data), str(tmp_path / name), name == "b") for name in "abc"]
        missing = Link(digest_of(b"missing"), str(tmp_path / "missing"), False)
        assert await store.capability(LocalFiles).link_files([*links, missing]) == [missing.digest]
        assert [oct(os.stat(link.path).st_mode & 0o777) for link in links] == ["0o444", "0o555", "0o444"]
        assert not os.path.exists(missing.path)


@pytest.mark.parametrize(("direction", "in_fast"), [("both", True), ("get", False)])
async def test_a_file_is_adopted_by_whoever_is_written_to(tmp_path, direction, in_fast):
    context = BareContext()
    store = make_store(context, tmp_path, fast_direction=direction)
    async with started(store, context):
        digest = digest_of(b"output")
        (tmp_path / "out").write_bytes(b"output")
        await store.capability(LocalFiles).adopt_file(digest, str(tmp_path / "out"))
        assert (await store.fast.has([digest]) != [None]) is in_fast
        assert await store.slow.has([digest]) == [6]


async def test_a_file_whose_blob_the_slow_store_has_is_not_sent_again(tmp_path):
    context = BareContext()
    slow = FaultyStore(MemoryStore(MemoryOptions(), context))
    store = make_store(context, tmp_path, slow=slow)
    async with started(store, context):
        await slow.put(digest_of(b"output"), b"output")
        (tmp_path / "out").write_bytes(b"output")
        await store.capability(LocalFiles).adopt_file(digest_of(b"output"), str(tmp_path / "out"))
        assert slow.calls["write"] == 0
        assert await store.fast.get(digest_of(b"output")) == b"output"


async def test_what_the_fast_store_has_is_linked_and_only_the_rest_fetched(tmp_path):
    context = BareContext()
    store = make_store(context, tmp_path)
    async with started(store, context):
        blobs = [os.urandom(100 + number) for number in range(4)]
        for number, data in enumerate(blobs):
            await (store if number % 2 else store.slow).put(digest_of(data), data)
        links = [Link(digest_of(data), str(tmp_path / f"in{n}"), False) for n, data in enumerate(blobs)]
        assert await store.capability(LocalFiles).link_files(links) == []
        for link, data in zip(links, blobs, strict=True):
            with open(link.path, "rb") as file:
                assert file.read() == data
        assert store.statistics()["fetches_completed"] == 2


async def test_where_reads_do_not_fill_the_fast_store_links_are_copies_of_the_slow_ones(tmp_path):
    context = BareContext()
    store = make_store(context, tmp_path, fast_direction="update")
    async with started(store, context):
        digest = digest_of(data := os.urandom(1000))
        await store.slow.put(digest, data)
        assert await store.capability(LocalFiles).link_files([Link(digest, str(tmp_path / "in"), False)]) == []
        assert (tmp_path / "in").read_bytes() == data
        assert await store.fast.has([digest]) == [None]


class Wrong(Watched):
    """A slow store that cannot delete, or takes its time to."""

    def __init__(self, *, deletes=False):
        super().__init__()
        self.deletes = deletes
        self.deleting, self.go_on = trio.Event(), trio.Event()

    def capability(self, kind):
        return None if kind is Deletes and not self.deletes else super().capability(kind)

    async def delete(self, keys):
        self.deleting.set()
        await self.go_on.wait()
        await super().delete(keys)


async def test_a_wrong_blob_is_no_file_and_missing(tmp_path):
    context = BareContext()
    store = make_store(context, tmp_path, slow=Wrong(), max_bytes=8192)  # too small: it is copied out
    async with started(store, context):
        digest = digest_of(os.urandom(300_000))
        store.slow._insert(digest, os.urandom(300_000))
        links = [Link(digest, str(tmp_path / "in"), False)]
        store.fetches.fetch_here = nothing
        assert await store.capability(LocalFiles).link_files(links) == [digest]
        assert not os.path.exists(links[0].path)


async def nothing(keys):
    return []


async def test_a_wrong_blob_is_there_again_once_its_file_is_adopted(tmp_path):
    context = BareContext()
    store = make_store(context, tmp_path, slow=Wrong())
    async with started(store, context):
        digest = digest_of(data := os.urandom(1000))
        store.slow._insert(digest, os.urandom(1000))
        with pytest.raises(BlobNotFoundError):
            await store.get(digest)
        assert await store.has([digest]) == [None]
        (tmp_path / "out").write_bytes(data)
        await store.capability(LocalFiles).adopt_file(digest, str(tmp_path / "out"))
        assert await store.has([digest]) == [1000] and await store.slow.get(digest) == data


async def test_a_file_is_adopted_after_the_deletion_of_its_wrong_blob(tmp_path):
    context = BareContext()
    store = make_store(context, tmp_path, slow=Wrong(deletes=True))
    async with started(store, context), trio.open_nursery() as nursery:
        digest = digest_of(data := os.urandom(1000))
        store.slow._insert(digest, os.urandom(1000))

        async def find_wrong():
            with pytest.raises(BlobNotFoundError):
                await store.get(digest)

        nursery.start_soon(find_wrong)
        await store.slow.deleting.wait()
        (tmp_path / "out").write_bytes(data)
        nursery.start_soon(store.capability(LocalFiles).adopt_file, digest, str(tmp_path / "out"))
        await trio.sleep(0.1)  # so long it would mostly take not to wait
        store.slow.go_on.set()
        with trio.fail_after(60):
            while await store.has([digest]) == [None]:
                await trio.sleep(0.001)
        assert await store.slow.get(digest) == data


async def test_a_file_that_is_being_adopted_is_an_upload_under_way(tmp_path):
    class Slow(Watched):
        def __init__(self):
            super().__init__()
            self.begun, self.go_on = trio.Event(), trio.Event()

        async def write(self, key, reader):
            self.begun.set()
            await self.go_on.wait()
            await super().write(key, reader)

    context = BareContext()
    store = make_store(context, tmp_path, slow=Slow())
    async with started(store, context), trio.open_nursery() as nursery:
        digest = digest_of(b"output")
        (tmp_path / "out").write_bytes(b"output")
        nursery.start_soon(store.capability(LocalFiles).adopt_file, digest, str(tmp_path / "out"))
        await store.slow.begun.wait()
        answers = []

        async def ask():
            answers.extend(await store.has([digest]))

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert not answers
        store.slow.go_on.set()
        await store.uploads.wait_for([digest])
        with trio.fail_after(60):
            while not answers:
                await trio.sleep(0.001)
        assert answers == [6]

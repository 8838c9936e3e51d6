"""The parts of a fast_slow store by themselves: their bounds, their counters, and which side takes part in what."""

import logging
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
import trio.testing

from nl.blob.hashing import digest_of
from nl.plugin import (
    SMALL,
    ActionKey,
    BlobNotFoundError,
    BlobSizeLimit,
    BytesReader,
    CorruptBlobError,
    Deletes,
    Digest,
    Discards,
    EvictionPolicy,
    ExhaustedError,
    LocalFiles,
    Pins,
    Removals,
    Scans,
    Traits,
    UnavailableError,
)
from nl.stores.fast_slow import FastSlowOptions, FastSlowStore, fetches, files, source, stale, uploads
from nl.stores.fast_slow.fetches import Fetch, Fetches
from nl.stores.fast_slow.options import Routes
from nl.stores.fast_slow.ring import Ring
from nl.stores.fast_slow.source import Source
from nl.stores.fast_slow.stale import Stale
from nl.stores.fast_slow.taps import Tap
from nl.stores.fast_slow.trouble import FastTrouble
from nl.stores.fast_slow.uploads import Uploads
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.stores.noop import NoopOptions, NoopStore
from nl.testing import BareContext, read
from tests.unit.stores.test_fast_slow import Watched, running

ONE, TWO = digest_of(b"1"), digest_of(b"2")
ACTION = ActionKey("ab" * 32, 5)
RING_BYTES = 1024 * 1024


def memory(**policy):
    return MemoryStore(MemoryOptions(eviction_policy=EvictionPolicy(**policy)), BareContext())


# --- uploads


async def test_an_upload_is_known_for_as_long_as_one_of_them_lasts():
    known = Uploads()
    assert ONE not in known and len(known) == 0
    async with known.under_way(ONE):
        with known.many_under_way([ONE, TWO, ONE]):
            assert ONE in known and TWO in known and len(known) == 2
        assert ONE in known and TWO not in known
    assert ONE not in known and len(known) == 0
    assert known.now == 4


@pytest.mark.parametrize("way", ["one", "many"])
async def test_an_upload_that_fails_has_ended_too(way):
    known = Uploads()
    with pytest.raises(UnavailableError):
        if way == "one":
            async with known.under_way(ONE):
                raise UnavailableError("away")
        else:
            with known.many_under_way([ONE]):
                raise UnavailableError("away")
    assert len(known) == 0
    assert known.replaced_since(ONE, 0)


async def test_what_ended_since_is_told_and_what_is_forgotten_is_told_to_be_safe(monkeypatch):
    monkeypatch.setattr(uploads, "MAX_RECENT", 2)
    known = Uploads()
    with known.many_under_way([ONE]):
        began = known.now
        assert not known.replaced_since(ONE, began)
    assert known.replaced_since(ONE, began)
    assert not known.replaced_since(TWO, began)
    assert not known.replaced_since(ONE, known.now)
    with known.many_under_way([TWO]):
        pass
    assert not known.replaced_since(digest_of(b"3"), began), "two are remembered"
    with known.many_under_way([digest_of(b"3")]):
        pass
    assert known.replaced_since(digest_of(b"4"), began), "the first of three is forgotten"
    assert not known.replaced_since(digest_of(b"4"), began + 1)
    assert len(known._recent) == 2


async def test_an_upload_that_ended_again_is_remembered_as_the_later_one(monkeypatch):
    monkeypatch.setattr(uploads, "MAX_RECENT", 2)
    known = Uploads()
    for digest in (ONE, TWO, ONE, digest_of(b"3")):
        with known.many_under_way([digest]):
            pass
    assert list(known._recent) == [ONE, digest_of(b"3")]
    assert known.replaced_since(ONE, 2) and not known.replaced_since(ONE, 3)


def test_four_thousand_uploads_that_have_ended_are_remembered():
    known = Uploads()
    for number in range(4097):
        with known.many_under_way([Digest(f"{number:064x}", 1)]):
            pass
        if number == 4095:
            assert not known.replaced_since(ONE, 0)
    assert known.replaced_since(ONE, 0) and not known.replaced_since(ONE, 1)


async def test_waiting_is_for_the_uploads_of_these_keys_and_for_a_while_in_all(autojump_clock):
    known = Uploads()

    async def upload(key, seconds):
        async with known.under_way(key):
            await trio.sleep(seconds)

    async with trio.open_nursery() as nursery:
        for key, seconds in ((ONE, 3), (TWO, 8), (digest_of(b"stalls"), 1000)):
            nursery.start_soon(upload, key, seconds)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        assert await known.wait_for([ONE, digest_of(b"none")]) == {ONE}
        assert trio.current_time() - began == pytest.approx(3)
        assert await known.wait_for([TWO, digest_of(b"stalls")]) == {TWO, digest_of(b"stalls")}
        assert trio.current_time() - began == pytest.approx(3 + 10)
        assert await known.wait_for([digest_of(b"stalls")]) == {digest_of(b"stalls")}
        assert trio.current_time() - began == pytest.approx(3 + 10), "nobody waits for it any more"
        nursery.start_soon(upload, ONE, 2)
        await trio.testing.wait_all_tasks_blocked()
        assert await known.wait_for([ONE, digest_of(b"stalls")]) == {ONE, digest_of(b"stalls")}
        assert trio.current_time() - began == pytest.approx(5 + 10)
        nursery.cancel_scope.cancel()


async def test_values_that_may_change_are_uploaded_one_by_one_and_blobs_are_not(autojump_clock):
    known, most = Uploads(), {}

    async def upload(key):
        nonlocal under_way
        async with known.under_way(key):
            under_way += 1
            most[key] = max(most.get(key, 0), under_way)
            await trio.sleep(1)
            under_way -= 1

    for key in (ACTION, "name", ONE):
        under_way = 0
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(upload, key)
    assert most == {ACTION: 1, "name": 1, ONE: 3}


# --- stale keys, trouble


def test_stale_keys_are_counted_and_one_too_many_makes_all_of_them_stale_and_one_line(monkeypatch, caplog):
    monkeypatch.setattr(stale, "MAX_STALE", 2)
    keys = Stale("CAS")
    for key in ("a", "b"):
        keys.add(key)
    assert len(keys) == 2 and "a" in keys and "c" not in keys
    keys.discard("a")
    assert len(keys) == 1 and "a" not in keys
    for key in "acde":
        keys.add(key)
    assert len(keys) == 2 and "never" in keys
    keys.discard("a")
    assert "a" in keys, "what was not remembered cannot be told from it"
    keys.discard("b")
    assert len(keys) == 0 and "a" in keys, "whatever is remembered"
    assert len(caplog.records) == 1
    assert "CAS: the fast store did not take 2 uploads" in caplog.text


def test_fifty_thousand_stale_keys_are_told_apart(caplog):
    known = Stale("CAS")
    for number in range(50_000):
        known.add(number)
    assert ACTION not in known and 49_999 in known
    known.add(ACTION)
    assert ACTION in known and "other" in known, "too many are all"
    assert "did not take 50000 uploads" in caplog.text


def test_trouble_is_counted_and_told_at_info(caplog):
    trouble = FastTrouble("CAS")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            trouble.note("read", "key", ExhaustedError("full"))
    assert trouble.count == 2
    assert {(record.levelname, record.getMessage()) for record in caplog.records} == {
        ("INFO", "CAS: the fast store could not read key: ExhaustedError('full')")
    }


# --- the ring


async def test_a_ring_that_nobody_watches_keeps_nothing():
    ring = Ring()
    ring.append([b"abc", b"de"])
    assert (ring.start, ring.end, len(ring._chunks)) == (5, 5, 0)
    ring.watchers = 1
    ring.append([b"fg"])
    assert (ring.start, ring.end, bytes(ring.piece(5)), bytes(ring.piece(6))) == (5, 7, b"fg", b"g")
    ring.watchers = 0
    ring.append([b"h"])
    assert (ring.start, ring.end, len(ring._chunks)) == (8, 8, 0)


async def test_a_ring_keeps_what_it_may_to_the_byte_and_the_last_chunk_however_large():
    ring = Ring()
    ring.watchers = 1
    half = bytes(RING_BYTES // 2)
    ring.append([half])
    ring.append([half])
    assert (ring.start, ring.end) == (0, RING_BYTES)
    ring.append([b"x"])
    assert (ring.start, ring.end) == (RING_BYTES // 2, RING_BYTES + 1)
    ring.append([bytes(2 * RING_BYTES)])
    assert ring.end - ring.start == 2 * RING_BYTES
    assert len(ring.piece(ring.start)) == 2 * RING_BYTES


async def test_what_a_ring_keeps_is_its_own_unless_it_cannot_change():
    ring = Ring()
    ring.watchers = 1
    data, lasting = bytearray(b"abc"), b"def"
    ring.append([data])
    ring.append([memoryview(data)])
    ring.append([lasting])
    data[:] = b"xyz"
    assert bytes(ring.piece(0)) == bytes(ring.piece(3)) == b"abc"
    assert ring.piece(6).obj is lasting


# --- the slow store as a source


async def test_wrong_blobs_are_counted_once_told_once_and_remembered_within_a_bound(monkeypatch, caplog):
    monkeypatch.setattr(source, "MAX_WRONG", 2)

    class Keeps(Watched):
        def capability(self, kind):
            return None if kind is Deletes else super().capability(kind)

    store = Keeps()
    checked = Source(store, uploads=Uploads(), name="CAS")
    digests = [digest_of(b"%d" % number) for number in range(3)]
    for digest in digests:
        await store.put(digest, b"x")
    for _ in range(2):
        for digest in digests[:2]:
            with pytest.raises(BlobNotFoundError, match=r"CAS: the slow store has wrong bytes: .*1 bytes|hash"):
                await checked.get(digest)
    assert checked.wrong_blobs == 2 and len(caplog.records) == 2
    assert await checked.has(digests) == [None, None, 1]
    with pytest.raises(BlobNotFoundError):
        await checked.get(digests[2])
    assert await checked.has(digests) == [1, None, None], "the one found first is forgotten"
    checked.replaced(digests[1])
    assert await checked.has(digests) == [1, 1, None]
    assert checked.wrong_blobs == 3


async def test_fifty_thousand_wrong_blobs_are_remembered():
    checked = Source(NoopStore(NoopOptions(), BareContext()), uploads=Uploads(), name="CAS")
    logging.disable(logging.ERROR)
    try:
        for number in range(50_001):
            await checked.found_wrong(number, UnavailableError("wrong"), 0)
    finally:
        logging.disable(logging.NOTSET)
    assert len(checked._wrong) == 50_000 and 0 not in checked._wrong and 50_000 in checked._wrong


async def test_what_is_nowhere_is_told_with_both_stores_in_mind_whichever_way_it_is_asked_for():
    async with running() as store:
        [error] = await store.get_many([ONE])
        assert isinstance(error, BlobNotFoundError) and "not found in either fast or slow store" in error.message
        for attempt in (store.get(ONE), read(store, ONE)):
            with pytest.raises(BlobNotFoundError, match="not found in either fast or slow store"):
                await attempt
        assert store.statistics()["fast_misses"] == 3 and store.statistics()["fast_hits"] == 0


# --- who takes part


class Side(MemoryStore):
    """Can do what it is told to, and says so of its traits."""

    def __init__(self, *able, traits=None):
        super().__init__(MemoryOptions(), BareContext())
        self.able, self.traits_ = able, traits or Traits()

    @property
    def traits(self):
        return self.traits_

    def capability(self, kind):
        return (kind, self) if kind in self.able else None


def make(fast, slow, **options):
    context = BareContext("CAS")
    return FastSlowStore(FastSlowOptions(fast=context.spec(fast), slow=context.spec(slow), **options), context)


ROUTES = {
    # fast_direction, slow_direction: reads_fast, fills_fast, writes_fast, reads_slow, writes_slow
    ("both", "both"): (True, True, True, True, True), ("update", "both"): (True, False, True, True, True),
    ("get", "both"): (True, True, False, True, True), ("read_only", "both"): (True, False, False, True, True),
    ("both", "update"): (True, True, True, True, True), ("both", "get"): (True, True, True, True, False),
    ("both", "read_only"): (True, True, True, True, False), ("get", "get"): (True, True, False, True, False),
}  # fmt: skip


@pytest.mark.parametrize("directions", ROUTES)
def test_directions_say_who_takes_part_in_what(directions):
    fast, slow = directions
    assert make(memory(), memory(), fast_direction=fast, slow_direction=slow).routes == Routes(*ROUTES[directions])


def test_a_side_that_keeps_nothing_takes_part_in_nothing():
    nothing = NoopStore(NoopOptions(), BareContext())
    assert make(nothing, memory()).routes == Routes(False, False, False, True, True)
    assert make(memory(), nothing).routes == Routes(True, False, True, False, False)
    assert make(nothing, nothing).routes == Routes(False, False, False, False, False)


def test_traits_are_those_of_whom_it_asks():
    vague, idle = Traits(authoritative=False), Traits(tracks_use=False)
    neither = Traits(authoritative=False, tracks_use=False)
    nothing = NoopStore(NoopOptions(), BareContext())
    assert make(Side(traits=vague), Side(traits=idle)).traits == idle
    assert make(Side(traits=vague), nothing).traits == vague
    assert make(nothing, Side(traits=idle), slow_direction="get").traits == idle
    assert make(Side(traits=vague), Side(traits=idle), slow_direction="get").traits == neither
    assert make(Side(traits=idle), Side(traits=vague), slow_direction="get").traits == neither
    assert make(Side(), Side(), slow_direction="get").traits == Traits()


@pytest.mark.parametrize("kind", [Removals, Scans, Pins])
def test_what_is_about_what_is_there_is_offered_by_the_one_store_that_has_asks(kind):
    fast, slow = Side(kind), Side(kind, Deletes)
    nothing = NoopStore(NoopOptions(), BareContext())
    assert make(fast, slow).capability(kind) == (kind, slow)
    assert make(fast, nothing).capability(kind) == (kind, fast)
    assert make(fast, slow, slow_direction="get").capability(kind) is None
    assert make(nothing, slow, slow_direction="get").capability(kind) == (kind, slow)
    assert make(fast, Side(Deletes)).capability(kind) is None
    expected = None if kind is Removals else kind
    cannot_delete = make(fast, Side(kind)).capability(kind)
    assert (cannot_delete and cannot_delete[0]) == expected


def test_the_side_that_uploads_go_to_says_how_large_they_may_be():
    fast, slow = Side(BlobSizeLimit), Side(BlobSizeLimit)
    assert make(fast, slow).capability(BlobSizeLimit) == (BlobSizeLimit, slow)
    assert make(fast, slow, slow_direction="get").capability(BlobSizeLimit) == (BlobSizeLimit, fast)
    assert make(fast, Side()).capability(BlobSizeLimit) is None


def test_only_two_sides_that_keep_nothing_discard_everything():
    nothing = NoopStore(NoopOptions(), BareContext())
    assert make(nothing, nothing).capability(Discards) is nothing
    assert make(memory(), nothing).capability(Discards) is None
    assert make(nothing, memory()).capability(Discards) is None


def test_files_come_from_the_fast_side_or_else_from_a_slow_one_that_is_written_to():
    fast, slow = Side(LocalFiles), Side(LocalFiles)
    nothing = NoopStore(NoopOptions(), BareContext())
    assert isinstance(make(fast, slow).capability(LocalFiles), files.FastSlowFiles)
    assert make(Side(), slow).capability(LocalFiles) == (LocalFiles, slow)
    assert make(Side(), slow, slow_direction="get").capability(LocalFiles) is None
    assert make(nothing, slow).capability(LocalFiles) == (LocalFiles, slow)


def test_it_deletes_where_every_side_that_is_read_can():
    nothing = NoopStore(NoopOptions(), BareContext())
    for fast, slow, can in (
        (memory(), memory(), True), (Side(), memory(), False), (memory(), Side(), False), (nothing, memory(), True),
        (nothing, Side(), False), (memory(), nothing, True), (Side(), nothing, False), (nothing, nothing, False),
    ):  # fmt: skip
        assert (make(fast, slow).capability(Deletes) is not None) is can
    for direction in ("get", "update", "read_only"):
        assert make(Side(), memory(), fast_direction=direction).capability(Deletes) is None, "it is read all the same"


async def test_a_use_is_told_to_both_sides_and_trouble_of_the_fast_one_stays_there():
    class Touched(MemoryStore):
        error = None

        def __init__(self):
            super().__init__(MemoryOptions(), BareContext())
            self.trips = []

        async def touch(self, keys):
            self.trips.append(list(keys))
            if self.error:
                raise self.error

    fast, slow = Touched(), Touched()
    store = make(fast, slow)
    await store.touch(["a"])
    assert fast.trips == slow.trips == [["a"]]
    fast.error = UnavailableError("away")
    await store.touch(["a"])
    assert store.statistics()["fast_failures"] == 1
    slow.error = UnavailableError("away")
    with pytest.raises(UnavailableError):
        await store.touch(["a"])


async def test_what_happened_is_counted(autojump_clock):
    async with running(fast=Watched(max_bytes=50_000), bypass_dedup_threshold_bytes=SMALL + 1) as store:
        nothing = dict.fromkeys(store.statistics(), 0)
        assert store.statistics() == nothing
        await store.slow.put(ONE, b"1")
        await store.slow.put(TWO, b"2")
        await store.get(ONE)
        await trio.testing.wait_all_tasks_blocked()
        assert store.statistics() == nothing | {"fast_misses": 1, "fetches_completed": 1}
        await store.get(ONE)
        await store.get_many([ONE, TWO])
        await trio.testing.wait_all_tasks_blocked()
        assert store.statistics() == nothing | {"fast_misses": 2, "fetches_completed": 2, "fast_hits": 2}
        await read(store, TWO)
        assert store.statistics()["fast_hits"] == 3
        large = bytes(60_000)
        await store.slow.put(digest_of(large), large)
        await store.get(digest_of(large))
        await trio.testing.wait_all_tasks_blocked()
        assert store.statistics()["fetches_failed"] == 1
        huge = bytes(SMALL + 1)
        await store.slow.put(digest_of(huge), huge)
        for reads in (1, 2):
            await read(store, digest_of(huge))
            assert store.statistics()["bypassed"] == reads
        store.fast.write_error = ExhaustedError("full")
        await store.put(ACTION, b"result")
        await store.write("name", BytesReader(b"value"))
        assert store.statistics()["stale_in_fast"] == 0, "what the fast store had is deleted"
        assert store.statistics()["fast_failures"] == 2


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([], []), ([1], [1]), ([SMALL], [1]), ([SMALL + 1], [1]), ([1, SMALL + 1, 1], [1, 2]), ([1] * 3, [3]),
        ([1] * 256, [256]), ([1] * 257, [256, 1]),
        ([SMALL] * 65, [64, 1]), ([SMALL] * 129, [64, 64, 1]), ([65535] * 65 + [1], [65, 1]),
    ],
)  # fmt: skip
def test_small_blobs_are_fetched_in_groups_bounded_by_bytes_and_number(sizes, groups):
    digests = [Digest(f"{number:064x}", size) for number, size in enumerate(sizes)]
    batches = list(files._batches(digests))
    assert sorted(map(len, batches)) == sorted(groups)
    assert sorted(digest for batch in batches for digest in batch) == sorted(digests)
    assert all(len(batch) == 1 for batch in batches if any(digest.size > SMALL for digest in batch))


# --- taps


async def nowhere(*, offset, length):
    raise AssertionError("nothing is to be opened")


async def test_a_tap_follows_from_its_offset_and_ends_with_its_range():
    fetch = Fetch(ONE)
    tap = Tap(fetch, offset=2, size=5, reopen=nowhere)
    assert (fetch.ring.watchers, tap.size) == (1, 5)
    fetch.ring.append([b"abcd"])
    assert [bytes(part) for part in await tap.receive_parts(1)] == [b"c"]
    fetch.ring.append([b"efghij"])
    assert [bytes(part) for part in await tap.receive_parts()] == [b"d"]
    assert [bytes(part) for part in await tap.receive_parts()] == [b"efg"]
    assert await tap.receive_parts() == ()
    for _ in range(3):
        tap.close()
    assert fetch.ring.watchers == 0, "closing again is harmless"


async def test_a_tap_that_fell_behind_waits_for_the_end_and_opens_the_rest():
    fetch, opened = Fetch(ONE), []

    async def reopen(*, offset, length):
        opened.append((offset, length))
        return BytesReader(b"x" * length)

    tap = Tap(fetch, offset=0, size=3 * RING_BYTES, reopen=reopen)
    for _ in range(3):
        fetch.ring.append([bytes(RING_BYTES)])
    assert fetch.ring.start == 2 * RING_BYTES
    async with trio.open_nursery() as nursery:
        got = []

        async def receive():
            got.extend(await tap.receive_parts(7))

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        assert not got and not opened
        fetch.finish()
    assert opened == [(0, 3 * RING_BYTES)] and got == [b"x" * 7]
    assert fetch.ring.watchers == 0
    await tap.receive_parts(7)
    assert len(opened) == 1


@pytest.mark.parametrize("error", [UnavailableError("away"), BlobNotFoundError(ONE, "here")])
async def test_a_tap_that_has_delivered_ends_with_the_slow_store_and_one_that_has_not_begins_anew(error):
    for delivered in (False, True):
        fetch = Fetch(ONE)

        async def reopen(*, offset, length):
            return BytesReader(b"anew!"[:length])

        fetch.ring.watchers = 1
        fetch.ring.append([b"before"])
        tap = Tap(fetch, offset=6, size=5, reopen=reopen)
        if delivered:
            fetch.ring.append([b"a"])
            await tap.receive_parts()
        fetch.slow_error = error
        fetch.finish()
        if delivered:
            with pytest.raises(UnavailableError, match="the slow store failed midway"):
                await tap.receive_parts()
        else:
            assert [bytes(part) for part in await tap.receive_parts()] == [b"anew!"]


async def test_a_tap_of_a_fetch_that_stands_still_goes_its_own_way(autojump_clock):
    fetch = Fetch(ONE)

    async def reopen(*, offset, length):
        return BytesReader(b"own way"[:length])

    tap = Tap(fetch, offset=0, size=7, reopen=reopen)
    began = trio.current_time()
    assert [bytes(part) for part in await tap.receive_parts()] == [b"own way"]
    assert trio.current_time() - began == pytest.approx(60)


# --- wrong blobs, and who is about to replace them


class Slow(Watched):
    """Notes what is deleted, which takes until it is told to go on."""

    def __init__(self):
        super().__init__()
        self.deleted, self.go_on = [], trio.Event()

    async def delete(self, keys):
        self.deleted += keys
        await self.go_on.wait()
        await super().delete(keys)


async def test_a_wrong_blob_that_is_being_uploaded_or_deleted_is_left_to_that():
    known, slow = Uploads(), Slow()
    checked = Source(slow, uploads=known, name="CAS")
    await slow.put(ONE, b"x")
    with known.many_under_way([ONE]), pytest.raises(BlobNotFoundError):
        await checked.get(ONE)
    assert (checked.wrong_blobs, slow.deleted) == (0, [])

    async def find_wrong():
        with pytest.raises(BlobNotFoundError):
            await checked.get(ONE)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(find_wrong)
        await trio.testing.wait_all_tasks_blocked()
        assert (checked.wrong_blobs, slow.deleted) == (1, [ONE])
        slow.go_on.set()
    assert checked._deleting == {}
    await checked.wait_for_deletion(ONE)


async def test_what_was_uploaded_since_it_was_read_is_not_called_wrong():
    known, slow = Uploads(), Slow()
    checked = Source(slow, uploads=known, name="CAS")
    began = known.now
    with known.many_under_way([ONE]):
        pass
    error = await checked.found_wrong(ONE, UnavailableError("wrong"), began)
    assert isinstance(error, BlobNotFoundError)
    assert (checked.wrong_blobs, slow.deleted) == (0, [])


@pytest.mark.parametrize(("offset", "length", "is_checked"), [
    (0, None, True), (0, 1, True), (0, 7, True), (0, 0, False), (1, None, False),
])  # fmt: skip
async def test_whole_blobs_are_checked_however_they_are_asked_for(offset, length, is_checked):
    slow = Slow()
    slow.go_on.set()
    checked = Source(slow, uploads=Uploads(), name="CAS")
    await slow.put(ONE, b"x")
    async with AsyncExitStack() as stack:
        reader = await checked.open(ONE, stack, offset=offset, length=length)
        if is_checked:
            with pytest.raises(CorruptBlobError):
                await reader.receive_parts()
        else:
            await reader.receive_parts()
    assert checked.wrong_blobs == is_checked


async def test_a_value_that_is_deleted_is_not_stale_any_more():
    async with running(slow=memory(), fast=memory()) as store:
        store._stale.add(ACTION)
        await store.capability(Deletes).delete([ACTION])
        assert store.statistics()["stale_in_fast"] == 0


# --- fetches


@asynccontextmanager
async def fetching(monkeypatch, most=None):
    """The fetches of a store whose slow side waits until `go_on` is set."""
    if most is not None:
        monkeypatch.setattr(fetches, "MAX_FETCHES", most)

    class Held(Watched):
        go_on = trio.Event()

        async def get(self, key):
            await self.go_on.wait()
            return await super().get(key)

    slow, fast = Held(), Watched()
    names = [digest_of(b"%d" % number) for number in range(10)]
    for number, name in enumerate(names):
        await slow.put(name, b"%d" % number)
    of_slow = Source(slow, uploads=Uploads(), name="CAS")
    under_way = Fetches(fast=fast, source=of_slow, stale=Stale("CAS"), name="CAS")
    async with trio.open_nursery() as nursery:
        assert under_way.join(names[0]) is None, "nobody would own it"
        under_way.nursery = nursery
        yield under_way, slow, fast, names
        nursery.cancel_scope.cancel()


async def test_fetches_under_way_are_bounded_and_make_room_when_they_end(monkeypatch):
    async with fetching(monkeypatch, 2) as (under_way, slow, fast, names):
        one, two = under_way.join(names[0]), under_way.join(names[1])
        assert one is not None and two is not None
        assert under_way.join(names[0]) is one, "there is one for each key"
        assert under_way.join(names[2]) is None
        assert under_way.join_many([names[2], names[0]]) == [one]
        slow.go_on.set()
        await under_way.wait_idle()
        assert under_way.completed == 2 and len(under_way.running) == 0
        for name in names:
            assert under_way.join(name) is not None
            await under_way.wait_idle()
        assert (under_way.completed, under_way.failed) == (12, 0)


async def test_a_fetch_for_who_needs_it_takes_the_place_of_another(monkeypatch):
    async with fetching(monkeypatch, 2) as (under_way, slow, fast, names):
        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(under_way.fetch_here, [names[number]])
            await trio.testing.wait_all_tasks_blocked()
            assert under_way.join(names[2]) is None
            slow.go_on.set()
        assert under_way.join(names[2]) is not None
        await under_way.wait_idle()


async def test_sixty_four_fetches_are_under_way_at_most(monkeypatch):
    async with fetching(monkeypatch) as (under_way, slow, fast, names):
        others = [digest_of(b"other %d" % number) for number in range(64)]
        assert all(under_way.join(digest) is not None for digest in others)
        assert under_way.join(names[0]) is None
        slow.go_on.set()
        await under_way.wait_idle()
        assert under_way.join(names[0]) is not None


async def test_a_batch_of_small_blobs_is_one_fetch_of_the_bound(monkeypatch):
    async with fetching(monkeypatch, 1) as (under_way, slow, fast, names):
        assert len(under_way.join_many(names[:5])) == 5
        assert under_way.join(names[5]) is None and under_way.join_many(names[5:]) == []
        slow.go_on.set()
        await under_way.wait_idle()
        assert len(under_way.join_many(names[5:])) == 5
        await under_way.wait_idle()
        assert await fast.has(names) == [1] * 10


async def test_who_needs_a_blob_fetches_it_beyond_the_bound_and_counts(monkeypatch):
    async with fetching(monkeypatch, 1) as (under_way, slow, fast, names):
        slow.go_on.set()
        for number in range(3):
            found = await under_way.fetch_here([names[number], names[number]])
            assert len(found) == 1 and found[0].done.is_set()
        fast.write_error = ExhaustedError("full")
        await under_way.fetch_here(names[4:6])
        assert (under_way.completed, under_way.failed) == (3, 2)
        assert under_way.join(names[9]) is not None, "those that ended have left their place"
        await under_way.wait_idle()


async def test_a_batch_takes_one_place_for_who_comes_alone_too_and_gives_one_back(monkeypatch):
    async with fetching(monkeypatch, 2) as (under_way, slow, fast, names):
        assert len(under_way.join_many(names[:5])) == 5
        assert [under_way.join(name) is not None for name in names[5:7]] == [True, False]
        slow.go_on.set()
        await under_way.wait_idle()
        assert [under_way.join(name) is not None for name in names[6:9]] == [True, True, False]
        await under_way.wait_idle()


async def test_a_fetch_whose_caller_leaves_has_ended_for_everybody(monkeypatch):
    async with fetching(monkeypatch, 1) as (under_way, slow, fast, names):
        async with trio.open_nursery() as leaving:
            leaving.start_soon(under_way.fetch_here, [names[0]])
            await trio.testing.wait_all_tasks_blocked()
            fetch = under_way.join(names[0])
            leaving.cancel_scope.cancel()
        assert fetch.done.is_set() and not under_way.running
        slow.go_on.set()
        assert under_way.join(names[0]) is not None, "its place is free"
        await under_way.wait_idle()
        assert await fast.has(names[:1]) == [1]


async def test_who_needs_a_blob_waits_for_the_fetch_that_another_began(monkeypatch):
    async with fetching(monkeypatch) as (under_way, slow, fast, names):
        begun, ended = under_way.join(names[0]), trio.Event()

        async def need():
            assert await under_way.fetch_here([names[0]]) == [begun]
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(need)
            await trio.testing.wait_all_tasks_blocked()
            assert not ended.is_set()
            slow.go_on.set()
        assert await fast.has(names[:1]) == [1]

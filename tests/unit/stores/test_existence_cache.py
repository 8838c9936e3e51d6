"""What is remembered, what makes it be forgotten, and that nobody is told of what has gone."""

import time
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.plugin import (
    MAX_WHOLE,
    ActionKey,
    BlobNotFoundError,
    BlobSizeLimit,
    BytesReader,
    CorruptBlobError,
    Deletes,
    EvictionPolicy,
    LocalFiles,
    Opened,
    Pins,
    Removals,
    Scans,
    TooLargeError,
    Traits,
    UnavailableError,
    digest_of,
)
from nl.stores.existence_cache import (
    _MAX_GONE,
    DEFAULT_MAX_COUNT,
    ENTRY_BYTES,
    UNTOLD_S,
    ExistenceCacheOptions,
    ExistenceCacheStore,
)
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, StoreConformance, drain, started

ONE, TWO = digest_of(b"1"), digest_of(b"2")


class Backend(MemoryStore):
    """Counts trips and touches; `tells` is whether it says what leaves it."""

    def __init__(self, context, *, tells=True, **policy):
        super().__init__(MemoryOptions(eviction_policy=EvictionPolicy(**policy)), context)
        self.tells = tells
        self.asked = []
        self.touched = []

    async def has(self, keys):
        self.asked += keys
        return await super().has(keys)

    async def touch(self, keys):
        self.touched += keys

    def capability(self, kind):
        return None if kind is Removals and not self.tells else super().capability(kind)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def make(context, backend, *, clock=None, **policy):
    options = ExistenceCacheOptions(backend=context.spec(backend), eviction_policy=EvictionPolicy(**policy))
    return ExistenceCacheStore(options, context, **({} if clock is None else {"clock": clock}))


class TestExistenceCacheConformance(StoreConformance):
    def make_store(self, context, folder):
        return make(context, Backend(context))


class TestExistenceCacheWithoutNewsConformance(StoreConformance):
    def make_store(self, context, folder):
        return make(context, Backend(context, tells=False))


async def test_what_is_known_costs_no_trip():
    context = BareContext()
    backend = Backend(context)
    await backend.put(ONE, b"1")
    store = make(context, backend)
    assert await store.has([ONE, TWO]) == [1, None]
    assert await store.has([ONE, TWO]) == [1, None]
    assert backend.asked == [ONE, TWO, TWO]  # only a yes is remembered


@pytest.mark.parametrize("way", ["put", "put_many", "write", "get", "get_many", "open"])
async def test_whatever_shows_that_a_blob_is_there_is_remembered(way):
    context = BareContext()
    backend = Backend(context)
    store = make(context, backend)
    if way in {"get", "get_many", "open"}:
        await backend.put(ONE, b"1")
    if way == "open":
        async with store.open(ONE) as reader:
            await drain(reader)
    else:
        arguments = {"put": (ONE, b"1"), "put_many": ([(ONE, b"1")],), "write": (ONE, BytesReader(b"1")),
                     "get": (ONE,), "get_many": ([ONE],)}[way]  # fmt: skip
        await getattr(store, way)(*arguments)
    assert await store.has([ONE]) == [1]
    assert backend.asked == []


async def test_what_the_backend_evicts_is_never_said_to_be_there():
    context = BareContext()
    backend = Backend(context, max_count=3)
    async with started(make(context, backend), context) as store:
        digests = [digest_of(b"%d" % number) for number in range(50)]
        for number, digest in enumerate(digests):
            await store.put(digest, b"%d" % number)
            sizes = await store.has(digests)
            assert sizes == await backend.has(digests)
            assert sum(size is not None for size in sizes) == min(number + 1, 3)


async def test_an_answer_that_was_on_its_way_when_the_blob_went_is_not_believed_afterwards():
    context = BareContext()

    class Slow(Backend):
        async def has(self, keys):
            sizes = await super().has(keys)
            await self.delete(keys)
            return sizes

    backend = Slow(context)
    await backend.put(ONE, b"1")
    store = make(context, backend)
    await store.has([TWO])
    assert await store.has([ONE]) == [1]  # which was true when it was asked
    assert await store.has([ONE]) == [None]


@pytest.mark.parametrize(("loses_track", "from_memory"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("way", ["has", "put", "put_many", "write", "get", "get_many", "open"])
async def test_news_that_another_question_took_count_for_an_answer_that_was_on_its_way(
    way, loses_track, from_memory, autojump_clock
):
    """Whether that question is on its way itself when the answer comes, or was answered from memory and is over."""
    context = BareContext()

    class Far(Backend):
        async def __call__(self, method, *args):
            result = await method(*args)
            await trio.sleep(0.1)  # the way back
            return result

        async def has(self, keys):
            return await self(super().has, keys)

        async def get(self, key):
            return await self(super().get, key)

        async def get_many(self, keys):
            return await self(super().get_many, keys)

        async def put(self, key, data):
            await self(super().put, key, data)

        async def put_many(self, blobs):
            return await self(super().put_many, blobs)

        async def write(self, key, reader):
            await self(super().write, key, reader)

        @asynccontextmanager
        async def open(self, key, *, offset=0, length=None):
            async with super().open(key, offset=offset, length=length) as reader:
                await trio.sleep(0.1)
                yield reader

    backend = Far(context)
    store = make(context, backend)
    if way in {"has", "get", "get_many", "open"}:
        await backend.put(ONE, b"1")
    if from_memory:
        await store.put(TWO, b"2")
    await store.has([TWO])

    async def ask():
        if way == "open":
            async with store.open(ONE) as reader:
                await drain(reader)
            return
        arguments = {"has": ([ONE],), "put": (ONE, b"1"), "put_many": ([(ONE, b"1")],),
                     "write": (ONE, BytesReader(b"1")), "get": (ONE,), "get_many": ([ONE],)}[way]  # fmt: skip
        await getattr(store, way)(*arguments)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.05)
        await backend.delete([ONE])
        if loses_track:
            backend._removals.lost_track()
        nursery.start_soon(store.has, [TWO])  # and takes the news
    assert await store.has([ONE]) == [None]


async def test_what_goes_while_operations_are_under_way_is_kept_within_a_bound(monkeypatch):
    monkeypatch.setattr("nl.stores.existence_cache._MAX_GONE", 3)
    context = BareContext()
    backend = Backend(context)
    store = make(context, backend)
    await store.put(ONE, b"1")
    with store._meanwhile.operation() as since:
        for number in range(10):
            store._meanwhile.gone(digest_of(b"%d" % number))
        assert len(store._meanwhile._gone) <= 3
        for number in range(10):
            assert store._meanwhile.is_gone(digest_of(b"%d" % number), since), "also what is beyond the bound"
    assert not store._meanwhile._gone


async def test_a_backend_that_lost_track_has_everything_forgotten():
    context = BareContext()
    backend = Backend(context)
    store = make(context, backend)
    await store.put(ONE, b"1")
    backend._removals.lost_track()
    assert await store.has([ONE]) == [1]
    assert backend.asked == [ONE]


async def test_without_news_a_yes_is_believed_for_a_while_only_and_no_upload_is_left_out_for_it():
    context, clock = BareContext(), Clock()
    backend = Backend(context, tells=False)
    store = make(context, backend, clock=clock)
    assert not store.traits.authoritative
    await store.put(ONE, b"1")
    await backend.delete([ONE])
    for _ in range(3):  # asking does not make it live longer
        clock.now += UNTOLD_S / 3
        assert await store.has([ONE]) == [1]
    clock.now += 1
    assert await store.has([ONE]) == [None]


async def test_with_news_it_is_as_exact_as_its_backend():
    context = BareContext()
    assert make(context, Backend(context)).traits.authoritative


@pytest.mark.parametrize("way", ["get", "get_many", "open"])
@pytest.mark.parametrize("wrong", [BlobNotFoundError, CorruptBlobError])
async def test_reading_what_has_gone_or_is_wrong_makes_it_forgotten(way, wrong):
    context = BareContext()

    class Rotten(Backend):
        async def get(self, key):
            if wrong is CorruptBlobError:
                raise CorruptBlobError(f"{key} is not what it was")
            return await super().get(key)

        async def get_many(self, keys):
            if wrong is CorruptBlobError:
                return [CorruptBlobError(f"{key} is not what it was") for key in keys]
            return await super().get_many(keys)

        def open(self, key, *, offset=0, length=None):
            def find():
                raise CorruptBlobError(f"{key} is not what it was")

            return Opened(find) if wrong is CorruptBlobError else super().open(key, offset=offset, length=length)

    backend = Rotten(context, tells=False)
    store = make(context, backend)
    await store.put(ONE, b"1")
    await backend.delete([ONE])
    assert await store.has([ONE]) == [1]
    if way == "get_many":
        [error] = await store.get_many([ONE])
        assert isinstance(error, wrong)
    else:
        with pytest.raises(wrong):
            if way == "get":
                await store.get(ONE)
            else:
                async with store.open(ONE):
                    pass
    assert await store.has([ONE]) == [None]


async def test_what_was_asked_for_while_it_was_being_deleted_is_not_remembered():
    context = BareContext()

    class Slow(Backend):
        async def delete(self, keys):
            assert await store.has(keys) == [1]
            await super().delete(keys)

    store = make(context, Slow(context, tells=False))
    await store.put(ONE, b"1")
    await store.delete([ONE])
    assert await store.has([ONE]) == [None]


async def test_what_can_change_is_not_remembered():
    context = BareContext()
    backend = Backend(context, tells=False)
    store = make(context, backend)
    action = ActionKey(*ONE)
    for key in (action, "name"):
        await store.put(key, b"value")
        await backend.put(key, b"longer value")
    assert await store.has([action, "name"]) == [12, 12]


async def test_memory_is_bounded_without_any_policy(monkeypatch):
    monkeypatch.setattr("nl.stores.existence_cache.DEFAULT_MAX_COUNT", 3)
    context = BareContext()
    store = make(context, Backend(context))
    for number in range(10):
        await store.put(digest_of(b"%d" % number), b"%d" % number)
    assert store.statistics()["remembered"] == 3


async def test_the_backend_hears_in_batches_of_what_was_used(autojump_clock):
    context = BareContext()
    backend = Backend(context)
    async with started(make(context, backend), context) as store:
        await store.put_many([(ONE, b"1"), (TWO, b"2")])
        for _ in range(5):
            await store.has([ONE])
        assert backend.touched == []
        await trio.sleep(1.5)
        assert backend.touched == [ONE]
        await store.has([TWO])
    assert backend.touched == [ONE, TWO]  # also what was used just before the end


async def test_the_backend_hears_of_a_use_at_once_and_of_further_ones_after_ten_times_as_long(mock_clock):
    context = BareContext()

    class Far(Backend):
        async def touch(self, keys):
            await trio.sleep(0.02)
            await super().touch(keys)

    backend = Far(context)
    async with started(make(context, backend), context) as store:
        try:
            await store.put_many([(ONE, b"1"), (TWO, b"2")])
            await store.has([ONE])
            await wait_all_tasks_blocked()
            mock_clock.jump(0.02)
            await wait_all_tasks_blocked()
            assert backend.touched == [ONE]
            await store.has([TWO])
            await store.has([ONE])
            mock_clock.jump(0.19)
            await wait_all_tasks_blocked()
            assert backend.touched == [ONE]
            for _ in range(2):
                mock_clock.jump(0.03)
                await wait_all_tasks_blocked()
            assert backend.touched == [ONE, TWO, ONE]
        finally:
            mock_clock.autojump_threshold = 0


async def test_a_backend_that_cannot_be_told_of_uses_stops_nothing_and_hears_of_them_when_it_can(autojump_clock):
    context = BareContext()

    class Away(Backend):
        away = True

        async def touch(self, keys):
            if self.away:
                raise UnavailableError("away")
            await super().touch(keys)

    backend = Away(context)
    async with started(make(context, backend), context) as store:
        await store.put_many([(ONE, b"1"), (TWO, b"2")])
        for key in (ONE, TWO, ONE):
            assert await store.has([key]) == [1]
            await trio.sleep(1.5)
        backend.away = False
        await trio.sleep(1.5)
        assert backend.touched == [ONE, TWO]


async def test_what_is_deleted_through_it_is_forgotten_even_if_that_fails():
    context = BareContext()

    class Failing(Backend):
        async def delete(self, keys):
            await super().delete(keys)
            raise UnavailableError("the answer was lost")

    store = make(context, Failing(context, tells=False))
    await store.put(ONE, b"1")
    with pytest.raises(UnavailableError):
        await store.capability(Deletes).delete([ONE])
    assert await store.has([ONE]) == [None]


async def test_what_is_remembered_withdrawn_hit_and_missed_is_counted():
    context = BareContext()
    backend = Backend(context)
    store = make(context, backend)
    empty = {"remembered": 0, "hits": 0, "misses": 0, "withdrawn": 0, "told_of_removals": "yes"}
    assert store.statistics() == empty
    await store.put_many([(ONE, b"1"), (TWO, b"2")])
    await store.has([ONE, TWO, digest_of(b"3")])
    assert store.statistics() == empty | {"remembered": 2, "hits": 2, "misses": 1}
    await backend.delete([ONE])
    await store.has([TWO])
    assert store.statistics() == empty | {"remembered": 1, "hits": 3, "misses": 1, "withdrawn": 1}
    await backend.delete([ONE])
    await store.has([])
    assert store.statistics()["withdrawn"] == 1, "what is not remembered is not withdrawn"
    await store.put(ONE, b"1")
    backend._removals.lost_track()
    await store.has([])
    assert store.statistics() == empty | {"remembered": 0, "hits": 3, "misses": 1, "withdrawn": 3}
    assert make(context, Backend(context, tells=False)).statistics()["told_of_removals"] == "no"


@pytest.mark.parametrize("way", ["put", "put_many", "write"])
async def test_an_upload_that_fails_is_not_remembered(way):
    context = BareContext()

    class Full(Backend):
        async def put(self, key, data):
            raise UnavailableError("away")

        async def write(self, key, reader):
            await drain(reader)
            raise UnavailableError("away")

    store = make(context, Full(context))
    if way == "put_many":
        [error] = await store.put_many([(ONE, b"1")])
        assert isinstance(error, UnavailableError)
    else:
        with pytest.raises(UnavailableError):
            await (store.put(ONE, b"1") if way == "put" else store.write(ONE, BytesReader(b"1")))
    assert store.statistics()["remembered"] == 0
    assert await store.has([ONE]) == [None]


async def test_nothing_is_told_to_a_backend_that_takes_no_notice_of_uses(autojump_clock):
    context = BareContext()

    class Expiring(Backend):
        traits = Traits(tracks_use=False)

    backend = Expiring(context)
    async with started(make(context, backend), context) as store:
        assert not store.traits.tracks_use
        await store.put(ONE, b"1")
        await store.has([ONE])
        await trio.sleep(2.5)
    assert backend.touched == []


async def test_uses_that_wait_to_be_told_are_bounded(monkeypatch):
    monkeypatch.setattr("nl.storage.uses.MAX_USES", 3)
    context = BareContext()
    backend = Backend(context)
    async with started(make(context, backend), context) as store:
        digests = [digest_of(b"%d" % number) for number in range(4)]
        await store.put_many([(digest, b"%d" % number) for number, digest in enumerate(digests)])
        await store.has(digests[:3])
        assert backend.touched == []
        await store.has(digests)
        assert backend.touched == digests


async def test_what_has_gone_is_not_told_as_used(autojump_clock):
    context = BareContext()
    backend = Backend(context, tells=False)
    async with started(make(context, backend), context) as store:
        await store.put_many([(ONE, b"1"), (TWO, b"2")])
        await store.has([ONE, TWO])
        await store.capability(Deletes).delete([ONE])
        await trio.sleep(1.5)
    assert backend.touched == [TWO]


@pytest.mark.parametrize("tells", [False, True])
async def test_the_policy_says_how_much_is_remembered_and_for_how_long(tells):
    context, clock = BareContext(), Clock()
    backend = Backend(context, tells=tells)
    few = make(context, backend, clock=clock, max_bytes=2 * ENTRY_BYTES)
    counted = make(context, backend, clock=clock, max_count=1)
    short = make(context, backend, clock=clock, max_seconds=10)
    blobs = [(digest_of(b"%d" % number), b"%d" % number) for number in range(5)]
    for store in (few, counted, short):
        await store.put_many(blobs)
    assert [store.statistics()["remembered"] for store in (few, counted, short)] == [2, 1, 5]
    clock.now += 10
    backend.asked.clear()
    await short.has([ONE])
    assert backend.asked == []
    clock.now += 0.5
    await short.has([ONE])
    assert backend.asked == [ONE]


async def test_with_news_a_yes_is_believed_for_ever():
    context, clock = BareContext(), Clock()
    backend = Backend(context)
    store = make(context, backend, clock=clock)
    await store.put(ONE, b"1")
    clock.now += 1e9
    assert await store.has([ONE]) == [1]
    assert backend.asked == []


def test_only_what_it_can_stand_in_for_is_offered():
    context = BareContext()
    backend = Backend(context, max_bytes=10_000)
    store = make(context, backend)
    assert store.capability(Deletes) is store
    for kind in (Removals, BlobSizeLimit):
        assert store.capability(kind) is backend
    assert store.capability(LocalFiles) is None

    class Keeping(Backend):
        def capability(self, kind):
            return None if kind is Deletes else object()

    keeping = make(context, Keeping(context))
    assert keeping.capability(Deletes) is None
    assert keeping.capability(LocalFiles) is None
    assert all(keeping.capability(kind) is not None for kind in (BlobSizeLimit, Removals, Scans, Pins))


async def test_a_reader_that_stays_open_keeps_no_memory_of_what_goes_meanwhile():
    context = BareContext()
    backend = Backend(context)
    store = make(context, backend)
    await store.put_many([(ONE, b"1"), (TWO, b"2")])
    async with store.open(ONE) as reader:
        await backend.delete([TWO])
        assert await store.has([TWO]) == [None]
        assert not store._meanwhile._gone
        assert await drain(reader) == b"1"


async def test_the_usual_bound_is_for_policies_without_one_only(monkeypatch):
    monkeypatch.setattr("nl.stores.existence_cache.DEFAULT_MAX_COUNT", 1)
    context = BareContext()
    blobs = [(digest_of(b"%d" % number), b"%d" % number) for number in range(5)]
    for policy, remembered in (
        ({}, 1), ({"max_seconds": 9}, 1), ({"max_bytes": 4 * ENTRY_BYTES}, 4), ({"max_count": 3}, 3),
    ):  # fmt: skip
        store = make(context, Backend(context), **policy)
        await store.put_many(blobs)
        assert store.statistics()["remembered"] == remembered


def test_it_is_no_more_authoritative_than_its_backend():
    context = BareContext()

    class Vague(Backend):
        traits = Traits(authoritative=False)

    assert not make(context, Vague(context)).traits.authoritative


async def test_the_empty_blob_is_not_remembered():
    context = BareContext()
    store = make(context, Backend(context))
    await store.put(digest_of(b""), b"")
    assert await store.has([digest_of(b"")]) == [0]
    assert store.statistics()["remembered"] == 0


async def test_a_backend_far_away_is_told_of_the_last_uses_at_the_end_for_seconds_and_not_for_ever(autojump_clock):
    context = BareContext()

    class Far(Backend):
        takes = 4.5

        async def touch(self, keys):
            await trio.sleep(self.takes)
            await super().touch(keys)

    for takes, told in ((4.5, [ONE]), (5.5, [])):
        backend = Far(context)
        backend.takes = takes
        async with started(make(context, backend), context) as store:
            await store.put(ONE, b"1")
            await store.has([ONE])
            began = trio.current_time()
        assert backend.touched == told
        assert trio.current_time() - began == pytest.approx(min(takes, 5))


async def test_uses_that_could_not_be_told_are_a_line_in_the_log(autojump_clock, caplog):
    context = BareContext("CAS")

    class Away(Backend):
        async def touch(self, keys):
            raise UnavailableError("away")

    with caplog.at_level("INFO"):
        async with started(make(context, Away(context)), context) as store:
            await store.put(ONE, b"1")
            await store.has([ONE])
            await trio.sleep(1.5)
    [record] = caplog.records
    assert record.getMessage() == "CAS: the backend could not be told of 1 uses: UnavailableError('away')"


async def test_what_goes_during_the_very_first_operation_is_told_of_it():
    context = BareContext()

    class Fleeting(Backend):
        async def put(self, key, data):
            await super().put(key, data)
            await self.delete([key])

    async with started(make(context, Fleeting(context)), context) as store:
        await store.put(ONE, b"1")
        assert await store.has([ONE]) == [None]


async def test_without_news_and_without_a_policy_a_yes_is_believed_for_a_minute():
    context, clock = BareContext(), Clock()
    backend = Backend(context, tells=False)
    store = make(context, backend, clock=clock)
    await store.put(ONE, b"1")
    clock.now += 60
    assert await store.has([ONE]) == [1] and backend.asked == []
    clock.now += 0.1
    assert await store.has([ONE]) == [1] and backend.asked == [ONE]


def test_what_is_remembered_by_default_is_a_million_digests_of_some_400_bytes():
    assert (DEFAULT_MAX_COUNT, ENTRY_BYTES, _MAX_GONE) == (1_000_000, 400, 100_000)


async def test_a_blob_that_is_too_large_to_be_had_whole_is_not_forgotten_for_it():
    context = BareContext()
    backend = Backend(context)
    store = make(context, backend)
    large = digest_of(data := bytes(MAX_WHOLE + 1))
    await store.write(large, BytesReader(data))
    with pytest.raises(TooLargeError):
        await store.get(large)
    [error] = await store.get_many([large])
    assert isinstance(error, TooLargeError)
    assert await store.has([large]) == [len(data)] and backend.asked == []


async def test_a_backend_that_is_away_makes_nothing_forgotten():
    context = BareContext()

    class Away(Backend):
        async def get(self, key):
            raise UnavailableError("away")

        def open(self, key, *, offset=0, length=None):
            def find():
                raise UnavailableError("away")

            return Opened(find)

    backend = Away(context)
    store = make(context, backend)
    await store.put(ONE, b"1")
    with pytest.raises(UnavailableError):
        await store.get(ONE)
    with pytest.raises(UnavailableError):
        async with store.open(ONE):
            pass
    assert isinstance((await store.get_many([ONE]))[0], UnavailableError)
    assert await store.has([ONE]) == [1] and backend.asked == []
    assert store.statistics()["withdrawn"] == 0


def test_how_long_a_yes_is_believed_is_counted_on_the_monotonic_clock():
    context = BareContext()
    assert abs(make(context, Backend(context))._clock() - time.monotonic()) < 600


async def test_only_what_is_answered_from_memory_is_told_as_used(autojump_clock):
    context = BareContext()
    backend = Backend(context)
    async with started(make(context, backend), context) as store:
        await backend.put(TWO, b"2")
        await store.put(ONE, b"1")
        assert await store.has([ONE, TWO, digest_of(b"3")]) == [1, 1, None]
        await trio.sleep(2)
    assert backend.touched == [ONE], "of the others it has been asked itself"


class Lingering(Backend):
    """Answers as it is when it is asked, and the answers about some keys take their time on the way."""

    def __init__(self, context, **policy):
        super().__init__(context, **policy)
        self.takes = {}

    async def has(self, keys):
        sizes = await super().has(keys)
        await trio.sleep(max(self.takes.get(key, 0) for key in keys))
        return sizes


async def test_a_blob_that_goes_a_second_time_is_not_believed_by_who_asked_between_the_two(autojump_clock):
    context = BareContext()
    backend = Lingering(context)
    store = make(context, backend)
    backend.takes = {TWO: 10, ONE: 2}

    async def go_away():
        await backend.delete([ONE])
        await store.has([digest_of(b"3")])  # takes the news

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.has, [TWO])  # under way all the time
        await trio.sleep(1)
        await backend.put(ONE, b"1")
        await go_away()
        await backend.put(ONE, b"1")
        nursery.start_soon(store.has, [ONE])
        await trio.sleep(1)
        await go_away()
    assert await store.has([ONE]) == [None]


async def test_after_more_has_gone_than_is_told_apart_answers_are_remembered_again(monkeypatch, autojump_clock):
    monkeypatch.setattr("nl.stores.existence_cache._MAX_GONE", 3)
    context = BareContext()
    backend = Lingering(context)
    store = make(context, backend)
    gone = [digest_of(b"gone%d" % number) for number in range(6)]
    for key in [*gone, ONE]:
        await backend.put(key, b"gone0"[: key.size])
    backend.takes = {TWO: 10, ONE: 2}

    async def go_away(*keys):
        await backend.delete(keys)
        await store.has([digest_of(b"3")])  # takes the news

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.has, [TWO])  # under way all the time
        await trio.sleep(1)
        await go_away(*gone[:5])
        nursery.start_soon(store.has, [ONE])
        await trio.sleep(1)
        await go_away(gone[5])
    backend.asked.clear()
    assert await store.has([ONE]) == [1]
    assert not backend.asked


async def test_what_is_deleted_through_it_is_forgotten_even_if_who_asked_for_that_leaves():
    context = BareContext()

    class Slow(Backend):
        async def delete(self, keys):
            await super().delete(keys)
            scope.cancel()
            await trio.sleep_forever()

    store = make(context, Slow(context, tells=False))
    await store.put(ONE, b"1")
    with trio.CancelScope() as scope:
        await store.capability(Deletes).delete([ONE])
    assert scope.cancelled_caught
    assert await store.has([ONE]) == [None]

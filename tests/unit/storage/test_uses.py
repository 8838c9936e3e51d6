"""Uses that a store is told of afterwards: when, how many at once, and what becomes of them while it is away."""

import logging
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.plugin import (
    DeadlineError,
    ExhaustedError,
    InvalidRequestError,
    PermissionDeniedError,
    Traits,
    UnavailableError,
    Uses,
)
from nl.storage import uses
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext

AWAY = UnavailableError("away")


class Told(MemoryStore):
    """Notes the trips on which it is told of uses, each of which takes a while, and which it may refuse."""

    takes = 0.0
    error = None
    refuses = frozenset()  # trips with one of these fail with `error`; without any, all

    def __init__(self):
        super().__init__(MemoryOptions(), BareContext())
        self.trips = []

    async def touch(self, keys):
        self.trips.append((trio.current_time(), list(keys)))
        await trio.sleep(self.takes)
        if self.error and (not self.refuses or self.refuses.intersection(keys)):
            raise self.error

    @property
    def keys(self):
        return [keys for _, keys in self.trips]


@asynccontextmanager
async def telling(store, *, gather_s=0.0):
    told = Uses(store, name="CAS", role="the slow store", gather_s=gather_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told.run)
        await wait_all_tasks_blocked()
        yield told
        nursery.cancel_scope.cancel()


async def test_nothing_is_noted_before_it_runs_and_after():
    store = Told()
    told = Uses(store, name="CAS", role="the slow store")
    told.add("a")
    await told.add_all(["b"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told.run)
        await wait_all_tasks_blocked()
        assert store.keys == []
        told.add("c")
        await wait_all_tasks_blocked()
        assert store.keys == [["c"]], "at once, if nothing else was said"
        nursery.cancel_scope.cancel()
    assert store.keys == [["c"]]
    told.add("d")
    await told.add_all(["e"])
    assert not told._keys


async def test_a_store_that_takes_no_notice_is_told_nothing(autojump_clock):
    class Expiring(Told):
        traits = Traits(tracks_use=False)

    store = Expiring()
    async with telling(store) as told:
        told.add("a")
        await told.add_all(["b"])
        await trio.sleep(5)
    assert store.trips == []


@pytest.mark.parametrize("gather_s", [1.0, 3.0])
async def test_uses_are_told_a_while_after_the_first_or_when_something_may_be_evicted(gather_s, autojump_clock):
    store = Told()
    async with telling(store, gather_s=gather_s) as told:
        await trio.sleep(100)
        told.tell_soon()  # of nothing
        began = trio.current_time()
        told.add("a")
        await trio.sleep(0.5)
        told.add("b")
        await trio.sleep(5)
        assert store.trips == [(pytest.approx(began + gather_s), ["a", "b"])]
        began = trio.current_time()
        told.add("c")
        await trio.sleep(0.25)
        told.tell_soon()
        await trio.sleep(5)
        assert store.trips[1:] == [(pytest.approx(began + 0.25), ["c"])]
        began = trio.current_time()
        told.add("d")
        await trio.sleep(5)
        assert store.trips[2:] == [(pytest.approx(began + gather_s), ["d"])]


async def test_trips_take_a_tenth_of_the_time_at_most_but_there_is_one_each_second(autojump_clock):
    for takes, pause in ((0.05, 0.05 + 0.5), (0.5, 0.5 + 1.0)):
        store = Told()
        store.takes = takes
        async with telling(store, gather_s=1.0) as told:
            for number in range(40):
                told.add(str(number))
                told.tell_soon()
                await trio.sleep(0.05)
        times = [when for when, _ in store.trips]
        assert times[1] - times[0] == pytest.approx(pause, abs=0.06)


async def test_uses_that_wait_are_bounded_and_told_in_parts(monkeypatch, autojump_clock):
    monkeypatch.setattr(uses, "MAX_USES", 5)
    monkeypatch.setattr(uses, "MAX_PER_TRIP", 2)
    store = Told()
    async with telling(store) as told:
        for name in "abcdefg":
            told.add(name)
        await trio.sleep(5)
        assert store.keys == [["a", "b"], ["c", "d"], ["e"]]


async def test_many_at_once_are_told_at_once_if_too_many_wait(monkeypatch, autojump_clock):
    monkeypatch.setattr(uses, "MAX_USES", 5)
    store = Told()
    async with telling(store, gather_s=1.0) as told:
        await told.add_all("abcde")
        assert store.keys == []
        await told.add_all("f")
        assert store.keys == [list("abcdef")]
        assert not told._keys


@pytest.mark.parametrize("error", [AWAY, DeadlineError("late"), ExhaustedError("busy")])
async def test_uses_of_a_store_that_is_away_are_kept_and_told_when_it_is_back(error, autojump_clock, caplog):
    store = Told()
    store.error = error
    with caplog.at_level(logging.INFO):
        async with telling(store) as told:
            began = trio.current_time()
            told.add("a")
            await trio.sleep(1.5)
            told.add("b")
            await trio.sleep(2)
            assert store.trips == [
                (pytest.approx(began + second), keys)
                for second, keys in enumerate([["a"], ["a"], ["a", "b"], ["a", "b"]])
            ]
            store.error = None
            await trio.sleep(5)
            told.add("c")
            await trio.sleep(5)
    assert store.keys[4:] == [["a", "b"], ["c"]]
    assert [record.getMessage() for record in caplog.records] == [  # once, however often it is tried
        f"CAS: the slow store could not be told of 1 uses: {error!r}"
    ]


async def test_a_store_that_is_away_again_is_a_line_in_the_log_again(autojump_clock, caplog):
    store = Told()
    with caplog.at_level(logging.INFO):
        async with telling(store) as told:
            for error in (AWAY, None, AWAY):
                store.error = error
                told.add("a")
                await trio.sleep(3)
    assert len(caplog.records) == 2


async def test_a_trip_that_is_refused_ends_the_round_and_loses_nothing(monkeypatch, autojump_clock):
    monkeypatch.setattr(uses, "MAX_PER_TRIP", 2)
    store = Told()
    store.error, store.refuses = AWAY, {"c"}
    async with telling(store) as told:
        await told.add_all("abcde")
        await trio.sleep(0.5)
        assert store.keys == [["a", "b"], ["c", "d"]]
        store.error = None
        await trio.sleep(1)
        assert store.keys[2:] == [["c", "d"], ["e"]]


@pytest.mark.parametrize("error", [InvalidRequestError("no such key"), PermissionDeniedError("read only")])
async def test_what_will_never_be_taken_is_dropped_and_does_not_keep_the_rest_from_being_told(
    error, monkeypatch, autojump_clock
):
    monkeypatch.setattr(uses, "MAX_PER_TRIP", 2)
    store = Told()
    store.error, store.refuses = error, {"a"}
    async with telling(store) as told:
        await told.add_all("abcd")
        await trio.sleep(5)
        assert store.keys == [["a", "b"], ["c", "d"]]


async def test_what_is_kept_for_a_store_that_is_away_is_bounded_and_nobody_waits_for_it(monkeypatch, autojump_clock):
    monkeypatch.setattr(uses, "MAX_USES", 3)
    store = Told()
    store.error = AWAY
    async with telling(store) as told:
        await told.add_all("abcd")  # tells it, before it is known to be away
        tried = len(store.trips)
        await told.add_all("efgh")
        told.add("i")
        assert len(store.trips) == tried
        assert list(told._keys) == ["a", "b", "c"]
        store.error = None
        await trio.sleep(2)
        assert store.keys[-1] == ["a", "b", "c"]
        await told.add_all("jkl")
        await trio.sleep(2)
        assert store.keys[-1] == ["j", "k", "l"]


async def test_what_was_used_while_a_trip_failed_is_told_after_what_it_was_about(autojump_clock):
    store = Told()
    store.takes, store.error = 0.5, AWAY
    async with telling(store) as told:
        told.add("b")
        await trio.sleep(0.25)
        told.add("a")
        await trio.sleep(0.5)
        store.error = None
        await trio.sleep(2)
    assert store.keys == [["b"], ["b", "a"]]


async def test_what_has_gone_is_not_told(autojump_clock):
    store = Told()
    async with telling(store, gather_s=1.0) as told:
        await told.add_all("ab")
        told.forget("a")
        told.forget("c")
        await trio.sleep(2)
    assert store.keys == [["b"]]


async def test_a_trip_that_the_end_interrupts_is_made_again_at_the_end(autojump_clock):
    store = Told()
    store.takes = 3
    async with telling(store) as told:
        told.add("a")
        await wait_all_tasks_blocked()
        assert store.keys == [["a"]]
    assert store.keys == [["a"], ["a"]]


async def test_the_last_uses_are_told_for_seconds_and_not_for_ever(autojump_clock):
    for takes in (4.5, 1000):
        store = Told()
        store.takes = takes
        async with telling(store) as told:
            told.add("a")
            began = trio.current_time()
        assert trio.current_time() - began == pytest.approx(min(takes, 5))


async def test_a_hundred_thousand_wait_at_most_and_five_thousand_are_told_at_once(autojump_clock):
    store = Told()
    async with telling(store, gather_s=1.0) as told:
        await told.add_all(f"{number}" for number in range(100_000))
        assert store.keys == []
        await told.add_all(["one more"])
        assert [len(keys) for keys in store.keys] == [5000] * 20 + [1]


async def test_others_have_their_turn_between_trips_to_a_store_that_never_waits(monkeypatch):
    monkeypatch.setattr(uses, "MAX_PER_TRIP", 1)
    turns = 0

    class Here(MemoryStore):
        seen = ()

        async def touch(self, keys):
            self.seen = (*self.seen, turns)

    store = Here(MemoryOptions(), BareContext())
    async with telling(store) as told:
        await told.add_all(f"{number}" for number in range(20))
        while len(store.seen) < 20:
            await trio.lowlevel.checkpoint()
            turns += 1
    assert len(set(store.seen)) > 10


async def test_many_that_are_used_while_the_store_is_away_are_kept_as_well(autojump_clock):
    store = Told()
    store.error = AWAY
    async with telling(store) as told:
        await told.add_all("a")
        await trio.sleep(0.5)
        await told.add_all("bc")
        assert store.keys == [["a"]]
        store.error = None
        await trio.sleep(1)
    assert store.keys[1:] == [["a", "b", "c"]]

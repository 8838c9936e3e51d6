"""Which uploads have to go when there are too many, and in which order."""

import gc
import weakref

import pytest
import trio
import trio.testing

from nl.errors import ExhaustedError
from nl.services.upload_bounds import MIN_IDLE_S, UploadSessions, UploadSlots, longest_idle

INF = float("inf")


class Parked:
    """As `UploadSession`, as far as bounds look at one."""

    def __init__(self, committed, *, attached=False, waiting_since=0.0):
        self.committed = committed
        self.attached = attached
        self.done = False
        self.waiting_since = waiting_since
        self.given_up = False
        self.error = None

    def give_up(self, error=None):
        self.given_up = True
        self.error = error


def park(sessions, *parked):
    """Parks them one after the other; the keys of those that had to go, in the order in which they went."""
    gone = []
    for at, session in enumerate(parked):
        key = ("", "", str(at), None)
        sessions.add(key, session)
        sessions.settle(key, session)
        gone += [number for number, each in enumerate(parked) if each.given_up and number not in gone]
    return gone


def test_the_longest_parked_goes_first():
    sessions = UploadSessions(max_parked=3, max_parked_bytes=1000)
    assert park(sessions, *[Parked(10) for _ in range(3)], Parked(11), Parked(10), Parked(10)) == [0, 1, 2]
    assert sessions.statistics.given_up == 3


def test_an_upload_that_is_parked_again_counts_from_then_on():
    sessions = UploadSessions(max_parked=3, max_parked_bytes=1000)
    parked = [Parked(10) for _ in range(3)]
    park(sessions, *parked)
    sessions.settle(("", "", "0", None), parked[0])  # it had been resumed, and broke off again
    newest = Parked(50)
    sessions.add(("", "", "new", None), newest)
    sessions.settle(("", "", "new", None), newest)
    assert [each.given_up for each in parked] == [False, True, False]


def test_the_largest_one_is_never_the_one_that_goes():
    sessions = UploadSessions(max_parked=2, max_parked_bytes=1000)
    parked = [Parked(900), *[Parked(10) for _ in range(5)]]
    assert park(sessions, *parked) == [1, 2, 3, 4]
    assert not parked[0].given_up


def test_nor_is_the_one_just_parked_even_if_all_others_must_go_for_it():
    sessions = UploadSessions(max_parked=64, max_parked_bytes=100)
    parked = [Parked(10), Parked(60), Parked(20), Parked(5000)]
    assert park(sessions, *parked) == [0, 1, 2]
    assert sessions.get(("", "", "3", None)) is parked[3]


def test_the_bytes_of_all_parked_are_bounded():
    sessions = UploadSessions(max_parked=64, max_parked_bytes=100)
    assert park(sessions, Parked(30), Parked(30), Parked(40), Parked(30), Parked(10)) == [0, 1]


@pytest.mark.parametrize("bound", ["number", "bytes"])
def test_no_more_have_to_go_at_once_than_are_beyond_the_bound(bound):
    if bound == "number":
        sessions = UploadSessions(max_parked=3, max_parked_bytes=1000)
    else:
        sessions = UploadSessions(max_parked=64, max_parked_bytes=100)
    parked = [Parked(20), Parked(20), Parked(20), Parked(50)]
    assert park(sessions, *parked) == [0]
    assert sessions.statistics.given_up == 1


def test_an_upload_with_a_call_is_not_parked_and_so_not_dropped():
    sessions = UploadSessions(max_parked=2, max_parked_bytes=1000)
    attached = Parked(1, attached=True)
    sessions.add(("", "", "attached", None), attached)
    assert park(sessions, *[Parked(10) for _ in range(4)]) == [0, 1]
    assert not attached.given_up


def test_a_session_that_no_call_could_find_is_given_up_when_its_call_leaves():
    sessions = UploadSessions(max_parked=2, max_parked_bytes=1000)
    key = ("", "", "name", None)
    known, nameless = Parked(1, attached=True), Parked(2)
    sessions.add(key, known)
    sessions.add(key, nameless)
    sessions.settle(key, nameless)
    assert (known.given_up, nameless.given_up) == (False, True)
    assert sessions.get(key) is known
    assert sessions.statistics.parked == 0


def test_what_has_ended_is_forgotten():
    sessions = UploadSessions(max_parked=2, max_parked_bytes=1000)
    key = ("", "", "name", None)
    session = Parked(1)
    session.done = True
    sessions.add(key, session)
    sessions.settle(key, session)
    assert sessions.get(key) is None
    assert (session.given_up, sessions.statistics.parked) == (False, 0)


def test_of_those_that_wait_for_their_clients_the_longest_is_found_and_the_largest_spared():
    uploads = [Parked(5, waiting_since=3.0), Parked(90, waiting_since=1.0), Parked(7, waiting_since=2.0)]
    busy = Parked(100, waiting_since=INF)
    assert longest_idle([*uploads, busy], before=10.0) is uploads[2]
    assert longest_idle([*uploads, busy], before=1.5) is uploads[1]
    assert longest_idle([*uploads, busy], before=0.5) is None


async def test_an_upload_waits_for_a_slot_while_all_others_make_progress(autojump_clock):
    slots = UploadSlots(2)
    busy = [Parked(1, waiting_since=INF) for _ in range(3)]
    await slots.take(busy[0])
    await slots.take(busy[1])
    with trio.move_on_after(100) as waiting:
        await slots.take(busy[2])
    assert waiting.cancelled_caught
    assert slots.taken == 2
    slots.release(busy[0])
    await slots.take(busy[2])
    assert (slots.taken, slots.ended) == (2, 0)


async def test_who_has_waited_long_for_its_client_makes_room_and_is_told_why(autojump_clock):
    slots = UploadSlots(2)
    silent, busy, new = Parked(1, waiting_since=trio.current_time()), Parked(9, waiting_since=INF), Parked(0)
    await slots.take(silent)
    await slots.take(busy)

    def drop(error):
        silent.error = error
        slots.release(silent)

    silent.give_up = drop
    began = trio.current_time()
    await slots.take(new)
    assert MIN_IDLE_S <= trio.current_time() - began < 2 * MIN_IDLE_S
    assert isinstance(silent.error, ExhaustedError)
    assert "max_open_files" in silent.error.message
    assert (slots.taken, slots.ended) == (2, 1)


async def test_slots_are_given_in_the_order_in_which_they_were_asked_for(autojump_clock):
    slots, order = UploadSlots(1), []
    holder = Parked(1, waiting_since=INF)
    await slots.take(holder)

    async def take(name):
        upload = Parked(1, waiting_since=INF)
        await slots.take(upload)
        order.append(name)
        slots.release(upload)

    async with trio.open_nursery() as nursery:
        for name in range(5):
            nursery.start_soon(take, name)
            await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1) as scope:
            scope.cancel()
            await take("cancelled")
        slots.release(holder)
    assert order == list(range(5))
    assert slots.taken == 0


@pytest.mark.parametrize("ending", [1, 2])
async def test_one_upload_is_asked_to_go_once(autojump_clock, ending):
    slots = UploadSlots(2)
    slow = [Parked(committed, waiting_since=-100.0) for committed in (1, 2)]
    for each in slow:
        await slots.take(each)
    with trio.move_on_after(10 * ending):
        await slots.take(Parked(0))
    assert slots.ended == 2  # the second one only because the first took so long


def test_the_one_just_parked_stays_even_where_the_largest_alone_is_beyond_the_bound():
    sessions = UploadSessions(max_parked=64, max_parked_bytes=100)
    assert park(sessions, Parked(5000), Parked(10), Parked(20), Parked(30)) == [1, 2]


async def test_an_upload_that_has_made_room_is_forgotten(autojump_clock):
    slots = UploadSlots(1)
    silent = Parked(1, waiting_since=-100.0)
    gone = weakref.ref(silent)
    await slots.take(silent)
    with trio.move_on_after(10):
        await slots.take(Parked(0))
    assert silent.given_up
    slots.release(silent)
    assert (slots.taken, slots.ended) == (0, 1)
    del silent
    gc.collect()
    assert gone() is None


async def test_a_slot_that_becomes_free_is_taken_at_once(autojump_clock):
    slots, taken = UploadSlots(1), []
    holder = Parked(1, waiting_since=INF)
    await slots.take(holder)

    async def take():
        await slots.take(Parked(1, waiting_since=INF))
        taken.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.sleep(0.3)  # less than the time after which it would look by itself
        slots.release(holder)
        released = trio.current_time()
    assert taken == [released]


@pytest.mark.parametrize(("most", "waits"), [(1, True), (2, False), (3, False)])
async def test_there_are_as_many_slots_as_there_are(autojump_clock, most, waits):
    slots = UploadSlots(most)
    await slots.take(Parked(1, waiting_since=INF))
    with trio.move_on_after(1) as patience:
        await slots.take(Parked(1, waiting_since=INF))
    assert patience.cancelled_caught is waits


@pytest.mark.parametrize(("silent_s", "is_ended"), [(MIN_IDLE_S - 0.1, False), (MIN_IDLE_S, True)])
async def test_how_long_one_must_have_waited_to_make_room(autojump_clock, silent_s, is_ended):
    slots = UploadSlots(1)
    silent = Parked(1, waiting_since=trio.current_time() - silent_s)
    await slots.take(silent)
    with trio.move_on_after(0.05):
        await slots.take(Parked(0))
    assert (silent.given_up, slots.ended) == (is_ended, int(is_ended))


def test_what_is_settled_counts_and_what_is_started_too():
    sessions = UploadSessions(max_parked=2, max_parked_bytes=100)
    assert park(sessions, Parked(10), Parked(10), Parked(10), Parked(10)) == [0, 1]
    found = sessions.statistics
    assert (found.started, found.parked, found.given_up, found.resumed) == (4, 4, 2, 0)
    assert [sessions.get(("", "", str(at), None)) is not None for at in range(4)] == [False, False, True, True]


def test_a_session_is_forgotten_by_its_own_name_and_only_while_it_is_the_one():
    sessions = UploadSessions(max_parked=2, max_parked_bytes=100)
    key, one, other = ("", "", "name", None), Parked(1, attached=True), Parked(1, attached=True)
    sessions.add(key, one)
    sessions.forget(key, other)
    assert sessions.get(key) is one
    sessions.forget(key, one)
    assert sessions.get(key) is None
    sessions.forget(key, one)


def test_a_call_that_leaves_a_session_that_another_feeds_ends_none():
    sessions = UploadSessions(max_parked=0, max_parked_bytes=0)
    key, attached = ("", "", "name", None), Parked(1, attached=True)
    sessions.add(key, attached)
    sessions.settle(key, attached)
    assert not attached.given_up
    assert sessions.get(key) is attached


async def test_who_comes_while_others_stand_in_line_stands_behind_them(autojump_clock):
    slots, order = UploadSlots(1), []
    holder = Parked(1, waiting_since=INF)
    await slots.take(holder)

    async def take(name):
        await slots.take(Parked(1, waiting_since=INF))
        order.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, "first")
        await trio.testing.wait_all_tasks_blocked()
        slots.release(holder)  # it is free now, and the first in line has not run yet
        with trio.move_on_after(10):
            await take("second")
        nursery.cancel_scope.cancel()
    assert order == ["first"]
    assert slots.taken == 1

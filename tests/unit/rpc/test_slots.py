"""Places for connections: who waits, who makes room, and what the log says of it."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.rpc.slots import GREETING_S, Slots


async def test_a_full_listener_lets_nobody_in_until_a_slot_is_given_back(nursery):
    slots, entered = Slots(1, remedy="raise it"), trio.Event()
    slots.take()

    async def enter():
        await slots.wait_free()
        slots.take()
        entered.set()

    nursery.start_soon(enter)
    await wait_all_tasks_blocked()
    assert not entered.is_set()
    slots.release()
    with trio.fail_after(60):
        await entered.wait()
    assert slots.taken == 1


async def test_listeners_share_what_the_process_has(autojump_clock):
    process = Slots(2, remedy="raise ulimit")
    one, other = Slots(10, remedy="", shared=process), Slots(10, remedy="", shared=process)
    one.take()
    other.take()
    with trio.move_on_after(5) as scope:
        await one.wait_free()
    assert scope.cancelled_caught
    other.release()
    await one.wait_free()
    one.take()
    assert (one.taken, other.taken, process.taken) == (2, 0, 2)


async def test_who_has_waited_for_the_process_looks_at_the_listener_again(autojump_clock):
    """A listener accepts at several addresses, and another of them may have taken its last slot meanwhile."""
    process = Slots(2, remedy="")
    one, other = Slots(1, remedy="", shared=process), Slots(9, remedy="", shared=process)
    other.take()
    other.take()
    with trio.move_on_after(5) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.wait_free)
            await wait_all_tasks_blocked()
            one.take()
            other.release()
            other.release()
    assert scope.cancelled_caught
    one.release()
    with trio.fail_after(5):
        await one.wait_free()


async def test_the_connection_that_has_been_silent_for_the_longest_makes_room(autojump_clock):
    process = Slots(3, remedy="")
    one, other = Slots(3, remedy="", shared=process), Slots(3, remedy="", shared=process)
    left = []

    async def silent(slots, name):
        slots.take()
        with trio.CancelScope() as scope, slots.greets(scope):
            await trio.sleep_forever()
        left.append(name)
        slots.release()

    async with trio.open_nursery() as nursery:
        for slots, name in ((one, "first"), (other, "second"), (other, "third")):
            nursery.start_soon(silent, slots, name)
            await trio.sleep(0.1)
        began = trio.current_time()
        await other.wait_free()
        assert left == ["first"]
        assert trio.current_time() - began < GREETING_S
        nursery.cancel_scope.cancel()
    assert not process.greeting


async def test_a_connection_always_has_some_time_for_its_first_words(autojump_clock):
    slots = Slots(1, remedy="")
    slots.take()
    with trio.CancelScope() as scope, slots.greets(scope):
        with trio.move_on_after(GREETING_S * 0.9):
            await slots.wait_free()
    assert not scope.cancel_called


async def test_who_is_being_served_never_makes_room(autojump_clock):
    slots = Slots(2, remedy="")
    slots.take()
    slots.take()
    with trio.CancelScope() as scope:
        with slots.greets(scope):
            pass
        with trio.move_on_after(100) as waited:
            await slots.wait_free()
    assert waited.cancelled_caught and not scope.cancel_called


async def test_a_full_house_is_one_line_in_the_log_that_says_what_to_do(autojump_clock, caplog):
    slots = Slots(1, remedy="raise max_connections")
    slots.take()
    with trio.move_on_after(30):
        await slots.wait_free()
    assert caplog.messages == ["all 1 connections are taken, new ones wait; raise max_connections"]


async def test_who_waits_asks_for_room_about_once_a_second_and_ten_times_where_somebody_has_left(autojump_clock):
    for lets_go, times in ((False, [0, 1, 2, 3]), (True, [0, 0.1, 0.2, 0.3])):
        slots, asked = Slots(1, remedy=""), []
        slots.take()
        began = trio.current_time()
        slots.relief.append(lambda asked=asked, began=began: asked.append(trio.current_time() - began) or False)
        slots.relief.append(lambda lets_go=lets_go: lets_go)
        slots.relief.append(lambda lets_go=lets_go: not lets_go and False)
        with trio.move_on_after(times[-1] + times[1] / 2):
            await slots.wait_free()
        assert asked == pytest.approx(times)


async def test_a_slot_that_is_taken_again_at_once_is_waited_for_anew(autojump_clock, nursery):
    slots, asked = Slots(1, remedy=""), []
    slots.take()
    slots.relief.append(lambda: asked.append(trio.current_time()) or False)
    nursery.start_soon(slots.wait_free)
    await wait_all_tasks_blocked()
    for count in range(2, 5):
        slots.release()
        slots.take()
        await wait_all_tasks_blocked()
        assert len(asked) == count
    nursery.cancel_scope.cancel()


async def test_only_the_first_of_those_who_greet_is_asked_to_leave_and_when_its_time_is_over(autojump_clock):
    slots = Slots(2, remedy="")
    slots.take()
    slots.take()
    scopes = [trio.CancelScope(), trio.CancelScope()]
    with slots.greets(scopes[0]):
        await trio.sleep(0.4)
        with slots.greets(scopes[1]):
            with trio.move_on_after(GREETING_S - 0.4 - 0.01):
                await slots.wait_free()
            assert [scope.cancel_called for scope in scopes] == [False, False]
            with trio.move_on_after(0.02):
                await slots.wait_free()
            assert [scope.cancel_called for scope in scopes] == [True, False]
            with trio.move_on_after(0.5):
                await slots.wait_free()
            assert [scope.cancel_called for scope in scopes] == [True, True]

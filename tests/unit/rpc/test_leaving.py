"""Lame duck for connections that only wait."""

import trio
import trio.testing

from nl.rpc.leaving import Leaving


async def test_a_wait_is_cut_short_when_the_server_leaves(nursery):
    leaving, ended = Leaving(), trio.Event()

    async def wait():
        with leaving.idle():
            await trio.sleep_forever()
        ended.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    leaving.begin()
    with trio.fail_after(60):
        await ended.wait()


async def test_a_wait_that_begins_later_is_over_at_once():
    leaving = Leaving()
    leaving.begin()
    with trio.fail_after(60), leaving.idle():
        await trio.sleep_forever()


async def test_the_one_that_has_been_idle_for_the_longest_is_told_with_for_how_long(mock_clock, nursery):
    leaving, ended = Leaving(), []
    assert leaving.longest_idle() == (0.0, None)

    async def wait(name):
        with leaving.idle():
            await trio.sleep_forever()
        ended.append(name)

    for name in "abc":
        nursery.start_soon(wait, name)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(10)
    for seconds, name in ((30, "a"), (20, "b"), (10, "c")):
        found, scope = leaving.longest_idle()
        assert found == seconds
        scope.cancel()
        assert leaving.longest_idle()[1] is not scope, "one that leaves is none to ask"
        await trio.testing.wait_all_tasks_blocked()
        assert ended[-1] == name
    assert leaving.longest_idle() == (0.0, None)

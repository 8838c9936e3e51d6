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
    with trio.fail_after(5):
        await ended.wait()


async def test_a_wait_that_begins_later_is_over_at_once():
    leaving = Leaving()
    leaving.begin()
    with trio.fail_after(5), leaving.idle():
        await trio.sleep_forever()

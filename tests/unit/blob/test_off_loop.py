"""Pure work beside the loop: a few at once, and nobody who gives up waits for it."""

import threading

import trio
import trio.testing

from nl.blob.off_loop import THREADS, off_loop, threads


async def test_a_few_are_at_work_at_once_and_others_wait_in_line():
    go_on, begun = threading.Event(), []

    def work(number):
        begun.append(number)
        go_on.wait(60)
        return number

    done = []

    async def ask(number):
        done.append(await off_loop(work, number))

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(ask, number)
        await trio.testing.wait_all_tasks_blocked()
        assert threads().borrowed_tokens == threads().total_tokens == THREADS < 5
        assert threads().statistics().tasks_waiting == 6 - THREADS
        go_on.set()
    assert sorted(done) == sorted(begun) == list(range(6))


async def test_whoever_gives_up_leaves_the_thread_to_itself_and_its_place_is_taken_until_it_ends():
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work():
        begun.set()
        go_on.wait(60)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(off_loop, work)
        await trio.to_thread.run_sync(begun.wait, 60)
        nursery.cancel_scope.cancel()
    assert not ended.is_set() and threads().borrowed_tokens == 1
    go_on.set()
    await trio.to_thread.run_sync(ended.wait, 60)

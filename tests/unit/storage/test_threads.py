"""Threads for drivers that block: what a cancelled caller waits for, and how many there are at once."""

from __future__ import annotations

import threading

import pytest
import trio
import trio.testing

from nl.storage.threads import Threads


class Call:
    """A call that blocks until it is let go, and says where it is."""

    def __init__(self) -> None:
        self.began, self.ended, self._go = (threading.Event() for _ in range(3))

    def __call__(self) -> str:
        self.began.set()
        assert self._go.wait(60)
        self.ended.set()
        return "result"

    def let_go(self) -> None:
        self._go.set()

    async def has(self, event: threading.Event) -> None:
        assert await trio.to_thread.run_sync(event.wait, 60)


async def test_a_cancelled_look_leaves_at_once_and_its_thread_still_counts() -> None:
    threads, call = Threads(1), Call()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.look, call)
        await call.has(call.began)
        nursery.cancel_scope.cancel()
    assert not call.ended.is_set()
    assert threads.limiter.borrowed_tokens == 1, "no more blocking calls at once than was said, abandoned ones included"
    call.let_go()
    assert await threads.look(lambda: "another") == "another"
    assert call.ended.is_set()


async def test_a_cancelled_change_is_left_when_it_has_ended() -> None:
    threads, call, left = Threads(1), Call(), trio.Event()

    async def change(scope: trio.CancelScope) -> None:
        with scope:
            await threads.change(call)
        left.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change, scope := trio.CancelScope())
        await call.has(call.began)
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not left.is_set(), "what its caller does next comes after it at the server, too"
        call.let_go()
        await left.wait()
    assert call.ended.is_set()


@pytest.mark.parametrize("way", ["look", "change"])
async def test_no_more_calls_block_at_once_than_was_said(way: str) -> None:
    threads, calls, got = Threads(2), [Call() for _ in range(3)], list[str]()

    async def run(call: Call) -> None:
        got.append(await getattr(threads, way)(call))

    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(run, call)
            await trio.testing.wait_all_tasks_blocked()
        assert threads.limiter.borrowed_tokens == 2
        assert threads.limiter.statistics().tasks_waiting == 1
        for call in calls:
            call.let_go()
    assert got == ["result"] * 3


@pytest.mark.parametrize("way", ["look", "change"])
async def test_what_waits_for_a_thread_is_left_at_once_and_never_begins(way: str) -> None:
    threads, first, second = Threads(1), Call(), Call()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.look, first)
        await first.has(first.began)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(getattr(threads, way), second)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        first.let_go()
    assert await threads.look(lambda: "idle") == "idle"
    assert not second.began.is_set()

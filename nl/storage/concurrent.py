"""The few tasks that handle the items of one request: the blobs of a batch, the directories of a window of a tree.

A store that never waits is done by the first of them; one far away has several items under way. However many there
are, others get their turn: a batch gives way after `SLICE_S`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Final

import trio

TASKS: Final = 8
"""How many items of one request are under way at once."""
SLICE_S: Final = 0.005
"""How long a request whose store never waits may keep everybody else waiting."""


async def for_each(count: int, act: Callable[[int], Awaitable[None]], *, tasks: int = TASKS) -> None:
    """Calls `act` with 0..count-1, in order, up to `tasks` under way at once if they wait.

    The first error ends the others and is raised as it is, outside of any group.
    """
    numbers = iter(range(count))

    async def work() -> None:
        until = perf_counter() + SLICE_S
        for number in numbers:
            await act(number)
            if perf_counter() > until:
                await trio.lowlevel.checkpoint()
                until = perf_counter() + SLICE_S

    if min(count, tasks) == 1:
        await work()
        return
    failures: list[Exception] = []

    async def work_or_fail() -> None:
        try:
            await work()
        except Exception as exc:  # noqa: BLE001  raised again below, alone
            failures.append(exc)
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(min(tasks, count)):
                nursery.start_soon(work_or_fail)
        if failures:
            raise failures[0]
    finally:
        failures.clear()  # an error knows the frames that it has passed, and with them this list: a circle

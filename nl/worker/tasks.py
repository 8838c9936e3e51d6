"""Some tasks that share one piece of work, and one exception for it instead of a group of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

from nl.errors import NlError


@contextmanager
def one_error() -> Iterator[None]:
    """Raises the first failure of an exception group by itself, an NlError rather than another."""
    try:
        yield
    except BaseExceptionGroup as group:
        failures = group.subgroup(Exception)
        if failures is None:  # cancelled, or the end of the process
            raise
        raise _first(failures) from None


async def run_tasks(count: int, work: Callable[[], Awaitable[None]]) -> None:
    """Runs `work` in `count` tasks at once; they divide the work among them, by an iterator that they share.

    The first failure cancels the rest and is raised by itself.
    """
    if count <= 1:
        await work()
        return
    with one_error():
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(work)


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    leaves: list[Exception] = []
    for exc in group.exceptions:
        leaves.append(_first(exc) if isinstance(exc, BaseExceptionGroup) else exc)
    return next((exc for exc in leaves if isinstance(exc, NlError)), leaves[0])

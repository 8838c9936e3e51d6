"""Fetches that run ahead of their readers, in a nursery of the store's: a reader cannot own a task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from nl.plugin import UnavailableError

T = TypeVar("T")


class Pending(Generic[T]):
    """One call under way."""

    __slots__ = ("_done", "_error", "_results", "_scope")

    def __init__(self) -> None:
        self._done = trio.Event()
        self._scope = trio.CancelScope()
        self._results: list[T] = []
        self._error: Exception | None = None

    async def result(self) -> T:
        """What the call returns or raises; UnavailableError where it was ended with the store."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        if not self._results:
            raise UnavailableError("the store was stopped while it was read")
        return self._results.pop()

    def cancel(self) -> None:
        """Nobody wants the result any more."""
        self._scope.cancel()

    async def run(self, call: Callable[[], Awaitable[T]]) -> None:
        """The call's task."""
        try:
            with self._scope:
                self._results.append(await call())
        except Exception as error:  # noqa: BLE001  raised again in the reader that waits for it
            self._error = error
        finally:
            self._done.set()


class Ahead:
    """Starts calls while `run` runs; before and after, nothing is fetched ahead, and readers fetch for themselves."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Owns the calls, until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def start(self, call: Callable[[], Awaitable[T]]) -> Pending[T] | None:
        """Begins with a call; whoever gets it waits for its result, or cancels it."""
        if self._nursery is None:
            return None
        pending: Pending[T] = Pending()
        self._nursery.start_soon(pending.run, call)
        return pending

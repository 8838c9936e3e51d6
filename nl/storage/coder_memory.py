"""One bound, in bytes, for what the coders of a process hold: encoders, decoders, and what cuts blobs into chunks.

A coder lives as long as its blob takes, and how long that is its client says: a thousand slow ones would hold
gigabytes. Who codes a blob in pieces holds a part of this memory meanwhile. Rules:

* First come, first served; who has waited while nobody got any for `PATIENCE_S` is told that there is no room.
* **Who holds some never waits for more**, or coders behind coders would wait for themselves: a store that compresses
  into one that cuts. What a request needs beyond its first share is granted at once, so the bound is one on requests
  and may be overdrawn by as much as stores lie behind each other. What tasks have in common is found in their parents:
  a context variable would also be inherited by tasks that only happen to be started then.
* An upload that has waited for its client for `MIN_IDLE_S` makes room for who waits here.

Not here: how much a coder takes, which its store knows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from math import inf
from typing import Final

import trio

from nl.blob.reader import CHUNK, Buffer, Reader
from nl.errors import ExhaustedError

DEFAULT_BYTES: Final = 1024 * 1024 * 1024
PATIENCE_S: Final = 30.0
MIN_IDLE_S: Final = 5.0
"""How long an upload must have waited for its client before it has to make room."""


class Held:
    """What one coder holds."""

    __slots__ = ("_scope", "count", "waiting_since")

    def __init__(self, count: int) -> None:
        self.count = count
        """Bytes."""
        self.waiting_since = inf
        """Since when it has waited for its source, on trio's clock."""
        self._scope = trio.CancelScope()

    @property
    def scope(self) -> trio.CancelScope:
        """Around the upload: cancelled when it has to make room."""
        return self._scope

    def watched(self, reader: Reader) -> Reader:
        """The same reader, of which it is known how long it is waited for."""
        return _Watched(reader, self)


class CoderMemory:
    """`limit` bytes."""

    def __init__(self, limit: int = DEFAULT_BYTES, *, patience_s: float = PATIENCE_S) -> None:
        self.limit = limit
        self.used = 0
        self.ended = 0
        """How many coders of uploads had to make room: one upload may have several."""
        self._patience_s = patience_s
        self._requests: dict[trio.lowlevel.Task, _Request] = {}
        self._waiting: dict[_Waiter, None] = {}
        """In order of arrival."""
        self._uploads: set[Held] = set()
        self._last_granted = -inf
        self._holders = 0
        """Requests that hold some."""

    def statistics(self) -> dict[str, int]:
        """Figures for pages."""
        return {"bytes": self.used, "max_bytes": self.limit, "holders": self._holders, "waiting": len(self._waiting),
                "ended": self.ended}

    @contextmanager
    def together(self) -> Iterator[None]:
        """The tasks that are started in the block belong to one request: once one of them holds some, the others need
        not wait.
        """
        request = self._enter()
        try:
            yield
        finally:
            self._leave(request)

    @asynccontextmanager
    async def reading(self, count: int) -> AsyncIterator[Held]:
        """Holds `count` bytes, waited for if need be. Raises ExhaustedError."""
        async with self._holding((count,)) as held:
            yield held

    @asynccontextmanager
    async def uploading(self, counts: Sequence[int]) -> AsyncIterator[Held]:
        """For an upload, which reads from `watched`. Several counts, falling: how much the coder would like, and with
        how much it can do. All but the last are only for the first half of the memory.

        Raises ExhaustedError; in the middle of the block, too, which is cancelled then.
        """
        async with self._holding(counts) as held:
            self._uploads.add(held)
            try:
                with held.scope:
                    yield held
            finally:
                self._uploads.discard(held)
        if held.scope.cancelled_caught:
            raise ExhaustedError(
                f"this upload has waited for its client for more than {MIN_IDLE_S:g} s, and its memory was needed "
                f"({self._remedy})"
            )

    @contextmanager
    def spare(self, count: int) -> Iterator[bool]:
        """For who can do without: holds `count` bytes, at once, if that leaves half of the memory; whether it does."""
        if self._waiting or count > self.limit - self.limit // 2 - self.used:
            yield False
            return
        request = self._enter()
        self._grant(request, count)
        try:
            yield True
        finally:
            self._give_back(request, count)

    # -- who gets some

    @asynccontextmanager
    async def _holding(self, counts: Sequence[int]) -> AsyncIterator[Held]:
        request = self._enter()
        count = 0
        try:
            count = await self._take(request, counts)
            yield Held(count)
        finally:
            self._give_back(request, count)

    def _give_back(self, request: _Request, count: int) -> None:
        if count:
            self._take_back(request, count)
        self._leave(request)
        self._admit()

    async def _take(self, request: _Request, counts: Sequence[int]) -> int:
        least = min(counts[-1], self.limit)
        free = self.limit - self.used
        if not request.shares and (self._waiting or least > free):
            await self._wait(_Waiter(request, least))
            return least
        count = next((each for each in counts[:-1] if each <= free - self.limit // 2), least)
        self._grant(request, count)
        return count

    def _grant(self, request: _Request, count: int) -> None:
        self.used += count
        request.shares += 1
        self._holders += request.shares == 1
        self._last_granted = trio.current_time()

    def _take_back(self, request: _Request, count: int) -> None:
        self.used -= count
        request.shares -= 1
        self._holders -= not request.shares

    async def _wait(self, waiter: _Waiter) -> None:
        """Returns when it has got its share. Raises ExhaustedError."""
        began = trio.current_time()
        self._waiting[waiter] = None
        try:
            while not waiter.granted.is_set():
                if trio.current_time() >= max(began, self._last_granted) + self._patience_s:
                    raise ExhaustedError(
                        f"{self._holders} requests use all memory for compressing and cutting blobs, and none of them "
                        f"has ended for {self._patience_s:g} s ({self._remedy})"
                    )
                if waiter is next(iter(self._waiting)):
                    self._end_idle()
                with trio.move_on_after(min(MIN_IDLE_S / 5, self._patience_s)):
                    await waiter.granted.wait()
        except BaseException:
            if waiter.granted.is_set():
                self._take_back(waiter.request, waiter.count)
            else:
                del self._waiting[waiter]
            raise  # to where those behind are admitted

    def _admit(self) -> None:
        while self._waiting:
            first = next(iter(self._waiting))
            if self.used + first.count > self.limit:
                return
            for each in [each for each in self._waiting if each.request is first.request]:
                del self._waiting[each]
                self._grant(each.request, each.count)
                each.granted.set()

    def _end_idle(self) -> None:
        """Ends the uploads that have waited longest for their clients, as many as who waits here needs."""
        before = trio.current_time() - MIN_IDLE_S
        ending = sum(each.count for each in self._uploads if each.scope.cancel_called)
        needed = sum(each.count for each in self._waiting) - (self.limit - self.used) - ending
        idle = [each for each in self._uploads if each.waiting_since <= before and not each.scope.cancel_called]
        for each in sorted(idle, key=lambda each: each.waiting_since):
            if needed <= 0:
                return
            needed -= each.count
            self.ended += 1
            each.scope.cancel()

    @property
    def _remedy(self) -> str:
        return f"global.max_coder_memory is {self.limit} bytes"

    # -- requests

    def _enter(self) -> _Request:
        """The request that this task works for: that of the nearest of its parents which has one."""
        task = at = trio.lowlevel.current_task()
        while (request := self._requests.get(at)) is None:
            nursery = at.parent_nursery
            if nursery is None:
                request = self._requests[task] = _Request(task)
                break
            at = nursery.parent_task
        request.users += 1
        return request

    def _leave(self, request: _Request) -> None:
        request.users -= 1
        if not request.users:
            del self._requests[request.task]


class _Request:
    """What belongs together."""

    __slots__ = ("shares", "task", "users")

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.task = task
        self.shares = 0
        """How many of its coders hold some."""
        self.users = 0


class _Waiter:
    __slots__ = ("count", "granted", "request")

    def __init__(self, request: _Request, count: int) -> None:
        self.request = request
        self.count = count
        self.granted = trio.Event()


class _Watched(Reader):
    __slots__ = ("_held", "_reader", "size")

    def __init__(self, reader: Reader, held: Held) -> None:
        self._reader = reader
        self._held = held
        self.size = reader.size

    @property
    def can_rewind(self) -> bool:
        return self._reader.can_rewind

    async def rewind(self) -> None:
        await self._reader.rewind()

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        held = self._held
        held.waiting_since = trio.current_time()
        try:
            return await self._reader.receive_parts(max_bytes)
        finally:
            held.waiting_since = inf

"""One server as its callers see it: a queue, and a few connections that each take what has gathered there.

A connection that is free sends all that waits as one pipeline, so batches form by themselves: a lone request waits for
nobody, and under load a trip carries hundreds. The connections are tasks of the store, not of a caller: a caller that
is cancelled leaves, and its replies are dropped when they come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import trio

from nl.plugin import BackendError, TransientError
from nl_redis_store.connection import Command, Connection, Reply

MAX_COMMANDS = 512
MAX_SEND = 1024 * 1024
MAX_RECEIVE = 4 * 1024 * 1024
"""What one pipeline carries, in commands and bytes; a single request may be larger."""


class Request:
    """Commands that go to a server in one piece, and then either their replies or what became of them."""

    __slots__ = ("commands", "done", "error", "flight", "receives", "replies", "sends", "taken", "wanted")

    def __init__(self, commands: Sequence[Command], *, sends: int, receives: int) -> None:
        """`sends` and `receives` are about how many bytes of payload that is."""
        self.commands = commands
        self.sends = sends
        self.receives = receives
        self.done = trio.Event()
        self.replies: list[Reply] = []
        self.error: BackendError | None = None
        self.wanted = True
        self.taken = False
        """Whether it has left the queue."""
        self.flight: trio.CancelScope | None = None
        """Its trip, while there is one."""

    def fail(self, error: BackendError) -> None:
        """It has no replies."""
        self.error = error
        self.done.set()

    async def settle(self, grace_s: float) -> None:
        """For a caller that gives up. Afterwards nobody reads the buffers of its commands any more: those that were
        not sent never are, those that were have been answered, or their connection is cut after `grace_s`.
        """
        self.wanted = False
        if not self.taken:
            return
        with trio.CancelScope(shield=True):
            with trio.move_on_after(grace_s):
                await self.done.wait()
            if self.flight is not None:
                self.flight.cancel()
            await self.done.wait()


class Node:
    """A server."""

    def __init__(
        self, name: str, connect: Callable[[], Awaitable[Connection]], *, connections: int, timeout_s: float
    ) -> None:
        """`connect` finds the server and logs in; it raises BackendError. `timeout_s` is for one trip."""
        self._connect = connect
        self._connections = connections
        self._timeout_s = timeout_s
        self._waiting: deque[Request] = deque()
        self._idle = trio.lowlevel.ParkingLot()
        self._era = 0
        self._closed = False
        self.name = name
        self.trips = 0
        self.open = 0
        """Connections there are."""

    def enqueue(self, request: Request) -> None:
        """Sends it as soon as a connection is free. Its `done` is set at the end, however it ends."""
        if self._closed:
            request.fail(TransientError(f"{self.name} is not asked any more"))
            return
        self._waiting.append(request)
        self._idle.unpark()

    def renew(self) -> None:
        """All connections are made anew before they are used again."""
        self._era += 1

    async def run(self) -> None:
        """Serves the queue until it is cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self._connections):
                    nursery.start_soon(self._work)
        finally:
            self._closed = True
            while self._waiting:
                self._waiting.popleft().fail(TransientError(f"{self.name} is not asked any more"))

    async def _work(self) -> None:
        """One connection, made when there is something to send and again whenever it broke."""
        link = _Link()
        try:
            while True:
                batch = await self._take()
                try:
                    if link.era != self._era:
                        await self._drop(link)
                        link.era = self._era
                    await self._serve(link, batch)
                finally:
                    for request in batch:
                        request.flight = None
                        if not request.done.is_set():
                            request.fail(TransientError(f"{self.name} is not asked any more"))
        finally:
            await self._drop(link)

    async def _take(self) -> list[Request]:
        while True:
            while not self._waiting:
                await self._idle.park()
            batch: list[Request] = []
            commands = sends = receives = 0
            while self._waiting:
                request = self._waiting[0]
                commands += len(request.commands)
                sends += request.sends
                receives += request.receives
                if batch and (commands > MAX_COMMANDS or sends > MAX_SEND or receives > MAX_RECEIVE):
                    break
                self._waiting.popleft()
                if request.wanted:
                    request.taken = True
                    batch.append(request)
            if batch:
                return batch

    async def _serve(self, link: _Link, batch: list[Request]) -> None:
        """Sends a batch and hands out the replies, or says to each what happened.

        A connection from before may have been ended by the server meanwhile: then there is a second attempt.
        """
        used_before = link.connection is not None
        error = await self._attempt(link, batch)
        if used_before and error is not None and error.code == "Unavailable":
            error = await self._attempt(link, batch)
        if error is not None:
            for request in batch:
                request.fail(error)

    async def _attempt(self, link: _Link, batch: list[Request]) -> BackendError | None:
        flight = trio.CancelScope(deadline=trio.current_time() + self._timeout_s)
        for request in batch:
            request.flight = flight
        good = False
        error: BackendError = TransientError(
            f"{self.name} did not answer within {self._timeout_s:g} s", code="DeadlineExceeded"
        )
        try:
            with flight:
                if link.connection is None:
                    link.connection = await self._connect()
                    self.open += 1
                replies = await link.connection.exchange([c for request in batch for c in request.commands])
                good = True
        except BackendError as failure:
            error = failure
        finally:
            if not good:
                await self._drop(link)
        if not good:
            return error
        self._hand_out(batch, replies)
        return None

    def _hand_out(self, batch: list[Request], replies: list[Reply]) -> None:
        self.trips += 1
        at = 0
        for request in batch:
            end = at + len(request.commands)
            request.replies = replies[at:end]
            at = end
            request.done.set()

    async def _drop(self, link: _Link) -> None:
        if link.connection is None:
            return
        connection, link.connection = link.connection, None
        self.open -= 1
        with trio.CancelScope(shield=True):  # which never waits: it is a forceful close
            await connection.aclose()


class _Link:
    """What one of the tasks has: its connection, if there is one."""

    __slots__ = ("connection", "era")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.era = 0

"""What a connection sends: a queue of small things, and one writer at a time.

Rules for this file:

* Small things are queued (`add`) and leave together: at the end of a pass of the reader (`corked`), or by a task.
* Large payloads go from the caller's buffers into the kernel while the caller waits (`write`): a peer that does not
  read holds one caller's buffers, and the queue stays below HIGH_WATER plus what the peer's own requests cause.
* Callers of `write` take turns in the order in which they asked: the turn is handed to the next one, never put down for
  whoever is first, which would always be the one that has just had it.
* A cancelled writer never leaves half a frame on the wire: the rest of that frame is copied to the queue.
* What a payload costs in credit is charged by a caller who has the socket (`acquire`): between the charge and the first
  byte nothing else, no acknowledgement of smaller windows above all, can go out (RFC 9113, section 6.9.2).
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import trio

from nl.blob.reader import Buffer
from nl.rpc.contract import TransportLost
from nl.rpc.messages import DataFrames
from nl.rpc.transport import Transport

HIGH_WATER = 256 * 1024
"""Above this many queued bytes, senders of messages wait."""
_IOV_MAX = 1000


class Socket(enum.Enum):
    """Who has the socket for writing."""

    FREE = 0
    TAKEN = 1
    LOST = 2
    """Nobody will any more: the connection is gone."""


class Outbox:
    """The sending side of one connection. `on_room` is called when the queue falls below HIGH_WATER again."""

    __slots__ = (
        "_idle", "_queueing", "_room", "_stuck", "_task_scope", "_turns", "_writer", "corked", "nursery", "on_room",
        "progress", "queue", "size", "socket", "transport",
    )  # fmt: skip

    def __init__(self, transport: Transport, *, on_room: Callable[[], None]) -> None:
        self.transport = transport
        self.on_room: Callable[[], None] = on_room
        self.nursery: trio.Nursery | None = None
        """Where the writer task is started; None before and after the connection's life."""
        self.queue: list[bytes | memoryview] = []
        self.size = 0
        """Bytes in the queue, and of it in the writer's hands."""
        self.socket = Socket.FREE
        self.corked = False
        """The reader is between reading and flushing: what is queued now leaves at the end of its pass."""
        self.progress = 0.0
        """When the peer was last seen to take something, or something began to wait for it since."""
        self._stuck = False
        """The peer took nothing when it was last tried. Another writer that tries in vain is no news."""
        self._writer: trio.lowlevel.Task | None = None
        self._task_scope: trio.CancelScope | None = None
        self._idle = False
        self._queueing = False
        """Where payloads are queued (TLS): whether somebody has the turn to do that."""
        self._room = trio.lowlevel.ParkingLot()
        self._turns = trio.lowlevel.ParkingLot()

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        return self.socket is Socket.LOST

    def lose(self) -> None:
        """The connection is gone: whoever waits here finds out."""
        self.socket = Socket.LOST
        self._room.unpark_all()
        self._turns.unpark_all()

    def drop(self) -> None:
        """Loses the connection, and what is queued with it."""
        self.lose()
        self.queue.clear()
        self.size = 0

    # -- small things --------------------------------------------------------------------------------------------

    def add(self, data: bytes) -> None:
        """Queues whole frames. `flush`, `flush_soon` or the end of the reader's pass sends them."""
        self.queue.append(data)
        self.size += len(data)

    def flush(self) -> None:
        """Sends what is queued, as far as the kernel takes it; the writer task does the rest."""
        queue = self.queue
        if not queue or self.socket is not Socket.FREE:
            return
        data = queue[0] if len(queue) == 1 else b"".join(queue)
        try:
            count = self.transport.try_send((data,))
        except TransportLost:
            self.lose()
            return
        queue.clear()
        if count < len(data):
            queue.append(memoryview(data)[count:])
            self._wake_writer()
        self.size -= count
        if self.size < HIGH_WATER:  # the writer, once woken, may find nothing left to do
            self._make_room()

    def flush_soon(self) -> None:
        """Sends what is queued at the end of this pass, together with what others queue until then."""
        if self.queue and not self.corked and self.socket is Socket.FREE:
            self._wake_writer()

    def _make_room(self) -> None:
        if self._room:
            self._room.unpark_all()
        self.on_room()

    # -- the writer task -----------------------------------------------------------------------------------------

    def _wake_writer(self) -> None:
        self._idle = False
        if self._writer is not None:
            task, self._writer = self._writer, None
            trio.lowlevel.reschedule(task)
        elif self._task_scope is None and self.nursery is not None:
            self._task_scope = trio.CancelScope()
            self.nursery.start_soon(self._write_queue)

    def dismiss_idle_writer(self) -> None:
        """Called every now and then: ends a writer task that has had nothing to do since the last time."""
        if self._idle and self._writer is not None and self._task_scope is not None:
            scope, self._task_scope = self._task_scope, None  # from here on, new work starts a new task
            scope.cancel()
        self._idle = True

    async def _write_queue(self) -> None:
        scope = self._task_scope
        assert scope is not None
        with scope:
            try:
                while True:
                    if self.queue and self.socket is Socket.FREE:
                        await self._drain()
                    else:
                        await self._wait_for_work()
            except TransportLost:
                self.lose()
                self.transport.close()
        if self._task_scope is scope:
            self._task_scope = None

    async def _wait_for_work(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._writer = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _drain(self) -> None:
        self.socket = Socket.TAKEN
        self._note(0)
        data = memoryview(b"")
        try:
            while self.queue:
                data = memoryview(b"".join(self.queue))
                self.queue.clear()
                while data:
                    count = await self.transport.send(data)
                    data = data[count:]
                    self.size -= count
                    self._note(count)
                    if self.size < HIGH_WATER:
                        self._make_room()
                if self.transport.inline and self._turns:  # the next one takes along what is queued
                    break
        finally:
            if data:  # cancelled: what follows must still begin where this stopped
                self.queue.insert(0, data)
            self._release()

    async def drain(self) -> None:
        """Sends everything that is queued; for the connection's last words, when it has no writer task any more."""
        if self.socket is Socket.TAKEN:
            await self._turns.park()
        if not self.lost:
            await self._drain()

    # -- large payloads ------------------------------------------------------------------------------------------

    async def wait_room(self) -> None:
        """Until the queue is below HIGH_WATER, or the connection is lost."""
        while self.size >= HIGH_WATER and not self.lost:
            self.flush()
            if self.size >= HIGH_WATER and not self.lost:
                await self._room.park()

    async def acquire(self) -> None:
        """Waits for the caller's turn to `write`: nobody else does until it has, or has called `release`.

        Where payloads are queued (TLS), until there is room for one, too. TransportLost if the connection is gone.
        """
        if self.transport.inline:
            if self.socket is Socket.TAKEN:
                await self._turns.park()  # and `_release` has kept it, for this caller
            elif self.socket is Socket.FREE:
                self.socket = Socket.TAKEN
        else:
            if self._queueing and not self.lost:
                await self._turns.park()
            self._queueing = True
            try:
                await self.wait_room()
            except BaseException:
                self.release()
                raise
        if self.lost:
            raise TransportLost("connection lost")

    def release(self) -> None:
        """Gives back what `acquire` gave, unused."""
        if self.transport.inline:
            self._release()
        else:
            self._queueing = bool(self._turns.unpark())

    def _note(self, count: int) -> None:
        """The peer has taken so many bytes, of more that are there."""
        if count or not self._stuck:
            self.progress = trio.current_time()
        self._stuck = not count

    def _release(self) -> None:
        handed_on = self.transport.inline and self.socket is Socket.TAKEN and bool(self._turns.unpark())
        if self.socket is Socket.TAKEN and not handed_on:
            self.socket = Socket.FREE
            if self.queue:
                self._wake_writer()
        if self.size < HIGH_WATER:
            self._make_room()

    async def write(self, frames: DataFrames) -> None:
        """Sends DATA frames, after `acquire`, and gives the socket back.

        *Cancellation*: what the peer has seen a part of is completed from a copy; `frames.unsent` payload bytes are
        dropped. *Ownership*: the buffers may be reused when this returns or raises.
        """
        if not self.transport.inline:
            self.add(b"".join(frames.parts))
            self.flush_soon()
            self.release()
            return
        queued = list(self.queue)
        ahead = sum(map(len, queued)) if queued else 0
        self.queue.clear()
        parts = [*queued, *frames.parts]
        size = ahead + frames.size
        sent = index = 0
        try:
            while True:
                count = self.transport.try_send(parts[index : index + _IOV_MAX])
                sent += count
                index = len(parts) if sent == size else _advance(parts, index, count)
                if index == len(parts):
                    self._stuck = False
                    return
                self._note(count)
                await self.transport.wait_writable()
        except trio.Cancelled:
            rest, frames.unsent = frames.split(max(0, sent - ahead))
            if rest:
                self.queue.insert(0, rest)
                self.size += len(rest)
            if sent < ahead:
                self.queue.insert(0, memoryview(b"".join(queued))[sent:])
            raise
        except TransportLost:
            self.lose()
            raise
        finally:
            self.size -= min(sent, ahead)
            self._release()


def _advance(parts: list[Buffer], index: int, count: int) -> int:
    """Skips `count` sent bytes; the index of the first part that is not sent whole."""
    while index < len(parts) and count >= len(parts[index]):
        count -= len(parts[index])
        index += 1
    if count:
        parts[index] = memoryview(parts[index])[count:]
    return index

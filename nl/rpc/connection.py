"""A connection on trio: receive buffers, one writer at a time, waiting for room and for credit.

Both roles derive from `Connection` (server.py, client.py). It owns no task of its own but a writer, started when it is
first needed; whoever runs the connection calls `pump` when the transport is readable and `flush` after that.

Rules for this file:

* Small things are queued (`emit`) and leave together: at the end of a pass of the reader, or by the writer.
* Large payloads go from the caller's buffers into the kernel while the caller waits (`send_frames`): a peer that does
  not read holds one caller's buffers, and the queue stays below `HIGH_WATER` plus what the peer's own requests cause.
* A cancelled sender never leaves half a frame on the wire: the rest of that frame is copied to the queue.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from nl.blob.reader import Buffer
from nl.rpc import frames as fr
from nl.rpc.contract import TransportLost
from nl.rpc.frames import ConnectionFault, ErrorCode
from nl.rpc.h2.limits import Limits
from nl.rpc.h2.protocol import H2Connection
from nl.rpc.h2.stream import Owner, Stream
from nl.rpc.transport import Transport

ARENA_SIZE = 256 * 1024
MIN_ROOM = 32 * 1024
HIGH_WATER = 256 * 1024
"""Above this many queued bytes, senders of messages wait."""
MAX_QUEUED = 8 << 20
"""Above this many, the peer is one that asks and does not read: the connection ends."""
_MAX_POOLED = 64
_COPY_OUT_BELOW = 4096
_IOV_MAX = 1000
LINGER_S = 1.0


class Arena(Owner):
    """A receive buffer. Back in the pool when it is retired and nobody holds a view of it."""

    __slots__ = ("fill", "retired", "view")

    def __init__(self) -> None:
        super().__init__()
        self.view = memoryview(bytearray(ARENA_SIZE))
        self.fill = 0
        self.retired = False

    def release(self, count: int) -> None:
        """So many bytes are no longer referred to."""
        self.held -= count
        if self.retired and not self.held:
            self.to_pool()

    def retire(self) -> None:
        """No longer anybody's current buffer."""
        self.retired = True
        if not self.held:
            self.to_pool()

    def to_pool(self) -> None:
        """Keeps the memory for the next connection that has something to read."""
        if len(_pool) < _MAX_POOLED:
            self.fill = 0
            self.retired = False
            _pool.append(self)


_pool: list[Arena] = []


def _advance(parts: list[Buffer], index: int, count: int) -> int:
    """Skips `count` sent bytes; the index of the first part that is not sent whole."""
    while index < len(parts) and count >= len(parts[index]):
        count -= len(parts[index])
        index += 1
    if count:
        parts[index] = memoryview(parts[index])[count:]
    return index


def _unfinished(frames: Sequence[Buffer], sent: int) -> tuple[bytes, int]:
    """Of DATA frames of which `sent` bytes are out: the rest of the one begun, and the payload of those not begun."""
    rest, dropped, index, offset = b"", 0, 0, 0
    while index < len(frames):
        size = int.from_bytes(frames[index][:3], "big")
        stop, left = index + 1, size
        while left:
            left -= len(frames[stop])
            stop += 1
        if offset >= sent:
            dropped += size
        elif sent < offset + fr.HEADER_SIZE + size:
            rest = b"".join(frames[index:stop])[sent - offset :]
        offset += fr.HEADER_SIZE + size
        index = stop
    return rest, dropped


def _take_arena() -> Arena:
    try:
        return _pool.pop()
    except IndexError:
        return Arena()


class Connection(H2Connection):
    """See the module's docstring."""

    def __init__(self, transport: Transport, limits: Limits) -> None:
        super().__init__(limits)
        self.transport = transport
        self.born = self.heard = self.progress = self.now = trio.current_time()
        self.ping_sent: float | None = None
        self.nursery: trio.Nursery | None = None
        self.lost = False
        self.in_pass = False
        """The reader is between reading and flushing: what is queued now leaves at the end of its pass."""
        self.sending = False
        self._arena: Arena | None = None
        self._tail = b""
        self._parsed = 0
        self._writer: trio.lowlevel.Task | None = None
        self._has_writer = False
        self._turn = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._window = trio.lowlevel.ParkingLot()

    # -- reading -----------------------------------------------------------------------------------------------------

    def pump(self) -> bool:
        """Reads once and parses; whether there may be more to read right away. TransportLost at the end."""
        arena = self._arena
        if arena is None:
            arena = self._arena = _take_arena()
            self._parsed = 0
            arena.fill = len(self._tail)
            arena.view[: arena.fill] = self._tail
        elif ARENA_SIZE - arena.fill < MIN_ROOM:
            arena = self._rotate(arena)
        count = self.transport.try_recv_into(arena.view[arena.fill :])
        if count <= 0:
            self._rest(arena)
            if not count:
                raise TransportLost("closed by the peer")
            return False
        self.heard = self.now = trio.current_time()
        arena.fill += count
        more = arena.fill == ARENA_SIZE
        self._parsed = self.receive(arena.view, start=self._parsed, end=arena.fill, owner=arena)
        if self.out_bytes > MAX_QUEUED:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "answers are not read")
        return more

    def rest(self) -> None:
        """Called before waiting for input: an idle connection keeps no receive buffer."""
        if self._arena is not None:
            self._rest(self._arena)

    def _rest(self, arena: Arena) -> None:
        if 0 < arena.held <= _COPY_OUT_BELOW:
            self._copy_out(arena)
        if arena.held:
            if self._parsed == arena.fill and arena.fill > ARENA_SIZE - MIN_ROOM:
                self._arena = None
                self._tail = b""
                arena.retire()
            return
        self._tail = bytes(arena.view[self._parsed : arena.fill])
        self._arena = None
        arena.retire()

    def _rotate(self, arena: Arena) -> Arena:
        """Room for more: the same buffer if little of it is referred to, else another one."""
        if arena.held * 2 < ARENA_SIZE:
            self._copy_out(arena)
        tail = bytes(arena.view[self._parsed : arena.fill])
        if arena.held:
            arena.retire()
            arena = self._arena = _take_arena()
        arena.fill = len(tail)
        arena.view[: arena.fill] = tail
        self._parsed = 0
        return arena

    def _copy_out(self, arena: Arena) -> None:
        for stream in self.streams.values():
            chunks = stream.chunks
            for index, (view, owner) in enumerate(chunks):
                if owner is arena:
                    chunks[index] = (memoryview(bytes(view)), None)
                    arena.release(len(view))

    # -- writing -----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Sends what is queued, as far as the kernel takes it; the writer does the rest."""
        out = self.out
        if self.sending or not out or self.lost:
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        try:
            count = self.transport.try_send((data,))
        except TransportLost:
            self.lost = True
            return
        out.clear()
        if count < len(data):
            out.append(memoryview(data)[count:])
            self._wake_writer()
        self.out_bytes -= count
        if self._room and self.out_bytes < HIGH_WATER:  # the writer, once woken, may find nothing left to do
            self._room.unpark_all()

    def flush_soon(self) -> None:
        """Sends what is queued at the end of this pass, together with what others queue until then."""
        if not self.in_pass and not self.sending:
            self._wake_writer()

    def _wake_writer(self) -> None:
        if self._writer is not None:
            task, self._writer = self._writer, None
            trio.lowlevel.reschedule(task)
        elif not self._has_writer and self.nursery is not None:
            self._has_writer = True
            self.nursery.start_soon(self._write)

    async def _write(self) -> None:
        """The writer task."""
        try:
            while True:
                if self.out and not self.sending:
                    await self._drain()
                else:
                    await self._wait_for_work()
        except TransportLost:
            self.lost = True
            self.transport.close()

    async def _wait_for_work(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._writer = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _drain(self) -> None:
        self.sending = True
        self.progress = trio.current_time()
        data = memoryview(b"")
        try:
            while self.out:
                data = memoryview(b"".join(self.out))
                self.out.clear()
                while data:
                    count = await self.transport.send(data)
                    data = data[count:]
                    self.out_bytes -= count
                    self.progress = trio.current_time()
        finally:
            if data:  # cancelled: what follows must still begin where this stopped
                self.out.insert(0, data)
            self._pass_turn()

    def _pass_turn(self) -> None:
        self.sending = False
        if self.out_bytes < HIGH_WATER:
            self._room.unpark_all()
        if self.out:
            self._wake_writer()
        if self._turn:
            self._turn.unpark()

    async def wait_room(self) -> None:
        """Until the queue is below HIGH_WATER."""
        while self.out_bytes >= HIGH_WATER and not self.lost:
            self.flush()
            if self.out_bytes >= HIGH_WATER and not self.lost:
                await self._room.park()

    async def send_frames(self, frames: list[Buffer], *, stream: Stream) -> None:
        """Sends whole DATA frames (header, payload parts, header, ...) of one stream, windows already charged.

        *Cancellation*: what the peer has seen a part of is completed from a copy; the rest is dropped, uncharged.
        *Ownership*: the buffers may be reused when this returns or raises.
        """
        try:
            if self.transport.inline:
                while self.sending:
                    await self._turn.park()
            else:
                await self.wait_room()
        except trio.Cancelled:
            self._refund(_unfinished(frames, 0)[1], stream)
            raise
        if not self.transport.inline:
            self.emit(b"".join(frames))
            self.flush_soon()
            await self.wait_room()
            return
        if self.lost:
            self._turn.unpark_all()
            raise TransportLost("connection lost")
        self.sending = True
        queue = list(self.out)
        queued = sum(map(len, queue)) if queue else 0
        self.out.clear()
        parts = [*queue, *frames]
        sent = index = 0
        waited = False
        try:
            while True:
                count = self.transport.try_send(parts[index : index + _IOV_MAX])
                sent += count
                index = _advance(parts, index, count)
                if index == len(parts):
                    return
                if count or not waited:
                    self.progress = trio.current_time()
                    waited = True
                await self.transport.wait_writable()
        except trio.Cancelled:
            if sent < queued:
                self.out[:0] = [memoryview(b"".join(queue))[sent:]]
            rest, dropped = _unfinished(frames, max(0, sent - queued))
            if rest:
                self.out.insert(1 if sent < queued else 0, rest)
                self.out_bytes += len(rest)
            self._refund(dropped, stream)
            raise
        except TransportLost:
            self.lost = True
            raise
        finally:
            self.out_bytes -= min(sent, queued)
            self._pass_turn()

    # -- credit ------------------------------------------------------------------------------------------------------

    def _refund(self, count: int, stream: Stream) -> None:
        """Credit that was charged and not used. Others may wait for it, and the peer, who has given it, will not."""
        if count:
            stream.send_window += count
            self.send_window += count
            self.on_window()

    def on_window(self) -> None:
        """Wakes those who wait for the connection's credit."""
        self._window.unpark_all()

    def wake_all(self) -> None:
        """The connection is lost: whoever waits for it finds out."""
        for lot in (self._window, self._room, self._turn):
            lot.unpark_all()

    async def wait_window(self) -> None:
        """Until the connection's window grows."""
        await self._window.park()

    # -- time and the end ----------------------------------------------------------------------------------------

    def on_ping_ack(self, payload: bytes) -> None:
        """The peer lives."""
        self.ping_sent = None

    def check(self, now: float, *, interval: float | None, timeout: float, stall: float) -> str | None:
        """Called every now and then: sends keepalive PINGs; why this connection should be given up, or None."""
        if self.lost:
            return "connection lost"
        if self.sending and now - self.progress > stall:
            return f"the peer has read nothing for {stall:g} s"
        if self.ping_sent is not None:
            if self.heard >= self.ping_sent:
                self.ping_sent = None
            elif now - self.ping_sent > timeout:
                return f"no answer to a keepalive PING within {timeout:g} s"
        elif interval is not None and now - self.heard >= interval:
            self.ping_sent = now
            self.emit(fr.ping(b"nl-alive"))
            self.flush()
        return None

    async def say_goodbye(self, code: ErrorCode, reason: str = "") -> None:
        """GOAWAY, and a little patience for it to arrive."""
        with trio.move_on_after(LINGER_S, shield=True):
            try:
                self.emit(fr.goaway(self.last_sid, code, reason))
                while self.sending:
                    await self._turn.park()
                await self._drain()
                await self.transport.linger()
            except TransportLost:
                pass

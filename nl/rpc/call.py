"""One call, either side: messages in and out of a stream, waiting for data and for credit.

Derived by ServerCall (server_call.py) and ClientCall (client_connection.py). Inbound bytes stay in the connection's
receive buffer until they are asked for: `receive_message` joins one message into memory of its own (once);
`receive_body` hands out views. Not here: headers, trailers and what a status means.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import trio

from nl.blob.reader import CHUNK, Buffer
from nl.errors import ExhaustedError, InvalidRequestError
from nl.pb.codec import encode_parts
from nl.rpc import frames as fr
from nl.rpc import messages
from nl.rpc.connection import Connection
from nl.rpc.contract import MessageBody, TransportLost
from nl.rpc.h2.limits import CONTROL_FRAMES_PER_MESSAGE
from nl.rpc.h2.stream import Chunk, Owner, Stream
from nl.rpc.outbox import HIGH_WATER
from nl.rpc.packing import unpack

JOINED_UP_TO = 16 * 1024
"""Messages up to this size are copied and leave with whatever else is queued."""
PIECE = 1 << 20
"""At most this much of a message is offered to the kernel at once."""
QUEUED_PIECE = 64 * 1024
"""The same where payloads are copied to the queue, since the transport copies them anyway (TLS)."""


class Call(Stream):
    """See the module's docstring. One task at a time in each direction."""

    __slots__ = (
        "_body", "_reader", "_unacknowledged", "_window_waiter", "blocked_since", "connection", "encoding",
        "max_message_size", "pinned",
    )  # fmt: skip

    size_option: ClassVar[str] = "max_message_size"
    """What the limit on messages is called where it is set, for the error about it."""

    def __init__(self, connection: Connection, sid: int, *, max_message_size: int) -> None:
        Stream.__init__(self, connection.h2, sid)  # by name: `super()` costs more than what it calls
        self.connection = connection
        self.max_message_size = max_message_size
        self.encoding: str | None = None
        self.blocked_since: float | None = None
        self.pinned = 0
        """Bytes of a message that is here in part, or not sent yet: only the peer can end this. Set by `pin`."""
        self._reader: trio.lowlevel.Task | None = None
        self._window_waiter: trio.lowlevel.Task | None = None
        self._unacknowledged: list[Chunk] = []
        """DATA that was handed out as views, whose credit goes back when they are done with."""
        self._body: Body | None = None

    # -- hooks of the derived classes --------------------------------------------------------------------------------

    def raise_if_over(self) -> None:
        """Raises if nothing more can be received or sent because the call has failed."""

    def raise_if_unsendable(self) -> None:
        """Raises if the other side takes nothing more, for whatever reason."""
        self.raise_if_over()
        if self.reset_code is not None or self.send_closed:
            raise TransportLost("the call is over")
        if self.connection.lost:  # the reader has not ended the calls yet, and nothing would make a sender wait
            raise TransportLost("connection lost")

    def head(self) -> bytes:
        """The frames that must go before the first message, or nothing if they are out."""
        return b""

    # -- what is held for the peer -----------------------------------------------------------------------------------

    def pin(self, count: int) -> None:
        """So many bytes of a message are in memory now, and only the peer's reading or writing will free them."""
        connection = self.connection
        connection.pinned += count - self.pinned
        self.pinned = count
        if count:
            connection.on_pinned()

    def probe(self) -> float:
        """See ServerStream."""
        connection = self.connection
        if connection.ping_sent is None and not connection.lost:
            connection.ping_sent = trio.current_time()
            connection.outbox.add(fr.ping(b"nl-alive"))
            connection.outbox.flush()
        return connection.heard

    # -- waking ------------------------------------------------------------------------------------------------------

    def on_data(self) -> None:
        """Wakes the receiving task."""
        task = self._reader
        if task is not None:
            self._reader = None
            trio.lowlevel.reschedule(task)

    def on_window(self) -> None:
        """Wakes the sending task."""
        task = self._window_waiter
        if task is not None:
            self._window_waiter = None
            trio.lowlevel.reschedule(task)

    def wake(self) -> None:
        """The call is over: whoever waits for it finds out."""
        self.h2.stop_waiting(self)
        self.on_data()
        self.on_window()

    async def wait_data(self) -> None:
        """Until `on_data`."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._reader = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._reader = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _wait_window(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._window_waiter = None
            self.h2.stop_waiting(self)
            return trio.lowlevel.Abort.SUCCEEDED

        self.h2.wait_for_credit(self)
        self._window_waiter = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    # -- receiving ---------------------------------------------------------------------------------------------------

    def acknowledge(self) -> None:
        """What was handed out as views is done with."""
        if self._unacknowledged:
            chunks, self._unacknowledged = self._unacknowledged, []
            total = count = 0
            owner: Owner | None = None
            for view, whose in chunks:
                if whose is not owner:  # they come in runs
                    if owner is not None:
                        owner.release(count)
                    total += count
                    owner, count = whose, 0
                count += len(view)
            if owner is not None:
                owner.release(count)
            self.consumed(total + count)
            outbox = self.connection.outbox
            if outbox.queue and not outbox.corked:  # a window update: nobody else would send it
                outbox.flush()

    def end_receiving(self) -> None:
        """Nobody will receive any more: what was handed out is done with, and a body no longer refers to the call."""
        if self._unacknowledged:
            self.acknowledge()
        self._body = None

    def take_message(self, max_bytes: int = sys.maxsize) -> bytes | None:
        """The next message if it is here, plain, in one piece and no larger; None says to go on with `receive_message`.
        """
        chunks = self.chunks
        if not chunks or self._unacknowledged or self._body is not None:
            return None
        view, owner = chunks[0]
        size = len(view)
        if size < messages.PREFIX_SIZE:
            return None
        flag, length = fr.PREFIX.unpack_from(view)
        stop = messages.PREFIX_SIZE + length
        if flag or stop > size or length > max_bytes or length > self.max_message_size:
            return None
        data = bytes(view[messages.PREFIX_SIZE : stop])
        if stop == size:
            chunks.popleft()
        else:
            chunks[0] = (view[stop:], owner)
        if owner is not None:
            owner.release(stop)
        self.consumed(stop)
        outbox = self.connection.outbox
        if outbox.queue and not outbox.corked:  # the window update, as in `acknowledge`
            outbox.flush_soon()
        return data

    async def receive_message(self) -> Buffer | None:
        """The next message, decompressed, in memory of its own; None at the end of the stream."""
        if self._unacknowledged or self._body is not None:
            self._finish_body()
        message = self.take_message()
        if message is not None:
            return message
        prefix = await self._receive_prefix()
        if prefix is None:
            return None
        compressed, length = prefix
        joined = await self._joined(length)
        data: Buffer = await unpack(joined, max_bytes=self.max_message_size) if compressed else memoryview(joined)
        self.pin(0)
        return data

    async def receive_body(self) -> MessageBody | None:
        """The next message as a reader of its bytes; None at the end of the stream."""
        if self._unacknowledged or self._body is not None:
            self._finish_body()
        prefix = await self._receive_prefix()
        if prefix is None:
            return None
        compressed, length = prefix
        if compressed:
            data = await unpack(await self._joined(length), max_bytes=self.max_message_size)
            self.pin(0)
            return WholeBody(data)
        self._body = Body(self, length)
        return self._body

    async def _joined(self, length: int) -> bytearray:
        """A message's bytes in memory of their own, which is counted as pinned."""
        joined = bytearray()
        while len(joined) < length:
            for part in await self._views(length - len(joined)):
                joined += part
            self.pin(len(joined))
            self.acknowledge()
        return joined

    def _finish_body(self) -> None:
        body, self._body = self._body, None
        self.acknowledge()
        if body is not None and body.left:
            raise RuntimeError("a message body must be read to its end before the next message")

    async def _receive_prefix(self) -> tuple[bool, int] | None:
        prefix = b""
        while len(prefix) < messages.PREFIX_SIZE:
            if not self.chunks:
                self.raise_if_over()
                if self.recv_closed:
                    if prefix:
                        raise InvalidRequestError("the stream ends inside of a message")
                    return None
                await self.wait_data()
                continue
            prefix += b"".join(self._pop(messages.PREFIX_SIZE - len(prefix)))
            self.acknowledge()
        flag, length = fr.PREFIX.unpack(prefix)
        if flag and (flag > 1 or self.encoding in (None, messages.IDENTITY)):
            raise InvalidRequestError(f"message with compressed-flag {flag}, but grpc-encoding is {self.encoding}")
        if length > self.max_message_size:
            limit = f"the limit is {self.max_message_size}, the option {self.size_option}"
            raise ExhaustedError(f"message of {length} bytes; {limit}")
        return bool(flag), length

    def _pop(self, max_bytes: int) -> list[memoryview]:
        """Takes up to `max_bytes` that have arrived; their credit goes back with `acknowledge`."""
        chunks = self.chunks
        if self.held <= max_bytes and not self._unacknowledged:  # all of it
            self._unacknowledged = list(chunks)
            chunks.clear()
            return [view for view, _ in self._unacknowledged]
        parts: list[memoryview] = []
        while chunks and max_bytes:
            view, owner = chunks[0]
            size = len(view)
            if size > max_bytes:
                chunks[0] = (view[max_bytes:], owner)
                view, size = view[:max_bytes], max_bytes
            else:
                chunks.popleft()
            max_bytes -= size
            parts.append(view)
            self._unacknowledged.append((view, owner))
        return parts

    async def _views(self, max_bytes: int) -> list[memoryview]:
        """Bytes inside of a message, at least one."""
        while not self.chunks:
            self.raise_if_over()
            if self.recv_closed:
                raise InvalidRequestError("the stream ends inside of a message")
            await self.wait_data()
        return self._pop(max_bytes)

    async def receive_parts_of(self, body: Body, max_bytes: int) -> Sequence[Buffer]:
        """The next piece of the current body."""
        self.acknowledge()
        if body is not self._body or not body.left:
            return ()
        parts = await self._views(min(max_bytes, body.left))
        body.left -= sum(map(len, parts))
        return parts

    # -- sending -----------------------------------------------------------------------------------------------------

    async def wait_send_credit(self) -> int:
        """Waits until the peer's windows allow some bytes; how many."""
        waited = False
        outbox = self.connection.outbox
        try:
            while True:
                self.raise_if_unsendable()
                credit = self.send_credit
                if credit > 0:
                    self.blocked_since = None
                    return credit
                if self.blocked_since is None:
                    self.blocked_since = trio.current_time()
                if outbox.queue:
                    outbox.flush_soon()
                if waited:
                    self.h2.wake_next()  # if it is the stream's own window, others may have the connection's
                await self._wait_window()
                waited = True
        except BaseException:
            if waited:
                self.h2.wake_next()
            raise

    async def send_framed(self, parts: Sequence[Buffer], *, compressed: bool = False, end_stream: bool = False) -> None:
        """Sends one message; returns when its buffers may be reused."""
        outbox, h2 = self.connection.outbox, self.h2
        self.raise_if_unsendable()
        length = sum(map(len, parts))
        need = length + messages.PREFIX_SIZE
        prefix = fr.PREFIX.pack(compressed, length)
        h2.prepaid_frames += CONTROL_FRAMES_PER_MESSAGE
        if need <= JOINED_UP_TO and outbox.size < HIGH_WATER and need <= min(self.send_credit, h2.peer_max_frame):
            self.charge(need)
            header = fr.header(need, fr.DATA, fr.END_STREAM if end_stream else 0, self.sid)
            outbox.add(b"".join((self.head(), header, prefix, *parts)))
            self._sent(end_stream=end_stream)
            outbox.flush_soon()
            return
        await self.send_prefixed([prefix, *parts], end_stream=end_stream)

    async def send_prefixed(self, parts: Sequence[Buffer], *, end_stream: bool = False) -> None:
        """Sends a message that has its prefix, as credit comes in."""
        outbox, h2 = self.connection.outbox, self.h2
        head = self.head()
        if head:
            outbox.add(head)
        cutter = messages.Cutter(parts)
        piece = PIECE if outbox.transport.inline else QUEUED_PIECE
        while cutter.left:
            self.pin(cutter.left)
            await self.wait_send_credit()
            try:
                await outbox.acquire()
            except BaseException:
                h2.wake_next()
                raise
            # The socket is ours: only now is looked at what may be sent, which SETTINGS and resets have changed.
            size = 0 if self.reset_code is not None or self.send_closed else min(self.send_credit, piece, cutter.left)
            if size <= 0:
                outbox.release()
                h2.wake_next()
                continue
            self.charge(size)
            h2.wake_next()
            frames = cutter.cut(size, sid=self.sid, max_frame=h2.peer_max_frame, end_stream=end_stream)
            try:
                await outbox.write(frames)
            except trio.Cancelled:
                self.refund(frames.unsent)
                raise
        self.pin(0)
        self._sent(end_stream=end_stream)

    def _sent(self, *, end_stream: bool) -> None:
        self.h2.wake_next()
        if end_stream:
            self.send_closed = True
            self.h2.close_if_done(self)


class Body(MessageBody):
    """A message as it arrives."""

    __slots__ = ("_call", "left", "size")

    def __init__(self, call: Call, size: int) -> None:
        self._call = call
        self.size = self.left = size

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        """Views of the receive buffer, valid until the next call."""
        return await self._call.receive_parts_of(self, max_bytes)


class WholeBody(MessageBody):
    """A message that had to be unpacked and is in memory."""

    __slots__ = ("_view", "size")

    def __init__(self, data: bytes) -> None:
        self._view = memoryview(data)
        self.size = len(data)

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        """Views, until the end."""
        view = self._view[:max_bytes]
        if not len(view):
            self._view = memoryview(b"")  # an empty view would keep the whole message, too
            return ()
        self._view = self._view[max_bytes:]
        return (view,)


def encoder_of(message: Any) -> Sequence[Buffer]:
    """A message's encoding as buffers: its own `encode_parts`, or the codec for generated classes."""
    own = getattr(message, "encode_parts", None)
    if own is not None:
        parts: Sequence[Buffer] = own()
        return parts
    return encode_parts(message)

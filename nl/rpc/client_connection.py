"""A client's connection, and the calls on it: the HTTP/2 side of a Channel.

Not here: which connection a call goes to (channel.py), and what a caller holds (client_stream.py).
"""

from __future__ import annotations

import logging

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.call import Call
from nl.rpc.connection import Connection
from nl.rpc.contract import TransportLost
from nl.rpc.errors import NotProcessed
from nl.rpc.frames import ConnectionFault, ErrorCode
from nl.rpc.hpack import Field
from nl.rpc.resolver import Address
from nl.rpc.status import HTTP_CODES, RESET_CODES, error_from_trailers
from nl.rpc.transport import Transport

log = logging.getLogger(__name__)


class ClientCall(Call):
    """The HTTP/2 stream below a ClientStream; exists once the request's headers are sent."""

    __slots__ = ("error", "initial", "trailing")

    connection: ClientConnection

    def __init__(self, connection: ClientConnection, sid: int, *, max_message_size: int) -> None:
        super().__init__(connection, sid, max_message_size=max_message_size)
        self.initial: list[Field] | None = None
        self.trailing: list[Field] | None = None
        self.error: GRPCError | None = None

    def raise_if_over(self) -> None:
        """Raises what ended the call. Data that is here already is taken before anybody asks."""
        if self.error is not None:
            raise self.error

    def raise_if_unsendable(self) -> None:
        """After the server's status, sending is pointless even where HTTP/2 allows it."""
        super().raise_if_unsendable()
        if self.trailing is not None:
            raise TransportLost("the server has answered already")

    def on_headers(self, fields: list[Field]) -> None:
        """Response headers, trailers, or both in one."""
        self.connection.answered = True
        if self.initial is None:
            status = next((value for _, value, kind, _ in fields if kind == hpack.STATUS), b"")
            if len(status) == 3 and status[:1] == b"1" and not self.recv_closed:
                return
            self.initial = fields
            self._check_response(status, fields)
            if self.recv_closed:
                self.trailing = fields
        elif self.recv_closed:
            self.trailing = fields
        if self.trailing is not None and self.error is None:
            self.error = error_from_trailers(self.trailing)
        self.wake()

    def _check_response(self, status: bytes, fields: list[Field]) -> None:
        if status != b"200":
            code = HTTP_CODES.get(int(status) if len(status) == 3 and status.isdigit() else 0, 2)
            self.error = GRPCError(Status(int(code)), f"HTTP status {_shown(status)}")
        for _, value, kind, _ in fields:
            if kind == hpack.CONTENT_TYPE and not value.startswith(b"application/grpc") and self.error is None:
                self.error = GRPCError(Status.UNKNOWN, f"content-type {_shown(value)}")
            elif kind == hpack.ENCODING:
                self.encoding = value.decode("latin-1")

    def on_reset(self, code: int) -> None:
        """The server has ended the stream. After trailers (NO_ERROR) that changes nothing."""
        if self.trailing is None and self.error is None:
            text = _code_name(code)
            status = RESET_CODES.get(code, 2)  # type: ignore[call-overload]
            kind = NotProcessed if code == ErrorCode.REFUSED_STREAM else GRPCError
            self.error = kind(Status(int(status)), f"the server reset the stream: {text}")
        self.wake()

    def fail(self, error: GRPCError) -> None:
        """The connection is gone."""
        if self.trailing is None and self.error is None:
            self.error = error
        self.recv_closed = self.send_closed = True
        self.wake()


def _code_name(code: int) -> str:
    try:
        return ErrorCode(code).name
    except ValueError:
        return str(code)


def _shown(value: bytes) -> str:
    """A field's value for a message: readable, and not as long as a server may choose."""
    return value[:100].decode("latin-1") + ("..." if len(value) > 100 else "")


class ClientConnection(Connection):
    """One connection to the server. `run` is its whole life."""

    __slots__ = (
        "_life", "_slots", "address", "answered", "options", "ready", "reason", "retired", "taken", "told_to_calm",
    )  # fmt: skip

    def __init__(self, transport: Transport, address: Address) -> None:
        self.options = address.origin.options
        super().__init__(transport, self.options.limits, client=True)
        self.address = address
        self.answered = False
        """Whether a call was answered: until then, nobody knows what this connection is worth."""
        self.retired = False
        self.told_to_calm = False
        """Whether the server has left because we did too much: pinged too often, for one."""
        self.taken = 0
        self.ready = trio.Event()
        self.reason = "connection closed"
        self._slots = trio.lowlevel.ParkingLot()
        self._life = trio.CancelScope()

    def give_up(self, reason: str = "connection given up") -> None:
        """Ends `run`, also before it has begun: calls fail with `reason`."""
        self.reason = reason
        self.outbox.lose()
        self._life.cancel()

    def retire(self) -> None:
        """No new calls here; the connection ends with the last one."""
        self.retired = True
        self._slots.unpark_all()
        self._leave_if_done()

    @property
    def calls(self) -> int:
        """How many were begun here."""
        return self.h2.next_sid >> 1

    @property
    def has_room(self) -> bool:
        """Whether `take_slot` returns at once."""
        return self.taken < min(self.h2.peer_max_streams, self.options.max_streams)

    @property
    def is_usable(self) -> bool:
        """Whether a new call may go here."""
        h2 = self.h2
        return not (self.lost or self.retired) and h2.peer_goaway is None and h2.next_sid < fr.MAX_STREAM_ID

    async def run(self) -> None:
        """Reads until the connection ends; then every open call has failed."""
        with self._life:
            await self._read_to_the_end()

    async def _read_to_the_end(self) -> None:
        fault: ConnectionFault | None = None
        try:
            async with trio.open_nursery() as nursery:
                self.nursery = self.outbox.nursery = nursery
                self.h2.preface()
                self.outbox.flush()
                try:
                    await self._read()
                except TransportLost as exc:
                    self.reason = f"connection lost: {exc}"
                except ConnectionFault as exc:
                    fault = exc
                    self.reason = str(exc)
                    log.warning("%s: %s", self.transport.peer, exc)
                except Exception as exc:  # whatever a server sends, it costs this connection at most
                    log.exception("%s: connection failed", self.transport.peer)
                    self.reason = f"connection failed: {type(exc).__name__}"
                nursery.cancel_scope.cancel()
            self.nursery = self.outbox.nursery = None
            if fault is not None:
                await self.say_goodbye(fault.code, fault.reason)
        finally:
            for stream in list(self.h2.streams.values()):
                if isinstance(stream, ClientCall):
                    stream.fail(GRPCError(Status.UNAVAILABLE, f"{self.transport.peer}: {self.reason}"))
            self.close()
            self.ready.set()
            self._slots.unpark_all()

    async def _read(self) -> None:
        more = False
        while True:
            if self.outbox.queue:
                self.outbox.flush()
            if more:
                await trio.lowlevel.checkpoint()
            else:
                self.rest()
                await self.transport.wait_readable()
            more = self.pump()

    def on_settings(self) -> None:
        """The server has said what it takes."""
        self.ready.set()
        self._slots.unpark_all()

    def on_goaway(self, last_sid: int, code: int) -> None:
        """No new calls here; those that the server will not look at may be tried again elsewhere."""
        self.told_to_calm = code == ErrorCode.ENHANCE_YOUR_CALM
        self.reason = "the server is going away" if not code else f"the server is going away: {_code_name(code)}"
        streams = self.h2.streams
        for sid, stream in list(streams.items()):
            if sid > last_sid and isinstance(stream, ClientCall):
                del streams[sid]
                stream.fail(NotProcessed(Status.UNAVAILABLE, self.reason))
        self._slots.unpark_all()
        self._leave_if_done()

    def _leave_if_done(self) -> None:
        leaving = self.retired or self.h2.peer_goaway is not None
        if leaving and not self.h2.streams and not self.taken and self.nursery is not None:
            self.nursery.cancel_scope.cancel()

    async def take_slot(self) -> bool:
        """Waits for the right to open a stream; False if the connection is no longer usable."""
        while self.is_usable:
            if self.has_room:
                self.taken += 1
                return True
            await self._slots.park()
        return False

    def release_slot(self) -> None:
        """A call is over."""
        self.taken -= 1
        self._slots.unpark()
        self._leave_if_done()

    def open_call(self) -> ClientCall:
        """A new stream, whose HEADERS the caller sends next."""
        call = ClientCall(self, self.h2.take_sid(), max_message_size=self.options.max_message_size)
        self.h2.streams[call.sid] = call
        return call

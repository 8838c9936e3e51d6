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
from nl.rpc.frames import ConnectionFault, ErrorCode
from nl.rpc.hpack import Field
from nl.rpc.options import ChannelOptions
from nl.rpc.status import HTTP_CODES, RESET_CODES, error_from_trailers
from nl.rpc.transport import Transport

log = logging.getLogger(__name__)


class ClientCall(Call):
    """The HTTP/2 stream below a ClientStream; exists once the request's headers are sent."""

    __slots__ = ("error", "initial", "trailing")

    core: ClientConnection

    def __init__(self, core: ClientConnection, sid: int, *, max_message_size: int) -> None:
        super().__init__(core, sid, max_message_size=max_message_size)
        self.initial: list[Field] | None = None
        self.trailing: list[Field] | None = None
        self.error: GRPCError | None = None

    def raise_if_over(self) -> None:
        """Raises what ended the call, unless its data is still to be read."""
        if self.error is not None:
            raise self.error

    def raise_if_unsendable(self) -> None:
        """After the server's status, sending is pointless even where HTTP/2 allows it."""
        super().raise_if_unsendable()
        if self.trailing is not None:
            raise TransportLost("the server has answered already")

    def on_headers(self, fields: list[Field]) -> None:
        """Response headers, trailers, or both in one."""
        if self.initial is None:
            status = next((value for _, value, kind, _ in fields if kind == hpack.STATUS), b"")
            if status[:1] == b"1" and not self.recv_closed:
                return
            self.initial = fields
            self._check_response(status, fields)
            if self.recv_closed:
                self.trailing = fields
        elif self.recv_closed:
            self.trailing = fields
        if self.trailing is not None and self.error is None:
            self.error = error_from_trailers(self.trailing)
        self.on_data()
        self.on_window()

    def _check_response(self, status: bytes, fields: list[Field]) -> None:
        if status != b"200":
            code = HTTP_CODES.get(int(status) if status.isdigit() else 0, 2)
            self.error = GRPCError(Status(int(code)), f"HTTP status {status.decode('latin-1')}")
        for _, value, kind, _ in fields:
            if kind == hpack.CONTENT_TYPE and not value.startswith(b"application/grpc") and self.error is None:
                self.error = GRPCError(Status.UNKNOWN, f"content-type {value.decode('latin-1')}")
            elif kind == hpack.ENCODING:
                self.encoding = value.decode("latin-1")

    def on_reset(self, code: int) -> None:
        """The server has ended the stream. After trailers (NO_ERROR) that changes nothing."""
        if self.trailing is None and self.error is None:
            try:
                text = ErrorCode(code).name
            except ValueError:
                text = str(code)
            status = RESET_CODES.get(code, 2)  # type: ignore[call-overload]
            self.error = GRPCError(Status(int(status)), f"the server reset the stream: {text}")
        self.on_data()
        self.on_window()

    def fail(self, error: GRPCError) -> None:
        """The connection is gone."""
        if self.trailing is None and self.error is None:
            self.error = error
        self.recv_closed = self.send_closed = True
        self.on_data()
        self.on_window()


class ClientConnection(Connection):
    """One connection to the server. `run` is its whole life."""

    client = True

    def __init__(self, transport: Transport, options: ChannelOptions) -> None:
        super().__init__(transport, options.limits)
        self.options = options
        self.next_sid = 1
        self.taken = 0
        self.ready = trio.Event()
        self.reason = "connection closed"
        self._slots = trio.lowlevel.ParkingLot()
        self._life = trio.CancelScope()

    def give_up(self) -> None:
        """Ends `run`, also before it has begun."""
        self._life.cancel()

    @property
    def is_usable(self) -> bool:
        """Whether a new call may go here."""
        return not self.lost and self.peer_goaway is None and self.next_sid < fr.MAX_STREAM_ID

    async def run(self) -> None:
        """Reads until the connection ends; then every open call has failed."""
        with self._life:
            await self._read_to_the_end()

    async def _read_to_the_end(self) -> None:
        fault: ConnectionFault | None = None
        try:
            async with trio.open_nursery() as nursery:
                self.nursery = nursery
                self.preface()
                self.flush()
                try:
                    await self._read()
                except TransportLost as exc:
                    self.reason = f"connection lost: {exc}"
                except ConnectionFault as exc:
                    fault = exc
                    self.reason = str(exc)
                    log.warning("%s: %s", self.transport.peer, exc)
                nursery.cancel_scope.cancel()
            self.nursery = None
            if fault is not None:
                await self.say_goodbye(fault.code, fault.reason)
        finally:
            self.lost = True
            self.ready.set()
            for stream in list(self.streams.values()):
                if isinstance(stream, ClientCall):
                    stream.fail(GRPCError(Status.UNAVAILABLE, f"{self.transport.peer}: {self.reason}"))
            self.streams.clear()
            self._slots.unpark_all()
            self.transport.close()
            self.wake_all()

    async def _read(self) -> None:
        more = False
        while True:
            if self.out:
                self.flush()
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
        for sid, stream in list(self.streams.items()):
            if sid > last_sid and isinstance(stream, ClientCall):
                del self.streams[sid]
                stream.fail(GRPCError(Status.UNAVAILABLE, "the server is going away"))
        self._slots.unpark_all()
        self._leave_if_done()

    def _leave_if_done(self) -> None:
        if self.peer_goaway is not None and not self.streams and not self.taken and self.nursery is not None:
            self.reason = "the server is going away"
            self.nursery.cancel_scope.cancel()

    async def take_slot(self) -> bool:
        """Waits for the right to open a stream; False if the connection is no longer usable."""
        while self.is_usable:
            if self.taken < min(self.peer_max_streams, self.options.max_streams):
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
        call = ClientCall(self, self.next_sid, max_message_size=self.options.max_message_size)
        self.streams[self.next_sid] = call
        self.next_sid += 2
        return call

    def _opened_by_us(self, sid: int) -> bool:
        return bool(sid & 1) and sid < self.next_sid

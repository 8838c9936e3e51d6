"""One call on the server: what a handler holds (`nl.rpc.contract.ServerStream`), and the one way to end it, `close`."""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpclib.const
import trio
from grpclib.metadata import Deadline
from multidict import MultiDict

from nl.blob.off_loop import off_loop
from nl.blob.reader import Buffer
from nl.errors import Code, InternalError, InvalidRequestError
from nl.model.access import Identity
from nl.model.caller import Headers
from nl.rpc import frames as fr
from nl.rpc import hpack, messages
from nl.rpc.call import JOINED_UP_TO, Call, encoder_of
from nl.rpc.contract import TransportLost
from nl.rpc.frames import ErrorCode
from nl.rpc.hpack import Field
from nl.rpc.metadata import decode_binary, decode_fields, encode_fields
from nl.rpc.method import Method
from nl.rpc.outbox import HIGH_WATER
from nl.rpc.packing import pack
from nl.rpc.status import OK, Outcome, trailers

if TYPE_CHECKING:
    from nl.rpc.server_connection import ServerConnection


log = logging.getLogger(__name__)
DECODED_IN_PLACE = 16 * 1024
"""Requests of up to so many bytes are decoded where they are: no more than a few milliseconds, whatever is in them.
Methods whose requests are often larger decode them themselves."""
_HEAD_SIZE = len(hpack.RESPONSE)
_TAIL_SIZE = len(hpack.TRAILERS_OK)
_HEAD = struct.Struct(f">HBBBI{_HEAD_SIZE}sHBBBI")
_TAIL = struct.Struct(f">HBBBI{_TAIL_SIZE}s")
"""Frame header and response headers, frame header of the message; frame header and trailers."""
_RESET = Outcome(Code.CANCELLED, "the client has reset the stream")


class ServerCall(Call):
    """`nl.rpc.contract.ServerStream`."""

    __slots__ = (
        "_fields", "_metadata", "_reply", "_reply_sent", "accepts_gzip", "cancel_reason", "definition", "expires",
        "handler_done", "identity", "kept", "outcome", "received", "scope", "winding_down",
    )  # fmt: skip

    connection: ServerConnection
    size_option = "max_decoding_message_size of the listener"

    def __init__(
        self, connection: ServerConnection, sid: int, method: Method, fields: list[Field], identity: Identity
    ) -> None:
        options = connection.options
        Call.__init__(self, connection, sid, max_message_size=max(options.max_message_size, method.max_message_size))
        self.definition = method
        self.identity = identity
        self.outcome: Outcome | None = None
        """How the call has ended: set once, by `close` or by the client's reset."""
        self._fields = fields
        self._metadata: MultiDict[str | bytes] | None = None
        self._reply: bytes | memoryview | None = None
        """A small unary reply, with its prefix, that leaves together with the trailers: what is not out of it."""
        self._reply_sent = False
        self.accepts_gzip = False
        self.expires: float | None = None
        self.scope: trio.CancelScope | None = None
        """The handler's, once it has had to wait."""
        self.cancel_reason: Outcome | None = None
        self.received = 0
        self.kept = 0
        """Bytes that the handler keeps, beside what is pinned. Set by `keep`."""
        self.handler_done = False
        self.winding_down = False
        """The call is over, reset by the client or answered by its handler, and the handler still runs."""

    @property
    def method(self) -> str:
        """Full path."""
        return self.definition.name

    @property
    def peer(self) -> str:
        """`host:port` of the client."""
        return self.connection.transport.peer

    @property
    def deadline(self) -> Deadline | None:
        """The client's, or None."""
        return None if self.expires is None else Deadline.from_timeout(self.expires - trio.current_time())

    @property
    def metadata(self) -> MultiDict[str | bytes]:
        """Request metadata."""
        if self._metadata is None:
            self._metadata = decode_fields(self._fields)
        return self._metadata

    def header(self, name: str) -> str | bytes | None:
        """One header of the request."""
        wanted = name.encode("ascii")
        for each, value, kind, _ in self._fields:
            if each == wanted and kind == hpack.REGULAR:
                return decode_binary(value) if name.endswith("-bin") else value.decode("latin-1")
        return None

    def shown_headers(self, names: frozenset[str]) -> Headers:
        """Those of the request's headers that may be passed on to others, as `nl.model.caller` has them."""
        found: list[tuple[str, str | bytes]] = []
        for name, value, kind, _ in self._fields:
            key = name.decode("latin-1")
            if key in names and kind in (hpack.REGULAR, hpack.AUTHORIZATION):
                with suppress(InvalidRequestError, ValueError):  # what gRPC would not let us send is not passed on
                    pair = (key, decode_binary(value) if key.endswith("-bin") else value.decode("latin-1"))
                    encode_fields([pair])
                    found.append(pair)
        return tuple(found)

    # -- receiving ---------------------------------------------------------------------------------------------------

    def raise_if_over(self) -> None:
        """A call that was reset is being cancelled; a handler that shields itself from that gets an error."""
        if self.reset_code is not None:
            raise TransportLost("the call is over")

    async def recv_message(self) -> Any:
        """The next request, or None."""
        data: Buffer | None = self.take_message()
        if data is None:
            data = await self.receive_message()
        if data is None:
            if not self.received and not self.definition.client_streaming:
                raise InvalidRequestError(f"{self.method}: the call has no request message")
            return None
        self._count_message()
        definition = self.definition
        if len(data) <= DECODED_IN_PLACE or definition.decodes_itself:
            return definition.decode(data)
        self.keep(len(data))
        return await off_loop(definition.decode, data)

    def keep(self, count: int) -> None:
        """So many bytes are with the handler, and count as held for the client until it is done."""
        connection = self.connection
        connection.pinned += count - self.kept
        self.kept = count
        if count:
            connection.on_pinned()

    async def receive_body(self) -> Any:
        """The next request as a reader of its bytes."""
        body = await super().receive_body()
        if body is None:
            if not self.received and not self.definition.client_streaming:
                raise InvalidRequestError(f"{self.method}: the call has no request message")
            return None
        self._count_message()
        return body

    def take_body(self, max_bytes: int) -> bytes | None:
        """The next request, encoded, if it is at hand."""
        if self._unacknowledged or self._body is not None:
            self._finish_body()
        data = self.take_message(max_bytes)
        if data is not None:
            self._count_message()
        return data

    def _count_message(self) -> None:
        self.received += 1
        if self.received > 1 and not self.definition.client_streaming:
            raise InvalidRequestError(f"{self.method}: the call has more than one request message")

    def __aiter__(self) -> ServerCall:
        return self

    async def __anext__(self) -> Any:
        message = await self.recv_message()
        if message is None:
            raise StopAsyncIteration
        return message

    # -- sending -----------------------------------------------------------------------------------------------------

    def head(self) -> bytes:
        """The response headers, once."""
        if self.headers_sent:
            return b""
        self.headers_sent = True
        block = hpack.RESPONSE_GZIP if self._packs else hpack.RESPONSE
        return fr.header(len(block), fr.HEADERS, fr.END_HEADERS, self.sid) + block

    @property
    def _packs(self) -> bool:
        return self.accepts_gzip and self.connection.options.send_compression == messages.GZIP

    async def send_initial_metadata(self, *, metadata: Any = None) -> None:
        """Response headers, now."""
        if self.headers_sent:
            raise InternalError("response headers were sent already")
        self.raise_if_over()
        self.headers_sent = True
        block = hpack.RESPONSE_GZIP if self._packs else hpack.RESPONSE
        if metadata:
            block += hpack.encode(encode_fields(metadata))
        outbox = self.connection.outbox
        outbox.add(fr.header_frames(block, self.sid, end_stream=False, max_frame=self.h2.peer_max_frame))
        outbox.flush_soon()

    async def send_message(self, message: Any) -> None:
        """Encodes and sends."""
        await self.send_parts((message,) if type(message) is bytes else encoder_of(message))

    async def send_parts(self, parts: Sequence[Buffer]) -> None:
        """Sends an encoded message. A small unary reply waits for its trailers, which follow at once."""
        if self.outcome is not None and self.reset_code is None:
            raise InternalError("the call has been answered already")
        length = sum(map(len, parts))
        compressed = self.accepts_gzip and self._packs and length >= self.connection.options.compress_from
        if compressed:
            self.pin(length)
            parts = (await pack(parts, length=length),)
            self.pin(0)
            length = len(parts[0])
        if not self.definition.server_streaming:
            if self._reply is not None or self._reply_sent:
                raise InternalError("a unary call has one reply")
            if length + messages.PREFIX_SIZE <= JOINED_UP_TO:
                self.raise_if_over()
                self._reply = b"".join((fr.PREFIX.pack(compressed, length), *parts))
                return
            self._reply_sent = True
        await self.send_framed(parts, compressed=compressed)

    async def send_trailing_metadata(
        self,
        *,
        status: grpclib.const.Status = grpclib.const.Status.OK,
        status_message: str | None = None,
        status_details: Any = None,
        metadata: Any = None,
    ) -> None:
        """Ends the call with a status and metadata of the handler's choice."""
        self.raise_if_over()
        if self.outcome is not None:
            raise InternalError("trailers were sent already")
        details = status_details if isinstance(status_details, list | tuple) else ()
        self.close(Outcome(status.value, status_message or "", details), metadata=metadata)
        self.connection.outbox.flush_soon()  # the handler may have much to do still

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self, outcome: Outcome, *, metadata: Any = None) -> None:
        """Ends the call, once: a reply that is held back and the trailers leave in one piece, or an error alone.

        Never waits: a reply for which there is no room or too little credit stays with the connection, which calls
        again. Its beginning leaves all the same, since clients open windows for what has come, not for what may come.
        """
        if self.outcome is not None or self.reset_code is not None or self in self.connection.held_back:
            return
        reply = self._reply
        if outcome.code or not reply:
            if not outcome.code and not self._reply_sent and not self.definition.server_streaming:
                outcome = Outcome(Code.INTERNAL, f"{self.method}: the handler returned without a reply")
            self._finish(b"", outcome, metadata)
            return
        size, h2, sid = len(reply), self.h2, self.sid
        window = h2.peer_initial_window + self.window_delta
        if size > window or size > h2.send_window or self.connection.outbox.size >= HIGH_WATER:
            if self.send_credit > 0 and self.connection.outbox.size < HIGH_WATER:
                self._send_beginning(reply, self.send_credit)
            self.connection.hold_back(self, outcome, metadata)
            self.pin(len(self._reply or b""))
        elif outcome is OK and metadata is None and not self.headers_sent and not self.accepts_gzip:
            # nearly every unary call: headers, message and trailers as one buffer
            self.window_delta -= size
            h2.send_window -= size
            head = _HEAD.pack(
                0, _HEAD_SIZE, fr.HEADERS, fr.END_HEADERS, sid, hpack.RESPONSE, size >> 8, size & 0xFF, fr.DATA, 0, sid
            )
            tail = _TAIL.pack(0, _TAIL_SIZE, fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, sid, hpack.TRAILERS_OK)
            self.headers_sent = True
            h2.emit(b"".join((head, reply, tail)))
            self._over(outcome)
        else:
            self.charge(size)
            self._finish(b"".join((self.head(), fr.header(size, fr.DATA, 0, sid), reply)), outcome, metadata)

    def _send_beginning(self, reply: bytes | memoryview, count: int) -> None:
        """Sends the first `count` bytes of a reply and keeps the rest."""
        self.charge(count)
        self.h2.emit(b"".join((self.head(), fr.header(count, fr.DATA, 0, self.sid), reply[:count])))
        self._reply = memoryview(reply)[count:]
        self.blocked_since = None

    def _finish(self, before: bytes, outcome: Outcome, metadata: Any) -> None:
        """Trailers, behind what must go before them."""
        h2 = self.h2
        first = not self.headers_sent
        if outcome is OK and metadata is None and not first:  # nearly every streamed reply
            tail = _TAIL.pack(0, _TAIL_SIZE, fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, self.sid, hpack.TRAILERS_OK)
            h2.emit(before + tail)
            self._over(outcome)
            return
        try:
            block = trailers(outcome, metadata, max_size=h2.peer_max_header_list)
        except Exception:  # metadata or details of a handler's making, at a time when it may be gone
            log.exception("the status of %s cannot be sent: %r, metadata %r", self.method, outcome, metadata)
            outcome = Outcome(outcome.code or Code.INTERNAL, outcome.message or "the trailing metadata cannot be sent")
            block = trailers(outcome, max_size=h2.peer_max_header_list)
        if first:
            self.headers_sent = True
            block = hpack.RESPONSE + block
        h2.emit(before + fr.header_frames(block, self.sid, end_stream=True, max_frame=h2.peer_max_frame))
        self._over(outcome)

    def _over(self, outcome: Outcome) -> None:
        """The call is answered: what is counted, given back and freed then."""
        self.outcome = outcome
        self._reply = None
        if self.pinned:
            self.pin(0)
        self.send_closed = True
        h2 = self.h2
        if self.scope is not None and not self.handler_done:
            self.wind_down()
        if self.recv_closed:
            h2.close_if_done(self)
            if self.held:
                self.discard()
        else:  # RFC 9113, section 8.1: the rest of the request is not needed
            h2.reset_stream(self.sid, ErrorCode.NO_ERROR)
        h2.call_answered()
        if h2.blocked:
            h2.wake_next()
        self.connection.on_call_over(outcome)

    @property
    def is_reset(self) -> bool:
        """Whether it is the client that has ended the call."""
        return self.outcome is _RESET

    def wind_down(self) -> None:
        """The stream is gone, and the handler is not: the call counts as concurrent until that has ended, too."""
        if not self.winding_down:
            self.winding_down = True
            self.h2.winding_down += 1

    def drop_reply(self) -> None:
        """Forgets a reply that was held back: the connection ends."""
        self._reply = None
        self.pin(0)

    def on_window(self) -> None:
        """Wakes the sending task, or sends the reply that has waited for credit."""
        if self._window_waiter is not None:
            super().on_window()
        else:
            self.connection.send_held_back(self)

    def on_reset(self, code: int) -> None:
        """The client has given up, or broken the stream."""
        if self.outcome is None:
            self.outcome = _RESET
            self._reply = None
            self.pin(0)
            self.connection.on_call_over(_RESET)
        self.connection.forget_held_back(self)
        if self.scope is not None:
            self.wind_down()
            self.scope.cancel()
        else:
            self.connection.after_call()
        self.wake()
        self.h2.wake_next()

    def cancel(self, outcome: Outcome) -> None:
        """Stops the handler and answers with `outcome`."""
        self.cancel_reason = outcome
        if self.scope is not None:
            self.scope.cancel()

"""One call on the server: what a handler holds (`nl.rpc.contract.ServerStream`), and how a call is answered."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grpclib.const
import trio
from grpclib.metadata import Deadline
from multidict import MultiDict

from nl.blob.reader import Buffer
from nl.errors import Code, InternalError, InvalidRequestError
from nl.model.access import Identity
from nl.rpc import frames as fr
from nl.rpc import hpack, messages
from nl.rpc.call import SMALL, Call, encoder_of
from nl.rpc.connection import HIGH_WATER
from nl.rpc.contract import TransportLost
from nl.rpc.frames import ErrorCode
from nl.rpc.h2.limits import GOODWILL
from nl.rpc.hpack import Field
from nl.rpc.metadata import decode_binary, decode_fields, encode_fields
from nl.rpc.method import Method
from nl.rpc.status import Outcome, trailers

if TYPE_CHECKING:
    from nl.rpc.server_connection import ServerConnection


_HEAD_SIZE = len(hpack.RESPONSE)
_TAIL_SIZE = len(hpack.TRAILERS_OK)
_HEAD = struct.Struct(f">HBBBI{_HEAD_SIZE}sHBBBI")
_TAIL = struct.Struct(f">HBBBI{_TAIL_SIZE}s")
"""Frame header and response headers, frame header of the message; frame header and trailers."""


class ServerCall(Call):
    """`nl.rpc.contract.ServerStream`."""

    __slots__ = (
        "_fields", "_headers_sent", "_metadata", "_reply", "_trailers_sent", "accepts_gzip", "cancel_reason",
        "definition", "expires", "identity", "received", "scope", "zombie",
    )  # fmt: skip

    core: ServerConnection
    size_option = "max_decoding_message_size of the listener"

    def __init__(
        self, core: ServerConnection, sid: int, method: Method, fields: list[Field], identity: Identity
    ) -> None:
        Call.__init__(self, core, sid, max_message_size=max(core.options.max_message_size, method.max_message_size))
        self.definition = method
        self.identity = identity
        self._fields = fields
        self._metadata: MultiDict[str | bytes] | None = None
        self._headers_sent = False
        self._trailers_sent = False
        self._reply: bytes | None = None
        self.accepts_gzip = False
        self.expires: float | None = None
        self.scope: trio.CancelScope | None = None
        self.cancel_reason: Outcome | None = None
        self.received = 0
        self.zombie = False

    @property
    def method(self) -> str:
        """Full path."""
        return self.definition.name

    @property
    def peer(self) -> str:
        """`host:port` of the client."""
        return self.core.transport.peer

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
        return self.definition.decode(data)

    async def receive_body(self) -> Any:
        """The next request as a reader of its bytes."""
        body = await super().receive_body()
        if body is None:
            if not self.received and not self.definition.client_streaming:
                raise InvalidRequestError(f"{self.method}: the call has no request message")
            return None
        self._count_message()
        return body

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

    def head(self, *, end_stream: bool = False) -> bytes:
        """The response headers, once."""
        if self._headers_sent:
            return b""
        self._headers_sent = True
        block = hpack.RESPONSE_GZIP if self._packs else hpack.RESPONSE
        return fr.header(len(block), fr.HEADERS, fr.END_HEADERS, self.sid) + block

    @property
    def _packs(self) -> bool:
        return self.accepts_gzip and self.core.options.send_compression == messages.GZIP

    async def send_initial_metadata(self, *, metadata: Any = None) -> None:
        """Response headers, now."""
        if self._headers_sent:
            raise InternalError("response headers were sent already")
        self.raise_if_over()
        self._headers_sent = True
        block = hpack.RESPONSE_GZIP if self._packs else hpack.RESPONSE
        if metadata:
            block += hpack.encode(encode_fields(metadata))
        core = self.core
        core.emit(fr.header_frames(block, self.sid, end_stream=False, max_frame=core.peer_max_frame))
        core.flush_soon()

    async def send_message(self, message: Any) -> None:
        """Encodes and sends."""
        await self.send_parts((message,) if type(message) is bytes else encoder_of(message))

    async def send_parts(self, parts: Sequence[Buffer]) -> None:
        """Sends an encoded message. A small unary reply waits for its trailers, which follow at once."""
        if self._trailers_sent:
            raise InternalError("the call has been answered already")
        length = sum(map(len, parts))
        compressed = self.accepts_gzip and self._packs and length >= self.core.options.compress_from
        if compressed:
            parts = (messages.compress(b"".join(parts)),)
            length = len(parts[0])
        if not self.definition.server_streaming:
            if self._reply is not None:
                raise InternalError("a unary call has one reply")
            if length + messages.PREFIX_SIZE <= SMALL:
                self.raise_if_over()
                self._reply = b"".join((fr.PREFIX.pack(compressed, length), *parts))
                return
            self._reply = b""
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
        if self._trailers_sent:
            raise InternalError("trailers were sent already")
        self.raise_if_over()
        details = status_details if isinstance(status_details, list | tuple) else ()
        await self.finish(Outcome(status.value, status_message or "", details), metadata=metadata)

    async def finish(self, outcome: Outcome, *, metadata: Any = None) -> None:
        """Answers the call: the held reply and the trailers in one piece, or an error as the only headers."""
        if self._trailers_sent or self.reset_code is not None:
            return
        reply, self._reply = self._reply, None
        if reply is None and not outcome.code and not self.definition.server_streaming:
            outcome = Outcome(Code.INTERNAL, f"{self.method}: the handler returned without a reply")
        if reply and not outcome.code:
            size = len(reply)
            core = self.core
            if core.out_bytes >= HIGH_WATER:
                await core.wait_room()
            if size <= self.send_window and size <= core.send_window and size <= core.peer_max_frame:
                self.send_window -= size
                core.send_window -= size
                self._end(b"".join((self.head(), fr.header(size, fr.DATA, 0, self.sid), reply)), outcome, metadata)
                return
            await self.send_prefixed([reply])
        self._end(b"", outcome, metadata)

    def finish_at_once(self) -> bool:
        """`finish(OK)` as nearly every unary call needs it; False if there is anything to wait for or to decide."""
        reply, core, sid = self._reply, self.core, self.sid
        if not reply or self._headers_sent or not self.recv_closed or self.accepts_gzip or self.reset_code is not None:
            return False
        size = len(reply)
        if size > self.send_window or size > core.send_window or size > core.peer_max_frame:
            return False
        if core.out_bytes >= HIGH_WATER:
            return False
        self._reply = None
        self.send_window -= size
        core.send_window -= size
        high, low = size >> 8, size & 0xFF
        head = _HEAD.pack(0, _HEAD_SIZE, fr.HEADERS, fr.END_HEADERS, sid, hpack.RESPONSE, high, low, fr.DATA, 0, sid)
        tail = _TAIL.pack(0, _TAIL_SIZE, fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, sid, hpack.TRAILERS_OK)
        self._headers_sent = self._trailers_sent = self.send_closed = True
        core.emit(b"".join((head, reply, tail)))
        core.goodwill += GOODWILL
        core.close_if_done(self)
        if self.held:
            self.discard()
        if not core.in_pass:
            core.flush_soon()
        return True

    def end_now(self, outcome: Outcome) -> None:
        """Answers a call that cannot wait any more: with an error."""
        if not self._trailers_sent and self.reset_code is None:
            self._reply = None
            self._end(b"", outcome, None)

    def _end(self, before: bytes, outcome: Outcome, metadata: Any) -> None:
        if self._trailers_sent or self.reset_code is not None:
            return
        self._trailers_sent = True
        core, sid = self.core, self.sid
        block = trailers(outcome, metadata)
        if not self._headers_sent:
            self._headers_sent = True
            block = hpack.RESPONSE + block
        if len(block) <= core.peer_max_frame:
            tail = fr.header(len(block), fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, sid) + block
        else:
            tail = fr.header_frames(block, sid, end_stream=True, max_frame=core.peer_max_frame)
        core.emit(before + tail)
        core.goodwill += GOODWILL
        self.send_closed = True
        if self.recv_closed:
            core.close_if_done(self)
            if self.chunks or self.held:
                self.discard()
        else:  # RFC 9113, section 8.1: the rest of the request is not needed
            core.reset_stream(sid, ErrorCode.NO_ERROR)
        core.flush_soon()

    # -- the end -----------------------------------------------------------------------------------------------------

    def on_reset(self, code: int) -> None:
        """The client has given up, or broken the stream."""
        if self.scope is not None:
            self.zombie = True
            self.core.zombies += 1
            self.scope.cancel()

    def cancel(self, outcome: Outcome) -> None:
        """Stops the handler and answers with `outcome`."""
        self.cancel_reason = outcome
        if self.scope is not None:
            self.scope.cancel()

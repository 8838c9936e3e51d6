"""One call on the client: grpclib's client stream contract, so that generated stubs run on it unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Protocol

import grpclib.const
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError
from grpclib.metadata import Deadline
from multidict import MultiDict

from nl.blob.reader import CHUNK, Buffer
from nl.errors import NlError
from nl.rpc import frames as fr
from nl.rpc import hpack, messages
from nl.rpc.call import encoder_of
from nl.rpc.client_connection import ClientCall
from nl.rpc.contract import MessageBody, TransportLost
from nl.rpc.errors import OnlyGrpcErrors
from nl.rpc.frames import ErrorCode
from nl.rpc.hpack import Field
from nl.rpc.metadata import decode_fields, encode_timeout
from nl.rpc.method import decoder_for
from nl.rpc.packing import pack
from nl.rpc.retry import RetryPolicy


class _ReplyBody(MessageBody):
    """A reply's bytes, within the call's deadline and with the call's errors."""

    __slots__ = ("_body", "_waiting", "size")

    def __init__(self, body: MessageBody, waiting: Callable[[], AbstractContextManager[None]]) -> None:
        self._body = body
        self._waiting = waiting
        self.size = body.size

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        """As promised by MessageBody."""
        parts: Sequence[Buffer] = ()
        with self._waiting():
            parts = await self._body.receive_parts(max_bytes)
        return parts


class Calls(Protocol):
    """Where a ClientStream gets its HTTP/2 stream from: a Channel."""

    async def open_call(self, *, wait_for_ready: bool) -> ClientCall: ...

    def count_retry(self) -> None: ...


class ClientStream:
    """What `Channel.request` gives. An async context manager; leaving it early resets the call.

    Errors of the call are raised as `grpclib.GRPCError`, from whatever is awaited then, and on leaving at the latest:
    nothing that a server sends raises anything else. NotProcessed, a GRPCError, says that the server has not begun
    with it. A wrong order of methods is the caller's mistake and raises `grpclib.exceptions.ProtocolError`.

    A task may send while another receives. A call with one request is sent again as `retry` says (retry.py), as long as
    nothing of an answer has arrived.
    """

    def __init__(
        self,
        channel: Calls,
        name: str,
        cardinality: grpclib.const.Cardinality,
        reply_type: Any,
        *,
        expires: float | None = None,
        fields: list[tuple[bytes, bytes]] | None = None,
        wait_for_ready: bool = False,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._channel = channel
        self._name = name
        self._errors = OnlyGrpcErrors(name)
        self._cardinality = cardinality
        self._decode = decoder_for(reply_type)
        self._expires = expires
        self._wait_for_ready = wait_for_ready
        self._retry = retry
        self._retries = 0
        self._kept: list[bytes] | None = None
        """The request, as long as it may have to be sent again."""
        self._fields = fields or []
        self._call: ClientCall | None = None
        self._sent = False
        self._ended = False
        self._cancelled = False
        self._has_reply = False
        self.initial_metadata: MultiDict[str | bytes] | None = None
        self.trailing_metadata: MultiDict[str | bytes] | None = None

    @property
    def deadline(self) -> Deadline | None:
        """When the call ends at the latest, or None."""
        return None if self._expires is None else Deadline.from_timeout(self._expires - trio.current_time())

    @property
    def is_answered(self) -> bool:
        """Whether the server has sent its status: what is sent from then on, nobody reads."""
        return self._call is not None and self._call.trailing is not None

    @property
    def peer(self) -> str:
        """`host:port` of the server, once the request is sent."""
        return self._call.connection.transport.peer if self._call is not None else ""

    async def __aenter__(self) -> ClientStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None and self._call is not None:
                await self._finish()  # noqa: ASYNC102  # only after a block that ended well
        finally:
            self._release()

    def _waiting(self) -> AbstractContextManager[None]:
        """Around one wait: its limit and its errors.

        No scope spans the whole call: generated stubs wait inside of async generators.
        """
        return self._errors if self._expires is None else self._until(self._expires)

    @contextmanager
    def _until(self, expires: float) -> Iterator[None]:
        with trio.move_on_at(expires) as scope, self._errors:
            yield
        if scope.cancelled_caught:
            raise GRPCError(Status.DEADLINE_EXCEEDED, "the deadline has passed")

    async def _finish(self) -> None:
        """After the body of the context: the status, if everything was sent and received."""
        call = self._call
        assert call is not None
        if self._cancelled:
            return
        if (self._ended or self.is_answered) and not self._cardinality.server_streaming:
            await self.recv_trailing_metadata()
        call.raise_if_over()

    def _release(self) -> None:
        call = self._call
        if call is None:
            return
        connection = call.connection
        call.end_receiving()
        if call.chunks or call.held:
            call.discard()
        if call.reset_code is None and not (call.recv_closed and call.send_closed) and not connection.lost:
            connection.h2.reset_stream(call.sid, ErrorCode.CANCEL)
        connection.h2.wake_next()
        connection.outbox.flush_soon()
        connection.release_slot()

    async def send_request(self, *, end: bool = False) -> None:
        """Sends the headers; implied by the first message."""
        if self._call is not None:
            raise ProtocolError("the request was sent already")
        if end and not self._cardinality.client_streaming:
            raise ProtocolError("a unary request needs its message")
        while self._call is None:
            try:
                with self._waiting():
                    self._call = await self._channel.open_call(wait_for_ready=self._wait_for_ready)
            except GRPCError as exc:
                await self._pause(exc)
        call = self._call
        assert call is not None
        origin = call.connection.address.origin
        block = origin.head(self._name)
        fields = origin.with_credentials(self._fields)
        if self._expires is not None:
            fields = [(b"grpc-timeout", encode_timeout(self._expires - trio.current_time())), *fields]
        if self._retries:
            fields = [(b"grpc-previous-rpc-attempts", b"%d" % self._retries), *fields]
        block += hpack.encode(fields)
        outbox = call.connection.outbox
        outbox.add(fr.header_frames(block, call.sid, end_stream=end, max_frame=call.h2.peer_max_frame))
        if end:
            self._ended = call.send_closed = True
        if self._cardinality.client_streaming:
            outbox.flush_soon()

    async def send_message(self, message: Any, *, end: bool = False) -> None:
        """Encodes and sends one request message; `end` half-closes (always so for unary requests)."""
        await self.send_parts((message,) if type(message) is bytes else encoder_of(message), end=end)

    async def send_parts(self, parts: Sequence[Buffer], *, end: bool = False) -> None:
        """Sends one encoded message. When this returns, the buffers may be reused.

        A server may answer before the request is complete: then this returns at once, and `is_answered` is true.
        """
        if self._call is None:
            await self.send_request()
        call = self._call
        assert call is not None
        if self.is_answered:
            call.raise_if_over()
            return
        if self._ended or (self._sent and not self._cardinality.client_streaming):
            raise ProtocolError("the request has ended")
        self._sent = True
        end = end or not self._cardinality.client_streaming
        if self._retry is not None and not self._cardinality.client_streaming:
            self._kept = self._retry.kept(parts)
        try:
            await self._transmit(parts, end=end)
        except GRPCError as exc:
            await self._send_again(exc)

    async def _transmit(self, parts: Sequence[Buffer], *, end: bool) -> None:
        call = self._call
        assert call is not None
        options = call.connection.options
        packed = options.send_compression == messages.GZIP and sum(map(len, parts)) >= options.compress_from
        if packed:
            parts = (await pack(parts, length=sum(map(len, parts))),)
        with self._waiting():
            try:
                await call.send_framed(parts, compressed=packed, end_stream=end)
            except TransportLost:
                call.raise_if_over()
                if call.trailing is None:
                    raise
                end = True
        self._ended = self._ended or end

    async def _send_again(self, error: GRPCError) -> None:
        """The kept request on another stream, as often as the policy allows; raises the last error if it does not."""
        if self._kept is None:
            raise error
        while True:
            await self._pause(error)
            await self.send_request()
            try:
                await self._transmit(self._kept, end=True)
            except GRPCError as exc:
                error = exc
                continue
            return

    async def _pause(self, error: GRPCError) -> None:
        """Gives the failed attempt up and waits until the next one may begin; raises `error` if there may be none."""
        call = self._call
        trailers: Sequence[Field] = ()
        if call is not None:
            trailers = call.trailing or ()
            if call.initial is not None and call.initial is not call.trailing:  # the caller may have seen of it
                raise error
        pause = None
        if self._retry is not None and not self._cancelled:
            pause = self._retry.pause(error, method=self._name, retries=self._retries, trailers=trailers)
        if pause is None or (self._expires is not None and trio.current_time() + pause >= self._expires):
            raise error
        self._release()
        self._call = None
        self.initial_metadata = self.trailing_metadata = None
        self._retries += 1
        self._channel.count_retry()
        await trio.sleep(pause)
        if self._cancelled:
            raise GRPCError(Status.CANCELLED, "cancelled")

    async def wait_send_credit(self) -> int:
        """Waits until the server takes some bytes; how many. 0 if it has answered already."""
        if self._call is None:
            await self.send_request()
        assert self._call is not None
        credit = 0
        with self._waiting():
            try:
                credit = await self._call.wait_send_credit()
            except TransportLost:
                self._call.raise_if_over()
        return credit

    async def end(self) -> None:
        """Half-closes: no more messages."""
        call = self._call
        if call is None:
            raise ProtocolError("the request was not sent")
        if self._ended or self.is_answered:
            if self._cardinality.client_streaming and not self.is_answered:
                raise ProtocolError("the request has ended already")
            return
        if not self._cardinality.client_streaming:
            raise ProtocolError("a unary request needs its message")
        self._ended = True
        if call.reset_code is None and call.error is None:
            outbox = call.connection.outbox
            outbox.add(fr.header(0, fr.DATA, fr.END_STREAM, call.sid))
            call.send_closed = True
            call.h2.close_if_done(call)
            outbox.flush_soon()

    async def recv_initial_metadata(self) -> None:
        """Waits for the response's headers; the error if there are only trailers that say so."""
        while self.initial_metadata is None:
            try:
                await self._wait_initial(self._require())
            except GRPCError as exc:
                await self._send_again(exc)
        self._kept = None

    async def _wait_initial(self, call: ClientCall) -> None:
        while call.initial is None:
            call.raise_if_over()
            if call.recv_closed:
                raise GRPCError(Status.INTERNAL, "the server ended the stream without headers")
            with self._waiting():
                await call.wait_data()
        self.initial_metadata = self._decoded(call.initial)
        if call.trailing is call.initial:
            self.trailing_metadata = self.initial_metadata
            call.raise_if_over()

    async def recv_message(self) -> Any:
        """The next reply, or None when the server has ended the call with OK."""
        if self.initial_metadata is None:
            await self.recv_initial_metadata()
        call = self._require()
        data: Buffer | None = None
        with self._waiting():
            data = await call.receive_message()
        if data is None:
            await self.recv_trailing_metadata()
            if not self._cardinality.server_streaming and not self._has_reply:
                raise GRPCError(Status.INTERNAL, "the server sent no reply")
            return None
        self._has_reply = True
        with self._errors:
            return self._decode(data)

    async def receive_body(self) -> MessageBody | None:
        """The next reply as a reader of its encoded bytes, or None at the end. Its errors are GRPCErrors, too."""
        if self.initial_metadata is None:
            await self.recv_initial_metadata()
        call = self._require()
        body: MessageBody | None = None
        with self._waiting():
            body = await call.receive_body()
        if body is None:
            await self.recv_trailing_metadata()
            return None
        return _ReplyBody(body, self._waiting)

    async def recv_trailing_metadata(self) -> None:
        """Waits for the status; raises it unless it is OK."""
        if self.initial_metadata is None:
            await self.recv_initial_metadata()
        call = self._require()
        while call.trailing is None:
            call.raise_if_over()
            if call.recv_closed:
                raise GRPCError(Status.UNKNOWN, "the server ended the stream without a status")
            with self._waiting():
                await call.wait_data()
        if self.trailing_metadata is None:
            self.trailing_metadata = self._decoded(call.trailing)
        call.raise_if_over()

    async def cancel(self) -> None:
        """Gives the call up: RST_STREAM(CANCEL)."""
        self._cancelled = True
        if self._call is None and self._retries:  # between two attempts: there will be no other
            return
        call = self._require()
        if call.error is None:
            call.error = GRPCError(Status.CANCELLED, "cancelled")
        if call.reset_code is None and not call.connection.lost:
            call.h2.reset_stream(call.sid, ErrorCode.CANCEL)
            call.connection.outbox.flush_soon()
        call.wake()

    def __aiter__(self) -> ClientStream:
        return self

    async def __anext__(self) -> Any:
        message = await self.recv_message()
        if message is None:
            raise StopAsyncIteration
        return message

    def _decoded(self, fields: list[Field]) -> MultiDict[str | bytes]:
        with self._errors:
            try:
                return decode_fields(fields)
            except NlError:
                self._require().raise_if_over()  # a status says more than what is wrong with what came with it
                raise

    def _require(self) -> ClientCall:
        if self._call is None:
            raise ProtocolError("the request was not sent")
        return self._call

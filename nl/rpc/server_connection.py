"""One client's connection on the server: requests become calls, calls get tasks, and everything ends in order.

Leader and followers: one task, the leader, reads the connection and runs the handlers of the requests it has read. A
handler that never waits thus costs no task. When a handler does wait, the leader becomes that call's task, with its
cancel scope, and a new leader is started; see `_step`.

Rules for this file: a handler's exception ends its call and nothing else; the peer's disconnect cancels all calls; a
call that was reset counts as concurrent until its handler is gone (rapid reset gains nothing).
"""

from __future__ import annotations

import contextvars
import logging
import types
from collections import deque
from collections.abc import Coroutine, Generator, Mapping
from typing import Any

import trio

from nl.errors import Code, InvalidRequestError, NlError
from nl.model.access import EVERYONE
from nl.rpc import frames as fr
from nl.rpc import hpack, messages
from nl.rpc.connection import Connection
from nl.rpc.contract import TransportLost
from nl.rpc.frames import ConnectionFault, ErrorCode
from nl.rpc.h2.stream import Stream
from nl.rpc.hpack import Field
from nl.rpc.metadata import decode_timeout
from nl.rpc.method import Method
from nl.rpc.options import ServerOptions
from nl.rpc.plain_answer import PlainAnswer
from nl.rpc.server_call import ServerCall
from nl.rpc.status import OK, Outcome, outcome_of, trailers
from nl.rpc.transport import Transport

log = logging.getLogger(__name__)
_DEADLINE = Outcome(Code.DEADLINE_EXCEEDED, "the deadline has passed")
_SHUTDOWN = Outcome(Code.UNAVAILABLE, "the server is shutting down")
_CANCELLED = Outcome(Code.CANCELLED, "the call was cancelled")
_HINT = " (pages and metrics are served over HTTP/1.1)"
_LAST_PSEUDO, _STATUS, _EAGER, _BAD = hpack.LAST_PSEUDO, hpack.STATUS, hpack.AUTHORIZATION, hpack.BAD
_NOTHING_YET: list[bytes | None] = [None] * (_EAGER + 1)
_CONTENT_TYPES = frozenset((b"application/grpc", b"application/grpc+proto"))
_CONTENT_TYPE_PREFIXES = (b"application/grpc;", b"application/grpc+proto;")


class ServerConnection(Connection):
    """See the module's docstring. `run` is its whole life."""

    def __init__(self, transport: Transport, methods: Mapping[bytes, Method], *, options: ServerOptions) -> None:
        super().__init__(transport, options.limits)
        self.options = options
        self.methods = methods
        self.idle_since = self.now
        self.draining = False
        self._ready: deque[ServerCall] = deque()
        self._running: set[ServerCall] = set()
        self._fault: ConnectionFault | None = None

    async def run(self) -> None:
        """Serves the client until it leaves, breaks the protocol, or `cancel_all` and `drain` have had their way."""
        try:
            async with trio.open_nursery() as nursery:
                self.nursery = nursery
                self.preface()
                self.flush()
                nursery.start_soon(self._lead)
            self.nursery = None
            if self._fault is not None:
                await self.say_goodbye(self._fault.code, self._fault.reason)
            elif self.draining and not self.lost:
                await self.say_goodbye(ErrorCode.NO_ERROR, "bye")
        finally:
            self.lost = True
            self.transport.close()

    # -- the leader ------------------------------------------------------------------------------------------------

    async def _lead(self) -> None:
        """Reads and runs handlers; when one of them waits, this task stays with it."""
        mine: ServerCall | None = None
        with trio.CancelScope() as scope:
            try:
                mine = await self._read_and_run(scope)
            except TransportLost:
                self.lost = True
            except ConnectionFault as exc:
                self._fault = exc
                log.info("%s: %s", self.transport.peer, exc)
        if mine is None:
            mine = next((call for call in self._running if call.scope is scope), None)
        if mine is None:
            self._leave()
            return
        self._running.discard(mine)
        if mine.zombie:
            self.zombies -= 1
        elif scope.cancelled_caught:
            mine.end_now(mine.cancel_reason or _DEADLINE)
        mine.return_lent()
        self._after_call()

    def _leave(self) -> None:
        if self.nursery is not None:
            self.nursery.cancel_scope.cancel()

    def _after_call(self) -> None:
        if not self.streams:
            self.idle_since = self.now
            if self.draining and not self._running and not self._ready:
                self._leave()

    async def _read_and_run(self, scope: trio.CancelScope) -> ServerCall | None:
        ready = self._ready
        while True:
            self.in_pass = True
            while ready:
                call = ready.popleft()
                if call.reset_code is None and await self._step(call, self._serve(call), scope):  # type: ignore[misc]
                    return call
            self.in_pass = False
            if self.out:
                self.flush()
            if self.more:  # twice, so that whoever has been woken has consumed what there is
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
            else:
                self.rest()
                await self.transport.wait_readable()
            self.in_pass = True
            self.more = self.pump()

    more = False

    @types.coroutine
    def _step(
        self, call: ServerCall, handler: Coroutine[Any, Any, None], scope: trio.CancelScope
    ) -> Generator[Any, Any, bool]:
        """Runs a handler as far as it gets without waiting; True if this task has become its own.

        The handler runs in a copy of the context, which becomes the task's with its first wait: what a handler sets
        in contextvars stays with its call.
        """
        context = contextvars.copy_context()
        try:
            trap = context.run(handler.send, None)
        except StopIteration:
            return False
        call.scope = scope
        self._running.add(call)
        assert self.nursery is not None
        self.nursery.start_soon(self._lead)
        trio.lowlevel.current_task().context = context
        if call.expires is not None:
            scope.deadline = call.expires
        if call.cancel_reason is not None or call.reset_code is not None:
            if call.reset_code is not None:
                call.zombie = True
                self.zombies += 1
            scope.cancel()
        try:
            while True:
                try:
                    value = yield trap
                except BaseException as exc:  # noqa: BLE001, ASYNC103  # trio's Cancelled above all: it is the handler's
                    trap = handler.throw(exc)
                else:
                    trap = handler.send(value)
        except StopIteration:
            return True

    async def _serve(self, call: ServerCall) -> None:
        """Runs one handler and answers its call. Lets nothing out but what trio throws in."""
        try:
            if call.expires is not None and call.expires <= self.now:
                call.end_now(_DEADLINE)
                return
            await call.definition.func(call)
            if not call.finish_at_once():
                await call.finish(OK)
        except Exception as exc:  # noqa: BLE001  # the place where a handler's errors become a status
            if call.reset_code is None:
                outcome = outcome_of(exc, method=call.method)
                if call.scope is not None and call.scope.cancel_called:
                    outcome = call.cancel_reason or _DEADLINE
                call.end_now(outcome)
        except BaseExceptionGroup as group:  # errors beside a cancellation: those stay here, the cancellation goes on
            errors, rest = group.split(Exception)
            if errors is not None:
                log.error("handler of %s failed while it was being cancelled", call.method, exc_info=errors)
            if rest is not None:
                raise rest from None
        finally:
            call.return_lent()
            if call.scope is None and not self.streams:
                self._after_call()

    # -- requests --------------------------------------------------------------------------------------------------

    def open_stream(self, sid: int, fields: list[Field], *, ended: bool) -> Stream | None:
        """A request: checked as HTTP (RFC 9113, section 8.3), then as gRPC, and made a call."""
        eager = _NOTHING_YET.copy()
        regular = False
        for _, value, kind, _ in fields:
            if kind > _LAST_PSEUDO:
                regular = True
                if kind <= _EAGER:
                    eager[kind] = value
                elif kind == _BAD:
                    return self._malformed(sid)
            elif not kind:
                regular = True
            elif regular or eager[kind] is not None or kind == _STATUS:
                return self._malformed(sid)
            else:
                eager[kind] = value
        path, http_method, te = eager[hpack.PATH], eager[hpack.METHOD], eager[hpack.TE]
        if not path or not http_method or eager[hpack.SCHEME] is None or te not in (None, b"trailers"):
            return self._malformed(sid)
        length: int | None = None
        declared = eager[hpack.CONTENT_LENGTH]
        if declared is not None:
            if not declared.isdigit() or len(declared) > 18 or (ended and int(declared)):
                return self._malformed(sid)
            length = int(declared)
        return self._open_call(sid, fields, eager, ended=ended, length=length)

    def _open_call(
        self, sid: int, fields: list[Field], eager: list[bytes | None], *, ended: bool, length: int | None
    ) -> Stream | None:
        content_type = eager[hpack.CONTENT_TYPE]
        if eager[hpack.METHOD] != b"POST":
            return self._plain(sid, 405, f"this is gRPC: POST only{_HINT}", length=length)
        if content_type not in _CONTENT_TYPES and not (content_type or b"").startswith(_CONTENT_TYPE_PREFIXES):
            return self._plain(sid, 415, f"content-type must be application/grpc{_HINT}", length=length)
        path = eager[hpack.PATH] or b""
        method = self.methods.get(path)
        if method is None:
            text = f"unknown method {path.decode('latin-1')[:200]}"
            return self._answer(sid, _status(Outcome(Code.UNIMPLEMENTED, text)), ended=ended)
        identity = EVERYONE
        if self.options.authenticate is not None:
            transport = self.transport
            try:
                identity = self.options.authenticate(transport.peer, transport.certificate, eager[hpack.AUTHORIZATION])
            except NlError as exc:
                return self._answer(sid, _status(Outcome(exc.code, exc.message)), ended=ended)
        call = ServerCall(self, sid, method, fields, identity)
        call.content_left = length
        if eager[hpack.TIMEOUT] is not None:
            try:
                call.expires = self.now + decode_timeout(eager[hpack.TIMEOUT] or b"")
            except InvalidRequestError as exc:
                return self._answer(sid, _status(Outcome(Code.INVALID_ARGUMENT, exc.message)), ended=ended)
        encoding = eager[hpack.ENCODING]
        if encoding is not None and encoding != b"identity":
            call.encoding = encoding.decode("latin-1")
            if call.encoding not in self.options.accepted_compression:
                return self._answer(sid, self._no_such_encoding(call.encoding), ended=ended)
        if self.options.send_compression and eager[hpack.ACCEPT_ENCODING] is not None:
            accepted = (eager[hpack.ACCEPT_ENCODING] or b"").replace(b" ", b"").split(b",")
            call.accepts_gzip = messages.GZIP.encode() in accepted
        self._ready.append(call)
        return call

    def _no_such_encoding(self, encoding: str) -> bytes:
        outcome = Outcome(Code.UNIMPLEMENTED, f"grpc-encoding {encoding[:100]} is not supported")
        accepted = ",".join((messages.IDENTITY, *self.options.accepted_compression)).encode()
        return hpack.RESPONSE + hpack.encode([(b"grpc-accept-encoding", accepted)]) + trailers(outcome)

    def _plain(self, sid: int, status: int, text: str, *, length: int | None) -> Stream:
        answer = PlainAnswer(self, sid, status=status, text=text)
        answer.content_left = length
        return answer

    def on_window(self) -> None:
        """Credit for everybody: calls wait for it, plain answers are told."""
        super().on_window()
        for stream in [each for each in self.streams.values() if type(each) is PlainAnswer]:
            stream.on_window()

    def _malformed(self, sid: int) -> Stream | None:
        self._stream_fault(sid, ErrorCode.PROTOCOL_ERROR)
        return None

    def _answer(self, sid: int, block: bytes, *, ended: bool) -> Stream | None:
        """Ends a request that never became a call."""
        self.emit(fr.header_frames(block, sid, end_stream=True, max_frame=self.peer_max_frame))
        if not ended:
            self.reset_stream(sid, ErrorCode.NO_ERROR)
        return None

    def headers_too_large(self, sid: int, *, ended: bool) -> None:
        """The list is over the limit, but the tables are in step: only this request is lost."""
        limit = self.limits.max_header_list_size
        self._answer(sid, _status(Outcome(Code.RESOURCE_EXHAUSTED, f"metadata is over {limit} bytes")), ended=ended)

    # -- the end -----------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Lame duck: no new streams; the connection ends with its last call."""
        if self.draining or self.nursery is None:
            return
        self.draining = True
        self.emit(fr.goaway(fr.MAX_STREAM_ID, ErrorCode.NO_ERROR, "draining"))
        self.emit(fr.ping(b"nl-drain"))
        self.flush()
        if not self.streams and not self._running:
            self.close_soon()

    def on_ping_ack(self, payload: bytes) -> None:
        """The peer has seen what came before that PING."""
        super().on_ping_ack(payload)
        if payload == b"nl-drain":
            self.refuse_above = self.last_sid
            self.emit(fr.goaway(self.last_sid, ErrorCode.NO_ERROR, "draining"))
            self._after_call()

    def close_soon(self) -> None:
        """Ends the connection, for whatever reason, calls and all."""
        self._leave()

    def held_bytes(self) -> int:
        """What is here for this peer, and only its reading, writing or going will free: counted, not kept count of."""
        held = self.out_bytes
        for stream in self.streams.values():
            held += stream.held
            if isinstance(stream, ServerCall):
                held += stream.pinned
        return held

    def give_up(self, reason: str) -> None:
        """Ends the connection because it costs too much; the client is told so."""
        if self._fault is None:
            log.warning("%s: %s", self.transport.peer, reason)
        self._fault = ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, reason)
        self._leave()

    def cancel_calls(self, outcome: Outcome = _SHUTDOWN) -> None:
        """Stops every handler; the clients get `outcome`."""
        for call in [*self._running, *self._ready]:
            call.cancel(outcome)

    def sweep(self, now: float) -> None:
        """Called about once a second by the server."""
        options = self.options
        reason = self.check(
            now,
            interval=options.keepalive_interval,
            timeout=options.keepalive_timeout,
            stall=options.stall_timeout,
        )
        if reason is None and not self.got_settings and now - self.born > options.handshake_timeout:
            reason = "no SETTINGS"
        if reason is not None:
            log.info("%s: %s", self.transport.peer, reason)
            self.lost = True
            self._leave()
            return
        for call in self._running:
            if call.blocked_since is not None and now - call.blocked_since > options.window_timeout:
                call.cancel(Outcome(Code.UNAVAILABLE, "the client opens no flow-control window"))
        idle = options.idle_timeout
        if idle is not None and not self.streams and not self._running and now - self.idle_since > idle:
            self.drain()


def _status(outcome: Outcome) -> bytes:
    return hpack.RESPONSE + trailers(outcome)

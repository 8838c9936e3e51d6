"""One client's connection on the server: requests become calls, calls get tasks, and everything ends in order.

One task, the leader, reads the connection and runs the handlers of the requests it has read; leader.py says how.

Rules for this file: a handler's exception ends its call and nothing else; the peer's disconnect cancels all calls; a
call that was reset counts as concurrent until its handler is gone (rapid reset gains nothing).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import trio

from nl.errors import Code, NlError
from nl.model.access import EVERYONE, Identity
from nl.rpc import frames as fr
from nl.rpc import hpack, messages
from nl.rpc.connection import LINGER_S, Connection
from nl.rpc.contract import TransportLost
from nl.rpc.frames import ConnectionFault, ErrorCode
from nl.rpc.h2.stream import Stream
from nl.rpc.held import Held
from nl.rpc.hpack import Field
from nl.rpc.leader import step
from nl.rpc.metadata import decode_timeout
from nl.rpc.method import Method
from nl.rpc.options import ServerOptions
from nl.rpc.outbox import HIGH_WATER
from nl.rpc.plain_answer import PlainAnswer
from nl.rpc.request import Head, declared_length, read_head
from nl.rpc.server_call import ServerCall
from nl.rpc.status import OK, Outcome, outcome_of, trailers
from nl.rpc.transport import Transport
from nl.rpc.turns import LITTLE_S, turns_of_this_run

log = logging.getLogger(__name__)
_DEADLINE = Outcome(Code.DEADLINE_EXCEEDED, "the deadline has passed")
_SHUTDOWN = Outcome(Code.UNAVAILABLE, "the server is shutting down")
_NO_WINDOW = Outcome(Code.UNAVAILABLE, "the client opens no flow-control window")
_GONE = Outcome(Code.CANCELLED, "the client has left")
_HINT = " (pages and metrics are served over HTTP/1.1)"
_CONTENT_TYPES = frozenset((b"application/grpc", b"application/grpc+proto"))
_CONTENT_TYPE_PREFIXES = (b"application/grpc;", b"application/grpc+proto;")
_DRAIN_PING = b"nl-drain"
_UNREAD = 32_768
"""Bytes that wait to be sent to a client, behind which no last word will reach it in time."""
_CANCELLED_AT_ONCE = 64
"""Handlers of a connection that has ended: about a millisecond."""
_LOOK_S = 0.02
"""How often a connection that is asked to leave looks whether its client has everything."""
CALL_COST = 2400
"""Bytes that a call takes besides what it holds of messages (measured with tracemalloc, CPython 3.11) ..."""
TASK_COST = 3700
"""... and what its handler's task takes on top, once it has had to wait."""


class ServerConnection(Connection):
    """See the module's docstring. `run` is its whole life."""

    __slots__ = (
        "_fault", "_heavy", "_held", "_leaving", "_more", "_need_room", "_over", "_ready", "_running", "_turns",
        "counted", "draining", "held_back", "idle_since", "methods", "options", "outcomes",
    )  # fmt: skip

    def __init__(
        self,
        transport: Transport,
        methods: Mapping[bytes, Method],
        *,
        options: ServerOptions,
        outcomes: dict[int, int] | None = None,
        held: Held | None = None,
    ) -> None:
        super().__init__(transport, options.limits)
        self.options = options
        self.methods = methods
        self.outcomes: dict[int, int] = {} if outcomes is None else outcomes
        """Calls that have ended, by their status; the server's own table."""
        self.counted = 0
        self._held = held or Held(options.max_held)
        """What all connections of the server hold."""
        self._held.enter(self)
        self.idle_since = self.born
        self.draining = False
        self._leaving = False
        self._over = False
        """The peer has gone or is sent away: nobody is answered any more."""
        self._more = False
        """There may be more to read right away."""
        self._turns = turns_of_this_run()
        self._heavy = False
        """There was much to do when it was last read from."""
        self._ready: deque[ServerCall] = deque()
        self._running: dict[trio.CancelScope, ServerCall] = {}
        """Calls with tasks of their own."""
        self.held_back: dict[ServerCall, tuple[Outcome, Any]] = {}
        """Calls whose handlers are done and whose replies wait for room or credit: they need no task."""
        self._need_room: dict[ServerCall, None] = {}
        """Those of them that wait for room in the queue."""
        self._fault: ConnectionFault | None = None

    async def run(self) -> None:
        """Serves the client until it leaves, breaks the protocol, or `cancel_calls` and `drain` have had their way."""
        try:
            async with trio.open_nursery() as nursery:
                self.nursery = self.outbox.nursery = nursery
                self.h2.preface()
                self.outbox.flush()
                nursery.start_soon(self._lead)
            self.nursery = self.outbox.nursery = None
            if self._fault is not None:
                self._forget_calls()  # what they hold may be needed now, not when the client has been told
                if not self.lost:
                    await self.say_goodbye(self._fault.code, self._fault.reason)
            elif self.draining and not self.lost:
                await self.say_goodbye(ErrorCode.NO_ERROR, "bye")
        finally:
            self.close()

    def close(self) -> None:
        """See `Connection.close`."""
        self._forget_calls()
        self._held.leave(self)
        super().close()

    def _forget_calls(self) -> None:
        """No handler runs any more, and nobody is answered."""
        for stream in self.h2.streams.values():
            if isinstance(stream, ServerCall) and stream.outcome is None:
                self.on_call_over(_GONE)
        for table in (self._ready, self._running, self.held_back, self._need_room):
            table.clear()
        self.h2.end()
        self.inbox.close()

    # -- the leader ------------------------------------------------------------------------------------------------

    async def _lead(self) -> None:
        """Reads and runs handlers; when one of them waits, this task stays with it."""
        own: ServerCall | None = None
        with trio.CancelScope() as scope:
            try:
                own = await self._read_and_run(scope)
            except TransportLost:
                self.outbox.lose()
            except ConnectionFault as exc:
                self._fault = exc.with_traceback(None)  # which would keep this connection alive
                log.info("%s: %s", self.transport.peer, exc)
        own = self._running.pop(scope, own)
        if own is None:
            await self._end()
            return
        own.handler_done = True
        if own.winding_down:
            self.h2.winding_down -= 1
        elif scope.cancelled_caught and not self._over:
            own.close(own.cancel_reason or _DEADLINE)
            self.outbox.flush_soon()
        own.scope = None
        own.end_receiving()
        self.after_call()

    async def _end(self) -> None:
        """The peer has left, or has to: cancels the handlers, some at a time, since a thousand would be 20 ms."""
        self._over = True
        for number, scope in enumerate(list(self._running), start=1):
            scope.cancel()
            if not number % _CANCELLED_AT_ONCE:
                await trio.lowlevel.checkpoint()
        self._leave()

    def _leave(self) -> None:
        if self.nursery is not None:
            self.nursery.cancel_scope.cancel()

    def after_call(self) -> None:
        """A call is over: perhaps the connection, too."""
        if not self.h2.streams:
            self.idle_since = trio.current_time()  # what was read last may be long ago
            if self.draining and not self._leaving and self._is_done() and self.nursery is not None:
                self._leaving = True
                self.nursery.start_soon(self._leave_when_taken)

    def _is_done(self) -> bool:
        return not (self.h2.streams or self._running or self._ready)

    async def _leave_when_taken(self) -> None:
        """Leaves once the client has what it was answered: its line may be slow, and closing would cut that off.

        One that takes nothing for LINGER_S is not waited for.
        """
        least, since = 0, trio.current_time()
        while count := self.outbox.size + self.transport.on_its_way():
            now = trio.current_time()
            if count < least or not least:
                least, since = count, now
            elif now - since > LINGER_S:
                break
            await trio.sleep(_LOOK_S)
        self._leaving = False
        if self._is_done():
            self._leave()

    async def _read_and_run(self, scope: trio.CancelScope) -> ServerCall | None:
        ready, outbox, adopt, turns = self._ready, self.outbox, self._adopt, self._turns
        streams, held = self.h2.streams, self._held
        now = began = time.perf_counter()
        while True:
            outbox.corked = True
            while ready:
                call = ready.popleft()
                if call.reset_code is not None:
                    self.after_call()
                elif await step(self._serve(call), adopt, call, scope):
                    return call
                now = time.perf_counter()
                if now > turns.until and now - began > LITTLE_S:
                    break
            outbox.corked = False
            if outbox.queue:
                outbox.flush()
            if not (ready or self._more):
                self.rest()
            if (streams or outbox.size or self.counted) and held.count(self):
                held.look()
            if ready:
                await turns.wait()
                began = time.perf_counter()
                continue
            self._heavy = now - began > LITTLE_S
            if self._more:  # twice, so that whoever has been woken has consumed what there is
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
            else:
                await self.transport.wait_readable()
            began = time.perf_counter()
            if self._heavy and began > turns.until:
                await turns.wait()
                began = time.perf_counter()
            outbox.corked = True
            self._more = self.pump()
            if not ready:
                now = time.perf_counter()

    def _adopt(self, call: ServerCall, scope: trio.CancelScope) -> None:
        """Makes this task the call's own, which reads no more, and has another one read."""
        call.scope = scope
        self._running[scope] = call
        assert self.nursery is not None
        self.nursery.start_soon(self._lead)
        if call.expires is not None:
            scope.deadline = call.expires
        if call.outcome is not None:
            call.wind_down()
        if call.cancel_reason is not None or call.is_reset:
            scope.cancel()

    async def _serve(self, call: ServerCall) -> None:
        """Runs one handler and answers its call. Lets nothing out but what trio throws in."""
        try:
            if call.expires is not None and call.expires <= self.h2.now:
                call.close(_DEADLINE)
                return
            await call.definition.func(call)
            call.handler_done = True
            call.close(OK)
            if not self.outbox.corked:
                self.outbox.flush_soon()
        except Exception as exc:  # noqa: BLE001  # the place where a handler's errors become a status
            call.handler_done = True
            if call.reset_code is None:
                outcome = outcome_of(exc, method=call.method)
                if call.scope is not None and call.scope.cancel_called:
                    outcome = call.cancel_reason or _DEADLINE
                call.close(outcome)
                self.outbox.flush_soon()
        except BaseExceptionGroup as group:  # errors beside a cancellation: those stay here, the cancellation goes on
            errors, rest = group.split(Exception)
            if errors is not None:
                log.error("handler of %s failed while it was being cancelled", call.method, exc_info=errors)
            if rest is not None:
                raise rest from None
        finally:
            call.end_receiving()
            if call.pinned and call not in self.held_back:  # of a message that it has not finished
                call.pin(0)
            if call.kept:
                call.keep(0)
            if call.scope is None and not self.h2.streams:
                self.after_call()

    # -- requests --------------------------------------------------------------------------------------------------

    def on_request(self, sid: int, fields: list[Field], *, ended: bool) -> Stream | None:
        """A request: checked as HTTP, then as gRPC, and made a call."""
        head = read_head(fields)
        if head is None:
            return self._malformed(sid)
        if head[hpack.CONTENT_LENGTH] is None:
            return self._open(sid, fields, head, ended=ended)
        try:
            length = declared_length(head, ended=ended)
        except ValueError:
            return self._malformed(sid)
        stream = self._open(sid, fields, head, ended=ended)
        if stream is not None:
            stream.content_left = length
        return stream

    def _open(self, sid: int, fields: list[Field], head: Head, *, ended: bool) -> Stream | None:
        verb, content_type, path = head[hpack.METHOD], head[hpack.CONTENT_TYPE], head[hpack.PATH] or b""
        if verb != b"POST":
            text = f"this is gRPC: POST only{_HINT}"
            return self._plain_answer(sid, 405, text, head_only=verb == b"HEAD")
        if content_type not in _CONTENT_TYPES and not (content_type or b"").startswith(_CONTENT_TYPE_PREFIXES):
            text = f"content-type must be application/grpc{_HINT}"
            return self._plain_answer(sid, 415, text)
        method = self.methods.get(path)
        if method is None:
            text = f"unknown method {path.decode('latin-1')[:200]}"
            return self._refuse(sid, Outcome(Code.UNIMPLEMENTED, text), ended=ended)
        try:
            identity = EVERYONE if self.options.authenticate is None else self._identify(head)
            call = ServerCall(self, sid, method, fields, identity)
            if head[hpack.TIMEOUT] is not None:
                call.expires = self.h2.now + decode_timeout(head[hpack.TIMEOUT] or b"")
        except NlError as exc:
            return self._refuse(sid, Outcome(exc.code, exc.message), ended=ended)
        encoding = head[hpack.ENCODING]
        if encoding is not None and encoding != b"identity":
            call.encoding = encoding.decode("latin-1")
            if call.encoding not in self.options.accepted_compression:
                return self._refuse_encoding(sid, call.encoding, ended=ended)
        accepted = head[hpack.ACCEPT_ENCODING]
        if accepted is not None and self.options.send_compression:
            call.accepts_gzip = messages.GZIP.encode() in accepted.replace(b" ", b"").split(b",")
        self._ready.append(call)
        return call

    def _plain_answer(self, sid: int, status: int, text: str, *, head_only: bool = False) -> Stream:
        return PlainAnswer(self.h2, sid, status=status, text=text, head_only=head_only, on_over=self.after_call)

    def _identify(self, head: Head) -> Identity:
        """Who asks. UnauthenticatedError if that cannot be told."""
        transport = self.transport
        assert self.options.authenticate is not None
        return self.options.authenticate(transport.peer, transport.certificate, head[hpack.AUTHORIZATION])

    def on_oversized_request(self, sid: int, *, ended: bool) -> None:
        """The list is over the limit, but the tables are in step: only this request is lost."""
        limit = self.h2.limits.max_header_list_size
        self._refuse(sid, Outcome(Code.RESOURCE_EXHAUSTED, f"metadata is over {limit} bytes"), ended=ended)

    def _malformed(self, sid: int) -> Stream | None:
        self.h2.fault_stream(sid, ErrorCode.PROTOCOL_ERROR)
        return None

    def _refuse_encoding(self, sid: int, encoding: str, *, ended: bool) -> Stream | None:
        outcome = Outcome(Code.UNIMPLEMENTED, f"grpc-encoding {encoding[:100]} is not supported")
        accepted = ",".join((messages.IDENTITY, *self.options.accepted_compression)).encode()
        return self._refuse(sid, outcome, ended=ended, fields=hpack.encode([(b"grpc-accept-encoding", accepted)]))

    def _refuse(self, sid: int, outcome: Outcome, *, ended: bool, fields: bytes = b"") -> Stream | None:
        """Answers a request that does not become a call."""
        h2 = self.h2
        block = hpack.RESPONSE + fields + trailers(outcome, max_size=h2.peer_max_header_list)
        h2.emit(fr.header_frames(block, sid, end_stream=True, max_frame=h2.peer_max_frame))
        if not ended:
            h2.reset_stream(sid, ErrorCode.NO_ERROR)
        self.on_call_over(outcome)
        return None

    # -- replies -----------------------------------------------------------------------------------------------------

    def on_call_over(self, outcome: Outcome) -> None:
        """Told once of every call, however it has ended."""
        self.outcomes[outcome.code] = self.outcomes.get(outcome.code, 0) + 1

    def hold_back(self, call: ServerCall, outcome: Outcome, metadata: Any) -> None:
        """Keeps a call that cannot be closed yet, and closes it as soon as there is room and credit for its reply."""
        self.held_back[call] = (outcome, metadata)
        if call.blocked_since is None:
            call.blocked_since = trio.current_time()  # its handler may have run for long
        if self.outbox.size >= HIGH_WATER:
            self._need_room[call] = None
        else:
            self.h2.wait_for_credit(call)
        self.h2.wake_next()

    def send_held_back(self, call: ServerCall) -> None:
        """Tries again to close a call."""
        waiting = self.held_back.pop(call, None)
        if waiting is not None:
            call.close(waiting[0], metadata=waiting[1])
            self.outbox.flush_soon()
            self.after_call()

    def forget_held_back(self, call: ServerCall) -> None:
        """The call needs no answer any more, or gets another."""
        self.held_back.pop(call, None)
        self._need_room.pop(call, None)
        self.h2.stop_waiting(call)

    def on_room(self) -> None:
        """The queue has room for replies that were held back."""
        waiting = self._need_room
        while waiting and self.outbox.size < HIGH_WATER:
            call = next(iter(waiting))
            del waiting[call]
            self.send_held_back(call)

    # -- the end -----------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Lame duck: no new streams; the connection ends with its last call."""
        if self.draining or self.nursery is None:
            return
        self.draining = True
        self.h2.goaway(ErrorCode.NO_ERROR, "draining", last_sid=fr.MAX_STREAM_ID)
        self.outbox.add(fr.ping(_DRAIN_PING))
        self.outbox.flush()
        self.after_call()

    def on_ping_ack(self, payload: bytes) -> None:
        """The peer has seen what came before that PING."""
        super().on_ping_ack(payload)
        if payload == _DRAIN_PING and self.draining:
            self.h2.goaway(ErrorCode.NO_ERROR, "draining")
            self.after_call()

    def close_soon(self) -> None:
        """Ends the connection, for whatever reason, calls and all."""
        self._leave()

    def held_bytes(self) -> int:
        """See `Connection.held_bytes`; also what the calls themselves take."""
        return super().held_bytes() + CALL_COST * len(self.h2.streams) + TASK_COST * len(self._running)

    def on_pinned(self) -> None:
        """A handler holds more than before."""
        self._held.count(self)

    def give_up(self, reason: str) -> None:
        """Ends the connection because it costs too much; the client is told so if it reads what it gets."""
        if self._fault is None:
            log.warning("%s: %s", self.transport.peer, reason)
        self._fault = ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, reason)
        for call in list(self.held_back):  # the memory is needed now, not when the goodbye has been said
            self.forget_held_back(call)
            call.drop_reply()
        for stream in self.h2.streams.values():
            stream.discard()
        if self.outbox.size > _UNREAD:
            self.outbox.drop()
        self._leave()

    def cancel_calls(self, outcome: Outcome = _SHUTDOWN) -> None:
        """Stops every handler; the clients get `outcome`."""
        for call in [*self._running.values(), *self._ready]:
            call.cancel(outcome)
        for call in list(self.held_back):
            self._answer_instead(call, outcome)
        self.outbox.flush_soon()

    def _answer_instead(self, call: ServerCall, outcome: Outcome) -> None:
        """Another end for a call whose reply nobody takes."""
        self.forget_held_back(call)
        call.close(outcome)
        self.after_call()

    def sweep(self, now: float) -> None:
        """Called about once a second by the server."""
        self._held.count(self)
        options = self.options
        reason = self.check(
            now,
            interval=options.keepalive_interval,
            timeout=options.keepalive_timeout,
            stall=options.stall_timeout,
        )
        if reason is None and not self.h2.got_settings and now - self.born > options.handshake_timeout:
            reason = "no SETTINGS"
        if reason is not None:
            log.info("%s: %s", self.transport.peer, reason)
            self.outbox.lose()
            self._leave()
            return
        self._end_blocked_calls(now)
        if options.idle_timeout is not None and self.idle_time(now) > options.idle_timeout:
            self.drain()

    def idle_time(self, now: float) -> float:
        """Seconds without calls; 0 while there are some, and once it has been asked to leave."""
        is_idle = not (self.h2.streams or self._running or self.draining)
        return now - self.idle_since if is_idle else 0.0

    def _end_blocked_calls(self, now: float) -> None:
        longest = self.options.window_timeout
        for call in self._running.values():
            if call.blocked_since is not None and now - call.blocked_since > longest:
                call.cancel(_NO_WINDOW)
        for call in list(self.held_back):
            if call.expires is not None and call.expires <= now:
                self._answer_instead(call, _DEADLINE)
            elif call.blocked_since is not None and now - call.blocked_since > longest:
                self._answer_instead(call, _NO_WINDOW)
        self.outbox.flush_soon()

"""One HTTP/2 connection without its I/O: which frame is legal when, what it changes, what must be answered (RFC 9113).

Frames come in from `FrameReader` (reader.py); what they mean goes to the streams (`Stream.on_*`) and to one `Role`, the
server's or the client's; what must be sent is handed to `emit`. Sockets, tasks and time are the caller's.

Rules for this file:

* A broken connection raises ConnectionFault; a broken stream is reset here and its `on_reset` is called.
* Whatever a peer can make us do without paying for it is bounded: frames that move nothing and resets by budgets, held
  DATA by the windows, header lists by the decoder. What one frame costs never grows with the number of streams.
* What a frame means on a stream that is not there is said once: `status_of` and `_OUT_OF_PLACE`.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.flow import ReceiveWindow
from nl.rpc.frames import ConnectionFault, ErrorCode, Setting
from nl.rpc.h2.history import ResetHistory
from nl.rpc.h2.limits import (
    CONTROL_FRAMES_PER_MESSAGE,
    MAX_PREPAID_FRAMES,
    SETTINGS_PER_FRAME,
    WAKEUPS_PER_FRAME,
    Budget,
    Limits,
)
from nl.rpc.h2.stream import Stream
from nl.rpc.hpack import Field, HeaderDecoder, HeadersTooLarge

_MAX_GAPS = 16


class Role(Protocol):
    """Who stands behind a connection: what it is told beside what its streams are told."""

    def on_request(self, sid: int, fields: list[Field], *, ended: bool) -> Stream | None:
        """A client opens a stream: the object that takes what comes on it, or None if it has been answered."""

    def on_oversized_request(self, sid: int, *, ended: bool) -> None:
        """A client opens a stream with a header list over the limit; the header tables are in step all the same."""

    def on_settings(self) -> None:
        """The peer has changed its settings."""

    def on_ping_ack(self, payload: bytes) -> None:
        """The peer has seen what was sent before that PING."""

    def on_goaway(self, last_sid: int, code: int) -> None:
        """The peer will not look at streams above `last_sid`, and wants no more."""


class NoRole:
    """Does nothing at all. Stands in once a connection is over, so that nothing of it keeps its owner alive."""

    __slots__ = ()

    def on_request(self, sid: int, fields: list[Field], *, ended: bool) -> Stream | None:
        """Takes none."""
        return None

    def on_oversized_request(self, sid: int, *, ended: bool) -> None:
        """Answers nothing."""

    def on_settings(self) -> None:
        """Ignores it."""

    def on_ping_ack(self, payload: bytes) -> None:
        """Ignores it."""

    def on_goaway(self, last_sid: int, code: int) -> None:
        """Ignores it."""


class Status(enum.IntEnum):
    """What a stream is to us."""

    LIVE = 0
    IDLE = 1
    CLOSED = 2
    """Ended by both sides, or reset by the peer."""
    RESET_BY_US = 3
    """The peer may not know yet; once it has reset the stream, too, that is closed."""
    REFUSED = 4
    """Above the last stream that our GOAWAY promised to look at."""


class Action(NamedTuple):
    """What becomes of a frame on a stream that is not live."""

    connection_error: ErrorCode | None = None
    stream_error: ErrorCode | None = None
    costs: bool = False
    """Whether it counts as a frame that moves nothing."""


_IGNORE = Action()
_COUNT = Action(costs=True)
_IDLE = Action(connection_error=ErrorCode.PROTOCOL_ERROR)
_RESET = Action(stream_error=ErrorCode.STREAM_CLOSED)
_END = Action(connection_error=ErrorCode.STREAM_CLOSED)
_OUT_OF_PLACE: dict[int, dict[Status, Action]] = {
    fr.DATA: {Status.IDLE: _IDLE, Status.CLOSED: _RESET, Status.RESET_BY_US: _IGNORE, Status.REFUSED: _IGNORE},
    fr.HEADERS: {Status.IDLE: _IDLE, Status.CLOSED: _END, Status.RESET_BY_US: _COUNT, Status.REFUSED: _COUNT},
    fr.RST_STREAM: {Status.IDLE: _IDLE, Status.CLOSED: _COUNT, Status.RESET_BY_US: _IGNORE, Status.REFUSED: _COUNT},
    fr.WINDOW_UPDATE: {
        Status.IDLE: _IDLE, Status.CLOSED: _IGNORE, Status.RESET_BY_US: _IGNORE, Status.REFUSED: _IGNORE,
    },
}  # fmt: skip
"""RFC 9113, section 5.1. Late DATA is paid for with the connection's window; small WINDOW_UPDATEs have been counted."""


class H2Connection:
    """The connection's state. See the module's docstring."""

    __slots__ = (
        "_control", "_decoder", "_gaps", "_largest_delta", "_reset_by_us", "_starved", "_waking", "blocked",
        "client", "emit",
        "got_settings", "last_sid", "limits", "next_sid", "now", "peer_goaway", "peer_initial_window",
        "peer_max_frame", "peer_max_header_list", "peer_max_streams", "prepaid_frames", "recv_window", "refuse_above",
        "resets", "role", "send_window", "stream_window", "streams", "winding_down",
    )  # fmt: skip

    def __init__(self, limits: Limits, role: Role, *, emit: Callable[[bytes], None], client: bool = False) -> None:
        self.limits = limits
        self.role = role
        self.emit = emit
        self.client = client
        self.stream_window = max(limits.stream_window, fr.DEFAULT_WINDOW)
        self.now = 0.0
        self.streams: dict[int, Stream] = {}
        self.last_sid = 0
        """The highest stream that the peer has opened."""
        self.next_sid = 1
        """The next stream that a client opens."""
        self.refuse_above = fr.MAX_STREAM_ID
        """Streams above this one are ignored: we have said so in GOAWAY."""
        self.peer_goaway: int | None = None
        self.send_window = fr.DEFAULT_WINDOW
        self.recv_window = ReceiveWindow(max(limits.connection_window, fr.DEFAULT_WINDOW))
        self.peer_initial_window = fr.DEFAULT_WINDOW
        self.peer_max_frame = fr.MIN_FRAME_SIZE
        self.peer_max_streams = fr.MAX_STREAM_ID
        self.peer_max_header_list: int | None = None
        """What the peer takes as a message's header list, in the sense of RFC 9113, section 6.5.2; None: no limit."""
        self.got_settings = False
        self.prepaid_frames = 0
        """Frames that move nothing which the messages we have sent have paid for."""
        self.winding_down = 0
        """Streams that are gone while their handlers still run: they count as concurrent."""
        self._decoder = HeaderDecoder(max_list_size=limits.max_header_list_size)
        self._control = Budget(limits.control_burst, limits.control_per_s)
        self.resets = Budget(limits.reset_burst, limits.reset_per_s)
        self._gaps: deque[tuple[int, int]] | None = None
        """Streams below `last_sid` that the peer has skipped; clients never do."""
        self._reset_by_us = ResetHistory()
        self.blocked: dict[Stream, None] = {}
        """Streams that wait for the connection's window, the longest first."""
        self._starved: dict[Stream, None] = {}
        """Streams that wait for their own."""
        self._waking: bool | None = None
        """In `wake_next`: whether it was called again meanwhile."""
        self._largest_delta = 0
        """No live stream's `window_delta` is larger."""

    # -- what we send --------------------------------------------------------------------------------------------

    def preface(self) -> None:
        """What either side must send first."""
        limits = self.limits
        values = {
            Setting.INITIAL_WINDOW_SIZE: self.stream_window,
            Setting.MAX_FRAME_SIZE: limits.max_frame_size,
            Setting.MAX_HEADER_LIST_SIZE: limits.max_header_list_size,
        }
        if self.client:
            self.emit(fr.PREFACE)
            values[Setting.ENABLE_PUSH] = 0
        else:
            values[Setting.MAX_CONCURRENT_STREAMS] = limits.max_concurrent_streams
        self.emit(fr.settings(values))
        if limits.connection_window > fr.DEFAULT_WINDOW:
            self.emit(fr.window_update(0, limits.connection_window - fr.DEFAULT_WINDOW))

    def take_sid(self) -> int:
        """The number of a new stream of a client's."""
        sid = self.next_sid
        self.next_sid += 2
        return sid

    def reset_stream(self, sid: int, code: int) -> None:
        """Sends RST_STREAM and forgets the stream; what the peer still sends on it is ignored."""
        self.emit(fr.rst_stream(sid, code))
        self._reset_by_us.add(sid)
        stream = self.streams.get(sid)
        if stream is not None:
            self._abort(stream, code)

    def goaway(self, code: ErrorCode, reason: str = "", *, last_sid: int | None = None) -> None:
        """Announces the end, and by default that no further stream is looked at. What was promised never grows."""
        self.refuse_above = min(self.refuse_above, self.last_sid if last_sid is None else last_sid)
        self.emit(fr.goaway(self.refuse_above, code, reason))

    def call_answered(self) -> None:
        """A call has had its answer: it pays for the PINGs around it, and for a reset."""
        self.prepaid_frames += CONTROL_FRAMES_PER_MESSAGE
        resets = self.resets
        if resets.left < resets.burst:
            resets.refund()

    def close_if_done(self, stream: Stream) -> None:
        """Forgets a stream that both sides have ended."""
        if stream.recv_closed and stream.send_closed:
            self.streams.pop(stream.sid, None)

    def give_back(self, count: int) -> None:
        """Returns credit of the connection's window."""
        increment = self.recv_window.give_back(count)
        if increment:
            self.emit(fr.window_update(0, increment))

    def fault_stream(self, sid: int, code: ErrorCode) -> None:
        """A fault of the peer's that costs it one stream."""
        self.spend_control()
        stream = self.streams.get(sid)
        self.reset_stream(sid, code)
        if stream is not None:
            stream.on_reset(code)

    def spend_control(self, cost: int = 1) -> None:
        """The peer has sent a frame that moves nothing, or something that costs as much."""
        if self.prepaid_frames >= cost:
            self.prepaid_frames = min(self.prepaid_frames, MAX_PREPAID_FRAMES) - cost
        elif not self._control.spend(self.now, cost):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that move nothing")

    def end(self) -> None:
        """The connection is over: nothing here refers to its owner, its streams and their data any more."""
        for stream in self.streams.values():
            for view, owner in stream.chunks:
                if owner is not None:
                    owner.release(len(view))
            stream.chunks.clear()
        for table in (self.streams, self.blocked, self._starved):
            table.clear()
        self.role = NoRole()

    def _abort(self, stream: Stream, code: int) -> None:
        """Forgets a stream that RST_STREAM, either side's, has ended."""
        del self.streams[stream.sid]
        self.stop_waiting(stream)
        stream.reset_code = code
        answered = self.client and stream.recv_closed  # a reset after the response takes nothing of it back
        stream.recv_closed = stream.send_closed = True
        if not answered:
            stream.discard()

    # -- waiting for credit --------------------------------------------------------------------------------------

    def wait_for_credit(self, stream: Stream) -> None:
        """Has `stream.on_window` called, once, when it may be worth to look at `send_credit` again.

        Credit of the connection's window goes to those who wait for it in their order: whoever is called and leaves
        some of it, or gives up, calls `wake_next`.
        """
        if stream.send_window <= 0:
            self._starved[stream] = None
        else:
            self.blocked[stream] = None

    def stop_waiting(self, stream: Stream) -> None:
        """Takes `wait_for_credit` back."""
        self._starved.pop(stream, None)
        self.blocked.pop(stream, None)

    def wake_next(self) -> None:
        """Has the stream that has waited longest for the connection's window look at it, if there is credit.

        One that calls this at once, since it needs no more, is followed by the next: by this loop, not by recursion.
        """
        if self._waking is not None:
            self._waking = True
            return
        while self.blocked and self.send_window > 0:
            stream = next(iter(self.blocked))
            del self.blocked[stream]
            self._waking = False
            try:
                stream.on_window()
                done = not self._waking
            finally:
                self._waking = None
            if done:
                return

    # -- what a frame means where ----------------------------------------------------------------------------------

    def status_of(self, sid: int) -> Status:
        """What stream `sid` is to us now."""
        if sid in self.streams:
            return Status.LIVE
        if sid > self.refuse_above:
            return Status.REFUSED
        if sid in self._reset_by_us and sid & 1:
            return Status.RESET_BY_US
        if self.client:
            return Status.CLOSED if sid & 1 and sid < self.next_sid else Status.IDLE
        skipped = self._gaps is not None and any(low <= sid <= high for low, high in self._gaps)
        return Status.IDLE if sid > self.last_sid or skipped or not sid & 1 else Status.CLOSED

    def _out_of_place(self, kind: int, sid: int) -> None:
        """A frame for a stream that is not live."""
        status = self.status_of(sid)
        action = _OUT_OF_PLACE[kind][status]
        if action.connection_error is not None:
            raise ConnectionFault(action.connection_error, f"frame of type {kind} on {status.name} stream {sid}")
        if action.stream_error is not None:
            self.fault_stream(sid, action.stream_error)
        elif action.costs:
            self.spend_control()

    # -- DATA ------------------------------------------------------------------------------------------------------

    def on_data_frame(self, sid: int, flags: int, length: int, *, overhead: int) -> Stream | None:
        """Accounts for a DATA frame of `length` bytes of which `overhead` are padding, before its payload is here.

        The stream that takes the payload, or None: then the reader drops it and gives the credit back as it passes.
        """
        stream = self.streams.get(sid)
        connection = self.recv_window
        if stream is not None and not overhead and length and stream.content_left is None and not stream.recv_closed:
            window = stream.recv_window
            if length <= window.left and length <= connection.left:  # nearly always
                connection.left -= length
                window.left -= length
                return stream
        return self._unusual_data(stream, sid, length, overhead=overhead, ended=bool(flags & fr.END_STREAM))

    def _unusual_data(
        self, stream: Stream | None, sid: int, length: int, *, overhead: int, ended: bool
    ) -> Stream | None:
        payload = length - overhead
        if not payload and not ended:
            self.spend_control()
        if length > self.recv_window.left:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
        if stream is None:
            self.recv_window.left -= length
            self.give_back(overhead)
            self._out_of_place(fr.DATA, sid)
            return None
        fault = _fault_of_data(stream, length=length, payload=payload, ended=ended)
        self.recv_window.left -= length
        if overhead:
            self.give_back(overhead)
        if fault is not None:
            self.fault_stream(sid, fault)
            return None
        window = stream.recv_window
        window.left -= length
        if overhead:
            increment = window.give_back(overhead)
            if increment and not ended:
                self.emit(fr.window_update(sid, increment))
        if stream.content_left is not None:
            stream.content_left -= payload
        return stream

    # -- one method per frame type ---------------------------------------------------------------------------------

    def on_frame(self, kind: int, sid: int, flags: int, payload: bytes) -> None:
        """A whole frame that is neither DATA nor a part of a header block."""
        _HANDLERS[kind](self, sid, flags, payload)

    def on_header_block(self, sid: int, flags: int, block: bytes, *, depends_on_itself: bool) -> None:
        """A complete block. It is decoded whatever becomes of it, or the tables would go out of step."""
        ended = bool(flags & fr.END_STREAM)
        fields: list[Field] | None
        try:
            fields = self._decoder.decode(block)
        except HeadersTooLarge:
            fields = None
        stream = self.streams.get(sid)
        if stream is not None:
            self._more_headers(stream, None if depends_on_itself else fields, ended=ended)
        elif sid > self.last_sid and sid & 1 and not self.client:
            self._new_request(sid, fields, ended=ended, depends_on_itself=depends_on_itself)
        else:
            self._out_of_place(fr.HEADERS, sid)

    def _new_request(self, sid: int, fields: list[Field] | None, *, ended: bool, depends_on_itself: bool) -> None:
        if sid > self.last_sid + 2:
            if self._gaps is None:
                self._gaps = deque(maxlen=_MAX_GAPS)
            self._gaps.append((self.last_sid + 1, sid - 1))
        self.last_sid = sid
        if sid > self.refuse_above:
            self._out_of_place(fr.HEADERS, sid)
        elif depends_on_itself:
            self.fault_stream(sid, ErrorCode.PROTOCOL_ERROR)
        elif fields is None:
            self.role.on_oversized_request(sid, ended=ended)
        elif len(self.streams) + self.winding_down >= self.limits.max_concurrent_streams:
            self.reset_stream(sid, ErrorCode.REFUSED_STREAM)  # costs less than to answer it
        elif (stream := self.role.on_request(sid, fields, ended=ended)) is not None:
            self.streams[sid] = stream
            if ended:
                stream.recv_closed = True
                stream.on_data()

    def _more_headers(self, stream: Stream, fields: list[Field] | None, *, ended: bool) -> None:
        """Trailers, or a client's response headers."""
        if stream.recv_closed:
            self.fault_stream(stream.sid, ErrorCode.STREAM_CLOSED)
            return
        malformed = fields is None or any(
            kind == hpack.BAD or (kind <= hpack.LAST_PSEUDO and kind and (not self.client or kind != hpack.STATUS))
            for _, _, kind, _ in fields
        )
        if malformed or not (ended or self.client) or (ended and stream.content_left):
            self.fault_stream(stream.sid, ErrorCode.PROTOCOL_ERROR)
            return
        stream.recv_closed = ended
        stream.on_headers(fields or [])
        if ended:
            stream.on_data()
            self.close_if_done(stream)

    def _priority(self, sid: int, flags: int, payload: bytes) -> None:
        if not sid:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self.spend_control()
        if len(payload) != 5:
            code = ErrorCode.FRAME_SIZE_ERROR
        elif fr.U32.unpack_from(payload)[0] & fr.MAX_STREAM_ID == sid:
            code = ErrorCode.PROTOCOL_ERROR
        else:
            return
        if sid not in self.streams:  # RST_STREAM must not be sent on an idle stream
            raise ConnectionFault(code, "bad PRIORITY")
        self.fault_stream(sid, code)

    def _rst_stream(self, sid: int, flags: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM length")
        stream = self.streams.get(sid)
        if stream is None:
            self._out_of_place(fr.RST_STREAM, sid)
            self._reset_by_us.discard(sid)
            return
        # What has been answered in part has cost the peer as much as an answered call; clients may give it up.
        if not self.client and not stream.headers_sent and not self.resets.spend(self.now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many resets")
        code = fr.U32.unpack(payload)[0]
        self._abort(stream, code)
        stream.on_reset(code)

    def _settings(self, sid: int, flags: int, payload: bytes) -> None:
        if sid:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS on stream {sid}")
        self.spend_control()
        if flags & fr.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            return
        if len(payload) > SETTINGS_PER_FRAME * fr.SETTING.size:
            self.spend_control(len(payload) // (SETTINGS_PER_FRAME * fr.SETTING.size))
        entries = fr.parse_settings(payload)
        self.emit(fr.SETTINGS_ACK)  # before any DATA that new windows allow
        for key, value in dict(entries).items():  # the last of each counts
            if key == Setting.INITIAL_WINDOW_SIZE:
                self._change_initial_window(value)
            elif key == Setting.MAX_FRAME_SIZE:
                self.peer_max_frame = value
            elif key == Setting.MAX_CONCURRENT_STREAMS:
                self.peer_max_streams = value
            elif key == Setting.MAX_HEADER_LIST_SIZE:
                self.peer_max_header_list = value
        self.got_settings = True
        self.role.on_settings()

    def _change_initial_window(self, size: int) -> None:
        grown = size > self.peer_initial_window
        self.peer_initial_window = size
        if size + self._largest_delta > fr.MAX_WINDOW:
            self._largest_delta = max((stream.window_delta for stream in self.streams.values()), default=0)
            if size + self._largest_delta > fr.MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE overflows a window")
        if grown and self._starved:
            served = [stream for stream in self._starved if stream.send_window > 0]
            self.spend_control(len(self._starved) // WAKEUPS_PER_FRAME)
            for stream in served:
                self._starved.pop(stream, None)
                stream.on_window()

    def _push_promise(self, sid: int, flags: int, payload: bytes) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE")

    def _ping(self, sid: int, flags: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING length")
        if sid:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"PING on stream {sid}")
        self.spend_control()
        if flags & fr.ACK:
            self.role.on_ping_ack(payload)
        else:
            self.emit(fr.ping(payload, ack=True))

    def _goaway(self, sid: int, flags: int, payload: bytes) -> None:
        if sid:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"GOAWAY on stream {sid}")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY length")
        self.spend_control()
        last_sid = fr.U32.unpack_from(payload)[0] & fr.MAX_STREAM_ID
        self.peer_goaway = last_sid
        self.role.on_goaway(last_sid, fr.U32.unpack_from(payload, 4)[0])

    def _window_update(self, sid: int, flags: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE length")
        increment = fr.U32.unpack(payload)[0] & fr.MAX_WINDOW
        if increment < 256:
            self.spend_control()
        if not sid:
            if not increment:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self.send_window += increment
            if self.send_window > fr.MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window overflows")
            self.wake_next()
            return
        stream = self.streams.get(sid)
        if stream is None:
            self._out_of_place(fr.WINDOW_UPDATE, sid)
            return
        stream.window_delta += increment
        if not increment:
            self.fault_stream(sid, ErrorCode.PROTOCOL_ERROR)
        elif stream.send_window > fr.MAX_WINDOW:
            self.fault_stream(sid, ErrorCode.FLOW_CONTROL_ERROR)
        else:
            self._largest_delta = max(self._largest_delta, stream.window_delta)
            if stream in self._starved and stream.send_window > 0:
                del self._starved[stream]
                stream.on_window()


def _fault_of_data(stream: Stream, *, length: int, payload: int, ended: bool) -> ErrorCode | None:
    """What is wrong with a DATA frame of a live stream, apart from the connection's window."""
    if stream.recv_closed:
        return ErrorCode.STREAM_CLOSED
    if length > max(stream.recv_window.left, 0):  # an empty one needs no window (RFC 9113, section 6.9.1)
        return ErrorCode.FLOW_CONTROL_ERROR
    content = stream.content_left
    if content is not None and (payload > content or (ended and payload != content)):
        return ErrorCode.PROTOCOL_ERROR
    return None


_HANDLERS = {
    fr.PRIORITY: H2Connection._priority,
    fr.RST_STREAM: H2Connection._rst_stream,
    fr.SETTINGS: H2Connection._settings,
    fr.PUSH_PROMISE: H2Connection._push_promise,
    fr.PING: H2Connection._ping,
    fr.GOAWAY: H2Connection._goaway,
    fr.WINDOW_UPDATE: H2Connection._window_update,
}

"""One HTTP/2 connection without its I/O: which frame is legal when, what it changes, what must be answered (RFC 9113).

Bytes go in through `receive`; what they mean comes out as calls of the hooks (`open_stream`, `Stream.on_*`,
`on_*`), and what must be sent is appended to `out`. The shell around it (connection.py) owns sockets, tasks and
time. Either role: the server opens streams when requests arrive, the client when it sends them.

Rules for this file:

* A broken connection raises ConnectionFault; a broken stream is reset here and its `on_reset` is called.
* Whatever a peer can make us do without paying for it is bounded: header blocks by `max_block`, idle chatter and
  resets by `Budget`, held DATA by the windows (small pieces are merged, so that overhead is bounded, too).
* A DATA payload is handed on as views of the receive buffer, also in pieces when a frame has arrived in part; `owner`
  counts the bytes that are still referred to.

Longer than a module should be, and in one piece all the same: what one frame type may do depends on what every other
has done to the same state, and that is easier to check where all of it is in sight.
"""

from __future__ import annotations

from collections import deque

from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.flow import ReceiveWindow
from nl.rpc.frames import ConnectionFault, ErrorCode, Setting
from nl.rpc.h2.limits import MAX_GOODWILL, Budget, Limits
from nl.rpc.h2.stream import Owner, Stream
from nl.rpc.hpack import Field, HeaderDecoder, HeadersTooLarge

_RUN_FROM = 4096
"""Frames of this size or more are looked at for more of the same behind them."""
_REMEMBERED_RESETS = 256


class H2Connection:
    """The connection. See the module's docstring."""

    client = False

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.stream_window = max(limits.stream_window, fr.DEFAULT_WINDOW)
        self.now = 0.0
        self.out: list[bytes | memoryview] = []
        self.out_bytes = 0
        self.streams: dict[int, Stream] = {}
        self.last_sid = 0
        """The highest stream that the peer has opened."""
        self.refuse_above = fr.MAX_STREAM_ID
        """Streams above this one are ignored: we have said so in GOAWAY."""
        self.peer_goaway: int | None = None
        self.send_window = fr.DEFAULT_WINDOW
        self.recv_window = ReceiveWindow(max(limits.connection_window, fr.DEFAULT_WINDOW))
        self.peer_initial_window = fr.DEFAULT_WINDOW
        self.peer_max_frame = fr.MIN_FRAME_SIZE
        self.peer_max_streams = fr.MAX_STREAM_ID
        self.got_settings = False
        self.goodwill = 0
        self.sent_since_ping = True
        """DATA or HEADERS have been sent since the peer's last PING."""
        self.zombies = 0
        """Streams that are gone while their handlers are still winding down: they count as concurrent."""
        self._decoder = HeaderDecoder(max_list_size=limits.max_header_list_size)
        self._chatter = Budget(limits.chatter_burst, limits.chatter_per_s)
        self.resets = Budget(limits.reset_burst, limits.reset_per_s)
        self._max_block = 2 * limits.max_header_list_size
        self._block = b""
        self._block_sid = 0
        self._block_flags = 0
        self._block_frames = 0
        self._data_stream: Stream | None = None
        self._data_left = 0
        self._data_end = False
        self._skip = 0
        self._gaps: deque[tuple[int, int]] = deque(maxlen=16)
        self._reset_by_us: dict[int, None] = {}

    # -- hooks ---------------------------------------------------------------------------------------------------

    def open_stream(self, sid: int, fields: list[Field], *, ended: bool) -> Stream | None:
        """Server: a request has arrived. The stream to register, or None if it has been answered."""
        raise NotImplementedError

    def headers_too_large(self, sid: int, *, ended: bool) -> None:
        """Server: a request whose header list is over the limit."""
        self.reset_stream(sid, ErrorCode.ENHANCE_YOUR_CALM)

    def on_window(self) -> None:
        """The connection's `send_window` has grown."""

    def on_ping_ack(self, payload: bytes) -> None:
        """The peer has answered a PING."""

    def on_goaway(self, last_sid: int, code: int) -> None:
        """The peer takes no streams above `last_sid`."""

    def on_settings(self) -> None:
        """The peer's settings have changed."""

    def on_closed(self, stream: Stream) -> None:
        """A stream has left `streams`."""

    # -- sending -------------------------------------------------------------------------------------------------

    def emit(self, data: bytes | memoryview) -> None:
        """Queues bytes to be sent with the next flush."""
        self.out.append(data)
        self.out_bytes += len(data)

    def preface(self) -> None:
        """Queues what this side sends first."""
        limits = self.limits
        values = {
            Setting.INITIAL_WINDOW_SIZE: limits.stream_window,
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

    def reset_stream(self, sid: int, code: int) -> None:
        """Sends RST_STREAM and forgets the stream; what the peer still sends on it is ignored."""
        self.emit(fr.rst_stream(sid, code))
        remembered = self._reset_by_us
        remembered[sid] = None
        if len(remembered) > _REMEMBERED_RESETS:
            del remembered[next(iter(remembered))]
        stream = self.streams.pop(sid, None)
        if stream is not None:
            self._end(stream, code)

    def _end(self, stream: Stream, code: int) -> None:
        stream.reset_code = code
        answered = self.client and stream.recv_closed  # a reset after the response takes nothing of it back
        stream.recv_closed = stream.send_closed = True
        if not answered:
            stream.discard()
        if stream is self._data_stream:
            self._data_stream = None
        self.on_closed(stream)

    def close_if_done(self, stream: Stream) -> None:
        """Forgets a stream that both sides have ended."""
        if stream.recv_closed and stream.send_closed and self.streams.pop(stream.sid, None) is not None:
            self.on_closed(stream)

    def give_back(self, count: int) -> None:
        """Returns credit of the connection's window."""
        increment = self.recv_window.give_back(count)
        if increment:
            self.emit(fr.window_update(0, increment))

    def _stream_fault(self, sid: int, code: ErrorCode) -> None:
        """A fault of the peer's that costs it one stream."""
        self._spend_chatter()
        stream = self.streams.get(sid)
        self.reset_stream(sid, code)
        if stream is not None:
            stream.on_reset(code)

    def _spend_chatter(self) -> None:
        if self.goodwill > 0:  # peers ping and open windows by a few bytes after each message: that is no chatter
            self.goodwill = min(self.goodwill, MAX_GOODWILL) - 1
            return
        if not self._chatter.spend(self.now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that move nothing")

    # -- receiving -----------------------------------------------------------------------------------------------

    def receive(self, view: memoryview, *, start: int, end: int, owner: Owner | None = None) -> int:
        """Takes view[start:end]; where parsing stopped: the caller presents the rest again, with more behind it."""
        pos = start
        unpack = fr.HEADER.unpack_from
        max_frame = self.limits.max_frame_size
        streams = self.streams
        while True:
            if self._data_left or self._skip:
                pos = self._continue_payload(view, pos, end, owner)
                if pos == end:
                    return pos
            if end - pos < fr.HEADER_SIZE:
                return pos
            high, low, kind, flags, sid = unpack(view, pos)
            length = high << 8 | low
            sid &= fr.MAX_STREAM_ID
            if length > max_frame:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"frame of {length} bytes")
            if self._block_sid and (kind != fr.CONTINUATION or sid != self._block_sid):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "header block interrupted")
            if not self.got_settings and (kind != fr.SETTINGS or flags & fr.ACK):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "first frame is not SETTINGS")
            body = pos + fr.HEADER_SIZE
            stop = body + length
            if kind == fr.DATA:
                stream = streams.get(sid)
                if stop <= end and length and stream is not None and not stream.recv_closed and not flags & fr.PADDED:
                    content = stream.content_left
                    if content is not None:
                        content -= length
                    connection_left = self.recv_window.left - length
                    stream_left = stream.recv_window.left - length
                    ended = flags & fr.END_STREAM
                    declared = content is None or (content >= 0 and not (ended and content))
                    if connection_left >= 0 <= stream_left and declared:
                        # by far the most frequent frame, taken whole
                        first, pos = pos, stop
                        self.recv_window.left = connection_left
                        stream.recv_window.left = stream_left
                        stream.content_left = content
                        if ended:
                            stream.recv_closed = True
                        stream.add(view[body:stop], owner)
                        if not ended and length >= _RUN_FROM and end - stop > length and content is None:
                            pos = self._run(stream, view, first=first, stop=stop, end=end, owner=owner)
                        stream.on_data()
                        if ended and stream.send_closed:
                            self.close_if_done(stream)
                        continue
                if flags & fr.PADDED and length and body >= end:
                    return pos
                pos = body
                if flags & fr.PADDED:
                    pos += min(length, 1)
                self._begin_data(sid, flags, length, padding=view[body] if flags & fr.PADDED and length else 0)
                continue
            if kind > fr.CONTINUATION:
                self._spend_chatter()
                self._skip = length
                pos = body
                continue
            if length > self._max_block:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"frame of type {kind} with {length} bytes")
            if stop > end:
                return pos
            pos = stop
            _HANDLERS[kind](self, sid, flags, bytes(view[body:stop]))

    def _run(
        self, stream: Stream, view: memoryview, *, first: int, stop: int, end: int, owner: Owner | None
    ) -> int:
        """Takes the frames with the very header of the one at `first`, as far as credit goes; where parsing stopped.

        Large messages come as dozens of such frames in a row. What fits is the same as for one, so is what is checked.
        """
        unpack = fr.HEADER.unpack_from
        header = unpack(view, first)
        step = stop - first
        length = step - fr.HEADER_SIZE
        credit = min(self.recv_window.left, stream.recv_window.left) // length
        last = min(stop + credit * step, end) - step
        append = stream.chunks.append
        pos = stop
        while pos <= last and unpack(view, pos) == header:
            append((view[pos + fr.HEADER_SIZE : pos + step], owner))
            pos += step
        total = (pos - stop) // step * length
        self.recv_window.left -= total
        stream.recv_window.left -= total
        stream.held += total
        if owner is not None:
            owner.held += total
        return pos

    def _continue_payload(self, view: memoryview, pos: int, end: int, owner: Owner | None) -> int:
        """The next piece of a payload that is taken as it comes: DATA, padding, unknown frames."""
        if self._data_left:
            count = min(self._data_left, end - pos)
            if count:
                self._data_left -= count
                stream = self._data_stream
                if stream is None:
                    self.give_back(count)
                else:
                    stream.add(view[pos : pos + count], owner)
                    if not self._data_left and self._data_end:
                        stream.recv_closed = True
                    stream.on_data()
                    self.close_if_done(stream)
            return pos + count
        count = min(self._skip, end - pos)
        self._skip -= count
        return pos + count

    def _take_credit(self, stream: Stream, length: int) -> bool:
        if not self.recv_window.take(length):
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
        if stream.recv_window.take(length):
            return True
        self._stream_fault(stream.sid, ErrorCode.FLOW_CONTROL_ERROR)
        self.give_back(length)
        return False

    def _begin_data(self, sid: int, flags: int, length: int, *, padding: int) -> None:
        """A DATA frame that needs more care: in pieces, padded, empty, with content-length, or out of place."""
        if not sid:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        stream = self.streams.get(sid)
        overhead = 0
        if flags & fr.PADDED:
            if padding >= length:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding exceeds the frame")
            overhead = padding + 1
        payload = length - overhead
        ended = bool(flags & fr.END_STREAM)
        if not payload and not ended:
            self._spend_chatter()
        self._data_left, self._skip, self._data_end = payload, padding, ended
        self._data_stream = None
        if stream is None or stream.recv_closed:
            if not self.recv_window.take(length):
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
            self.give_back(overhead)
            self._data_out_of_place(sid, stream)
            return
        if not self._take_credit(stream, length):
            self.recv_window.take(length)  # given back twice otherwise: payload as it passes, the rest here
            self.give_back(overhead)
            return
        if overhead:
            self.give_back(overhead)
            increment = stream.recv_window.give_back(overhead)
            if increment and not ended:
                self.emit(fr.window_update(sid, increment))
        if stream.content_left is not None:
            stream.content_left -= payload
            if stream.content_left < 0 or (ended and stream.content_left):
                self._stream_fault(sid, ErrorCode.PROTOCOL_ERROR)
                return
        self._data_stream = stream
        if ended and not payload:
            self._data_stream = None
            stream.recv_closed = True
            stream.on_data()
            self.close_if_done(stream)

    def _is_idle(self, sid: int) -> bool:
        return sid not in self.streams and (sid > self.last_sid or self._in_gap(sid)) and not self._opened_by_us(sid)

    def _opened_by_us(self, sid: int) -> bool:
        return False

    def _in_gap(self, sid: int) -> bool:
        return any(low <= sid <= high for low, high in self._gaps)

    def _data_out_of_place(self, sid: int, stream: Stream | None) -> None:
        if stream is not None:
            self._stream_fault(sid, ErrorCode.STREAM_CLOSED)
        elif sid > self.refuse_above or sid in self._reset_by_us:
            return
        elif self._is_idle(sid):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"DATA on idle stream {sid}")
        else:
            self._stream_fault(sid, ErrorCode.STREAM_CLOSED)

    # -- one method per frame type ---------------------------------------------------------------------------------

    def _headers(self, sid: int, flags: int, payload: bytes) -> None:
        if not sid:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        first, last = 0, len(payload)
        if flags & fr.PADDED:
            if not payload or payload[0] >= last:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding exceeds the frame")
            first, last = 1, last - payload[0]
        depends_on_itself = False
        if flags & fr.HAS_PRIORITY:
            if last - first < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            depends_on_itself = fr.U32.unpack_from(payload, first)[0] & fr.MAX_STREAM_ID == sid
            first += 5
        block = payload[first:last] if first or last != len(payload) else payload
        if flags & fr.END_HEADERS:
            self._header_block(sid, flags, block, spoilt=depends_on_itself)
        else:
            self._block_sid, self._block, self._block_frames = sid, block, 1
            self._block_flags = flags | (0x100 if depends_on_itself else 0)

    def _continuation(self, sid: int, flags: int, payload: bytes) -> None:
        if not self._block_sid:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block += payload
        self._block_frames += 1
        if len(self._block) > self._max_block or self._block_frames > 64:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
        if flags & fr.END_HEADERS:
            block, self._block, self._block_sid = self._block, b"", 0
            self._header_block(sid, self._block_flags & 0xFF, block, spoilt=self._block_flags > 0xFF)

    def _header_block(self, sid: int, flags: int, block: bytes, *, spoilt: bool) -> None:
        """A complete block. It is decoded whatever becomes of it, or the tables would go out of step."""
        ended = bool(flags & fr.END_STREAM)
        fields: list[Field] | None
        try:
            fields = self._decoder.decode(block)
        except HeadersTooLarge:
            fields = None
        stream = self.streams.get(sid)
        if stream is not None:
            self._more_headers(stream, None if spoilt else fields, ended=ended)
        elif self.client:
            if not self._opened_by_us(sid):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"HEADERS on idle stream {sid}")
        elif sid > self.last_sid:
            self._new_request(sid, fields, ended=ended, spoilt=spoilt)
        elif sid in self._reset_by_us or sid > self.refuse_above:
            self._spend_chatter()
        elif self._in_gap(sid):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"stream {sid} opened after {self.last_sid}")
        else:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"HEADERS on closed stream {sid}")

    def _new_request(self, sid: int, fields: list[Field] | None, *, ended: bool, spoilt: bool) -> None:
        if not sid & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a client opened stream {sid}")
        if sid > self.last_sid + 2:
            self._gaps.append((self.last_sid + 1, sid - 1))
        self.last_sid = sid
        if sid > self.refuse_above:
            return
        if spoilt:
            self._stream_fault(sid, ErrorCode.PROTOCOL_ERROR)
        elif fields is None:
            self.headers_too_large(sid, ended=ended)
        elif len(self.streams) + self.zombies >= self.limits.max_concurrent_streams:
            self._refuse(sid)
        elif (stream := self.open_stream(sid, fields, ended=ended)) is not None:
            self.streams[sid] = stream
            if ended:
                stream.recv_closed = True
                stream.on_data()

    def _refuse(self, sid: int) -> None:
        if not self.resets.spend(self.now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many streams")
        self.reset_stream(sid, ErrorCode.REFUSED_STREAM)

    def _more_headers(self, stream: Stream, fields: list[Field] | None, *, ended: bool) -> None:
        """Trailers, or a client's response headers."""
        if stream.recv_closed:
            self._stream_fault(stream.sid, ErrorCode.STREAM_CLOSED)
            return
        malformed = fields is None or any(
            kind == hpack.BAD or (kind <= hpack.LAST_PSEUDO and kind and (not self.client or kind != hpack.STATUS))
            for _, _, kind, _ in fields
        )
        if malformed or not (ended or self.client) or (ended and stream.content_left):
            self._stream_fault(stream.sid, ErrorCode.PROTOCOL_ERROR)
            return
        stream.recv_closed = ended
        stream.on_headers(fields or [])
        if ended:
            stream.on_data()
            self.close_if_done(stream)

    def _priority(self, sid: int, flags: int, payload: bytes) -> None:
        if not sid:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self._spend_chatter()
        if len(payload) != 5:
            code = ErrorCode.FRAME_SIZE_ERROR
        elif fr.U32.unpack_from(payload)[0] & fr.MAX_STREAM_ID == sid:
            code = ErrorCode.PROTOCOL_ERROR
        else:
            return
        if sid not in self.streams:  # RST_STREAM must not be sent on an idle stream
            raise ConnectionFault(code, "bad PRIORITY")
        self._stream_fault(sid, code)

    def _rst_stream(self, sid: int, flags: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM length")
        if not sid or self._is_idle(sid):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM on idle stream {sid}")
        stream = self.streams.pop(sid, None)
        if stream is None:
            self._spend_chatter()
            return
        if not self.client and not self.resets.spend(self.now):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many resets")
        code = fr.U32.unpack(payload)[0]
        self._end(stream, code)
        stream.on_reset(code)

    def _settings(self, sid: int, flags: int, payload: bytes) -> None:
        if sid:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS on stream {sid}")
        self._spend_chatter()
        if flags & fr.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            return
        changes = fr.parse_settings(payload)
        self.emit(fr.SETTINGS_ACK)  # before any DATA that new windows allow
        for key, value in changes:
            if key == Setting.INITIAL_WINDOW_SIZE:
                self._change_initial_window(value)
            elif key == Setting.MAX_FRAME_SIZE:
                self.peer_max_frame = value
            elif key == Setting.MAX_CONCURRENT_STREAMS:
                self.peer_max_streams = value
        self.got_settings = True
        self.on_settings()

    def _change_initial_window(self, size: int) -> None:
        change = size - self.peer_initial_window
        self.peer_initial_window = size
        for stream in list(self.streams.values()):
            stream.send_window += change
            if stream.send_window > fr.MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE overflows a window")
            if change > 0:
                stream.on_window()

    def _push_promise(self, sid: int, flags: int, payload: bytes) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE")

    def _ping(self, sid: int, flags: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING length")
        if sid:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"PING on stream {sid}")
        if flags & fr.ACK:
            self.on_ping_ack(payload)
            return
        self._spend_chatter()
        self.emit(fr.ping(payload, ack=True))

    def _goaway(self, sid: int, flags: int, payload: bytes) -> None:
        if sid:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"GOAWAY on stream {sid}")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY length")
        self._spend_chatter()
        last_sid = fr.U32.unpack_from(payload)[0] & fr.MAX_STREAM_ID
        self.peer_goaway = last_sid
        self.on_goaway(last_sid, fr.U32.unpack_from(payload, 4)[0])

    def _window_update(self, sid: int, flags: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE length")
        increment = fr.U32.unpack(payload)[0] & fr.MAX_WINDOW
        if increment < 256:
            self._spend_chatter()
        if not sid:
            if not increment:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self.send_window += increment
            if self.send_window > fr.MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window overflows")
            self.on_window()
            return
        stream = self.streams.get(sid)
        if stream is None:
            if self._is_idle(sid):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE on idle stream {sid}")
            return
        stream.send_window += increment
        if not increment:
            self._stream_fault(sid, ErrorCode.PROTOCOL_ERROR)
        elif stream.send_window > fr.MAX_WINDOW:
            self._stream_fault(sid, ErrorCode.FLOW_CONTROL_ERROR)
        else:
            stream.on_window()


_HANDLERS = {
    fr.HEADERS: H2Connection._headers,
    fr.PRIORITY: H2Connection._priority,
    fr.RST_STREAM: H2Connection._rst_stream,
    fr.SETTINGS: H2Connection._settings,
    fr.PUSH_PROMISE: H2Connection._push_promise,
    fr.PING: H2Connection._ping,
    fr.GOAWAY: H2Connection._goaway,
    fr.WINDOW_UPDATE: H2Connection._window_update,
    fr.CONTINUATION: H2Connection._continuation,
}

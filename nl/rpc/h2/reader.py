"""From bytes to frames: framing, header blocks that come in parts, the payload of DATA (RFC 9113, sections 4 and 6).

A DATA payload is handed on as views of the receive buffer, also in pieces when a frame has arrived in part; its `owner`
counts the bytes that are still referred to. Everything else is presented whole. What a frame means: protocol.py.
"""

from __future__ import annotations

from nl.rpc import frames as fr
from nl.rpc.frames import ConnectionFault, ErrorCode
from nl.rpc.h2.protocol import H2Connection
from nl.rpc.h2.stream import Owner, Stream

_RUN_FROM = 4096
"""DATA frames of this size or more are looked at for more of the same behind them."""
_MAX_CONTINUATIONS = 64
_WORK_PER_PASS = 1024
"""Frames after which parsing pauses, so that others get their turn: some milliseconds of the smallest ones ..."""
_WORK_PER_BLOCK = 8
"""... of which a header block, with the request that it opens, counts for so many ..."""
_WORK_SHIFT = 6
"""... and 64 bytes that are not DATA for one: references to HPACK's table and SETTINGS are short and costly."""


class FrameReader:
    """The receiving side of one connection: its place in the frame that is arriving."""

    __slots__ = (
        "_block", "_block_flags", "_block_frames", "_block_sid", "_depends_on_itself", "_ended", "_h2", "_left",
        "_max_block", "_padding", "_stream", "paused",
    )  # fmt: skip

    def __init__(self, h2: H2Connection) -> None:
        self._h2 = h2
        self._max_block = 2 * h2.limits.max_header_list_size
        self._block = b""
        self._block_sid = 0
        self._block_flags = 0
        self._block_frames = 0
        self._depends_on_itself = False
        self._stream: Stream | None = None
        """The stream that takes the DATA payload that is arriving; None: it is dropped."""
        self._left = 0
        self._ended = False
        self._padding = 0
        """Bytes to skip after that payload: padding, or all of a frame of an unknown type."""
        self.paused = False
        """The last `receive` has left frames that are here: it wants to be called again, after others."""

    def end(self) -> None:
        """The connection is over: no stream is referred to any more."""
        self._stream = None

    def receive(self, view: memoryview, *, start: int, end: int, owner: Owner | None = None) -> int:
        """Takes view[start:end]; where parsing stopped: the caller presents the rest again, with more behind it."""
        pos = start
        h2 = self._h2
        unpack = fr.HEADER.unpack_from
        max_frame = h2.limits.max_frame_size
        work = 0
        self.paused = False
        while True:
            if work >= _WORK_PER_PASS:
                self.paused = pos < end
                return pos
            work += 1
            if self._left or self._padding:
                pos = self._payload(view, pos, end, owner)
                if pos == end:
                    return pos
                continue
            if end - pos < fr.HEADER_SIZE:
                return pos
            high, low, kind, flags, sid = unpack(view, pos)
            length = high << 8 | low
            sid &= fr.MAX_STREAM_ID
            if length > max_frame:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"frame of {length} bytes")
            if self._block_sid and (kind != fr.CONTINUATION or sid != self._block_sid):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "header block interrupted")
            if not h2.got_settings and (kind != fr.SETTINGS or flags & fr.ACK):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "first frame is not SETTINGS")
            body = pos + fr.HEADER_SIZE
            if kind == fr.DATA:
                padded = flags & fr.PADDED
                if padded and length and body >= end:
                    return pos
                pos = self._data(view, pos, end, owner, sid=sid, flags=flags, length=length)
                continue
            if kind > fr.CONTINUATION:
                h2.spend_control()
                self._padding = length
                pos = body
                continue
            if length > self._max_block:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"frame of type {kind} with {length} bytes")
            if body + length > end:
                return pos
            pos = body + length
            payload = bytes(view[body:pos])
            work += length >> _WORK_SHIFT
            if kind == fr.HEADERS:
                work += _WORK_PER_BLOCK
                self._headers(sid, flags, payload)
            elif kind == fr.CONTINUATION:
                self._continuation(sid, flags, payload)
            else:
                h2.on_frame(kind, sid, flags, payload)

    # -- DATA ------------------------------------------------------------------------------------------------------

    def _data(
        self, view: memoryview, pos: int, end: int, owner: Owner | None, *, sid: int, flags: int, length: int
    ) -> int:
        """A DATA frame of which the header, and the length of its padding, are here; where to go on."""
        body = pos + fr.HEADER_SIZE
        overhead = padding = 0
        if flags & fr.PADDED:
            padding = view[body] if length else 0
            if padding >= length:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding exceeds the frame")
            overhead = padding + 1
            body += 1
        h2 = self._h2
        stream = h2.on_data_frame(sid, flags, length, overhead=overhead)
        ended = bool(flags & fr.END_STREAM)
        stop = body + length - overhead
        if stream is None or stop > end or padding or stop == body:
            self._stream, self._left, self._padding, self._ended = stream, length - overhead, padding, ended
            if stop == body and stream is not None and ended:
                self._end_of_data(stream)
            return body
        stream.add(view[body:stop], owner)
        if ended:
            stream.recv_closed = True
            stream.on_data()
            if stream.send_closed:
                h2.close_if_done(stream)
            return stop
        if length >= _RUN_FROM and end - stop > length and stream.content_left is None:
            stop = self._run(stream, view, first=pos, stop=stop, end=end, owner=owner)
        stream.on_data()
        return stop

    def _end_of_data(self, stream: Stream) -> None:
        stream.recv_closed = True
        stream.on_data()
        self._h2.close_if_done(stream)

    def _run(
        self, stream: Stream, view: memoryview, *, first: int, stop: int, end: int, owner: Owner | None
    ) -> int:
        """Takes the frames with the very header of the one at `first`, as far as credit goes; where parsing stopped.

        Large messages come as dozens of such frames in a row. What fits is the same as for one, so is what is checked.
        """
        unpack = fr.HEADER.unpack_from
        header = unpack(view, first)
        if header[3]:
            return stop  # padded
        step = stop - first
        length = step - fr.HEADER_SIZE
        window = self._h2.recv_window
        credit = min(window.left, stream.recv_window.left) // length
        last = min(stop + credit * step, end) - step
        append = stream.chunks.append
        pos = stop
        while pos <= last and unpack(view, pos) == header:
            append((view[pos + fr.HEADER_SIZE : pos + step], owner))
            pos += step
        total = (pos - stop) // step * length
        window.left -= total
        stream.recv_window.left -= total
        stream.held += total
        if owner is not None:
            owner.held += total
        return pos

    def _payload(self, view: memoryview, pos: int, end: int, owner: Owner | None) -> int:
        """The next piece of a payload that is taken as it comes: DATA, padding, unknown frames."""
        if self._left:
            count = min(self._left, end - pos)
            if count:
                self._left -= count
                stream = self._stream
                if stream is None or stream.reset_code is not None:
                    self._h2.give_back(count)
                else:
                    stream.add(view[pos : pos + count], owner)
                    if not self._left and self._ended:
                        self._end_of_data(stream)
                    else:
                        stream.on_data()
                if not self._left:
                    self._stream = None
            return pos + count
        count = min(self._padding, end - pos)
        self._padding -= count
        return pos + count

    # -- header blocks ---------------------------------------------------------------------------------------------

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
            self._h2.on_header_block(sid, flags, block, depends_on_itself=depends_on_itself)
        else:
            self._block_sid, self._block, self._block_frames = sid, block, 1
            self._block_flags, self._depends_on_itself = flags, depends_on_itself

    def _continuation(self, sid: int, flags: int, payload: bytes) -> None:
        if not self._block_sid:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block += payload
        self._block_frames += 1
        if len(self._block) > self._max_block or self._block_frames > _MAX_CONTINUATIONS:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
        if flags & fr.END_HEADERS:
            block, self._block, self._block_sid = self._block, b"", 0
            self._h2.on_header_block(sid, self._block_flags, block, depends_on_itself=self._depends_on_itself)

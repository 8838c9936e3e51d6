"""HTTP/2 frames as bytes: numbers, packing, settings (RFC 9113, sections 4, 6 and 7). Pure: no loop, no socket.

Not here: what a frame means for a connection (h2/) and header blocks (hpack.py).
"""

from __future__ import annotations

import enum
import struct

from nl.errors import RemoteProtocolError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_SIZE = 9
HEADER = struct.Struct(">HBBBI")
"""Length's high 16 bits, its low 8 bits, type, flags, stream."""
U32 = struct.Struct(">I")
PREFIX = struct.Struct(">BI")
"""The prefix of a gRPC message: compressed flag, length."""
SETTING = struct.Struct(">HI")

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

DEFAULT_WINDOW = 65_535
MAX_WINDOW = 2**31 - 1
MIN_FRAME_SIZE = 16_384
MAX_FRAME_SIZE = 2**24 - 1
MAX_STREAM_ID = 2**31 - 1


class ErrorCode(enum.IntEnum):
    """RFC 9113, section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Setting(enum.IntEnum):
    """RFC 9113, section 6.5.2."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ConnectionFault(RemoteProtocolError):
    """The peer broke the protocol so that the connection must end with GOAWAY(`code`)."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.reason = message


def header(length: int, kind: int, flags: int, sid: int) -> bytes:
    """The nine bytes before a payload."""
    return HEADER.pack(length >> 8, length & 0xFF, kind, flags, sid)


def frame(kind: int, flags: int, sid: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return header(len(payload), kind, flags, sid) + payload


def settings(values: dict[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(key, value) for key, value in values.items()))


SETTINGS_ACK = frame(SETTINGS, ACK, 0)


def window_update(sid: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return HEADER.pack(0, 4, WINDOW_UPDATE, 0, sid) + U32.pack(increment)


def rst_stream(sid: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return HEADER.pack(0, 4, RST_STREAM, 0, sid) + U32.pack(code)


def goaway(last_sid: int, code: int, debug: str = "") -> bytes:
    """A GOAWAY frame; `debug` is for whoever reads a packet dump."""
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_sid, code) + debug.encode("utf-8", "replace")[:256])


def ping(payload: bytes, *, ack: bool = False) -> bytes:
    """A PING frame with eight opaque bytes."""
    return frame(PING, ACK if ack else 0, 0, payload)


def header_frames(block: bytes, sid: int, *, end_stream: bool, max_frame: int) -> bytes:
    """A header block as HEADERS and, where one frame is too small for it, CONTINUATION."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= max_frame:
        return frame(HEADERS, flags | END_HEADERS, sid, block)
    parts = [frame(HEADERS, flags, sid, block[:max_frame])]
    for offset in range(max_frame, len(block), max_frame):
        last = offset + max_frame >= len(block)
        parts.append(frame(CONTINUATION, END_HEADERS if last else 0, sid, block[offset : offset + max_frame]))
    return b"".join(parts)


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """Settings in wire order, each checked against RFC 9113, section 6.5.2; unknown ones are left out."""
    if len(payload) % 6:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS length is no multiple of 6")
    entries: list[tuple[int, int]] = list(SETTING.iter_unpack(payload))
    for key, value in dict.fromkeys(entries):  # each only once: a frame has room for 2,730 of them
        if key == Setting.ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH is {value}")
        if key == Setting.INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE is {value}")
        if key == Setting.MAX_FRAME_SIZE and not MIN_FRAME_SIZE <= value <= MAX_FRAME_SIZE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE is {value}")
    return [entry for entry in entries if 1 <= entry[0] <= 6]

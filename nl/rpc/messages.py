"""gRPC messages on a stream: the five-byte prefix, compression, and cutting a message into DATA frames. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from nl.blob.reader import Buffer
from nl.errors import ExhaustedError, InvalidRequestError
from nl.rpc import frames as fr

PREFIX_SIZE = 5
IDENTITY = "identity"
GZIP = "gzip"


def compress(parts: Sequence[Buffer]) -> bytes:
    """gzip, fast: what this saves is the network's time."""
    packer = zlib.compressobj(level=1, wbits=31)
    return b"".join((*map(packer.compress, parts), packer.flush()))


def decompress(data: Buffer, *, max_bytes: int) -> bytes:
    """gunzip; ExhaustedError if it unpacks to more than `max_bytes` (a bomb never gets further than that)."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(data, max_bytes + 1)
    except zlib.error as exc:
        raise InvalidRequestError(f"message is not valid gzip: {exc}") from exc
    if len(text) > max_bytes:
        raise ExhaustedError(f"message unpacks to more than {max_bytes} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidRequestError("message is not one whole gzip stream")
    return text


class DataFrames:
    """DATA frames to be sent in one go: `parts` are headers and payload as they follow, `sizes` the payloads'."""

    __slots__ = ("parts", "sizes", "unsent")

    def __init__(self) -> None:
        self.parts: list[Buffer] = []
        self.sizes: list[int] = []
        self.unsent = 0
        """Payload of frames that were given up before their first byte, set by whoever sends them."""

    @property
    def size(self) -> int:
        """All bytes, headers too."""
        return sum(self.sizes) + fr.HEADER_SIZE * len(self.sizes)

    def split(self, sent: int) -> tuple[bytes, int]:
        """After `sent` bytes: a copy of the rest of the frame that has begun, and the payload of those behind it."""
        start = 0
        for index, size in enumerate(self.sizes):
            stop = start + fr.HEADER_SIZE + size
            if sent <= start:
                return b"", sum(self.sizes[index:])
            if sent < stop:
                return self._copy(sent, stop), sum(self.sizes[index + 1 :])
            start = stop
        return b"", 0

    def _copy(self, start: int, stop: int) -> bytes:
        pieces, offset = [], 0
        for part in self.parts:
            if offset < stop and offset + len(part) > start:
                pieces.append(memoryview(part)[max(0, start - offset) : stop - offset])
            offset += len(part)
        return b"".join(pieces)


class Cutter:
    """Hands out one message (prefix and parts) as DATA frames, piece by piece, without copying."""

    __slots__ = ("_index", "_offset", "_parts", "left")

    def __init__(self, parts: Sequence[Buffer]) -> None:
        self._parts = [memoryview(part).cast("B") for part in parts if len(part)]
        self._index = 0
        self._offset = 0
        self.left = sum(map(len, self._parts))

    def cut(self, count: int, *, sid: int, max_frame: int, end_stream: bool = False) -> DataFrames:
        """Frames with the next `count` bytes (at most; `left` tells). END_STREAM goes on the message's last frame."""
        frames = DataFrames()
        out, sizes = frames.parts, frames.sizes
        count = min(count, self.left)
        self.left -= count
        full = fr.header(max_frame, fr.DATA, 0, sid)
        while count > 0:
            part = self._parts[self._index]
            offset = self._offset
            stop = min(len(part), offset + count - (1 if end_stream else 0))
            if stop - offset > max_frame:  # whole frames out of one part: nearly all of a large payload
                whole = (stop - offset - 1) // max_frame
                self._offset = end = offset + whole * max_frame
                for at in range(offset, end, max_frame):
                    out += (full, part[at : at + max_frame])
                sizes += [max_frame] * whole
                count -= end - offset
                continue
            size = min(count, max_frame)
            count -= size
            last = end_stream and not count and not self.left
            out.append(full if size == max_frame and not last else fr.header(size, fr.DATA, int(last), sid))
            sizes.append(size)
            while size:
                part, offset = self._parts[self._index], self._offset
                left = len(part) - offset
                if size < left:
                    self._offset = offset + size
                    out.append(part[offset : offset + size])
                    break
                size -= left
                self._index += 1
                self._offset = 0
                out.append(part[offset:] if offset else part)
        return frames

"""gRPC messages on a stream: the five-byte prefix, compression, and cutting a message into DATA frames. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

from nl.blob.reader import Buffer
from nl.errors import ExhaustedError, InvalidRequestError
from nl.rpc import frames as fr

PREFIX_SIZE = 5
IDENTITY = "identity"
GZIP = "gzip"


def compress(data: Buffer) -> bytes:
    """gzip, fast: what this saves is the network's time."""
    packer = zlib.compressobj(level=1, wbits=31)
    return packer.compress(data) + packer.flush()


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


class Cutter:
    """Hands out one message (prefix and parts) as DATA frames, piece by piece, without copying."""

    __slots__ = ("_index", "_offset", "_parts", "left")

    def __init__(self, parts: Sequence[Buffer]) -> None:
        self._parts = [memoryview(part).cast("B") for part in parts if len(part)]
        self._index = 0
        self._offset = 0
        self.left = sum(map(len, self._parts))

    def cut(self, count: int, *, sid: int, max_frame: int, end_stream: bool = False) -> list[Buffer]:
        """Frames with the next `count` bytes (at most; `left` tells). END_STREAM goes on the message's last frame."""
        out: list[Buffer] = []
        count = min(count, self.left)
        self.left -= count
        full = fr.header(max_frame, fr.DATA, 0, sid)
        while count > 0:
            part = self._parts[self._index]
            offset = self._offset
            stop = min(len(part), offset + count - (1 if end_stream else 0))
            if stop - offset > max_frame:  # whole frames out of one part: nearly all of a large payload
                while offset + max_frame < stop:
                    out += (full, part[offset : offset + max_frame])
                    offset += max_frame
                count -= offset - self._offset
                self._offset = offset
                continue
            size = min(count, max_frame)
            count -= size
            last = end_stream and not count and not self.left
            out.append(full if size == max_frame and not last else fr.header(size, fr.DATA, int(last), sid))
            out.extend(self._take(size))
        return out

    def _take(self, size: int) -> Iterator[memoryview]:
        while size:
            part = self._parts[self._index]
            piece = part[self._offset : self._offset + size]
            size -= len(piece)
            self._offset += len(piece)
            if self._offset == len(part):
                self._index += 1
                self._offset = 0
            yield piece

"""Zstandard (RFC 8878) as coders: what clients send and take compressed, and what may lie so in stores.

The library is `compression.zstd` of Python 3.14, before that its backport; loaded when first needed. Its objects are
used by one thread at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from nl.blob.coding import CodingError, Decoder, Encoder
from nl.blob.reader import Buffer

FAST_LEVEL: Final = 1
"""The level for what is compressed only to be sent: half of the effort of the usual 3, for a tenth more bytes."""
WINDOW_LOG: Final = 23
"""Frames that need more than 8 MiB of history are refused: what a decoder must support (RFC 8878, 3.1.1.1.2), what
levels up to 19 make, and what one upload may cost in memory."""
RAW_BLOCK: Final = 128 * 1024
"""The largest block of a frame."""
_FREE_FRAMES: Final = 1000
_LEAST_FRAME: Final = 4096
"""A blob may have so many frames, and one more for each so many bytes: what follows a frame is copied once."""
_RAW_HEAD: Final = b"\x28\xb5\x2f\xfd\xc0\x38"
"""Magic number; a content size of 8 bytes follows, no checksum, no dictionary; a window of 128 KiB."""


@cache
def library() -> Any:
    """The module with the API of `compression.zstd`."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def compress(data: Buffer, level: int = FAST_LEVEL) -> bytes:
    """One frame that holds `data` and says how large it is."""
    compressed: bytes = library().compress(data, level)
    return compressed


def decompress(data: Buffer, size: int) -> bytes:
    """What `data`, one or more frames, decodes to, which must be `size` bytes. Raises CodingError.

    Never makes more than `size` bytes, whatever is in `data`.
    """
    decoder = ZstdDecoder()
    decoder.feed([data])
    parts: list[Buffer] = []
    left = size
    while True:
        decoded = decoder.decode(left + 1)
        left -= sum(map(len, decoded))
        parts += decoded
        if left < 0:
            raise CodingError(f"more than {size} bytes come out of it")
        if decoder.needs_input:
            break
    decoder.finish()
    if left:
        raise CodingError(f"{size - left} bytes come out of it, {size} were expected")
    return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)


class ZstdEncoder(Encoder):
    """One frame. `size`, if it is known, is written into it."""

    def __init__(self, level: int = FAST_LEVEL, *, size: int = -1) -> None:
        zstd = library()
        self._compressor = zstd.ZstdCompressor(level=level)
        if size >= 0:
            self._compressor.set_pledged_input_size(size)

    def encode(self, parts: Sequence[Buffer]) -> list[Buffer]:
        compress = self._compressor.compress
        return [compress(part) for part in parts]

    def finish(self) -> list[Buffer]:
        return [self._compressor.flush()]


class RawEncoder(Encoder):
    """One frame whose blocks are not compressed: for whom there is no memory to compress. Costs nothing."""

    def __init__(self, *, size: int) -> None:
        self._head = _RAW_HEAD + size.to_bytes(8, "little")

    def encode(self, parts: Sequence[Buffer]) -> list[Buffer]:
        coded: list[Buffer] = []
        for part in parts:
            view = memoryview(part)
            for at in range(0, len(view), RAW_BLOCK):
                block = view[at : at + RAW_BLOCK]
                coded += (self._head + (len(block) << 3).to_bytes(3, "little"), block)
                self._head = b""
        return coded

    def finish(self) -> list[Buffer]:
        return [self._head + b"\x01\x00\x00"]


class ZstdDecoder(Decoder):
    """One or more frames, one after the other, as the format has it; skippable frames among them are skipped."""

    def __init__(self, *, window_log: int = WINDOW_LOG) -> None:
        self._zstd = library()
        self._options = {self._zstd.DecompressionParameter.window_log_max: window_log}
        self._frame = self._zstd.ZstdDecompressor(options=self._options)
        self._begun = False
        self._input: list[Buffer] = []
        self._frames_left = _FREE_FRAMES * _LEAST_FRAME

    def feed(self, parts: Sequence[Buffer]) -> None:
        self._input = [bytes(part) for part in parts if len(part)]  # there is nothing in it: see needs_input
        self._frames_left += sum(map(len, self._input))
        self._input.reverse()

    @property
    def needs_input(self) -> bool:
        if self._input:
            return False
        frame = self._frame
        return bool(frame.eof or frame.needs_input)

    def decode(self, most: int) -> list[Buffer]:
        decoded: list[Buffer] = []
        while most > 0:
            frame = self._frame
            if frame.eof:
                if not self._input:
                    break
                self._frames_left -= _LEAST_FRAME
                if self._frames_left < 0:
                    raise CodingError("it has far too many zstd frames")
                frame = self._frame = self._zstd.ZstdDecompressor(options=self._options)
            if not frame.needs_input:
                data: Buffer = b""
            elif self._input:
                data = self._input.pop()
                self._begun = True
            else:
                break
            try:
                part = frame.decompress(data, most)
            except self._zstd.ZstdError as error:
                raise CodingError(f"not a zstd frame, or a broken one ({error})") from None
            if frame.eof and frame.unused_data:
                self._input.append(frame.unused_data)
            if part:
                decoded.append(part)
                most -= len(part)
        return decoded

    def finish(self) -> None:
        if not self._frame.eof:
            raise CodingError("it ends within a zstd frame" if self._begun else "there is no zstd frame in it")

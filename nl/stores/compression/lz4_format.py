"""LZ4 in blocks: the format in which NativeLink keeps compressed blobs, byte for byte. Pure.

All numbers are little-endian and of fixed width::

    header   version u8 = 1, block_size u32, kind of size u32 (0 exact, 1 at most), size u64
    block    0x00, compressed length u32, one raw LZ4 block: block_size bytes decoded, the last one what is left
    footer   0x01, length u32, then: count u64, count * u32 (the compressed lengths of all blocks but the last),
             count u32, decoded size u64, block_size u32, version u8 = 1

The format has no checksum, and its index is not needed to read front to back. Everything that is said twice in it is
compared; what the blocks decode to is for the caller to compare with a digest.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from nl.plugin import Buffer, CodingError, Decoder, Encoder

VERSION: Final = 1
EXACT, AT_MOST = 0, 1
_HEADER: Final = struct.Struct("<BIIQ")
_FRAME: Final = struct.Struct("<BI")
_TAIL: Final = struct.Struct("<IQIB")
TAIL_BYTES: Final = _TAIL.size
"""The end of the footer, which has a fixed length: the decoded size is in it."""
_BLOCK, _FOOTER = 0, 1


@cache
def _library() -> Any:
    import lz4.block  # loaded when first needed

    return lz4.block


def decoded_size(tail: Buffer) -> int:
    """The decoded size that the last TAIL_BYTES of an object say. Raises CodingError."""
    if len(tail) != TAIL_BYTES:
        raise CodingError("it is too short to be an LZ4 object")
    _, size, _, version = _TAIL.unpack(tail)
    if version != VERSION:
        raise CodingError(f"its last byte is {version}, not the version {VERSION} of an LZ4 object")
    return int(size)


def largest_compressed(block_size: int) -> int:
    """The most bytes that an LZ4 block of `block_size` bytes can take."""
    return block_size + block_size // 255 + 16


class Lz4Encoder(Encoder):
    """Encodes one blob. `size` is what the header says: -1 if it is not known."""

    def __init__(self, block_size: int, *, size: int = -1) -> None:
        self._compress = _library().compress
        self._block_size = block_size
        kind = (EXACT, size) if size >= 0 else (AT_MOST, (1 << 64) - 1)
        self._head = _HEADER.pack(VERSION, block_size, *kind)
        self._rest = bytearray()
        self._lengths = array("I")
        self._size = 0

    def encode(self, parts: Sequence[Buffer]) -> list[Buffer]:
        coded: list[Buffer] = [self._head]
        self._head = b""
        block_size, rest = self._block_size, self._rest
        for part in parts:
            view = memoryview(part)
            self._size += len(view)
            at = 0
            if rest:
                at = min(block_size - len(rest), len(view))
                rest += view[:at]
                if len(rest) < block_size:
                    continue
                self._add_block(coded, rest)
                rest.clear()
            while len(view) - at >= block_size:
                self._add_block(coded, view[at : at + block_size])
                at += block_size
            rest += view[at:]
        return coded

    def finish(self) -> list[Buffer]:
        coded: list[Buffer] = [self._head]
        if self._rest:
            self._add_block(coded, self._rest)
        index = self._lengths[:-1]
        if index.itemsize != 4 or struct.pack("=I", 1) != struct.pack("<I", 1):
            packed = struct.pack(f"<{len(index)}I", *index)
        else:
            packed = index.tobytes()
        tail = _TAIL.pack(len(index), self._size, self._block_size, VERSION)
        coded += (
            _FRAME.pack(_FOOTER, 8 + len(packed) + len(tail)), struct.pack("<Q", len(index)), packed, tail
        )
        return coded

    def _add_block(self, coded: list[Buffer], block: Buffer) -> None:
        compressed = self._compress(block, store_size=False)
        self._lengths.append(len(compressed))
        coded += (_FRAME.pack(_BLOCK, len(compressed)), compressed)


class Lz4Decoder(Decoder):
    """Decodes one blob whose blocks have at most `max_block_size` bytes; larger ones are refused unread."""

    def __init__(self, *, max_block_size: int) -> None:
        library = _library()
        self._decompress = library.decompress
        self._broken = library.LZ4BlockError
        self._max_block_size = max_block_size
        self._block_size = 0
        self._input = bytearray()
        self._at = 0
        self._wanted = _HEADER.size
        """How many bytes the next item has, as far as it is known; 0 at the end."""
        self._lengths = array("I")
        self._size = 0
        self._last = 0
        self._limit: tuple[int, int] = (AT_MOST, 0)

    def feed(self, parts: Sequence[Buffer]) -> None:
        del self._input[: self._at]
        self._at = 0
        for part in parts:
            self._input += part

    @property
    def needs_input(self) -> bool:
        return len(self._input) - self._at < self._wanted or (not self._wanted and self._at == len(self._input))

    def decode(self, most: int) -> list[Buffer]:
        decoded: list[Buffer] = []
        left = most
        with memoryview(self._input) as view:
            while left > 0 and not self.needs_input:
                if not self._wanted:
                    raise CodingError("something follows its footer")
                if not self._block_size:
                    self._read_header(view)
                    continue
                kind, length = _FRAME.unpack_from(view, self._at)
                self._wanted = self._checked_length(kind, length)
                if self.needs_input:
                    break
                start = self._at + _FRAME.size
                with view[start : start + length] as content:
                    if kind == _BLOCK:
                        block = self._read_block(content)
                        decoded.append(block)
                        left -= len(block)
                        self._wanted = _FRAME.size
                    else:
                        self._read_footer(content)
                        self._wanted = 0
                self._at = start + length
        return decoded

    def finish(self) -> None:
        if self._wanted:
            raise CodingError("it ends before its footer: cut short, or not an LZ4 object")

    def _read_header(self, view: memoryview) -> None:
        version, block_size, kind, size = _HEADER.unpack_from(view, self._at)
        if version != VERSION or kind not in (EXACT, AT_MOST) or not block_size:
            raise CodingError("it does not begin like an LZ4 object")
        if block_size > self._max_block_size:
            raise CodingError(
                f"it has blocks of {block_size} bytes, more than the {self._max_block_size} of max_decode_block_size"
            )
        self._block_size, self._limit = block_size, (kind, size)
        self._at += _HEADER.size
        self._wanted = _FRAME.size

    def _checked_length(self, kind: int, length: int) -> int:
        """How many bytes a frame has, its head included; what cannot be is refused before it is waited for."""
        if kind == _BLOCK:
            most = largest_compressed(self._block_size)
            if not 0 < length <= most:
                raise CodingError(f"a block of {length} bytes, where {most} are the most that can be")
            if self._size % self._block_size:
                raise CodingError("a block follows one that is not full")
        elif kind == _FOOTER:
            expected = 8 + 4 * max(len(self._lengths) - 1, 0) + TAIL_BYTES
            if length != expected:
                raise CodingError(f"its footer has {length} bytes, {expected} were expected")
        else:
            raise CodingError(f"there is an item of the unknown kind {kind} in it")
        return _FRAME.size + length

    def _read_block(self, content: memoryview) -> bytes:
        try:
            block: bytes = self._decompress(content, uncompressed_size=self._block_size)
        except (self._broken, ValueError) as error:
            raise CodingError(f"a block is not LZ4, or broken ({error})") from None
        self._lengths.append(len(content))
        self._size += len(block)
        return block

    def _read_footer(self, content: memoryview) -> None:
        count = max(len(self._lengths) - 1, 0)
        index = struct.unpack_from(f"<Q{count}I", content)
        again, size, block_size, version = _TAIL.unpack_from(content, len(content) - TAIL_BYTES)
        if (index[0], again, size, block_size, version) != (count, count, self._size, self._block_size, VERSION):
            raise CodingError("its footer contradicts what comes before")
        if list(index[1:]) != self._lengths[:count].tolist():
            raise CodingError("its index contradicts its blocks")
        kind, limit = self._limit
        if (size != limit) if kind == EXACT else (size > limit):
            raise CodingError("its header contradicts its footer")

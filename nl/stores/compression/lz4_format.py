"""LZ4 in blocks: the format in which NativeLink keeps compressed blobs, and ours, which ends in a seal. Pure.

All numbers are little-endian and of fixed width::

    header   version u8 = 1, block_size u32, kind of size u32 (0 exact, 1 at most), size u64
    block    0x00, compressed length u32, one raw LZ4 block: block_size bytes decoded, the last one what is left
    footer   0x01, length u32, then: count u64, count * u32 (the compressed lengths of all blocks but the last),
             count u32, decoded size u64, block_size u32, version u8 = 1

That is version 1. It has no checksum, and its index is not needed to read front to back. Everything that is said twice
in it is compared; what the blocks decode to is for the caller to compare with a digest. Version 2, which is written if
the config says `seal`, differs in its number and its end: a seal (lz4_seal.py) in place of the footer.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from nl.plugin import CHUNK, Buffer, CodingError, Decoder, Encoder
from nl.stores.compression import lz4_seal
from nl.stores.compression.lz4_seal import SEAL, Blocks, Sealing

VERSION: Final = 1
EXACT, AT_MOST = 0, 1
_HEADER: Final = struct.Struct("<BIIQ")
_FRAME: Final = struct.Struct("<BI")
_TAIL: Final = struct.Struct("<IQIB")
TAIL_BYTES: Final = _TAIL.size
"""The end of the footer, and of the seal, which has a fixed length: the decoded size is in it."""
HEAD_BYTES: Final = _HEADER.size
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
    if version not in (VERSION, lz4_seal.VERSION):
        raise CodingError(f"its last byte is {version}, not a version of LZ4 objects")
    return int(size)


def largest_compressed(block_size: int) -> int:
    """The most bytes that an LZ4 block of `block_size` bytes can take."""
    return block_size + block_size // 255 + 16


class Lz4Encoder(Encoder):
    """Encodes one blob, `sealed` in version 2. `size` is what the header says: -1 if it is not known."""

    batch = 1024 * 1024

    def __init__(self, block_size: int, *, size: int = -1, sealed: bool) -> None:
        self._compress = _library().compress
        self._block_size = block_size
        kind = (EXACT, size) if size >= 0 else (AT_MOST, (1 << 64) - 1)
        self._head = _HEADER.pack(lz4_seal.VERSION if sealed else VERSION, block_size, *kind)
        self._rest = bytearray()
        self._sealing = Sealing() if sealed else None
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
        if self._sealing is None:
            kind, content = _FOOTER, self._footer()
        else:
            kind, content = SEAL, self._sealing.content(size=self._size, block_size=self._block_size)
        coded += (_FRAME.pack(kind, len(content)), content)
        return coded

    def _footer(self) -> bytes:
        count = max(len(self._lengths) - 1, 0)
        index = struct.pack(f"<Q{count}I", count, *self._lengths[:-1])
        return index + _TAIL.pack(count, self._size, self._block_size, VERSION)

    def _add_block(self, coded: list[Buffer], block: Buffer) -> None:
        compressed = self._compress(block, store_size=False)
        if self._sealing is None:
            self._lengths.append(len(compressed))
        else:
            self._sealing.add(compressed)
        coded += (_FRAME.pack(_BLOCK, len(compressed)), compressed)


class Lz4Decoder(Decoder):
    """Decodes one blob whose blocks have at most `max_block_size` bytes; larger ones are refused unread."""

    batch, output = 512 * 1024, 1024 * 1024

    def __init__(self, *, max_block_size: int) -> None:
        self._max_block_size = max_block_size
        self._block_size = 0
        self._input = bytearray()
        self._at = 0
        self._wanted = _HEADER.size
        """How many bytes the next item has, as far as it is known; 0 at the end."""
        self._lengths = array("I")
        self._sealing: Sealing | None = None
        self._size = 0
        self._limit: tuple[int, int] = (AT_MOST, 0)

    @property
    def is_sealed(self) -> bool:
        """Whether the object says itself what its blocks have to be; known once something has been decoded."""
        return self._sealing is not None

    @property
    def is_quick(self) -> bool:
        if self._block_size or len(self._input) < HEAD_BYTES:
            return self._sealing is not None and self._block_size <= CHUNK
        version, block_size, _, _ = _HEADER.unpack_from(self._input)
        return bool(version == lz4_seal.VERSION and block_size <= CHUNK)

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
                left = self._read_blocks(view, decoded, left)
                if left > 0 and not self.needs_input:
                    self._read_item(view)
        return decoded

    def finish(self) -> None:
        if self._wanted:
            raise CodingError("it ends before its footer: cut short, or not an LZ4 object")

    def _read_header(self, view: memoryview) -> None:
        version, block_size, kind, size = _HEADER.unpack_from(view, self._at)
        if version not in (VERSION, lz4_seal.VERSION) or kind not in (EXACT, AT_MOST) or not block_size:
            raise CodingError("it does not begin like an LZ4 object")
        if block_size > self._max_block_size:
            raise CodingError(
                f"it has blocks of {block_size} bytes, more than the {self._max_block_size} of max_decode_block_size"
            )
        if version == lz4_seal.VERSION:
            self._sealing = Sealing()
        self._block_size, self._limit = block_size, (kind, size)
        self._at += _HEADER.size
        self._wanted = _FRAME.size

    def _read_blocks(self, view: memoryview, decoded: list[Buffer], left: int) -> int:
        """The blocks that are here, up to about `left` bytes; how many of these are left."""
        at, block_size, largest = self._at, self._block_size, largest_compressed(self._block_size)
        note = self._note_length if self._sealing is None else self._sealing.add
        while left > 0 and len(view) - at >= _FRAME.size and not self._size % block_size:
            kind, length = _FRAME.unpack_from(view, at)
            stop = at + _FRAME.size + length
            if kind != _BLOCK or not 0 < length <= largest or stop > len(view):
                break
            with view[at + _FRAME.size : stop] as content:
                block = _decompressed(content, block_size)
                note(content)
            decoded.append(block)
            self._size += len(block)
            left -= len(block)
            at = stop
        self._at = at
        self._wanted = _FRAME.size
        return left

    def _note_length(self, block: Buffer) -> None:
        self._lengths.append(len(block))

    def _read_item(self, view: memoryview) -> None:
        """What is no whole block: the end, or what has not come yet, or what cannot be."""
        kind, length = _FRAME.unpack_from(view, self._at)
        self._wanted = self._checked_length(kind, length)
        if self.needs_input:
            return
        start = self._at + _FRAME.size
        with view[start : start + length] as content:
            self._read_end(content)
        self._at = start + length
        self._wanted = 0

    def _checked_length(self, kind: int, length: int) -> int:
        """How many bytes a frame has, its head included; what cannot be is refused before it is waited for."""
        if kind == _BLOCK:
            most = largest_compressed(self._block_size)
            if not 0 < length <= most:
                raise CodingError(f"a block of {length} bytes, where {most} are the most that can be")
            if self._size % self._block_size:
                raise CodingError("a block follows one that is not full")
        elif kind == (_FOOTER if self._sealing is None else SEAL):
            expected = (
                8 + 4 * max(len(self._lengths) - 1, 0) + TAIL_BYTES
                if self._sealing is None else lz4_seal.content_bytes(self._sealing.count)
            )
            if length != expected:
                raise CodingError(f"its end has {length} bytes, {expected} were expected")
        else:
            raise CodingError(f"there is an item of the unknown kind {kind} in it")
        return _FRAME.size + length

    def _read_end(self, content: memoryview) -> None:
        if self._sealing is None:
            self._compare_footer(content)
        elif content != self._sealing.content(size=self._size, block_size=self._block_size):
            raise CodingError("its blocks, or its seal, are not what they were")
        kind, limit = self._limit
        if (self._size != limit) if kind == EXACT else (self._size > limit):
            raise CodingError("its header contradicts its end")

    def _compare_footer(self, content: memoryview) -> None:
        count = max(len(self._lengths) - 1, 0)
        index = struct.unpack_from(f"<Q{count}I", content)
        again, size, block_size, version = _TAIL.unpack_from(content, len(content) - TAIL_BYTES)
        if (index[0], again, size, block_size, version) != (count, count, self._size, self._block_size, VERSION):
            raise CodingError("its footer contradicts what comes before")
        if list(index[1:]) != self._lengths[:count].tolist():
            raise CodingError("its index contradicts its blocks")


class BlocksDecoder(Decoder):
    """Decodes some blocks of a sealed object, each of which is checked before it is given. Fed with them alone."""

    def __init__(self, blocks: Blocks, numbers: range) -> None:
        self._blocks = blocks
        self._left = numbers
        self._input = bytearray()
        self._at = 0

    def feed(self, parts: Sequence[Buffer]) -> None:
        del self._input[: self._at]
        self._at = 0
        for part in parts:
            self._input += part

    @property
    def is_quick(self) -> bool:
        return self._blocks.block_size <= CHUNK

    @property
    def _wanted(self) -> int:
        first = self._left.start
        return self._blocks.start(first + 1) - self._blocks.start(first) if self._left else 0

    @property
    def needs_input(self) -> bool:
        return not self._left or len(self._input) - self._at < self._wanted

    def decode(self, most: int) -> list[Buffer]:
        decoded: list[Buffer] = []
        blocks = self._blocks
        with memoryview(self._input) as view:
            while most > 0 and not self.needs_input:
                number, start = self._left.start, self._at
                self._at += self._wanted
                with view[start + _FRAME.size : self._at] as content:
                    blocks.check(number, content)
                    block = _decompressed(content, blocks.block_size)
                if len(block) != blocks.decoded(range(number, number + 1)):
                    raise CodingError(f"its block {number} decodes to {len(block)} bytes")
                decoded.append(block)
                most -= len(block)
                self._left = self._left[1:]
        return decoded

    def finish(self) -> None:
        if self._left or self._at < len(self._input):
            raise CodingError("its blocks are not where its seal says")


def _decompressed(content: memoryview, block_size: int) -> bytes:
    library = _library()
    try:
        block: bytes = library.decompress(content, uncompressed_size=block_size)
    except (library.LZ4BlockError, ValueError) as error:
        raise CodingError(f"a block is not LZ4, or broken ({error})") from None
    return block

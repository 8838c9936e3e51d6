"""The seal of LZ4 objects that this kind of store writes: where each block is, and what it has to be. Pure.

It is what stands at the end of an object of version 2 (see lz4_format), in place of NativeLink's footer::

    seal     0x02, length u32, then for each block: compressed length u32, BLAKE3 of the compressed bytes, 16 bytes;
             BLAKE3 of all that and of the last four fields, 16 bytes; count u32, decoded size u64, block_size u32,
             version u8 = 2

So blocks are checked without hashing what they decode to, at a fifth of the cost, and each by itself: a range needs the
seal and its own blocks.
"""

from __future__ import annotations

import struct
from array import array
from itertools import accumulate
from typing import Final

from blake3 import blake3

from nl.plugin import Buffer, CodingError

VERSION: Final = 2
SEAL: Final = 2
"""The kind of item that it is."""
_HASH_BYTES: Final = 16
_ENTRY: Final = struct.Struct(f"<I{_HASH_BYTES}s")
_END: Final = struct.Struct("<IQIB")
_FRAME_BYTES: Final = 5
"""What stands before the bytes of a block, and before those of the seal."""


def seal_bytes(size: int, block_size: int) -> int:
    """How long the seal of a blob of `size` bytes is, with what stands before it."""
    return _FRAME_BYTES + _ENTRY.size * -(-size // block_size) + _HASH_BYTES + _END.size


def content_bytes(count: int) -> int:
    """How long the content of a seal of `count` blocks is."""
    return _ENTRY.size * count + _HASH_BYTES + _END.size


def _hash(data: Buffer) -> bytes:
    return blake3(data).digest(_HASH_BYTES)


class Sealing:
    """Notes the blocks of one object, in order."""

    __slots__ = ("_entries", "count")

    def __init__(self) -> None:
        self._entries = bytearray()
        self.count = 0

    def add(self, block: Buffer) -> None:
        """The next block, compressed."""
        self._entries += _ENTRY.pack(len(block), _hash(block))
        self.count += 1

    def content(self, *, size: int, block_size: int) -> bytes:
        """The content of the seal."""
        entries, end = bytes(self._entries), _END.pack(self.count, size, block_size, VERSION)
        return b"".join((entries, _hash(entries + end), end))


class Blocks:
    """What a seal says, in 28 bytes a block. Raises CodingError if it contradicts itself or the object's length."""

    __slots__ = ("_ends", "_entries", "block_size", "size")

    def __init__(self, tail: Buffer, *, head_bytes: int, stored_size: int) -> None:
        """`tail`: the end of an object of `stored_size` bytes which begins with `head_bytes` of header."""
        view = memoryview(tail)
        if len(view) < _END.size:
            raise CodingError("it is too short to have a seal")
        count, size, block_size, version = _END.unpack(view[-_END.size :])
        self.size, self.block_size = int(size), int(block_size)
        length = content_bytes(count)
        if version != VERSION or not self.block_size or count != -(-self.size // self.block_size):
            raise CodingError("it does not end with a seal")
        if length > len(view):
            raise CodingError("its seal is longer than expected")
        content = bytes(view[-length:])
        entries, hash = content[: _ENTRY.size * count], content[_ENTRY.size * count : -_END.size]
        if _hash(entries + content[-_END.size :]) != hash:
            raise CodingError("its seal has changed")
        self._entries = entries
        lengths = (_FRAME_BYTES + each for each, _ in _ENTRY.iter_unpack(entries))
        self._ends: array[int] = array("Q", accumulate(lengths, initial=head_bytes))
        if self._ends[-1] + _FRAME_BYTES + length != stored_size:
            raise CodingError("its seal is not that of its blocks")

    def around(self, offset: int, count: int) -> range:
        """The blocks that have `count` bytes, one at least, from `offset` on."""
        return range(offset // self.block_size, (offset + count - 1) // self.block_size + 1)

    def start(self, number: int) -> int:
        """Where in the object what belongs to a block begins; of the one after the last, where the seal does."""
        return self._ends[number]

    def decoded(self, numbers: range) -> int:
        """How many bytes some blocks decode to."""
        return min(numbers.stop * self.block_size, self.size) - numbers.start * self.block_size

    def check(self, number: int, block: Buffer) -> None:
        """Raises CodingError unless this is the block, compressed."""
        length, hash = _ENTRY.unpack_from(self._entries, number * _ENTRY.size)
        if len(block) != length or _hash(block) != hash:
            raise CodingError(f"its block {number} is not what it was")

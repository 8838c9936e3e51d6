"""The list of a blob's chunks, in the form in which NativeLink keeps it. Pure.

count u64, then for each chunk its BLAKE3 hash, 32 bytes, and its size u64; all little-endian
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from nl.plugin import Buffer, CodingError, Digest, DigestFunction

_COUNT: Final = struct.Struct("<Q")
_CHUNK: Final = struct.Struct("<32sQ")
_MAX_CHUNK: Final = 1 << 32
"""No chunk of anybody's is nearly as large."""


class ChunkIndex:
    """The chunks of one blob, in order."""

    __slots__ = ("_ends", "chunks", "encoded_size")

    def __init__(self, chunks: Sequence[Digest]) -> None:
        self.chunks = tuple(chunks)
        self._ends = tuple(accumulate(chunk.size for chunk in chunks))
        self.encoded_size = _COUNT.size + _CHUNK.size * len(self.chunks)

    @property
    def size(self) -> int:
        """Of the blob."""
        return self._ends[-1] if self._ends else 0

    def start_of(self, at: int) -> int:
        """Where in the blob a chunk begins."""
        return self._ends[at - 1] if at else 0

    def chunk_at(self, offset: int) -> int:
        """Which chunk has the byte at `offset`."""
        return bisect_right(self._ends, offset)

    def encode(self) -> bytes:
        """As it is kept."""
        return b"".join(
            (_COUNT.pack(len(self.chunks)), *(_CHUNK.pack(bytes.fromhex(each.hash), each.size) for each in self.chunks))
        )

    @classmethod
    def decode(cls, data: Buffer) -> ChunkIndex:
        """Raises CodingError."""
        if len(data) < _COUNT.size:
            raise CodingError("it is too short to be a list of chunks")
        (count,) = _COUNT.unpack_from(data)
        if len(data) != _COUNT.size + count * _CHUNK.size:
            raise CodingError(f"it has {len(data)} bytes and says that it lists {count} chunks")
        chunks = [
            Digest(hash.hex(), size, DigestFunction.BLAKE3)
            for hash, size in _CHUNK.iter_unpack(memoryview(data)[_COUNT.size :])
        ]
        if any(not 0 < chunk.size < _MAX_CHUNK for chunk in chunks):
            raise CodingError("it lists a chunk of a size that none can have")
        return cls(chunks)

"""A set of digests in 40 bytes each, where a set of tuples takes 400: all that a bucket has, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

from nl.plugin import Digest, DigestFunction

_CELLS = 1 << 16
_REST = Struct("<30sQ")
"""A digest without the two bytes of its hash that say in which cell it lies."""
_BLAKE3 = 1 << 63
"""Added to the size: no size is so large."""


class DigestSet:
    """Digests in cells of a few each, by the first bytes of the hash. A cell is one `bytes`, searched by the C library.

    `copy` is cheap, and can be iterated over in another thread.
    """

    def __init__(self) -> None:
        self._cells = [b""] * _CELLS
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, digest: Digest) -> bool:
        cell, rest = _packed(digest)
        return _find(self._cells[cell], rest) >= 0

    def __iter__(self) -> Iterator[Digest]:
        for number, cell in enumerate(self._cells):
            first = number.to_bytes(2, "big")
            for hash, size in _REST.iter_unpack(cell):
                function = DigestFunction.BLAKE3 if size & _BLAKE3 else DigestFunction.SHA256
                yield Digest((first + hash).hex(), size & ~_BLAKE3, function)

    def add(self, digest: Digest) -> None:
        """Puts one in, unless it is there."""
        cell, rest = _packed(digest)
        there = self._cells[cell]
        if _find(there, rest) < 0:
            self._cells[cell] = there + rest
            self._count += 1

    def discard(self, digest: Digest) -> None:
        """Takes one out, if it is there."""
        cell, rest = _packed(digest)
        there = self._cells[cell]
        if (at := _find(there, rest)) >= 0:
            self._cells[cell] = there[:at] + there[at + len(rest) :]
            self._count -= 1

    def copy(self) -> DigestSet:
        """Another set with the same digests."""
        other = DigestSet()
        other._cells, other._count = list(self._cells), self._count
        return other


def _packed(digest: Digest) -> tuple[int, bytes]:
    hash = bytes.fromhex(digest.hash)
    size = digest.size | _BLAKE3 if digest.function is DigestFunction.BLAKE3 else digest.size
    return int.from_bytes(hash[:2], "big"), _REST.pack(hash[2:], size)


def _find(cell: bytes, rest: bytes) -> int:
    at = cell.find(rest)
    while at > 0 and at % len(rest):  # bytes of two neighbours that look like one
        at = cell.find(rest, at + 1)
    return at

"""Digests in 40 bytes each, where a tuple of objects takes 320: a large tree is remembered whole."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final

from nl.model.digest import Digest, DigestFunction

_RECORD: Final = Struct("<32sQ")
RECORD_BYTES: Final = _RECORD.size
pack: Final = _RECORD.pack
"""A record of a hash's 32 bytes and a size."""


class PackedDigests:
    """Digests of one function, in order, repetitions kept."""

    __slots__ = ("function", "records")

    def __init__(self, records: bytes | bytearray, function: DigestFunction) -> None:
        self.records = memoryview(records)
        """One after the other, as `pack` makes them."""
        self.function = function

    @classmethod
    def of(cls, digests: list[Digest], function: DigestFunction) -> PackedDigests:
        """Packs digests, which are all of `function`."""
        return cls(b"".join(pack(bytes.fromhex(digest.hash), digest.size) for digest in digests), function)

    def __len__(self) -> int:
        return len(self.records) // RECORD_BYTES

    @property
    def bytes_kept(self) -> int:
        """What they cost in memory, roughly."""
        return len(self.records) + 200

    def __iter__(self) -> Iterator[Digest]:
        function = self.function
        for hash, size in _RECORD.iter_unpack(self.records):
            yield Digest(hash.hex(), size, function)

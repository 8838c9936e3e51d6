"""Zstandard objects at rest: the frames as they are, and behind them a seal that says whether they still are.

The seal is a skippable frame (RFC 8878, 3.1.2), which every zstd decoder passes over::

    magic 0x184D2A5E, length u32 = 28, "nl01", decoded size u64, BLAKE3 of all that comes before, 16 bytes

Frames need not carry checksums, and what clients bring does not; with the seal, stored bytes can be checked without
unpacking them, and at a third of the cost.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

from nl.plugin import CHUNK, Buffer, CodingError, DigestFunction, NlError, Reader, new_hasher

_SEAL: Final = struct.Struct("<II4sQ16s")
_MAGIC, _VERSION = 0x184D2A5E, b"nl01"
SEAL_BYTES: Final = _SEAL.size
_SHOWN: Final = 32
"""Hex digits of the hash that are kept."""


def seal(frames: Buffer, size: int) -> bytes:
    """An object of frames that decode to `size` bytes."""
    hasher = new_hasher(DigestFunction.BLAKE3)
    hasher.update(frames)
    return b"".join((frames, _pack(size, hasher.hexdigest())))


def unseal(data: Buffer) -> tuple[memoryview, int]:
    """The frames of an object, and how many bytes they decode to. Raises CodingError."""
    view = memoryview(data)
    size, expected = _unpack(view[-SEAL_BYTES:])
    frames = view[:-SEAL_BYTES]
    hasher = new_hasher(DigestFunction.BLAKE3)
    hasher.update(frames)
    if hasher.hexdigest()[:_SHOWN] != expected:
        raise CodingError("its bytes have changed: their hash is not that of its seal")
    return frames, size


def decoded_size(tail: Buffer) -> int:
    """The decoded size that the last SEAL_BYTES of an object say. Raises CodingError."""
    return _unpack(tail)[0]


def _pack(size: int, hash: str) -> bytes:
    return _SEAL.pack(_MAGIC, SEAL_BYTES - 8, _VERSION, size, bytes.fromhex(hash[:_SHOWN]))


def _unpack(tail: Buffer) -> tuple[int, str]:
    if len(tail) != SEAL_BYTES:
        raise CodingError("it is too short to have a seal")
    magic, length, version, size, hash = _SEAL.unpack(tail)
    if (magic, length, version) != (_MAGIC, SEAL_BYTES - 8, _VERSION):
        raise CodingError("it has no seal at its end: cut short, or not written by this kind of store")
    return size, hash.hex()


class SealingReader(Reader):
    """Delivers the frames that `reader` delivers, and their seal. `decoded_size` is asked at the end."""

    __slots__ = ("_decoded_size", "_hasher", "_reader", "_rest", "_sealed", "size")

    def __init__(self, reader: Reader, decoded_size: Callable[[], int]) -> None:
        self.size = reader.size + SEAL_BYTES if reader.size >= 0 else -1
        self._reader = reader
        self._decoded_size = decoded_size
        self._hasher = new_hasher(DigestFunction.BLAKE3)
        self._rest = b""
        self._sealed = False

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if not self._sealed:
            parts = await self._reader.receive_parts(max_bytes)
            if parts:
                for part in parts:
                    self._hasher.update(part)
                return parts
            self._rest = _pack(self._decoded_size(), self._hasher.hexdigest())
            self._sealed = True
        piece, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return (piece,) if piece else ()


class UnsealingReader(Reader):
    """Delivers the frames of an object without its seal; the last of them once the seal has been compared.

    `stored_size`: of the whole object; `decoded_size`: what the seal has to say, -1 if that is not known. `offset`:
    where in the frames `reader` begins; beyond 0 there is nothing to be compared. `failure` makes the error to raise.
    """

    __slots__ = ("_decoded_size", "_failure", "_hasher", "_left", "_reader", "_whole", "size")

    def __init__(
        self, reader: Reader, *, stored_size: int, decoded_size: int, offset: int = 0, failure: Callable[[str], NlError]
    ) -> None:
        self.size = self._left = stored_size - SEAL_BYTES - offset
        self._decoded_size = decoded_size
        self._reader = reader
        self._whole = not offset
        self._failure = failure
        self._hasher = new_hasher(DigestFunction.BLAKE3)
        if self.size < 0:
            raise failure("it is too short to have a seal")

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if not self._left:
            return ()
        parts = await self._reader.receive_parts(min(max_bytes, self._left))
        if not parts:
            raise self._failure("it ends before its seal")
        for part in parts:
            self._left -= len(part)
            if self._whole:
                self._hasher.update(part)
        if self._left:
            return parts
        last = [bytes(part) for part in parts]  # the reader is asked for more before they are handed out
        await self._compare()
        return last

    async def _compare(self) -> None:
        tail = b""
        while parts := await self._reader.receive_parts(SEAL_BYTES + 1):
            tail = b"".join((tail, *parts))
            if len(tail) > SEAL_BYTES:
                raise self._failure("it is longer than it was")
        try:
            decoded_size, expected = _unpack(tail)
        except CodingError as error:
            raise self._failure(str(error)) from None
        if self._decoded_size not in (-1, decoded_size):
            raise self._failure(f"its seal says {decoded_size} bytes, its digest {self._decoded_size}")
        if self._whole and self._hasher.hexdigest()[:_SHOWN] != expected:
            raise self._failure("its bytes have changed: their hash is not that of its seal")

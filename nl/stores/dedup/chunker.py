"""Where blobs are cut: FastCDC, on a stream. Pure; the library is loaded when first needed.

The same bytes give the same chunks however they come, and what is inserted into a blob changes the chunks around it
only. Where exactly the cuts are is this store's own business: the index lists the chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from nl.plugin import CHUNK, Buffer, Digest, DigestFunction, digest_of

BATCH: Final = 2 * 1024 * 1024
"""How much is cut at once, in one stay in a thread."""
Chunk = tuple[Digest, memoryview]


def buffer_bytes(max_size: int, *, batch: int, size: int = -1) -> int:
    """How much a Chunker of a blob of `size` bytes (-1: not known) holds."""
    full = max(2 * max_size, batch)
    return (min(full, size + 1) if size >= 0 else full) + CHUNK


class Chunker:
    """Cuts one blob, which is fed into a buffer: `feed` until it is full or the blob ends, `cut`, `drop`, and again."""

    def __init__(
        self, *, min_size: int, normal_size: int, max_size: int, batch: int = BATCH, size: int = -1
    ) -> None:
        self._max_size = max_size
        self._fastcdc = _library().FastCDC(avg_size=normal_size, min_size=min_size, max_size=max_size)
        room = buffer_bytes(max_size, batch=batch, size=size)
        self._full = room - CHUNK
        self._buffer = memoryview(bytearray(room))
        self._start = 0
        self._end = 0

    @property
    def waiting(self) -> int:
        """How many bytes have not been cut."""
        return self._end - self._start

    @property
    def is_full(self) -> bool:
        """Whether it is time to cut: there is room for CHUNK bytes more, at the most."""
        return self._end >= self._full

    def feed(self, parts: Sequence[Buffer]) -> None:
        """Takes the next bytes, CHUNK at the most, which may be reused afterwards. To be called while not `is_full`."""
        for part in parts:
            end = self._end + len(part)
            self._buffer[self._end : end] = part
            self._end = end

    def cut(self, *, is_last: bool) -> list[Chunk]:
        """The chunks that are certain: all, where nothing follows. They are valid until `drop`."""
        view = self._buffer[self._start : self._end]
        chunks: list[Chunk] = []
        at = 0
        cuts = iter(self._fastcdc.cut_buf(view))
        while is_last or len(view) - at >= self._max_size:  # what is shorter could go on in what comes next
            if (found := next(cuts, None)) is None:
                break
            piece = view[at : at + found.length]
            chunks.append((digest_of(piece, DigestFunction.BLAKE3), piece))
            at += found.length
        self._start += at
        return chunks

    def drop(self) -> None:
        """Forgets what was cut."""
        rest = self.waiting
        self._buffer[:rest] = self._buffer[self._start : self._end]
        self._start, self._end = 0, rest


def _library() -> Any:
    import pyfastcdc  # loaded when first needed

    return pyfastcdc

"""A range of a blob that is decoded front to back, and checked as a whole before the last of the range is given."""

from __future__ import annotations

from collections.abc import Sequence

from nl.plugin import CHUNK, Buffer, InvalidRequestError, RangeError, Reader, clamp


class RangeReader(Reader):
    """`left` bytes of a reader that stands at their start, or all that is left if it is None."""

    __slots__ = ("_left", "_reader", "size")

    def __init__(self, reader: Reader, *, left: int | None) -> None:
        self.size = left if left is not None and reader.size >= 0 else -1
        self._reader = reader
        self._left = left

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        left = self._left
        if left is None:
            return await self._reader.receive_parts(max_bytes)
        if not left:
            return ()
        parts = await self._reader.receive_parts(min(max_bytes, left))
        self._left = left - sum(map(len, parts)) if parts else 0
        if not self._left:
            await _check_rest(self._reader)  # what it has handed out are objects of their own: they stay valid
        return parts


async def open_range(reader: Reader, *, offset: int, length: int | None) -> Reader:
    """Bytes [offset, offset + length) of what `reader` delivers from its start, clamped to its end.

    Raises as `clamp` does; where the size is not known, after having read up to the offset.
    """
    if reader.size >= 0:
        length = clamp(reader.size, offset, length)
    elif offset < 0:
        raise RangeError(f"offset {offset} is outside of the value")
    elif length is not None and length < 0:
        raise InvalidRequestError(f"a length of {length} bytes makes no sense; expected 0 or more")
    skip = offset
    while skip:
        parts = await reader.receive_parts(min(CHUNK, skip))
        if not parts:
            raise RangeError(f"offset {offset} is outside of a value of {offset - skip} bytes")
        skip -= sum(map(len, parts))
    return RangeReader(reader, left=length)


async def _check_rest(reader: Reader) -> None:
    """Reads to the end, where the reader raises if the blob is not what it should be."""
    while await reader.receive_parts():
        pass

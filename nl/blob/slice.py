"""Parts of blobs: the one place that says what an offset and a length mean.

`length` None means to the end; both are clamped to the blob's end; an offset beyond the end is a RangeError, an offset
at the end is an empty read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType

from nl.blob.reader import CHUNK, Buffer, BytesReader, Reader
from nl.errors import InternalError, InvalidRequestError, RangeError


def clamp(size: int, offset: int, length: int | None) -> int:
    """How many bytes of a blob of `size` the range covers.

    Raises RangeError if `offset` is outside of [0, size], InvalidRequestError if `length` is negative.
    """
    if not 0 <= offset <= size:
        raise RangeError(f"offset {offset} is outside of a blob of {size} bytes")
    if length is None:
        return size - offset
    if length < 0:
        raise InvalidRequestError(f"a length of {length} bytes makes no sense; expected 0 or more")
    return min(length, size - offset)


def slice_bytes(data: Buffer, *, offset: int = 0, length: int | None = None) -> BytesReader:
    """A reader over a range of bytes that are in memory, without copying. Raises as `clamp` does."""
    size = len(data)
    if not offset and (length is None or length >= size):
        return BytesReader(data)
    count = clamp(size, offset, length)
    return BytesReader(memoryview(data)[offset : offset + count])


class Opened:
    """What `Store.open` returns where nothing is to be closed: entering calls `find`, which returns a reader or raises.

    `find` runs when the context is entered, not before, as the Store contract has it.
    """

    __slots__ = ("_find",)

    def __init__(self, find: Callable[[], Reader]) -> None:
        self._find = find

    async def __aenter__(self) -> Reader:
        return self._find()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


OpenedReader = tuple[Reader, Callable[[], Awaitable[None]] | None]
"""A reader, and what is to be awaited when it is no longer read, if anything is."""


class Opening:
    """What `Store.open` returns where opening takes a request: entering awaits `find`, whose reader it gives; leaving
    awaits what `find` has named for the end.
    """

    __slots__ = ("_end", "_find")

    def __init__(self, find: Callable[[], Awaitable[OpenedReader]]) -> None:
        self._find = find
        self._end: Callable[[], Awaitable[None]] | None = None

    async def __aenter__(self) -> Reader:
        reader, self._end = await self._find()
        return reader

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._end is not None:
            await self._end()  # noqa: ASYNC102  it shields what it has to


class SliceReader(Reader):
    """A range of another reader, for sources that can only be read from their start: skips, then stops.

    `reader.size` must be known. Raises as `clamp` does.
    """

    __slots__ = ("_left", "_reader", "_skip", "size")

    def __init__(self, reader: Reader, *, offset: int = 0, length: int | None = None) -> None:
        if reader.size < 0:
            raise InternalError("a reader of unknown size cannot be sliced")
        self.size = self._left = clamp(reader.size, offset, length)
        self._skip = offset
        self._reader = reader

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if not self._left:
            return ()
        while self._skip:
            parts = await self._reader.receive_parts(min(CHUNK, self._skip))
            if not parts:
                raise InternalError("a reader ended before its size")
            self._skip -= sum(map(len, parts))
        parts = await self._reader.receive_parts(min(max_bytes, self._left))
        if not parts:
            raise InternalError("a reader ended before its size")
        self._left -= sum(map(len, parts))
        return parts

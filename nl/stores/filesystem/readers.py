"""Reading files: small ones inline, large ones through one buffer that is used again and again.

Bytes that are in the page cache are read on the loop (`RWF_NOWAIT`: 1 to 60 us); only what must come from the disk is
read in a thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import trio

from nl.plugin import CHUNK, SMALL, Buffer, CorruptBlobError, Reader

NO_NOWAIT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What a file system says that cannot tell whether it would have to wait (some FUSE and network ones)."""
_SMALLEST_BUFFER = 4096


class FileAccess:
    """How this store reads: the threads for cold files, and spare buffers."""

    def __init__(self, *, buffer_size: int, threads: trio.CapacityLimiter, spare_buffers: int = 16) -> None:
        self.buffer_size = buffer_size
        self.nowait = os.RWF_NOWAIT
        self.cold_reads = 0
        self._threads = threads
        self._spare: list[bytearray] = []
        self._max_spare = spare_buffers

    async def read_into(self, fd: int, buffer: memoryview | bytearray, offset: int) -> int:
        """Fills the buffer from `offset` on as far as one read goes; returns the count, 0 at the end of the file."""
        try:
            if self.nowait or len(buffer) <= SMALL:
                return os.preadv(fd, [buffer], offset, self.nowait)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in NO_NOWAIT or not self.nowait:
                raise
            self.nowait = 0  # This file system does not know the flag (some FUSE and network ones).
        self.cold_reads += 1
        return await trio.to_thread.run_sync(os.preadv, fd, [buffer], offset, limiter=self._threads)

    async def read_whole(self, fd: int, size: int) -> bytearray:
        """The first `size` bytes of a file. Raises EOFError if there are fewer."""
        data = bytearray(size)
        got = await self.read_into(fd, data, 0) if size else 0
        if got == size:
            return data
        view = memoryview(data)
        while got < size:
            count = await self.read_into(fd, view[got:], got)
            if not count:
                raise EOFError
            got += count
        return data

    def take_buffer(self, size: int) -> bytearray:
        """A buffer for reads of up to `size` bytes."""
        if size >= self.buffer_size:
            return self._spare.pop() if self._spare else bytearray(self.buffer_size)
        return bytearray(max(size, _SMALLEST_BUFFER))

    def give_back(self, buffer: bytearray) -> None:
        """Keeps a full-sized buffer for the next reader, up to a limit."""
        if len(buffer) == self.buffer_size and len(self._spare) < self._max_spare:
            self._spare.append(buffer)


class FileReader(Reader):
    """Bytes [offset, offset + size) of an open file, of which it has one buffer's worth in memory at a time.

    At its end it looks at the file again: what was changed while it was being read is not passed off as good.
    """

    __slots__ = ("_access", "_buffer", "_fd", "_left", "_mtime_ns", "_offset", "_view", "_what", "size")

    def __init__(self, access: FileAccess, fd: int, *, offset: int, size: int, mtime_ns: int, what: str) -> None:
        self.size = size
        self._access = access
        self._fd = fd
        self._offset = offset
        self._left = size
        self._mtime_ns = mtime_ns
        self._what = what
        self._buffer = bytearray()
        self._view = memoryview(self._buffer)

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        wanted = min(max_bytes, self._left, self._access.buffer_size)
        if not wanted:
            return ()
        if len(self._buffer) < wanted:
            self._access.give_back(self._buffer)
            self._buffer = self._access.take_buffer(wanted)
            self._view = memoryview(self._buffer)
        part = self._view[:wanted]
        got = await self._access.read_into(self._fd, part, self._offset)
        self._offset += got
        self._left -= got
        if not got or (not self._left and os.fstat(self._fd).st_mtime_ns != self._mtime_ns):
            raise CorruptBlobError(f"{self._what} was changed or cut short while it was being read")
        return (part if got == wanted else part[:got],)

    def close(self) -> None:
        """Closes the file and gives the buffer back. Views handed out must not be used any more."""
        os.close(self._fd)
        self._access.give_back(self._buffer)
        self._buffer = bytearray()

"""A local file as a reader, for uploading it. Not the filesystem store's reader, which checks what it serves."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from nl.blob.reader import CHUNK, Buffer, Reader
from nl.errors import InternalError

INLINE = 64 * 1024
"""Files up to this size are read without a thread: that costs less than the hop."""


class FileReader(Reader):
    """Reads an open file from its start to the size it had when it was opened."""

    __slots__ = ("_at", "_fd", "size")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0
        self.size = os.fstat(fd).st_size

    @property
    def can_rewind(self) -> bool:
        return True

    async def rewind(self) -> None:
        self._at = 0

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        want = min(max_bytes, self.size - self._at)
        if not want:
            return ()
        if self.size <= INLINE:
            got = os.pread(self._fd, want, self._at)
        else:
            got = await trio.to_thread.run_sync(os.pread, self._fd, want, self._at)
        if not got:
            raise InternalError(f"a file of {self.size} bytes was cut short at {self._at} while it was read")
        self._at += len(got)
        return (got,)


@asynccontextmanager
async def open_file(path: str) -> AsyncIterator[FileReader]:
    """A reader over the regular file at `path`. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield FileReader(fd)
    finally:
        os.close(fd)

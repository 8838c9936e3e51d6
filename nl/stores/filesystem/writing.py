"""Temporary files: what is being written and nobody sees yet. Small blobs inline, large ones in threads, in large
pieces. Whoever opens a `TempFile` commits it or it is gone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

import trio

from nl.plugin import SMALL, Buffer, Reader
from nl.stores.filesystem.layout import Layout

PIECE = 1024 * 1024
"""Bytes that are gathered before a thread writes them: a hop costs 80 us, writing them 300."""
_MAX_PARTS = 512
"""Below IOV_MAX (1024)."""
_MODE = 0o444


class TempFile:
    """A file under way. As a context manager it is removed at the end unless `committed` was set."""

    def __init__(self, layout: Layout, *, mode: int = _MODE) -> None:
        self.name = layout.temp_name()
        self.size = 0
        self.committed = False
        self._folder_fd = layout.temp.fd
        self._mode = mode
        self.fd = os.open(
            self.name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode, dir_fd=self._folder_fd
        )

    def __enter__(self) -> TempFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()
        if not self.committed:
            with suppress(FileNotFoundError):  # If somebody wiped the folder, what brought us here is the better news.
                os.unlink(self.name, dir_fd=self._folder_fd)

    def append(self, parts: Sequence[Buffer]) -> None:
        """Writes all parts, on the spot."""
        for start in range(0, len(parts), _MAX_PARTS):
            views = list(parts[start : start + _MAX_PARTS])
            while views:
                written = os.writev(self.fd, views)
                self.size += written
                while views and written >= len(views[0]):
                    written -= len(views.pop(0))
                if written:
                    views[0] = memoryview(views[0])[written:]

    def finish(self) -> os.stat_result:
        """Closes the file with its final mode; returns its stat, by which it is known from now on."""
        facts = os.fstat(self.fd)
        if facts.st_mode & 0o777 != self._mode:  # The umask took some bits, and workers of other users need them.
            os.fchmod(self.fd, self._mode)
        self._close()
        return facts

    def flush_and_drop(self) -> None:
        """Writes through to the disk and drops the file's pages from the page cache."""
        os.fdatasync(self.fd)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Gatherer:
    """Collects what readers hand out until it is worth a thread.

    A reader's buffers may change with its next call, so what is kept longer is copied, unless it cannot change
    (`bytes`, and views of it).
    """

    def __init__(self, file: TempFile, *, threads: trio.CapacityLimiter) -> None:
        self._file = file
        self._threads = threads
        self._parts: list[Buffer] = []
        self._gathered = 0

    async def add(self, parts: Sequence[Buffer]) -> None:
        """Takes the next parts; writes when there is enough."""
        count = sum(map(len, parts))
        if not self._gathered and count >= PIECE // 2:
            await self._write(parts)
            return
        self._parts.extend(part if _is_lasting(part) else bytes(part) for part in parts)
        self._gathered += count
        if self._gathered >= PIECE or len(self._parts) >= _MAX_PARTS:
            await self.flush()

    async def flush(self) -> None:
        """Writes what is gathered: in a thread if it is much."""
        parts, gathered = self._parts, self._gathered
        self._parts, self._gathered = [], 0
        if gathered > SMALL:
            await self._write(parts)
        elif gathered:
            self._file.append(parts)

    async def _write(self, parts: Sequence[Buffer]) -> None:
        await trio.to_thread.run_sync(self._file.append, parts, limiter=self._threads)


async def drain(reader: Reader) -> int:
    """Consumes a reader; returns how many bytes it had."""
    total = 0
    while parts := await reader.receive_parts(PIECE):
        total += sum(map(len, parts))
    return total


def _is_lasting(part: Buffer) -> bool:
    return type(part) is bytes or (type(part) is memoryview and type(part.obj) is bytes)

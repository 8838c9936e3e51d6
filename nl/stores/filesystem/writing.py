"""Temporary files: what is being written and nobody sees yet. Whoever opens a `TempFile` commits it or it is gone.

The kernel takes what is written into its page cache, at the speed of memory: then a hop to a thread, and keeping the
bytes for it, costs more than the write. Until too much of the cache waits for the disk: then it makes writers wait, and
only threads may. `DiskPace` knows which it is.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType

import trio

from nl.plugin import CHUNK, SMALL, Buffer, Reader
from nl.stores.filesystem.layout import Layout
from nl.stores.filesystem.reserving import reserve

PIECE = 1024 * 1024
"""Bytes that are gathered before a thread writes them: a hop costs 80 us, writing them 200. Written on the spot, so
much of one file goes to the cache before others have their turn."""
_LEAST = 64 * 1024
"""Bytes that are worth a write of their own on the spot: fewer are gathered, which copies them."""
_AHEAD = 8 * 1024 * 1024
"""Reserved in one go. More of it at a time saves nothing, and an upload that stops early would hold it meanwhile."""
_SLOW_S = 0.005
"""A write on the spot that waits, and takes longer, waits for the disk: 256 KiB take 50 us, in memory that the host
must find first 500."""
_FAST_IN_A_ROW = 32
"""Writes in threads, none of which waited, after which one on the spot is tried again."""
_MAX_GATHERED = 8 * 1024 * 1024
"""Bytes gathered by all uploads of a store from which on each writes little at a time: stalled ones keep theirs ..."""
_FOR_A_THREAD = 2 * SMALL
"""... but not so little that it would be written on the spot: the disk is slow then."""
_ATTEMPTS = 5
"""How often a write has room made for it on a full disk before it fails."""
_MAX_PARTS = 512
"""Below IOV_MAX (1024)."""
_MODE = 0o444


class TempFile:
    """A file under way. As a context manager it is removed at the end unless `committed` was set."""

    def __init__(self, layout: Layout, *, mode: int = _MODE, expected: int = -1) -> None:
        """`expected` is the size that the file will have, if that is known: room is reserved for a large one."""
        self.name = layout.temp_name()
        self.size = 0
        self._expected = expected if expected >= PIECE else 0
        self._reserved = 0
        self.committed = False
        self._folder_fd = layout.temp.fd
        self._mode = mode
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        try:
            self.fd = os.open(self.name, flags, mode, dir_fd=self._folder_fd)
        except FileNotFoundError:
            layout.make_temp_folder(self.name)  # A cleaner has deleted it, as it was empty.
            self.fd = os.open(self.name, flags, mode, dir_fd=self._folder_fd)

    def __enter__(self) -> TempFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()
        if not self.committed:
            with suppress(FileNotFoundError):  # If somebody wiped the folder, what brought us here is the better news.
                os.unlink(self.name, dir_fd=self._folder_fd)

    @property
    def missing(self) -> int:
        """Bytes that are still expected of a large file."""
        return max(0, self._expected - self.size)

    def append(self, parts: Sequence[Buffer]) -> None:
        """Writes all parts, on the spot."""
        if self._reserved < self._expected and self.size + sum(map(len, parts)) > self._reserved:
            self._reserve()
        for start in range(0, len(parts), _MAX_PARTS):
            views = list(parts[start : start + _MAX_PARTS])
            left = sum(map(len, views))
            while left:
                written = os.writev(self.fd, views)
                self.size += written
                left -= written
                if not left:
                    break
                while written >= len(views[0]):
                    written -= len(views.pop(0))
                if written:
                    views[0] = memoryview(views[0])[written:]

    def _reserve(self) -> None:
        stop = min(self._expected, self.size + _AHEAD)
        can = reserve(self.fd, offset=self._reserved, count=stop - self._reserved) if stop > self._reserved else True
        self._reserved = stop if can else self._expected

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


class DiskPace:
    """Whether the page cache of a store's disk takes what is written at once. One for all files of a store.

    The first write that has to wait, for a fifth of a second at the worst, turns all to threads; they are measured,
    too, and some that did not wait turn back.
    """

    __slots__ = ("_fast_in_a_row", "gathered", "is_fast")

    def __init__(self) -> None:
        self.is_fast = True
        self.gathered = 0
        """Bytes that all uploads together have gathered."""
        self._fast_in_a_row = 0

    @property
    def enough(self) -> int:
        """Bytes that one upload gathers before it writes: a PIECE for a thread, unless all together keep too much."""
        if self.gathered <= _MAX_GATHERED:
            return CHUNK if self.is_fast else PIECE
        return _LEAST if self.is_fast else _FOR_A_THREAD

    def note(self, seconds: float) -> None:
        """A write took so long."""
        if seconds > _SLOW_S:
            self.is_fast = False
            self._fast_in_a_row = 0
        elif not self.is_fast:
            self._fast_in_a_row += 1
            self.is_fast = self._fast_in_a_row >= _FAST_IN_A_ROW


MakeRoom = Callable[[OSError, int], Awaitable[bool]]
"""After an error, and with so many bytes to go: whether it is worth another try."""


class Gatherer:
    """Writes what a reader hands out: on the spot while the disk's pace allows, else collected until it is worth a
    thread.

    A reader's buffers may change with its next call, so what is kept longer is copied, unless it cannot change
    (`bytes`, and views of it).
    """

    def __init__(
        self, file: TempFile, *, pace: DiskPace, threads: trio.CapacityLimiter, make_room: MakeRoom
    ) -> None:
        self._make_room = make_room
        self._file = file
        self._pace = pace
        self._threads = threads
        self._since_turn = 0
        self._parts: list[Buffer] = []
        self._gathered = 0

    @property
    def wants(self) -> int:
        """How many bytes to bring at most."""
        return CHUNK if self._pace.is_fast else PIECE

    async def add(self, parts: Sequence[Buffer]) -> None:
        """Takes the next parts; writes when there is enough."""
        count = sum(map(len, parts))
        if not self._gathered and count >= (_LEAST if self._pace.is_fast else min(self._pace.enough, PIECE // 2)):
            await self._write(parts, count)
            return
        self._parts.extend(part if _is_lasting(part) else bytes(part) for part in parts)
        self._gathered += count
        self._pace.gathered += count
        if self._gathered >= self._pace.enough or len(self._parts) >= _MAX_PARTS:
            await self.flush()

    async def flush(self) -> None:
        """Writes what is gathered: in a thread if it is much."""
        parts, gathered = self._parts, self._gathered
        self.forget()
        if gathered > SMALL:
            await self._write(parts, gathered)
        elif gathered:
            before = self._file.size
            try:
                self._file.append(parts)
            except OSError as error:
                await self.resume(parts, written=self._file.size - before, error=error)

    def forget(self) -> None:
        """Drops what is gathered: it is written, or will never be."""
        self._pace.gathered -= self._gathered
        self._parts, self._gathered = [], 0

    async def resume(self, parts: Sequence[Buffer], *, written: int, error: OSError) -> None:
        """Goes on after an error, of which `written` bytes are unaffected, if room can be made. Raises OSError."""
        for _ in range(_ATTEMPTS):
            parts = _without_first(parts, written)
            if not await self._make_room(error, max(self._file.missing, sum(map(len, parts)))):
                raise error
            before = self._file.size
            try:
                await trio.to_thread.run_sync(self._append, parts, limiter=self._threads)
            except OSError as again:
                error, written = again, self._file.size - before
            else:
                return
        raise error

    async def _write(self, parts: Sequence[Buffer], count: int) -> None:
        before = self._file.size
        try:
            if not self._pace.is_fast:
                self._pace.note(await trio.to_thread.run_sync(self._append, parts, limiter=self._threads))
                return
            self._pace.note(self._append(parts))
        except OSError as error:
            await self.resume(parts, written=self._file.size - before, error=error)
        self._since_turn += count
        if self._since_turn >= PIECE:
            self._since_turn = 0
            await trio.lowlevel.checkpoint()

    def _append(self, parts: Sequence[Buffer]) -> float:
        return seconds_waited(self._file.append, parts)


def seconds_waited(write: Callable[[Sequence[Buffer]], None], parts: Sequence[Buffer]) -> float:
    """How long a write took, by the clock, if it has waited for anything; 0 if others only had their turn meanwhile.

    On a busy machine a thread is put aside for longer than a slow disk makes it wait, and there a hop costs the most.
    """
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    began = time.perf_counter()
    write(parts)
    seconds = time.perf_counter() - began
    if seconds > _SLOW_S and resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw == before:
        return 0.0
    return seconds


async def drain(reader: Reader) -> int:
    """Consumes a reader; returns how many bytes it had."""
    total = 0
    while parts := await reader.receive_parts(PIECE):
        total += sum(map(len, parts))
    return total


def _without_first(parts: Sequence[Buffer], count: int) -> list[Buffer]:
    """The parts without their first `count` bytes."""
    left: list[Buffer] = []
    for part in parts:
        if count < len(part):
            left.append(memoryview(part)[count:] if count else part)
        count = max(0, count - len(part))
    return left


def _is_lasting(part: Buffer) -> bool:
    return type(part) is bytes or (type(part) is memoryview and type(part.obj) is bytes)

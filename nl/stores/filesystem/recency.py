"""Recency for others: when blobs were used is written to their atime, for restarts, and told to processes that come.

Only the atime: `utimensat` with UTIME_OMIT leaves the mtime alone, by which changed files are found.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable

import trio

from nl.plugin import UnavailableError
from nl.stores.filesystem.clock import Clock
from nl.stores.filesystem.mirror import Mirror
from nl.stores.filesystem.uses import UseTable

_log = logging.getLogger(__name__)

_UTIME_OMIT = (1 << 30) - 2
_AT_SYMLINK_NOFOLLOW = 0x100
_BATCH = 50_000
"""Entries that one flush writes at most (3 us each, in a thread); of more, the most recent are written."""

_TICK_S = 0.2
_PATIENCE_S = 2.0
_PAUSE_S = 0.01

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class Recency:
    """Writes the uses of blobs since the last time to disk, and tells other processes of them (uses.py)."""

    def __init__(self, mirror: Mirror, uses: UseTable, clock: Clock) -> None:
        self._mirror = mirror
        self._clock = clock
        self._refused = False
        self._gave_up = False
        self._began = self._last = time.monotonic()
        self._uses = uses
        self.flushed_blobs = 0

    async def keep_company(self, tell_sum: Callable[[], Awaitable[None]]) -> None:
        """Runs for ever: tells another process that comes to the folder what there is, and what this one has used."""
        while True:
            await trio.sleep(_TICK_S)
            if self._gave_up and not self._uses.is_late:
                # What was told late may have taken the place of newer uses of this process, in the same moment.
                self._gave_up = False
                await self._tell_uses()
            if self._uses.has_company():
                self._uses.keep_company()
                try:
                    await tell_sum()
                except (OSError, UnavailableError) as error:  # the sum is told again every few seconds
                    _log.error("store %s: the sum of bytes is not told: %s", self._mirror.layout.name, error)
                await self._tell_uses()
                self._uses.completed()

    async def _tell_uses(self) -> None:
        for _ in self._mirror.index.tell_uses(self._began):
            await trio.lowlevel.checkpoint()

    async def wait_for_others(self) -> None:
        """Waits until a process that was alone until this one came has told what it had used.

        Not for ever: it may have been stopped, or have died. Then its access times must do.
        """
        ends_at = trio.current_time() + _PATIENCE_S
        # It is another process that is waited for: no event comes from there.
        while not self._uses.is_complete and trio.current_time() < ends_at:  # noqa: ASYNC110
            await trio.sleep(_PAUSE_S)
        if not self._uses.is_complete:
            self._uses.give_up()
            self._gave_up = True

    async def flush(self) -> None:
        """Writes what was used. *Cancellation*: what was not written yet is forgotten; it is a hint only."""
        since, self._last = self._last, time.monotonic()
        left = _BATCH
        for slots in self._mirror.index.order.used_since(since):
            await self._write(slots[-left:])
            left -= len(slots)
            if left <= 0:
                break

    async def _write(self, slots: list[int]) -> None:
        if not slots:
            return
        used = [self._place(slot) for slot in slots]
        self.flushed_blobs += len(used)
        number = await trio.to_thread.run_sync(_write_atimes, used)
        if number and not self._refused:
            self._refused = True
            layout = self._mirror.layout
            _log.warning(
                "store %s: cannot set access times in %s (%s): which blobs were used last is not kept over a "
                "restart. The files should belong to the user that this process runs as",
                layout.name, layout.content_path, os.strerror(number),
            )  # fmt: skip

    def _place(self, slot: int) -> tuple[int, bytes, float]:
        """(folder, name, atime) of a file."""
        index = self._mirror.index
        folder, name = self._mirror.layout.place_of(index.key_at(slot), index.sizes[slot])
        return folder.fd, os.fsencode(name), self._clock.for_file(index.used[slot])


def _write_atimes(used: list[tuple[int, bytes, float]]) -> int:
    """In a thread. Returns the last errno other than that a file is gone, 0 if all went well."""
    times = (_Timespec * 2)()
    times[1].tv_nsec = _UTIME_OMIT
    failed = 0
    for folder, name, when in used:
        seconds = int(when)
        times[0].tv_sec = seconds
        times[0].tv_nsec = int((when - seconds) * 1e9)
        if _libc.utimensat(folder, name, times, _AT_SYMLINK_NOFOLLOW) != 0:
            number = ctypes.get_errno()
            if number != errno.ENOENT:
                failed = number
    return failed

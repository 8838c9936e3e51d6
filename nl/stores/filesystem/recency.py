"""Recency that lasts: when blobs were used is written to their atime, for restarts and for the other processes.

Only the atime: `utimensat` with UTIME_OMIT leaves the mtime alone, by which changed files are found.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import time

import trio

from nl.stores.filesystem.commit import Committer
from nl.stores.filesystem.names import IndexKey

_log = logging.getLogger(__name__)

_UTIME_OMIT = (1 << 30) - 2
_AT_SYMLINK_NOFOLLOW = 0x100
_BATCH = 50_000
"""Entries that one flush writes at most (3 us each, in a thread); of more, the most recent are written."""
_QUIET = 1000
"""The walk back from the most recent entry ends after so many that were not used since the last flush."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class Recency:
    """Writes the uses of blobs since the last time to disk."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._refused = False
        self._last = 0.0
        self.flushed_blobs = 0

    async def flush(self) -> None:
        """Writes what was used. *Cancellation*: what was not written yet is forgotten; it is a hint only."""
        used = self._collect()
        if used:
            self.flushed_blobs += len(used)
            number = await trio.to_thread.run_sync(_write_atimes, used)
            if number and not self._refused:
                self._refused = True
                _log.warning(
                    "store %s: cannot set access times in %s (%s): which blobs were used last is not kept over a "
                    "restart. The files should belong to the user that this process runs as",
                    self._committer.mirror.layout.name, self._committer.mirror.layout.content_path,
                    os.strerror(number),
                )  # fmt: skip

    def _collect(self) -> list[tuple[int, bytes, float]]:
        """(folder, name, time) of the entries that this process used since the last flush, and marks them as known."""
        found: list[tuple[int, bytes, float]] = []
        blobs = self._committer.mirror.index.blobs
        last, self._last = self._last, time.time()
        quiet = 0
        for key in reversed(blobs):
            entry = blobs[key]
            if entry.used <= 0:
                if -entry.used < last:
                    # Not used since: what was is nearer to the end, but for a few that other processes keep alive.
                    quiet += 1
                    if quiet > _QUIET:
                        break
                continue
            found.append(self._place(key, entry.used))
            entry.used = -entry.used
            if len(found) >= _BATCH:
                break
        return found

    def _place(self, key: IndexKey, used: float) -> tuple[int, bytes, float]:
        folder, name = self._committer.mirror.layout.place_of(key)
        return folder.fd, os.fsencode(name), used


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

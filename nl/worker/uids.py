"""The uids that actions are lent on a server that is root: each belongs to one action at a time on the whole machine.

What makes it so between servers is a lock on one byte of a file for each uid (fcntl(2), open file description locks),
which goes with whoever holds it, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from nl.errors import UnavailableError

LOCK_FILE = "/run/nl-uids.lock"
_PAUSE_S = 1.0
"""How long to wait for uids that another server has lent, before the next look."""
_TAKEN = (errno.EAGAIN, errno.EACCES)


class UidPool:
    """Lends uids of `first` to `first + count - 1`, those first that were not lent for the longest time."""

    def __init__(self, first: int, count: int, *, lock_file: str = LOCK_FILE) -> None:
        self._free = deque(range(first, first + count))
        self._lock_file = lock_file
        self._fd: int | None = None
        self._returned = trio.Event()

    def open(self) -> None:
        """Opens the file with the locks. Raises OSError."""
        if self._fd is None:
            self._fd = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def close(self) -> None:
        """Closes it again; nothing may be lent any more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[int]:
        """A uid for as long as the block lasts. Waits while all are lent."""
        uid = self._take()
        while uid is None:
            with trio.move_on_after(_PAUSE_S):
                await self._returned.wait()
            uid = self._take()
        try:
            yield uid
        finally:
            self._lock(uid, fcntl.F_UNLCK)
            self._free.append(uid)
            self._returned.set()
            self._returned = trio.Event()

    def _take(self) -> int | None:
        for _ in range(len(self._free)):
            uid = self._free.popleft()
            if self._lock(uid, fcntl.F_WRLCK):
                return uid
            self._free.append(uid)
        return None

    def _lock(self, uid: int, kind: int) -> bool:
        if self._fd is None:
            raise UnavailableError("the uids of actions are no longer lent: the worker has ended")
        lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, uid, 1, 0)
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, lock)
        except OSError as exc:
            if exc.errno in _TAKEN:
                return False
            raise
        return True

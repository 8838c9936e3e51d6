"""When files were last used, by whichever process: a table in memory that all processes on a folder share.

Each process knows what it has used itself (index.py). Before it evicts, it asks this table whether another one has
used the file later: what one process said is there is then the last to be evicted by all. Writing takes 50 ns, no
lock and no system call; a process that is killed loses none of it.

A process that is alone on its folder writes nothing. The next one to come waits until it has (`keep_company`).

A file has a cell by its key; files of equal cells keep each other alive for a while, which is harmless. Times are those
of CLOCK_MONOTONIC, which all processes on a machine share and nobody sets. The file is named after the start of the
machine, so that no other machine's times, and none from before, are taken for ours.

Between an evictor's look at the table and the end of the file somebody might say that it is there. So who evicts
writes down what, *then* looks into the table, deletes, and strikes it out; who is asked writes down the use, *then*
looks what is being evicted, then whether the file is there. If that is the file, it counts as missing. If not, then
either the evictor begins later, and finds the use; or it has ended, and the file is seen to be gone. A processor may
delay a store behind a load, so between the two each makes a system call (`fence`). What is written down by a process
that was killed is struck out by the next that has the folder's lock.

The file gets all of its blocks when it is made: storing into a hole would kill the process when the disk is full.
"""

from __future__ import annotations

import fcntl
import logging
import math
import mmap
import os
import time
import zlib
from contextlib import suppress

from nl.stores.filesystem.names import IndexKey, is_blob
from nl.stores.filesystem.reserving import reserve

_log = logging.getLogger(__name__)

CELLS = 1 << 19
_ALONE = CELLS
"""Behind the cells: whether a process that is alone writes nothing. 0 for no, or one of the following."""
_WRITES_NOTHING, _IS_ASKED, _IS_LATE = 1.0, 2.0, 3.0
"""There is one; another has come and waits for what it has used; that one waits no longer."""
_CONDEMNED = CELLS + 1
"""1 and the cell of the file that is being evicted at this moment; 0 for none."""
_BLIND = CELLS + 2
"""1 if some process has no inotify: all others write what they do into the journal, too."""
_BYTES = CELLS * 8 + mmap.PAGESIZE
_PREFIX = ".uses-"


class UseTable:
    """The table. `open` before use, `close` after; until then, and where it cannot be shared, it is this process's."""

    def __init__(self) -> None:
        self._fd = -1
        self._memory = mmap.mmap(-1, _BYTES)
        self.times = memoryview(self._memory).cast("d")
        """By cell: CLOCK_MONOTONIC, 0 for never."""
        self.is_alone = True
        """Whether no other process wants to know: then uses need not be noted."""

    @staticmethod
    def cell_of(key: IndexKey) -> int:
        """The cell of a key: its first hash digits, or a checksum of its name."""
        return int(key[-5:], 16) % CELLS if is_blob(key) else zlib.crc32(key.encode("utf-8", "surrogateescape")) % CELLS

    def note(self, cell: int, now: float) -> None:
        """A use."""
        self.times[cell] = now

    def last(self, cell: int) -> float:
        """When a file of that cell was last used by anybody; minus infinity for never."""
        when: float = self.times[cell]
        return when if 0.0 < when <= time.monotonic() + 1.0 else -math.inf

    def fence(self) -> None:
        """What was written before is seen by all before anything is read after it. Half a microsecond."""
        if self._fd >= 0:
            os.fstat(self._fd)  # Python's own lock is given back and taken again, too: barriers

    def condemn(self, cell: int) -> None:
        """A file of that cell is to be evicted. Under the folder's lock."""
        self.times[_CONDEMNED] = cell + 1.0

    def acquit(self) -> None:
        """No file is being evicted. Under the folder's lock."""
        self.times[_CONDEMNED] = 0.0

    @property
    def condemned(self) -> int:
        """The cell of the file that is being evicted, -1 for none."""
        return int(self.times[_CONDEMNED]) - 1

    def tell_blind(self) -> None:
        """Says that this process has no inotify. Under the folder's lock."""
        self.times[_BLIND] = 1.0

    @property
    def is_one_blind(self) -> bool:
        """Whether some process has no inotify. Under the folder's lock."""
        return self.times[_BLIND] != 0.0

    @property
    def is_complete(self) -> bool:
        """Whether a process that was alone before this one came has told what it had used until then."""
        return self._fd < 0 or self.is_alone or self.times[_ALONE] in (0.0, _IS_LATE)

    def has_company(self) -> bool:
        """Whether another process has come while this one was alone. Call it several times a second."""
        return self.is_alone and self._fd >= 0 and self.times[_ALONE] > _WRITES_NOTHING

    def keep_company(self) -> None:
        """Uses are noted from now on; the caller notes those of before, and then calls `completed`."""
        self.is_alone = False

    def completed(self) -> None:
        """What was used is in the table: nobody need wait."""
        self.times[_ALONE] = 0.0

    def give_up(self) -> None:
        """For one that has waited: nobody else need, as that process may have died."""
        self.times[_ALONE] = _IS_LATE

    @property
    def is_late(self) -> bool:
        """Whether what was waited for in vain has still not been told."""
        return bool(self.times[_ALONE] == _IS_LATE)

    def open(self, folder: str, *, store: str) -> None:
        """Shares the table with the other processes on the folder. The caller has the folder's lock. Blocks."""
        try:
            self._share(folder)
        except (OSError, ValueError) as error:
            _log.warning(
                "store %s: which blobs were used last is not shared with other processes on %s: %s",
                store, folder, error,
            )  # fmt: skip

    def close(self) -> None:
        """Leaves the table to the others."""
        if self._fd >= 0:
            self._replace(mmap.mmap(-1, _BYTES))
            self.is_alone = True
            os.close(self._fd)
            self._fd = -1

    def _share(self, folder: str) -> None:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            name = f"{_PREFIX}{file.read(8)}"
        path = f"{folder}/{name}"
        fd = self._opened(path)
        try:
            is_alone = _is_unused(fd)
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # So that nobody takes it for one that is left over.
            self._replace(mmap.mmap(fd, _BYTES))
            self.is_alone = is_alone
            if is_alone:
                self.times[_ALONE], self.times[_BLIND] = _WRITES_NOTHING, 0.0
            elif self.times[_ALONE] == _WRITES_NOTHING:
                self.times[_ALONE] = _IS_ASKED
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        for other in os.listdir(folder):
            if other.startswith(_PREFIX) and other != name:
                _delete_unused(f"{folder}/{other}")

    def _opened(self, path: str) -> int:
        """The table's file, which is made if it is not there or not whole."""
        with suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            if os.fstat(fd).st_size == _BYTES:
                return fd
            os.close(fd)
        new = f"{path}.new"
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            if reserve(fd, offset=0, count=_BYTES):
                os.ftruncate(fd, _BYTES)
            else:
                left = memoryview(bytes(_BYTES))
                while left:
                    left = left[os.write(fd, left) :]
            os.rename(new, path)
        except BaseException:
            os.close(fd)
            with suppress(FileNotFoundError):
                os.unlink(new)
            raise
        return fd

    def _replace(self, memory: mmap.mmap) -> None:
        self.times.release()
        self._memory.close()
        self._memory = memory
        self.times = memoryview(memory).cast("d")


def _is_unused(fd: int) -> bool:
    """Whether no other process has the table. While the folder is locked, none can come."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _delete_unused(path: str) -> None:
    """Deletes the table of an earlier start of the machine, unless it is of another machine that lives."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        finally:
            os.close(fd)

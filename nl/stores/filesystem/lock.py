"""The lock of a folder, which all processes take turns to hold. Its file has what they tell each other (journal.py).

It is held for microseconds and nothing awaits meanwhile. Waiting for it is polling, so a process that was stopped while
holding it stalls uploads (and says so), never the loop.
"""

from __future__ import annotations

import fcntl
import logging
import os

import trio

from nl.plugin import UnavailableError
from nl.stores.filesystem.mirror import Mirror

_log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 0.001
_WARNING_S = 5.0
_TIMEOUT_S = 60.0


class Lock:
    """Taken and given back without an await between."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._layout = mirror.layout
        self._next_to_poll = trio.Lock()  # Of all who wait in this process, the first one polls.
        self.waits = 0

    def try_lock(self) -> bool:
        """Takes the lock if nobody has it. Raises OSError if its file is gone and cannot be made anew."""
        layout = self._layout
        while True:
            try:
                fcntl.flock(layout.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            # A cleaner may have deleted the file: then others lock another one of that name.
            if layout.has_lock_file(is_local=self._mirror.is_watching):
                return True
            layout.open_lock_file()

    def unlock(self) -> None:
        """Gives the lock back."""
        fcntl.flock(self._layout.lock_fd, fcntl.LOCK_UN)

    async def acquire(self) -> None:
        """Waits for the lock. The caller gives it back before its next await.

        Raises UnavailableError, naming the process that has it, after a minute; OSError.
        """
        await self._mirror.catch_up()
        if self.try_lock():
            return
        self.waits += 1
        await self._next_to_poll.acquire()
        try:
            await self._poll()
        finally:
            self._next_to_poll.release()

    async def _poll(self) -> None:
        began = trio.current_time()
        pause, warned = 0.0002, False
        while not self.try_lock():
            await trio.sleep(pause)
            await self._mirror.catch_up()  # Others may be changing much: the kernel's queue must not run over.
            pause = min(pause * 2, _LONGEST_PAUSE_S)
            waited = trio.current_time() - began
            if waited > _TIMEOUT_S:
                raise UnavailableError(
                    f"filesystem store {self._layout.name!r}: cannot write: {self._layout.lock_path} has been locked "
                    f"for {waited:.0f} s by {self._holder()}"
                )
            if waited > _WARNING_S and not warned:
                warned = True
                _log.warning(
                    "store %s: uploads wait: %s is locked by %s. If that process is stopped, continue or kill it",
                    self._layout.name, self._layout.lock_path, self._holder(),
                )  # fmt: skip

    def _holder(self) -> str:
        try:
            inode = str(os.fstat(self._layout.lock_fd).st_ino)
            with open("/proc/locks", encoding="ascii") as lines:
                for line in lines:
                    words = line.split()
                    if "->" not in words and words[5].rpartition(":")[2] == inode:
                        return f"process {words[4]}"
        except (OSError, IndexError):
            pass
        return "a process that cannot be seen from here"

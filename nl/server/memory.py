"""Memory that is free again goes back to the kernel, so that a server is as small after a storm as it was before.

The C library keeps what was freed in the middle of its heap; `malloc_trim` gives the pages of it back. Where there is
no such function (musl) there is no such heap. Receive buffers that wait for the next connection go as well.

What was freed at its end the C library would give back by itself and at once, to get it again for the next request,
page by page: a request of 700 KB cost some 500 page faults. So it keeps up to `_KEPT_BYTES` until this looks.
"""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import trio

from nl.rpc.arena import drop_pool

_EVERY_S = 5.0
_WORTH_BYTES = 8 << 20
"""Growth since the last time from which on it is worth it: the loop stands still for 30 to 120 ms after a storm of 200
MiB, in whichever thread, because the C library holds the lock of its heap meanwhile."""
_STATM = Path("/proc/self/statm")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_KEPT_BYTES = 16 << 20
_MAPPED_FROM = 4 << 20
"""Larger blocks come from the kernel one by one, and go back to it when they are freed: the largest message is less."""


class MemoryReturner:
    """Background work of a server: returns memory after it has grown, once it no longer grows."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._trim = getattr(library, "malloc_trim", None)
        self._tune = getattr(library, "mallopt", None)
        self._kept = 0
        """Resident bytes after the last time."""
        self._before = 0
        """Resident bytes a look ago."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        task_status.started()
        if self._trim is None:
            return
        if self._tune is not None:
            self._tune(_M_TRIM_THRESHOLD, _KEPT_BYTES)
            self._tune(_M_MMAP_THRESHOLD, _MAPPED_FROM)
        self._kept = self._before = resident_bytes()
        while True:
            await trio.sleep(_EVERY_S)
            self.look()

    def look(self) -> bool:
        """Returns memory if it is time; whether it did."""
        now, before = resident_bytes(), self._before
        self._before = now
        self._kept = min(self._kept, now)
        if self._trim is None or now - self._kept < _WORTH_BYTES or now > before + _WORTH_BYTES:
            return False
        drop_pool()
        self._trim(0)
        self._kept = self._before = resident_bytes()
        return True


def resident_bytes() -> int:
    """What this process has in memory now, shared pages too."""
    return int(_STATM.read_text().split()[1]) * resource.getpagesize()

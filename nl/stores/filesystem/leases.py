"""Read leases: the one way to learn that nobody has a file open for writing (fcntl(2), F_SETLEASE)."""

from __future__ import annotations

import fcntl
import signal

_F_SETSIG = 10


def nobody_writes_to(fd: int) -> bool:
    """Whether no process has an open file of ours open for writing; False also where that cannot be told."""
    try:
        # Were somebody to open it for writing while the lease lasts, this process would get a signal: one that is
        # ignored by default instead of SIGIO, which kills.
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True

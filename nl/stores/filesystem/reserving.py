"""Room on the disk, asked for before it is written to: `fallocate`, which Python's `os` has only with an emulation.

The blocks of a large file then need not be found page by page: writing takes half the time. `os.posix_fallocate` will
not do: where the file system cannot reserve, it writes to every block instead.
"""

from __future__ import annotations

import ctypes
import errno
import os

_KEEP_SIZE = 1
NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT))


def _load() -> ctypes._NamedFuncPointer | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        function.restype = ctypes.c_int
    return function


_fallocate = _load() if ctypes.sizeof(ctypes.c_long) == 8 else None
"""Where `off_t` has 64 bits whatever the C library was built with."""


def reserve(fd: int, *, offset: int, count: int) -> bool:
    """Reserves blocks for bytes that are about to be written; the file's size stays. Blocks for microseconds.

    Raises OSError if there is no room for them. False if the file system cannot do this: writing will tell.
    """
    if _fallocate is None:
        return False
    if not _fallocate(fd, _KEEP_SIZE, offset, count):
        return True
    code = ctypes.get_errno()
    if code in NO_ROOM:
        raise OSError(code, os.strerror(code))
    return False

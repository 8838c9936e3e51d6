"""inotify through ctypes: what has changed in a few folders. Not here: what that means (mirror.py).

The kernel queues an event before the system call that caused it returns, in whatever process: whoever asks afterwards
finds it. Asking is one FIONREAD, half a microsecond if there is nothing.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import termios
from array import array
from collections.abc import Sequence
from typing import Final, NamedTuple

IN_MODIFY: Final = 0x002
IN_CLOSE_WRITE: Final = 0x008
IN_MOVED_FROM: Final = 0x040
IN_MOVED_TO: Final = 0x080
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_DELETE_SELF: Final = 0x400
IN_MOVE_SELF: Final = 0x800
IN_UNMOUNT: Final = 0x2000
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000
IN_ONLYDIR: Final = 0x01000000

GONE: Final = IN_DELETE | IN_MOVED_FROM
FOLDER_GONE: Final = IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT | IN_IGNORED
_MASK: Final = GONE | IN_MOVED_TO | IN_CREATE | IN_CLOSE_WRITE | IN_MODIFY | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR
_HEADER = struct.Struct("iIII")
_BUFFER = 16 * 1024
"""Bytes of one read: some 170 events."""

_libc = ctypes.CDLL(None, use_errno=True)

# statfs(2) f_type of file systems on which other machines change files unseen by inotify.
_REMOTE: Final = {
    0x6969: "nfs", 0x517B: "smb", 0xFF534D42: "cifs", 0xFE534D42: "smb2", 0x01021997: "9p", 0x00C36400: "ceph",
    0x65735546: "fuse", 0x5346414F: "afs", 0x6B414653: "afs", 0x47504653: "gpfs", 0x0BD00BD0: "lustre",
    0x7461636F: "ocfs2", 0x01161970: "gfs2", 0x19830326: "beegfs", 0x786F4256: "vboxsf",
}  # fmt: skip


class Event(NamedTuple):
    """One change: which watch, what kind (IN_* bits), and the file's name in the watched folder."""

    watch: int
    mask: int
    name: str


class WatchUnavailableError(Exception):
    """inotify cannot be had here; the text says why and what to change."""


def remote_file_system(path: str) -> str | None:
    """The name of the network file system that `path` lies on, None if it is a local one."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        return None
    return _REMOTE.get(ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF)


class Watch:
    """An inotify instance. Not bound to a loop: nobody waits for it, it is asked."""

    def __init__(self) -> None:
        """Raises WatchUnavailableError if there are too many instances or descriptors."""
        fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if fd < 0:
            raise WatchUnavailableError(_advice(ctypes.get_errno()))
        self.fd: int = fd
        self._pending = array("i", [0])

    def add(self, path: str) -> int:
        """Watches a folder; returns the number that its events carry."""
        number = _libc.inotify_add_watch(self.fd, os.fsencode(path), ctypes.c_uint32(_MASK))
        if number < 0:
            raise WatchUnavailableError(f"{path}: {_advice(ctypes.get_errno())}")
        return int(number)

    def pending(self) -> int:
        """How many bytes of events there are to read."""
        fcntl.ioctl(self.fd, termios.FIONREAD, self._pending)
        return self._pending[0]

    def read(self) -> Sequence[Event]:
        """What has happened and was not read yet, in order: the next events, none if that is all."""
        count = self.pending()
        if not count:
            return ()
        data = os.read(self.fd, min(count, _BUFFER))
        events = []
        at = 0
        while at < len(data):
            watch, mask, _cookie, length = _HEADER.unpack_from(data, at)
            at += _HEADER.size
            name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
            at += length
            events.append(Event(watch, mask, name))
        return events

    def close(self) -> None:
        """Frees the descriptor; the watch must not be used afterwards."""
        os.close(self.fd)


def _advice(number: int) -> str:
    what = os.strerror(number)
    if number == errno.EMFILE:
        return f"{what}: raise fs.inotify.max_user_instances or ulimit -n"
    if number == errno.ENOSPC:
        return f"{what}: raise fs.inotify.max_user_watches"
    return what

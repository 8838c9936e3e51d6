"""What an action may have done to its input files. Pure: knows no file and no clock.

An input that shares its inode with other actions' inputs can be changed by the action, whatever its mode says: by its
owner after a chmod, by root at once, and mtime and size can be put back. The kernel's ctime cannot: a file whose ctime
is still the one that it had when the action began was not written to. But links of others change it, too, so one that
has moved says only that the bytes are to be compared.

What this finds: every change of bytes, mode or owner that is there when the action ends, and every write whose mtime
was not put back. What it cannot find: bytes, mode *and* mtime that were changed and put back before the end, while
another action had the same file.
"""

from __future__ import annotations

import enum
import os
from typing import NamedTuple


class Identity(NamedTuple):
    """What stays the same of a file that nobody has changed."""

    inode: int
    size: int
    mtime_ns: int
    mode: int
    owner: int


def identity_of(status: os.stat_result) -> Identity:
    """The identity that a stat shows."""
    return Identity(status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode, status.st_uid)


class Verdict(enum.Enum):
    """What one stat after the action tells."""

    SAME = enum.auto()
    UNSURE = enum.auto()
    """The bytes are to be compared."""
    CHANGED = enum.auto()


def judge(known: Identity, ctime_ns: int, now: os.stat_result, *, alone: bool) -> Verdict:
    """Compares a file with what was known of it.

    `ctime_ns` is from before the action's first process; `alone` says that nobody else could write to it then.
    """
    if identity_of(now) != known:
        return Verdict.CHANGED
    return Verdict.SAME if alone and now.st_ctime_ns == ctime_ns else Verdict.UNSURE

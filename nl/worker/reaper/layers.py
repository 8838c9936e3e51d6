"""The layers of a sandbox's input root: what the command has changed is brought back into the input root.

An overlay says what has changed in its upper directory: new files lie there, a device 0:0 (a *whiteout*) stands for
what was removed, and the attribute `user.overlay.opaque` of a directory for one that has replaced another. Nothing of
the command runs any more, but all that is here is its work: links are not followed, modes do not matter.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from nl.worker.reaper.removing import open_directory, remove_at

OPAQUE = "user.overlay.opaque"
MAX_DEPTH = 512
"""Directories that were inputs and have changes in them: the input root is not deeper than 256."""


def settle(place: dict[str, Any]) -> None:
    """Brings the changes into the input root, which then is as the command has left it."""
    if not place["overlay"]:
        return
    upper = open_directory(f"{place['directory']}/upper", None)
    try:
        lower = open_directory(place["root"], None)
        try:
            merge(upper, lower, 0)
        finally:
            os.close(lower)
    finally:
        os.close(upper)


def merge(upper: int, lower: int, depth: int) -> None:
    """Moves everything of the directory `upper` to where it belongs in the directory `lower`."""
    with os.scandir(upper) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        status = os.stat(name, dir_fd=upper, follow_symlinks=False)
        if is_whiteout(status):
            remove_at(name, lower)
        elif not stat.S_ISDIR(status.st_mode):
            move(name, upper, lower)
        else:
            merge_directory(name, status, upper, lower, depth)


def merge_directory(name: str, status: os.stat_result, upper: int, lower: int, depth: int) -> None:
    """One directory: moved as a whole if it is new, else merged into the one that was there."""
    inner = open_directory(name, upper)
    try:
        below = None if is_opaque(inner) or depth > MAX_DEPTH else existing_directory(name, lower)
        if below is None:
            move(name, upper, lower)
            os.fchmod(inner, stat.S_IMODE(status.st_mode))
            return
        try:
            merge(inner, below, depth + 1)
            os.fchmod(below, stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
            os.utime(below, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(below)
    finally:
        os.close(inner)


def is_whiteout(status: os.stat_result) -> bool:
    """Whether this stands for something that was removed."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(fd: int) -> bool:
    """Whether this directory has replaced the one below it."""
    try:
        return os.getxattr(fd, OPAQUE) == b"y"
    except OSError as exc:
        if exc.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise


def existing_directory(name: str, parent: int) -> int | None:
    """A descriptor of a directory, None if there is none by this name."""
    try:
        return open_directory(name, parent)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        if exc.errno == errno.ELOOP:  # a link
            return None
        raise


def move(name: str, source: int, target: int) -> None:
    """Moves one entry, in the place of whatever is there."""
    try:
        os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
    except OSError as exc:
        if exc.errno not in (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST):
            raise
        remove_at(name, target)
        os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)

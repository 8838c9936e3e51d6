"""Removing what an action made, whatever that is."""

from __future__ import annotations

import os
import stat
import time

FLAT_DEPTH = 48
"""Deeper directories are moved up before they are emptied: descriptors and recursion stay bounded in hostile trees."""


def open_directory(name: str, parent: int | None) -> int:
    """Opens a directory without following links; one that its owner may not enter is made accessible first."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        fd = os.open(name, flags, dir_fd=parent)
    if stat.S_IMODE(os.fstat(fd).st_mode) & 0o700 != 0o700:
        os.fchmod(fd, 0o700)
    return fd


def empty(name: str, parent: int, top: int, depth: int, counter: list[int]) -> None:
    """Empties the directory `name` of `parent`; what is too deep is moved to `top` for a later round."""
    here = open_directory(name, parent)
    try:
        with os.scandir(here) as entries:
            listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for child, is_directory in listed:
            if not is_directory:
                os.unlink(child, dir_fd=here)
            elif depth < FLAT_DEPTH:
                empty(child, here, top, depth + 1, counter)
                os.rmdir(child, dir_fd=here)
            else:
                os.close(open_directory(child, here))  # moving it needs write permission on it
                counter[0] += 1
                os.rename(child, f".deep-{counter[0]}", src_dir_fd=here, dst_dir_fd=top)
    finally:
        os.close(here)


def remove_tree(path: str) -> None:
    """Removes a directory and all that is in it: links are not followed, modes and depth do not matter."""
    above, name = os.path.split(path)
    parent = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_directory(name, parent)
    except FileNotFoundError:
        return
    finally:
        os.close(parent)


def remove_directory(name: str, parent: int) -> None:
    """Removes the directory `name` of `parent` and all that is in it."""
    top = open_directory(name, parent)
    try:
        counter = [int(time.monotonic_ns())]
        while True:
            empty(name, parent, top, 0, counter)
            if not os.listdir(top):
                break
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def remove_at(name: str, parent: int) -> None:
    """Removes whatever `name` in `parent` is."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):  # POSIX has the one for directories, Linux gives the other
        remove_directory(name, parent)

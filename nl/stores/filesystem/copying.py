"""Copies of open files, by the kernel (and as a reflink where the file system can). Blocking: large ones in threads.
"""

from __future__ import annotations

import errno
import os

_NO_RANGE_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)


def copy_bytes(source_fd: int, target_fd: int, size: int) -> int:
    """Copies the first `size` bytes of one open file into another; returns how many there were."""
    done = 0
    in_kernel = True
    while done < size:
        try:
            if in_kernel:
                count = os.copy_file_range(source_fd, target_fd, size - done, offset_src=done, offset_dst=done)
            else:
                os.lseek(target_fd, done, os.SEEK_SET)
                count = os.sendfile(target_fd, source_fd, done, min(size - done, 1 << 30))
        except OSError as error:
            if not in_kernel or error.errno not in _NO_RANGE_COPY:
                raise
            in_kernel = False
            continue
        if not count:
            break
        done += count
    return done


def copy_to_path(source_fd: int, path: str, *, size: int, mode: int) -> None:
    """Makes a new file at `path` with the bytes of an open file. What was begun is removed if it fails."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
    try:
        try:
            if copy_bytes(source_fd, fd, size) != size:
                raise OSError(errno.EIO, "the file was cut short while it was copied", path)
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
    except BaseException:
        os.unlink(path)
        raise

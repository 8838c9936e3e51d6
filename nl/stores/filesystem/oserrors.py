"""OSError to NlError: the one place where the errors of the file system get their gRPC codes and their advice."""

from __future__ import annotations

import errno

from nl.plugin import ExhaustedError, InternalError, NlError, UnavailableError

_FULL = {
    errno.ENOSPC: "the disk is full: free some space, or give the store a smaller max_bytes",
    errno.EDQUOT: "the disk quota is used up: raise it, or give the store a smaller max_bytes",
    errno.EFBIG: "the file is larger than the file system or the process limit (ulimit -f) allows",
}
_BROKEN = {
    errno.EIO: "the disk reports an I/O error: see the kernel log, replace the disk",
    errno.EROFS: "the file system is read-only: after a disk error the kernel mounts it so; see the kernel log",
    errno.EACCES: "permission denied: the folder must belong to the user that this process runs as",
    errno.EPERM: "operation not permitted: the folder must belong to the user that this process runs as",
    errno.EMFILE: "this process has too many files open: raise its limit (ulimit -n)",
    errno.ENFILE: "the system has too many files open: raise fs.file-max",
    errno.ENOLCK: "the file system has no locks: mount it with them (NFS: version 4, or with lockd running)",
    errno.ESTALE: "the network file system lost the file",
    errno.ENOENT: "the folder has been deleted while the store was running; it is made again within a second",
    errno.ENOMEM: "the system is out of memory",
}


def translate(error: OSError, *, store: str, path: str, doing: str, advice: str = "") -> NlError:
    """What the failure of `doing` something ("write", "read") with `path` means for the caller of the store.

    `advice` is what is known better than the error says it.
    """
    number = error.errno or 0
    where = f"filesystem store {store!r}: cannot {doing} {path}"
    if number in _FULL:
        return ExhaustedError(f"{where}: {advice or _FULL[number]}")
    if number in _BROKEN:
        return UnavailableError(f"{where}: {_BROKEN[number]}")
    return InternalError(f"{where}: {error.strerror or error}")

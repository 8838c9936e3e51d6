"""Machines of several kinds, made of the one that tests run on: processes that are allowed less than root is.

`python -m tests.support.machines KIND COMMAND...`, as root, runs a command on a machine of the kind.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
USER = 20011
KINDS = ("root", "root without namespaces", "user", "user without namespaces")

CLONE_NEWNS = 0x00020000
_CLONE_NAMESPACES = 0x7E020000
_MS_REC, _MS_PRIVATE, _MS_BIND = 1 << 14, 1 << 18, 1 << 12
_PR_CAPBSET_DROP, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 24, 22, 38
_CAP_SYS_ADMIN = 21
_libc = ctypes.CDLL(None, use_errno=True)
_CALLS = {"x86_64": (0xC000003E, 56, 272), "aarch64": (0xC00000B7, 220, 97)}
"""By machine: its number in seccomp, those of clone and unshare. clone3 is 435 on all."""


def become(kind: str) -> None:
    """Makes this process, which is root's, one on a machine of the kind."""
    if kind == "root without namespaces":
        _checked(_libc.prctl(_PR_CAPBSET_DROP, _CAP_SYS_ADMIN, 0, 0, 0))
    if kind.startswith("user"):
        _let_everybody_in([Path(sys.base_prefix), Path(sys.prefix), ROOT])
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
    if kind.endswith("without namespaces"):
        _forbid_namespaces()


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _let_everybody_in(needed: list[Path]) -> None:
    """In a mount namespace of our own: what is needed can be reached, also through homes that others may not enter."""
    _checked(_libc.unshare(CLONE_NEWNS))
    _checked(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
    for path in needed:
        closed = next((each for each in reversed(path.parents) if not each.stat().st_mode & 1), None)
        if closed is None:
            continue
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
        _checked(_libc.mount(b"open", os.fsencode(closed), b"tmpfs", ctypes.c_ulong(0), b"mode=0755,size=1m"))
        path.mkdir(parents=True)
        source = f"/proc/self/fd/{fd}".encode()
        _checked(_libc.mount(source, os.fsencode(path), None, ctypes.c_ulong(_MS_BIND | _MS_REC), None))
        os.close(fd)


def _forbid_namespaces() -> None:
    """As containers do (seccomp): no unshare, no clone with a namespace, and clone3 is a call that nobody has."""
    machine, clone, unshare = _CALLS[platform.machine()]
    allow, refuse, unknown = 0x7FFF0000, 0x00050001, 0x00050026  # EPERM, ENOSYS
    load, equal, any_of, give = 0x20, 0x15, 0x45, 0x06
    program = [
        (load, 0, 0, 4), (equal, 0, 7, machine),
        (load, 0, 0, 0), (equal, 6, 0, 435), (equal, 4, 0, unshare), (equal, 0, 2, clone),
        (load, 0, 0, 16), (any_of, 1, 0, _CLONE_NAMESPACES),
        (give, 0, 0, allow), (give, 0, 0, refuse), (give, 0, 0, unknown),
    ]  # fmt: skip
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(_libc.prctl(_PR_SET_SECCOMP, 2, header, 0, 0))


if __name__ == "__main__":
    become(sys.argv[1])
    os.execv(sys.argv[2], sys.argv[2:])

"""System calls that Python has no functions for. Numbers are those that all architectures share, but for one."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8
ATTR_IDMAP = 0x00100000

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_SIGCHLD = 17
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_OPEN_TREE, _MOVE_MOUNT, _CLONE3, _MOUNT_SETATTR = 428, 429, 435, 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
_IPC_RMID = 0
_CAPABILITY_VERSION = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_held = ctypes.PyDLL(None, use_errno=True)  # does not let go of the interpreter's lock: for what comes back twice


class _CloneArgs(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls", "set_tid",
            "set_tid_size", "cgroup",
        )
    ]  # fmt: skip


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def _checked(result: int, doing: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), doing)
    return result


def prctl(option: int, value: int) -> None:
    """Tells or asks the kernel something of this process (prctl(2))."""
    _checked(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl({option})")


def fork_into(namespaces: int) -> int:
    """As os.fork does, with the child in new namespaces (clone3(2)). Only for processes with one thread."""
    arguments = _CloneArgs(flags=namespaces, exit_signal=_SIGCHLD)
    size = ctypes.sizeof(arguments)
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = _held.syscall(ctypes.c_long(_CLONE3), ctypes.byref(arguments), ctypes.c_size_t(size))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    number = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    ctypes.set_errno(number)
    return _checked(pid, "clone3")


def enter(namespace_fd: int, kind: int) -> None:
    """Enters a namespace of another process (setns(2))."""
    _checked(_libc.setns(namespace_fd, kind), "setns")


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """Mounts something (mount(2))."""
    encoded = [os.fsencode(text) for text in (source, target, kind)]
    _checked(_libc.mount(*encoded, ctypes.c_ulong(flags), os.fsencode(data)), f"mount {kind} at {target}")


def unmount(target: str) -> None:
    """umount2(2), lazily."""
    _checked(_libc.umount2(os.fsencode(target), MNT_DETACH), f"unmount {target}")


def cloned_mount(path: str, *, recursive: bool = False) -> int:
    """A descriptor of a new mount, not attached anywhere, of what is seen at `path` (open_tree(2))."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    result = _libc.syscall(
        ctypes.c_long(_OPEN_TREE), ctypes.c_int(_AT_FDCWD), os.fsencode(path), ctypes.c_uint(flags)
    )
    return _checked(result, f"open_tree {path}")


def attach(fd: int, path: str) -> None:
    """Attaches a mount at a path (move_mount(2)) and closes the descriptor."""
    result = _libc.syscall(
        ctypes.c_long(_MOVE_MOUNT), ctypes.c_int(fd), b"", ctypes.c_int(_AT_FDCWD), os.fsencode(path),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
    )  # fmt: skip
    _checked(result, f"move_mount {path}")
    os.close(fd)


def set_mount(where: int | str, attributes: int, *, recursive: bool = False, userns_fd: int = 0) -> None:
    """Adds attributes to the mount with a descriptor, or at a path (mount_setattr(2)); nothing propagates from it."""
    wanted = _MountAttr(attributes, 0, MS_PRIVATE if recursive else 0, userns_fd)
    fd, path, flags = (_AT_FDCWD, os.fsencode(where), 0) if isinstance(where, str) else (where, b"", _AT_EMPTY_PATH)
    flags |= _AT_RECURSIVE if recursive else 0
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR), ctypes.c_int(fd), path, ctypes.c_uint(flags), ctypes.byref(wanted),
        ctypes.c_size_t(ctypes.sizeof(wanted)),
    )  # fmt: skip
    _checked(result, f"mount_setattr {where}")


def make_root(path: str) -> None:
    """Makes the mount at `path` the root of this mount namespace; nothing of the old one is left (pivot_root(2))."""
    number = _PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(38, f"pivot_root is not known for {os.uname().machine}")
    os.chdir(path)
    _checked(_libc.syscall(ctypes.c_long(number), b".", b"."), f"pivot_root {path}")
    unmount(".")
    os.chdir("/")


def remove_ipc(kind: str, number: int) -> None:
    """Removes a System V object (shmctl(2), semctl(2), msgctl(2)); one that is gone already is no error."""
    if kind == "sem":
        _libc.semctl(number, 0, _IPC_RMID)
    else:
        {"shm": _libc.shmctl, "msg": _libc.msgctl}[kind](number, _IPC_RMID, None)


def drop_capabilities() -> None:
    """Gives up all capabilities for good (capset(2)); what is executed later gets none unless its user is root."""
    header = _CapHeader(_CAPABILITY_VERSION, 0)
    _checked(_libc.capset(ctypes.byref(header), (ctypes.c_uint32 * 6)()), "capset")

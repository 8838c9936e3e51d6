"""What a sandboxed command sees: the machine read-only, without what is none of its business, and a place of its own.

Two ways lead there. A server that is root keeps its rights while it furnishes the sandbox; then the keeper enters a
user namespace in which only root and a uid of the pool have names, and becomes the latter. An ordinary user enters the
user namespace first, which gives him the rights to furnish the rest; inside he is who he was.

Rules for this file:

* The input root is the lower layer of an overlay: links to the store's files are never written to, chmodded or locked
  themselves. What the command writes lies in the upper layer (`layers.py`). For root the lower layer is seen through
  an ID-mapped mount, as if it belonged to the uid of the pool, so inputs may be changed as on any machine.
* What is attached later is opened first (`cloned_mount`), since the masks hide where it came from.
* The mounts cannot be undone from inside: the command has no capabilities here, and in user namespaces of its own the
  mounts that it inherits are locked.
* It runs in a process that will live in the sandbox: no imports, nothing that is looked up by name later.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
from contextlib import suppress
from typing import Any

from nl.worker.reaper import kernel

NODES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
SHARED_MEMORY = "1g"
"""What /dev/shm may hold. It counts as memory."""
PLAIN = kernel.MS_NOSUID | kernel.MS_NODEV
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x41

_own_names = os.getuid(), os.getgid()
"""Who this is outside of all user namespaces."""
NOBODY = 65534
"""What the uid and gid of a pool are called inside of a sandbox: every machine knows it, whichever is lent."""
_namespaces: dict[str, int] = {}
"""By what they map: descriptors of user namespaces, of which a warden needs two for each uid that it meets."""


# ---- by the warden


def namespaces(place: dict[str, Any]) -> int:
    """What a keeper is forked into."""
    wanted = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC
    if not place["network"]:
        wanted |= kernel.CLONE_NEWNET
    if place["uid"] is None:
        wanted |= kernel.CLONE_NEWUSER
    return wanted


def prepare(place: dict[str, Any]) -> None:
    """Makes the folders that the sandbox is furnished with, beside the input root."""
    directory, uid = place["directory"], place["uid"]
    os.mkdir(f"{directory}/tmp", 0o700)
    os.chmod(f"{directory}/tmp", 0o1777)
    if place["overlay"]:
        os.mkdir(f"{directory}/upper", 0o755)
        os.mkdir(f"{directory}/overlay", 0o700)
    elif uid is not None:
        give(place["root"], uid)
    if uid is not None:
        if place["shared"]:
            os.chown(place["shared"], uid, uid)
        place["users"] = user_namespace(f"0 0 1\n{NOBODY} {uid} 1\n")
        if place["overlay"]:
            os.chown(f"{directory}/upper", uid, uid)
            place["id_map"] = user_namespace(f"0 {uid} 1\n")


def give(path: str, uid: int) -> None:
    """Gives a tree to a uid, but for files that have other names: those are the store's as well."""
    os.chown(path, uid, uid)
    for _here, directories, files, here in os.fwalk(path):
        for name in directories:
            os.chown(name, uid, uid, dir_fd=here, follow_symlinks=False)
        for name in files:
            if os.stat(name, dir_fd=here, follow_symlinks=False).st_nlink == 1:
                os.chown(name, uid, uid, dir_fd=here, follow_symlinks=False)


def user_namespace(names: str) -> int:
    """A descriptor of a user namespace in which uids, and gids as well, have these names and no others have any."""
    if names not in _namespaces:
        held, let_go = os.pipe()
        pid = kernel.fork_into(kernel.CLONE_NEWUSER)
        if pid == 0:
            os.close(let_go)
            os.read(held, 1)
            os._exit(0)
        os.close(held)
        try:
            write(f"/proc/{pid}/uid_map", names)
            write(f"/proc/{pid}/gid_map", names)
            _namespaces[names] = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(let_go)
            os.waitpid(pid, 0)
    return _namespaces[names]


def write(path: str, text: str) -> None:
    """Writes a file of the kernel's, in one piece."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


# ---- by the keeper


def furnish(place: dict[str, Any]) -> None:
    """Makes the view. Afterwards nothing but the input root, /tmp and /dev/shm can be written to."""
    if place["uid"] is None:
        keep_own_name()
    if not place["network"]:
        raise_loopback()
    if place["overlay"]:
        lay_over(place)
    shown = [(path, kernel.cloned_mount(path, recursive=True), kernel.ATTR_RDONLY) for path in present(place["shown"])]
    shown += [(path, kernel.cloned_mount(path), 0) for path in writable(place)]
    scratch = [(path, kernel.cloned_mount(f"{place['directory']}/tmp")) for path in ("/tmp", "/var/tmp")]
    nodes = [(path, kernel.cloned_mount(path)) for path in present([f"/dev/{name}" for name in NODES])]
    kernel.set_mount("/", kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV, recursive=True)
    kernel.mount("proc", "/proc", "proc", PLAIN | kernel.MS_NOEXEC)
    furnish_dev(nodes)
    for path, fd in scratch:
        kernel.set_mount(fd, kernel.ATTR_NOSUID | kernel.ATTR_NODEV)
        attach_if_there(fd, path)
    masks = [path for path in place["hidden"] if hide(path)]
    for path, fd, attributes in shown:
        kernel.set_mount(fd, kernel.ATTR_NOSUID | kernel.ATTR_NODEV | attributes, recursive=True)
        make_mount_point(path, fd)
        kernel.attach(fd, path)
    for path in masks:
        kernel.set_mount(path, kernel.ATTR_RDONLY)
    if place["rootfs"]:
        change_root(place)


def present(paths: list[str]) -> list[str]:
    """Those that are there."""
    return [path for path in paths if os.path.exists(path)]


def make_mount_point(path: str, fd: int) -> None:
    """Makes something for the mount `fd` to be attached to, where a mask has hidden what was there."""
    if os.path.lexists(path):
        return
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.makedirs(path, 0o755)
    else:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))


def writable(place: dict[str, Any]) -> list[str]:
    """What the command may write to besides scratch: its input root, and where its side channel is."""
    return [place["root"], place["shared"]] if place["shared"] else [place["root"]]


def keep_own_name() -> None:
    """In a user namespace that was just entered: this process's user and group are called there as they were."""
    uid, gid = _own_names
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # or these files would be root's
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"{uid} {uid} 1\n")
    write("/proc/self/gid_map", f"{gid} {gid} 1\n")
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def raise_loopback() -> None:
    """Brings up `lo`, the only device of a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))


def lay_over(place: dict[str, Any]) -> None:
    """Covers the input root with an overlay whose lower layer it is."""
    os.chdir(place["directory"])  # so that no path has a comma or a colon in it
    if place["uid"] is not None:
        lower = kernel.cloned_mount("work")
        kernel.set_mount(lower, kernel.ATTR_IDMAP, userns_fd=place["id_map"])
        kernel.attach(lower, "work")
    options = "lowerdir=work,upperdir=upper,workdir=overlay,userxattr,volatile,index=off"
    kernel.mount("overlay", "work", "overlay", PLAIN, options)


def furnish_dev(nodes: list[tuple[str, int]]) -> None:
    """A /dev with the devices that are harmless, terminals and shared memory of its own."""
    quiet = kernel.MS_NOSUID | kernel.MS_NOEXEC
    kernel.mount("dev", "/dev", "tmpfs", quiet, "mode=0755,size=64k")
    for path, fd in nodes:
        make_mount_point(path, fd)
        kernel.attach(fd, path)
    for name, target in LINKS.items():
        os.symlink(target, f"/dev/{name}")
    for name in ("pts", "shm"):
        os.mkdir(f"/dev/{name}", 0o755)
    kernel.mount("devpts", "/dev/pts", "devpts", quiet, "newinstance,ptmxmode=0666,mode=620")
    kernel.mount("shm", "/dev/shm", "tmpfs", PLAIN, f"mode=1777,size={SHARED_MEMORY}")
    kernel.set_mount("/dev", kernel.ATTR_RDONLY)


def attach_if_there(fd: int, path: str) -> None:
    """Attaches a mount where there is a directory for it."""
    if os.path.isdir(path) and not os.path.islink(path):
        kernel.attach(fd, path)
    else:
        os.close(fd)


def hide(path: str) -> bool:
    """Covers a directory with an empty one, a file with one that cannot be read. Whether it is a directory."""
    try:
        is_directory = stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    if not is_directory:
        with suppress(FileNotFoundError):
            kernel.attach(kernel.cloned_mount("/dev/null"), path)
        return False
    kernel.mount("hidden", path, "tmpfs", PLAIN | kernel.MS_NOEXEC, "mode=0755,size=256k")
    return True


def change_root(place: dict[str, Any]) -> None:
    """Makes the input root the root, with /proc, /dev and /tmp in it. They are made if they are not there."""
    root = place["root"]
    for name in ("proc", "dev", "tmp"):
        source = kernel.cloned_mount(f"/{name}")
        os.makedirs(f"{root}/{name}", 0o755, exist_ok=True)
        kernel.attach(source, f"{root}/{name}")
    kernel.make_root(root)

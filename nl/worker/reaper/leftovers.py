"""What an action has left on the machine outside of its folder, where it has a uid of its own but sees what all see.

Looked for is where everybody may put something: scratch directories, and System V's shared memory, semaphores and
queues. What is deeper in somebody else's directory stays; so does what the uid cannot have made.
"""

from __future__ import annotations

import contextlib
import os
import sys

from nl.worker.reaper import kernel
from nl.worker.reaper.removing import remove_at

EVERYBODYS = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue")
IPC = {"shm": "shmid", "sem": "semid", "msg": "msqid"}
"""By kind: the column in /proc/sysvipc that identifies an object."""


def remove_all_of(uid: int) -> None:
    """Removes what belongs to a uid that has no process any more. What cannot be removed is said, and stays."""
    for directory in EVERYBODYS:
        try:
            remove_files_of(uid, directory)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as exc:
            print(f"nl warden: what uid {uid} has left in {directory} stays: {exc}", file=sys.stderr, flush=True)
    left = [(kind, number) for kind, column in IPC.items() for number in ipc_of(uid, kind, column)]
    if left:
        remove_ipc(uid, left)


def remove_files_of(uid: int, directory: str) -> None:
    """Removes the entries of one directory that belong to a uid, and all that is in them."""
    here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with os.scandir(here) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(name, dir_fd=here, follow_symlinks=False).st_uid == uid:
                    remove_at(name, here)
    finally:
        os.close(here)


def ipc_of(uid: int, kind: str, column: str) -> list[int]:
    """The System V objects of one kind that belong to a uid."""
    try:
        with open(f"/proc/sysvipc/{kind}", encoding="ascii") as file:
            columns = file.readline().split()
            at, owner = columns.index(column), columns.index("uid")
            return [int(values[at]) for values in map(str.split, file) if int(values[owner]) == uid]
    except FileNotFoundError:
        return []


def remove_ipc(uid: int, objects: list[tuple[str, int]]) -> None:
    """Removes System V objects by a process of their owner: root needs a right for it that containers do not give."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            os.setresuid(uid, uid, uid)
            for kind, number in objects:
                kernel.remove_ipc(kind, number)
        os._exit(0)
    os.waitpid(pid, 0)

"""What a process has started, directly or not: found, counted, ended."""

from __future__ import annotations

import contextlib
import os
import resource  # os.wait4 imports it at its first call, and in a sandbox it would be too late
import signal
from typing import Any

from nl.worker.reaper import kernel


def become_subreaper() -> None:
    """Orphaned descendants become children of this process from now on."""
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)


def children(of: int | None = None) -> list[int]:
    """Process ids of the children of a process, this one if not said, from /proc."""
    parent = of or os.getpid()
    try:
        with open(f"/proc/{parent}/task/{parent}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN, or the process is gone
        return [int(name) for name in os.listdir("/proc") if name.isdecimal() and parent_of(name) == parent]
    except ProcessLookupError:
        return []


def parent_of(pid: str) -> int:
    """The parent of a process by /proc/PID/stat, 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return 0


class Usage:
    """What the processes of one action used, from wait4(2)."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self.max_rss_kb = 0
        self.strays = 0

    def add(self, usage: resource.struct_rusage) -> None:
        """Counts one process that was waited for."""
        self.cpu_s += usage.ru_utime + usage.ru_stime
        self.max_rss_kb = max(self.max_rss_kb, usage.ru_maxrss)

    def told(self) -> dict[str, Any]:
        """For a message."""
        return {"cpu_s": self.cpu_s, "max_rss_kb": self.max_rss_kb, "strays": self.strays}


def end_strays(usage: Usage) -> None:
    """Kills and waits for every descendant that is left; returns when there is none."""
    while True:
        try:
            pid, _status, used = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                for child in children():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
                pid, _status, used = os.wait4(-1, 0)
        except ChildProcessError:
            return
        usage.strays += 1
        usage.add(used)

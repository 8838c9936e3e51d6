"""How a worker runs commands: one interface, `Runner`, over kinds that keep an action apart from the rest more or less.

Here are the job, how it ended, the switch that ends it from outside, and the interface; `processes.py` does it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import trio

from nl.errors import NlError


@dataclass(frozen=True, slots=True)
class Job:
    """One command to run. `stdout` and `stderr` are paths of files that do not exist yet."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    stdout: str
    stderr: str
    timeout_s: float
    max_output_bytes: int


class Ended(NamedTuple):
    """How a command ended. All its processes are gone."""

    why: str
    """"exit", "timeout", "kill" (asked for), "flood" (printed more than allowed) or "stopped" (it stopped the process
    that supervises it)."""
    exit_code: int
    """As shells say it: 128 + n for death by signal n."""
    started_ns: int
    """Unix time."""
    ended_ns: int
    elapsed_ns: int
    """By the monotonic clock: what the time limit is compared with."""
    stdout_bytes: int
    stderr_bytes: int
    cpu_s: float
    max_rss_kb: int
    strays: int
    """Processes that outlived the command and were killed."""


class CannotExecuteError(NlError):
    """execve(2) refused the command; `errno` says why."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.errno = number


class KillSwitch:
    """Ends a command from outside, without cancelling the task that waits for it: what was printed is kept."""

    __slots__ = ("_kill", "thrown")

    def __init__(self) -> None:
        self.thrown = False
        self._kill: Callable[[], None] | None = None

    def throw(self) -> None:
        """Kills the command, now or as soon as it starts. May be called at any time and more than once."""
        self.thrown = True
        if self._kill is not None:
            self._kill()

    def connect(self, kill: Callable[[], None] | None) -> None:
        """The runner says how to kill; None when there is nothing to kill any more."""
        self._kill = kill
        if kill is not None and self.thrown:
            kill()


class Runner(Protocol):
    """Runs commands, one kind of isolation for all of them.

    *Cancellation*: a cancelled `run` has killed the command and waited until nothing of it is left.
    *Concurrency*: any number of tasks. *Ownership*: `serve` must be running, and ends last.
    """

    @property
    def kind(self) -> str:
        """What the config calls it."""
        ...

    @property
    def inputs_shared(self) -> bool:
        """Whether an action can change inputs that are links to the store's files: its inodes are its own user's."""
        ...

    def statistics(self) -> Mapping[str, int]:
        """Counters for logs and metrics."""
        ...

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Works until cancelled, and then until nobody needs it; `started()` when commands can be run."""
        ...

    def held(self) -> AbstractContextManager[None]:
        """While the block lasts, a cancelled `serve` goes on: for who has processes and files to clear away."""
        ...

    async def run(self, job: Job, *, switch: KillSwitch) -> Ended:
        """Runs a command until it ends, its time is over or the switch is thrown.

        Raises CannotExecuteError if there is no such program or it may not be executed, InternalError if the command
        cannot be supervised, UnavailableError if there is no room for a process now.
        """
        ...

    async def remove_tree(self, path: str) -> None:
        """Removes a directory and all that is in it, whatever its modes, links and depth. Failure is logged."""
        ...

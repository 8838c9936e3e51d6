"""How a worker runs commands: one interface, `Runner`, over kinds that keep an action apart from the rest more or less.

Here are the job, how it ended, the switch that ends it from outside, and the interface; `processes.py` does it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import trio

from nl.errors import NlError

SHARED = "shared"
"""In an action's directory, where it is told of a side channel: what it may write to besides its input root. The
directory itself is not the action's, or it could put a link to anywhere in the place of the input root."""


class Place(NamedTuple):
    """Where one action runs, and as whom. The input root is `work` in its directory."""

    directory: str
    uid: int | None
    """Lent for this action alone; None if actions run as the server's user."""


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
    place: Place | None = None
    """None for a program of the config's, which is trusted and runs as the server does."""
    network: bool = False
    """Whether the action asks for the network."""
    has_inputs: bool = True
    """Whether there may be files in its input root that are links to the store's."""


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

    def place(self, directory: str) -> AbstractAsyncContextManager[Place]:
        """The place for an action that has this directory: from before its input root is laid out until the directory
        is removed. Waits where places are lent and none is left.
        """
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

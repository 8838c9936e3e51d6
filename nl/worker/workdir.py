"""The work directory of a worker: its own while it works, and a directory in it for each action."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from nl.errors import ConfigError
from nl.worker.failures import os_errors
from nl.worker.runner import Runner

log = logging.getLogger("nl.worker.workdir")

INPUT_FILES = ".inputs"
"""The folder of the worker's own input files (lending.py), beside those of actions."""


class WorkDirectory:
    """Makes the directories of actions, and removes them. `path` is as an action sees it: links are compared."""

    def __init__(self, path: str, runner: Runner, *, max_wait_s: float) -> None:
        self.path = os.path.realpath(path)
        self._runner = runner
        self._max_wait_s = max_wait_s
        self._serial = 0

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Makes the directory, this worker's alone while the block lasts, and empties it. Raises ConfigError."""
        where = self.path
        if where == "/":
            raise ConfigError("work_directory", "is the root directory; expected one that may be emptied")
        try:
            os.makedirs(where, exist_ok=True)
            fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise ConfigError("work_directory", f"{where} cannot be made: {exc.strerror}") from exc
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before it is emptied: of running actions, too
                stale = await trio.to_thread.run_sync(_empty_but_for_directories, where)
            except BlockingIOError:
                problem = f"{where} is in use by another worker; expected a directory for each"
                raise ConfigError("work_directory", problem) from None
            except OSError as exc:
                raise ConfigError("work_directory", f"{where} cannot be locked and emptied: {exc.strerror}") from exc
            for path in stale:
                await self._runner.remove_tree(path)
            yield
        finally:
            os.close(fd)

    def make(self, operation_id: str) -> str:
        """A new directory. Raises NlError."""
        name = operation_id if operation_id.replace("-", "").isalnum() and len(operation_id) < 128 else "action"
        path = f"{self.path}/{name}"
        with os_errors("cannot make the action's directory"):
            while True:
                try:
                    os.mkdir(path, 0o755)
                    return path
                except FileExistsError:  # an earlier attempt by the same name is still being removed
                    self._serial += 1
                    path = f"{self.path}/{name}.{self._serial}"

    async def remove(self, directory: str) -> None:
        """Removes an action's directory, also when cancelled."""
        with trio.move_on_after(self._max_wait_s, shield=True) as scope:
            await self._runner.remove_tree(directory)
        if scope.cancelled_caught:
            log.error("removing %s takes too long; no longer waited for", directory)

    async def renew(self, directory: str) -> None:
        """Makes it as it was when it was made. Raises NlError."""
        await self._runner.remove_tree(directory)
        with os_errors("cannot make the action's directory anew"):
            os.mkdir(directory, 0o755)


def _empty_but_for_directories(path: str) -> list[str]:
    """Removes files and links from a directory; the directories in it are left and returned."""
    directories = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.path)
            else:
                os.unlink(entry.path)
    return directories

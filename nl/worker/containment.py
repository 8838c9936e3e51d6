"""Keeps an action's paths inside of its input root, whatever links there are in it.

The directories of outputs are made before the action runs, through links of the client; outputs are found after it,
through links of the action. Both follow links only as long as they stay inside.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from nl.errors import InvalidRequestError
from nl.worker.command import CommandPlan


def unlock(directories: Iterable[str]) -> bool:
    """Gives directories, parents first, back to their owner: an action may have closed them. Whether one was.

    Links are not followed, and what is no directory (any more) ends it. Blocks. Raises OSError.
    """
    was_locked = False
    for path in directories:
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            break
        if not stat.S_ISDIR(mode):
            break
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(path, stat.S_IMODE(mode) | stat.S_IRWXU)
            was_locked = True
    return was_locked


class Inside:
    """Answers whether a path's directory lies inside of the input root, links followed. Remembers what it has seen."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._real = os.path.realpath(root)
        self._checked = {""}

    def has_directory_of(self, path: str) -> bool:
        """Whether the directory that `path` (relative, normalised) is in exists. Raises as `require`."""
        return self.require(os.path.dirname(path))

    def require(self, directory: str) -> bool:
        """Whether a directory (relative, normalised) exists. Raises InvalidRequestError if a link leads out."""
        if directory in self._checked:
            return True
        done, linked = "", False
        for segment in directory.split("/"):
            done = f"{done}/{segment}" if done else segment
            if done in self._checked:
                continue
            try:
                status = os.lstat(f"{self._root}/{done}")
            except (FileNotFoundError, NotADirectoryError):
                return False
            if stat.S_ISLNK(status.st_mode):
                linked = True
                real = os.path.realpath(f"{self._root}/{done}")
                if real != self._real and not real.startswith(self._real + "/"):
                    raise InvalidRequestError(f"{directory!r} leads outside of the input root, by the link {done!r}")
            elif not stat.S_ISDIR(status.st_mode):
                return False
            if not linked:
                self._checked.add(done)
        return True


def make_parents(root: str, plan: CommandPlan, *, linked: bool) -> None:
    """Makes the working directory and the directories of all outputs. Blocks.

    With `linked` (the input root has links in it) none is made through a link that leads out. Raises
    InvalidRequestError if a file is where a directory has to be.
    """
    inside = Inside(root) if linked else None
    wanted = [plan.working_directory, *(os.path.dirname(output.path) for output in plan.outputs)]
    for directory in dict.fromkeys(wanted):
        if not directory:
            continue
        if inside is not None:
            _make_inside(root, directory, inside)
            continue
        try:
            os.makedirs(f"{root}/{directory}", 0o755, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise InvalidRequestError(f"an input file is where the directory {directory!r} has to be") from None


def _make_inside(root: str, directory: str, inside: Inside) -> None:
    done = ""
    for segment in directory.split("/"):
        done = f"{done}/{segment}" if done else segment
        inside.require(done)
        try:
            os.mkdir(f"{root}/{done}", 0o755)
        except FileExistsError:
            if not os.path.isdir(f"{root}/{done}"):
                raise InvalidRequestError(f"an input file is where the directory {directory!r} has to be") from None

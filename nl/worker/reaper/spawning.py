"""Starting a command as a shell would find it."""

from __future__ import annotations

import errno
import os
import signal
import time

ETXTBSY_TRIES = 20
SPARED = {signal.SIGKILL, signal.SIGSTOP}
RESET = [n for n in signal.valid_signals() if n not in SPARED]


def candidates(program: str, path: str) -> list[str]:
    """The files that `program` may mean: itself if it has a slash (relative to the cwd), else one per PATH entry."""
    if "/" in program:
        return [program]
    return [os.path.join(entry or ".", program) for entry in path.split(":")] if program else []


def spawn(argv: list[str], env: dict[str, str], out: int, err: int) -> int:
    """Starts the command in a session of its own; raises OSError as execve(2) would.

    Like execvp(3): the first candidate that can be executed wins, a permission problem is remembered over "not
    found", and a script without an interpreter line is given to /bin/sh.
    """
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, out, 1),
        (os.POSIX_SPAWN_DUP2, err, 2),
    ]
    failure = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    for path in candidates(argv[0], env.get("PATH", "")):
        args = argv
        for attempt in range(ETXTBSY_TRIES):
            try:
                return os.posix_spawn(
                    path, args, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=RESET
                )
            except OSError as exc:
                if exc.errno == errno.ENOEXEC and args is argv:
                    path, args = "/bin/sh", ["/bin/sh", path, *argv[1:]]
                    continue
                if exc.errno == errno.ETXTBSY and attempt + 1 < ETXTBSY_TRIES:
                    time.sleep(0.005)  # somebody forked while the file was open for writing; that ends with its exec
                    continue
                if exc.errno not in (errno.ENOENT, errno.ENOTDIR):
                    failure = OSError(exc.errno, os.strerror(exc.errno or 0))
                    if exc.errno != errno.EACCES:
                        raise failure from None
                break
    raise failure

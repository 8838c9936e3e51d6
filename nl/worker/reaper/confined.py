"""Commands in a place of their own: a sandbox (namespaces), or the uid of a pool. Both are lived in by a *keeper*.

The keeper is forked by the warden, moves in, gives up what rights it has, starts the command, waits for it and for all
that it leaves behind, and says how it went. It has the rights of the command, so nothing that it says is believed
beyond how the command ended; it cannot be traced (PR_SET_DUMPABLE), and what befalls it is the command's own doing:

* `sandbox`: it is the first process of its pid namespace. No signal from inside reaches it; with it ends everything.
* `uid`: it may be killed or stopped by the command. The warden has another user; it keeps the time, and in the end has
  all processes of the uid killed by one that has taken this uid for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import time
from typing import Any

from nl.worker.reaper import kernel, layers, leftovers, sandbox
from nl.worker.reaper.descendants import Usage, become_subreaper, end_strays
from nl.worker.reaper.messages import receive, send
from nl.worker.reaper.spawning import spawn


class Keeper:
    """The warden's side: a keeper from its start to the end of all that it has started."""

    def __init__(self, request: dict[str, Any], outputs: tuple[int, int]) -> None:
        self._place = request["place"]
        self._link, theirs = socket.socketpair()
        self.said: dict[str, Any] = {}
        """How the command went, if the keeper could say it."""
        self._reaped = False
        with theirs:
            try:
                if self._place["sandbox"]:
                    sandbox.prepare(self._place)
                    self._pid = kernel.fork_into(sandbox.namespaces(self._place))
                else:
                    prepare_for_uid(self._place)
                    self._pid = os.fork()
            except OSError:
                self._link.close()
                raise
            if self._pid == 0:
                live(theirs, request, outputs)

    def close(self) -> None:
        """Waits for the end of a keeper; it is killed unless it has said its last word."""
        if not self._reaped:
            self.end(Usage(), by_force=not self.said)
        self._link.close()

    def fileno(self) -> int:
        """Can be read when the keeper has said how the command went, or has ended without."""
        return self._link.fileno()

    def hear(self) -> bool:
        """Hears how the command went; False if the keeper has ended without a word, which is the command's doing.

        What the command has written is in the input root then, and nothing of the command is left.
        """
        said = receive(self._link)
        if said is None:
            return False
        self.said = said
        self._settle()
        return True

    def end(self, usage: Usage, *, by_force: bool) -> int:
        """Ends what is left and waits for it; the status of the keeper as wait4(2) has it."""
        self._reaped = True
        if by_force:
            os.kill(self._pid, signal.SIGKILL)
        _pid, status, used = os.wait4(self._pid, 0)
        usage.add(used)
        if not self.said and not self._place["sandbox"]:
            kill_all_of(self._place["uid"])
        end_strays(usage)
        if not self.said:
            self._settle()
        return status

    def _settle(self) -> None:
        """Brings in what the command has written where that is not the input root, or removes it."""
        if self._place["sandbox"]:
            layers.settle(self._place)
        else:
            leftovers.remove_all_of(self._place["uid"])


def prepare_for_uid(place: dict[str, Any]) -> None:
    """Gives the action what is its own: its input root, and where its side channel is."""
    sandbox.give(place["root"], place["uid"])
    if place["shared"]:
        os.chown(place["shared"], place["uid"], place["uid"])


def kill_all_of(uid: int) -> None:
    """Kills every process of a uid, by one that takes it: it cannot kill anybody else's, and forks cannot escape."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            os.setresuid(uid, uid, uid)
            os.kill(-1, signal.SIGKILL)
        os._exit(0)
    os.waitpid(pid, 0)


# ---- the keeper's own life


def live(link: socket.socket, request: dict[str, Any], outputs: tuple[int, int]) -> None:
    """Moves in, runs the command, tells how it went, ends."""
    code = 1
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # the warden's own: nothing that the command sends is heard here
        try:
            move_in(request["place"])
            os.chdir(request["cwd"])
        except OSError as exc:
            send(link, {"failed": "prepare", "errno": exc.errno, "path": exc.filename or exc.strerror})
            os._exit(0)
        send(link, keep(request, outputs))
        code = 0
    except BaseException as exc:  # noqa: BLE001, ASYNC103  # the process ends here: say why, no clean-up of the warden's
        send(link, {"failed": "prepare", "errno": errno.EIO, "path": f"{type(exc).__name__}: {exc}"})
    finally:
        os._exit(code)


def move_in(place: dict[str, Any]) -> None:
    """Becomes what the command shall be: its view of the machine, its user, no rights."""
    uid = place["uid"]
    if place["sandbox"]:
        sandbox.furnish(place)
        if uid is not None:
            kernel.enter(place["users"], kernel.CLONE_NEWUSER)
            uid = sandbox.NOBODY
    else:
        become_subreaper()
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # changing users has taken it back


def keep(request: dict[str, Any], outputs: tuple[int, int]) -> dict[str, Any]:
    """Runs the command and ends what it leaves behind; what there is to say of it."""
    started_ns, clock = time.time_ns(), time.monotonic_ns()
    try:
        pid = spawn(request["argv"], request["env"], *outputs)
    except (OSError, ValueError) as exc:  # ValueError: a NUL inside of an argument or a variable
        return {"failed": "exec", "errno": getattr(exc, "errno", None) or errno.EINVAL, "text": str(exc)}
    usage = Usage()
    while True:
        ended, status, used = os.wait4(-1, 0)
        usage.add(used)
        if ended == pid:
            break
    elapsed_ns, ended_ns = time.monotonic_ns() - clock, time.time_ns()
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)  # all of this pid namespace, or of this uid, which nobody else has
    with contextlib.suppress(ChildProcessError):
        while True:
            _pid, _status, used = os.wait4(-1, 0)
            usage.strays += 1
            usage.add(used)
    return {
        "status": status,
        "started_ns": started_ns,
        "ended_ns": ended_ns,
        "elapsed_ns": elapsed_ns,
        **usage.told(),
    }

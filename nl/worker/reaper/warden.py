"""A warden: one request after the other, until the worker is gone."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import time
from typing import Any

from nl.worker.reaper.confined import Keeper
from nl.worker.reaper.descendants import Usage, become_subreaper, end_strays
from nl.worker.reaper.messages import receive, send
from nl.worker.reaper.removing import remove_tree
from nl.worker.reaper.spawning import spawn

TICK_MS = 200
"""How often a running action's output is compared with its limit."""


resumed: list[int] = []
"""Not empty in a warden that was stopped while its action ran: SIGCONT has been here."""


def note_resumed(number: int, _frame: object) -> None:
    """For SIGCONT, which may come as often as an action likes."""
    resumed[:] = [number]


def supervise(sock: socket.socket, ending: int, limits: tuple[float, int], outputs: tuple[int, int]) -> str:
    """Waits for the command or for a reason to end it: "exit", "timeout", "kill", "flood" or "gone".

    `ending` is a descriptor that can be read when the command has ended; the limits are a time of the monotonic clock
    and the bytes that each output may have.
    """
    poller = select.poll()
    poller.register(ending, select.POLLIN)
    poller.register(sock, select.POLLIN)
    deadline, limit = limits
    while True:
        left_ms = (deadline - time.monotonic()) * 1000
        ready = {fd for fd, _events in poller.poll(max(0.0, min(TICK_MS, left_ms)))}
        if ending in ready:
            return "exit"
        if ready:
            message = receive(sock)
            if message is None:
                return "gone"
            if message["do"] == "kill":
                return "kill"
        if left_ms <= 0:
            return "timeout"
        if any(os.fstat(fd).st_size > limit for fd in outputs):
            return "flood"


def limits_of(request: dict[str, Any]) -> tuple[float, int]:
    """The limits of a command that begins now."""
    return time.monotonic() + request["timeout_s"], request["max_output_bytes"]


def run(sock: socket.socket, request: dict[str, Any]) -> bool:
    """Runs one command to its end and the end of all it started, and replies; False if the worker is gone."""
    with contextlib.ExitStack() as later:
        try:
            reply = reply_to(sock, request, later)
        except OSError as exc:
            reply = {"failed": "prepare", "errno": exc.errno, "path": exc.filename or exc.strerror}
        if reply is None:
            return False
        send(sock, reply)
    return True


def reply_to(sock: socket.socket, request: dict[str, Any], later: contextlib.ExitStack) -> dict[str, Any] | None:
    """Runs one command; None if the worker is gone. What can wait until the reply has been sent goes to `later`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    out = os.open(request["stdout"], flags, 0o600)
    later.callback(os.close, out)
    err = os.open(request["stderr"], flags, 0o600)
    later.callback(os.close, err)
    outputs = (out, err)
    confined = bool(request["place"])
    reply = run_confined(sock, request, outputs, later) if confined else run_plain(sock, request, outputs)
    if reply is None or "failed" in reply:
        return reply
    return {**reply, "stdout_bytes": os.fstat(out).st_size, "stderr_bytes": os.fstat(err).st_size}


def run_plain(sock: socket.socket, request: dict[str, Any], outputs: tuple[int, int]) -> dict[str, Any] | None:
    """Runs a command as this user, among all other processes."""
    with contextlib.ExitStack() as stack:
        stack.callback(os.chdir, "/")
        os.chdir(request["cwd"])
        resumed.clear()  # before the command is there
        started_ns, clock = time.time_ns(), time.monotonic_ns()
        usage = Usage()
        try:
            pid = spawn(request["argv"], request["env"], *outputs)
        except (OSError, ValueError) as exc:  # ValueError: a NUL inside of an argument or a variable
            return {"failed": "exec", "errno": getattr(exc, "errno", None) or errno.EINVAL, "text": str(exc)}
        pidfd = os.pidfd_open(pid)
        stack.callback(os.close, pidfd)
        why = supervise(sock, pidfd, limits_of(request), outputs)
        if resumed and why == "exit":
            why = "stopped"
        elapsed_ns, ended_ns = time.monotonic_ns() - clock, time.time_ns()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # the leader is not waited for yet: its number cannot mean another group
        _pid, status, used = os.wait4(pid, 0)
        usage.add(used)
        end_strays(usage)
        if why == "gone":
            return None
        return {
            "why": why,
            "status": status,
            "started_ns": started_ns,
            "ended_ns": ended_ns,
            "elapsed_ns": elapsed_ns,
            **usage.told(),
        }


def run_confined(
    sock: socket.socket, request: dict[str, Any], outputs: tuple[int, int], later: contextlib.ExitStack
) -> dict[str, Any] | None:
    """Runs a command in the place that the request describes, under a keeper."""
    started_ns, clock = time.time_ns(), time.monotonic_ns()
    keeper = Keeper(request, outputs)
    later.callback(keeper.close)  # the namespaces of one that has said its last word end without anybody waiting
    why = supervise(sock, keeper.fileno(), limits_of(request), outputs)
    if why == "exit" and keeper.hear():
        return {"why": why, **keeper.said}
    elapsed_ns, ended_ns = time.monotonic_ns() - clock, time.time_ns()
    usage = Usage()
    status = keeper.end(usage, by_force=why != "exit")
    if why == "gone":
        return None
    return {
        "why": why,
        "status": status,
        "started_ns": started_ns,
        "ended_ns": ended_ns,
        "elapsed_ns": elapsed_ns,
        **usage.told(),
    }


def serve(sock: socket.socket) -> None:
    """Works for the worker at the other end of `sock`."""
    become_subreaper()
    signal.signal(signal.SIGCONT, note_resumed)
    while (request := receive(sock)) is not None:
        if request["do"] == "run":
            if not run(sock, request):
                return
        elif request["do"] == "remove":
            try:
                remove_tree(request["path"])
                send(sock, {})
            except OSError as exc:
                send(sock, {"failed": "remove", "errno": exc.errno, "text": str(exc)})

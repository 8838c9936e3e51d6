"""The reaper: forks a warden for every action that runs at a time."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import socket
import sys

from nl.worker.reaper import kernel
from nl.worker.reaper.descendants import become_subreaper, children
from nl.worker.reaper.warden import serve


def fork_warden(sock: socket.socket, sign_off: tuple[socket.socket, ...]) -> int:
    """Forks; the child serves `sock` and never returns."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in sign_off:
            other.close()
        serve(sock)
        code = 0
    except ConnectionError:
        code = 0
    except BaseException as exc:  # noqa: BLE001, ASYNC103  # the process ends here: say why, no clean-up of the parent's
        print(f"nl warden: {type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def wake_up(warden: int) -> None:
    """Kills what a stopped warden runs, for who else should have stopped it, and lets it go on."""
    doomed = children(warden)
    for pid in doomed:
        doomed += children(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(warden, signal.SIGCONT)


def reap(wardens: set[int]) -> None:
    """Waits for ended wardens; when one did not end well, kills what it left to us. Wakes up stopped ones."""
    orphaned = False
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                break
            if pid in wardens and os.WIFSTOPPED(status):
                wake_up(pid)
                continue
            orphaned |= pid not in wardens or status != 0
            wardens.discard(pid)
    while orphaned:
        strays = [pid for pid in children() if pid not in wardens]
        orphaned = bool(strays)
        for pid in strays:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def outlive(wardens: set[int], poller: select.poll, woken: socket.socket) -> None:
    """Waits for the end of the wardens, whose own sockets are closed: an action may have stopped one."""
    reap(wardens)
    while wardens:
        poller.poll(1000)
        with contextlib.suppress(BlockingIOError):
            woken.recv(4096)
        reap(wardens)


def main(fd: int, open_files: int) -> None:
    """The reaper: forks a warden for every descriptor that arrives, until the worker is gone.

    `open_files` is the soft limit that the server was started with (it has raised its own), 0 for what it is.
    """
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # no action may look into this process or what it forks
    if open_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(ignored, signal.SIG_IGN)
    control = socket.socket(fileno=fd)
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    woken.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    become_subreaper()
    gc.disable()
    gc.freeze()
    os.umask(0o022)
    os.chdir("/")
    wardens: set[int] = set()
    poller = select.poll()
    poller.register(control, select.POLLIN)
    poller.register(woken, select.POLLIN)
    control.send(b"r")  # all that this needs of the kernel is there
    while True:
        ready = {number for number, _events in poller.poll()}
        if woken.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                woken.recv(4096)
            reap(wardens)
        if control.fileno() in ready:
            data, fds, _flags, _address = socket.recv_fds(control, 1, 1)
            if not data:
                poller.unregister(control)
                outlive(wardens, poller, woken)
                signal.set_wakeup_fd(-1)  # no more is to be written to `wake`, which is closed now
                return
            for number in fds:
                os.set_inheritable(number, False)  # received ones are inheritable: no action may talk to its warden
                with socket.socket(fileno=number) as sock:
                    try:
                        wardens.add(fork_warden(sock, (control, woken, wake)))
                    except OSError as exc:  # no more processes: the worker sees its socket closed
                        print(f"nl reaper: cannot fork: {exc}", file=sys.stderr, flush=True)


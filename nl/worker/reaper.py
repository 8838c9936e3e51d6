"""The program that starts actions and sees to it that nothing of them stays behind. Standard library only.

Not imported by the server: `processes.py` runs this file with `python -I -S reaper.py FD` once per worker. That
process, the *reaper*, forks a small process, a *warden*, for every action that runs at a time; wardens are reused. A
warden is a child subreaper (prctl(2)): whatever an action leaves behind, also after setsid and a double fork, becomes
the warden's child, is killed and waited for before the action counts as ended. So its state at the end of an action
is always "no children", by construction and not by bookkeeping.

Rules for this file:

* The socket to the worker is the life line. At its end (the worker closed it, crashed, was killed) a warden kills
  what it runs and exits; so does the reaper when its own ends.
* Messages are JSON with a 4-byte length in front. A request gets one reply. `kill` gets none, and one that comes too
  late is dropped.
* The reaper is a subreaper too: if an action kills its own warden, what it leaves falls to the reaper, which kills it.
  If it stops its warden, the reaper kills the action and lets the warden go on.
* Signals meant for the server (a terminal's Ctrl-C, a service manager's SIGTERM to the whole group) are ignored
  here: the worker decides when actions end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import json
import os
import select
import signal
import socket
import stat
import struct
import sys
import time
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
LENGTH = struct.Struct("<I")
TICK_MS = 200
"""How often a running action's output is compared with its limit."""
FLAT_DEPTH = 48
"""Deeper directories are moved up before they are emptied: descriptors and recursion stay bounded in hostile trees."""
ETXTBSY_TRIES = 20

SPARED = {signal.SIGKILL, signal.SIGSTOP}
RESET = [n for n in signal.valid_signals() if n not in SPARED]


# ---- messages


def send(sock: socket.socket, message: dict[str, Any]) -> None:
    """Sends one message whole."""
    data = json.dumps(message, separators=(",", ":")).encode()
    sock.sendall(LENGTH.pack(len(data)) + data)


def receive(sock: socket.socket) -> dict[str, Any] | None:
    """The next message; None when the other side is gone."""
    head = receive_exactly(sock, LENGTH.size)
    if head is None:
        return None
    body = receive_exactly(sock, LENGTH.unpack(head)[0])
    return None if body is None else json.loads(body)


def receive_exactly(sock: socket.socket, count: int) -> bytes | None:
    """`count` bytes, or None at the end of the stream."""
    got = b""
    while len(got) < count:
        try:
            part = sock.recv(count - len(got))
        except ConnectionError:
            return None
        if not part:
            return None
        got = got + part if got else part
    return got


# ---- descendants


def become_subreaper() -> None:
    """Orphaned descendants become children of this process from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


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

    def add(self, usage: Any) -> None:
        """Counts one process that was waited for."""
        self.cpu_s += usage.ru_utime + usage.ru_stime
        self.max_rss_kb = max(self.max_rss_kb, usage.ru_maxrss)


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


# ---- one action


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


def supervise(sock: socket.socket, pid: int, request: dict[str, Any], outputs: tuple[int, int]) -> str:
    """Waits for the command or for a reason to end it: "exit", "timeout", "kill", "flood" or "gone"."""
    pidfd = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.register(sock, select.POLLIN)
        deadline = time.monotonic() + request["timeout_s"]
        limit = request["max_output_bytes"]
        while True:
            left_ms = (deadline - time.monotonic()) * 1000
            ready = {fd for fd, _events in poller.poll(max(0.0, min(TICK_MS, left_ms)))}
            if pidfd in ready:
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
    finally:
        os.close(pidfd)


resumed: list[int] = []
"""Not empty in a warden that was stopped while its action ran: SIGCONT has been here."""


def run(sock: socket.socket, request: dict[str, Any]) -> dict[str, Any] | None:
    """Runs one command to its end and the end of all it started; None if the worker is gone."""
    with contextlib.ExitStack() as stack:
        stack.callback(os.chdir, "/")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            out = os.open(request["stdout"], flags, 0o600)
            stack.callback(os.close, out)
            err = os.open(request["stderr"], flags, 0o600)
            stack.callback(os.close, err)
            os.chdir(request["cwd"])
        except OSError as exc:
            return {"failed": "prepare", "errno": exc.errno, "path": exc.filename}
        resumed.clear()  # before the command is there
        started_ns, clock = time.time_ns(), time.monotonic_ns()
        usage = Usage()
        try:
            pid = spawn(request["argv"], request["env"], out, err)
        except (OSError, ValueError) as exc:  # ValueError: a NUL inside of an argument or a variable
            return {"failed": "exec", "errno": getattr(exc, "errno", None) or errno.EINVAL, "text": str(exc)}
        why = supervise(sock, pid, request, (out, err))
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
            "stdout_bytes": os.fstat(out).st_size,
            "stderr_bytes": os.fstat(err).st_size,
            "cpu_s": usage.cpu_s,
            "max_rss_kb": usage.max_rss_kb,
            "strays": usage.strays,
        }


# ---- removing what an action made


def open_directory(name: str, parent: int | None) -> int:
    """Opens a directory without following links; one that its owner may not enter is made accessible first."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        fd = os.open(name, flags, dir_fd=parent)
    if stat.S_IMODE(os.fstat(fd).st_mode) & 0o700 != 0o700:
        os.fchmod(fd, 0o700)
    return fd


def empty(name: str, parent: int, top: int, depth: int, counter: list[int]) -> None:
    """Empties the directory `name` of `parent`; what is too deep is moved to `top` for a later round."""
    here = open_directory(name, parent)
    try:
        with os.scandir(here) as entries:
            listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for child, is_directory in listed:
            if not is_directory:
                os.unlink(child, dir_fd=here)
            elif depth < FLAT_DEPTH:
                empty(child, here, top, depth + 1, counter)
                os.rmdir(child, dir_fd=here)
            else:
                os.close(open_directory(child, here))  # moving it needs write permission on it
                counter[0] += 1
                os.rename(child, f".deep-{counter[0]}", src_dir_fd=here, dst_dir_fd=top)
    finally:
        os.close(here)


def remove_tree(path: str) -> None:
    """Removes a directory and all that is in it: links are not followed, modes and depth do not matter."""
    above, name = os.path.split(path)
    parent = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            top = open_directory(name, parent)
        except FileNotFoundError:
            return
        try:
            counter = [int(time.monotonic_ns())]
            while True:
                empty(name, parent, top, 0, counter)
                if not os.listdir(top):
                    break
        finally:
            os.close(top)
        os.rmdir(name, dir_fd=parent)
    finally:
        os.close(parent)


# ---- the two kinds of process


def serve(sock: socket.socket) -> None:
    """A warden: one request after the other until the worker is gone."""
    become_subreaper()
    signal.signal(signal.SIGCONT, lambda number, _frame: resumed.append(number))
    while (request := receive(sock)) is not None:
        reply: dict[str, Any] | None
        if request["do"] == "run":
            reply = run(sock, request)
            if reply is None:
                return
        elif request["do"] == "remove":
            try:
                remove_tree(request["path"])
                reply = {}
            except OSError as exc:
                reply = {"failed": "remove", "errno": exc.errno, "text": str(exc)}
        else:
            continue
        send(sock, reply)


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


def main(fd: int) -> None:
    """The reaper: forks a warden for every descriptor that arrives, until the worker is gone."""
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


if __name__ == "__main__":
    main(int(sys.argv[1]))

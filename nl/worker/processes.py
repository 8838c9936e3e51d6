"""The worker's side of `reaper/`: runs commands in warden processes and ends all that they leave behind.

What it is not: it knows no action, no digest and no store. One `Supervisor` per worker; `run` per action.
A warden is asked for one thing at a time, so a request is a write and a read on its socket: no thread, no task.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio

from nl.errors import InternalError, NlError, UnavailableError
from nl.worker.failures import os_errors
from nl.worker.runner import CannotExecuteError, Ended, Job, KillSwitch, Place

log = logging.getLogger("nl.worker.processes")

PACKAGE_ROOT = str(Path(__file__).parents[2])
_REAPER = (
    "import sys; sys.path.insert(0, sys.argv[1]); from nl.worker.reaper.main import main; "
    "main(int(sys.argv[2]), int(sys.argv[3]))"
)
MAX_IDLE = 32
"""Wardens kept for later: what a machine runs at a time; one costs about 2 MiB of its own, and a descriptor."""
IDLE_S = 20.0
"""For how long, but for one."""
KILL_GRACE_S = 30.0
"""How long a killed action's processes may take to be gone before they are given up on (uninterruptible I/O)."""
RESTART_S = 0.5
BEAT_S = 1.0
START_S = 20.0
_NO_ROOM = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT})
_LENGTH = struct.Struct("<I")
_KILL = _LENGTH.pack(13) + b'{"do":"kill"}'


class _LostError(Exception):
    """The warden at the other end is gone."""


class _Warden:
    """The worker's end of one warden's socket."""

    __slots__ = ("_sock", "idle_since", "in_step")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.idle_since = 0.0
        self.in_step = True
        """False while a request is sent in part: nothing else can be said then."""

    @property
    def alive(self) -> bool:
        """False once the process is gone (an idle warden says nothing, so anything readable is the end)."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """Lets go: the warden kills what it runs, and exits."""
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()

    def kill(self) -> None:
        """Asks for the end of what runs. Nothing else is being sent then, so this never has to wait."""
        try:
            self._sock.send(_KILL)
        except OSError:
            log.debug("kill: the warden is gone already")

    async def send(self, message: Mapping[str, Any]) -> None:
        body = json.dumps(message, separators=(",", ":")).encode()
        view = memoryview(_LENGTH.pack(len(body)) + body)
        self.in_step = False
        while view:
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)
            except OSError as exc:
                raise _LostError(str(exc)) from exc
        self.in_step = True

    async def receive(self) -> dict[str, Any]:
        data = b""
        while True:
            if len(data) >= 4 and len(data) - 4 >= (size := _LENGTH.unpack_from(data)[0]):
                reply: dict[str, Any] = json.loads(data[4 : 4 + size])
                return reply
            try:
                part = self._sock.recv(65536)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            except OSError as exc:
                raise _LostError(str(exc)) from exc
            if not part:
                raise _LostError("end of stream")
            data += part


class Supervisor:
    """The runner `plain`: commands run as the server's user, each under a warden of its own. See `Runner`.

    *Ownership*: `serve` owns the reaper.
    """

    kind = "plain"
    inputs_shared = True

    def __init__(self, *, open_files: int = 0) -> None:
        """`open_files` is the soft limit of open files for commands; 0 leaves it as it is."""
        self._open_files = open_files
        self._idle: list[_Warden] = []
        self._control: socket.socket | None = None
        self._up = trio.Event()
        self._users = 0
        self._released = trio.lowlevel.ParkingLot()
        self._closed = False
        self._started = 0
        self._strays = 0
        self._reapers = 0

    def __repr__(self) -> str:
        return f"<Supervisor idle={len(self._idle)} started={self._started} strays={self._strays}>"

    def statistics(self) -> Mapping[str, int]:
        """See `Runner`."""
        return {
            "commands": self._started,
            "strays_killed": self._strays,
            "idle_wardens": len(self._idle),
            "reapers_started": self._reapers,
        }

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Runner`: keeps a reaper running."""
        async with trio.open_nursery() as nursery:
            keeping: trio.CancelScope = await nursery.start(self._keep_reaper)
            nursery.start_soon(self._retire_idle)
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    while self._users:
                        await self._released.park()
                self._closed = True
                keeping.cancel()
                while self._idle:
                    self._idle.pop().close()

    @contextmanager
    def held(self) -> Iterator[None]:
        """See `Runner`."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._released.unpark_all()

    async def _retire_idle(self) -> None:
        """Lets wardens go that a burst of actions has left: the last one given back is the first to be taken."""
        while True:
            await trio.sleep(IDLE_S / 4)
            while len(self._idle) > 1 and self._idle[0].idle_since < trio.current_time() - IDLE_S:
                self._idle.pop(0).close()

    async def _keep_reaper(self, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        announced = False
        with trio.CancelScope() as scope:
            while True:
                try:
                    process = await self._start_reaper()
                except InternalError as exc:
                    if not announced:
                        raise
                    log.error("%s; trying again", exc.message)
                    await trio.sleep(RESTART_S)
                    continue
                try:
                    if not announced:
                        announced = True
                        task_status.started(scope)
                        # Nobody may shut out a cancellation of the start: `start` would never return.
                        await trio.lowlevel.checkpoint_if_cancelled()
                        scope.shield = True
                    await _outlast(process)
                    log.error("the reaper ended with %s; starting another", process.returncode)
                finally:
                    self._disconnect()
                    await _end(process)  # noqa: ASYNC102  # shields and bounds itself
                await trio.sleep(RESTART_S)

    async def _start_reaper(self) -> trio.Process:
        """Starts one and waits until it says that it can do its work. Raises InternalError."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as exc:
            raise InternalError(f"cannot start the reaper of the worker's processes: {exc}") from exc
        ours.setblocking(False)
        process: trio.Process | None = None
        ready, files = False, self._open_files
        try:
            with theirs:
                process = await trio.lowlevel.open_process(
                    [sys.executable, "-I", "-S", "-c", _REAPER, PACKAGE_ROOT, *map(str, (theirs.fileno(), files))],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
                    start_new_session=True,
                )
            with trio.move_on_after(START_S):
                await trio.lowlevel.wait_readable(ours)
                ready = ours.recv(1) == b"r"
        except OSError as exc:
            raise InternalError(f"cannot start the reaper of the worker's processes: {exc}") from exc
        finally:
            if not ready:
                ours.close()
                if process is not None:
                    await _end(process)  # noqa: ASYNC102  # shields and bounds itself
        if not ready:
            raise InternalError("cannot supervise processes here; the reaper has said on stderr why")
        self._control = ours
        self._reapers += 1
        self._up.set()
        return process

    def _disconnect(self) -> None:
        if self._control is not None:
            trio.lowlevel.notify_closing(self._control)
            self._control.close()
            self._control = None
            self._up = trio.Event()

    async def _take(self) -> _Warden:
        """An idle warden, or a new one."""
        if self._closed:
            raise InternalError("the supervisor of the worker's processes has ended")
        while self._idle:
            warden = self._idle.pop()
            if warden.alive:
                return warden
            warden.close()
        while True:
            await self._up.wait()
            control = self._control
            if control is None:  # lost between the event and now
                continue
            with os_errors("cannot start a process"):
                ours, theirs = socket.socketpair()
            with theirs:
                try:
                    socket.send_fds(control, [b"w"], [theirs.fileno()])
                except BlockingIOError:
                    ours.close()
                    await trio.lowlevel.wait_writable(control)
                    continue
                except OSError:
                    ours.close()
                    await trio.sleep(RESTART_S / 4)  # `serve` notices and starts another reaper
                    continue
            return _Warden(ours)

    @asynccontextmanager
    async def place(self, directory: str) -> AsyncIterator[Place]:
        """See `Runner`."""
        yield Place(directory, None)

    def _give_back(self, warden: _Warden) -> None:
        if len(self._idle) < MAX_IDLE and not self._closed:
            warden.idle_since = trio.current_time()
            self._idle.append(warden)
        else:
            warden.close()

    async def run(self, job: Job, *, switch: KillSwitch, place: Mapping[str, Any] | None = None) -> Ended:
        """See `Runner.run`; `place` says how the command is confined (`reaper/confined.py`), None for not at all."""
        self._started += 1
        with self.held():
            warden = await self._take()
            usable = False
            try:
                try:
                    reply = await self._supervised(warden, job, switch, place)
                except trio.Cancelled:
                    usable = warden.in_step and await self._ended_by_force(warden)  # noqa: ASYNC102  # shields itself
                    raise
                usable = True
            finally:
                switch.connect(None)
                if usable:
                    self._give_back(warden)
                else:
                    warden.close()
        return self._ended(reply)

    async def _ended_by_force(self, warden: _Warden) -> bool:
        """Kills what runs and waits until nothing of it is left. Whether the warden can go on."""
        warden.kill()
        with trio.move_on_after(KILL_GRACE_S, shield=True) as scope:
            try:
                await warden.receive()
            except _LostError:
                return False
        if scope.cancelled_caught:
            log.error("processes of an action are still there %g s after they were killed", KILL_GRACE_S)
        return not scope.cancelled_caught

    async def _supervised(
        self, warden: _Warden, job: Job, switch: KillSwitch, place: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        request = {
            "do": "run",
            "argv": list(job.argv),
            "env": dict(job.env),
            "cwd": job.cwd,
            "stdout": job.stdout,
            "stderr": job.stderr,
            "timeout_s": job.timeout_s,
            "max_output_bytes": job.max_output_bytes,
            "place": place,
        }
        try:
            await warden.send(request)
            switch.connect(warden.kill)
            with trio.fail_after(job.timeout_s + KILL_GRACE_S):
                return await warden.receive()
        except _LostError:
            raise InternalError("the process that supervises the action was killed") from None
        except trio.TooSlowError:
            raise InternalError(f"the action's processes are still there {KILL_GRACE_S:g} s after their end") from None

    def _ended(self, reply: dict[str, Any]) -> Ended:
        if failed := reply.get("failed"):
            number = reply.get("errno") or errno.EINVAL
            if failed == "exec" and number not in _NO_ROOM:
                raise CannotExecuteError(number)
            if number in _NO_ROOM:
                raise UnavailableError(f"cannot start the command: {os.strerror(number)}")
            raise InternalError(f"cannot prepare the command: {os.strerror(number)}: {reply.get('path')}")
        status = reply.pop("status")
        self._strays += reply["strays"]
        code = os.waitstatus_to_exitcode(status)
        return Ended(exit_code=code if code >= 0 else 128 - code, **reply)

    async def remove_tree(self, path: str) -> None:
        """See `Runner`."""
        with self.held():
            try:
                warden = await self._take()
            except NlError as exc:
                log.error("cannot remove %s: %s", path, exc.message)
                return
            usable = False
            try:
                await warden.send({"do": "remove", "path": path})
                reply = await warden.receive()
                usable = True
                if "failed" in reply:
                    log.error("cannot remove %s: %s", path, reply.get("text"))
            except _LostError:
                log.error("cannot remove %s: the process that did was killed", path)
            finally:
                if usable:
                    self._give_back(warden)
                else:
                    warden.close()


async def _outlast(process: trio.Process) -> None:
    """Waits for the end of a reaper, which an action may have stopped: it is told to go on every second."""
    while process.returncode is None:
        with trio.move_on_after(BEAT_S):
            await process.wait()
            return
        process.send_signal(signal.SIGCONT)


async def _end(process: trio.Process) -> None:
    """Waits for a reaper whose socket is closed."""
    with trio.CancelScope(shield=True):
        with trio.move_on_after(5):
            await process.wait()
            return
        process.send_signal(signal.SIGKILL)
        await process.wait()

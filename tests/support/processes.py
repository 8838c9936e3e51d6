"""Real server processes for tests and benches: started, watched until they answer, stopped or killed, never leaked."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


_GIVEN: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, that no client gets by chance (those are above 32,768), and none given before."""
    while True:
        port = random.randrange(10_240, 32_000)
        with socket.socket() as s, suppress(OSError):
            s.bind(("127.0.0.1", port))
            if port not in _GIVEN:
                _GIVEN.add(port)
                return port


def python_of(root: Path) -> str:
    """The interpreter of a checkout: that of its virtual environment where it has one, else this one."""
    own = root / ".venv" / "bin" / "python"
    return str(own) if root != ROOT and own.exists() else sys.executable


def nl_command(root: Path = ROOT) -> list[str]:
    """To be run in `root`, whose `nl` is the one that is meant."""
    return [python_of(root), "-m", "nl.cli"]


def wait_until_listening(port: int, *, timeout_s: float = 10) -> None:
    """Until something on loopback accepts connections there."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


class Server:
    """One server process: its log goes to a file, its readiness is its own HTTP health answer."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        port: int,
        log: Path,
        env: Mapping[str, str] | None = None,
        root: Path = ROOT,
    ) -> None:
        self.port = port
        self.log = log
        self._root = root
        self._arguments = [*nl_command(root), *arguments]
        self._env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.ready_after_s = float("nan")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, *, timeout_s: float = 120) -> None:
        began = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env, cwd=self._root
            )
        while not self.answers():
            if self.process.poll() is not None:
                raise AssertionError(f"server exited with {self.process.returncode}:\n{self.log_text()[-4000:]}")
            if time.monotonic() - began > timeout_s:
                self.kill()
                raise AssertionError(f"server not ready after {timeout_s} s:\n{self.log_text()[-4000:]}")
            time.sleep(0.01)
        self.ready_after_s = time.monotonic() - began

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.target}/status", timeout=5) as reply:
                return reply.status == 200
        except urllib.error.HTTPError:
            return False
        except OSError:
            return False

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self, *, timeout_s: float = 120) -> int:
        """SIGTERM and wait; the exit code. A server that does not stop in time is an error (and is killed)."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"server did not stop:\n{self.log_text()[-4000:]}") from None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def serving(
    arguments: Sequence[str], *, port: int, log: Path, env: Mapping[str, str] | None = None, root: Path = ROOT
) -> Iterator[Server]:
    """A server for the length of a block; stopped in order at its end, killed if the block failed.

    `root` is the checkout that it comes from.
    """
    server = Server(arguments, port=port, log=log, env=env, root=root)
    server.start()
    try:
        yield server
    except BaseException:
        server.kill()
        raise
    else:
        if server.process is not None and server.process.poll() is None:
            server.stop()


@contextmanager
def all_in_one(
    directory: Path, *, port: int | None = None, root: Path = ROOT, isolation: str | None = None
) -> Iterator[Server]:
    """`nl serve` as a user types it, on a free port, with its data under `directory`.

    Where actions meet with the test in files that lie elsewhere, `isolation` has to be `plain`.
    """
    port = port or free_port()
    arguments = ["serve", "--port", str(port), "--data-dir", str(directory / "data")]
    arguments += ["--isolation", isolation] if isolation is not None else []
    with serving(arguments, port=port, log=directory / "server.log", root=root) as server:
        yield server


def cpu_seconds(pid: int) -> float:
    """User and system time of one process, all its threads, without children: /proc/PID/stat, fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    """Resident memory: VmRSS of /proc/PID/status."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) / 1024


def descriptors(pid: int) -> int:
    """How many file descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))

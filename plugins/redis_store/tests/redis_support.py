"""Real Redis servers, started for a test, killed, started again; options that lead there."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from nl_redis_store import RedisStoreOptions
from nl.plugin import RetryOptions

QUICK = RetryOptions(max_retries=9, delay=0.01, jitter=0.5)
PERSISTENT = ("--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0")
"""Without rewriting: Redis 7.0 that is killed twice while it rewrites its log refuses to start ("the truncated file is
not the last file")."""


_GIVEN: set[int] = set()


def free_ports(count: int, *, with_bus: bool = False) -> list[int]:
    """Ports that nobody has now, given once, and below those that clients get by chance.

    `with_bus`: the port 10,000 above is free and taken, too, which a node of a cluster listens on as well.
    """
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            port = random.randrange(10_240, 22_000 if with_bus else 32_000)
            wanted = {port, port + 10_000} if with_bus else {port}
            if wanted & _GIVEN:
                continue
            with suppress(OSError):
                for each in wanted:
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", each))
                _GIVEN.update(wanted)
                found.append(port)
    return found


class RedisServer:
    """A redis-server at a port of its own, which it keeps when it is started again."""

    def __init__(
        self, folder: Path, *settings: str, port: int = 0, tls: bool = False,
        command: tuple[str, ...] = ("redis-server", "--save", "", "--repl-diskless-sync-delay", "0"),
    ) -> None:
        if shutil.which("redis-server") is None:
            pytest.skip("redis-server is not installed: apt-get install redis-server")
        folder.mkdir(parents=True, exist_ok=True)
        self.port = port or free_ports(1)[0]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.log = folder / "log"
        self._folder = folder
        self._settings = settings
        self._command = (*command, "--tls-port" if tls else "--port", str(self.port))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [*self._command, "--bind", "127.0.0.1", "--dir", str(self._folder), "--daemonize", "no",
                   *self._settings]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.wait_for_port()

    def wait_for_port(self) -> None:
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                text = self.log.read_text(errors="replace")
                assert self._process is not None
                assert self._process.poll() is None, text
                assert time.monotonic() < until, text
                time.sleep(0.02)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """At once, as a power cut would, with the child that may be writing its log or its replica's data anew: for a
        moment that one has the port, too, and the next server would not get it.
        """
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            self._wait_until_port_is_free()

    def _wait_until_port_is_free(self) -> None:
        until = time.monotonic() + 60
        while True:
            with socket.socket() as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    s.bind(("127.0.0.1", self.port))
                    s.listen()
                    return
                except OSError:
                    assert time.monotonic() < until
            time.sleep(0.01)

    def signal(self, name: str) -> None:
        """STOP or CONT. A signal that is sent is on its way: for STOP, each thread is waited for, or one answers.
        """
        os.kill(self.pid, signal.Signals[f"SIG{name}"])
        tasks, until = Path(f"/proc/{self.pid}/task"), time.monotonic() + 60
        while name == "STOP" and any(_state(task) != "T" for task in tasks.iterdir()):
            assert time.monotonic() < until
            time.sleep(0.001)

    def cli(self, *arguments: str, login: tuple[str, ...] = ()) -> str:
        """What redis-cli prints."""
        command = ["redis-cli", "-p", str(self.port), *login, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=True)
        return done.stdout.rstrip("\n")

    def all_keys(self) -> set[str]:
        """Of all databases that tests use."""
        listed = [self.cli("-n", database, "--scan") for database in ("0", "3")]
        return {line for text in listed for line in text.splitlines()}


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


@contextmanager
def redis_server(folder: Path, *settings: str, tls: bool = False) -> Iterator[RedisServer]:
    server = RedisServer(folder, *settings, tls=tls)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class RedisCluster:
    """Three masters, and as many replicas if they are asked for."""

    def __init__(self, folder: Path, *, replicas: int, settings: tuple[str, ...] = ()) -> None:
        count = 3 * (1 + replicas)
        self.servers = [
            RedisServer(folder / str(port), "--cluster-enabled", "yes", "--cluster-node-timeout", "1000",
                        "--cluster-config-file", "nodes.conf", *settings, port=port)
            for port in free_ports(count, with_bus=True)
        ]
        self._replicas = replicas

    def start(self) -> None:
        for server in self.servers:
            server.start()
        places = [f"127.0.0.1:{server.port}" for server in self.servers]
        command = ["redis-cli", "--cluster", "create", *places, "--cluster-replicas", str(self._replicas),
                   "--cluster-yes"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
        until = time.monotonic() + 60
        while not all("cluster_state:ok" in server.cli("CLUSTER", "INFO") for server in self.servers):
            assert time.monotonic() < until
            time.sleep(0.1)

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(server.url for server in self.servers[:2])

    def all_keys(self) -> set[str]:
        return {line for server in self.servers for line in server.cli("--scan").splitlines()}

    def kill(self) -> None:
        for server in self.servers:
            server.kill()


@contextmanager
def redis_cluster(folder: Path, *, replicas: int = 0, settings: tuple[str, ...] = ()) -> Iterator[RedisCluster]:
    cluster = RedisCluster(folder, replicas=replicas, settings=settings)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.kill()


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests; each takes a prefix of its own."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """One cluster of three masters for all tests; each takes a prefix of its own."""
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def new_prefix() -> str:
    return f"t{os.urandom(6).hex()}:"


def options_for(*urls: str, **more: object) -> RedisStoreOptions:
    """Options as a config would give them, without waiting long between retries."""
    options = RedisStoreOptions(**{"addresses": urls, "retry": QUICK, **more})
    options.check()
    return options

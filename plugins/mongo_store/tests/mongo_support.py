"""A real server that speaks MongoDB's protocol, started for a test, killed, started again; options that lead there.

FerretDB 1 over SQLite, since MongoDB itself is in no package registry. What it writes is in its files when it is
acknowledged.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pymongo
import pytest

from nl.plugin import RetryOptions
from nl_mongo_store import MongoStoreOptions

QUICK = RetryOptions(max_retries=9, delay=0.01, jitter=0.5)
PATIENT = RetryOptions(max_retries=11, delay=0.02, jitter=0.5)
"""80 s in all; pauses double."""
_GIVEN: set[int] = set()


def program() -> str | None:
    """Where ferretdb is, if it is."""
    beside = Path(sys.executable).parent / "ferretdb"
    return str(beside) if beside.exists() else shutil.which("ferretdb")


def free_port() -> int:
    """A port that nobody has now, given once, and below those that clients get by chance."""
    while True:
        port = random.randrange(10_240, 32_000)
        with socket.socket() as s, suppress(OSError):
            s.bind(("127.0.0.1", port))
            if port not in _GIVEN:
                _GIVEN.add(port)
                return port


class MongoServer:
    """A ferretdb at a port of its own, which it keeps when it is started again."""

    def __init__(self, folder: Path, *settings: str, tls: Mapping[str, Path] | None = None) -> None:
        found = program()
        if found is None:
            pytest.skip("ferretdb is not there: ./dev system builds it where Go is")
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"mongodb://127.0.0.1:{self.port}/"
        self.log = folder / "log"
        address = ("--listen-addr=", f"--listen-tls=127.0.0.1:{self.port}") if tls else (
            f"--listen-addr=127.0.0.1:{self.port}",)
        files = [f"--listen-tls-{name}-file={path}" for name, path in (tls or {}).items()]
        data = f"file:{folder}/?_pragma=synchronous(off)"  # it is killed, the machine is not
        self._command = [found, "--handler=sqlite", f"--sqlite-url={data}", f"--state-dir={folder}",
                         "--telemetry=disable", "--debug-addr=-", "--log-level=error", *address, *files, *settings]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it takes connections."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                             cwd=self._folder)
        until = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                text = self.log.read_text(errors="replace")
                assert self._process.poll() is None, text
                assert time.monotonic() < until, text
                time.sleep(0.01)

    def kill(self) -> None:
        """At once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Until `go_on`. A signal that is sent is on its way: each thread is waited for, or one still answers."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        until = time.monotonic() + 60
        tasks = Path(f"/proc/{self._process.pid}/task")
        while {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks.iterdir()} != {"T"}:
            assert time.monotonic() < until
            time.sleep(0.001)

    def go_on(self) -> None:
        """After `stop`."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    @contextmanager
    def collection(self, name: str, database: str = "nativelink") -> Iterator[pymongo.collection.Collection[Any]]:
        """A collection as PyMongo sees it, besides any store."""
        with pymongo.MongoClient(self.url, serverSelectionTimeoutMS=60_000, tz_aware=True) as client:
            yield client[database][name]


@contextmanager
def mongo_server(folder: Path, *settings: str, tls: Mapping[str, Path] | None = None) -> Iterator[MongoServer]:
    server = MongoServer(folder, *settings, tls=tls)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def mongo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoServer]:
    """One server for all tests; each takes a collection of its own, since FerretDB looks through all of one."""
    with mongo_server(tmp_path_factory.mktemp("mongo")) as server:
        yield server


def new_collection() -> str:
    return f"t{os.urandom(6).hex()}"


def options_for(url: str, **more: object) -> MongoStoreOptions:
    """Options as a config would give them, without waiting long between retries, but for a busy machine's answers."""
    times = {"retry": QUICK, "command_timeout_ms": 60_000, "connection_timeout_ms": 60_000}
    options = MongoStoreOptions(**{"connection_string": url, **times, **more})
    options.check()
    return options

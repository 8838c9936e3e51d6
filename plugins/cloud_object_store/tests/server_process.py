"""A server that a test starts, kills and starts again; what each offers: buckets, and options that lead there."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from faulty_proxy import Kinds

from nl_cloud_object_store import CloudObjectStoreOptions

_GIVEN: set[int] = set()


def free_port() -> int:
    """One that nobody has now, given once, and below those that clients get by chance: a server that is started again
    finds it free.
    """
    while True:
        port = random.randrange(10_240, 32_000)
        with suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            if port not in _GIVEN:
                _GIVEN.add(port)
                return port


class Places(ABC):
    """A server with buckets, or containers, seen without the store."""

    KINDS: Kinds
    """What its requests are called."""
    port: int
    url: str

    @cached_property
    def _places(self) -> dict[Path, str]:
        return {}

    @abstractmethod
    def bucket(self) -> str:
        """A new empty one."""

    def bucket_of(self, folder: Path) -> str:
        """One that stands for a folder: the same one at each call."""
        if folder not in self._places:
            self._places[folder] = self.bucket()
        return self._places[folder]

    @abstractmethod
    def objects(self, bucket: str) -> dict[str, int]:
        """The sizes of all objects by name."""

    def open_uploads(self, bucket: str) -> list[str]:
        """The keys of multipart uploads that are neither completed nor aborted, where a server tells them."""
        return []

    def options(self, bucket: str, url: str = "", **more: object) -> CloudObjectStoreOptions:
        """Options that lead there, or to a proxy in front of it, as a config would give them."""
        options = CloudObjectStoreOptions(**{**self.given(bucket, url or self.url), **more})
        options.check()
        return options

    @abstractmethod
    def given(self, bucket: str, url: str) -> dict[str, object]:
        """What such a config says, without waiting long between retries."""


class ServerProcess(Places):
    """A process at a port of its own, which it keeps when it is started again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """What starts it, with its files in `data`."""

    def environment(self) -> Mapping[str, str]:
        """Variables of its own."""
        return {}

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder,
                env={**os.environ, **self.environment()},
            )
        until = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                log_text = (self._folder / "log").read_text(errors="replace")
                assert self._process.poll() is None, log_text
                assert time.monotonic() < until, log_text
                time.sleep(0.05)

    def kill(self) -> None:
        """At once, as a power cut would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def wait_until_saved(self, name: str) -> None:
        """Until an object outlives a power cut."""

    def close(self) -> None:
        """Ends it, if it runs."""
        self.kill()


def new_name(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:12]}"

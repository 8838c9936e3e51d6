"""fake-gcs-server, an emulator of Google's storage (Go), started for a test; buckets in it; options that lead there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cloud_support import QUICK, free_port

from nl_cloud_object_store import CloudObjectStoreOptions

BIN = Path(sys.executable).parent
SERVER = shutil.which("fake-gcs-server", path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")


class FakeGcs:
    """A server process at a port of its own, which it keeps when it is started again."""

    def __init__(self, folder: Path, backend: str) -> None:
        """`backend`: `memory`, or `filesystem`, which outlives the process and takes no long names."""
        self._backend = backend
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._buckets: dict[Path, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(SERVER), "-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port), "-log-level", "error",
                   "-public-host", f"127.0.0.1:{self.port}", "-backend", self._backend,
                   "-filesystem-root", str(self._folder / "data")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
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
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def bucket(self) -> str:
        """A new empty bucket."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self._ask("POST", "/storage/v1/b", {"name": name})
        return name

    def bucket_of(self, folder: Path) -> str:
        """A bucket that stands for a folder: the same one at each call."""
        if folder not in self._buckets:
            self._buckets[folder] = self.bucket()
        return self._buckets[folder]

    def objects(self, bucket: str) -> dict[str, int]:
        """The sizes of all objects by name."""
        found = self._ask("GET", f"/storage/v1/b/{bucket}/o")
        assert "nextPageToken" not in found
        return {each["name"]: int(each["size"]) for each in found.get("items", ())}

    def _ask(self, method: str, path: str, body: object = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)


@contextmanager
def fake_gcs_server(folder: Path, backend: str = "memory") -> Iterator[FakeGcs]:
    if SERVER is None:
        pytest.skip("NOT TESTED AGAINST FAKE-GCS-SERVER: it is not installed (with go: ./dev system)")
    server = FakeGcs(folder, backend)
    server.start()
    try:
        yield server
    finally:
        if server._process is not None:
            server.kill()


@pytest.fixture(scope="session")
def fake_gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcs]:
    """One server for all tests; each takes a bucket of its own."""
    with fake_gcs_server(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials anywhere, and no look for those of the machine."""
    for name in list(os.environ):
        if name.startswith(("GOOGLE_", "CLOUDSDK_", "GCLOUD_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "no gcloud"))


def gcs_options(bucket: str, url: str, **more: object) -> CloudObjectStoreOptions:
    """Options as a config would give them, without waiting long between retries."""
    given: dict[str, object] = {
        "provider": "gcs", "bucket": bucket, "endpoint": url, "insecure_allow_http": True, "key_prefix": "cas/",
        "retry": QUICK,
    }
    options = CloudObjectStoreOptions(**{**given, **more})
    options.check()
    return options

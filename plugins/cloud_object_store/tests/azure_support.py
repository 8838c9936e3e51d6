"""Azurite, Microsoft's emulator of Azure's storage, started for a test; containers in it; options that lead there."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from cloud_support import QUICK, free_port

from nl_cloud_object_store import CloudObjectStoreOptions
from nl_cloud_object_store.azure import AzureClient, AzureSettings
from nl_cloud_object_store.http import Http

ACCOUNT, KEY = "nltest", base64.b64encode(b"a key of this test's own").decode()
NPM = Path(sys.executable).parent.parent / "npm" / "node_modules" / ".bin"
AZURITE = shutil.which("azurite-blob", path=f"{NPM}{os.pathsep}{os.environ.get('PATH', '')}")


class Azurite:
    """A server process at a port of its own, which it keeps when it is started again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/{ACCOUNT}"
        self._folder = folder
        self._containers: dict[Path, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--silent",
                   "--location", str(self._folder / "data"), "--skipApiVersionCheck", "--disableTelemetry"]
        environment = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self._folder
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
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def wait_until_saved(self, name: str) -> None:
        """It writes what it has every five seconds: blobs, and in another file where their bytes lie."""
        until = time.monotonic() + 120
        while True:
            blobs, extents = (self._text(f"__azurite_db_{what}__.json") for what in ("blob", "blob_extent"))
            places = re.findall(r'"persistency":\{"id":"([^"]+)"', blobs)
            if name in blobs and places and all(place in extents for place in places):
                return
            assert time.monotonic() < until
            time.sleep(0.05)

    def _text(self, name: str) -> str:
        file = self._folder / "data" / name
        return file.read_text() if file.exists() else ""

    def container(self) -> str:
        """A new empty container."""
        name = f"container-{uuid.uuid4().hex[:12]}"
        client = self.client(name)
        client._ask("PUT", "", {"restype": "container"}, body=b"")
        client.close()
        return name

    def container_of(self, folder: Path) -> str:
        """A container that stands for a folder: the same one at each call."""
        if folder not in self._containers:
            self._containers[folder] = self.container()
        return self._containers[folder]

    def client(self, container: str) -> AzureClient:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AZURE_STORAGE_KEY", KEY)
            http = Http(connections=1, connect_timeout=5, read_timeout=60, ca_file=None)
            return AzureClient(AzureSettings(account=ACCOUNT, container=container, endpoint=self.url), http)

    def objects(self, container: str) -> dict[str, int]:
        """The sizes of all blobs by name."""
        client = self.client(container)
        page = client.list_page("", "", 1000)
        assert not page.cursor
        client.close()
        return {each.key: each.size for each in page.objects}

    def sas_url(self, container: str, *, key: str = KEY, permissions: str = "rwdlc") -> str:
        """The container's address with a signature that is good for a while."""
        end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 86400))
        version = "2020-10-02"
        fields = [permissions, "", end, f"/blob/{ACCOUNT}/{container}", "", "", "https,http", version, "c", "",
                  *[""] * 5]
        mac = hmac.new(base64.b64decode(key), "\n".join(fields).encode(), hashlib.sha256).digest()
        query = {"sp": permissions, "se": end, "spr": "https,http", "sv": version, "sr": "c",
                 "sig": base64.b64encode(mac).decode()}
        return f"{self.url}/{container}?{urlencode(query)}"


@contextmanager
def azurite_server(folder: Path) -> Iterator[Azurite]:
    if AZURITE is None:
        pytest.skip("NOT TESTED AGAINST AZURITE: it is not installed (with npm: ./dev system)")
    server = Azurite(folder)
    server.start()
    try:
        yield server
    finally:
        if server._process is not None:
            server.kill()


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """One Azurite for all tests; each takes a container of its own."""
    with azurite_server(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(autouse=True)
def key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AZURE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)


def azure_options(container: str, url: str, **more: object) -> CloudObjectStoreOptions:
    """Options as a config would give them, without waiting long between retries."""
    given: dict[str, object] = {
        "provider": "azure", "account_name": ACCOUNT, "container": container, "endpoint": url,
        "insecure_allow_http": True, "key_prefix": "cas/", "retry": QUICK,
    }
    options = CloudObjectStoreOptions(**{**given, **more})
    options.check()
    return options

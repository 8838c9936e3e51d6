"""fake-gcs-server, an emulator of Google's storage (Go), started for a test; buckets in it; options that lead there."""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cloud_support import QUICK, running_process
from faulty_proxy import GCS_KINDS
from server_process import ServerProcess, new_name

BIN = Path(sys.executable).parent
SERVER = shutil.which("fake-gcs-server", path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")


class FakeGcs(ServerProcess):
    KINDS = GCS_KINDS

    def __init__(self, folder: Path, backend: str) -> None:
        """`backend`: `memory`, or `filesystem`, which outlives the process and takes no long names."""
        super().__init__(folder)
        self._backend = backend
        self.url = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [str(SERVER), "-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port), "-log-level", "error",
                "-public-host", f"127.0.0.1:{self.port}", "-backend", self._backend, "-filesystem-root", "data"]

    def bucket(self) -> str:
        self._ask("POST", "/storage/v1/b", {"name": (name := new_name("bucket"))})
        return name

    def objects(self, bucket: str) -> dict[str, int]:
        found = self._ask("GET", f"/storage/v1/b/{bucket}/o")
        assert "nextPageToken" not in found
        return {each["name"]: int(each["size"]) for each in found.get("items", ())}

    def _ask(self, method: str, path: str, body: object = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    def given(self, bucket: str, url: str) -> dict[str, object]:
        return {
            "provider": "gcs", "bucket": bucket, "endpoint": url, "insecure_allow_http": True, "key_prefix": "cas/",
            "retry": QUICK,
        }


@contextmanager
def fake_gcs_server(folder: Path, backend: str = "memory") -> Iterator[FakeGcs]:
    if SERVER is None:
        pytest.skip("NOT TESTED AGAINST FAKE-GCS-SERVER: it is not installed (with go: ./dev system)")
    with running_process(server := FakeGcs(folder, backend)):
        yield server

"""Azurite, Microsoft's emulator of Azure's storage, started for a test; containers in it; options that lead there."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from cloud_support import QUICK, running_process
from faulty_proxy import AZURE_KINDS
from server_process import ServerProcess, new_name

from nl_cloud_object_store.azure import AzureClient, AzureSettings
from nl_cloud_object_store.http import Http

ACCOUNT, KEY = "nltest", base64.b64encode(b"a key of this test's own").decode()
NPM = Path(sys.executable).parent.parent / "npm" / "node_modules" / ".bin"
AZURITE = shutil.which("azurite-blob", path=f"{NPM}{os.pathsep}{os.environ.get('PATH', '')}")


class Azurite(ServerProcess):
    """Its buckets are containers."""

    KINDS = AZURE_KINDS

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.url = f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    def command(self) -> list[str]:
        return [str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--silent",
                "--location", "data", "--skipApiVersionCheck", "--disableTelemetry"]

    def environment(self) -> Mapping[str, str]:
        return {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}

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

    def bucket(self) -> str:
        client = self.client(name := new_name("container"))
        client._ask("PUT", "", {"restype": "container"}, body=b"")
        client.close()
        return name

    def client(self, container: str) -> AzureClient:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AZURE_STORAGE_KEY", KEY)
            http = Http(connections=1, connect_timeout=5, read_timeout=60, ca_file=None)
            return AzureClient(AzureSettings(account=ACCOUNT, container=container, endpoint=self.url), http)

    def objects(self, bucket: str) -> dict[str, int]:
        client = self.client(bucket)
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

    def given(self, bucket: str, url: str) -> dict[str, object]:
        """`url` may be that of a proxy, which knows no account."""
        return {
            "provider": "azure", "account_name": ACCOUNT, "container": bucket, "key_prefix": "cas/", "retry": QUICK,
            "endpoint": url if url.endswith(ACCOUNT) else f"{url}/{ACCOUNT}", "insecure_allow_http": True,
        }


@contextmanager
def azurite_server(folder: Path) -> Iterator[Azurite]:
    if AZURITE is None:
        pytest.skip("NOT TESTED AGAINST AZURITE: it is not installed (with npm: ./dev system)")
    with running_process(server := Azurite(folder)):
        yield server

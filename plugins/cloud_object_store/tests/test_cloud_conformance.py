"""The Store contract over real HTTP: moto, which keeps all in memory, rclone, which keeps objects as files, Azurite,
fake-gcs-server, and the S3 server that NL_TEST_S3 names:
`NL_TEST_S3=http://127.0.0.1:8080,ACCESS_KEY,SECRET_KEY pytest test_cloud_conformance.py`.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from cloud_support import S3
from server_process import Places

from nl.plugin import Store
from nl.testing import BareContext, DurableStoreConformance, StoreConformance
from nl_cloud_object_store import CloudObjectStore


@pytest.mark.usefixtures("over_server")
class OverServer(DurableStoreConformance, StoreConformance):
    """Whose fixture is called `SERVER`."""

    SERVER = ""
    server: Places

    def make_store(self, context: BareContext, folder: Path) -> Store:
        return CloudObjectStore(self.server.options(self.server.bucket_of(folder)), context)

    def list_raw(self, folder: Path) -> Collection[str]:
        bucket = self.server.bucket_of(folder)
        return [*self.server.objects(bucket), *self.server.open_uploads(bucket)]


class TestOverMoto(OverServer):
    SERVER = "moto"


class TestOverRclone(OverServer):
    SERVER = "rclone"


class TestOverAzurite(OverServer):
    SERVER = "azurite"


class TestOverFakeGcs(OverServer):
    SERVER = "fake_gcs"


if "NL_TEST_S3" in os.environ:

    @pytest.fixture(scope="session")
    def other_server() -> Iterator[S3]:
        server = S3(*os.environ["NL_TEST_S3"].split(","))
        yield server
        server.client.close()

    class TestOverAnotherServer(OverServer):
        SERVER = "other_server"

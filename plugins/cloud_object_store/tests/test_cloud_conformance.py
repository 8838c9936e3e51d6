"""The Store contract over real HTTP: moto, which keeps all in memory, rclone, which keeps objects as files, and the
server that NL_TEST_S3 names: `NL_TEST_S3=http://127.0.0.1:8080,ACCESS_KEY,SECRET_KEY pytest test_cloud_conformance.py`.
"""

import os
from collections.abc import Collection
from pathlib import Path

import pytest
from cloud_support import S3, S3Server, moto, options_for, other_server, rclone  # noqa: F401
from nl_cloud_object_store import CloudObjectStore

from nl.plugin import Store
from nl.testing import BareContext, DurableStoreConformance, StoreConformance


class OverS3(DurableStoreConformance, StoreConformance):
    server: S3

    def make_store(self, context: BareContext, folder: Path) -> Store:
        bucket = self.server.bucket_of(folder)
        return CloudObjectStore(options_for(bucket, self.server.url, **self.server.credentials), context)

    def list_raw(self, folder: Path) -> Collection[str]:
        bucket = self.server.bucket_of(folder)
        return [*self.server.objects(bucket), *self.server.open_uploads(bucket)]


@pytest.fixture(scope="class")
def over_moto(request: pytest.FixtureRequest, moto: S3Server) -> None:  # noqa: F811
    request.cls.server = moto


@pytest.fixture(scope="class")
def over_rclone(request: pytest.FixtureRequest, rclone: S3Server) -> None:  # noqa: F811
    request.cls.server = rclone


@pytest.fixture(scope="class")
def over_another(request: pytest.FixtureRequest, other_server: S3) -> None:  # noqa: F811
    request.cls.server = other_server


@pytest.mark.usefixtures("over_moto")
class TestOverMoto(OverS3):
    pass


@pytest.mark.usefixtures("over_rclone")
class TestOverRclone(OverS3):
    pass


if "NL_TEST_S3" in os.environ:

    @pytest.mark.usefixtures("over_another")
    class TestOverAnotherServer(OverS3):
        pass

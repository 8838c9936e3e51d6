"""The Store contract over real HTTP: moto, which keeps all in memory, and rclone, which keeps objects as files."""

import pytest
from cloud_support import S3Server, moto, options_for, rclone  # noqa: F401

from nl.plugin import Store
from nl.testing import BareContext, StoreConformance
from nl_cloud_object_store import CloudObjectStore


class OverS3(StoreConformance):
    server: S3Server

    def make_store(self, context: BareContext, folder: object) -> Store:
        return CloudObjectStore(options_for(self.server.bucket(), self.server.url), context)


@pytest.fixture(scope="class")
def over_moto(request: pytest.FixtureRequest, moto: S3Server) -> None:  # noqa: F811
    request.cls.server = moto


@pytest.fixture(scope="class")
def over_rclone(request: pytest.FixtureRequest, rclone: S3Server) -> None:  # noqa: F811
    request.cls.server = rclone


@pytest.mark.usefixtures("over_moto")
class TestOverMoto(OverS3):
    pass


@pytest.mark.usefixtures("over_rclone")
class TestOverRclone(OverS3):
    pass

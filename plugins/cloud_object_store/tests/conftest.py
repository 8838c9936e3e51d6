"""The servers, one of each for all tests; a test takes a bucket of its own. And no credentials of the machine's."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from azure_support import KEY, Azurite, azurite_server
from cloud_support import S3Server, s3_server
from gcs_support import FakeGcs, fake_gcs_server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("moto"), "moto") as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("rclone"), "rclone") as server:
        yield server


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    with azurite_server(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(scope="session")
def fake_gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcs]:
    with fake_gcs_server(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(scope="class")
def over_server(request: pytest.FixtureRequest) -> None:
    """For test classes that run over the server whose fixture they name."""
    request.cls.server = request.getfixturevalue(request.cls.SERVER)


@pytest.fixture(autouse=True)
def no_credentials_but_azurites(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AZURE_", "GOOGLE_", "CLOUDSDK_", "GCLOUD_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", os.devnull + "/no gcloud")

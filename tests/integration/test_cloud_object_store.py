"""Servers that share a bucket: real processes with `configs/s3_shared_cache.json5`, moto for S3, Bazel to judge."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nl.config.registry import StoreKinds
from tests.integration.test_bazel import Bazel, assert_all_hits, bazel  # noqa: F401
from tests.support.foreign import AC, BYTESTREAM, REAPI, chunks, connect, digest, read_name, upload_name
from tests.support.installing import installed
from tests.support.processes import ROOT, Server, free_port, nl_command, serving, wait_until_listening

PLUGIN = ROOT / "plugins" / "cloud_object_store"
CONFIG = ROOT / "configs" / "s3_shared_cache.json5"

pytestmark = pytest.mark.skipif(
    "experimental_cloud_object_store" not in StoreKinds().names() or importlib.util.find_spec("moto") is None,
    reason="plugins/cloud_object_store or moto is not installed: ./dev test installs both",
)


@contextmanager
def s3(folder: Path) -> Iterator[str]:
    """The URL of a moto."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "moto.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until_listening(port, timeout_s=60)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3(tmp_path_factory.mktemp("s3")) as url:
        yield url


def environment(url: str, bucket: str, *, data: Path, port: int) -> dict[str, str]:
    return {
        "NL_S3_ENDPOINT": url, "NL_S3_INSECURE": "true", "NL_BUCKET": bucket, "NL_DATA_DIR": str(data),
        "NL_ADDRESS": f"127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "test-access-key", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SECRET_ACCESS_KEY": "test-secret-access-key", "AWS_REGION": "us-east-1",
    }


@pytest.fixture
def pair(url: str, tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """Two servers over one bucket, each with files of its own."""
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{url}/{bucket}", method="PUT"), timeout=30).close()
    with ExitStack() as stack:
        servers = []
        for name in ("one", "two"):
            port = free_port()
            env = environment(url, bucket, data=tmp_path / name, port=port)
            log = tmp_path / f"{name}.log"
            servers.append(stack.enter_context(serving(["serve", str(CONFIG)], port=port, log=log, env=env)))
        yield servers[0], servers[1]


async def test_what_one_server_takes_the_other_serves(pair: tuple[Server, Server]) -> None:
    small, large = b"a small blob", os.urandom(12_000_000)
    result = REAPI.ActionResult(exit_code=3, stdout_raw=b"said")
    async with connect(pair[0].port) as one, connect(pair[1].port) as two:
        assert await two.missing([digest(small), digest(large)]) == [digest(small), digest(large)]
        await one.put(small)
        assert await one.write(chunks(upload_name(digest(large)), large, size=1 << 20)) == len(large)
        update = REAPI.UpdateActionResultRequest(action_digest=digest(b"action"), action_result=result)
        await one.unary(AC + "UpdateActionResult", update, REAPI.ActionResult)

        assert await two.missing([digest(small), digest(b"another"), digest(large)]) == [digest(b"another")]
        assert b"".join(await two.read(read_name(digest(large)))) == large
        assert (await two.batch_read([digest(small)]))[0].data == small
        get = REAPI.GetActionResultRequest(action_digest=digest(b"action"))
        assert (await two.unary(AC + "GetActionResult", get, REAPI.ActionResult)).stdout_raw == b"said"


async def test_a_server_killed_in_an_upload_leaves_nothing_wrong(pair: tuple[Server, Server]) -> None:
    data = os.urandom(16_000_000)
    messages = chunks(upload_name(digest(data)), data, size=1 << 20)
    async with connect(pair[0].port) as one, connect(pair[1].port) as two:

        def broken_off() -> Iterator[object]:
            yield from messages[:-1]
            assert pair[0].process is not None
            pair[0].process.send_signal(signal.SIGKILL)
            yield messages[-1]

        call = one.channel.stream_unary("/google.bytestream.ByteStream/Write", lambda m: m.SerializeToString(),
                                        BYTESTREAM.WriteResponse.FromString)
        with pytest.raises(Exception, match="UNAVAILABLE"):
            call(broken_off(), timeout=60)
        assert await two.missing([digest(data)]) == [digest(data)]
        assert await two.write(chunks(upload_name(digest(data)), data, size=1 << 20)) == len(data)
        assert b"".join(await two.read(read_name(digest(data)))) == data


@pytest.mark.skipif(
    not (shutil.which("bazel") and shutil.which("g++")),
    reason="NOT TESTED AGAINST BAZEL: `bazel` or `g++` is missing (apt-get install bazel-bootstrap g++)",
)
def test_bazels_second_build_on_the_other_server_is_all_hits(
    bazel: Bazel, pair: tuple[Server, Server]  # noqa: F811
) -> None:
    first = bazel.test(f"--remote_cache=grpc://{pair[0].target}")
    assert not first.get("remote cache hit"), first
    bazel.clean()
    assert_all_hits(bazel.test(f"--remote_cache=grpc://{pair[1].target}"))


def test_a_bucket_that_does_not_exist_ends_the_start_in_one_line(url: str, tmp_path: Path) -> None:
    env = {**os.environ, **environment(url, "no-such-bucket", data=tmp_path, port=free_port())}
    command = [*nl_command(), "serve", str(CONFIG)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if "no-such-bucket" in line]
    assert len(lines) == 1, done.stderr
    assert "experimental_cloud_object_store.bucket: the bucket no-such-bucket does not exist" in lines[0]


def test_it_is_installed_with_pip_and_found(tmp_path: Path) -> None:
    """As a user does it: a copy of the package, built and installed somewhere, and a config that names the kind."""
    target, env = installed(PLUGIN, tmp_path)
    env["NL_BUCKET"] = "a-bucket"
    code = "import nl_cloud_object_store; from nl.cli.main import cli; print(nl_cloud_object_store.__file__); cli()"
    command = [sys.executable, "-c", code, "config", "check", str(CONFIG)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert str(target) in done.stdout
    assert "slow: experimental_cloud_object_store  provider=aws  bucket=a-bucket" in done.stdout

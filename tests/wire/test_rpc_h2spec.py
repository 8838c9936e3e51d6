"""h2spec, an independent judge of HTTP/2: all of its cases, on a server with one gRPC service."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from nl.rpc.options import ServerOptions
from nl.rpc.tls import server_context
from tests.support.processes import all_in_one
from tests.wire.rpc_hosting import in_thread, serving
from tests.wire.rpc_service import RawService

_BESIDE = str(Path(sys.executable).parent / "h2spec")  # where `./dev test` builds it
H2SPEC = shutil.which("h2spec") or (_BESIDE if Path(_BESIDE).exists() else str(Path.home() / "go/bin/h2spec"))


pytestmark = pytest.mark.skipif(
    not Path(H2SPEC).exists(), reason="h2spec is not installed: HTTP/2 conformance is NOT being tested"
)


async def assert_all_pass(port: int, *options: str) -> None:
    command = [H2SPEC, "-h", "127.0.0.1", "-p", str(port), "-o", "5", *options]
    done = await in_thread(lambda: subprocess.run(command, capture_output=True, text=True, timeout=200))
    summary = re.search(r"(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed", done.stdout)
    assert summary, done.stdout[-3000:]
    tests, passed, skipped, failed = map(int, summary.groups())
    assert (failed, skipped) == (0, 0), done.stdout[done.stdout.find("Failures") :]
    assert passed == tests >= 145


async def test_h2spec_finds_nothing_wrong():
    async with serving(RawService()) as (_, port):
        await assert_all_pass(port)


async def test_h2spec_finds_nothing_wrong_over_tls(tmp_path):
    own = trustme.CA().issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    own.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    tls = server_context(cert_file=str(tmp_path / "cert.pem"), key_file=str(tmp_path / "key.pem"))
    async with serving(RawService(), options=ServerOptions(tls=tls)) as (_, port):
        await assert_all_pass(port, "-t", "-k")


async def test_h2spec_finds_nothing_wrong_with_the_whole_server(tmp_path):
    """With the HTTP/1.1 side on the same port, which gets whatever does not begin like HTTP/2."""
    with all_in_one(tmp_path) as server:
        await assert_all_pass(server.port)

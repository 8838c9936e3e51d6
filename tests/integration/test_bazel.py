"""Real Bazel, unmodified, against a real server process: the mission in one file.

Needs `bazel` (Debian's bazel-bootstrap) and g++; without them these tests are skipped, loudly.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT, Server, all_in_one, free_port, serving

WORKSPACE = Path(__file__).parents[1] / "data" / "bazel-workspace"

pytestmark = pytest.mark.skipif(
    not (shutil.which("bazel") and shutil.which("g++")),
    reason="NOT TESTED AGAINST BAZEL: `bazel` or `g++` is missing (apt-get install bazel-bootstrap g++)",
)


class Bazel:
    """One workspace with its own output base; the Bazel server is shut down at the end."""

    def __init__(self, directory: Path) -> None:
        self.workspace = directory / "workspace"
        shutil.copytree(WORKSPACE, self.workspace)
        self._startup = ["bazel", f"--output_user_root={directory / 'bazel'}", "--max_idle_secs=60"]

    def run(self, *arguments: str) -> str:
        result = subprocess.run(
            [*self._startup, *arguments], cwd=self.workspace, capture_output=True, text=True, timeout=600, check=False
        )
        output = result.stdout + result.stderr
        assert result.returncode == 0, f"bazel {' '.join(arguments)}: exit {result.returncode}\n{output[-6000:]}"
        return output

    def test(self, *flags: str) -> dict[str, int]:
        """`bazel test //...`; how many actions ran where, by Bazel's own last line ("3 remote cache hit, 2 remote")."""
        output = self.run("test", "//...", "--color=no", "--curses=no", *flags)
        assert re.search(r"Executed \d+ out of 2 tests: 2 tests pass|2 tests pass", output), output[-3000:]
        line = re.findall(r"INFO: (\d+ process(?:es)?: .*)\.", output)[-1]
        return {what: int(count) for count, what in re.findall(r"(\d+) ([a-z][a-z -]*[a-z])", line.partition(": ")[2])}

    def clean(self) -> None:
        self.run("clean")


@pytest.fixture
def bazel(tmp_path: Path) -> Iterator[Bazel]:
    client = Bazel(tmp_path)
    try:
        yield client
    finally:
        client.run("shutdown")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with all_in_one(tmp_path) as running:
        yield running


def assert_all_hits(counts: dict[str, int]) -> None:
    assert counts.pop("remote cache hit", 0) > 0, counts
    assert set(counts) <= {"internal"}, f"not all from the cache: {counts}"


def test_bazel_builds_and_tests_remotely_and_a_second_clean_build_is_all_hits(bazel: Bazel, server: Server) -> None:
    flag = f"--remote_executor=grpc://{server.target}"
    first = bazel.test(flag)
    assert first.get("remote", 0) > 0 and set(first) <= {"internal", "remote", "remote cache hit"}, first
    bazel.clean()
    assert_all_hits(bazel.test(flag))


def test_bazel_with_the_cache_alone(bazel: Bazel, server: Server) -> None:
    flag = f"--remote_cache=grpc://{server.target}"
    first = bazel.test(flag)
    assert "remote cache hit" not in first and len(first) > 0, first
    bazel.clean()
    assert_all_hits(bazel.test(flag))


def test_bazel_without_the_bytes(bazel: Bazel, server: Server) -> None:
    flags = (f"--remote_executor=grpc://{server.target}", "--remote_download_minimal", "--jobs=50",
             "--remote_default_exec_properties=cpu_count=1")
    first = bazel.test(*flags)
    assert first.get("remote", 0) > 0, first
    bazel.clean()
    assert_all_hits(bazel.test(*flags))


def test_hits_survive_a_killed_and_restarted_server(bazel: Bazel, server: Server) -> None:
    flag = f"--remote_executor=grpc://{server.target}"
    bazel.test(flag)
    bazel.clean()
    server.kill()
    server.start()
    assert_all_hits(bazel.test(flag))
    assert "corrupt" not in server.log_text()


def test_bazel_with_a_cache_that_is_kept_compressed(bazel: Bazel, tmp_path: Path) -> None:
    """Bazel 4 sends plain bytes: here the server compresses. The second build is served after a restart."""
    port = free_port()
    env = {"NL_DATA_DIR": str(tmp_path / "data"), "NL_ADDRESS": f"127.0.0.1:{port}"}
    command = ["serve", str(ROOT / "configs" / "compressed_cache.json5")]
    flag = f"--remote_cache=grpc://127.0.0.1:{port}"
    with serving(command, port=port, log=tmp_path / "first.log", env=env):
        bazel.test(flag)
    bazel.clean()
    with serving(command, port=port, log=tmp_path / "second.log", env=env):
        assert_all_hits(bazel.test(flag))
    assert "wrong" not in (tmp_path / "second.log").read_text()

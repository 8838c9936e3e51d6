"""Real Bazel with each kind of credential, and without: who gets hits, who uploads, who executes. And workers.

Needs `bazel` (Debian's bazel-bootstrap, which cannot speak TLS: "JDK provider does not support ALPN"; certificates are
in tests/wire/test_door_credentials.py); without it these tests are skipped, loudly. One Bazel server for all.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Server, free_port, nl_command, serving

pytestmark = pytest.mark.skipif(
    not shutil.which("bazel"), reason="NOT TESTED AGAINST BAZEL: `bazel` is missing (apt-get install bazel-bootstrap)"
)
BUILD = """
genrule(name = "one", outs = ["one.txt"], cmd = "echo one > $@")
genrule(name = "two", srcs = ["one.txt"], outs = ["two.txt"], cmd = "cat $(SRCS) $(SRCS) > $@")
"""


class Bazel:
    """A workspace of two small actions."""

    def __init__(self, directory: Path) -> None:
        self.workspace = directory / "workspace"
        self.workspace.mkdir()
        (self.workspace / "WORKSPACE").write_text("")
        (self.workspace / "BUILD").write_text(BUILD)
        self._startup = ["bazel", f"--output_user_root={directory / 'bazel'}", "--max_idle_secs=60"]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._startup, *arguments], cwd=self.workspace, capture_output=True, text=True, timeout=300, check=False
        )

    def build(self, *flags: str) -> tuple[int, str, dict[str, int]]:
        """From clean: (exit code, output, how many actions ran where)."""
        self.run("clean")
        result = self.run("build", "//...", "--color=no", "--curses=no", "--remote_timeout=20", "--remote_retries=0",
                          "--spawn_strategy=remote,local", *flags)
        output = result.stdout + result.stderr
        lines = re.findall(r"INFO: (\d+ process(?:es)?: .*)\.", output)
        what = lines[-1].partition(": ")[2] if lines else ""
        counts = {kind: int(count) for count, kind in re.findall(r"(\d+) ([a-z][a-z -]*[a-z])", what)}
        counts.pop("internal", None)
        return result.returncode, output, counts


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("door")


@pytest.fixture(scope="module")
def bazel(directory: Path) -> Iterator[Bazel]:
    client = Bazel(directory)
    try:
        yield client
    finally:
        client.run("shutdown")


def create_token(file: Path, name: str, allow: str) -> str:
    command = [*nl_command(), "token", "create", name, "--allow", allow, "--file", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


class House:
    """`nl serve --tokens`, and a token of each kind."""

    def __init__(self, server: Server, tokens: dict[str, str]) -> None:
        self.server = server
        self.tokens = tokens

    def header(self, name: str) -> str:
        return f"--remote_header=authorization=Bearer {self.tokens[name]}"


@pytest.fixture(scope="module")
def house(directory: Path) -> Iterator[House]:
    file = directory / "tokens"
    tokens = {name: create_token(file, name, name) for name in ("read", "write", "execute")}
    port = free_port()
    arguments = ["serve", "--port", str(port), "--data-dir", str(directory / "data"), "--tokens", str(file)]
    with serving(arguments, port=port, log=directory / "log") as server:
        yield House(server, tokens)
    text = server.log_text()
    assert not [name for name, token in tokens.items() if token in text]


def test_a_build_without_a_token_is_refused_and_the_message_says_what_is_missing(bazel: Bazel, house: House) -> None:
    code, output, _ = bazel.build(f"--remote_cache=grpc://{house.server.target}")
    assert code != 0
    assert "UNAUTHENTICATED: any right for any instance needs credentials; none were given" in output
    code, output, _ = bazel.build(f"--remote_cache=grpc://{house.server.target}",
                                  "--remote_header=authorization=Bearer nl_wrong")
    assert code != 0
    assert "UNAUTHENTICATED: the token is not known here" in output


def test_a_reading_token_gets_hits_and_uploads_nothing(bazel: Bazel, house: House) -> None:
    cache = f"--remote_cache=grpc://{house.server.target}"
    code, output, _ = bazel.build(cache, house.header("read"))
    assert code != 0
    assert "the current account is not authorized to write local results to the remote cache" in output
    reading = (cache, house.header("read"), "--noremote_upload_local_results")
    for _ in range(2):  # the first has not written
        code, output, counts = bazel.build(*reading)
        assert (code, counts.pop("remote cache hit", 0)) == (0, 0), output
    code, output, counts = bazel.build(cache, house.header("write"))
    assert (code, counts.pop("remote cache hit", 0)) == (0, 0), output
    code, output, counts = bazel.build(*reading)
    assert (code, counts) == (0, {"remote cache hit": 2}), output


def test_executing_needs_its_right(bazel: Bazel, house: House) -> None:
    executor = f"--remote_executor=grpc://{house.server.target}"
    salt = "--remote_default_exec_properties=Pool=x"  # no hits from the test before
    code, output, _ = bazel.build(executor, salt, house.header("write"))
    assert code != 0
    assert "not authorized to use remote execution" in output
    code, output, counts = bazel.build(executor, salt, house.header("execute"))
    assert (code, counts) == (0, {"remote": 2}), output
    code, output, counts = bazel.build(executor, salt, house.header("execute"))
    assert (code, counts) == (0, {"remote cache hit": 2}), output


def test_a_token_as_the_password_of_basic(bazel: Bazel, house: House) -> None:
    pair = base64.b64encode(f"bazel:{house.tokens['write']}".encode()).decode()
    code, output, counts = bazel.build(
        f"--remote_cache=grpc://{house.server.target}", f"--remote_header=authorization=Basic {pair}"
    )
    assert (code, counts) == (0, {"remote cache hit": 2}), output


def test_a_worker_with_its_right_runs_actions_and_one_without_is_told_why(bazel: Bazel, directory: Path) -> None:
    tokens = directory / "cluster-tokens"
    execute = create_token(tokens, "ci", "execute")
    port = free_port()
    kept = str(directory / "kept")
    stores = [
        {"name": name, "filesystem": {"content_path": f"{kept}/{name}", "temp_path": f"{kept}/{name}.temp"}}
        for name in ("CAS", "AC")
    ]
    scheduler = {
        "stores": stores,
        "schedulers": [{"name": "S", "simple": {}}],
        "servers": [
            {
                "listener": {"http": {"socket_address": f"127.0.0.1:{port}"}},
                "services": {
                    "cas": [{"cas_store": "CAS"}], "ac": [{"ac_store": "AC"}], "bytestream": [{"cas_store": "CAS"}],
                    "execution": [{"cas_store": "CAS", "scheduler": "S"}], "worker_api": {"scheduler": "S"},
                    "capabilities": [{"remote_execution": {"scheduler": "S"}}], "health": {},
                },
            }
        ],
        "auth": {"tokens_file": str(tokens)},
    }  # fmt: skip
    (directory / "scheduler.json5").write_text(json.dumps(scheduler))

    def worker(name: str) -> list[str]:
        endpoint = {"uri": f"grpc://127.0.0.1:{port}", "token_file": str(directory / f"{name}.token")}
        options = {
            "name": name, "worker_api_endpoint": endpoint, "cas_fast_slow_store": "CAS",
            "upload_action_result": {"ac_store": "AC"}, "work_directory": str(directory / f"work-{name}"),
        }  # fmt: skip
        (directory / f"{name}.json5").write_text(json.dumps({"stores": stores, "workers": [{"local": options}]}))
        (directory / f"{name}.token").write_text(create_token(tokens, name, name) + "\n")
        return ["serve", str(directory / f"{name}.json5")]

    arguments = ["serve", str(directory / "scheduler.json5")]
    with serving(arguments, port=port, log=directory / "scheduler.log"):
        wrong = WorkerProcess(worker("write"), port=0, log=directory / "wrong.log")
        wrong.words = "PERMISSION_DENIED: scheduler at"
        wrong.start()
        try:
            assert "'write' does not have register_workers for instance ''" in wrong.log_text()
        finally:
            wrong.kill()
        right = WorkerProcess(worker("worker"), port=0, log=directory / "right.log")
        right.words = "Worker registered with scheduler"
        right.start()
        try:
            code, output, counts = bazel.build(
                f"--remote_executor=grpc://127.0.0.1:{port}", f"--remote_header=authorization=Bearer {execute}"
            )
        finally:
            right.kill()
    assert (code, counts) == (0, {"remote": 2}), output


class WorkerProcess(Server):
    """It has no port of its own: its log tells what has become of it."""

    words = ""

    def answers(self) -> bool:
        return self.words in self.log_text()

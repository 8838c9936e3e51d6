"""Servers that share a MongoDB (FerretDB): real processes with a config of a few lines, the plugin installed by pip."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nl.config.convert import convert
from nl.config.fields import Conversion
from nl.config.registry import StoreKinds
from tests.support.foreign import AC, BYTESTREAM, REAPI, chunks, connect, digest, read_name, upload_name
from tests.support.processes import ROOT, Server, free_port, nl_command, serving, wait_until_listening

FERRETDB = shutil.which("ferretdb", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
pytestmark = pytest.mark.skipif(
    "experimental_mongo" not in StoreKinds().names() or FERRETDB is None,
    reason="plugins/mongo_store or ferretdb is not there: ./dev test installs both",
)
SECRET = "hunter2-is-secret"


@contextmanager
def mongo(folder: Path) -> Iterator[int]:
    """The port of a server with a user `nl` and its password."""
    port = free_port()
    (folder / "mongo").mkdir()
    command = [FERRETDB, "--handler=sqlite", f"--sqlite-url=file:{folder}/mongo/", f"--state-dir={folder}/mongo",
               f"--listen-addr=127.0.0.1:{port}", "--debug-addr=-", "--telemetry=disable", "--log-level=error",
               "--test-enable-new-auth", "--setup-username=nl", f"--setup-password={SECRET}", "--setup-database=admin"]
    with (folder / "mongo.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
    try:
        wait_until_listening(port, timeout_s=120)
        yield port
    finally:
        process.kill()
        process.wait()


def write_config(folder: Path, mongo_port: int) -> Path:
    def store(name: str) -> dict[str, object]:
        url = f"mongodb://nl:${{MONGO_PASSWORD}}@127.0.0.1:{mongo_port}/?authMechanism=SCRAM-SHA-256"
        options = {"connection_string": url, "key_prefix": f"{name}/", "connection_timeout_ms": 60_000}
        return {"name": name, "experimental_mongo": options}

    services = {"cas": [{"cas_store": "CAS"}], "ac": [{"ac_store": "AC"}], "bytestream": [{"cas_store": "CAS"}],
                "capabilities": [], "health": {}}
    listener = {"http": {"socket_address": "${NL_ADDRESS}"}}
    path = folder / "config.json5"
    path.write_text(json.dumps({"stores": [store("CAS"), store("AC")],
                                "servers": [{"listener": listener, "services": services}]}))
    return path


def run_nl(*arguments: str, password: str = SECRET) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NL_ADDRESS": f"127.0.0.1:{free_port()}", "MONGO_PASSWORD": password}
    return subprocess.run([*nl_command(), *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300,
                          check=False)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """Two servers over one MongoDB."""
    with ExitStack() as stack:
        config = write_config(tmp_path, stack.enter_context(mongo(tmp_path)))
        servers = []
        for name in ("one", "two"):
            port = free_port()
            env = {"NL_ADDRESS": f"127.0.0.1:{port}", "MONGO_PASSWORD": SECRET, "NL_LOG_LEVEL": "debug"}
            log = tmp_path / f"{name}.log"
            servers.append(stack.enter_context(serving(["serve", str(config)], port=port, log=log, env=env)))
        yield servers[0], servers[1]


async def test_what_one_server_takes_the_other_serves_also_after_one_was_killed_in_an_upload(
    pair: tuple[Server, Server],
) -> None:
    small, large = b"a small blob", os.urandom(3_000_000)
    messages = chunks(upload_name(digest(large)), large, size=1 << 20)
    result = REAPI.ActionResult(exit_code=3, stdout_raw=b"said")
    async with connect(pair[0].port) as one, connect(pair[1].port) as two:
        await one.put(small)
        update = REAPI.UpdateActionResultRequest(action_digest=digest(b"action"), action_result=result)
        await one.unary(AC + "UpdateActionResult", update, REAPI.ActionResult)
        assert await two.missing([digest(small), digest(b"another")]) == [digest(b"another")]
        assert (await two.batch_read([digest(small)]))[0].data == small
        get = REAPI.GetActionResultRequest(action_digest=digest(b"action"))
        assert (await two.unary(AC + "GetActionResult", get, REAPI.ActionResult)).stdout_raw == b"said"

        def broken_off() -> Iterator[object]:
            yield from messages[:-1]
            assert pair[0].process is not None
            pair[0].process.send_signal(signal.SIGKILL)
            yield messages[-1]

        call = one.channel.stream_unary("/google.bytestream.ByteStream/Write", lambda m: m.SerializeToString(),
                                        BYTESTREAM.WriteResponse.FromString)
        with pytest.raises(Exception, match="UNAVAILABLE"):
            call(broken_off(), timeout=60)
        assert await two.missing([digest(large)]) == [digest(large)]
        assert await two.write(messages) == len(large)
        assert b"".join(await two.read(read_name(digest(large)))) == large
    assert SECRET not in pair[0].log_text() + pair[1].log_text()


def test_the_stores_are_checked_and_a_wrong_password_ends_the_start_in_one_line(tmp_path: Path) -> None:
    with mongo(tmp_path) as port:
        config = str(write_config(tmp_path, port))
        good, wrong = run_nl("stores", "check", config), run_nl("stores", "check", config, password=f"not-{SECRET}")
        refused = run_nl("serve", config, password=f"not-{SECRET}")
    assert good.returncode == 0, good.stdout + good.stderr
    assert wrong.returncode != 0
    assert refused.returncode != 0
    for done in (good, wrong, refused):
        assert "Traceback" not in done.stdout + done.stderr
        assert SECRET not in done.stdout + done.stderr
    lines = [line for line in refused.stderr.splitlines() if "experimental_mongo.connection_string: " in line]
    assert len(lines) == 1, refused.stderr


def test_nothing_of_the_plugin_is_imported_until_a_config_names_it() -> None:
    code = "import sys, nl.cli.main, nl.server.run; print([m for m in sys.modules if 'mongo' in m])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_all_options_of_nativelink_are_taken_in_their_forms() -> None:
    raw = {
        "connection_string": "mongodb://${HOST:-127.0.0.1}:27017/?replicaSet=rs0", "database": "nativelink",
        "cas_collection": "blobs", "scheduler_collection": "scheduler", "key_prefix": "cas:",
        "read_chunk_size": 65536, "max_concurrent_uploads": "10", "connection_timeout_ms": 0,
        "command_timeout_ms": "5000", "enable_change_streams": False, "write_concern_w": "2", "write_concern_j": True,
        "write_concern_timeout_ms": 500, "max_requests": 500,
    }
    kinds = StoreKinds()
    kind = kinds.load("experimental_mongo", "")
    options = convert(kind.options, raw, "", Conversion(env={}, kinds=kinds.options))
    assert (options.connect_timeout_ms, options.request_timeout_ms, options.threads) == (3000, 5000, 64)
    assert options.write_concern.document == {"w": 2, "j": True, "wtimeout": 500}
    assert "127.0.0.1" not in repr(options)

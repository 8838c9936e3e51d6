"""Servers that share a Redis: real processes with a config of a few lines; one of them is killed in an upload."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nl.config.convert import convert
from nl.config.fields import Conversion
from nl.config.registry import StoreKinds
from tests.support.foreign import AC, BYTESTREAM, REAPI, chunks, connect, digest, read_name, upload_name
from tests.support.processes import ROOT, Server, free_port, nl_command, serving, wait_until_listening

pytestmark = pytest.mark.skipif(
    "redis_store" not in StoreKinds().names() or shutil.which("redis-server") is None,
    reason="plugins/redis_store or redis-server is not installed: ./dev test installs both",
)
SECRET = "hunter2-is-secret"


@contextmanager
def redis(folder: Path) -> Iterator[int]:
    """The port of a redis-server with a password."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--requirepass", SECRET]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
    try:
        wait_until_listening(port, timeout_s=60)
        yield port
    finally:
        process.kill()
        process.wait()


def write_config(folder: Path, redis_port: int) -> Path:
    def store(name: str) -> dict[str, object]:
        url = f"redis://:${{REDIS_PASSWORD}}@127.0.0.1:{redis_port}/"
        return {"name": name, "redis_store": {"addresses": [url], "key_prefix": f"{name}/", "key_ttl_s": "1h"}}

    services = {"cas": [{"cas_store": "CAS"}], "ac": [{"ac_store": "AC"}], "bytestream": [{"cas_store": "CAS"}],
                "capabilities": [], "health": {}}
    listener = {"http": {"socket_address": "${NL_ADDRESS}"}}
    path = folder / "config.json5"
    path.write_text(json.dumps({"stores": [store("CAS"), store("AC")],
                                "servers": [{"listener": listener, "services": services}]}))
    return path


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """Two servers over one Redis."""
    with ExitStack() as stack:
        config = write_config(tmp_path, stack.enter_context(redis(tmp_path)))
        servers = []
        for name in ("one", "two"):
            port = free_port()
            env = {"NL_ADDRESS": f"127.0.0.1:{port}", "REDIS_PASSWORD": SECRET, "NL_LOG_LEVEL": "debug"}
            log = tmp_path / f"{name}.log"
            servers.append(stack.enter_context(serving(["serve", str(config)], port=port, log=log, env=env)))
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
    assert SECRET not in pair[0].log_text() + pair[1].log_text()


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


def test_a_wrong_password_ends_the_start_in_one_line(tmp_path: Path) -> None:
    with redis(tmp_path) as port:
        env = {**os.environ, "NL_ADDRESS": f"127.0.0.1:{free_port()}", "REDIS_PASSWORD": f"not-{SECRET}"}
        command = [*nl_command(), "serve", str(write_config(tmp_path, port))]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if "WRONGPASS" in line]
    assert len(lines) == 1, done.stderr
    assert "redis_store.addresses: " in lines[0]


def test_all_options_of_nativelink_are_taken_in_their_forms() -> None:
    raw = {
        "addresses": ["redis://${HOST:-127.0.0.1}:6379/"], "response_timeout_s": 7, "connection_timeout_s": 2,
        "experimental_pub_sub_channel": "changes", "key_prefix": "cas/", "mode": "standard",
        "broadcast_channel_capacity": "4096", "command_timeout_ms": "10000", "connection_timeout_ms": 3000,
        "health_check_timeout_ms": 0, "read_chunk_size": 65536, "connection_pool_size": "3", "key_ttl_s": 86400,
        "max_chunk_uploads_per_update": 10, "scan_count": 10000, "retry": {"max_retries": 6, "delay": 0.3},
        "max_client_permits": 500, "max_count_per_cursor": 1500,
    }
    kinds = StoreKinds()
    kind = kinds.load("redis_store", "")
    options = convert(kind.options, raw, "", Conversion(env={}, kinds=kinds.options))
    assert options.servers()[0].host == "127.0.0.1"
    assert (options.command_timeout, options.connect_timeout, options.health_timeout) == (7, 2, 4)
    assert options.ttl_s == 86400
    assert "127.0.0.1" not in repr(options)

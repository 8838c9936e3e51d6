"""Every config in configs/ is started as a user would; and one server with workers in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import uuid
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from tests.support.foreign import REAPI, Package, connect, digest
from tests.support.processes import ROOT, Server, free_port, nl_command, serving

CONFIGS = sorted((ROOT / "configs").glob("*.json5"))
EXECUTE = "/build.bazel.remote.execution.v2.Execution/Execute"
LRO = Package("google.longrunning")


def environment(directory: Path, port: int, worker_port: int) -> dict[str, str]:
    return {
        "NL_DATA_DIR": str(directory / "data"),
        "NL_ADDRESS": f"127.0.0.1:{port}",
        "NL_WORKER_API": f"127.0.0.1:{worker_port}",
        "WORKER_NAME": f"worker-{uuid.uuid4().hex[:6]}",
    }


def start(stack: ExitStack, name: str, directory: Path, env: dict[str, str], port: int) -> Server:
    file = ROOT / "configs" / name
    return stack.enter_context(serving(["serve", str(file)], port=port, log=directory / f"{name}.log", env=env))


ELSEWHERE = {"worker.json5", "main_and_pull_requests.json5", "s3_shared_cache.json5"}
"""Tested below, or with what they need (test_cloud_object_store), each in its own way."""


@pytest.mark.parametrize("name", [file.name for file in CONFIGS if file.name not in ELSEWHERE])
async def test_an_example_serves_what_it_says(name: str, tmp_path: Path) -> None:
    port = free_port()
    with ExitStack() as stack:
        server = start(stack, name, tmp_path, environment(tmp_path, port, free_port()), port)
        async with connect(port) as client:
            await client.put(b"a blob")
            assert await client.missing([digest(b"a blob"), digest(b"another")]) == [digest(b"another")]
        assert server.stop() == 0


async def test_pull_requests_cannot_write_what_main_reads(tmp_path: Path) -> None:
    port, file = free_port(), str(tmp_path / "tokens")
    tokens = {}
    for name, instance in (("main", "main"), ("pulls", "pr")):
        command = [*nl_command(), "token", "create", name, "--allow", "write", "--instance", instance, "--file", file]
        tokens[name] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    update = "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult"
    get = "/build.bazel.remote.execution.v2.ActionCache/GetActionResult"
    action = digest(b"an action")

    def ask(channel: grpc.Channel, method: str, instance: str, token: str | None) -> grpc.StatusCode:
        kind = REAPI.UpdateActionResultRequest if method == update else REAPI.GetActionResultRequest
        request = kind(instance_name=instance, action_digest=action)
        if method == update:
            request.action_result.exit_code = 0
            request.action_result.stdout_raw = b"said"
        metadata = [("authorization", f"Bearer {tokens[token]}")] if token else []
        try:
            channel.unary_unary(method)(request.SerializeToString(), metadata=metadata, timeout=30)
        except grpc.RpcError as exc:
            return exc.code()
        return grpc.StatusCode.OK

    code = grpc.StatusCode
    with ExitStack() as stack:
        env = environment(tmp_path, port, free_port()) | {"NL_TOKENS": file}
        server = start(stack, "main_and_pull_requests.json5", tmp_path, env, port)
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
        assert ask(channel, update, "main", "pulls") is code.PERMISSION_DENIED
        assert ask(channel, update, "main", None) is code.UNAUTHENTICATED
        assert ask(channel, update, "pr", "pulls") is code.OK
        assert ask(channel, get, "main", "main") is code.NOT_FOUND, "what pull requests wrote is theirs alone"
        assert ask(channel, update, "main", "main") is code.OK
        assert ask(channel, get, "main", None) is ask(channel, get, "main", "pulls") is code.OK
        assert "keep their action results in the same store" not in server.log_text()
        assert server.stop() == 0


async def test_workers_in_processes_of_their_own_share_the_servers_folder(tmp_path: Path) -> None:
    port, worker_port = free_port(), free_port()
    with ExitStack() as stack:
        start(stack, "multi_worker.json5", tmp_path, environment(tmp_path, port, worker_port), port)
        workers = []
        for k in range(2):
            env = environment(tmp_path, port, worker_port)
            log = (tmp_path / f"worker-{k}.log").open("wb")
            command = [*nl_command(), "serve", str(ROOT / "configs" / "worker.json5")]
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, **env})
            stack.callback(log.close)
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
            workers.append((env["WORKER_NAME"], tmp_path / f"worker-{k}.log"))
        async with connect(port) as client:
            ran: set[str] = set()
            for k in range(200):  # bounded: assignment goes round by least recent use, so a few rounds reach everybody
                ran.add(await executed_by(client, f"echo {k}"))
                if all(any(worker.startswith(name) for worker in ran) for name, _ in workers):
                    break
        for name, log_file in workers:
            assert any(worker.startswith(name) for worker in ran), (ran, log_file.read_text()[-2000:])
            assert re.search(r"Worker registered with scheduler", log_file.read_text())
            assert "all workers must share the same CAS storage path" in log_file.read_text()




async def executed_by(client, script: str) -> str:
    """Runs a shell command remotely; which worker did it."""
    command = REAPI.Command(arguments=["/bin/sh", "-c", script]).SerializeToString()
    root = b""
    action = REAPI.Action(command_digest=digest(command), input_root_digest=digest(root)).SerializeToString()
    await client.put(command)
    await client.put(action)
    request = REAPI.ExecuteRequest(action_digest=digest(action), skip_cache_lookup=True)
    last = (await client.server_stream(EXECUTE, request, LRO.Operation))[-1]
    response = REAPI.ExecuteResponse()
    assert last.done and last.response.Unpack(response), last
    assert not response.status.code, response.status
    assert response.result.exit_code == 0
    return response.result.execution_metadata.worker

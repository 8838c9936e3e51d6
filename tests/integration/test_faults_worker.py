"""What actions do to a running server: daemons, floods, ways out of their directory, cancellation, order. Over the
wire, with everything `nl serve` starts; the processes are looked for in /proc."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio

from tests.integration.faults_site import Builder, marked, until
from tests.support.foreign import AC, BYTES, BYTESTREAM, REAPI, RPC, connect, digest, read_name
from tests.support.processes import all_in_one, rss_mib
from tests.wire.execution_support import LONGRUNNING, OPERATIONS, WAIT, response

FAILED, INVALID = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
async def builder(tmp_path: Path) -> AsyncIterator[Builder]:
    with all_in_one(tmp_path, isolation="plain") as server:
        async with connect(server.port) as client:
            yield Builder(server, client)


def daemon(mark: str, redirect: str) -> str:
    """A child in a session of its own, forked twice, deaf to polite signals; the action ends once it runs."""
    inner = "trap '' TERM HUP INT; : > up; while :; do sleep 600 & wait; done"
    return f"(setsid sh -c \"{inner}\" {mark} {redirect} &); while [ ! -e up ]; do sleep 0.01; done; echo said; : > out"


@pytest.mark.parametrize("redirect", ["</dev/null >/dev/null 2>&1", ""], ids=["closes all", "holds stdout open"])
async def test_a_daemon_is_dead_when_its_action_has_ended(builder: Builder, tmp_path: Path, redirect: str) -> None:
    mark = f"daemon-of-{tmp_path.name}"
    with trio.fail_after(20):
        ended = await builder.run(daemon(mark, redirect))
    assert (ended.status.code, ended.result.exit_code) == (0, 0), ended
    assert await builder.stdout(ended.result) == b"said\n"
    assert marked(mark) == []


async def test_what_was_printed_before_a_timeout_is_kept_and_nothing_goes_on(builder: Builder, tmp_path: Path) -> None:
    mark = f"late-{tmp_path.name}"
    ended = await builder.run(f"echo so far; sh -c 'sleep 600; :' {mark}", timeout_s=0.5)
    assert ended.status.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert await builder.stdout(ended.result) == b"so far\n"
    assert marked(mark) == []


def named(root: Path, word: str) -> list[str]:
    """Paths below `root` with `word` in their last part. The worker may be removing an action's folder meanwhile:
    os.walk passes over what has gone, Path.rglob raises.
    """
    return [os.path.join(at, each) for at, *inner in os.walk(root) for each in sum(inner, []) if word in each]


@pytest.mark.parametrize("name", ["../../../escaped", "..", "a/../../escaped", "/tmp/escaped", ""])
async def test_a_file_node_that_leads_out_is_refused_and_nothing_is_written(builder: Builder, name: str) -> None:
    root = REAPI.Directory()
    root.files.add(name=name, digest=await builder.client.put(b"escaped bytes"))
    code, message = await outcome(builder, await builder.request("true", root=root))
    assert code is INVALID, message
    assert named(builder.server.log.parent, "escaped") == []
    assert not Path("/tmp/escaped").exists()
    assert (await builder.run("echo still well > out")).result.exit_code == 0


async def outcome(builder: Builder, request: Any) -> tuple[grpc.StatusCode, str]:
    """The status of an execution, whether the call or the response has it."""
    try:
        ended = await builder.execute(request)
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return next(each for each in grpc.StatusCode if each.value[0] == ended.status.code), ended.status.message


@pytest.mark.parametrize("path", ["../x", "/etc/hostname", "a/../../x"])
async def test_an_output_path_that_leads_out_is_refused(builder: Builder, path: str) -> None:
    code, message = await outcome(builder, await builder.request("echo secret > ../x; exit 0", outputs=(path,)))
    assert code is INVALID
    assert path in message


async def test_200_mib_of_stdout_do_not_sit_in_the_servers_memory(builder: Builder) -> None:
    assert (await builder.run("echo warm > out")).result.exit_code == 0
    Path(f"/proc/{builder.server.pid}/clear_refs").write_text("5")
    before = rss_mib(builder.server.pid)
    ended = await builder.run("head -c 209715200 /dev/zero | tr '\\0' x", outputs=())
    assert ended.result.stdout_digest.size_bytes == 200 * 1024 * 1024
    status = Path(f"/proc/{builder.server.pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(f"200 MiB of stdout: RSS {before:.1f} MiB before, at most {peak:.1f} MiB")
    assert peak - before < 50
    request = BYTESTREAM.ReadRequest(
        resource_name=read_name(ended.result.stdout_digest), read_offset=200 * 1024 * 1024 - 5
    )
    replies = await builder.client.server_stream(BYTES + "Read", request, BYTESTREAM.ReadResponse)
    assert b"".join(each.data for each in replies) == b"xxxxx"


async def test_missing_inputs_are_told_one_violation_each(builder: Builder) -> None:
    root = REAPI.Directory()
    gone = [digest(b"never uploaded %d" % number) for number in range(5)]
    for number, of in enumerate(gone):
        root.files.add(name=f"input{number}", digest=of)
    ended = await builder.execute(await builder.request("true", root=root))
    assert ended.status.code == FAILED.value[0]
    failure = RPC.PreconditionFailure()
    assert ended.status.details[0].Unpack(failure)
    told = sorted((each.type, each.subject) for each in failure.violations)
    assert told == sorted(("MISSING", f"blobs/{of.hash}/{of.size_bytes}") for of in gone)


async def test_do_not_cache_is_neither_cached_nor_merged(builder: Builder, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    request = await builder.request(f"echo x >> {ran}; : > out", do_not_cache=True)
    results: list[Any] = []

    async def execute() -> None:
        results.append(await builder.execute(request))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(execute)
    assert [each.cached_result for each in results] == [False] * 4
    assert ran.read_text() == "x\n" * 4
    with pytest.raises(grpc.RpcError) as caught:
        asked = REAPI.GetActionResultRequest(action_digest=request.action_digest)
        await builder.client.unary(AC + "GetActionResult", asked, REAPI.ActionResult)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_cancel_operation_kills_the_whole_family(builder: Builder, tmp_path: Path) -> None:
    mark = f"cancelled-{tmp_path.name}"
    call = builder.begin(await builder.request(f"(setsid sh -c 'sleep 600; :' {mark} &); sleep 600"))
    name = (await trio.to_thread.run_sync(next, call)).name
    await until(lambda: len(marked(mark)) == 1)
    request = LONGRUNNING.CancelOperationRequest(name=name)
    await builder.client.unary(OPERATIONS + "CancelOperation", request, LONGRUNNING.Operation)
    last = (await trio.to_thread.run_sync(list, call))[-1]
    assert response(last).status.code == grpc.StatusCode.CANCELLED.value[0]
    await until(lambda: marked(mark) == [])


async def test_lower_priority_numbers_go_first(builder: Builder, tmp_path: Path) -> None:
    cores, order, gate = os.cpu_count() or 1, tmp_path / "order", tmp_path / "gate"
    all_cores = {"cpu_count": str(cores)}
    waits = await builder.request(f": > {gate}.held; while [ ! -e {gate} ]; do sleep 0.01; done", properties=all_cores)
    held = builder.begin(waits)
    await until(Path(f"{gate}.held").exists)
    calls = []
    for priority in (5, -3, 9, 0):
        script = f"echo {priority} >> {order}"
        request = await builder.request(script, priority=priority, properties=all_cores)
        calls.append(builder.begin(request))
        await trio.to_thread.run_sync(next, calls[-1])  # it is queued
    gate.touch()
    for call in (held, *calls):
        operations = await trio.to_thread.run_sync(list, call)
        assert response(operations[-1]).result.exit_code == 0
    assert order.read_text().split() == ["-3", "0", "5", "9"]


async def test_a_platform_property_that_nobody_knows_is_refused_at_once(builder: Builder) -> None:
    request = await builder.request("true", properties={"no-such-property": "1"})
    with trio.fail_after(5):
        code, message = await outcome(builder, request)
    assert code is INVALID
    assert "no-such-property" in message


async def test_waiting_for_an_operation_that_is_not_there_is_not_found(builder: Builder) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        await builder.client.server_stream(
            WAIT, REAPI.WaitExecutionRequest(name="operations/../../x"), LONGRUNNING.Operation
        )
    assert caught.value.code() in (grpc.StatusCode.NOT_FOUND, INVALID)

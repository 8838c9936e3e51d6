"""A scheduler that is another server's: two servers in this process, clients at the one, workers at the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpclib.const
import pytest
import trio
from grpclib.exceptions import GRPCError

from nl.config.loader import load_text
from nl.errors import Code, ConfigError
from nl.model.digest import Digest, DigestFunction
from nl.model.execution import ActionRequest, OperationState, Stage
from nl.pb import longrunning, reapi, wkt
from nl.pb.codec import encode
from nl.rpc.channel import Channel
from nl.rpc.server import Server
from nl.server.completeness import CompletenessChecks
from nl.server.schedulers import build_schedulers
from nl.services.remote_scheduler import RemoteLimits, RemoteOperation, RemoteScheduler
from nl.storage.builder import build_stores
from tests.wire.execution_support import Executing, executing

LIMITS = RemoteLimits(first_pause_s=0.01, max_retries=11)
ACTION = Digest("a" * 64, 3)
CONFIG = """{
    schedulers: [{ name: "R", property_modifier: { scheduler: { grpc: {
        endpoint: { address: "grpc://127.0.0.1:PORT" }, retry: { max_retries: 3 }, max_concurrent_requests: 5,
    } } } }],
    servers: [{ listener: { http: { socket_address: "127.0.0.1:0" } }, services: {} }],
}"""


@asynccontextmanager
async def remote(port: int, limits: RemoteLimits = LIMITS) -> AsyncIterator[RemoteScheduler]:
    async def open_channel(_nursery: trio.Nursery) -> Channel:
        return Channel(f"127.0.0.1:{port}")

    async with trio.open_nursery() as nursery:
        scheduler = RemoteScheduler(open_channel, where="there", name="R", limits=limits)
        await nursery.start(scheduler.run)
        yield scheduler
        nursery.cancel_scope.cancel()


async def asked(at: Executing, *, salt: bytes = b"", **more: Any) -> ActionRequest:
    """The request for an action that is stored there."""
    made = await at.request(salt=salt)
    digest = Digest(made.action_digest.hash, made.action_digest.size_bytes)
    return ActionRequest(
        "main", digest, DigestFunction.SHA256, execute_request=made.SerializeToString(), **more
    )


async def until(operation: RemoteOperation, stage: Stage) -> OperationState:
    state = operation.state
    while state.stage is not stage:
        state = await operation.wait_changed(state.version)
    return state


async def test_an_action_goes_there_and_its_states_and_its_result_come_back() -> None:
    async with executing() as at, remote(at.port) as scheduler:
        operation = await scheduler.submit(
            await asked(at, target="//a", mnemonic="Cpp", invocation="build 1", tool="bazel 7"), owner="me"
        )
        assert operation.owner == "me"
        async with at.worker() as worker:
            start = await worker.start()
            state = await until(operation, Stage.EXECUTING)
            assert state.worker_id == worker.id
            there = at.scheduler.operations()[0].request
            assert (there.target, there.mnemonic, there.invocation, there.tool) == ("//a", "Cpp", "build 1", "bazel 7 ")
            await worker.report(start, reapi.ActionResult(exit_code=7))
            outcome = (await until(operation, Stage.COMPLETED)).outcome
        assert outcome is not None and outcome.response is not None
        assert reapi.ExecuteResponse.parse(outcome.response).result.exit_code == 7
        assert scheduler.operation(operation.name, owner="me") is operation
        assert scheduler.statistics()["unfinished_operations"] == 0
        assert scheduler.worker_pool is None


async def test_a_cancellation_reaches_the_worker() -> None:
    async with executing() as at, remote(at.port) as scheduler, at.worker() as worker:
        operation = await scheduler.submit(await asked(at))
        await worker.start()
        await until(operation, Stage.EXECUTING)
        await scheduler.cancel(operation.name)
        assert operation.state.outcome is not None
        assert operation.state.outcome.error is not None
        assert operation.state.outcome.error.code is Code.CANCELLED
        assert (await worker.order()).kill_operation_request is not None
        scheduler.forget(operation.name)
        assert scheduler.operations() == []


async def test_what_is_missing_there_is_named_so_that_clients_upload_it() -> None:
    async with executing() as at, remote(at.port) as scheduler:
        request = encode(reapi.ExecuteRequest(
            instance_name="main", action_digest=reapi.Digest(hash=ACTION.hash, size_bytes=ACTION.size)
        ))
        operation = await scheduler.submit(
            ActionRequest("main", ACTION, DigestFunction.SHA256, execute_request=request)
        )
        outcome = (await until(operation, Stage.COMPLETED)).outcome
        assert outcome is not None and outcome.error is not None
        assert outcome.error.code is Code.FAILED_PRECONDITION
        assert [each.subject for each in outcome.error.details] == [f"blobs/{ACTION.hash}/3"]


async def test_a_cache_in_front_is_asked_before_anything_is_sent() -> None:
    async def lookup(_request: ActionRequest) -> bytes | None:
        return b"cached"

    async with executing() as at, remote(at.port) as scheduler:
        outcome = (await until(await scheduler.submit(await asked(at), lookup=lookup), Stage.COMPLETED)).outcome
        assert outcome is not None and outcome.cached and outcome.response == b"cached"
        assert at.scheduler.operations() == []
        skipping = await scheduler.submit(await asked(at, skip_cache_lookup=True), lookup=lookup)
        assert not skipping.done


async def test_with_nobody_listening_an_operation_ends_here_and_there() -> None:
    limits = RemoteLimits(client_action_timeout_s=0.05)
    async with executing() as at, remote(at.port, limits) as scheduler, at.worker() as worker:
        operation = await scheduler.submit(await asked(at))
        with operation.watched():
            await worker.start()
            await until(operation, Stage.EXECUTING)
        outcome = (await until(operation, Stage.COMPLETED)).outcome
        assert outcome is not None and outcome.error is not None
        assert outcome.error.code is Code.DEADLINE_EXCEEDED
        assert (await worker.order()).kill_operation_request is not None


async def test_it_is_built_from_a_config_behind_others() -> None:
    async with executing() as at, at.worker() as worker, trio.open_nursery() as nursery:
        config = load_text(CONFIG.replace("PORT", str(at.port)))
        graph = build_stores(config.stores)
        scheduler = build_schedulers(config, graph, CompletenessChecks(config, graph))["R"]
        await nursery.start(scheduler.run)
        operation = await scheduler.submit(await asked(at))
        await worker.report(await worker.start(), reapi.ActionResult(exit_code=3))
        state = operation.state
        while not state.done:
            state = await operation.wait_changed(state.version)
        assert state.outcome is not None and state.outcome.response is not None
        nursery.cancel_scope.cancel()


def test_an_address_that_is_none_is_told_with_its_place() -> None:
    config = load_text("""{
        schedulers: [{ name: "R", grpc: { endpoint: { address: "ftp://x" } } }],
        servers: [{ listener: { http: { socket_address: "127.0.0.1:0" } }, services: {} }],
    }""")  # fmt: skip
    graph = build_stores(config.stores)
    with pytest.raises(ConfigError, match=r"^schedulers\[0\].grpc.endpoint.address: .*ftp://x"):
        build_schedulers(config, graph, CompletenessChecks(config, graph))


async def test_a_shutdown_answers_clients_and_leaves_what_runs_there_alone() -> None:
    async with executing() as at, remote(at.port) as scheduler, at.worker() as worker:
        operation = await scheduler.submit(await asked(at))
        start = await worker.start()
        scheduler.stop_admission()
        await scheduler.finish()
        scheduler.shut_down()
        outcome = operation.state.outcome
        assert outcome is not None and outcome.error is not None and outcome.error.code is Code.UNAVAILABLE
        await worker.report(start, reapi.ActionResult())
        (there,) = at.scheduler.operations()
        while not there.done:
            await there.wait_changed(there.state.version)


@dataclass
class Script:
    """A server that plays one answer after the other. Each is (states, how it ends)."""

    answers: list[tuple[list[longrunning.Operation], grpclib.const.Status | None]]
    seen: list[str]

    async def execute(self, stream: Any) -> None:
        await self._answer(stream, "Execute")

    async def wait(self, stream: Any) -> None:
        await self._answer(stream, "WaitExecution")

    async def _answer(self, stream: Any, method: str) -> None:
        request = await stream.recv_message()
        self.seen.append(f"{method} {getattr(request, 'name', '')}".strip())
        states, status = self.answers.pop(0)
        for state in states:
            await stream.send_message(state)
        if status is not None:
            raise GRPCError(status, "as the script says")

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        prefix, kind = "/build.bazel.remote.execution.v2.Execution/", grpclib.const.Cardinality.UNARY_STREAM
        return {
            prefix + "Execute": grpclib.const.Handler(self.execute, kind, reapi.ExecuteRequest, longrunning.Operation),
            prefix + "WaitExecution": grpclib.const.Handler(
                self.wait, kind, reapi.WaitExecutionRequest, longrunning.Operation
            ),
        }


def operation_message(stage: Stage, *, name: str = "main/1", done: bool = False) -> longrunning.Operation:
    metadata = wkt.pack(reapi.ExecuteOperationMetadata(stage=reapi.ExecutionStageValue(stage)))
    message = longrunning.Operation(name=name, metadata=metadata)
    if done:
        message.done = True
        message.response = wkt.pack(reapi.ExecuteResponse(message="the end"))
    return message


RUNS = operation_message(Stage.EXECUTING)
DONE = operation_message(Stage.COMPLETED, done=True)
Status = grpclib.const.Status


@pytest.mark.parametrize(
    ("answers", "seen"),
    [
        ([([RUNS], Status.UNAVAILABLE), ([DONE], None)], ["Execute", "WaitExecution main/1"]),
        ([([RUNS], None), ([DONE], None)], ["Execute", "WaitExecution main/1"]),
        ([([], Status.UNAVAILABLE), ([DONE], None)], ["Execute", "Execute"]),
        ([([RUNS], Status.UNAVAILABLE), ([], Status.NOT_FOUND), ([DONE], None)],
         ["Execute", "WaitExecution main/1", "Execute"]),
    ],
)  # fmt: skip
async def test_a_stream_that_breaks_is_taken_up_again(answers: Any, seen: list[str]) -> None:
    script = Script(list(answers), [])
    outcome = await played(script, LIMITS)
    assert outcome.error is None
    assert reapi.ExecuteResponse.parse(outcome.response).message == "the end"
    assert script.seen == seen


async def test_what_goes_wrong_again_and_again_ends_the_operation() -> None:
    script = Script([([], Status.UNAVAILABLE)] * 4, [])
    outcome = await played(script, RemoteLimits(first_pause_s=0.001, max_retries=3))
    assert outcome.error.code is Code.UNAVAILABLE
    assert len(script.seen) == 4


async def test_an_error_that_no_repetition_mends_ends_it_at_once() -> None:
    script = Script([([RUNS], Status.PERMISSION_DENIED)], [])
    outcome = await played(script, LIMITS)
    assert outcome.error.code is Code.PERMISSION_DENIED
    assert outcome.error.message == "scheduler at there: as the script says"


async def played(script: Script, limits: RemoteLimits) -> Any:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(Server([script]).serve, listeners)
        async with remote(listeners[0].socket.getsockname()[1], limits) as scheduler:
            request = encode(reapi.ExecuteRequest(instance_name="main"))
            operation = await scheduler.submit(
                ActionRequest("main", ACTION, DigestFunction.SHA256, execute_request=request)
            )
            with operation.watched(), suppress(GRPCError):
                outcome = (await until(operation, Stage.COMPLETED)).outcome
        nursery.cancel_scope.cancel()
    return outcome

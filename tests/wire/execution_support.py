"""The execution services on a real socket, a foreign client for them, and a worker that a test plays by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpclib.const
import trio

from nl.model.digest import Digest
from nl.pb import reapi, worker_api
from nl.rpc.channel import Channel
from nl.rpc.server import Server
from nl.scheduler.options import SimpleSchedulerOptions
from nl.scheduler.simple import SimpleScheduler
from nl.services.execution import ExecutionInstance, ExecutionService, cache_lookup
from nl.services.operations import OperationsService
from nl.services.worker_api import WorkerApiService
from nl.storage.contract import Store
from tests.support.foreign import REAPI, Foreign, Package, connect, digest
from tests.support.serving import memory_store

EXECUTE = "/build.bazel.remote.execution.v2.Execution/Execute"
WAIT = "/build.bazel.remote.execution.v2.Execution/WaitExecution"
OPERATIONS = "/google.longrunning.Operations/"
WORKER = "/com.github.trace_machina.nativelink.remote_execution.WorkerApi/ConnectWorker"
LONGRUNNING = Package("google.longrunning")
EMPTY = digest(b"")


@dataclass
class Executing:
    """A running server with the instances '' and 'main', and a foreign client of it."""

    port: int
    client: Foreign
    cas: Store
    cache: Store
    scheduler: SimpleScheduler

    async def put(self, message: Any) -> Any:
        data = message if isinstance(message, bytes) else message.SerializeToString(deterministic=True)
        of = digest(data)
        await self.cas.put(Digest(of.hash, of.size_bytes), data)
        return of

    async def request(self, *, salt: bytes = b"", instance: str = "main", **action: Any) -> Any:
        """Stores an action and its command; the ExecuteRequest for it."""
        command = await self.put(REAPI.Command(arguments=["true"]))
        made = REAPI.Action(command_digest=command, input_root_digest=EMPTY, salt=salt, **action)
        return REAPI.ExecuteRequest(instance_name=instance, action_digest=await self.put(made))

    async def execute(self, request: Any) -> list[Any]:
        return await self.client.server_stream(EXECUTE, request, LONGRUNNING.Operation)

    async def status_of(self, request: Any) -> grpc.RpcError:
        """The error that an Execute ends with."""
        try:
            await self.execute(request)
        except grpc.RpcError as exc:
            return exc
        raise AssertionError("Execute was accepted")

    async def operation(self, method: str, request: Any, reply: Any = None) -> Any:
        return await self.client.unary(OPERATIONS + method, request, reply or LONGRUNNING.Operation)

    @asynccontextmanager
    async def follow(self, method: str, request: Any) -> AsyncIterator[Following]:
        """An Execute or WaitExecution whose replies the test takes one by one; leaving cancels the call."""
        call = self.client.channel.unary_stream(method, _encode, LONGRUNNING.Operation.FromString)(request, timeout=60)
        try:
            yield Following(call)
        finally:
            call.cancel()

    @asynccontextmanager
    async def worker(self, **hello: Any) -> AsyncIterator[Worker]:
        """A worker over our own channel."""
        async with Channel(f"127.0.0.1:{self.port}") as channel:
            kind = grpclib.const.Cardinality.STREAM_STREAM
            types = (worker_api.UpdateForScheduler, worker_api.UpdateForWorker)
            async with channel.request(WORKER, kind, *types) as stream:
                introduction = worker_api.ConnectWorkerRequest(**hello)
                await stream.send_message(worker_api.UpdateForScheduler(connect_worker_request=introduction))
                connected = (await stream.recv_message()).connection_result
                yield Worker(stream, connected.worker_id)


@dataclass
class Following:
    """A call under way in grpcio's own threads."""

    call: Any

    async def next(self) -> Any:
        return await trio.to_thread.run_sync(lambda: next(self.call), abandon_on_cancel=True)

    async def last(self) -> Any:
        operation = await self.next()
        while not operation.done:
            operation = await self.next()
        return operation


@dataclass
class Worker:
    """What a test plays by hand."""

    stream: Any
    id: str

    async def order(self) -> worker_api.UpdateForWorker:
        update: worker_api.UpdateForWorker = await self.stream.recv_message()
        return update

    async def start(self) -> worker_api.StartExecute:
        update = await self.order()
        assert update.start_action is not None, update
        return update.start_action

    async def report(self, start: worker_api.StartExecute, result: reapi.ActionResult, **more: Any) -> None:
        executed = worker_api.ExecuteComplete(operation_id=start.operation_id)
        await self.stream.send_message(worker_api.UpdateForScheduler(execute_complete=executed))
        response = reapi.ExecuteResponse(result=result, **more)
        ended = worker_api.ExecuteResult(operation_id=start.operation_id, execute_response=response)
        await self.stream.send_message(worker_api.UpdateForScheduler(execute_result=ended))


@asynccontextmanager
async def executing(
    *, keepalive_s: float = 20.0, cached: bool = False, cas: Store | None = None, **options: Any
) -> AsyncIterator[Executing]:
    cas, cache = cas or memory_store(), memory_store()
    options.setdefault("worker_timeout_s", 600.0)
    scheduler = SimpleScheduler(SimpleSchedulerOptions(**options), lookup=cache_lookup(cache) if cached else None)
    instances = {
        name: ExecutionInstance(name, cas, scheduler) for name in ("", "main", "a/b")
    }
    services = [
        ExecutionService(instances, keepalive_s=keepalive_s),
        OperationsService(dict.fromkeys(instances, scheduler)),
        WorkerApiService(scheduler),
    ]
    async with trio.open_nursery() as nursery:
        for runnable in (cas, cache, scheduler):
            await nursery.start(runnable.run)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(Server(services).serve, listeners)
        async with connect(port) as client:
            yield Executing(port, client, cas, cache, scheduler)
        nursery.cancel_scope.cancel()


def metadata(operation: Any) -> Any:
    """The ExecuteOperationMetadata in an Operation, opened with google's protobuf."""
    found = REAPI.ExecuteOperationMetadata()
    assert operation.metadata.Unpack(found)
    return found


def response(operation: Any) -> Any:
    """The ExecuteResponse in an Operation."""
    found = REAPI.ExecuteResponse()
    assert operation.response.Unpack(found)
    return found


def _encode(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data

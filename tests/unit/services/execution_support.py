"""A CAS with one action in it, a running scheduler, and the services over both."""

import hashlib
from contextlib import asynccontextmanager
from types import SimpleNamespace

import trio

from nl.model.digest import EMPTY, Digest, DigestFunction
from nl.pb import longrunning, reapi, wkt, worker_api
from nl.pb.codec import encode
from nl.scheduler.options import SimpleSchedulerOptions
from nl.scheduler.simple import SimpleScheduler
from nl.services.execution import ExecutionInstance, ExecutionService, cache_lookup
from nl.services.operations import OperationsService
from nl.services.worker_api import WorkerApiService
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing.context import BareContext
from tests.unit.services.memory_stream import call, calling

EMPTY_ROOT = EMPTY[DigestFunction.SHA256]


def digest_of(data):
    return Digest(hashlib.sha256(data).hexdigest(), len(data))


def wire(digest):
    return reapi.Digest(hash=digest.hash, size_bytes=digest.size)


class House:
    """Everything there is for execution, in one process and without a network."""

    def __init__(self, scheduler, cas, cache, *, names=("main",), any_name=False, **instance):
        self.scheduler, self.cas, self.cache = scheduler, cas, cache
        executing = {name: ExecutionInstance(name, cas, scheduler, **instance) for name in names}
        self.execution = ExecutionService(executing, any_name=any_name, keepalive_s=20)
        self.operations = OperationsService(dict.fromkeys(names, scheduler), any_name=any_name)
        self.workers = WorkerApiService(scheduler)

    async def put(self, message):
        data = encode(message)
        digest = digest_of(data)
        await self.cas.put(digest, data)
        return digest

    async def action(self, *, name="main", salt=b"", command=None, action=None, properties=()):
        """Stores an action with its command; the ExecuteRequest for it."""
        command = command or reapi.Command(arguments=["true"])
        command_digest = await self.put(command)
        made = reapi.Action(
            command_digest=wire(command_digest),
            input_root_digest=wire(EMPTY_ROOT),
            salt=salt,
            platform=reapi.Platform(properties=[reapi.PlatformProperty(name=n, value=v) for n, v in properties]),
            **(action or {}),
        )
        return reapi.ExecuteRequest(instance_name=name, action_digest=wire(await self.put(made)))

    async def execute(self, request, **more):
        return await call(self.execution, "Execute", request, **more)

    def executing(self, request, **more):
        return calling(self.execution, "Execute", request, **more)

    @asynccontextmanager
    async def worker(self, *properties, prefix="", max_inflight=0, max_timeout_s=None, running=()):
        hello = worker_api.ConnectWorkerRequest(
            properties=[reapi.PlatformProperty(name=n, value=v) for n, v in properties],
            worker_id_prefix=prefix,
            max_inflight_tasks=max_inflight,
            running_actions=list(running),
            max_action_timeout=None if max_timeout_s is None else wkt.Duration(seconds=max_timeout_s),
        )
        first = worker_api.UpdateForScheduler(connect_worker_request=hello)
        async with calling(self.workers, "ConnectWorker", first, half_close=False) as stream:
            connected = await stream.receive()
            yield SimpleNamespace(stream=stream, id=connected.connection_result.worker_id, receive=stream.receive)


@asynccontextmanager
async def house(*, cached=False, instance=None, **options):
    options.setdefault("worker_timeout_s", 1e9)
    cas = MemoryStore(MemoryOptions(), BareContext("CAS"))
    cache = MemoryStore(MemoryOptions(), BareContext("AC"))
    scheduler = SimpleScheduler(SimpleSchedulerOptions(**options), lookup=cache_lookup(cache) if cached else None)
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        yield House(scheduler, cas, cache, **(instance or {}))
        nursery.cancel_scope.cancel()


def result_for(operation_id, response=None, error=None):
    result = worker_api.ExecuteResult(operation_id=operation_id, execute_response=response, internal_error=error)
    return worker_api.UpdateForScheduler(execute_result=result)


def metadata_of(operation: longrunning.Operation):
    return wkt.unpack(operation.metadata, reapi.ExecuteOperationMetadata)


def response_of(operation: longrunning.Operation):
    return wkt.unpack(operation.response, reapi.ExecuteResponse)



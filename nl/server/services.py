"""From the `services` of a listener to service objects over stores and schedulers. Nothing is started here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

import grpclib.const
import trio

from nl.config.document import Config
from nl.config.servers import ServerOptions, ServicesOptions
from nl.scheduler.simple import SimpleScheduler
from nl.services.action_cache import ActionCacheInstance, ActionCacheService
from nl.services.bytestream import ByteStreamInstance, ByteStreamService
from nl.services.capabilities import CapabilitiesInstance, CapabilitiesService
from nl.services.cas import MAX_BATCH_BYTES, CasInstance, CasService
from nl.services.execution import ExecutionInstance, ExecutionService
from nl.services.health import HealthRegistry, HealthService
from nl.services.operations import OperationsService
from nl.services.reflection import ReflectionService
from nl.services.worker_api import WorkerApiService
from nl.storage.builder import StoreGraph
from nl.storage.contract import Store

ENVELOPE_BYTES = 64 * 1024
"""What a batch of blobs needs in a message besides the blobs: announced batches stay below the limit by this much."""


class Service(Protocol):
    """An object that grpclib would serve."""

    def __mapping__(self) -> dict[str, grpclib.const.Handler]: ...


class Runnable(Protocol):
    """A part with background work."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None: ...


@dataclass(slots=True)
class Mounted:
    """What one listener serves."""

    services: list[Service] = field(default_factory=list)
    runnables: list[Runnable] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Full names of the gRPC services."""
        return sorted({path.split("/")[1] for service in self.services for path in service.__mapping__()})


def action_caches(config: Config, graph: StoreGraph) -> dict[str, Store]:
    """The action cache of each instance name, over all listeners."""
    return {
        entry.instance_name: graph[entry.ac_store]
        for server in config.servers
        for entry in server.services.ac or ()
    }


def mount(
    server: ServerOptions,
    *,
    config: Config,
    graph: StoreGraph,
    schedulers: Mapping[str, SimpleScheduler],
    health: HealthRegistry,
) -> Mounted:
    """The service objects of one listener, health and reflection always among them."""
    options = server.services
    mounted = Mounted()
    add = mounted.services.append
    max_batch = _max_batch_bytes(server)
    cas_by_instance = {entry.instance_name: graph[entry.cas_store] for entry in options.cas or ()}
    if options.cas:
        add(CasService({name: CasInstance(store, max_batch) for name, store in cas_by_instance.items()}))
    if options.ac:
        add(
            ActionCacheService(
                {
                    entry.instance_name: ActionCacheInstance(
                        graph[entry.ac_store], cas_by_instance.get(entry.instance_name), entry.read_only
                    )
                    for entry in options.ac
                }
            )
        )
    if options.bytestream:
        bytestream = ByteStreamService(
            {
                entry.instance_name: ByteStreamInstance(
                    graph[entry.cas_store], entry.persist_stream_on_disconnect_timeout_s
                )
                for entry in options.bytestream
            }
        )
        add(bytestream)
        mounted.runnables.append(bytestream)
    if options.execution:
        executing = {
            entry.instance_name: ExecutionInstance(
                entry.instance_name, graph[entry.cas_store], schedulers[entry.scheduler], _max_action_timeout_s(config)
            )
            for entry in options.execution
        }
        add(ExecutionService(executing))
        add(OperationsService({name: instance.scheduler for name, instance in executing.items()}))
    if options.worker_api is not None:
        add(WorkerApiService(schedulers[options.worker_api.scheduler]))
    if options.capabilities is not None:
        add(CapabilitiesService(_capabilities(config, options, max_batch)))
    for name in mounted.names:
        health.add_service(name)
    add(HealthService(health))
    add(ReflectionService(mounted.names, load_descriptors=_descriptors))
    return mounted


def _capabilities(config: Config, options: ServicesOptions, max_batch: int) -> dict[str, CapabilitiesInstance]:
    """Every instance that anything is served for can be asked about (REAPI A.7 rule 23: per instance, consistently)."""
    announced = {entry.instance_name: entry for entry in options.capabilities or ()}
    cas = {e.instance_name for e in _everywhere(config, "cas")}
    caches = {e.instance_name: e for e in _everywhere(config, "ac")}
    executing = {e.instance_name for e in options.execution or ()}
    return {
        name: CapabilitiesInstance(
            max_batch if name in cas else 0,
            update_enabled=name in caches and not caches[name].read_only,
            execution=name in executing or (name in announced and announced[name].remote_execution is not None),
            supported_node_properties=("mtime", "unix_mode") if name in executing else (),
        )
        for name in {*announced, *cas, *caches, *executing}
    }


def _everywhere(config: Config, service: str) -> Sequence[Any]:
    return [entry for server in config.servers for entry in getattr(server.services, service) or ()]


def _max_batch_bytes(server: ServerOptions) -> int:
    return min(MAX_BATCH_BYTES, max(server.listener.http.max_decoding_message_size - ENVELOPE_BYTES, 1))


def _max_action_timeout_s(config: Config) -> float | None:
    """What no worker here would accept is refused before it is queued. Workers elsewhere refuse for themselves."""
    limits = [entry.local.max_action_timeout_s for entry in config.workers]
    return max(limits, default=None)


@cache
def _descriptors() -> bytes:
    return (files("nl.pb") / "descriptors.binpb").read_bytes()

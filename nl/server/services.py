"""From the `services` of a listener to service objects over stores and schedulers. Nothing is started here.

A table says which builder makes what of which key of `services`; a new service is a builder and a line in it.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Protocol, runtime_checkable

import trio

from nl.config import servers as cfg
from nl.config.document import Config
from nl.rpc.method import Service
from nl.scheduler.contract import Lookup, Scheduler
from nl.server.completeness import CompletenessChecks
from nl.server.descriptors import transfers_within
from nl.services.action_cache import ActionCacheInstance, ActionCacheService
from nl.services.bytestream import ByteStreamInstance, ByteStreamService
from nl.services.capabilities import CapabilitiesInstance, CapabilitiesService
from nl.services.cas import CasInstance, CasService
from nl.services.execution import ExecutionInstance, ExecutionService, cache_lookup
from nl.services.health import HealthRegistry, HealthService
from nl.services.limits import BATCH_BYTES
from nl.services.operations import OperationsService
from nl.services.reflection import ReflectionService
from nl.services.worker_api import WorkerApiService
from nl.storage.builder import StoreGraph
from nl.storage.capabilities import BlobSizeLimit, EncodedBlobs
from nl.storage.contract import Store


@runtime_checkable
class Runnable(Protocol):
    """A service with background work."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None: ...


@runtime_checkable
class Counting(Protocol):
    """A service with figures to show."""

    def statistics(self) -> Mapping[str, int | float | str]: ...


@dataclass(slots=True)
class Mounted:
    """What one listener serves."""

    services: list[Service] = field(default_factory=list)

    @property
    def runnables(self) -> list[Runnable]:
        """The services that have to be run."""
        return [service for service in self.services if isinstance(service, Runnable)]

    @property
    def names(self) -> list[str]:
        """Full names of the gRPC services."""
        return sorted({name for service in self.services for name in _names(service)})

    def statistics(self) -> dict[str, Mapping[str, int | float | str]]:
        """The figures of each service that has some, by its full name."""
        return {_names(each)[0]: each.statistics() for each in self.services if isinstance(each, Counting)}


@dataclass(frozen=True, slots=True)
class Site:
    """What builders may take from: the listener's own config, and everything that it can refer to."""

    server: cfg.ServerOptions
    config: Config
    graph: StoreGraph
    schedulers: Mapping[str, Scheduler]
    checks: CompletenessChecks

    @property
    def any_name(self) -> bool:
        """Whether instance names that are not configured are served, too."""
        return self.server.any_instance_name

    def everywhere(self, kind: str) -> Sequence[Any]:
        """The entries of one kind over all listeners, this one's last: of two for a name they count here."""
        servers = sorted(self.config.servers, key=lambda each: each is self.server)
        return [entry for server in servers for entry in getattr(server.services, kind) or ()]


def cache_lookups(config: Config, graph: StoreGraph, checks: CompletenessChecks) -> dict[str, Lookup]:
    """How each instance name's action cache is looked into, over all listeners."""
    return {
        entry.instance_name: cache_lookup(graph[entry.ac_store], checks.of(server, entry))
        for server in config.servers
        for entry in server.services.ac or ()
    }


def mount(
    server: cfg.ServerOptions,
    *,
    config: Config,
    graph: StoreGraph,
    schedulers: Mapping[str, Scheduler],
    health: HealthRegistry,
    checks: CompletenessChecks,
) -> Mounted:
    """The service objects of one listener, health and reflection always among them."""
    site = Site(server, config, graph, schedulers, checks)
    mounted = Mounted()
    for kind, build in _BUILDERS.items():
        entries = getattr(server.services, kind)
        if entries is not None:
            mounted.services += build(entries, site)
    names = mounted.names
    for name in names:
        health.add_service(name)
    mounted.services.append(HealthService(health))
    mounted.services.append(ReflectionService(mounted.names, load_descriptors=_descriptors))
    return mounted


def _cas(entries: Sequence[cfg.CasService], site: Site) -> Iterable[Service]:
    instances = {e.instance_name: CasInstance(site.graph[e.cas_store]) for e in entries}
    return [CasService(instances, any_name=site.any_name)] if instances else []


def _action_cache(entries: Sequence[cfg.AcService], site: Site) -> Iterable[Service]:
    cas = {entry.instance_name: site.graph[entry.cas_store] for entry in site.server.services.cas or ()}
    instances = {
        entry.instance_name: ActionCacheInstance(
            site.graph[entry.ac_store], cas.get(entry.instance_name), entry.read_only,
            site.checks.of(site.server, entry),
        )
        for entry in entries
    }
    return [ActionCacheService(instances, any_name=site.any_name)] if instances else []


def _bytestream(entries: Sequence[cfg.ByteStreamService], site: Site) -> Iterable[Service]:
    instances = {
        entry.instance_name: ByteStreamInstance(
            site.graph[entry.cas_store], entry.persist_stream_on_disconnect_timeout_s, entry.idle_upload_timeout_s
        )
        for entry in entries
    }
    if not instances:
        return []
    most = _open_files(len([each for each in site.config.servers if each.services.bytestream]))
    return [
        ByteStreamService(instances, any_name=site.any_name, max_open_reads=most, max_open_writes=most,
                          coder_memory=site.graph.coder_memory)
    ]


def _execution(entries: Sequence[cfg.ExecutionService], site: Site) -> Iterable[Service]:
    instances = {
        entry.instance_name: ExecutionInstance(
            entry.instance_name,
            site.graph[entry.cas_store],
            site.schedulers[entry.scheduler],
        )
        for entry in entries
    }
    schedulers = {name: instance.scheduler for name, instance in instances.items()}
    if not instances:
        return []
    return [
        ExecutionService(instances, any_name=site.any_name),
        OperationsService(schedulers, any_name=site.any_name),
    ]


def _worker_api(options: cfg.WorkerApiService, site: Site) -> Iterable[Service]:
    instances = [e.instance_name for e in site.everywhere("execution") if e.scheduler == options.scheduler]
    workers = site.schedulers[options.scheduler].worker_pool
    return [] if workers is None else [WorkerApiService(workers, instances=instances)]


def _capabilities(entries: Sequence[cfg.CapabilitiesService], site: Site) -> Iterable[Service]:
    """Every instance that anything is served for can be asked about (REAPI A.7 rule 23: per instance, consistently).

    Where several listeners serve an instance, each announces what it does itself: one may be read-only.
    """
    announced = {entry.instance_name: entry for entry in entries}
    cas = {entry.instance_name: site.graph[entry.cas_store] for entry in site.everywhere("cas")}
    caches = {entry.instance_name: entry for entry in site.everywhere("ac")}
    executing = {entry.instance_name for entry in site.server.services.execution or ()}
    instances = {
        name: CapabilitiesInstance(
            BATCH_BYTES if name in cas else 0,
            _max_blob_bytes(cas[name]) if name in cas else 0,
            update_enabled=name in caches and not caches[name].read_only,
            execution=name in executing or (name in announced and announced[name].remote_execution is not None),
            compression=name in cas
            and (_keeps_zstd(cas[name]) or (name in announced and announced[name].remote_cache_compression)),
            supported_node_properties=("mtime", "unix_mode") if name in executing else (),
        )
        for name in {*announced, *cas, *caches, *executing}
    }
    return [CapabilitiesService(instances, any_name=site.any_name)]


_BUILDERS: Mapping[str, Callable[[Any, Site], Iterable[Service]]] = {
    "cas": _cas,
    "ac": _action_cache,
    "bytestream": _bytestream,
    "execution": _execution,
    "worker_api": _worker_api,
    "capabilities": _capabilities,
}
"""By key of a listener's `services`: what makes service objects of it, if it is set."""


def _open_files(listeners: int) -> int:
    """How many files the Reads of a listener may hold, and as many its uploads."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, transfers_within(soft) // listeners)


def _names(service: Service) -> list[str]:
    """The full names of the gRPC services that an object serves, usually one."""
    return sorted({path.split("/")[1] for path in service.__mapping__()})


def _keeps_zstd(store: Store) -> bool:
    """Whether compressed blobs pass through it, so that compressing spares work."""
    return store.capability(EncodedBlobs) is not None


def _max_blob_bytes(store: Store) -> int:
    """The largest blob that a store keeps, 0 if it does not say."""
    limit = store.capability(BlobSizeLimit)
    return 0 if limit is None else limit.max_blob_bytes()


@cache
def _descriptors() -> bytes:
    return (files("nl.pb") / "descriptors.binpb").read_bytes()

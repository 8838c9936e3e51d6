"""The cache services on a real socket in this process, over a store of the test's choice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from nl.rpc.server import Server
from nl.services.action_cache import ActionCacheInstance, ActionCacheService
from nl.services.bytestream import ByteStreamInstance, ByteStreamService
from nl.services.capabilities import CapabilitiesInstance, CapabilitiesService
from nl.services.cas import CasInstance, CasService
from nl.services.health import HealthRegistry, HealthService
from nl.services.limits import BATCH_BYTES
from nl.services.reflection import ReflectionService
from nl.storage.contract import Store
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext
from tests.support.foreign import DESCRIPTORS, Foreign, connect


def memory_store() -> Store:
    return MemoryStore(MemoryOptions(), BareContext())


@dataclass
class Serving:
    """A running server and a client of it."""

    port: int
    store: Store
    results: Store
    client: Foreign
    health: HealthRegistry
    bytestream: ByteStreamService
    names: list[str] = field(default_factory=list)


@asynccontextmanager
async def serving(
    *, store: Store | None = None, results: Store | None = None, persist_s: float = 60.0, max_parked: int = 64,
    max_parked_bytes: int = 1 << 30, packs: bool = False,
) -> AsyncIterator[Serving]:
    """A server; `packs`: it announces zstd.

    Instances: '' and 'main' (all services), 'locked' (the action cache is read-only), 'builds' (has a scheduler).
    """
    store = store or memory_store()
    results = results or memory_store()
    names = ("", "main", "locked", "builds", "a/b/c")
    bytestream = ByteStreamService(
        {name: ByteStreamInstance(store, persist_s) for name in names},
        max_parked=max_parked,
        max_parked_bytes=max_parked_bytes,
    )
    health = HealthRegistry()
    services = [
        CasService({name: CasInstance(store) for name in names}),
        bytestream,
        ActionCacheService(
            {name: ActionCacheInstance(results, cas=store, read_only=name == "locked") for name in names}
        ),
        CapabilitiesService(
            {
                name: CapabilitiesInstance(
                    BATCH_BYTES,
                    update_enabled=name != "locked",
                    execution=name == "builds",
                    compression=packs,
                    supported_node_properties=("mtime", "unix_mode") if name == "builds" else (),
                )
                for name in names
            }
        ),
        HealthService(health),
    ]
    mounted = sorted({path.split("/")[1] for service in services for path in service.__mapping__()})
    for name in mounted:
        health.add_service(name)
    services.append(ReflectionService(mounted, load_descriptors=DESCRIPTORS.read_bytes))
    async with trio.open_nursery() as nursery:
        for runnable in (store, results, bytestream):
            await nursery.start(runnable.run)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        server = Server(services)
        nursery.start_soon(server.serve, listeners)
        health.set_serving(True)
        async with connect(port) as client:
            yield Serving(port, store, results, client, health, bytestream, mounted)
        nursery.cancel_scope.cancel()

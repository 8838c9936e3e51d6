"""The nursery tree: stores > schedulers > listeners > workers. Composition of everything, and how it stops.

Starting goes from the outside in: what is started may use what is outside of it. Stopping goes the other way round,
each step with a deadline: health says NOT_SERVING, workers finish what they run, listeners let their calls finish
(GOAWAY), then schedulers and stores end. A second signal ends everything at once.
"""

from __future__ import annotations

import logging
import resource
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import trio

from nl.config.document import Config
from nl.config.servers import ServerOptions as ServerConfig
from nl.errors import ConfigError
from nl.rpc.server import Server
from nl.scheduler.options import SimpleSchedulerOptions
from nl.scheduler.simple import SimpleScheduler
from nl.server.doors import Doors
from nl.server.listeners import bind, bound_address, transport_options
from nl.server.lookup import lookup_by_instance
from nl.server.services import Mounted, action_caches, mount
from nl.server.status import StatusPage
from nl.services.health import HealthRegistry
from nl.storage.builder import BuiltStore, StoreGraph, build_stores
from nl.web.server import HttpServer, Route
from nl.worker.agent import Worker
from nl.worker.local import local_worker

log = logging.getLogger("nl.server")

WORKER_GRACE_S = 30.0
"""How long running actions may take to finish after a signal."""
LISTENER_GRACE_S = 10.0
"""How long calls may take to finish once the workers have stopped."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One listener, bound."""

    config: ServerConfig
    listeners: list[trio.SocketListener]
    server: Server
    mounted: Mounted

    @property
    def addresses(self) -> list[str]:
        """`host:port` of each socket, as they really are."""
        return [bound_address(each) for each in self.listeners]


async def run(config: Config, *, on_ready: Callable[[list[Endpoint]], None] | None = None) -> None:
    """Serves a config until SIGTERM or SIGINT. `on_ready` is called when every listener accepts.

    Raises ConfigError for what only starting can show: an address in use, a folder that cannot be made.
    """
    _allow_open_files(config.global_.max_open_files)
    doors = Doors(config)
    async with AsyncExitStack() as cleanup:
        signals = cleanup.enter_context(trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT))
        endpoints_bound = await _bind_all(config, cleanup)
        graph = build_stores(config.stores)
        health = HealthRegistry()
        async with trio.open_nursery() as stores:
            for built in graph:
                await _start_store(built, stores)
            async with trio.open_nursery() as schedulers:
                by_name = _schedulers(config, graph)
                for scheduler in by_name.values():
                    await schedulers.start(scheduler.run)
                for authenticator in doors.authenticators:
                    await schedulers.start(authenticator.run)
                endpoints = _endpoints(config, endpoints_bound, graph, by_name, health, doors=doors)
                await _serve(
                    config, endpoints, graph, by_name, health, doors=doors, signals=signals, on_ready=on_ready
                )
                schedulers.cancel_scope.cancel()
            stores.cancel_scope.cancel()
    log.info("Successfully shut down")


async def _bind_all(config: Config, cleanup: AsyncExitStack) -> list[list[trio.SocketListener]]:
    """Every socket is bound before anything is started, so that a wrong address costs nothing."""
    bound = []
    for index, server in enumerate(config.servers):
        listeners = await bind(server.listener.http, path=f"servers[{index}].listener.http.socket_address")
        for each in listeners:
            cleanup.callback(each.socket.close)
        bound.append(listeners)
    return bound


async def _start_store(built: BuiltStore, nursery: trio.Nursery) -> None:
    """Starts a store's background work; what it finds wrong with its options gets their place in the config."""
    try:
        await nursery.start(built.store.run)
    except ConfigError as error:
        place = f"{built.spec.path}.{built.kind}"
        raise ConfigError(f"{place}.{error.path}" if error.path else place, error.problem) from error


def _schedulers(config: Config, graph: StoreGraph) -> dict[str, SimpleScheduler]:
    lookup = lookup_by_instance(action_caches(config, graph))
    schedulers = {}
    for entry in config.schedulers:
        options = SimpleSchedulerOptions.from_config(entry.spec.options)
        schedulers[entry.name] = SimpleScheduler(options, lookup=lookup, name=entry.name)
    return schedulers


def _endpoints(
    config: Config,
    bound: list[list[trio.SocketListener]],
    graph: StoreGraph,
    schedulers: Mapping[str, SimpleScheduler],
    health: HealthRegistry,
    *,
    doors: Doors,
) -> list[Endpoint]:
    endpoints = []
    for index, (server, listeners) in enumerate(zip(config.servers, bound, strict=True)):
        mounted = mount(server, config=config, graph=graph, schedulers=schedulers, health=health)
        page = StatusPage(health, graph)
        options = server.services.health
        site = HttpServer({options.path if options is not None else "/status": Route(page.answer)})
        transport = transport_options(server.listener.http, path=f"servers[{index}].listener.http")
        authenticator = doors.at(index)
        if authenticator is not None:
            transport = replace(transport, authenticate=authenticator.authenticate)
        rpc = Server(mounted.services, options=transport, http1=site.serve)
        endpoints.append(Endpoint(server, listeners, rpc, mounted))
    return endpoints


async def _serve(
    config: Config,
    endpoints: list[Endpoint],
    graph: StoreGraph,
    schedulers: Mapping[str, SimpleScheduler],
    health: HealthRegistry,
    *,
    doors: Doors,
    signals: AsyncIterator[int],
    on_ready: Callable[[list[Endpoint]], None] | None,
) -> None:
    """Listeners, and workers inside of them. Returns when a signal has stopped both, a second one at once."""
    async with trio.open_nursery() as background, trio.open_nursery() as serving:
        for index, endpoint in enumerate(endpoints):
            doors.warn(index, endpoint.addresses)
            for part in endpoint.mounted.runnables:
                await background.start(part.run)
            await serving.start(endpoint.server.serve, endpoint.listeners)
            log.info("Ready, listening on %s", ", ".join(endpoint.addresses))
        async with trio.open_nursery() as working:
            workers = await _start_workers(config, endpoints, graph, doors, working)
            health.set_serving(True)
            if on_ready is not None:
                on_ready(endpoints)
            number = await anext(signals)
            log.info("Process terminated via %s, finishing what is running", signal.Signals(number).name)
            background.start_soon(_stop_at_once, signals, background.cancel_scope)
            health.set_serving(False)
            for scheduler in schedulers.values():
                scheduler.stop_admission()
            await _stop_workers(workers)
            working.cancel_scope.cancel()
        for scheduler in schedulers.values():
            scheduler.shut_down()  # remote workers are sent away, waiting clients are answered
        await _stop_listeners(endpoints)
        serving.cancel_scope.cancel()
        background.cancel_scope.cancel()


async def _start_workers(
    config: Config, endpoints: list[Endpoint], graph: StoreGraph, doors: Doors, nursery: trio.Nursery
) -> list[Worker]:
    """A worker that names an address of this config whose port is 0 gets the port that it really has.

    One that names a listener of this process where credentials are asked for, and has none, gets the process's own.
    """
    real = {each.config.listener.http.address: each.addresses[0] for each in endpoints}
    workers = []
    for index, entry in enumerate(config.workers):
        options = entry.local
        host, port, tls = options.worker_api_endpoint.address
        endpoint = options.worker_api_endpoint
        if endpoint.token is None and endpoint.token_file is None and doors.leads_here(host, port):
            options = replace(options, worker_api_endpoint=replace(endpoint, token=doors.worker_token))
        if (host, port) in real and port == 0:
            uri = f"grpc{'s' if tls else ''}://{real[host, port]}"
            options = replace(options, worker_api_endpoint=replace(options.worker_api_endpoint, uri=uri))
        elif port == 0:
            path = f"workers[{index}].local.worker_api_endpoint.uri"
            given = options.worker_api_endpoint.uri
            raise ConfigError(path, f'"{given}" has no port; expected one, or a listener here with the same address')
        worker = local_worker(options, index=index, store_named=graph.__getitem__)
        await nursery.start(worker.run)
        workers.append(worker)
    return workers


async def _stop_at_once(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    """What a second signal does."""
    number = await anext(signals)
    log.warning("%s again: stopping at once", signal.Signals(number).name)
    scope.cancel()


async def _stop_workers(workers: list[Worker]) -> None:
    async with trio.open_nursery() as nursery:
        for worker in workers:
            nursery.start_soon(worker.shutdown, WORKER_GRACE_S)


async def _stop_listeners(endpoints: list[Endpoint]) -> None:
    async with trio.open_nursery() as nursery:
        for endpoint in endpoints:
            nursery.start_soon(endpoint.server.shutdown, LISTENER_GRACE_S)


def _allow_open_files(wanted: int) -> None:
    """Raises the soft limit as far as the hard one allows: each connection and each open blob takes a descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))

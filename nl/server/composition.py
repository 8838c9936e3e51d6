"""From a config to the objects of the whole server, put together and not yet started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nl.config.document import Config
from nl.config.servers import ServerOptions as ServerConfig
from nl.rpc.server import Server
from nl.rpc.slots import Slots
from nl.scheduler.contract import Scheduler
from nl.server.admin import Administration
from nl.server.completeness import CompletenessChecks
from nl.server.doors import Doors
from nl.server.listeners import Bound, http_limits, transport_options
from nl.server.schedulers import build_schedulers
from nl.server.services import Mounted, mount
from nl.server.status import StatusPage, routes
from nl.services.health import HealthRegistry
from nl.storage.builder import StoreGraph, build_stores
from nl.storage.capabilities import ForwardsHeaders
from nl.storage.coder_memory import CoderMemory
from nl.web.server import HttpServer


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One listener, bound."""

    config: ServerConfig
    bound: Bound
    server: Server
    mounted: Mounted

    @property
    def addresses(self) -> list[str]:
        """`host:port` or `unix:/path` of each socket, as they really are."""
        return self.bound.addresses

    def statistics(self) -> dict[str, object]:
        """Figures of its connections and of its services."""
        return {**self.server.statistics(), "services": self.mounted.statistics()}


@dataclass(frozen=True, slots=True)
class Composition:
    """Everything that one process runs; run.py says in which order."""

    config: Config
    doors: Doors
    graph: StoreGraph
    schedulers: Mapping[str, Scheduler]
    health: HealthRegistry
    endpoints: Sequence[Endpoint]
    """In the order of the config's `servers`."""


def compose(config: Config, bound: Sequence[Bound], *, slots: Slots) -> Composition:
    """Builds everything. `bound` are the sockets of each of the config's servers, `slots` the process's connections.

    Raises ConfigError for what the config names and cannot be used: files of TLS, of tokens.
    """
    doors = Doors(config)
    graph = build_stores(config.stores, coder_memory=CoderMemory(config.global_.max_coder_memory))
    checks = CompletenessChecks(config, graph)
    schedulers = build_schedulers(config, graph, checks)
    health = HealthRegistry()
    endpoints: list[Endpoint] = []
    shown = shown_headers(graph)
    page = StatusPage(health, graph, endpoints, doors, schedulers)
    administration = Administration(schedulers, doors)
    for index, (server, sockets) in enumerate(zip(config.servers, bound, strict=True)):
        listener = server.listener.http
        mounted = mount(
            server, config=config, graph=graph, schedulers=schedulers, health=health, checks=checks
        )  # fmt: skip
        options = replace(transport_options(listener, path=f"servers[{index}].listener.http"), shown_headers=shown)
        authenticator = doors.at(index)
        if authenticator is not None:
            options = replace(options, authenticate=authenticator.authenticate)
        http1 = HttpServer(
            routes(server, page, administration),
            limits=http_limits(listener.connections),
            authenticate=options.authenticate,
        )
        rpc = Server(mounted.services, options=options, http1=http1.serve, slots=slots)
        endpoints.append(Endpoint(server, sockets, rpc, mounted))
    return Composition(config, doors, graph, schedulers, health, endpoints)


def shown_headers(graph: StoreGraph) -> frozenset[str]:
    """The headers of requests that some store passes on."""
    forwarding = (built.store.capability(ForwardsHeaders) for built in graph)
    return frozenset(name for each in forwarding if each is not None for name in each.forwarded_headers())

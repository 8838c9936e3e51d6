"""The servers as a store uses them: connections, commands with retries, uploads; looked at when the store starts."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from pathlib import Path

import trio

from nl.plugin import Backend, BackendError, ConfigError, RefusedError, TransientError
from nl_redis_store.client import Client
from nl_redis_store.cluster import Cluster
from nl_redis_store.options import RedisStoreOptions
from nl_redis_store.single import Single, Watched
from nl_redis_store.topology import Dialer, Topology

log = logging.getLogger("nl.stores.redis_store")

PROBE_S = 5.0
"""Between looks at a server that could not be reached when the store started."""
_EVICTS_BY_USE = "allkeys-lru"


class Server:
    """Everything between a store and its servers."""

    def __init__(self, options: RedisStoreOptions, name: str) -> None:
        self._options = options
        self._name = name
        self._topology = _topology(options)
        self.backend = Backend(name, log)
        self.client = Client(self._topology, options.retry.policy(), permits=options.max_client_permits or 500)
        self.evicts_by_use = False
        """Whether every server, as it was when it was first reached, evicts what was not used for the longest time."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Holds the connections, and looks whether the servers are what the options say.

        Raises ConfigError in one line if they are not. One that cannot be reached is only logged: it may come back,
        and until then requests are answered UNAVAILABLE.
        """
        refused: ConfigError | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(self._hold)
            try:
                await self.backend.reach(self._probe, every_s=PROBE_S, task_status=task_status)
            except ConfigError as error:
                refused = error  # raised below, outside of the nursery that would wrap it
                nursery.cancel_scope.cancel()
        if refused is not None:
            raise refused

    async def _hold(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self._topology.run(task_status=task_status)

    async def _probe(self) -> None:
        await self.client.everywhere((b"PING",))
        try:
            infos = [fields(reply) for reply in await self.client.everywhere((b"INFO",))]
        except RefusedError as error:
            log.debug("the store %s may not ask what its server is: %s", self._name, error)
            return
        kind = infos[0].get("redis_mode", "")
        if kind in ("cluster", "sentinel") and not self._topology.clustered:
            problem = f'the server is part of a {kind}; expected mode "{kind}"'
            raise RefusedError(problem, option="mode")
        self.evicts_by_use = all(info.get("maxmemory_policy") == _EVICTS_BY_USE for info in infos)

    async def check(self) -> None:
        """PING to every server. Raises the NlError that a request would meet now."""
        timeout_s = self._options.health_timeout
        with trio.move_on_after(timeout_s):
            try:
                await self.client.everywhere((b"PING",))
            except BackendError as error:
                raise self.backend.translated(error) from error
            return
        late = TransientError(f"no answer to PING within {timeout_s:g} s", code="DeadlineExceeded")
        raise self.backend.translated(late)

    def statistics(self) -> Mapping[str, int | float | str]:
        """For the store's."""
        nodes = self._topology.nodes()
        return {
            "servers": len(nodes),
            "connections": sum(node.open for node in nodes),
            "trips": sum(node.trips for node in nodes),
            "failed": self.backend.failed,
            "retries": self.client.policy.retries,
            "calls_waiting": self.client.waiting,
        }


def fields(reply: object) -> dict[str, str]:
    """What INFO says, `name:value` a line."""
    text = bytes(reply).decode("utf-8", "replace") if isinstance(reply, bytes) else ""
    return {name: value for name, colon, value in (line.partition(":") for line in text.splitlines()) if colon}


def _topology(options: RedisStoreOptions) -> Topology:
    servers = options.servers()
    dialer = Dialer(
        servers,
        connect_timeout_s=options.connect_timeout,
        command_timeout_s=options.command_timeout,
        connections=options.connection_pool_size or 3,
        tls=_tls(options) if any(server.tls for server in servers) else None,
    )
    if options.mode == "cluster":
        return Cluster(dialer)
    return Watched(dialer) if servers[0].service else Single(dialer)


def _tls(options: RedisStoreOptions) -> ssl.SSLContext:
    """Raises ConfigError for a file that cannot be used."""
    file = options.root_certificates
    if file and not Path(file).is_file():
        raise ConfigError("root_certificates", f'no file "{file}"; expected a PEM file with certificates')
    try:
        return ssl.create_default_context(cafile=file or None)
    except ssl.SSLError as error:
        raise ConfigError("root_certificates", f'"{file}" has no certificates: {error.reason}') from error

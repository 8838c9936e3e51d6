"""The servers as a store uses them: connections, commands with retries, uploads; looked at when the store starts."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from pathlib import Path

import trio

from nl.plugin import ConfigError, NlError, RetryPauses
from nl_redis_store.client import Client
from nl_redis_store.cluster import Cluster
from nl_redis_store.errors import RedisError, RefusedError, TransientError
from nl_redis_store.options import RedisStoreOptions
from nl_redis_store.single import Single, Watched
from nl_redis_store.topology import Dialer, Topology

log = logging.getLogger("nl.stores.redis_store")

PROBE_S = 5.0
"""Between looks at a server that could not be reached when the store started."""
COMPLAIN_S = 60.0
"""Between log lines about what needs somebody's hand."""
_EVICTS_BY_USE = "allkeys-lru"


class Server:
    """Everything between a store and its servers."""

    def __init__(self, options: RedisStoreOptions, name: str) -> None:
        self._options = options
        self._name = name
        self._complained = -COMPLAIN_S
        self._failed = 0
        self._topology = _topology(options)
        policy = options.retry.policy(RetryPauses)
        self.client = Client(self._topology, policy, permits=options.max_client_permits or 500)
        self.evicts_by_use = False
        """Whether every server, as it was when the store started, evicts what was not used for the longest time."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Holds the connections, and looks whether the servers are what the options say.

        Raises ConfigError in one line if they are not. One that cannot be reached is only logged: it may come back,
        and until then requests are answered UNAVAILABLE.
        """
        refused: RefusedError | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(self._hold)
            try:
                reachable = await self._look_at_start()
            except RefusedError as error:
                refused = error  # raised below, outside of the nursery that would wrap it
                nursery.cancel_scope.cancel()
            else:
                task_status.started()
                while not reachable:
                    await trio.sleep(PROBE_S)
                    reachable = await self._look_again()
        if refused is not None:
            raise ConfigError(refused.option, str(refused)) from refused

    async def _hold(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self._topology.run(task_status=task_status)

    async def _look_at_start(self) -> bool:
        try:
            await self._probe()
        except RefusedError:
            raise
        except RedisError as error:
            log.warning("the store %s starts without its server: %s", self._name, error)
            return False
        return True

    async def _look_again(self) -> bool:
        try:
            await self.client.everywhere((b"PING",))
        except RefusedError as error:
            log.error("the store %s can be reached, and cannot be used: %s", self._name, error)
            return True
        except RedisError:
            return False
        log.info("the store %s has reached its server", self._name)
        return True

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
            except RedisError as error:
                raise self.translated(error) from error
            return
        raise self.translated(TransientError(f"no answer to PING within {timeout_s:g} s", code="DeadlineExceeded"))

    def translated(self, error: RedisError) -> NlError:
        """The contract's name for it."""
        self._failed += 1
        if isinstance(error, RefusedError):
            self.complain(str(error))
        return error.translated(self._name)

    def complain(self, text: str) -> None:
        """A log line about what only somebody can mend; one a minute, whatever comes in between."""
        now = trio.current_time()
        if now - self._complained >= COMPLAIN_S:
            self._complained = now
            log.error("store %s: %s", self._name, text)

    def statistics(self) -> Mapping[str, int | float | str]:
        """For the store's."""
        nodes = self._topology.nodes()
        return {
            "servers": len(nodes),
            "connections": sum(node.open for node in nodes),
            "trips": sum(node.trips for node in nodes),
            "failed": self._failed,
            "retries": self.client.retries,
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

"""Which servers there are, behind one interface: a single one, one that sentinels know, or a cluster."""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from nl.plugin import BackendError
from nl_redis_store.addresses import Address
from nl_redis_store.connection import Connection, dial
from nl_redis_store.errors import MovedError
from nl_redis_store.node import Node


@dataclass(frozen=True, slots=True)
class Dialer:
    """How connections are made."""

    addresses: tuple[Address, ...]
    """Where to begin."""
    connect_timeout_s: float
    command_timeout_s: float
    connections: int
    """To each server."""
    tls: ssl.SSLContext | None

    async def dial(self, address: Address) -> Connection:
        """A connection that has logged in. Raises BackendError."""
        return await dial(address, timeout_s=self.connect_timeout_s, tls=self.tls)

    def node(self, address: Address) -> Node:
        """A server at a place that does not change."""

        async def connect() -> Connection:
            return await self.dial(address)

        return Node(str(address), connect, connections=self.connections, timeout_s=self.command_timeout_s)


class Topology(ABC):
    """Where a key's commands go."""

    clustered: bool = False

    @abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Holds the connections, until cancelled. Starts without asking a server for anything."""

    @abstractmethod
    async def ready(self) -> None:
        """Waits until it is known where keys are. Raises BackendError if that cannot be found out now."""

    @abstractmethod
    def node_of(self, slot: int) -> Node:
        """The server of a slot; to be called after `ready`, without waiting in between."""

    @abstractmethod
    def nodes(self) -> Sequence[Node]:
        """All servers that hold keys; to be called after `ready`."""

    def moved(self, error: MovedError, said_by: Node) -> Node:
        """A server has sent us elsewhere: to whom. Raises the error where that makes no sense."""
        raise error

    def failed(self, node: Node, error: BackendError) -> None:
        """A server could not be asked, or is not what it was."""
        return

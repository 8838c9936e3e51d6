"""One server: at a place that is configured, or wherever sentinels say that the master is."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from nl.plugin import BackendError, RefusedError, TransientError
from nl_redis_store.addresses import Address
from nl_redis_store.connection import Connection, dial
from nl_redis_store.errors import DemotedError
from nl_redis_store.node import Node
from nl_redis_store.topology import Dialer, Topology


class Single(Topology):
    """A server that is always at the same place."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._node = self._make_node()

    def _make_node(self) -> Node:
        return self._dialer.node(self._dialer.addresses[0])

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await self._node.run()

    async def ready(self) -> None:
        return

    def node_of(self, slot: int) -> Node:
        return self._node

    def nodes(self) -> Sequence[Node]:
        return (self._node,)

    def failed(self, node: Node, error: BackendError) -> None:
        if isinstance(error, DemotedError):
            node.renew()


class Watched(Single):
    """The master that sentinels name. It is looked up for each new connection: that is all a failover takes."""

    def _make_node(self) -> Node:
        dialer = self._dialer
        service = dialer.addresses[0].service
        return Node(service, self._connect, connections=dialer.connections, timeout_s=dialer.command_timeout_s)

    async def _connect(self) -> Connection:
        connection = await self._dialer.dial(await self._find_master())
        try:
            role = await connection.ask(b"ROLE")
            if not isinstance(role, list) or role[0] != b"master":
                raise TransientError(f"{connection.address} is not the master yet")
        except BaseException:
            await _close(connection)
            raise
        return connection

    async def _find_master(self) -> Address:
        """What the first sentinel says that knows it. Raises what one of them refused, else what the first one said."""
        error: BackendError | None = None
        for sentinel in self._dialer.addresses:
            try:
                return await self._ask_sentinel(sentinel)
            except BackendError as failure:
                if error is None or isinstance(failure, RefusedError):
                    error = failure
        assert error is not None
        raise error

    async def _ask_sentinel(self, sentinel: Address) -> Address:
        dialer = self._dialer
        connection = await dial(sentinel, timeout_s=dialer.connect_timeout_s, tls=dialer.tls, sentinel=True)
        try:
            with trio.fail_after(dialer.connect_timeout_s):
                found = await connection.ask(b"SENTINEL", b"get-master-addr-by-name", sentinel.service.encode())
        except trio.TooSlowError:
            raise TransientError(f"the sentinel {sentinel} does not answer", code="DeadlineExceeded") from None
        finally:
            await _close(connection)
        if found is None:
            problem = f'the sentinel {sentinel} knows no master called "{sentinel.service}"'
            raise RefusedError(f"{problem}; expected ?sentinelServiceName=NAME", option="addresses")
        host, port = found
        return sentinel.at(host.decode(), int(port))


async def _close(connection: Connection) -> None:
    with trio.CancelScope(shield=True):  # which never waits: it is a forceful close
        await connection.aclose()

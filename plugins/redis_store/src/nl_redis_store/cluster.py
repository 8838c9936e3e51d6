"""A cluster: which master has which slot, learnt from the nodes, and learnt again when they say that it has changed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from itertools import chain

import trio

from nl.plugin import BackendError, TransientError
from nl_redis_store.addresses import SLOTS, Address
from nl_redis_store.connection import Reply
from nl_redis_store.errors import MovedError
from nl_redis_store.node import Node
from nl_redis_store.topology import Dialer, Topology

log = logging.getLogger("nl.stores.redis_store")

PAUSE_S = 0.1
"""Between looks at a cluster that changes, or that cannot be asked."""


class Cluster(Topology):
    """Masters and their slots. One task asks for the map, however many wait for it."""

    clustered = True

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._nodes: dict[Address, tuple[Node, trio.CancelScope]] = {}
        self._slots: list[Node | None] = [None] * SLOTS
        self._masters: tuple[Address, ...] = ()
        self._nursery: trio.Nursery | None = None
        self._outdated = trio.Event()
        self._learnt = trio.Event()
        self._error: BackendError | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await self._outdated.wait()
                self._outdated = trio.Event()
                try:
                    self._use(await self._ask_for_map())
                    self._error = None
                except BackendError as error:
                    self._error = error
                learnt, self._learnt = self._learnt, trio.Event()
                learnt.set()
                await trio.sleep(PAUSE_S)

    async def ready(self) -> None:
        """Waits for the map if there is none yet. One that is out of date is used until there is a newer one: most of
        it is right, and where it is not, a server says so.
        """
        if self._masters:
            return
        learnt = self._learnt
        self._outdated.set()
        await learnt.wait()
        if self._error is not None:
            raise self._error

    def node_of(self, slot: int) -> Node:
        node = self._slots[slot]
        if node is None:
            self._outdated.set()
            raise TransientError(f"no master of the cluster has the slot {slot}")
        return node

    def nodes(self) -> Sequence[Node]:
        return [self._nodes[address][0] for address in self._masters]

    def moved(self, error: MovedError, said_by: Node) -> Node:
        address = self._dialer.addresses[0].at(error.host, error.port)
        if not error.host:
            address = next((each for each, (node, _) in self._nodes.items() if node is said_by), address)
            address = address.at("", error.port)
        node = self._node(address)
        if not error.asking:
            self._slots[error.slot] = node
            self._outdated.set()
        return node

    def failed(self, node: Node, error: BackendError) -> None:
        self._outdated.set()

    def _node(self, address: Address) -> Node:
        if address not in self._nodes:
            assert self._nursery is not None
            node, scope = self._dialer.node(address), trio.CancelScope()
            self._nodes[address] = (node, scope)
            self._nursery.start_soon(_run, node, scope)
        return self._nodes[address][0]

    async def _ask_for_map(self) -> list[tuple[int, int, Address]]:
        """What the first node says that can be asked. Raises what the last one raised."""
        error: BackendError | None = None
        for address in dict.fromkeys(chain(self._masters, self._dialer.addresses)):
            try:
                return await self._ask(address)
            except BackendError as failure:
                error = failure
        assert error is not None
        raise error

    async def _ask(self, address: Address) -> list[tuple[int, int, Address]]:
        connection = await self._dialer.dial(address)
        try:
            with trio.fail_after(self._dialer.connect_timeout_s):
                return slot_ranges(await connection.ask(b"CLUSTER", b"SLOTS"), address)
        except trio.TooSlowError:
            raise TransientError(f"{address} does not answer", code="DeadlineExceeded") from None
        finally:
            with trio.CancelScope(shield=True):  # which never waits: it is a forceful close
                await connection.aclose()

    def _use(self, ranges: list[tuple[int, int, Address]]) -> None:
        slots: list[Node | None] = [None] * SLOTS
        for first, last, address in ranges:
            node = self._node(address)
            slots[first : last + 1] = [node] * (last + 1 - first)
        self._slots = slots
        masters = tuple(dict.fromkeys(address for _, _, address in ranges))
        if self._masters and masters != self._masters:
            log.info("the cluster's masters are now %s", ", ".join(map(str, masters)))
        self._masters = masters
        for gone in self._nodes.keys() - set(masters):
            self._nodes.pop(gone)[1].cancel()


async def _run(node: Node, scope: trio.CancelScope) -> None:
    with scope:
        await node.run()


def slot_ranges(reply: Reply, asked: Address) -> list[tuple[int, int, Address]]:
    """What CLUSTER SLOTS says: first and last slot, and their master. Raises TransientError if it knows none."""
    ranges: list[tuple[int, int, Address]] = []
    with contextlib.suppress(TypeError, ValueError, IndexError, AttributeError):
        for first, last, master, *_ in reply:
            host = (master[0] or b"").decode()
            ranges.append((first, last, asked.at(host, int(master[1]))))
    if not ranges:
        raise TransientError(f"{asked} knows no slots of the cluster yet")
    return ranges

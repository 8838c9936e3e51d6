"""A channel's connections: how many, to which addresses, and which of them the next call takes.

Addresses come from the resolver; each Subchannel keeps one connection to one of its addresses and makes it again when
it is lost and wanted. `pick_first` gives every subchannel all addresses, `round_robin` gives each address subchannels
of its own. Nothing is connected before the first call asks.

Rules for this file:

* Attempts belong to the pool, never to a call: all calls that wait share them and their result.
* A call fails when no subchannel is left that might still succeed: each is in its pause after a failure, or has failed
  since the call came. With `wait_for_ready` it waits on.
* Every connection that is open is in `connections`, also those that take no new calls: all of them are looked after.

Not here: sockets (dial.py), streams (client_connection.py), repeating calls (retry.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio
from grpclib.const import Status

from nl.rpc.client_connection import ClientConnection
from nl.rpc.connecting import Attempts, Backoff
from nl.rpc.dial import CannotConnect, open_transport, race
from nl.rpc.errors import NotProcessed
from nl.rpc.options import ChannelOptions
from nl.rpc.origin import Origin
from nl.rpc.resolver import Address, resolve

_MIN_RESOLVE_S = 5.0
"""Failing connections do not have names looked up more often than this."""
_MAX_COUNTED = 256
"""Addresses that are remembered for statistics only."""
_MAX_TOLD = 4
"""Different problems that one error message tells."""


@dataclass(slots=True)
class AddressStatistics:
    """What has happened with one address since the channel was opened."""

    attempts: int = 0
    failures: int = 0
    """Attempts that ended with an error; those given up because another address was faster are not among them."""
    connections: int = 0
    """Open now."""
    calls: int = 0
    """Begun there."""


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """A snapshot of a channel's connections."""

    connections: int = 0
    """Open now, those that take no new calls among them."""
    draining: int = 0
    """Of those, how many take no new calls."""
    waiting: int = 0
    """Calls that wait for a connection."""
    retries: int = 0
    """Calls that were sent once more, each time counted."""
    addresses: dict[str, AddressStatistics] = field(default_factory=dict)


class Subchannel:
    """One connection at a time, to one of `addresses`."""

    def __init__(self, pool: Pool, addresses: Sequence[Address]) -> None:
        self.addresses = addresses
        self.connection: ClientConnection | None = None
        self._pool = pool
        self._forgiven = False
        self._retired = False
        self.attempts = Attempts(self._connect, backoff=pool.new_backoff(), ended=pool.changed)

    def usable(self) -> ClientConnection | None:
        """The connection, if new calls may go there."""
        connection = self.connection
        if connection is not None and not connection.is_usable:
            self._lost(connection)
            return None
        return connection

    def _lost(self, connection: ClientConnection) -> None:
        """What has been of use is made again at once. What has not is a failed attempt, but for the first time: servers
        restart, and that is no reason to refuse the next call.
        """
        self.connection = None
        lived = trio.current_time() - connection.born
        if connection.answered or connection.retired or lived >= self._pool.options.backoff_max:
            self.attempts.succeeded()
            self._forgiven = False
        elif not self._forgiven:
            self._forgiven = True
        else:
            self.attempts.fail(NotProcessed(Status.UNAVAILABLE, f"{connection.address.text}: {connection.reason}"))
        self._pool.names_are_stale = True

    async def _connect(self) -> None:
        timeout = max(address.origin.options.connect_timeout for address in self.addresses)
        try:
            with trio.fail_after(timeout):
                self.connection = await race(
                    self.addresses,
                    self._pool.open,
                    head_start=self._pool.options.head_start,
                    discard=ClientConnection.give_up,
                )
        except (CannotConnect, trio.TooSlowError) as exc:
            self._pool.names_are_stale = True
            where = self.addresses[0].text if len(self.addresses) == 1 else f"any of {len(self.addresses)} addresses"
            reason = str(exc) if isinstance(exc, CannotConnect) else f"{where}: no answer within {timeout:g} s"
            raise NotProcessed(Status.UNAVAILABLE, reason) from exc
        if self._retired:  # while it was too late to cancel this
            self.connection.retire()

    def retire(self) -> None:
        """Makes no more connections; calls of the one that is there end in peace."""
        self._retired = True
        self.attempts.cancel()
        if self.connection is not None:
            self.connection.retire()


class Pool:
    """See the module's docstring. Its tasks run in `nursery`."""

    def __init__(self, origins: Sequence[Origin], options: ChannelOptions, nursery: trio.Nursery) -> None:
        self.options = options
        self.connections: set[ClientConnection] = set()
        self.names_are_stale = False
        self.retries = 0
        self._origins = origins
        self._name = ", ".join(origin.name for origin in origins)
        self._nursery = nursery
        self._subchannels: list[Subchannel] = []
        self._turn = 0
        self._names = Attempts(self._resolve, backoff=self.new_backoff(), ended=self.changed)
        self._resolved_at = float("-inf")
        self._change = trio.lowlevel.ParkingLot()
        self._waiting = 0
        self._calm = 1.0
        """How many times as long as they should the pauses between PINGs are: servers have asked for it."""
        self._counts: dict[str, AddressStatistics] = {}
        self._closed = False

    def new_backoff(self) -> Backoff:
        """As the options say."""
        options = self.options
        return Backoff(options.backoff_initial, options.backoff_max, jitter=options.backoff_jitter)

    def changed(self) -> None:
        """Something that calls may wait for has happened."""
        self._change.unpark_all()

    # -- picking -----------------------------------------------------------------------------------------------------

    def pick(self) -> ClientConnection | None:
        """A connection for a call, or None if there is none yet. Has what is missing and due connected."""
        if self.options.balancing == "pick_first":
            return self._least_busy()
        return self._next_in_turn()

    def _least_busy(self) -> ClientConnection | None:
        best: ClientConnection | None = None
        complete = bool(self._subchannels)
        for each in self._subchannels:
            connection = each.usable()
            if connection is None:
                complete = False
            elif best is None or connection.taken < best.taken:
                best = connection
        if not complete:
            self._start_due()
        return best

    def _next_in_turn(self) -> ClientConnection | None:
        """Behind the last one; one without room for a stream only if all are so."""
        every = self._subchannels
        full: tuple[int, ClientConnection] | None = None
        complete = bool(every)
        chosen: tuple[int, ClientConnection] | None = None
        for step in range(1, len(every) + 1):
            index = (self._turn + step) % len(every)
            connection = every[index].usable()
            if connection is None:
                complete = False
            elif connection.has_room:
                chosen = (index, connection)
                break
            elif full is None:
                full = (index, connection)
        if not complete:
            self._start_due()
        chosen = chosen or full
        if chosen is None:
            return None
        self._turn = chosen[0]
        return chosen[1]

    def _start_due(self) -> None:
        if self._closed:
            return
        old_enough = trio.current_time() - self._resolved_at >= _MIN_RESOLVE_S
        if not self._subchannels or (self.names_are_stale and old_enough):
            self._names.start(self._nursery)
        for each in self._subchannels:
            if each.connection is None:
                each.attempts.start(self._nursery)

    # -- waiting -----------------------------------------------------------------------------------------------------

    async def wait_connection(self, *, wait_for_ready: bool) -> ClientConnection:
        """A connection for a call, as soon as there is one. NotProcessed if there is no hope of one now."""
        seen: dict[Attempts, int] = {}
        self._waiting += 1
        try:
            while not self._closed:
                connection = self.pick()
                if connection is not None:
                    return connection
                if not wait_for_ready:
                    self._raise_if_hopeless(seen)
                with trio.move_on_at(self._next_due()):
                    await self._change.park()
            raise NotProcessed(Status.UNAVAILABLE, "the channel is closed")
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._stop_what_nobody_wants()

    def _wanted(self) -> list[Attempts]:
        """Those on which it depends whether there will be a connection."""
        return [each.attempts for each in self._subchannels] or [self._names]

    def _raise_if_hopeless(self, seen: dict[Attempts, int]) -> None:
        problems: list[NotProcessed] = []
        for each in self._wanted():
            failed_since = each.failures > seen.setdefault(each, each.failures)
            if each.error is None or (each.is_running and not failed_since):
                return
            problems.append(each.error)
        told = list(dict.fromkeys(each.message or "" for each in problems))
        more = f"; {len(told) - _MAX_TOLD} more" if len(told) > _MAX_TOLD else ""
        message = f"cannot connect to {self._name}: {'; '.join(told[:_MAX_TOLD])}{more}"
        raise NotProcessed(Status.UNAVAILABLE, message) from problems[0].__cause__

    def _next_due(self) -> float:
        return min((each.due_at for each in self._wanted() if not each.is_running), default=float("inf"))

    def _stop_what_nobody_wants(self) -> None:
        """Attempts whose callers have all left, unless they are to join a connection that is there."""
        if all(each.usable() is None for each in self._subchannels):
            for each in self._subchannels:
                each.attempts.cancel()

    # -- connecting --------------------------------------------------------------------------------------------------

    async def open(self, address: Address) -> ClientConnection:
        """A new connection, once its server has sent SETTINGS. CannotConnect if that fails."""
        counts = self._counts.setdefault(address.text, AddressStatistics())
        counts.attempts += 1
        try:
            connection = ClientConnection(await open_transport(address), address)
            self._nursery.start_soon(self._live, connection, counts)
            try:
                await connection.ready.wait()
            except BaseException:  # cancelled, or too slow: nobody else knows of this connection
                connection.give_up()
                raise
            if not connection.is_usable:
                raise CannotConnect(connection.reason)
        except CannotConnect:
            counts.failures += 1
            raise
        self.connections.add(connection)
        return connection

    async def _live(self, connection: ClientConnection, counts: AddressStatistics) -> None:
        counts.connections += 1
        try:
            await connection.run()
        finally:
            self.connections.discard(connection)
            if connection.told_to_calm:
                self._calm *= 2  # as gRFC A8 has it: servers may allow a PING in five minutes
            counts.connections -= 1
            counts.calls += connection.calls
            self.changed()

    async def _resolve(self) -> None:
        addresses = await resolve(self._origins, timeout=self.options.connect_timeout)
        self._resolved_at = trio.current_time()
        self.names_are_stale = False
        self._names.succeeded()
        if self.options.balancing == "pick_first":
            self._all_to(addresses)
        else:
            self._one_for_each_of(addresses)
        self._forget_counts({address.text for address in addresses})

    def _all_to(self, addresses: list[Address]) -> None:
        if not self._subchannels:
            self._subchannels = [Subchannel(self, addresses) for _ in range(self.options.connections)]
        for each in self._subchannels:
            each.addresses = addresses
            if each.connection is not None and each.connection.address not in addresses:
                each.connection.retire()

    def _one_for_each_of(self, addresses: list[Address]) -> None:
        old: dict[Address, list[Subchannel]] = {}
        for each in self._subchannels:
            old.setdefault(each.addresses[0], []).append(each)
        self._subchannels = [
            each
            for address in addresses
            for each in old.pop(address, None) or [Subchannel(self, [address]) for _ in range(self.options.connections)]
        ]
        for gone in old.values():
            for each in gone:
                each.retire()

    def _forget_counts(self, current: set[str]) -> None:
        for text in [text for text, counts in self._counts.items() if text not in current and not counts.connections]:
            if len(self._counts) <= _MAX_COUNTED:
                return
            del self._counts[text]

    # -- looking after -----------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Called every now and then: keepalive and stalls of every connection; names that may have changed."""
        now = trio.current_time()
        for connection in list(self.connections):
            options = connection.options
            interval = options.keepalive_interval if connection.h2.streams else None
            reason = connection.check(
                now,
                interval=interval * self._calm if interval is not None else None,
                timeout=options.keepalive_timeout,
                stall=options.stall_timeout,
            )
            if reason is not None:
                connection.give_up(reason)
        interval = self.options.resolve_interval
        if interval is not None and self.connections and now - self._resolved_at >= interval:
            self._names.start(self._nursery)

    def close(self) -> None:
        """No more connections, and whoever waits for one finds out."""
        self._closed = True
        self.changed()

    def statistics(self) -> ChannelStatistics:
        """A snapshot."""
        addresses = {
            text: AddressStatistics(counts.attempts, counts.failures, counts.connections, counts.calls)
            for text, counts in self._counts.items()
        }
        for connection in self.connections:
            addresses[connection.address.text].calls += connection.calls
        draining = sum(not connection.is_usable for connection in self.connections)
        return ChannelStatistics(
            connections=len(self.connections),
            draining=draining,
            waiting=self._waiting,
            retries=self.retries,
            addresses=addresses,
        )

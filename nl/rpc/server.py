"""The server: grpclib service objects on trio.

`Server(services).serve(listeners)` accepts connections and gives each a task of its own. The first bytes decide what a
client speaks: HTTP/2 here, anything else is handed to `http1`, if there is one. Not here: what happens on an HTTP/2
connection (server_connection.py) and on an HTTP/1.1 one (nl.web), who is let in (accepting.py, slots.py).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import trio

from nl.model.caller import caused_by
from nl.rpc import frames as fr
from nl.rpc.accepting import accept_forever
from nl.rpc.connection import LINGER_S
from nl.rpc.contract import TransportLost
from nl.rpc.held import Held
from nl.rpc.leaving import Leaving
from nl.rpc.live_tls import LiveContext
from nl.rpc.method import Service, table_of
from nl.rpc.options import ServerOptions
from nl.rpc.server_call import ServerCall
from nl.rpc.server_connection import ServerConnection
from nl.rpc.slots import IDLE_S, Slots
from nl.rpc.tls_transport import TlsTransport
from nl.rpc.transport import SocketTransport, Transport
from nl.rpc.transport_stream import TransportStream

log = logging.getLogger(__name__)
_SWEEP_S = 1.0
_SWEPT_AT_ONCE = 64
"""Connections: well under a millisecond."""
_LIKE_PREFACE = b"PRI * "


Http1 = Callable[[TransportStream, bytes], Awaitable[None]]
"""Serves one HTTP/1.1 connection: the stream, and the bytes already read from it."""


def _showing_headers(func: Callable[[ServerCall], Awaitable[None]], names: frozenset[str]) -> Any:
    """The handler, in a context where `nl.model.caller` tells these of its request's headers."""

    async def shown(call: ServerCall) -> None:
        with caused_by(call.shown_headers(names)):
            await func(call)

    return shown


class Server:
    """Hosts services on any number of listeners. `serve` is its whole life.

    *Cancellation*: cancelling `serve` closes every connection at once; `shutdown` before that is the polite way.
    """

    def __init__(
        self,
        services: Iterable[Service],
        *,
        options: ServerOptions | None = None,
        http1: Http1 | None = None,
        slots: Slots | None = None,
    ) -> None:
        """`slots` are the process's: other servers take from them, too."""
        self.options = options or ServerOptions()
        self.leaving = Leaving()
        self.slots = Slots(self.options.max_connections, remedy="max_connections is the limit", shared=slots)
        for each in (self.slots, slots):
            if each is not None:
                each.relief.append(self._let_an_idle_one_go)
        self._methods = table_of(services)
        if self.options.shown_headers:
            for method in self._methods.values():
                method.func = _showing_headers(method.func, self.options.shown_headers)
        self._http1 = http1
        self._connections: set[ServerConnection] = set()
        self._others: set[_Other] = set()
        self._held = Held(self.options.max_held)
        self._accepting: trio.CancelScope | None = None
        self._changed = trio.Event()
        self._accepted = 0
        self.outcomes: dict[int, int] = {}
        """Calls that have ended, by status code."""

    async def serve(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accepts until cancelled, or until `shutdown` is done."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep)
            if isinstance(self.options.tls, LiveContext):
                nursery.start_soon(self.options.tls.run)
            async with trio.open_nursery() as accepting:
                self._accepting = accepting.cancel_scope
                for listener in listeners:
                    accepting.start_soon(accept_forever, listener, self.slots, nursery, self._serve_socket)
                task_status.started()
                await trio.sleep_forever()
            await self._wait_empty()
            nursery.cancel_scope.cancel()  # what looks after them

    async def shutdown(self, grace_s: float) -> None:
        """Lame duck: stops accepting, lets calls and requests finish for `grace_s` seconds, then cancels them.

        `serve` returns when that is done.
        """
        if self._accepting is not None:
            self._accepting.cancel()
        self.leaving.begin()
        for scope in self.slots.greeting:
            scope.cancel()
        for connection in list(self._connections):
            connection.drain()
        with trio.move_on_after(grace_s):
            await self._wait_empty()
        for connection in list(self._connections):
            connection.cancel_calls()
        for other in self._others:
            other.scope.cancel()
        with trio.move_on_after(1.0):
            await self._wait_empty()
        for connection in list(self._connections):
            connection.close_soon()

    async def _wait_empty(self) -> None:
        while self.slots.taken:
            await self._changed.wait()

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def statistics(self) -> Mapping[str, int]:
        """A snapshot of levels and counters."""
        return {
            "connections": self.slots.taken,
            "handshakes": len(self.slots.greeting),
            "http2_connections": len(self._connections),
            "http1_connections": len(self._others),
            "accepted": self._accepted,
            "streams": sum(len(each.h2.streams) for each in self._connections),
            "held_bytes": sum(each.held_bytes() for each in self._connections)
            + sum(each.held_bytes() for each in self._others),
        }

    async def _sweep(self) -> None:
        swept = trio.current_time()
        while True:
            with trio.move_on_at(swept + _SWEEP_S):
                await self._held.wait_over()
                self._held.look()
            if trio.current_time() - swept >= _SWEEP_S:
                swept = trio.current_time()
                await self._sweep_connections()

    async def _sweep_connections(self) -> None:
        """Has each look after itself: some at a time, since there may be 20,000."""
        for number, connection in enumerate(list(self._connections), start=1):
            if connection in self._connections:
                connection.sweep(trio.current_time())
            if not number % _SWEPT_AT_ONCE:
                await trio.lowlevel.checkpoint()

    def _let_an_idle_one_go(self) -> bool:
        now = trio.current_time()
        idle = max(self._connections, key=lambda each: each.idle_time(now), default=None)
        idle_s = 0.0 if idle is None else idle.idle_time(now)
        other_s, other = self.leaving.longest_idle()
        if max(idle_s, other_s) < IDLE_S:
            return False
        if other is not None and other_s > idle_s:
            other.cancel()
        elif idle is not None:
            idle.drain()
        return True

    # -- one connection ----------------------------------------------------------------------------------------------

    async def _serve_socket(self, sock: socket.socket) -> None:
        """From a fresh socket to the end of its connection; whatever a peer does wrong is its loss alone."""
        self._accepted += 1
        try:
            transport, first = await self._greet(sock)
            if first == fr.PREFACE and not self.leaving.begun:
                await self._http2(transport)
            elif first and first != fr.PREFACE:
                await self._other(transport, first)
            else:
                transport.close()
        except* (TransportLost, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as group:
            log.info("connection ended: %s", group.exceptions[0])
        except* Exception:  # a bug of ours takes one connection with it: this is its outermost frame
            log.exception("a connection failed")
        finally:
            self.slots.release()
            self._notify()

    async def _greet(self, sock: socket.socket) -> tuple[Transport, bytes]:
        """TLS's handshake if there is to be one, and the first bytes; none if they do not come in time."""
        options, first = self.options, b""
        transport: SocketTransport
        tls = options.tls.context if isinstance(options.tls, LiveContext) else options.tls
        if tls is None:
            transport = SocketTransport(sock, unsent_max=options.max_send_buffer)
        else:
            transport = TlsTransport(sock, tls, unsent_max=options.max_send_buffer)
        try:
            with trio.move_on_after(options.handshake_timeout) as scope, self.slots.greets(scope):
                if isinstance(transport, TlsTransport):
                    await transport.handshake()
                first = await _first_bytes(transport)
        except TransportLost as exc:
            log.info("%s: %s", transport.peer, exc)
            transport.close()
        except BaseException:
            transport.close()
            raise
        return transport, first

    async def _http2(self, transport: Transport) -> None:
        connection = ServerConnection(
            transport, self._methods, options=self.options, outcomes=self.outcomes, held=self._held
        )
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    async def _other(self, transport: Transport, first: bytes) -> None:
        """What is not HTTP/2. A preface that went wrong gets no answer that its sender could not read."""
        stream = TransportStream(transport, leaving=self.leaving)
        with trio.CancelScope() as scope:
            other = _Other(stream, scope, self._held)
            self._others.add(other)
            try:
                if self._http1 is not None and not first.startswith(_LIKE_PREFACE):
                    await self._http1(stream, first)
                else:
                    await _turn_away(transport)
            finally:
                self._others.discard(other)
                self._held.leave(other)
                transport.close()


async def _first_bytes(transport: Transport) -> bytes:
    """The HTTP/2 preface, or what came instead of it, or nothing if the peer has left."""
    preface, buffer, fill = fr.PREFACE, bytearray(len(fr.PREFACE)), 0
    while fill < len(preface) and preface.startswith(buffer[:fill]):
        await transport.wait_readable()
        count = transport.try_recv_into(memoryview(buffer)[fill:])
        if not count:
            return b""
        fill += max(count, 0)
    return bytes(buffer[:fill])


async def _turn_away(transport: Transport) -> None:
    """Ends a connection that speaks nothing we know: politely, or closing would look like a reset."""
    with trio.move_on_after(LINGER_S):
        await transport.linger()


class _Other:
    """A connection that is not HTTP/2."""

    def __init__(self, stream: TransportStream, scope: trio.CancelScope, held: Held) -> None:
        self._stream = stream
        self.scope = scope
        self.counted = 0
        held.enter(self)
        stream.on_held = partial(held.count, self)

    def held_bytes(self) -> int:
        """See `Holder`."""
        return self._stream.held

    def give_up(self, reason: str) -> None:
        """See `Holder`."""
        log.warning("%s: %s", self._stream.peer, reason)
        self.scope.cancel()

"""The server: grpclib service objects on trio.

`Server(services).serve(listeners)` accepts connections and gives each a nursery of its own. The first bytes decide
what a client speaks: HTTP/2 here, anything else is handed to `http1`, if there is one. Not here: what happens on an
HTTP/2 connection (server_connection.py) and on an HTTP/1.1 one (nl.web).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import trio

from nl.rpc import frames as fr
from nl.rpc.connection import LINGER_S
from nl.rpc.method import Service, table_of
from nl.rpc.options import ServerOptions
from nl.rpc.server_connection import ServerConnection
from nl.rpc.tls import peer_certificate
from nl.rpc.transport import SocketTransport, StreamTransport, Transport, describe_peer, take_socket

log = logging.getLogger(__name__)
_SWEEP_S = 1.0
_CLOSE_WATCH_S = 0.05
"""How often connections are looked at while they hold more than half of what they may."""
T = TypeVar("T")

Http1 = Callable[[trio.abc.Stream, bytes], Awaitable[None]]
"""Serves one HTTP/1.1 connection: the stream, and the bytes already read from it."""


class Server:
    """Hosts services on any number of listeners. `serve` is its whole life.

    *Cancellation*: cancelling `serve` closes every connection at once; `shutdown` before that is the polite way.
    """

    def __init__(
        self, services: Iterable[Service], *, options: ServerOptions | None = None, http1: Http1 | None = None
    ) -> None:
        self.options = options or ServerOptions()
        self._methods = table_of(services)
        self._http1 = http1
        self._connections: set[ServerConnection] = set()
        self._others: set[trio.CancelScope] = set()
        self._nursery: trio.Nursery | None = None
        self._accepting: trio.CancelScope | None = None
        self._changed = trio.Event()
        self._accepted = 0

    async def serve(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accepts until cancelled, or until `shutdown` is done."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._sweep)
            with trio.CancelScope() as self._accepting:
                task_status.started()
                if listeners:
                    await trio.serve_listeners(self._accept, list(listeners), handler_nursery=nursery)
                await trio.sleep_forever()
            while self._connections or self._others:
                changed = self._changed
                await changed.wait()
            nursery.cancel_scope.cancel()

    async def shutdown(self, grace_s: float) -> None:
        """Lame duck: stops accepting, lets calls finish for `grace_s` seconds, then cancels them. `serve` returns."""
        if self._accepting is not None:
            self._accepting.cancel()
        for connection in list(self._connections):
            connection.drain()
        with trio.move_on_after(grace_s):
            await self._wait_empty()
        for connection in list(self._connections):
            connection.cancel_calls()
        with trio.move_on_after(1.0):
            await self._wait_empty()
        for connection in list(self._connections):
            connection.close_soon()
        for scope in self._others:
            scope.cancel()

    def adopt(self, sock: socket.socket) -> None:
        """Serves a connected plain socket that was not accepted from a listener (a socket pair, say)."""
        if self._nursery is None:
            raise RuntimeError("the server is not running")
        self._nursery.start_soon(self._guarded, self._plain, sock)

    async def _wait_empty(self) -> None:
        while self._connections:
            await self._changed.wait()

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def statistics(self) -> Mapping[str, int]:
        """A snapshot of levels and counters."""
        return {
            "connections": len(self._connections),
            "http1_connections": len(self._others),
            "accepted": self._accepted,
            "streams": sum(len(each.streams) for each in self._connections),
        }

    async def _sweep(self) -> None:
        swept = trio.current_time()
        while True:
            is_near = self._end_the_largest() > self.options.max_held // 2
            await trio.sleep(_CLOSE_WATCH_S if is_near else _SWEEP_S)
            now = trio.current_time()
            if now - swept >= _SWEEP_S:
                swept = now
                for connection in list(self._connections):
                    connection.sweep(now)

    def _end_the_largest(self) -> int:
        """Keeps all connections together within `max_held`; how much they hold.

        Ending is the one remedy that cannot deadlock: who waits for the rest of a message, or for its peer to read,
        gives nothing back by being held up.
        """
        held = [(connection.held_bytes(), connection) for connection in self._connections]
        total = sum(count for count, _ in held)
        if total > self.options.max_held:
            held.sort(key=lambda each: each[0], reverse=True)
            for count, connection in held:
                if total <= self.options.max_held:
                    break
                connection.give_up(f"the server holds too much for its clients, {count} bytes of it for this one")
                total -= count
        return total

    # -- one connection ----------------------------------------------------------------------------------------------

    async def _accept(self, stream: trio.SocketStream) -> None:
        """From a fresh socket to a connection; whatever a peer does wrong here is its loss alone."""
        self._accepted += 1
        if len(self._connections) + len(self._others) >= self.options.max_connections:
            await trio.aclose_forcefully(stream)
            return
        if self.options.tls is None:
            await self._guarded(self._plain, take_socket(stream))
        else:
            await self._guarded(self._tls, stream)

    async def _guarded(self, serve: Callable[[T], Awaitable[None]], connection: T) -> None:
        """A connection that ends badly, even through a bug of ours, takes nothing with it."""
        try:
            await serve(connection)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as group:
            log.info("connection ended: %s", group.exceptions[0])
        except* Exception:  # the connection's outermost frame
            log.exception("a connection failed")

    async def _plain(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        with trio.move_on_after(self.options.handshake_timeout) as scope:
            try:
                first = await _first_bytes(sock)
            except BaseException:
                sock.close()
                raise
        if scope.cancelled_caught or not first:
            trio.lowlevel.notify_closing(sock)
            sock.close()
            return
        if first == fr.PREFACE:
            await self.run_connection(SocketTransport(sock, unsent_max=self.options.max_send_buffer))
        else:
            await self._other(trio.SocketStream(trio.socket.from_stdlib_socket(sock)), first)

    async def _tls(self, stream: trio.SocketStream) -> None:
        context = self.options.tls
        assert context is not None
        secure = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        peer = describe_peer(stream.socket)
        first = b""
        with trio.move_on_after(self.options.handshake_timeout) as scope:
            try:
                await secure.do_handshake()
                while len(first) < len(fr.PREFACE) and fr.PREFACE.startswith(first):
                    data = await secure.receive_some(len(fr.PREFACE) - len(first))
                    if not data:
                        break
                    first += data
            except trio.BrokenResourceError as exc:
                log.info("%s: TLS handshake: %s", peer, exc.__cause__ or exc)
        if scope.cancelled_caught or not first:
            await trio.aclose_forcefully(stream)
        elif first == fr.PREFACE:
            await self.run_connection(StreamTransport(secure, peer=peer, certificate=peer_certificate(secure)))
        else:
            await self._other(secure, first)

    async def run_connection(self, transport: Transport) -> None:
        """Serves HTTP/2 on a transport from which the client's preface has been read."""
        connection = ServerConnection(transport, self._methods, options=self.options)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self._notify()

    async def _other(self, stream: trio.abc.Stream, first: bytes) -> None:
        with trio.CancelScope() as scope:
            self._others.add(scope)
            try:
                if self._http1 is not None:
                    await self._http1(stream, first)
                else:
                    await _turn_away(stream)
            finally:
                self._others.discard(scope)
                self._notify()
                await trio.aclose_forcefully(stream)


async def _first_bytes(sock: socket.socket) -> bytes:
    """The HTTP/2 preface, or what came instead of it, or nothing if the peer has left."""
    first = b""
    while len(first) < len(fr.PREFACE) and fr.PREFACE.startswith(first):
        await trio.lowlevel.wait_readable(sock)
        data = sock.recv(len(fr.PREFACE) - len(first))
        if not data:
            return b""
        first += data
    return first


async def _turn_away(stream: trio.abc.Stream) -> None:
    """Ends a connection that speaks nothing we know: politely, or closing would look like a reset."""
    with trio.move_on_after(LINGER_S):
        if isinstance(stream, trio.SocketStream):
            await stream.send_eof()
            while await stream.receive_some(4096):
                pass

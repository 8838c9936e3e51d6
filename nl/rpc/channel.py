"""The client: a channel to one server, with grpclib's `Channel.request()`.

    async with Channel("127.0.0.1:50051") as channel:
        reply = await SomeStub(channel).method(request)

One connection at a time, opened by the first call and again by the next call after it was lost, with back-off; a
server's GOAWAY moves new calls to a new connection while old ones finish. Not here: retrying calls.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import grpclib.const
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.metadata import Deadline

from nl.rpc import hpack
from nl.rpc.client_connection import ClientCall, ClientConnection
from nl.rpc.client_stream import ClientStream
from nl.rpc.options import ChannelOptions
from nl.rpc.transport import SocketTransport, StreamTransport, Transport, take_socket

log = logging.getLogger(__name__)
_SWEEP_S = 1.0

Connect = Callable[[], Awaitable[trio.abc.Stream]]


class Channel:
    """See the module's docstring. Also usable as `nursery.start(channel.run)` instead of `async with`.

    `target` is `host:port`, or a function that opens a trio stream (tests, other transports).
    """

    def __init__(
        self, target: str | Connect, *, tls: ssl.SSLContext | None = None, options: ChannelOptions | None = None
    ) -> None:
        self.options = options or ChannelOptions()
        self._target = target
        self._tls = tls
        self._connection: ClientConnection | None = None
        self._lock = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._manager: Any = None
        self._failures = 0
        self._not_before = 0.0
        authority = self.options.authority or (target if isinstance(target, str) else "localhost")
        scheme = hpack.SCHEME_HTTP if tls is None else hpack.SCHEME_HTTPS
        self._fixed = hpack.encode(
            [
                (b":authority", authority.encode()),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                (b"user-agent", self.options.user_agent.encode()),
                (b"grpc-accept-encoding", b"identity,gzip"),
            ]
        )
        if self.options.send_compression:
            self._fixed += hpack.encode([(b"grpc-encoding", self.options.send_compression.encode())])
        self._start = hpack.METHOD_POST + scheme

    # -- lifetime ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Channel:
        self._manager = trio.open_nursery()
        nursery = await self._manager.__aenter__()
        nursery.start_soon(self._sweep)
        self._nursery = nursery
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        nursery, self._nursery = self._nursery, None
        assert nursery is not None
        nursery.cancel_scope.cancel()
        # the body's error is not the nursery's: no group around it; the nursery has been cancelled, so this is short
        await self._manager.__aexit__(None, None, None)  # noqa: ASYNC102

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The channel's life as a task: usable once started, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._sweep)
            task_status.started()
            await trio.sleep_forever()

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(_SWEEP_S)
            connection = self._connection
            if connection is None or connection.nursery is None:
                continue
            options = self.options
            interval = options.keepalive_interval if connection.streams else None
            reason = connection.check(
                trio.current_time(), interval=interval, timeout=options.keepalive_timeout, stall=options.stall_timeout
            )
            if reason is not None:
                connection.reason = reason
                connection.lost = True
                connection.nursery.cancel_scope.cancel()

    # -- calls -------------------------------------------------------------------------------------------------------

    def request(
        self,
        name: str,
        cardinality: grpclib.const.Cardinality,
        request_type: Any,
        reply_type: Any,
        *,
        timeout: float | None = None,
        deadline: Deadline | None = None,
        metadata: Any = None,
    ) -> ClientStream:
        """A call of method `name` (`/package.Service/Method`), as an async context manager."""
        left = [value for value in (timeout, deadline.time_remaining() if deadline else None) if value is not None]
        expires = trio.current_time() + min(left) if left else None
        return ClientStream(self, name, cardinality, reply_type, expires=expires, metadata=metadata)

    def head(self, name: str, connection: ClientConnection) -> bytes:
        """The header block of a request, up to what differs from call to call."""
        return self._start + hpack.encode_path(name.encode()) + self._fixed

    async def open_call(self) -> ClientCall:
        """A stream on a usable connection, which is opened if there is none."""
        while True:
            connection = self._connection
            if connection is None or not connection.is_usable:
                connection = await self._connected()
            if await connection.take_slot():
                return connection.open_call()

    async def _connected(self) -> ClientConnection:
        async with self._lock:
            connection = self._connection
            if connection is not None and connection.is_usable:
                return connection
            if self._nursery is None:
                raise GRPCError(Status.UNAVAILABLE, "the channel is not open")
            await trio.sleep_until(self._not_before)
            try:
                with trio.fail_after(self.options.connect_timeout):
                    transport = await self._open()
                    connection = ClientConnection(transport, self.options)
                    self._nursery.start_soon(connection.run)
                    try:
                        await connection.ready.wait()
                    except BaseException:  # cancelled, or too slow: nobody else knows of this connection
                        connection.give_up()
                        raise
            except (OSError, trio.TooSlowError, trio.BrokenResourceError, ssl.SSLError) as exc:
                self._failed()
                raise GRPCError(Status.UNAVAILABLE, f"cannot connect to {self._name}: {exc!r}") from exc
            if connection.lost:
                self._failed()
                raise GRPCError(Status.UNAVAILABLE, f"cannot connect to {self._name}: {connection.reason}")
            self._failures = 0
            self._connection = connection
            return connection

    @property
    def _name(self) -> str:
        return self._target if isinstance(self._target, str) else "the server"

    def _failed(self) -> None:
        wait = min(self.options.backoff_max, self.options.backoff_initial * 2**self._failures)
        self._failures = min(self._failures + 1, 30)
        self._not_before = trio.current_time() + wait

    async def _open(self) -> Transport:
        unsent_max = self.options.max_send_buffer
        if not isinstance(self._target, str):
            stream = await self._target()
        elif self._target.startswith("unix:"):
            stream = await trio.open_unix_socket(self._target[5:])
        else:
            host, _, port = self._target.rpartition(":")
            stream = await trio.open_tcp_stream(host.strip("[]"), int(port))
        if self._tls is not None:
            host = (self.options.authority or self._name).rpartition(":")[0].strip("[]") or self._name
            secure = trio.SSLStream(stream, self._tls, server_hostname=host, https_compatible=True)
            try:
                await secure.do_handshake()
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
            return StreamTransport(secure, peer=self._name)
        if isinstance(stream, trio.SocketStream):
            return SocketTransport(take_socket(stream), unsent_max=unsent_max)
        return StreamTransport(stream, peer=self._name)


def connect_pair(server: Any) -> Connect:
    """A `target` for a Channel that reaches a Server over a socket pair: `Channel(connect_pair(server))`.

    The server must be running (`server.serve`, with no listeners if need be).
    """

    async def connect() -> trio.abc.Stream:
        ours, theirs = socket.socketpair()
        server.adopt(theirs)
        return trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    return connect

"""The client: a channel to one service, with grpclib's `Channel.request()`.

    async with Channel("grpc://cache.example:50051") as channel:
        reply = await SomeStub(channel).method(request)

Connections are made by the first call and again when they are lost; which addresses they go to, how many there are and
what happens while there is none is pool.py's business, one call is client_stream.py's.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any

import grpclib.const
import trio
from grpclib.const import Status
from grpclib.metadata import Deadline

from nl.rpc import call_context
from nl.rpc.client_connection import ClientCall
from nl.rpc.client_stream import ClientStream
from nl.rpc.errors import NotProcessed
from nl.rpc.metadata import encode_fields
from nl.rpc.options import ChannelOptions
from nl.rpc.origin import Connect, Endpoint, Origin
from nl.rpc.pool import ChannelStatistics, Pool
from nl.rpc.retry import RetryPolicy

_SWEEP_S = 1.0


class Channel:
    """See the module's docstring. Also usable as `nursery.start(channel.run)` instead of `async with`.

    `target` is text as in target.py (`host:port`, `grpcs://host`, `unix:/path`, ...), a function that opens a trio
    stream, or several Endpoints that offer the same service. ValueError if it is none of these.
    """

    def __init__(
        self,
        target: str | Connect | Sequence[Endpoint],
        *,
        tls: ssl.SSLContext | None = None,
        options: ChannelOptions | None = None,
    ) -> None:
        self.options = options or ChannelOptions()
        endpoints = target if isinstance(target, Sequence) and not isinstance(target, str) else [Endpoint(target, tls)]
        if not endpoints:
            raise ValueError("a channel needs at least one endpoint")
        self._origins = [Origin(endpoint, self.options) for endpoint in endpoints]
        self._pool: Pool | None = None
        self._life: AbstractAsyncContextManager[None] | None = None

    # -- lifetime ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            pool = self._pool = Pool(self._origins, self.options, nursery)
            nursery.start_soon(self._sweep, pool)
            try:
                yield
            except BaseException as exc:  # noqa: ASYNC103, BLE001  # raised below, and with no group around it
                failure = exc
            self._pool = None
            pool.close()
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def __aenter__(self) -> Channel:
        if self._life is not None:
            raise RuntimeError("a channel can be opened once")
        self._life = self._opened()
        await self._life.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._life is not None
        await self._life.__aexit__(kind, error, traceback)  # noqa: ASYNC102  # the nursery has been cancelled: short

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The channel's life as a task: usable once started, until cancelled."""
        async with self:
            task_status.started()
            await trio.sleep_forever()

    async def _sweep(self, pool: Pool) -> None:
        while True:
            await trio.sleep(_SWEEP_S)
            pool.sweep()

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
        wait_for_ready: bool | None = None,
        retry: RetryPolicy | None = None,
    ) -> ClientStream:
        """A call of method `name` (`/package.Service/Method`), as an async context manager.

        What is None is as the options say; headers and a deadline come from the call's context, too (call_context.py).
        ValueError or TypeError for a name or metadata that may not be sent.
        """
        fields = encode_fields(metadata) if metadata else []
        now = trio.current_time()
        ends = [] if timeout is None else [now + timeout]
        if deadline is not None:
            ends.append(now + deadline.time_remaining())
        context = call_context.current()
        if context is not None:
            fields = context.headers_for(fields)
            if context.expires is not None:
                ends.append(context.expires)
        options = self.options
        name.encode()  # a call that has its stream must not fail before the stream has its headers
        if options.call_timeout is not None and timeout is None and deadline is None:
            ends.append(now + options.call_timeout)
        expires = min(ends, default=math.inf)
        return ClientStream(
            self,
            name,
            cardinality,
            reply_type,
            expires=expires if expires < math.inf else None,
            fields=fields,
            wait_for_ready=options.wait_for_ready if wait_for_ready is None else wait_for_ready,
            retry=retry or options.retry,
        )

    def statistics(self) -> ChannelStatistics:
        """A snapshot, of zeros while the channel is not open."""
        return self._pool.statistics() if self._pool is not None else ChannelStatistics()

    async def open_call(self, *, wait_for_ready: bool) -> ClientCall:
        """A stream on a usable connection. NotProcessed if there is none."""
        while True:
            pool = self._pool
            if pool is None:
                raise NotProcessed(Status.UNAVAILABLE, "the channel is not open")
            connection = pool.pick() or await pool.wait_connection(wait_for_ready=wait_for_ready)
            if await connection.take_slot():
                return connection.open_call()

    def count_retry(self) -> None:
        """For the statistics: a call is about to be sent again."""
        if self._pool is not None:
            self._pool.retries += 1

"""What generated services and client stubs stand on: betterproto2's contract, without its event loop.

Stubs work on any channel with grpclib's `request()`. Two things differ from betterproto2's own bases, which are written
for asyncio: an async generator that serves a stream is closed when its call ends, however it ends; and a stub has only
the calls with one reply. A stream of replies lives in a cancel scope, which must not stay open inside of a generator:
for those, and for streams both ways, use `async with channel.request(...)`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any

from grpclib.const import Cardinality

from nl.errors import LocalProtocolError


class ServiceBase:
    """The base of generated services."""

    async def _call_rpc_handler_server_stream(
        self, handler: Callable[[Any], AsyncIterator[Any]], stream: Any, request: Any
    ) -> None:
        async with aclosing(handler(request)) as replies:  # type: ignore[type-var]  # a generator, by its making
            async for reply in replies:
                await stream.send_message(reply)


class ServiceStub:
    """The base of generated clients. Settings given here hold for every call that brings none of its own."""

    def __init__(
        self, channel: Any, *, timeout: float | None = None, deadline: Any = None, metadata: Any = None
    ) -> None:
        self.channel = channel
        self._defaults = {"timeout": timeout, "deadline": deadline, "metadata": metadata}

    def _open(self, route: str, cardinality: Cardinality, *, types: tuple[Any, Any], settings: dict[str, Any]) -> Any:
        chosen = {name: self._defaults[name] if value is None else value for name, value in settings.items()}
        return self.channel.request(route, cardinality, *types, **chosen)

    async def _unary_unary(self, route: str, request: Any, reply_type: Any, **settings: Any) -> Any:
        types = (type(request), reply_type)
        async with self._open(route, Cardinality.UNARY_UNARY, types=types, settings=settings) as stream:
            await stream.send_message(request, end=True)
            return await _only_reply(stream, route)

    async def _stream_unary(
        self, route: str, requests: Any, request_type: Any, reply_type: Any, **settings: Any
    ) -> Any:
        types = (request_type, reply_type)
        async with self._open(route, Cardinality.STREAM_UNARY, types=types, settings=settings) as stream:
            async for request in _each(requests):
                await stream.send_message(request)
            await stream.end()
            return await _only_reply(stream, route)

    def _unary_stream(self, route: str, *_: Any, **__: Any) -> AsyncIterator[Any]:
        raise LocalProtocolError(f"{route} replies with a stream: open it with `async with channel.request(...)`")

    _stream_stream = _unary_stream


async def _only_reply(stream: Any, route: str) -> Any:
    reply = await stream.recv_message()
    if reply is None:
        raise LocalProtocolError(f"{route}: the call ended well and without a reply")
    return reply


async def _each(requests: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[Any]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request

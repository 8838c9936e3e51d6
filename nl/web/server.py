"""The HTTP/1.1 side of a listener: routes to async functions, on h11. Small on purpose: metrics, health, pages.

A route is an async function from `Request` to `Response`, registered under a path (exact, or a prefix that ends in
`/`). Bodies of requests are offered as a reader of chunks, bodies of responses are bytes or an async iterator. Not
here: any page; gRPC (nl.rpc, which hands connections over by calling `HttpServer.serve`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus

import h11
import trio

log = logging.getLogger(__name__)
MAX_HEADERS = 16 * 1024
READ_SIZE = 64 * 1024
_REQUEST_LINE = re.compile(rb"[A-Z]+ (?:/|\*|https?:)")


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one HTTP/1.1 connection may cost. Times in seconds, sizes in bytes."""

    header_timeout: float = 10.0
    idle_timeout: float = 75.0
    """How long a kept-alive connection may wait for its next request."""
    handler_timeout: float = 300.0
    max_body: int = 1 << 20
    """Largest request body, unless the route reads it as a stream."""
    max_requests: int = 1000
    """Requests on one connection before it is closed."""


@dataclass(slots=True)
class Request:
    """One request. `body` yields its bytes as they arrive; what is not read is dropped."""

    method: str
    path: str
    query: str
    headers: Sequence[tuple[bytes, bytes]]
    chunks: AsyncGenerator[bytes, None]
    max_body: int

    async def read(self) -> bytes:
        """The whole body; HttpError 413 if it is larger than the limit."""
        body = bytearray()
        async with aclosing(self.chunks) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > self.max_body:
                    raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body over {self.max_body} bytes")
        return bytes(body)

    def header(self, name: str) -> str | None:
        """The first header of that (lower-case) name."""
        wanted = name.encode("ascii")
        return next((value.decode("latin-1") for key, value in self.headers if key == wanted), None)


@dataclass(slots=True)
class Response:
    """What a route answers. `length` must be given if `body` is an iterator whose length is known."""

    status: int = 200
    body: bytes | AsyncIterator[bytes] = b""
    headers: Sequence[tuple[str, str]] = ()
    content_type: str = "text/plain; charset=utf-8"
    length: int | None = None


Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """A handler and the methods it takes; HEAD comes with GET."""

    handler: Handler
    methods: frozenset[str] = field(default_factory=lambda: frozenset({"GET"}))


class HttpError(Exception):
    """Ends a request with a status and a line of text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class HttpServer:
    """Serves routes on connections that somebody else has accepted."""

    def __init__(self, routes: Mapping[str, Route], *, limits: HttpLimits | None = None) -> None:
        self._exact = dict(routes)
        self._prefixes = sorted((path for path in routes if path.endswith("/")), key=len, reverse=True)
        self._limits = limits or HttpLimits()

    async def serve(self, stream: trio.abc.Stream, first: bytes = b"") -> None:
        """One connection, of which `first` has been read already, until it is closed."""
        connection = _Connection(stream, self._limits)
        if first:
            connection.take(first)
        for count in range(self._limits.max_requests):
            try:
                if not await self._one(connection, last=count + 1 == self._limits.max_requests):
                    return
            except h11.RemoteProtocolError as exc:
                if connection.speaks_http():
                    await connection.refuse(exc.error_status_hint or 400, f"bad request: {exc}")
                return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    async def _one(self, connection: _Connection, *, last: bool) -> bool:
        """One request and its response; whether another may follow."""
        request = await connection.next_request()
        if request is None:
            return False
        with trio.move_on_after(self._limits.handler_timeout) as scope:
            try:
                async with aclosing(request.chunks):
                    response = await self._answer(request)
            except HttpError as exc:
                response = Response(exc.status, exc.text.encode())
            except h11.RemoteProtocolError:
                raise
            except Exception:  # a page that fails takes nothing with it
                log.exception("%s %s failed", request.method, request.path)
                response = Response(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error")
            await connection.respond(response, head=request.method == "HEAD", close=last)
        if scope.cancelled_caught:
            return False
        return await connection.finish()

    async def _answer(self, request: Request) -> Response:
        route = self._exact.get(request.path)
        if route is None:
            prefix = next((each for each in self._prefixes if request.path.startswith(each)), None)
            if prefix is None:
                uri = request.path + (f"?{request.query}" if request.query else "")
                raise HttpError(HTTPStatus.NOT_FOUND, f"No route for {uri}")
            route = self._exact[prefix]
        method = "GET" if request.method == "HEAD" else request.method
        if method not in route.methods:
            allowed = ", ".join(sorted(route.methods | ({"HEAD"} if "GET" in route.methods else set())))
            return Response(HTTPStatus.METHOD_NOT_ALLOWED, f"{request.method} is not one of {allowed}".encode(),
                            headers=[("Allow", allowed)])  # fmt: skip
        return await route.handler(request)


class _Connection:
    """h11's state machine on a trio stream."""

    def __init__(self, stream: trio.abc.Stream, limits: HttpLimits) -> None:
        self.h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADERS)
        self._stream = stream
        self._limits = limits
        self._used = False
        self._head = b""

    def take(self, data: bytes) -> None:
        """Bytes from the client; none at its end."""
        if not self._used and len(self._head) < MAX_HEADERS:
            self._head += data
        self.h11.receive_data(data)

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while True:
            event = self.h11.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self.h11.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            self.take(bytes(await self._stream.receive_some(READ_SIZE)))

    async def _send(self, event: h11.Event) -> None:
        data = self.h11.send(event)
        if data:
            await self._stream.send_all(data)

    async def next_request(self) -> Request | None:
        """The next request's head, or None when there will be none."""
        timeout = self._limits.idle_timeout if self._used else self._limits.header_timeout
        event = None
        with trio.move_on_after(timeout):
            event = await self._event()
        if not isinstance(event, h11.Request):
            return None
        self._used = True
        path, _, query = event.target.decode("latin-1").partition("?")
        headers = [(bytes(key), bytes(value)) for key, value in event.headers]
        return Request(event.method.decode("ascii"), path, query, headers, self._body(), self._limits.max_body)

    async def _body(self) -> AsyncGenerator[bytes, None]:
        while isinstance(event := await self._event(), h11.Data):
            yield bytes(event.data)

    async def respond(self, response: Response, *, head: bool, close: bool) -> None:
        """Sends a response; of an iterator, piece by piece."""
        headers = [("Content-Type", response.content_type), *response.headers]
        if isinstance(response.body, bytes):
            headers.append(("Content-Length", str(len(response.body))))
        elif response.length is not None:
            headers.append(("Content-Length", str(response.length)))
        if close:
            headers.append(("Connection", "close"))
        start = self.h11.send(h11.Response(status_code=int(response.status), headers=headers)) or b""
        if isinstance(response.body, bytes):
            body = b"" if head else self.h11.send(h11.Data(data=response.body)) or b""
            await self._stream.send_all(start + body + (self.h11.send(h11.EndOfMessage()) or b""))
            return
        await self._stream.send_all(start)
        if not head:
            async for chunk in response.body:
                await self._send(h11.Data(data=chunk))
        await self._send(h11.EndOfMessage())

    async def finish(self) -> bool:
        """Drops what is left of the request (a little; more ends the connection); whether it can be used again."""
        dropped = 0
        with trio.move_on_after(self._limits.header_timeout):
            while self.h11.their_state is h11.SEND_BODY and dropped <= self._limits.max_body:
                event = await self._event()
                dropped += len(event.data) if isinstance(event, h11.Data) else 0
        if self.h11.our_state is not h11.DONE or self.h11.their_state is not h11.DONE:
            return False
        self.h11.start_next_cycle()
        return True

    def speaks_http(self) -> bool:
        """Whether what came is like a request line: a broken HTTP/2 preface, say, gets no answer.

        Its sender could not read one (RFC 9113, 3.4: the connection is terminated).
        """
        return self._used or _REQUEST_LINE.match(self._head) is not None

    async def refuse(self, status: int, text: str) -> None:
        """Answers something that was not a request, if that is still possible."""
        if self.h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            try:
                await self.respond(Response(status, text.encode()), head=False, close=True)
            except (trio.BrokenResourceError, trio.ClosedResourceError, h11.LocalProtocolError):
                return

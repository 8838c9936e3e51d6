"""One HTTP/1.1 connection: h11's state machine on a stream, and the times that a client may take.

No time bounds a whole request or response: a large one on a slow line takes long. What ends a connection is that
nothing moves.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus

import h11
import trio

from nl.blob.reader import Buffer
from nl.rpc.transport_stream import READ_SIZE, TransportStream
from nl.web.messages import Request, Response

MAX_HEADERS = 16 * 1024
"""Request line and headers together; 431 beyond."""
SEND_SIZE = 64 * 1024
"""A client that takes less than this in `stall_timeout` is too slow to be served."""
_REQUEST_LINE = re.compile(rb"[A-Z]+ (?:/|\*|https?:)")
_HEAD_KEPT = 32
LINGER_S = 1.0
_BODILESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one HTTP/1.1 connection may cost. Times in seconds, sizes in bytes."""

    header_timeout: float = 10.0
    """For a request's line and headers, from the first byte."""
    idle_timeout: float = 75.0
    """How long a kept-alive connection may wait for its next request."""
    stall_timeout: float = 60.0
    """How long a body may not move while the client is waited for."""
    handler_timeout: float = 300.0
    """How long a route may work without that a byte of the request or the response moves."""
    max_body: int = 1 << 20
    """Largest request body, unless the route reads it as a stream."""
    max_requests: int = 1000
    """Requests on one connection before it is closed."""


class ClientLost(Exception):  # an event rather than an error, as nl.rpc.contract.TransportLost
    """The client has gone, or does not go on."""


class HttpConnection:
    """See the module's docstring. One task at a time."""

    def __init__(self, stream: TransportStream, limits: HttpLimits, *, first: bytes) -> None:
        self.h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADERS)
        self._stream = stream
        self._limits = limits
        self._working: trio.CancelScope | None = None
        self._is_head = False
        self._used = False
        self._head = b""
        if first:
            self._take(first)

    # -- receiving ---------------------------------------------------------------------------------------------------

    async def next_request(self) -> Request | None:
        """The next request's head, or None when there will be none.

        A connection that waits between two requests is woken, and gets None, when the server wants to end.
        """
        if not self.h11.trailing_data[0] and not await self._wait_for_request():
            return None
        event = None
        with trio.move_on_after(self._limits.header_timeout):
            event = await self._event()
        if not isinstance(event, h11.Request):
            return None
        self._used = True
        self._is_head = event.method == b"HEAD"
        path, _, query = event.target.decode("latin-1").partition("?")
        headers = [(bytes(key), bytes(value)) for key, value in event.headers]
        method = event.method.decode("ascii")
        return Request(method, path, query, headers, self._body(), self._limits.max_body, self._stream)

    async def _wait_for_request(self) -> bool:
        data = b""
        with trio.move_on_after(self._limits.idle_timeout), self._stream.leaving.idle():
            data = await self._receive()
        if data:
            self._take(data)
        return bool(data)

    def _take(self, data: bytes) -> None:
        """Bytes from the client; none at its end."""
        if not self._used and len(self._head) < _HEAD_KEPT:
            self._head += data[:_HEAD_KEPT]
        self.h11.receive_data(data)

    async def _receive(self) -> bytes:
        try:
            return await self._stream.receive_some(READ_SIZE)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ClientLost(str(exc)) from exc

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while True:
            event = self.h11.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self.h11.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            with self._in_time():
                data = await self._receive()
            self._take(data)

    async def _body(self) -> AsyncGenerator[bytes, None]:
        while isinstance(event := await self._event(), h11.Data):
            self._has_moved()
            yield bytes(event.data)

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """While the client is waited for."""
        with trio.move_on_after(self._limits.stall_timeout) as scope:
            yield
        if scope.cancelled_caught:
            raise ClientLost(f"nothing has moved for {self._limits.stall_timeout:g} s")

    # -- sending -----------------------------------------------------------------------------------------------------

    def working(self, scope: trio.CancelScope) -> None:
        """`scope` is around a request's handling from now on: its deadline moves with the request."""
        self._working = scope
        self._has_moved()

    def _has_moved(self) -> None:
        if self._working is not None:
            self._working.deadline = trio.current_time() + self._limits.handler_timeout

    async def _send(self, event: h11.Event, *, before: Sequence[Buffer] = ()) -> None:
        await self._send_parts([*before, *self._encode(event)])

    def _encode(self, event: h11.Event) -> list[bytes]:
        """Payload is passed through as it is."""
        return self.h11.send_with_data_passthrough(event) or []

    async def _send_parts(self, parts: Sequence[Buffer]) -> None:
        """Small ones leave together, large ones from where they are."""
        if sum(map(len, parts)) <= SEND_SIZE:
            parts = [b"".join(parts)]
        for part in parts:
            view = memoryview(part)
            self._stream.held += len(view)
            try:
                for start in range(0, len(view), SEND_SIZE):
                    with self._in_time():
                        await self._stream.send_all(view[start : start + SEND_SIZE])
                    self._has_moved()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                raise ClientLost(str(exc)) from exc
            finally:
                self._stream.held -= len(view)

    async def respond(self, response: Response, *, close: bool) -> None:
        """Sends a response; of an iterator, piece by piece. To a HEAD request only what would be its headers."""
        body = response.body
        if isinstance(body, AsyncGenerator):
            async with aclosing(body):
                await self._respond(response, body, close=close)
        else:
            await self._respond(response, body, close=close)

    async def _respond(self, response: Response, body: bytes | AsyncIterator[bytes], *, close: bool) -> None:
        headers = list(response.headers)
        if response.status not in _BODILESS:
            length = len(body) if isinstance(body, bytes) else response.length
            headers.insert(0, ("Content-Type", response.content_type))
            if length is not None:
                headers.append(("Content-Length", str(length)))
        if close or self._stream.leaving.begun:
            headers.append(("Connection", "close"))
        parts = self._encode(h11.Response(status_code=int(response.status), headers=headers))
        is_bare = self._is_head or response.status in _BODILESS
        if isinstance(body, bytes):
            if body and not is_bare:
                parts += self._encode(h11.Data(data=body))
            await self._send(h11.EndOfMessage(), before=parts)
            return
        await self._send_parts(parts)
        if not is_bare:
            async for chunk in body:
                await self._send(h11.Data(data=chunk))
        await self._send(h11.EndOfMessage())

    # -- the end -----------------------------------------------------------------------------------------------------

    async def finish(self) -> bool:
        """Drops what is left of the request (a little; more ends the connection); whether it can be used again."""
        self._working = None
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
        """Whether what came is like a request line: what speaks another protocol could not read an answer."""
        return self._used or _REQUEST_LINE.match(self._head) is not None

    async def refuse(self, status: int, text: str) -> None:
        """Answers something that was not a request, if that is still possible."""
        if self.h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            with suppress(h11.LocalProtocolError):
                await self.respond(Response(status, text.encode()), close=True)

    async def linger(self) -> None:
        """After an answer to what was not read to its end: closing at once would be a reset, and could overtake it."""
        if self.h11.their_state not in (h11.DONE, h11.IDLE, h11.CLOSED):
            with trio.move_on_after(LINGER_S):
                await self._stream.aclose()

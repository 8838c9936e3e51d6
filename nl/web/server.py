"""The HTTP/1.1 side of a listener: routes to async functions, on h11. Small on purpose: metrics, health, pages.

A route is an async function from `Request` to `Response`, registered under a path (exact, or a prefix that ends in
`/`). Bodies of requests are offered as a stream of chunks, bodies of responses are bytes or an async iterator. Not
here: any page; gRPC (nl.rpc, which hands connections over by calling `HttpServer.serve`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import aclosing
from http import HTTPStatus

import h11
import trio

from nl.errors import PermissionDeniedError, UnauthenticatedError, UnavailableError
from nl.rpc.options import Authenticate
from nl.rpc.transport_stream import TransportStream
from nl.web.connection import ClientLost, HttpConnection, HttpLimits
from nl.web.messages import Handler, HttpError, Request, Response, Route

__all__ = ["Handler", "HttpError", "HttpLimits", "HttpServer", "Request", "Response", "Route"]
log = logging.getLogger(__name__)
_CHALLENGES = (("WWW-Authenticate", 'Basic realm="nl", charset="UTF-8"'), ("WWW-Authenticate", 'Bearer realm="nl"'))
"""Maven, for one, sends what it has only when it is asked for Basic."""


class HttpServer:
    """Serves routes on connections that somebody else has accepted."""

    def __init__(
        self,
        routes: Mapping[str, Route],
        *,
        limits: HttpLimits | None = None,
        authenticate: Authenticate | None = None,
    ) -> None:
        """`authenticate` says who asks; None: everybody may do everything."""
        self._exact = dict(routes)
        self._prefixes = sorted((path for path in routes if path.endswith("/")), key=len, reverse=True)
        self._limits = limits or HttpLimits()
        self._authenticate = authenticate

    async def serve(self, stream: TransportStream, first: bytes = b"") -> None:
        """One connection, of which `first` has been read already, until it is to be closed.

        When `stream.leaving` begins, a connection that waits for a request ends at once, any other with its response.
        """
        try:
            await self._serve(HttpConnection(stream, self._limits, first=first))
        except ClientLost as exc:
            log.info("%s: %s", stream.peer, exc)

    async def _serve(self, connection: HttpConnection) -> None:
        for count in range(self._limits.max_requests):
            try:
                if not await self._one(connection, last=count + 1 == self._limits.max_requests):
                    return
            except h11.RemoteProtocolError as exc:
                if connection.speaks_http():
                    await connection.refuse(exc.error_status_hint or 400, f"bad request: {exc}")
                    await connection.linger()
                return

    async def _one(self, connection: HttpConnection, *, last: bool) -> bool:
        """One request and its response; whether another may follow."""
        request = await connection.next_request()
        if request is None:
            return False
        with trio.CancelScope() as scope:
            connection.working(scope)
            try:
                async with aclosing(request.chunks):
                    self._identify(request)
                    response = await self._answer(request)
            except HttpError as exc:
                response = Response(exc.status, exc.text.encode())
            except UnauthenticatedError as exc:
                response = Response(HTTPStatus.UNAUTHORIZED, exc.message.encode(), _CHALLENGES)
            except UnavailableError as exc:
                response = Response(HTTPStatus.SERVICE_UNAVAILABLE, exc.message.encode(), (("Retry-After", "5"),))
            except PermissionDeniedError as exc:
                response = Response(HTTPStatus.FORBIDDEN, exc.message.encode())
            except (h11.RemoteProtocolError, ClientLost):
                raise  # met in the request's body
            except Exception:  # a page that fails takes nothing with it
                log.exception("%s %s failed", request.method, request.path)
                response = Response(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error")
            await connection.respond(response, close=last)
        if scope.cancelled_caught:
            log.warning("%s %s has not moved for %g s", request.method, request.path, self._limits.handler_timeout)
            return False
        if await connection.finish():
            return True
        await connection.linger()
        return False

    def _identify(self, request: Request) -> None:
        """Puts into the request who asks. Raises UnauthenticatedError, or UnavailableError."""
        if self._authenticate is None:
            return
        given = [value for name, value in request.headers if name == b"authorization"]
        if len(given) > 1:
            raise HttpError(HTTPStatus.BAD_REQUEST, "there is more than one authorization header")
        header = given[0] if given else None
        request.identity = self._authenticate(request.peer, request.certificate, header)

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

"""What a route sees and what it answers: pure values, and the body of a request as a stream of chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus

from nl.model.access import EVERYONE, Identity, PeerCertificate
from nl.rpc.transport_stream import TransportStream


@dataclass(slots=True)
class Request:
    """One request. `chunks` yields its body as it arrives; what is not read is dropped."""

    method: str
    path: str
    query: str
    headers: Sequence[tuple[bytes, bytes]]
    """Names in lower case."""
    chunks: AsyncGenerator[bytes, None]
    max_body: int
    stream: TransportStream
    """Whence it came. Only its properties are a route's business."""
    identity: Identity = EVERYONE
    """Who asks. `identity.require(right, instance)` before anything is done for it: its errors are 401 and 403."""

    @property
    def peer(self) -> str:
        """The client's address, for logs."""
        return self.stream.peer

    @property
    def certificate(self) -> PeerCertificate | None:
        """The client's verified certificate, if it has shown one."""
        return self.stream.certificate

    async def read(self) -> bytes:
        """The whole body; HttpError 413 if it is larger than the limit.

        While it is being read it counts among what the listener holds for its clients.
        """
        body = bytearray()
        try:
            async with aclosing(self.chunks) as chunks:
                async for chunk in chunks:
                    body += chunk
                    self.stream.held += len(chunk)
                    if len(body) > self.max_body:
                        raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body over {self.max_body} bytes")
        finally:
            self.stream.held -= len(body)
        return bytes(body)

    def header(self, name: str) -> str | None:
        """The first header of that (lower-case) name."""
        wanted = name.encode("ascii")
        return next((value.decode("latin-1") for key, value in self.headers if key == wanted), None)


@dataclass(slots=True)
class Response:
    """What a route answers. `length` must be given if `body` is an iterator whose length is known.

    *Ownership*: a body that is an async generator is closed by the server, also when none of it was sent.
    """

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

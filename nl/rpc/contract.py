"""What a gRPC handler sees. A superset of grpclib's server stream, so that generated services run unchanged.

A service is an object with grpclib's `__mapping__() -> {"/pkg.Service/Method": grpclib.const.Handler}`; a handler's
`func(stream)` gets one `ServerStream`. `request_type` and `reply_type` are betterproto2 message classes, or any class
with `decode(data) -> Self` (request; called on the loop, so it does little) and `encode_parts() -> list[Buffer]`
(reply): see `nl.pb.codec`. A request class may have a `max_message_size`: its method takes messages of that size, if
the server's own limit is lower.

A handler ends a call by returning (status OK) or by raising: `NlError` and `grpclib.GRPCError` become their status,
anything else is INTERNAL, logged with its traceback, and never takes the connection down. It runs in a cancel scope
that the deadline (`grpc-timeout`), RST_STREAM and a lost connection cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import grpclib.const
from grpclib.metadata import Deadline
from multidict import MultiDict

from nl.blob.reader import Buffer, Reader
from nl.model.access import Identity

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class TransportLost(Exception):  # an event rather than an error: peers leave all the time
    """The other side is gone, or the socket is closed."""


class MessageBody(Reader):
    """One inbound message whose bytes are taken as they arrive: `size` is its length on the wire (uncompressed).

    The buffers are views of the connection's receive buffer, valid until the next `receive_parts`; flow-control credit
    returns as they are consumed. A stream that ends inside of the message raises InvalidRequestError.
    """


class ServerStream(Protocol, Generic[Req, Rep]):
    """One call, seen from its handler. One task at a time in each direction."""

    method: str
    """Full path, `/package.Service/Method`."""
    peer: str
    """`host:port` of the client, for logs."""
    deadline: Deadline | None
    identity: Identity
    """Who asks. `identity.require(right, instance)` before anything is done for it."""

    @property
    def metadata(self) -> MultiDict[str | bytes]:
        """Request metadata, decoded on first use; `-bin` values are bytes, and one that is not base64 spoils them all:
        whoever wants a single header asks for it by `header`.
        """

    def header(self, name: str) -> str | bytes | None:
        """The first request header of that (lower-case) name, decoded; None if there is none. Others are not looked at.

        Raises InvalidRequestError if it is binary (`-bin`) and not base64.
        """

    async def recv_message(self) -> Req | None:
        """The next message, or None when the client has half-closed. Malformed ones raise InvalidRequestError."""

    def __aiter__(self) -> ServerStream[Req, Rep]: ...

    async def __anext__(self) -> Req: ...

    async def receive_body(self) -> MessageBody | None:
        """The next message as a reader over its encoded bytes, undecoded; None when the client has half-closed.

        The body must be read to its end, or the call be ended, before the next receive.
        """

    def take_body(self, max_bytes: int) -> bytes | None:
        """The same message as one object, if all of it is here in one piece and has at most so many bytes; None says
        nothing else than that `receive_body` is to be asked.
        """

    def keep(self, count: int) -> None:
        """So many bytes that the client has caused are with the handler now: for the bound of what all clients make the
        listener hold (`max_held`). Each call replaces the count of the one before; the end of the handler ends it.
        What is read, and what is sent, is counted without this.
        """

    def probe(self) -> float:
        """Asks the peer's end of the connection for a sign of life; returns when there was one last, by the loop's
        clock. It tells that the process answers, not that its handler does.
        """

    async def send_initial_metadata(self, *, metadata: Any = None) -> None: ...

    async def send_message(self, message: Rep) -> None:
        """Encodes and sends. On a unary reply it leaves together with headers and trailers, in one write.
        Returns when the bytes may be changed by the caller (they are in the kernel or copied).
        """

    async def send_parts(self, parts: Sequence[Buffer]) -> None:
        """Sends one message that is already encoded, without copying. Same promise as `send_message`."""

    @property
    def send_credit(self) -> int:
        """How many bytes the peer's flow-control windows allow now; 0 or less for none."""

    async def wait_send_credit(self) -> int:
        """Waits until the peer's flow-control windows allow some bytes; how many. So that whoever reads from disk for
        a slow client reads no more than can leave.
        """

    async def send_trailing_metadata(
        self,
        *,
        status: grpclib.const.Status = grpclib.const.Status.OK,
        status_message: str | None = None,
        status_details: Any = None,
        metadata: Any = None,
    ) -> None: ...

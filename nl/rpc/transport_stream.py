"""A transport as a trio stream, for protocols that want one: HTTP/1.1."""

from __future__ import annotations

from collections.abc import Callable

import trio

from nl.blob.reader import Buffer
from nl.model.access import PeerCertificate
from nl.rpc.contract import TransportLost
from nl.rpc.leaving import Leaving
from nl.rpc.transport import Transport

READ_SIZE = 64 * 1024


class TransportStream(trio.abc.Stream):
    """Sends and receives on `transport`; closing it closes that. A lost connection is trio.BrokenResourceError."""

    def __init__(self, transport: Transport, *, leaving: Leaving | None = None) -> None:
        self._transport = transport
        self.leaving = leaving or Leaving()
        """Begins when the server wants its connections to end."""
        self._held = 0
        self.on_held: Callable[[], object] = _nothing
        """Called when `held` has changed."""

    @property
    def held(self) -> int:
        """Bytes that whoever serves this has in memory for the peer, for the bound that all connections share."""
        return self._held

    @held.setter
    def held(self, count: int) -> None:
        self._held = count
        self.on_held()

    @property
    def peer(self) -> str:
        """`Transport.peer`."""
        return self._transport.peer

    @property
    def certificate(self) -> PeerCertificate | None:
        """`Transport.certificate`."""
        return self._transport.certificate

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some bytes, none at the end."""
        buffer = memoryview(bytearray(min(max_bytes or READ_SIZE, READ_SIZE)))
        try:
            while True:
                await self._transport.wait_readable()
                count = self._transport.try_recv_into(buffer)
                if count >= 0:
                    return bytes(buffer[:count])
        except TransportLost as exc:
            raise trio.BrokenResourceError(str(exc)) from exc

    async def send_all(self, data: Buffer) -> None:
        """Sends everything.

        *Cancellation*: a part may be out, and nothing more can be sent after it.
        """
        view = memoryview(data)
        await trio.lowlevel.checkpoint()
        try:
            while view:
                view = view[await self._transport.send(view) :]
        except TransportLost as exc:
            raise trio.BrokenResourceError(str(exc)) from exc

    async def wait_send_all_might_not_block(self) -> None:
        """Until the transport takes something."""
        await self._transport.wait_writable()

    async def aclose(self) -> None:
        """Ends the sending side, waits for the peer to end its own, and closes."""
        try:
            await self._transport.linger()
        except TransportLost:
            pass  # it has gone first
        finally:
            self._transport.close()


def _nothing() -> None:
    pass

"""TLS on a socket of our own: OpenSSL reads from it and writes to it directly, without buffers in between.

What arrives is decrypted into the connection's receive buffer, what leaves is encrypted from its queue: no stream, no
memory BIO, nothing that a silent connection would keep besides OpenSSL's own state. Contexts: tls.py.

Rule for this file: OpenSSL may have encrypted the beginning of what it says that it could not send. After a send that
took less than everything, the next one begins with the same bytes (`Transport.try_send` demands that of its callers).
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress

import trio

from nl.blob.reader import Buffer
from nl.rpc.contract import TransportLost
from nl.rpc.tls import peer_certificate
from nl.rpc.transport import SocketTransport

SEND_SIZE = 64 * 1024
"""OpenSSL says how much it has sent when all of it is out, so this is how often progress shows."""
_NOT_NOW = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError, InterruptedError)


class TlsTransport(SocketTransport):
    """A connected socket that speaks TLS. `handshake` must have returned before anything else is called."""

    __slots__ = ()

    inline = False
    _sock: ssl.SSLSocket

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, *, unsent_max: int, server_hostname: str | None = None
    ) -> None:
        """As a server, or as a client if `server_hostname` is given. *Ownership*: the socket, also when this raises."""
        try:
            sock.setblocking(False)
            secure = context.wrap_socket(
                sock,
                server_side=server_hostname is None,
                server_hostname=server_hostname,
                do_handshake_on_connect=False,
            )
        except BaseException:
            sock.close()
            raise
        super().__init__(secure, unsent_max=unsent_max)

    async def handshake(self) -> None:
        """Speaks TLS's first words. TransportLost, with OpenSSL's reason, if that fails; the socket is closed then.

        *Cancellation*: the transport is of no use any more and must be closed.
        """
        try:
            while True:
                try:
                    self._sock.do_handshake()
                except ssl.SSLWantReadError:
                    await trio.lowlevel.wait_readable(self._sock)
                except ssl.SSLWantWriteError:
                    await trio.lowlevel.wait_writable(self._sock)
                else:
                    self.certificate = peer_certificate(self._sock.getpeercert())
                    return
        except OSError as exc:
            self.close()
            raise TransportLost(f"TLS handshake: {exc}") from exc

    @property
    def alpn(self) -> str | None:
        """The protocol that both sides have agreed upon, if they have spoken of it."""
        return self._sock.selected_alpn_protocol()

    async def wait_readable(self) -> None:
        if self._sock.pending():  # decrypted already: the socket itself may have nothing more
            await trio.lowlevel.checkpoint()
        else:
            await super().wait_readable()

    def try_recv_into(self, view: memoryview) -> int:
        """As many TLS records (of 16 KiB at most) as there are and as fit."""
        total = 0
        try:
            while total < len(view):
                count = self._sock.recv_into(view[total:])
                if not count:
                    return total
                total += count
        except _NOT_NOW:
            return total or -1
        except OSError as exc:
            raise TransportLost(str(exc)) from exc
        return total

    def try_send(self, parts: Sequence[Buffer]) -> int:
        data = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
        total = 0
        try:
            while total < len(data):
                total += self._sock.send(data[total : total + SEND_SIZE])
        except _NOT_NOW:
            return total
        except OSError as exc:
            raise TransportLost(str(exc)) from exc
        return total

    async def linger(self) -> None:
        with suppress(OSError, ValueError):  # our close_notify is out, if it fits; the peer's is of no interest
            self._sock.unwrap()
        await super().linger()

"""The bytes below a connection: a socket driven by hand, without a hop through trio while it is ready.

Not here: TLS (tls_transport.py), accepting (accepting.py, server.py).
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress

import trio

from nl.blob.reader import Buffer
from nl.model.access import PeerCertificate
from nl.rpc.contract import TransportLost

_SEND_ERRORS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
_CHUNK = 64 * 1024
_COUNT = struct.Struct("i")
_CREDENTIALS = struct.Struct("iII")  # struct ucred: see unix(7), SO_PEERCRED


class Transport(ABC):
    """One duplex byte pipe. One task reads; sends never overlap."""

    __slots__ = ("certificate", "peer")

    inline = False
    """Whether large payloads are sent from the caller's own buffers, which may be changed after a cancelled send."""
    peer: str
    """Where the other side is, for logs: `host:port`, or what there is for other kinds of sockets."""
    certificate: PeerCertificate | None
    """What a TLS client has proved to be; None without TLS, and if it was not asked or had nothing to show."""

    @abstractmethod
    async def wait_readable(self) -> None:
        """Until `try_recv_into` is worth trying."""

    @abstractmethod
    def try_recv_into(self, view: memoryview) -> int:
        """Reads what is there; 0 at the end, -1 if nothing is there yet."""

    @abstractmethod
    def try_send(self, parts: Sequence[Buffer]) -> int:
        """Sends what fits without waiting; how many bytes.

        If that is not all, the next send begins with what is left, unless this is `inline`: TLS cannot take it back.
        """

    @abstractmethod
    async def send(self, data: Buffer) -> int:
        """Sends some bytes, waiting until at least one is taken; how many."""

    @abstractmethod
    async def wait_writable(self) -> None:
        """Until `try_send` is worth trying again."""

    def on_its_way(self) -> int:
        """Bytes that were sent and that the other side's machine does not have yet; 0 where that cannot be told."""
        return 0

    @abstractmethod
    async def linger(self) -> None:
        """Ends the sending side and waits for the peer to close, so that what was sent last is not lost to a reset."""

    @abstractmethod
    def close(self) -> None:
        """Closes at once. Whoever waits gets TransportLost."""


class SocketTransport(Transport):
    """A connected, non-blocking stream socket of our own."""

    __slots__ = ("_sock",)

    inline = True

    def __init__(self, sock: socket.socket, *, unsent_max: int) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.peer = describe_peer(sock)
        self.certificate = None
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(OSError, AttributeError):  # trio sets 16 KiB, which wakes a sender for every frame
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent_max)

    async def wait_readable(self) -> None:
        self._raise_if_closed()
        try:
            await trio.lowlevel.wait_readable(self._sock)
        except (OSError, trio.ClosedResourceError) as exc:
            raise TransportLost(str(exc)) from exc

    def try_recv_into(self, view: memoryview) -> int:
        try:
            return self._sock.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return -1
        except OSError as exc:
            raise TransportLost(str(exc)) from exc

    def try_send(self, parts: Sequence[Buffer]) -> int:
        try:
            return self._sock.sendmsg(parts) if len(parts) > 1 else self._sock.send(parts[0])
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            raise TransportLost(str(exc)) from exc

    async def wait_writable(self) -> None:
        self._raise_if_closed()
        try:
            await trio.lowlevel.wait_writable(self._sock)
        except (OSError, trio.ClosedResourceError) as exc:
            raise TransportLost(str(exc)) from exc

    def _raise_if_closed(self) -> None:
        """The loop takes a closed socket for a file descriptor of -1, and is not the same afterwards."""
        if self._sock.fileno() < 0:
            raise TransportLost("the connection is closed")

    async def send(self, data: Buffer) -> int:
        while not (count := self.try_send((data,))):
            await self.wait_writable()
        return count

    def on_its_way(self) -> int:
        try:
            return int(_COUNT.unpack(fcntl.ioctl(self._sock.fileno(), termios.TIOCOUTQ, bytes(_COUNT.size)))[0])
        except (OSError, ValueError):  # closed, or not Linux
            return 0

    async def linger(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            raise TransportLost(str(exc)) from exc
        trash = memoryview(bytearray(16_384))
        while self.try_recv_into(trash):
            await self.wait_readable()

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()


class StreamTransport(Transport):
    """A trio stream that somebody else has opened. Only one task sends, and is never cancelled halfway."""

    __slots__ = ("_ended", "_stream", "_unread")

    def __init__(self, stream: trio.abc.Stream, *, peer: str) -> None:
        self._stream = stream
        self._unread = memoryview(b"")
        self._ended = False
        self.peer = peer
        self.certificate = None

    async def wait_readable(self) -> None:
        if self._unread or self._ended:
            await trio.lowlevel.checkpoint()
            return
        try:
            data = await self._stream.receive_some(_CHUNK)
        except _SEND_ERRORS as exc:
            raise TransportLost(str(exc)) from exc
        self._unread = memoryview(data)
        self._ended = not data

    def try_recv_into(self, view: memoryview) -> int:
        if not self._unread:
            return 0 if self._ended else -1
        count = min(len(view), len(self._unread))
        view[:count] = self._unread[:count]
        self._unread = self._unread[count:]
        return count

    def try_send(self, parts: Sequence[Buffer]) -> int:
        return 0

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send(self, data: Buffer) -> int:
        data = memoryview(data)[:_CHUNK]
        try:
            await self._stream.send_all(data)
        except _SEND_ERRORS as exc:
            raise TransportLost(str(exc)) from exc
        return len(data)

    async def linger(self) -> None:
        try:
            await self._stream.aclose()
        except _SEND_ERRORS as exc:
            raise TransportLost(str(exc)) from exc

    def close(self) -> None:
        stream = self._stream
        if isinstance(stream, trio.SocketStream):
            stream.socket.close()
        elif isinstance(stream, trio.StapledStream):
            for half in (stream.send_stream, stream.receive_stream):
                if hasattr(half, "close"):
                    half.close()


def describe_peer(sock: socket.socket | trio.socket.SocketType) -> str:
    """`host:port`; of a unix socket who is at the other end, which the kernel knows; "unknown" if nobody is."""
    try:
        if sock.family == socket.AF_UNIX:
            pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            return f"unix:uid={uid},pid={pid}"
        host, port = sock.getpeername()[:2]
    except OSError:
        return "unknown"
    host = host.removeprefix("::ffff:") if "." in host else host  # IPv4 on a socket that takes both
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

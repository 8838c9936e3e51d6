"""One connection of a server in one process: its client is made by hand, its clock is the test's."""

import socket
from contextlib import asynccontextmanager

import trio
from grpclib.const import Cardinality, Handler

from nl.rpc import frames as fr
from nl.rpc.held import Held
from nl.rpc.hpack import HeaderDecoder
from nl.rpc.method import table_of
from nl.rpc.options import ServerOptions
from nl.rpc.server import Server
from nl.rpc.server_connection import ServerConnection
from nl.rpc.transport import SocketTransport
from tests.wire.raw_h2 import RawClient


class Handlers:
    """A service of such methods: name -> handler, or (handler, cardinality)."""

    def __init__(self, **handlers):
        self.handlers = handlers

    def __mapping__(self):
        found = {}
        for name, each in self.handlers.items():
            func, kind = each if isinstance(each, tuple) else (each, Cardinality.UNARY_UNARY)
            found[f"/t.S/{name}"] = Handler(func, kind, bytes, bytes)
        return found


class Client(RawClient):
    """Its other end is a socket pair's."""

    def __init__(self, stream):
        super().__init__(stream)
        self.opened.remove(stream)
        self.decoder = HeaderDecoder(max_list_size=1 << 20)

    async def settled(self):
        """Everything sent so far has been looked at, and what handlers had to say to it at once is here."""
        for _ in range(2):
            await super().settled()

    async def ending(self, sid):
        """What becomes of a call: its fields (of headers and trailers), its DATA, and the code of a reset or None."""
        fields, data = {}, b""
        with trio.fail_after(20):
            while (frame := await self.frame()) is not None:
                kind, flags, of, payload = frame
                if kind == fr.HEADERS:  # every block is decoded, whosever it is
                    found = {name.decode(): value for name, value, _, _ in self.decoder.decode(payload)}
                if of != sid:
                    continue
                if kind == fr.RST_STREAM:
                    return fields, data, fr.ErrorCode(fr.U32.unpack(payload)[0])
                if kind == fr.HEADERS:
                    earlier = any(each[0] == fr.HEADERS and each[2] == sid for each in self.seen[:-1])
                    assert (":status" in found) is not earlier, "the response's headers come first, and once"
                    fields |= found
                elif kind == fr.DATA:
                    data += payload
                if flags & fr.END_STREAM and kind in (fr.HEADERS, fr.DATA):
                    return fields, data, None
        return fields, data, "the end"

    async def status(self, sid):
        """grpc-status and grpc-message of a call."""
        fields, _, _ = await self.ending(sid)
        return int(fields["grpc-status"]), fields.get("grpc-message", b"").decode()


@asynccontextmanager
async def served(service, *, options=None, settings=None, hello=True):
    """(connection, client) while the connection lasts; `connection.over` is set at its end."""
    ours, theirs = socket.socketpair()
    options = options or ServerOptions()
    transport = SocketTransport(ours, unsent_max=options.max_send_buffer)
    connection = Watched(transport, table_of([service]), options=options, held=Held(options.max_held))
    client = Client(trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.watch)
        if hello:
            await client.send(fr.PREFACE[:0] + fr.settings(settings or {}))
            await client.settled()
        try:
            yield connection, client
        finally:
            client.stream.socket.close()
            nursery.cancel_scope.cancel()


class Watched(ServerConnection):
    """Says when it is over."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.over = trio.Event()

    async def watch(self):
        try:
            await self.run()
        finally:
            self.over.set()


def nothing_is_left_of(connection):
    """Of its calls: no stream, task, place in a line, credit, buffer or memory."""
    h2 = connection.h2
    assert (dict(h2.streams), h2.winding_down, dict(h2.blocked), dict(h2._starved)) == ({}, 0, {}, {})
    assert (connection._running, list(connection._ready)) == ({}, [])
    assert (connection.held_back, connection._need_room, connection.pinned) == ({}, {}, 0)
    window = h2.recv_window
    assert window.left + window.owed == window.size
    assert connection.inbox.kept_bytes() == 0
    assert connection.held_bytes() == connection.outbox.size == 0


@asynccontextmanager
async def serving(*services, **kwargs):
    """(server, address) of a whole server on a unix socket: what is sent there has arrived, so a clock may jump."""
    server = Server(services, **kwargs)
    listener = unix_listener()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, [listener])
        try:
            yield server, listener.socket.getsockname()
        finally:
            nursery.cancel_scope.cancel()


def unix_listener():
    """Listens at an address that the kernel has chosen."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("")
    sock.listen(100)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def connected(address):
    """A client of that server, which has said nothing yet."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return Client(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))

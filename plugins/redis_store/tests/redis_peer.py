"""Redis servers in memory, at the other end of streams: for tests of what goes in which trip, to whom, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import hiredis
import trio
import trio.testing

from nl.plugin import TransientError
from nl_redis_store.addresses import Address
from nl_redis_store.connection import Command, Connection, Reply
from nl_redis_store.topology import Dialer

CLOSE, SILENCE = object(), object()
"""In place of a reply: the server ends the connection, or says nothing more on it."""


def resp(reply: object) -> bytes:
    """A reply on the wire; an exception is an error reply."""
    if isinstance(reply, Exception):
        return b"-%b\r\n" % str(reply).encode()
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, list):
        return b"*%d\r\n" % len(reply) + b"".join(map(resp, reply))
    return b"$-1\r\n" if reply is None else b"$%d\r\n%b\r\n" % (len(reply), reply)  # type: ignore[arg-type]


class Peer:
    """A server. `trips` are the commands that came in, those of one pipeline together."""

    def __init__(
        self, nursery: trio.Nursery, port: int = 1, *, answer: Callable[[Command], object] | None = None
    ) -> None:
        self.address = Address(host="peer", port=port)
        self.answer = answer or (lambda command: b"OK")
        self.trips: list[list[Command]] = []
        self.connections = 0
        """Made so far."""
        self.open = 0
        self.held = trio.Event()
        """No command is answered before it is set."""
        self.held.set()
        self._nursery = nursery

    async def connect(self) -> Connection:
        ours, theirs = trio.testing.memory_stream_pair()
        self.connections += 1
        self.open += 1
        self._nursery.start_soon(self._serve, theirs)
        return _Noted(ours, self)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        reader = hiredis.Reader()
        try:
            while data := await stream.receive_some():
                reader.feed(bytes(data))
                while (command := reader.gets()) is not False:
                    await self.held.wait()
                    reply = self.answer(tuple(command))
                    if reply is CLOSE:
                        return
                    if reply is not SILENCE:
                        await stream.send_all(resp(reply))
        except trio.BrokenResourceError:
            pass  # the client has gone
        finally:
            self.open -= 1
            await trio.aclose_forcefully(stream)

    def took(self) -> list[int]:
        """How many commands there were in each trip since the last time."""
        sizes = [len(trip) for trip in self.trips]
        self.trips.clear()
        return sizes


class _Noted(Connection):
    def __init__(self, stream: trio.abc.Stream, peer: Peer) -> None:
        super().__init__(stream, peer.address)
        self._peer = peer

    async def exchange(self, commands: Sequence[Command]) -> list[Reply]:
        self._peer.trips.append(list(commands))
        return await super().exchange(commands)


@dataclass(frozen=True, slots=True)
class InMemory(Dialer):
    """Leads to peers; who is none of them cannot be reached."""

    peers: dict[Address, Peer] = field(default_factory=dict)

    async def dial(self, address: Address) -> Connection:
        if address not in self.peers:
            raise TransientError(f"cannot connect to {address}")
        return await self.peers[address].connect()


def dialer(*peers: Peer, connections: int = 1, timeout_s: float = 30) -> InMemory:
    return InMemory(
        tuple(peer.address for peer in peers), connect_timeout_s=3, command_timeout_s=timeout_s,
        connections=connections, tls=None, peers={peer.address: peer for peer in peers},
    )

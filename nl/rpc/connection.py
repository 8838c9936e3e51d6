"""A connection on trio, either side: bytes from the transport into the HTTP/2 state, and what that has to say back out.

`Connection` puts the parts together: receive buffers (arena.py), frames and states (h2/), the sending side (outbox.py).
It owns no task but the outbox's writer; whoever runs the connection calls `pump` when the transport is readable, and
flushes after that.
"""

from __future__ import annotations

import trio

from nl.rpc import frames as fr
from nl.rpc.arena import ARENA_SIZE, Arena, Inbox
from nl.rpc.contract import TransportLost
from nl.rpc.frames import ConnectionFault, ErrorCode
from nl.rpc.h2.limits import Limits
from nl.rpc.h2.protocol import H2Connection, NoRole
from nl.rpc.h2.reader import FrameReader
from nl.rpc.outbox import Outbox, Socket
from nl.rpc.transport import Transport

MAX_QUEUED = 8 << 20
"""Above this many queued bytes, the peer is one that asks and does not read: the connection ends."""
LINGER_S = 0.3
"""How long the peer may take to close after our last words: a round trip or two. A stop takes as long."""


class Connection(NoRole):
    """See the module's docstring. Also the `Role` behind its HTTP/2 state."""

    __slots__ = (
        "__weakref__", "born", "h2", "heard", "inbox", "nursery", "outbox", "ping_sent", "pinned", "reader",
        "transport",
    )  # fmt: skip

    def __init__(self, transport: Transport, limits: Limits, *, client: bool = False) -> None:
        self.transport = transport
        self.outbox = Outbox(transport, on_room=self.on_room)
        self.h2 = H2Connection(limits, self, emit=self.outbox.add, client=client)
        self.reader = FrameReader(self.h2)
        self.inbox = Inbox()
        self.born = self.heard = self.outbox.progress = self.h2.now = trio.current_time()
        self.ping_sent: float | None = None
        self.pinned = 0
        """Bytes of its calls' messages that are here in part, or not sent yet."""
        self.nursery: trio.Nursery | None = None

    @property
    def lost(self) -> bool:
        """Whether the transport is gone."""
        return self.outbox.lost

    # -- reading -----------------------------------------------------------------------------------------------------

    def pump(self) -> bool:
        """Reads once and parses; whether there may be more to read right away. TransportLost at the end."""
        inbox, h2 = self.inbox, self.h2
        if self.reader.paused:  # `compact` may have put what is left aside meanwhile
            return self._parse(inbox.current or inbox.for_reading(h2.now, h2.streams.values()))
        arena = inbox.for_reading(h2.now, h2.streams.values())
        count = self.transport.try_recv_into(arena.view[arena.fill :])
        if count <= 0:
            inbox.rest(h2.streams.values())
            if not count:
                raise TransportLost("closed by the peer")
            return False
        self.heard = h2.now = trio.current_time()
        arena.fill += count
        return self._parse(arena)

    def _parse(self, arena: Arena) -> bool:
        inbox, reader = self.inbox, self.reader
        inbox.parsed = reader.receive(arena.view, start=inbox.parsed, end=arena.fill, owner=arena)
        if self.outbox.size > MAX_QUEUED:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "answers are not read")
        return reader.paused or arena.fill == ARENA_SIZE

    def rest(self) -> None:
        """Called before waiting for input."""
        if self.inbox.current is not None:
            self.inbox.rest(self.h2.streams.values())

    # -- what the HTTP/2 state reports -------------------------------------------------------------------------------

    def on_ping_ack(self, payload: bytes) -> None:
        """The peer lives."""
        self.ping_sent = None

    def on_room(self) -> None:
        """The queue of what is to be sent has room again."""

    # -- time and the end ----------------------------------------------------------------------------------------

    def on_pinned(self) -> None:
        """More is pinned than before."""

    def held_bytes(self) -> int:
        """What is here for this peer, and only its reading, writing or going will free, in a few steps.

        DATA that is not consumed yet is what its window lacks, and that of a frame whose rest is on its way.
        """
        window = self.h2.recv_window
        return self.outbox.size + self.inbox.kept_bytes() + self.pinned + window.size - window.left - window.owed

    def check(self, now: float, *, interval: float | None, timeout: float, stall: float) -> str | None:
        """Called every now and then: sends keepalive PINGs; why this connection should be given up, or None."""
        outbox = self.outbox
        if outbox.lost:
            return "connection lost"
        if outbox.socket is Socket.TAKEN and now - outbox.progress > stall:
            return f"the peer has read nothing for {stall:g} s"
        self.inbox.compact(now, self.h2.streams.values())
        outbox.dismiss_idle_writer()
        self.h2.wake_next()
        if self.ping_sent is not None:
            if self.heard >= self.ping_sent:
                self.ping_sent = None
            elif now - self.ping_sent > timeout:
                return f"no answer to a keepalive PING within {timeout:g} s"
        elif interval is not None and now - self.heard >= interval:
            self.ping_sent = now
            outbox.add(fr.ping(b"nl-alive"))
            outbox.flush()
        return None

    async def say_goodbye(self, code: ErrorCode, reason: str = "") -> None:
        """GOAWAY, and a little patience for it to arrive."""
        with trio.move_on_after(LINGER_S, shield=True):
            try:
                self.h2.goaway(code, reason)
                await self.outbox.drain()
                await self.transport.linger()
            except TransportLost:
                pass

    def close(self) -> None:
        """The end: closes the transport, and opens every circle, so that the memory is free when this is."""
        self.outbox.lose()
        self.outbox.nursery = self.nursery = None
        self.transport.close()
        self.h2.end()
        self.reader.end()
        self.inbox.close()
        self.outbox.on_room = _nothing


def _nothing() -> None:
    pass

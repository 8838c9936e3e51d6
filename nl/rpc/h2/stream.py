"""One stream: its state, and the DATA that has arrived and is not consumed yet. Pure."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from nl.rpc import frames as fr
from nl.rpc.flow import ReceiveWindow
from nl.rpc.hpack import Field

if TYPE_CHECKING:
    from nl.rpc.h2.protocol import H2Connection

_MERGE_BELOW = 1024
_MERGED_MAX = 16_384


class Owner:
    """Counts the bytes of one receive buffer that somebody still holds views of."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = 0

    def release(self, count: int) -> None:
        """So many bytes are no longer referred to."""
        self.held -= count


Chunk = tuple[memoryview, Owner | None]


class Stream:
    """State of one stream. What answers requests, or waits for answers, derives from it and gets the `on_*` calls."""

    __slots__ = (
        "chunks", "content_left", "h2", "headers_sent", "held", "recv_closed", "recv_window", "reset_code",
        "send_closed", "sid", "window_delta",
    )  # fmt: skip

    def __init__(self, h2: H2Connection, sid: int) -> None:
        self.h2 = h2
        self.sid = sid
        self.recv_closed = False
        self.send_closed = False
        self.headers_sent = False
        self.reset_code: int | None = None
        self.window_delta = 0
        """What WINDOW_UPDATEs have added to this stream's window less what was sent: the window itself is the
        connection's `peer_initial_window` more, so that SETTINGS move all windows at once (RFC 9113, section 6.9.2)."""
        self.recv_window = ReceiveWindow(h2.stream_window, parts=2)
        self.content_left: int | None = None
        self.chunks: deque[Chunk] = deque()
        self.held = 0

    def on_headers(self, fields: list[Field]) -> None:
        """A client's response headers, or trailers of either side (`recv_closed` is set then)."""

    def on_data(self) -> None:
        """`chunks` or `recv_closed` have changed."""

    def on_window(self) -> None:
        """There is credit again, after `H2Connection.wait_for_credit`."""

    def on_reset(self, code: int) -> None:
        """The stream is over, by the peer's RST_STREAM or by a fault of the peer's."""

    @property
    def send_window(self) -> int:
        """What the peer takes on this stream now; negative after its SETTINGS have made it smaller."""
        return self.h2.peer_initial_window + self.window_delta

    @property
    def send_credit(self) -> int:
        """Bytes that may be sent now, by the stream's window and the connection's."""
        h2 = self.h2
        return min(h2.peer_initial_window + self.window_delta, h2.send_window)

    def charge(self, count: int) -> None:
        """So many bytes of DATA are about to be sent."""
        self.window_delta -= count
        self.h2.send_window -= count

    def refund(self, count: int) -> None:
        """Charged bytes that were not sent after all: others may wait for them, and the peer will not give more."""
        if count:
            self.window_delta += count
            self.h2.send_window += count
            self.h2.wake_next()

    def add(self, view: memoryview, owner: Owner | None) -> None:
        """Keeps a piece of DATA. Small ones behind others are merged, since each costs more than it holds."""
        size = len(view)
        self.held += size
        chunks = self.chunks
        if size < _MERGE_BELOW and chunks:
            last, last_owner = chunks[-1]
            if len(last) < _MERGED_MAX and (last_owner is None or len(last) < _MERGE_BELOW):
                if last_owner is not None:
                    last_owner.release(len(last))
                chunks[-1] = (memoryview(b"".join((last, view))), None)
                return
        if owner is not None:
            owner.held += size
        chunks.append((view, owner))

    def copy_out(self, owner: Owner) -> None:
        """Gives what is held of one receive buffer memory of its own, so that the buffer is free."""
        chunks = self.chunks
        for index, (view, whose) in enumerate(chunks):
            if whose is owner:
                chunks[index] = (memoryview(bytes(view)), None)
                owner.release(len(view))

    def consumed(self, count: int) -> None:
        """The application is done with so many bytes: their credit goes back, unless `discard` has returned it."""
        count = min(count, self.held)
        if not count:
            return
        self.held -= count
        h2 = self.h2
        increment = h2.recv_window.give_back(count)
        if increment:
            h2.emit(fr.window_update(0, increment))
        if not self.recv_closed and self.reset_code is None:
            increment = self.recv_window.give_back(count)
            if increment:
                h2.emit(fr.window_update(self.sid, increment))

    def discard(self) -> None:
        """Forgets what has arrived and returns its credit."""
        for view, owner in self.chunks:
            if owner is not None:
                owner.release(len(view))
        self.chunks.clear()
        if self.held:
            held, self.held = self.held, 0
            self.h2.give_back(held)

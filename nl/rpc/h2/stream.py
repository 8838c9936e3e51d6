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
    """State of one stream, and the DATA that has arrived and is not consumed yet. Shells derive from it."""

    __slots__ = (
        "chunks", "content_left", "core", "held", "recv_closed", "recv_window", "reset_code", "send_closed",
        "send_window", "sid",
    )  # fmt: skip

    def __init__(self, core: H2Connection, sid: int) -> None:
        self.core = core
        self.sid = sid
        self.recv_closed = False
        self.send_closed = False
        self.reset_code: int | None = None
        self.send_window = core.peer_initial_window
        self.recv_window = ReceiveWindow(core.stream_window, parts=2)
        self.content_left: int | None = None
        self.chunks: deque[Chunk] = deque()
        self.held = 0

    def on_headers(self, fields: list[Field]) -> None:
        """A client's response headers, or trailers of either side (`recv_closed` is set then)."""

    def on_data(self) -> None:
        """`chunks` or `recv_closed` have changed."""

    def on_window(self) -> None:
        """`send_window` has grown."""

    def on_reset(self, code: int) -> None:
        """The stream is over, by the peer's RST_STREAM or by a fault of the peer's."""

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

    def consumed(self, count: int) -> None:
        """The application is done with so many bytes: their credit goes back, unless `discard` has returned it."""
        count = min(count, self.held)
        if not count:
            return
        self.held -= count
        core = self.core
        increment = core.recv_window.give_back(count)
        if increment:
            core.emit(fr.window_update(0, increment))
        if not self.recv_closed and self.reset_code is None:
            increment = self.recv_window.give_back(count)
            if increment:
                core.emit(fr.window_update(self.sid, increment))

    def discard(self) -> None:
        """Forgets what has arrived and returns its credit."""
        for view, owner in self.chunks:
            if owner is not None:
                owner.release(len(view))
        self.chunks.clear()
        if self.held:
            held, self.held = self.held, 0
            self.core.give_back(held)

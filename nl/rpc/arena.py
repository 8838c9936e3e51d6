"""The receive buffers of a connection: where bytes arrive, and how long their memory is kept.

DATA is handed on as views of the buffer that it arrived in, so a buffer is kept while a view of it is. An idle
connection keeps none. What a few unread bytes would keep for long is copied out of it (`Inbox.compact`), and what is
kept is counted whole, as `kept_bytes`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable

from nl.rpc.h2.stream import Owner, Stream

ARENA_SIZE = 256 * 1024
MIN_ROOM = 32 * 1024
MAX_POOLED = 32
COPY_OUT_BELOW = 4096
"""Unread bytes at a moment of rest that are copied rather than keep a whole buffer."""
COMPACT_AFTER_S = 1.0
"""For how long a buffer may be kept for less than half of its size."""


class Arena(Owner):
    """A receive buffer. Back in the pool when it is retired and nobody holds a view of it.

    Memory of the kernel's own giving (mmap): what is not pooled goes back to it at once, whatever lies around it.
    """

    __slots__ = ("fill", "inbox", "since", "view")

    def __init__(self) -> None:
        super().__init__()
        self.view = memoryview(mmap.mmap(-1, ARENA_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self.fill = 0
        self.since = 0.0
        self.inbox: Inbox | None = None
        """Whose retired buffer this is, while views of it are held."""

    def release(self, count: int) -> None:
        """So many bytes are no longer referred to."""
        self.held -= count
        inbox = self.inbox
        if inbox is not None and not self.held:
            self.inbox = None
            inbox.retired.discard(self)
            _give(self)


_pool: list[Arena] = []


def _take(now: float) -> Arena:
    arena = _pool.pop() if _pool else Arena()
    arena.since = now
    return arena


def _give(arena: Arena) -> None:
    if len(_pool) < MAX_POOLED:
        _pool.append(arena)


def drop_pool() -> None:
    """Gives the memory of all pooled buffers back to the kernel."""
    _pool.clear()


class Inbox:
    """What one connection has received and not parsed, or parsed and not consumed."""

    __slots__ = ("_tail", "current", "parsed", "retired")

    def __init__(self) -> None:
        self.current: Arena | None = None
        self.parsed = 0
        """Up to where the current buffer has been parsed."""
        self.retired: set[Arena] = set()
        """Buffers that are full, or too old, of which views are held."""
        self._tail = b""
        """Bytes of a frame that has arrived in part, while there is no current buffer."""

    def for_reading(self, now: float, streams: Iterable[Stream]) -> Arena:
        """The buffer that takes what comes next, at least MIN_ROOM of it, behind what is not parsed yet."""
        arena = self.current
        if arena is not None:
            if ARENA_SIZE - arena.fill >= MIN_ROOM:
                return arena
            if arena.held * 2 < ARENA_SIZE:
                _copy_out(arena, streams)
            self._tail = bytes(arena.view[self.parsed : arena.fill])
            self._drop_current(arena)
        arena = self.current = _take(now)
        self.parsed = 0
        arena.fill = len(self._tail)
        arena.view[: arena.fill] = self._tail
        self._tail = b""
        return arena

    def rest(self, streams: Iterable[Stream]) -> None:
        """Before waiting for input: a connection that holds nothing keeps no buffer."""
        arena = self.current
        if arena is None:
            return
        if 0 < arena.held <= COPY_OUT_BELOW:
            _copy_out(arena, streams)
        if arena.held and not (self.parsed == arena.fill and ARENA_SIZE - arena.fill < MIN_ROOM):
            return
        self._tail = bytes(arena.view[self.parsed : arena.fill])
        self._drop_current(arena)

    def compact(self, now: float, streams: Iterable[Stream]) -> None:
        """Called every now and then: frees buffers that a few bytes have kept for some time."""
        current = self.current
        for arena in list(self.retired) if current is None else [*self.retired, current]:
            if arena.held * 2 < ARENA_SIZE and now - arena.since >= COMPACT_AFTER_S:
                _copy_out(arena, streams)
                if arena is current and not arena.held and arena.fill - self.parsed < MIN_ROOM:
                    self._tail = bytes(arena.view[self.parsed : arena.fill])
                    self._drop_current(arena)

    def kept_bytes(self) -> int:
        """Memory of buffers that is kept beyond the bytes that streams hold in them."""
        current = self.current
        kept = sum(ARENA_SIZE - arena.held for arena in self.retired) if self.retired else 0
        return kept + (ARENA_SIZE - current.held if current is not None else 0)

    def close(self) -> None:
        """Lets go of everything. What is still referred to is freed with the last view of it."""
        for arena in self.retired:
            arena.inbox = None
        self.retired.clear()
        if self.current is not None and not self.current.held:
            _give(self.current)
        self.current = None
        self._tail = b""

    def _drop_current(self, arena: Arena) -> None:
        self.current = None
        if arena.held:
            arena.inbox = self
            self.retired.add(arena)
        else:
            _give(arena)


def _copy_out(arena: Arena, streams: Iterable[Stream]) -> None:
    for stream in streams:
        stream.copy_out(arena)

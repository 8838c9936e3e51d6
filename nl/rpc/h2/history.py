"""Which streams we have reset: what a peer still sends on them was on its way and is no fault of its own. Pure."""

from __future__ import annotations

SPAN = 4096
"""Streams back from the newest reset one that are told apart: four times as many as a client may have open."""


class ResetHistory:
    """The streams of one connection, all opened by the same side, that we have ended with RST_STREAM.

    A byte a stream, in a ring, from the first reset on: 4 KiB at the most, whatever the peer does.
    """

    __slots__ = ("_newest", "_ring")

    def __init__(self) -> None:
        self._newest = 0
        self._ring: bytearray | None = None

    def add(self, sid: int) -> None:
        """Remembers a stream."""
        number = sid >> 1
        ring = self._ring
        if ring is None or number >= self._newest + SPAN:
            ring = self._ring = bytearray(SPAN)
            self._newest = number
        elif number > self._newest:
            _clear(ring, (self._newest + 1) % SPAN, number - self._newest)
            self._newest = number
        elif number <= self._newest - SPAN:
            return
        ring[number % SPAN] = 1

    def discard(self, sid: int) -> None:
        """The peer has closed the stream, too."""
        if sid in self and self._ring is not None:
            self._ring[(sid >> 1) % SPAN] = 0

    def __contains__(self, sid: int) -> bool:
        number = sid >> 1
        ring = self._ring
        return ring is not None and self._newest - SPAN < number <= self._newest and ring[number % SPAN] == 1


def _clear(ring: bytearray, start: int, count: int) -> None:
    first = min(count, SPAN - start)
    ring[start : start + first] = bytes(first)
    ring[: count - first] = bytes(count - first)

"""What one connection may cost, and the allowances that grow back with time. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may cost. The defaults serve fast peers on a fast network."""

    stream_window: int = 4 << 20
    """Bytes of unread DATA per stream; at least 65,535, which is what a peer may assume before it has our settings."""
    connection_window: int = 16 << 20
    """Bytes of unread DATA per connection."""
    max_frame_size: int = 16_384
    """Largest frame taken. Most clients never send larger ones, and header blocks are frames, too."""
    max_concurrent_streams: int = 1000
    max_header_list_size: int = 16_384
    """Sum of names, values and 32 bytes for each field of a message."""
    control_burst: int = 1000
    """Frames that move nothing (PING, SETTINGS, empty DATA, unknown, ...) beyond which the peer is cut off ..."""
    control_per_s: float = 100.0
    """... and how fast that allowance grows back."""
    reset_burst: int = 1000
    """Streams that a peer may reset before anything of their answer was sent; by default as many as it may have open.
    The allowance grows back by one with each answered call, and with time."""
    reset_per_s: float = 100.0


CONTROL_FRAMES_PER_MESSAGE = 4
"""Frames that move nothing which each message we send pays for: PINGs to estimate bandwidth, small WINDOW_UPDATEs."""
MAX_PREPAID_FRAMES = 4000
SETTINGS_PER_FRAME = 32
"""Entries of a SETTINGS frame that cost as much as a frame: clients send half a dozen."""
WAKEUPS_PER_FRAME = 8
"""Streams that a SETTINGS frame wakes by growing their windows which cost as much as a frame."""


class Budget:
    """An allowance that grows back with time: a token bucket."""

    __slots__ = ("burst", "left", "rate", "since")

    def __init__(self, burst: float, rate: float) -> None:
        self.burst = self.left = burst
        self.rate = rate
        self.since = 0.0

    def spend(self, now: float, cost: float = 1.0) -> bool:
        """Takes `cost`; False if it is not there."""
        left = min(self.burst, self.left + max(0.0, now - self.since) * self.rate) - cost
        self.since = now
        self.left = left
        return left >= 0

    def refund(self, amount: float = 1.0) -> None:
        """Gives back, up to what there was at first."""
        self.left = min(self.burst, self.left + amount)

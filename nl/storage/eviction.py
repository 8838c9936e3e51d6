"""The eviction core: which entry goes first, and when. Pure: the caller owns bytes, files and time.

A `LruIndex` maps keys to values with a size each, in order of use. It never drops anything by itself between calls:
`insert` and `evict` return what has to go, and the caller disposes of it. For whatever is remembered in bounded memory.

Rules for this file: the totals always equal the sum over the entries; an entry that has expired is never returned.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from nl.config.types import EvictionPolicy

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Entry(Generic[V]):
    __slots__ = ("size", "used_at", "value")

    def __init__(self, value: V, size: int, used_at: float) -> None:
        self.value = value
        self.size = size
        self.used_at = used_at


class LruIndex(Generic[K, V]):
    """Entries from least to most recently used, bounded by an EvictionPolicy."""

    __slots__ = ("_clock", "_entries", "evicted_bytes", "evicted_count", "policy", "total_bytes")

    def __init__(self, policy: EvictionPolicy, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self._clock = clock
        self.policy = policy
        self.total_bytes = 0
        self.evicted_bytes = 0
        self.evicted_count = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[K]:
        """Keys, least recently used first."""
        return iter(self._entries)

    def get(self, key: K) -> V | None:
        """The value, which becomes the most recently used; None if there is none or it has expired."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self.policy.max_seconds:
            now = self._clock()
            if now - entry.used_at > self.policy.max_seconds:
                return None
            entry.used_at = now
        self._entries.move_to_end(key)
        return entry.value

    def peek(self, key: K) -> V | None:
        """The value without making it recent; None if there is none or it has expired."""
        entry = self._entries.get(key)
        if entry is None or self._has_expired(entry):
            return None
        return entry.value

    def insert(self, key: K, value: V, *, size: int) -> list[tuple[K, V]]:
        """Adds or replaces an entry as the most recently used; returns what has to go, by `evict`'s rules.

        What it replaced is not in that list.
        """
        old = self._entries.pop(key, None)
        if old is not None:
            self.total_bytes -= old.size
        used_at = self._clock() if self.policy.max_seconds else 0.0
        self._entries[key] = _Entry(value, size, used_at)
        self.total_bytes += size
        return self.evict()

    def discard(self, key: K) -> V | None:
        """Takes an entry out and returns its value, expired or not; None if there is none."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self.total_bytes -= entry.size
        return entry.value

    def evict(self) -> list[tuple[K, V]]:
        """Takes out, least recently used first, what the policy does not allow to stay; returns it.

        Once `max_bytes` is exceeded, it goes on down to `max_bytes - evict_bytes`, so that eviction comes in batches;
        but a last entry that fits into `max_bytes` stays, however large the batch.
        """
        policy = self.policy
        gone: list[tuple[K, V]] = []
        limit = policy.max_bytes
        if limit and self.total_bytes > limit:
            low = limit - policy.evict_bytes
            while self._entries and self.total_bytes > low:
                if len(self._entries) == 1 and self.total_bytes <= limit:
                    break
                gone.append(self._pop_oldest())
        if policy.max_count:
            while len(self._entries) > policy.max_count:
                gone.append(self._pop_oldest())
        if policy.max_seconds:
            while self._entries and self._has_expired(next(iter(self._entries.values()))):
                gone.append(self._pop_oldest())
        return gone

    def fits(self, size: int) -> bool:
        """Whether an entry of `size` bytes could stay at all, were it alone."""
        return not self.policy.max_bytes or size <= self.policy.max_bytes

    def _has_expired(self, entry: _Entry[V]) -> bool:
        return bool(self.policy.max_seconds) and self._clock() - entry.used_at > self.policy.max_seconds

    def _pop_oldest(self) -> tuple[K, V]:
        key, entry = self._entries.popitem(last=False)
        self.total_bytes -= entry.size
        self.evicted_bytes += entry.size
        self.evicted_count += 1
        return key, entry.value

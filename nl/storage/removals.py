"""News of what left a store, by pull: whoever remembers what is there asks, before it answers, what has gone since.

So nobody is called back, nothing is ever known late, and a watcher that does not ask costs a bounded list. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakSet

from nl.model.digest import Key

MAX_PENDING = 100_000
"""Removals that a feed keeps for its watcher, some 10 MiB of keys: beyond, it only says that there were too many."""


class RemovalFeed:
    """What has been removed since the last look."""

    __slots__ = ("__weakref__", "_keys", "_lost")

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._lost = False

    def take(self) -> Sequence[Key] | None:
        """The keys that were removed since the last call; None if there were too many: then anything may be gone."""
        if not self._keys and not self._lost:
            return ()
        keys = None if self._lost else self._keys
        self._keys, self._lost = [], False
        return keys

    def _add(self, key: Key) -> None:
        if len(self._keys) < MAX_PENDING:
            self._keys.append(key)
        else:
            self._lose()

    def _lose(self) -> None:
        self._keys, self._lost = [], True


class RemovalFeeds:
    """The feeds of one store. Costs nothing where nobody watches."""

    __slots__ = ("_feeds",)

    def __init__(self) -> None:
        self._feeds: WeakSet[RemovalFeed] = WeakSet()

    def __bool__(self) -> bool:
        return bool(self._feeds)

    def watch(self, feed: RemovalFeed | None = None) -> RemovalFeed:
        """See `Removals`. `feed` is one of the store's own making."""
        feed = RemovalFeed() if feed is None else feed
        self._feeds.add(feed)
        return feed

    def removed(self, key: Key) -> None:
        """Says that a key has gone. Before anybody can ask the store about it."""
        for feed in self._feeds:
            feed._add(key)

    def lost_track(self) -> None:
        """Says that anything may have gone."""
        for feed in self._feeds:
            feed._lose()

"""News of removals, from the backend's keys to those of whoever asks."""

from __future__ import annotations

from collections.abc import Sequence

from nl.plugin import ActionKey, Digest, ForeignKey, Key, RemovalFeed, Removals

_ACTION_SUFFIX = ".ac"


class DecodedRemovals:
    """`Removals` of a compression store."""

    def __init__(self, removals: Removals, suffix: str) -> None:
        self._removals = removals
        self._suffix = suffix

    def watch_removals(self) -> RemovalFeed:
        """See `Removals`."""
        return _DecodedFeed(self._removals.watch_removals(), self._suffix)


class _DecodedFeed(RemovalFeed):
    """What a feed of the backend says, in keys of the store in front of it."""

    __slots__ = ("_feed", "_suffix")

    def __init__(self, feed: RemovalFeed, suffix: str) -> None:
        super().__init__()
        self._feed = feed
        self._suffix = suffix

    def take(self) -> Sequence[Key] | None:
        """See `RemovalFeed`. Names cannot always be told from what they became: then anything may be gone."""
        places = self._feed.take()
        if not places:
            return places
        keys: list[Key] = []
        for place in places:
            if isinstance(place, ForeignKey):
                keys += (Digest(place.hash, place.size), ActionKey(place.hash, place.size))
            elif isinstance(place, str) and place.endswith(self._suffix):
                text = place.removesuffix(self._suffix)
                digest = Digest.parse_name(text.removesuffix(_ACTION_SUFFIX))
                if digest is None:
                    return None
                keys.append(ActionKey(*digest) if text.endswith(_ACTION_SUFFIX) else digest)
        return keys

"""Presence: which keys are there, by the index where it is exact, else by the file system. Asking is a use."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from operator import attrgetter
from typing import cast

import trio

from nl.plugin import EMPTY_DIGESTS, ActionKey, Digest, Key
from nl.stores.filesystem.index import Entry
from nl.stores.filesystem.layout import Folder
from nl.stores.filesystem.mirror import Mirror
from nl.stores.filesystem.names import IndexKey, is_blob, legacy_action_key, name_of_text
from nl.stores.filesystem.oserrors import translate
from nl.stores.filesystem.unmarked import UnmarkedBlobs

_SIZE_OF = attrgetter("size")
_INLINE_STATS = 32


class Presence:
    """Answers `has`. Blobs that nobody has used for `max_age_s` seconds count as gone; 0 means that age is nothing."""

    def __init__(self, mirror: Mirror, unmarked: UnmarkedBlobs, *, max_age_s: float) -> None:
        self._mirror = mirror
        self._layout = mirror.layout
        self._index = mirror.index
        self._unmarked = unmarked
        self.max_age_s = max_age_s

    async def sizes(self, keys: Sequence[Key]) -> list[int | None]:
        """The size of each key's value, None for what is not there."""
        mirror = self._mirror
        mirror.refresh()
        if not mirror.is_exact:
            return await self._sizes_on_disk(keys)
        now = time.time()
        blobs = self._index.blobs
        if not self.max_age_s and str not in set(map(type, keys)):
            found = list(map(blobs.get, keys))
            if None not in found:  # the common case, a step for all keys at a time: half the time of the loop below
                entries = cast(list[Entry], found)
                deque(map(blobs.move_to_end, keys), 0)
                for present in entries:
                    present.used = now
                return list(map(_SIZE_OF, entries))
        get, touch = blobs.get, blobs.move_to_end
        sizes: list[int | None] = []
        append = sizes.append
        for key in keys:
            if type(key) is str:
                key = name_of_text(key)
            entry = get(key)
            if entry is None:
                append(self._size_without_entry(key, now))
            elif self.max_age_s and self.is_expired(key, entry):
                append(None)
            else:
                entry.used = now
                touch(key)
                append(entry.size)
        return sizes

    def is_expired(self, key: IndexKey, entry: Entry) -> bool:
        """Whether nobody, in any process, has used a blob for `max_age_s`."""
        horizon = time.time() - self.max_age_s
        if not self.max_age_s or abs(entry.used) >= horizon:
            return False
        folder, name = self._layout.place_of(key)
        try:
            facts = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        except OSError:
            return True
        return facts.st_atime < horizon

    def _size_without_entry(self, key: Key, now: float) -> int | None:
        """For keys that are not in the index under their own name."""
        if key in EMPTY_DIGESTS:
            return 0
        if isinstance(key, ActionKey):
            legacy = legacy_action_key(key)
            entry = self._index.blobs.get(legacy)
            if entry is not None:
                self._index.touch(legacy, entry, now)
                return entry.size
        return self._unmarked.size_of(key) if isinstance(key, Digest) else None

    async def _sizes_on_disk(self, keys: Sequence[Key]) -> list[int | None]:
        """Asks the file system, because the index may be wrong."""
        self._layout.require_open()
        places = [self._layout.locate(key) for key in keys]
        if len(places) <= _INLINE_STATS:
            sizes = self._stat_all(places)
        else:
            sizes = await trio.to_thread.run_sync(self._stat_all, places)
        now = time.time()
        for number, (_, _, index_key) in enumerate(places):
            if sizes[number] is None:
                sizes[number] = self._size_without_entry(keys[number], now)
            elif (entry := self._index.blobs.get(index_key)) is not None:
                self._index.touch(index_key, entry, now)
        return sizes

    def _stat_all(self, places: Sequence[tuple[Folder, str, IndexKey]]) -> list[int | None]:
        """May run in a thread: it looks at files, and at nothing that the loop changes."""
        sizes: list[int | None] = []
        horizon = time.time() - self.max_age_s if self.max_age_s else 0
        for folder, name, key in places:
            try:
                facts = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            except FileNotFoundError:
                sizes.append(None)
                continue
            except OSError as error:
                path = f"{folder.path}/{name}"
                raise translate(error, store=self._layout.name, path=path, doing="look at") from error
            wrong = is_blob(key) and facts.st_size != key[1]
            sizes.append(None if wrong or facts.st_atime < horizon else facts.st_size)
        return sizes

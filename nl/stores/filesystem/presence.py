"""Presence: which keys are there, by the index where it is exact, else by the file system. Asking is a use."""

from __future__ import annotations

import os
import stat
import time
from array import array
from collections.abc import Sequence
from operator import itemgetter
from typing import cast

import trio

from nl.plugin import EMPTY_DIGESTS, ActionKey, Digest, DigestFunction, Key
from nl.stores.filesystem.clock import Clock
from nl.stores.filesystem.layout import Folder
from nl.stores.filesystem.mirror import Mirror
from nl.stores.filesystem.names import IndexKey, index_key, legacy_action_key, unmarked_key
from nl.stores.filesystem.oserrors import translate
from nl.stores.filesystem.unmarked import UnmarkedBlobs

_INLINE_STATS = 32
_FEW = 2
"""Up to here, what spares time with many keys takes longer than it spares."""
_hash_of, _size_of, _function_of = itemgetter(0), itemgetter(1), itemgetter(2)


def _all_of(row: array[int], slots: Sequence[int]) -> list[int]:
    """`[row[slot] for slot in slots]`, in half the time."""
    return list(itemgetter(*slots)(row)) if len(slots) > 1 else [row[slot] for slot in slots]


class Presence:
    """Answers `has`. Blobs that nobody has used for `max_age_s` seconds count as gone; 0 means that age is nothing."""

    def __init__(self, mirror: Mirror, unmarked: UnmarkedBlobs, clock: Clock, *, max_age_s: float) -> None:
        self._mirror = mirror
        self._layout = mirror.layout
        self._index = mirror.index
        self._unmarked = unmarked
        self._clock = clock
        self.max_age_s = max_age_s

    async def sizes(self, keys: Sequence[Key]) -> list[int | None]:
        """The size of each key's value, None for what is not there."""
        await self._mirror.catch_up()
        if not self._mirror.is_exact:
            return await self._sizes_on_disk(keys)
        sizes = self._sizes_in_index(keys)
        if sizes.count(None) == len(sizes):
            return sizes
        # By now all processes are told of these uses. What one of them has evicted before is gone.
        condemned = self._condemned()
        if self._mirror.refresh():
            sizes = self._sizes_in_index(keys)
        return sizes if condemned < 0 else self._without(condemned, keys, sizes)

    def _condemned(self) -> int:
        """After uses were told and before it is looked what is there: what is being evicted right now (see uses.py)."""
        uses = self._index.shared
        if uses.is_alone:
            return -1
        uses.fence()
        return uses.condemned

    def _without(self, condemned: int, keys: Sequence[Key], sizes: list[int | None]) -> list[int | None]:
        """`sizes` less what is being evicted."""
        return [
            None if size is not None and condemned in self._cells_of(key) else size
            for key, size in zip(keys, sizes, strict=True)
        ]

    def _cells_of(self, key: Key) -> Sequence[int]:
        if key in EMPTY_DIGESTS:
            return ()  # it is no file
        cell_of = self._index.shared.cell_of
        if isinstance(key, ActionKey):
            return cell_of(index_key(key)), cell_of(legacy_action_key(key))
        return (cell_of(index_key(key)),)

    def _sizes_in_index(self, keys: Sequence[Key]) -> list[int | None]:
        if len(keys) > _FEW and not self.max_age_s and set(map(type, keys)) == {Digest}:
            digests = cast("Sequence[Digest]", keys)
            if list(map(_function_of, digests)).count(DigestFunction.SHA256) == len(digests):
                return self._sizes_of_sha256(digests)
        now = time.monotonic()
        return [self._size(key, now) for key in keys]

    def is_expired(self, slot: int) -> bool:
        """Whether nobody, in any process, has used a file for `max_age_s`."""
        if not self.max_age_s:
            return False
        horizon = time.monotonic() - self.max_age_s
        if self._index.last_used(slot) >= horizon:
            return False
        folder, name = self._layout.place_of(self._index.key_at(slot), self._index.sizes[slot])
        try:
            facts = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        except OSError:
            return True
        return self._clock.of_file(facts.st_atime) < horizon

    def _sizes_of_sha256(self, digests: Sequence[Digest]) -> list[int | None]:
        """The usual question, thousands at a time: a step of C for all keys, where there is one."""
        index = self._index
        slots = list(map(index.slots.get, map(_hash_of, digests)))
        now = time.monotonic()
        if None not in slots:
            found = cast("list[int]", slots)
            sizes = _all_of(index.sizes, found)
            if sizes == list(map(_size_of, digests)):
                index.touch_all(found, now)
                return cast("list[int | None]", sizes)
        answer: list[int | None] = []
        present: list[int] = []
        for digest, slot in zip(digests, slots, strict=True):
            if slot is not None and index.sizes[slot] == digest[1]:
                present.append(slot)
                answer.append(digest[1])
            else:
                answer.append(0 if digest in EMPTY_DIGESTS else None)
        index.touch_all(present, now)
        return answer

    def _size(self, key: Key, now: float) -> int | None:
        index = self._index
        slot = index.blob(key) if type(key) is Digest else index.slots.get(index_key(key))
        if slot is None:
            return self._size_under_another_name(key, now)
        if self.is_expired(slot):
            return None
        index.touch(slot, now)
        return index.sizes[slot]

    def _size_under_another_name(self, key: Key, now: float) -> int | None:
        """For keys that are not in the index under their own name."""
        if key in EMPTY_DIGESTS:
            return 0
        other = _other_key(key)
        slot = None if other is None else self._index.slots.get(other)
        if slot is None or self.is_expired(slot):
            return None
        if isinstance(key, Digest):
            return self._unmarked.size_of(key)
        self._index.touch(slot, now)
        return self._index.sizes[slot]

    async def _sizes_on_disk(self, keys: Sequence[Key]) -> list[int | None]:
        """Asks the file system, because the index may be wrong. What it says is there is then in the index."""
        self._layout.require_open()
        places = [self._layout.locate(key) for key in keys]
        sizes = await self._look_at(keys, places)
        now = time.monotonic()
        index = self._index
        changed = self._mirror.changed_during_scan or ()
        others: list[int] = []
        for number, (folder, name, key) in enumerate(places):
            size = sizes[number]
            if size is None:
                sizes[number] = self._size_under_another_name(keys[number], now)
                if sizes[number] is not None and keys[number] not in EMPTY_DIGESTS:
                    others.append(number)
                continue
            slot = index.slots.get(key)
            if slot is None and (folder, name) not in changed:
                slot = self._mirror.add(folder, key, size)
            if slot is not None:
                index.touch(slot, now)
        if others:  # as far as the index knows, which may be wrong of them as well
            asked = [keys[number] for number in others]
            found = await self._look_at(asked, list(map(self._other_place, asked)))
            for number, size in zip(others, found, strict=True):
                sizes[number] = size
        return sizes

    def _other_place(self, key: Key) -> tuple[Folder, str, IndexKey]:
        """Where others keep what is asked for."""
        other = _other_key(key)
        assert other is not None
        folder, name = self._layout.place_of(other, cast("Digest | ActionKey", key).size)
        return folder, name, other

    async def _look_at(
        self, keys: Sequence[Key], places: Sequence[tuple[Folder, str, IndexKey]]
    ) -> list[int | None]:
        # Uses are told before it is looked: whoever evicts then either has done so, or knows better.
        self._index.tell_keys([key for _, _, key in places], time.monotonic())
        condemned = self._condemned()
        if len(places) <= _INLINE_STATS:
            sizes = self._stat_all(keys, places)
        else:
            sizes = await trio.to_thread.run_sync(self._stat_all, keys, places)
        return sizes if condemned < 0 else self._without(condemned, keys, sizes)

    def _stat_all(
        self, keys: Sequence[Key], places: Sequence[tuple[Folder, str, IndexKey]]
    ) -> list[int | None]:
        """May run in a thread: it looks at files, and at nothing that the loop changes."""
        sizes: list[int | None] = []
        horizon = time.monotonic() - self.max_age_s
        for key, (folder, name, _) in zip(keys, places, strict=True):
            try:
                facts = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            except FileNotFoundError:
                sizes.append(None)
                continue
            except OSError as error:
                path = f"{folder.path}/{name}"
                raise translate(error, store=self._layout.name, path=path, doing="look at") from error
            wrong = not stat.S_ISREG(facts.st_mode) or (type(key) is Digest and facts.st_size != key.size)
            old = self.max_age_s and self._clock.of_file(facts.st_atime) < horizon
            sizes.append(None if wrong or old else facts.st_size)
        return sizes


def _other_key(key: Key) -> IndexKey | None:
    """The index key under which others keep what is asked for; None if there is no such name."""
    if isinstance(key, ActionKey):
        return legacy_action_key(key)
    return unmarked_key(key) if isinstance(key, Digest) else None

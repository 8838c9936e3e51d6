"""The index: which files the folder has, in order of use, and what they add up to. Pure; knows no file and no clock.

Rules for this file: `bytes` is always the sum of the costs of all entries, executable variants included; `blobs` runs
from the least to the most recently used.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from nl.stores.filesystem.names import IndexKey, plain


class Entry(msgspec.Struct, gc=False, eq=False):
    """What is known of one file.

    `inode` and `mtime_ns` are those of the file when this process last wrote it or found its hash right; `inode` 0
    means that nobody has. `used` is when it was last used, in Unix seconds: positive if by this process (and then
    the time is yet to be written to the file's atime), negative if that is already known to all, or was the doing of
    another process.

    A Struct that the garbage collector does not track: there may be millions, and its pauses grow with their number.
    """

    size: int
    used: float
    inode: int = 0
    mtime_ns: int = 0

    def is_known_as(self, inode: int, mtime_ns: int, size: int) -> bool:
        """Whether a file with this identity is the one whose bytes were last known to be right."""
        return self.inode == inode and self.mtime_ns == mtime_ns and self.size == size


class Index:
    """All entries. `block_size` is what sizes are rounded up to when they are added up."""

    def __init__(self, block_size: int) -> None:
        self.blobs: OrderedDict[IndexKey, Entry] = OrderedDict()
        self.executables: dict[IndexKey, Entry] = {}
        self.bytes = 0
        self._block_size = block_size

    def __len__(self) -> int:
        return len(self.blobs)

    def cost(self, size: int) -> int:
        """What a file of `size` bytes counts for."""
        return -(-size // self._block_size) * self._block_size

    def most_that_costs(self, limit: int) -> int:
        """The largest size whose cost is at most `limit`."""
        return limit // self._block_size * self._block_size

    def add(self, key: IndexKey, entry: Entry, *, oldest: bool = False) -> None:
        """Adds or replaces an entry, as the most (or least) recently used."""
        old = self.blobs.pop(key, None)
        if old is not None:
            self.bytes -= self.cost(old.size)
        self.blobs[plain(key)] = entry
        if oldest:
            self.blobs.move_to_end(key, last=False)
        self.bytes += self.cost(entry.size)

    def remove(self, key: IndexKey) -> Entry | None:
        """Takes an entry out; None if there is none."""
        entry = self.blobs.pop(key, None)
        if entry is not None:
            self.bytes -= self.cost(entry.size)
        return entry

    def add_executable(self, key: IndexKey, entry: Entry) -> None:
        """Adds or replaces the executable variant of a blob."""
        self.remove_executable(key)
        self.executables[plain(key)] = entry
        self.bytes += self.cost(entry.size)

    def remove_executable(self, key: IndexKey) -> bool:
        """Takes an executable variant out; False if there is none."""
        entry = self.executables.pop(key, None)
        if entry is not None:
            self.bytes -= self.cost(entry.size)
        return entry is not None

    def touch(self, key: IndexKey, entry: Entry, now: float) -> None:
        """Makes an entry the most recently used, by this process; nothing if it has gone meanwhile."""
        if key in self.blobs:
            entry.used = now
            self.blobs.move_to_end(key)

    def oldest(self) -> tuple[IndexKey, Entry] | None:
        """The least recently used entry."""
        for item in self.blobs.items():
            return item
        return None

    def clear(self) -> None:
        """Forgets everything."""
        self.blobs.clear()
        self.executables.clear()
        self.bytes = 0

    def __repr__(self) -> str:
        return f"<Index {len(self.blobs)} blobs, {len(self.executables)} executables, {self.bytes} bytes>"

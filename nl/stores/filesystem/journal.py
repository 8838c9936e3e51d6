"""The journal of a folder: what all files take, and what came and went, for processes that no inotify tells.

It lies in the lock's file and is read and written only by whoever has the lock, so it needs no other protocol, and is
coherent wherever the lock is (NFS: taking a lock drops what is cached of its file). Behind the sum is a ring of the
last changes. A process reads on from where it has read up to; one that was too far behind lists the folder.

A change is written before a file comes and after one has gone. What a process leaves that was killed in between is a
file too many in the others' index: it counts for nothing worse than an early eviction, and goes with it.
"""

from __future__ import annotations

import os
import secrets
import struct
from contextlib import suppress
from typing import NamedTuple

from nl.stores.filesystem.layout import Folder, Layout
from nl.stores.filesystem.reserving import NO_ROOM, reserve

RING = 1 << 20
"""Bytes of changes that are kept: some 12,000, as many as the kernel keeps of events by default."""
_START = 4096
_HEADER = struct.Struct("<8sQQ")
_MAGIC = b"nl sum 3"
_ENTRY = struct.Struct("<HBq")
_GONE = -1
_ENDS = 1 << 62
"""Heads start below this, and never get as far as 1 << 64."""


class Change(NamedTuple):
    """A file that came, or one that has gone: `size` is None then."""

    folder: Folder
    name: str
    size: int | None


class Journal:
    """To be used by whoever has the lock; `read` first, then what `sum` and `changes` say is true until it is free."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.sum: int | None = None
        """Bytes that all files count for, as the last holder of the lock has told; None if there was none."""
        self._head = 0
        """Bytes that ever were written into the ring, and some more, so that a new ring is not taken for an old one."""
        self._read_to = -1

    @property
    def is_followed(self) -> bool:
        """Whether this process reads what others write."""
        return self._read_to >= 0

    def follow(self) -> None:
        """From now on, `changes` tells what is written."""
        self._read_to = self._head
        with suppress(OSError):  # no room: see `write`
            reserve(self._layout.lock_fd, offset=_START, count=RING)

    def has_news(self) -> bool:
        """Whether something was written since the last `read`. Without the lock: it may change at once."""
        sum_, head = self.sum, self._head
        self._read_header()
        has_news = self._head != head
        self.sum, self._head = sum_, head
        return has_news

    def read(self) -> None:
        """Reads what the holders of the lock before this one have told."""
        self._read_header()
        if self.sum is None:
            self._head = secrets.randbelow(_ENDS)  # a ring of its own: who has followed another one notices

    def tell(self, count: int) -> None:
        """Tells the sum to those who will have the lock next."""
        self.sum = max(count, 0)
        try:
            os.pwrite(self._layout.lock_fd, _HEADER.pack(_MAGIC, self.sum, self._head), 0)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            # A fresh file on a full disk. Nobody is told until there is room, which only whoever goes on can make.

    def write(self, change: Change) -> None:
        """Writes a change, which others see with the next `tell`."""
        name = os.fsencode(change.name)
        number = self._layout.indexed_folders.index(change.folder)
        entry = _ENTRY.pack(len(name), number, _GONE if change.size is None else change.size) + name
        was_read = self._read_to == self._head
        try:
            self._write_ring(entry)
        except OSError:  # a full disk: what cannot be told is more than the ring holds, and all list the folder
            self._head += RING
        self._head += len(entry)
        if was_read:
            self._read_to = self._head

    def changes(self) -> list[Change] | None:
        """What other processes have written since the last call; None if that cannot be told any more."""
        count = self._head - self._read_to
        if not count:
            return []
        since, self._read_to = self._read_to, self._head
        return self._parsed(self._read_ring(since, count)) if 0 < count <= RING else None

    def _parsed(self, data: bytes) -> list[Change] | None:
        folders, found, at = self._layout.indexed_folders, [], 0
        while at + _ENTRY.size <= len(data):
            length, number, size = _ENTRY.unpack_from(data, at)
            at += _ENTRY.size + length
            if number >= len(folders) or at > len(data):
                return None
            name = os.fsdecode(data[at - length : at])
            found.append(Change(folders[number], name, None if size == _GONE else size))
        return found if at == len(data) else None

    def _read_header(self) -> None:
        data = os.pread(self._layout.lock_fd, _HEADER.size, 0)
        self.sum = None
        if len(data) == _HEADER.size:
            magic, count, head = _HEADER.unpack(data)
            if magic == _MAGIC:
                self.sum, self._head = count, head

    def _write_ring(self, entry: bytes) -> None:
        at = self._head % RING
        first = entry[: RING - at]
        os.pwrite(self._layout.lock_fd, first, _START + at)
        if len(first) < len(entry):
            os.pwrite(self._layout.lock_fd, entry[len(first) :], _START)

    def _read_ring(self, since: int, count: int) -> bytes:
        at = since % RING
        data = os.pread(self._layout.lock_fd, min(count, RING - at), _START + at)
        if len(data) < count:
            data += os.pread(self._layout.lock_fd, count - len(data), _START)
        return data

"""Evictions: what goes when there is no room, and the sum of bytes that all processes on a folder keep.

Rules for this file: what is deleted or counted is so under the lock of the folder (lock.py), in which nothing awaits.
"""

from __future__ import annotations

import os
import time
from types import TracebackType

import trio

from nl.plugin import EvictionPolicy
from nl.stores.filesystem.journal import Change, Journal
from nl.stores.filesystem.layout import Folder
from nl.stores.filesystem.leases import nobody_writes_to
from nl.stores.filesystem.lock import Lock
from nl.stores.filesystem.mirror import Mirror
from nl.stores.filesystem.names import IndexKey, file_name, is_blob
from nl.stores.filesystem.scanning import Scanner

SLICE = 64
"""Evictions in one go, before others may run: about a millisecond."""
POLITE_PAUSE_S = 0.001
"""Between slices of background work, so that uploads of other processes get the lock."""
_LARGE = 8 * 1024 * 1024
"""Files from this size on take the file system so long to free that a thread does it."""


class Evictor:
    """Deletes files of the folder, and knows what the rest takes."""

    def __init__(self, mirror: Mirror, scanner: Scanner, policy: EvictionPolicy) -> None:
        self.mirror = mirror
        self._scanner = scanner
        self.lock = Lock(mirror)
        self.journal = Journal(mirror.layout)
        self._uses = mirror.index.shared
        self.policy = policy
        self.evicted_blobs = 0
        self.evicted_bytes = 0
        self._sum = 0
        self._closing: list[int] = []
        self._section = _Section(self)

    def locked(self) -> _Section:
        """After `lock.acquire` or `lock.try_lock`: the index is up to date in the block, and the lock free after it."""
        return self._section

    def begin(self) -> None:
        """The lock was just taken: learns what those have done who had it before."""
        mirror, journal = self.mirror, self.journal
        mirror.refresh()
        if mirror.is_exact and not self._has_company():
            return
        self._uses.acquit()  # who was evicting has been killed
        journal.read()
        self._sum = mirror.index.bytes if journal.sum is None else journal.sum
        if not mirror.is_watching:
            self._follow()

    def end(self) -> None:
        """The lock is about to be given back: tells the sum. If nobody else is there, nobody is told."""
        if self.mirror.is_complete and self._has_company():
            self._tell(self.mirror.index.bytes)

    def _has_company(self) -> bool:
        """Whether somebody wants to know what this process does; perhaps, where there is no inotify."""
        return not self._uses.is_alone or self._uses.is_one_blind or not self.mirror.is_watching

    def _follow(self) -> None:
        """Without inotify: learns from the journal."""
        self._uses.tell_blind()
        changes: list[Change] | None = []
        if self.journal.is_followed:
            changes = self.journal.changes()
        else:
            self.journal.follow()
        if changes is None:
            self.mirror.lose_track()
        elif changes:
            self.mirror.follow(changes)
        if self.journal.sum is None:
            self._tell(self._sum)  # so that the next one finds the same journal

    @property
    def sum(self) -> int:
        """Bytes that all files count for, as far as is known. While locked."""
        return self.mirror.index.bytes if self.mirror.is_complete else self._sum

    def _count(self, cost: int, folder: Folder, name: str, size: int | None) -> None:
        """Notes that a file comes (of a size) or has gone (None), `cost` more bytes in all: at once, as this process
        may be killed.
        """
        must_write = not self.mirror.is_watching or self._uses.is_one_blind
        if must_write:
            self.journal.write(Change(folder, name, size))
        if must_write or not self.mirror.is_complete:
            self._tell(self.sum + cost)

    def _take_back(self, cost: int) -> None:
        """What was counted has not come, or has taken the place of something."""
        if not self.mirror.is_complete:
            self._tell(self._sum - cost)

    def _tell(self, count: int) -> None:
        """Leaves a sum to those who will have the lock next."""
        self._sum = count
        self.journal.tell(count)

    async def tell_sum(self) -> None:
        """Tells the sum to a process that has just come, and to whoever comes after this one."""
        await self.lock.acquire()
        with self.locked():
            if self.mirror.is_complete:
                self._tell(self.mirror.index.bytes)

    async def follow(self) -> None:
        """Without inotify, now and then: learns what other processes have done, before it is too much for the journal.
        """
        if self._is_behind():
            await self.lock.acquire()
            with self.locked():
                pass

    def follow_if_free(self) -> None:
        """The same while the folder is listed, which may take longer than the journal lasts: it waits for nobody, since
        it is called again soon.
        """
        if self._is_behind() and self.lock.try_lock():
            with self.locked():
                pass

    def _is_behind(self) -> bool:
        """Whether there is something to be learned from the journal."""
        return not self.mirror.is_watching and (not self.journal.is_followed or self.journal.has_news())

    async def delete_orphans(self) -> None:
        """Deletes executable variants whose blob is gone: a process died between the two."""
        index = self.mirror.index
        orphans = [key for key in index.executables if key not in index.slots]
        for start in range(0, len(orphans), SLICE):
            await self.lock.acquire()
            with self.locked():
                for key in orphans[start : start + SLICE]:
                    if key not in index.slots:
                        self.delete_executable(key)
            await trio.sleep(POLITE_PAUSE_S)

    async def delete_empty(self, files: list[tuple[Folder, str]]) -> int:
        """Deletes files that are still empty; returns how many they were."""
        count = 0
        for start in range(0, len(files), SLICE):
            await self.lock.acquire()
            with self.locked():
                for folder, name in files[start : start + SLICE]:
                    count += self._delete_if_empty(folder, name)
            await trio.sleep(POLITE_PAUSE_S)
        return count

    def _delete_if_empty(self, folder: Folder, name: str) -> bool:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder.fd)
        except OSError:
            return False
        try:
            # Somebody may be copying files in: theirs are empty at first, too.
            if os.fstat(fd).st_size or not nobody_writes_to(fd):
                return False
        finally:
            os.close(fd)
        self.unlink(folder, name, 0)
        return True

    async def evict_some(self, size: int | None = None) -> bool:
        """Evicts a slice of blobs, or as many as have `size` bytes if those are fewer. False if there are none."""
        freed = self.evicted_bytes + size if size is not None else None
        await self.lock.acquire()
        with self.locked():
            for _ in range(SLICE):
                if freed is not None and self.evicted_bytes >= freed:
                    break
                if not self.evict_oldest():
                    return False
        return True

    def evict_oldest(self, *, beside: IndexKey | None = None) -> bool:
        """Deletes the least recently used blob, or comes a step nearer to it. Under the lock.

        Returns False if there is nothing (else than `beside`) to evict.
        """
        index = self.mirror.index
        slot = index.oldest()
        if slot is None:
            return not index.is_empty or self._evict_orphan()
        key, size = index.key_at(slot), index.sizes[slot]
        if key == beside:
            return False
        if self._uses.is_alone:
            self.delete(key, size)
        elif not self._delete_unless_used(slot, key, size):
            return True
        self.evicted_blobs += 1
        self.evicted_bytes += size
        return True

    def _delete_unless_used(self, slot: int, key: IndexKey, size: int) -> bool:
        """Deletes a file, unless another process uses it at this moment (see uses.py). Under the lock."""
        uses, cell, used = self._uses, self.mirror.index.cells[slot], self.mirror.index.used[slot]
        uses.condemn(cell)
        try:
            uses.fence()
            if uses.last(cell) > used:
                return False
            self.delete(key, size)
            return True
        finally:
            uses.acquit()

    def knows_old_ones(self) -> bool:
        """Whether the oldest file that this process knows is one that may well go, though it does not know all yet.

        The first piece that a scan finds tells how old an old one is.
        """
        if self.mirror.is_complete:
            return True
        index = self.mirror.index
        slot = index.oldest()
        return self._scanner.has_sample and (slot is None or index.used[slot] < self._scanner.began)

    def delete(self, key: IndexKey, size: int) -> None:
        """Deletes a file of the index, and the executable variant of a blob. Under the lock."""
        folder, name = self.mirror.layout.place_of(key, size)
        if size >= _LARGE and len(self._closing) < 64:
            self._free_later(folder, name)
        self.unlink(folder, name, size)
        if folder is self.mirror.layout.blobs:
            if not self.mirror.is_exact and is_blob(key) and key not in self.mirror.index.executables:
                self.mirror.index.add_executable(key, size)  # Another process may have made one.
            self.delete_executable(key)

    def delete_executable(self, key: IndexKey) -> None:
        """Deletes the executable variant of a blob, if there is one. Under the lock."""
        slot = self.mirror.index.executables.get(key)
        if slot is not None:
            size = self.mirror.index.sizes[slot]
            self.unlink(self.mirror.layout.executables, file_name(key, size), size)

    def moved_away(self, folder: Folder, name: str, *, key: IndexKey, size: int) -> None:
        """Notes that a file was moved out of the folder, and deletes its variant. Under the lock."""
        self._count(-self.mirror.index.cost(size), folder, name, None)
        self.mirror.removed(folder, name)
        if folder is self.mirror.layout.blobs:
            self.delete_executable(key)

    async def free_large(self) -> None:
        """Lets go of large files that were evicted."""
        while self._closing:
            closing, self._closing = self._closing, []
            await trio.to_thread.run_sync(_close_all, closing)

    def close(self) -> None:
        """Frees what is left, at the end."""
        _close_all(self._closing)
        self._closing.clear()

    def unlink(self, folder: Folder, name: str, size: int) -> None:
        """Deletes a file and takes it off the sum. Under the lock."""
        try:
            os.unlink(name, dir_fd=folder.fd)
        except FileNotFoundError:
            pass  # Another process was faster, and has taken it off the sum.
        else:
            self._count(-self.mirror.index.cost(size), folder, name, None)
        self.mirror.removed(folder, name)

    def _free_later(self, folder: Folder, name: str) -> None:
        """Keeps a file open that is about to be deleted: its blocks are freed when that is closed, in a thread."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder.fd)
        except OSError:
            return  # Then it is freed here and now.
        self._closing.append(fd)

    def _evict_orphan(self) -> bool:
        for key in self.mirror.index.executables:
            self.delete_executable(key)
            return True
        return False

    def expire(self, limit: int) -> int:
        """Deletes up to `limit` blobs that nobody has used for `max_seconds`; returns how many it looked at."""
        if not self.policy.max_seconds:
            return 0
        index = self.mirror.index
        horizon = time.monotonic() - self.policy.max_seconds
        for count in range(limit):
            slot = index.oldest()
            if slot is None and index.is_empty:
                return count
            if slot is not None:
                if index.used[slot] >= horizon:
                    return count
                self.evict_oldest()
        return limit


class _Section:
    """The section under the lock, as a context manager: one for all times, since it is never entered twice at once."""

    __slots__ = ("_evictor",)

    def __init__(self, evictor: Evictor) -> None:
        self._evictor = evictor

    def __enter__(self) -> None:
        evictor = self._evictor
        try:
            evictor.begin()
        except BaseException:
            evictor.lock.unlock()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        evictor = self._evictor
        try:
            if kind is None:
                evictor.end()
        finally:
            evictor.lock.unlock()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)

"""Evictions: what goes when there is no room, and the sum of bytes that all processes on a folder keep.

Rules for this file: what is deleted or counted is so under the lock of the folder (lock.py), in which nothing awaits.
"""

from __future__ import annotations

import os
import time
from types import TracebackType

import trio

from nl.plugin import EvictionPolicy
from nl.stores.filesystem.layout import Folder
from nl.stores.filesystem.leases import nobody_writes_to
from nl.stores.filesystem.lock import Lock, Sum
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
        self.policy = policy
        self.evicted_blobs = 0
        self.evicted_bytes = 0
        self._sum = Sum(0, 0)
        self._closing: list[int] = []
        self._section = _Section(self)

    def locked(self) -> _Section:
        """After `lock.acquire` or `lock.try_lock`: the index is up to date in the block, and the lock free after it."""
        return self._section

    def learn_sum(self) -> None:
        """What holders of the lock before this one have told. While locked, where the index cannot say it."""
        self._sum = self.lock.read_sum() or Sum(self.mirror.index.bytes, 0)

    @property
    def sum(self) -> int:
        """Bytes that all files count for, as far as is known. While locked."""
        return self.mirror.index.bytes if self.mirror.is_exact else self._sum.bytes

    def count(self, change: int) -> None:
        """Notes that files came (or went) that count for so many bytes: at once, as this process may be killed."""
        if not self.mirror.is_exact:
            self.tell(Sum(self._sum.bytes + change, self._sum.moved + abs(change)))

    def tell(self, told: Sum) -> None:
        """Leaves a sum to those who will have the lock next."""
        self._sum = told
        self.lock.write_sum(told)

    async def tell_sum(self) -> None:
        """Tells the sum to a process that has just come, and to whoever comes after this one."""
        await self.lock.acquire()
        with self.locked():
            if self.mirror.is_exact:
                self.tell(Sum(self.mirror.index.bytes, 0))

    async def begin_listing(self) -> int:
        """Before a scan: what `settle` needs to know after it."""
        await self.lock.acquire()
        with self.locked():
            return self._sum.moved

    async def settle(self, moved: int) -> None:
        """After a scan: tells all processes the sum, if theirs is certainly wrong (some may have been killed).

        Without inotify, the listing itself is off by what came and went meanwhile.
        """
        await self.lock.acquire()
        with self.locked():
            listed = self.mirror.index.bytes
            if not self.mirror.is_exact and abs(listed - self._sum.bytes) > self._sum.moved - moved:
                self.tell(Sum(listed, self._sum.moved))

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
        self.delete(key, size)
        self.evicted_blobs += 1
        self.evicted_bytes += size
        return True

    def may_others_be_older(self) -> bool:
        """Whether files that this process has not heard of may have been used before the oldest that it knows.

        Without inotify, what others have written since the last listing began: it was used after that. Where listing
        would take much of the time, False: then the oldest of what is known must do.
        """
        index = self.mirror.index
        if self.mirror.is_watching or index.is_alone or not self._scanner.may_scan_again():
            return False
        slot = index.oldest()
        return slot is not None and index.used[slot] >= self._scanner.listed_at

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
        self.mirror.removed(folder, name)
        self.count(-self.mirror.index.cost(size))
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
            self.count(-self.mirror.index.cost(size))
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
            evictor.mirror.refresh()
            if not evictor.mirror.is_exact:
                evictor.learn_sum()
        except BaseException:
            evictor.lock.unlock()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        evictor = self._evictor
        try:
            # If nobody else is there, nobody is told: `tell_sum` is for who comes.
            if kind is None and evictor.mirror.is_exact and not evictor.mirror.index.is_alone:
                evictor.tell(Sum(evictor.mirror.index.bytes, 0))
        finally:
            evictor.lock.unlock()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)

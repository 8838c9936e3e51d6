"""Commits: the short section in which a finished file becomes visible and old ones make room for it.

The section runs under the lock of the folder (lock.py). In it the index is brought up to date, so the sum that is
compared with `max_bytes` is the sum over all processes, and it stays under it whoever writes. Where the index is not
exact (during a scan, without inotify) the sum is the one that all processes keep in the lock's file, and what is
evicted is the oldest of what is known. No upload waits for a scan, but for a moment when nothing is known yet.

Rules for this file: nothing awaits while the lock is held, and it is held for microseconds.
"""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from nl.plugin import BlobNotFoundError, Digest, EvictionPolicy, ExhaustedError, TooLargeError
from nl.stores.filesystem.layout import Folder
from nl.stores.filesystem.leases import nobody_writes_to
from nl.stores.filesystem.lock import Lock, Sum
from nl.stores.filesystem.mirror import Mirror
from nl.stores.filesystem.names import IndexKey, file_name, is_blob, name_of
from nl.stores.filesystem.scanning import Scanner

SLICE = 64
"""Evictions in one go, before others may run: about a millisecond."""
_LARGE = 8 * 1024 * 1024
"""Files from this size on take the file system so long to free that a thread does it."""
_POLITE_PAUSE_S = 0.001
"""Between slices of background eviction, so that uploads of other processes get the lock."""
_PATIENCE_S = 1.0
"""How long after its beginning a scan may make uploads wait that find nothing to evict."""


class Committer:
    """Makes files visible and keeps the folder within its policy."""

    def __init__(self, mirror: Mirror, scanner: Scanner, policy: EvictionPolicy) -> None:
        self.mirror = mirror
        self.lock = Lock(mirror)
        self.policy = policy
        self.evicted_blobs = 0
        self.evicted_bytes = 0
        self._scanner = scanner
        self._sum = Sum(0, 0)
        self._closing: list[int] = []
        self._is_bounded = bool(policy.max_bytes or policy.max_count)

    def refuse_too_large(self, key: object, size: int) -> None:
        """Raises TooLargeError for what could not be kept even alone: it must not be acknowledged."""
        limit = self.policy.max_bytes
        if limit and self.mirror.index.cost(size) > limit:
            raise TooLargeError(
                f"{key}: {size} bytes never fit into the filesystem store {self.mirror.layout.name!r}, "
                f"whose max_bytes is {limit}"
            )

    def is_intact(self, digest: Digest) -> bool:
        """Whether a blob is there and known to be right, so that it need not be written again; a use of it if so."""
        index = self.mirror.index
        slot = index.blob(digest)
        if slot is None or not index.is_known(slot):
            return False
        folder = self.mirror.layout.blobs
        try:
            facts = os.stat(name_of(digest), dir_fd=folder.fd, follow_symlinks=False)
        except OSError:
            return False
        if not index.is_known_as(slot, inode=facts.st_ino, mtime_ns=facts.st_mtime_ns, size=facts.st_size):
            return False
        index.touch(slot, time.monotonic())
        return True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """After `lock.acquire` or `lock.try_lock`: the index is up to date in the block, and the lock free after it."""
        try:
            self.mirror.refresh()
            if self.mirror.is_exact:
                yield
                self._tell(Sum(self.mirror.index.bytes, 0))
            else:
                self._sum = self.lock.read_sum() or Sum(self.mirror.index.bytes, 0)
                yield
        finally:
            self.lock.unlock()

    @property
    def sum(self) -> int:
        """Bytes that all files count for, as far as is known. While locked."""
        return self.mirror.index.bytes if self.mirror.is_exact else self._sum.bytes

    def _count(self, change: int) -> None:
        """Notes that files came (or went) that count for so many bytes: at once, as this process may be killed."""
        if not self.mirror.is_exact:
            self._tell(Sum(self._sum.bytes + change, self._sum.moved + abs(change)))

    def _tell(self, told: Sum) -> None:
        self._sum = told
        self.lock.write_sum(told)

    async def commit(
        self, temp_name: str, folder: Folder, name: str, *, key: IndexKey, facts: os.stat_result,
        is_known: bool = True, beside: IndexKey | None = None,
    ) -> None:
        """Renames a finished file of `temp` to its place, for which it makes room before.

        `facts` is its stat; `is_known` says that its bytes are right (or that its key does not tell what is right).
        `beside` must stay: the file is a variant of it. Raises OSError, ExhaustedError if it cannot fit,
        BlobNotFoundError if `beside` has gone. *Cancellation*: the file is then still in `temp`.
        """  # fmt: skip
        self.refuse_too_large(key, facts.st_size)
        cost = self.mirror.index.cost(facts.st_size)
        room = Room(self, cost, count=1 if beside is None else 0, folder=folder, name=name, beside=beside)
        is_patient = self._is_bounded
        while True:
            if not self.lock.try_lock():
                await self.lock.acquire()
            with self.locked():
                made = room.make() if self._is_bounded else Made.YES
                if made is Made.NOTHING_KNOWN and not is_patient:
                    made = Made.YES  # More than max_bytes for a while is better than a client that waits.
                if made is Made.YES:
                    self._place(temp_name, folder, name, key=key, facts=facts, is_known=is_known)
                    return
            if made is Made.NOTHING_KNOWN:
                is_patient = await self._scanner.progress(patience_s=_PATIENCE_S)
            await trio.lowlevel.checkpoint()

    def _place(
        self, temp_name: str, folder: Folder, name: str, *, key: IndexKey, facts: os.stat_result, is_known: bool
    ) -> None:
        mirror = self.mirror
        replaced = 0 if mirror.is_exact else self._cost_on_disk(folder, name)
        os.rename(temp_name, name, src_dir_fd=mirror.layout.temp.fd, dst_dir_fd=folder.fd)
        self._count(mirror.index.cost(facts.st_size) - replaced)
        inode, mtime_ns = (facts.st_ino, facts.st_mtime_ns) if is_known else (0, 0)
        mirror.placed(folder, name, key=key, size=facts.st_size, inode=inode, mtime_ns=mtime_ns)

    def _cost_on_disk(self, folder: Folder, name: str) -> int:
        """What a file counts for that is about to be replaced, whoever has put it there."""
        try:
            return self.mirror.index.cost(os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_size)
        except FileNotFoundError:
            return 0

    async def trim(self) -> None:
        """Evicts what the policy does not allow, in slices: after a scan, and now and then for age."""
        room = Room(self, 0, count=0)
        while True:
            await self.lock.acquire()
            with self.locked():
                if not self.mirror.is_exact and self.mirror.is_watching:
                    return
                if room.make() is not Made.NOT_YET and self._expire(SLICE) < SLICE:
                    return
            await trio.sleep(_POLITE_PAUSE_S)

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
                self._tell(Sum(listed, self._sum.moved))

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
            await trio.sleep(_POLITE_PAUSE_S)

    async def delete_empty(self, files: list[tuple[Folder, str]]) -> int:
        """Deletes files that are still empty; returns how many they were."""
        count = 0
        for start in range(0, len(files), SLICE):
            await self.lock.acquire()
            with self.locked():
                for folder, name in files[start : start + SLICE]:
                    count += self._delete_if_empty(folder, name)
            await trio.sleep(_POLITE_PAUSE_S)
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
        self._unlink(folder, name, 0)
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

    def delete(self, key: IndexKey, size: int) -> None:
        """Deletes a file of the index, and the executable variant of a blob. Under the lock."""
        folder, name = self.mirror.layout.place_of(key, size)
        if size >= _LARGE and len(self._closing) < 64:
            self._free_later(folder, name)
        self._unlink(folder, name, size)
        if folder is self.mirror.layout.blobs:
            if not self.mirror.is_exact and is_blob(key) and key not in self.mirror.index.executables:
                self.mirror.index.add_executable(key, size)  # Another process may have made one.
            self.delete_executable(key)

    def delete_executable(self, key: IndexKey) -> None:
        """Deletes the executable variant of a blob, if there is one. Under the lock."""
        slot = self.mirror.index.executables.get(key)
        if slot is not None:
            size = self.mirror.index.sizes[slot]
            self._unlink(self.mirror.layout.executables, file_name(key, size), size)

    def moved_away(self, folder: Folder, name: str, *, key: IndexKey, size: int) -> None:
        """Notes that a file was moved out of the folder, and deletes its variant. Under the lock."""
        self.mirror.removed(folder, name)
        self._count(-self.mirror.index.cost(size))
        if folder is self.mirror.layout.blobs:
            self.delete_executable(key)

    async def rename(self, fd: int, old: Digest, new: Digest, *, key: IndexKey) -> None:
        """Gives the file that `fd` is open on, and that is `new`, its name; nothing if it has been replaced."""
        folder = self.mirror.layout.blobs
        await self.lock.acquire()
        with self.locked():
            ours = os.fstat(fd)
            try:
                there = os.stat(name_of(old), dir_fd=folder.fd, follow_symlinks=False)
            except FileNotFoundError:
                return
            if (there.st_ino, there.st_dev) != (ours.st_ino, ours.st_dev):
                return
            os.rename(name_of(old), name_of(new), src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
            self.mirror.removed(folder, name_of(old))
            self.mirror.placed(
                folder, name_of(new), key=key, size=ours.st_size, inode=ours.st_ino, mtime_ns=ours.st_mtime_ns
            )

    async def free_large(self) -> None:
        """Lets go of large files that were evicted."""
        while self._closing:
            closing, self._closing = self._closing, []
            await trio.to_thread.run_sync(_close_all, closing)

    def close(self) -> None:
        """Frees what is left, at the end."""
        _close_all(self._closing)
        self._closing.clear()

    def _unlink(self, folder: Folder, name: str, size: int) -> None:
        try:
            os.unlink(name, dir_fd=folder.fd)
        except FileNotFoundError:
            pass  # Another process was faster, and has taken it off the sum.
        else:
            self._count(-self.mirror.index.cost(size))
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

    def _expire(self, limit: int) -> int:
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


class Made(enum.Enum):
    """Whether there is room."""

    YES = enum.auto()
    NOT_YET = enum.auto()
    NOTHING_KNOWN = enum.auto()
    """There is not, and nothing that could be evicted is known: a scan will find something."""


class Room:
    """Making room for one file: remembers, from slice to slice, how far down the eviction is to go."""

    def __init__(
        self, committer: Committer, cost: int, *, count: int = 1, folder: Folder | None = None, name: str = "",
        beside: IndexKey | None = None,
    ) -> None:  # fmt: skip
        self._committer = committer
        self._cost = cost
        self._count = count
        self._folder = folder
        self._name = name
        self._beside = beside
        self._is_evicting = False

    def make(self) -> Made:
        """Evicts a slice of what is needed. Under the lock. Raises ExhaustedError, BlobNotFoundError for `beside`."""
        committer = self._committer
        self._refuse_if_not_both_fit()
        for _ in range(SLICE):
            if self._is_enough():
                return Made.YES
            if not committer.evict_oldest(beside=self._beside):
                if self._beside is not None:
                    raise self._no_room()
                # What could not fit alone has been refused before: the rest of the sum is not known yet.
                return Made.YES if committer.mirror.is_exact else Made.NOTHING_KNOWN
        return Made.YES if self._is_enough() else Made.NOT_YET

    def _is_enough(self) -> bool:
        """Whether the file may be placed: under max_bytes, or once that was exceeded, evict_bytes below it."""
        committer = self._committer
        policy, index = committer.policy, committer.mirror.index
        known = None if self._folder is None else committer.mirror.known_as(self._folder, self._name)
        replaced = 0 if known is None else index.cost(index.sizes[known[1]])
        total = committer.sum + self._cost - replaced
        if policy.max_bytes and total > policy.max_bytes:
            self._is_evicting = True
        if self._is_evicting and total > max(policy.max_bytes - policy.evict_bytes, self._cost):
            return False
        count = len(index) + (self._count if known is None else 0)
        return not policy.max_count or count <= policy.max_count

    def _refuse_if_not_both_fit(self) -> None:
        if self._beside is None:
            return
        mirror, limit = self._committer.mirror, self._committer.policy.max_bytes
        slot = mirror.index.slots.get(self._beside)
        if slot is None and mirror.is_exact:
            raise BlobNotFoundError(self._name, mirror.layout.where)
        if limit and slot is not None and self._cost + mirror.index.cost(mirror.index.sizes[slot]) > limit:
            raise self._no_room()

    def _no_room(self) -> ExhaustedError:
        return ExhaustedError(f"{self._committer.mirror.layout.where} has no room for a second file of {self._name}")


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)

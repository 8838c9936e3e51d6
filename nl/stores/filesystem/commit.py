"""Commits: the short section in which a finished file becomes visible and old ones make room for it.

The section runs under a lock that all processes on the folder share. In it the index is brought up to date, so the sum
that is compared with `max_bytes` is the sum over all of them, and it stays under it whoever writes.

Rules for this file: nothing awaits while the lock is held, so the lock is held for microseconds; waiting for it is
polling, so a process that was stopped while holding it stalls uploads (and says so), never the loop.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from nl.plugin import Digest, EvictionPolicy, TooLargeError, UnavailableError
from nl.stores.filesystem.index import Entry
from nl.stores.filesystem.layout import Folder
from nl.stores.filesystem.mirror import Mirror
from nl.stores.filesystem.names import IndexKey, name_of

_log = logging.getLogger(__name__)

_SLICE = 64
"""Evictions in one go, before others may run: about a millisecond."""
_LARGE = 8 * 1024 * 1024
"""Files from this size on take the file system so long to free that a thread does it."""
_POLITE_PAUSE_S = 0.001
"""Between slices of background eviction, so that uploads of other processes get the lock."""
_LONGEST_PAUSE_S = 0.001
_LOCK_WARNING_S = 5.0
_LOCK_TIMEOUT_S = 60.0
_SCAN_TIMEOUT_S = 30.0
_ATIME_SLACK_S = 0.001


class Lock:
    """The lock of a folder, between processes. Taken and given back without an await between."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._layout = mirror.layout
        self._next_to_poll = trio.Lock()  # Of all who wait in this process, the first one polls.
        self.waits = 0

    def try_lock(self) -> bool:
        """Takes the lock if nobody has it."""
        try:
            fcntl.flock(self._layout.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(self) -> None:
        """Gives the lock back."""
        fcntl.flock(self._layout.lock_fd, fcntl.LOCK_UN)

    async def acquire(self) -> None:
        """Waits for the lock. The caller gives it back before its next await.

        Raises UnavailableError, naming the process that has it, after a minute.
        """
        if self.try_lock():
            return
        self.waits += 1
        await self._next_to_poll.acquire()
        try:
            await self._poll()
        finally:
            self._next_to_poll.release()

    async def _poll(self) -> None:
        began = trio.current_time()
        pause, warned = 0.0002, False
        while not self.try_lock():
            await trio.sleep(pause)
            self._mirror.refresh()  # Others may be changing much: the kernel's queue must not run over.
            pause = min(pause * 2, _LONGEST_PAUSE_S)
            waited = trio.current_time() - began
            if waited > _LOCK_TIMEOUT_S:
                raise UnavailableError(
                    f"filesystem store {self._layout.name!r}: cannot write: {self._layout.lock_path} has been locked "
                    f"for {waited:.0f} s by {self._holder()}"
                )
            if waited > _LOCK_WARNING_S and not warned:
                warned = True
                _log.warning(
                    "store %s: uploads wait: %s is locked by %s. If that process is stopped, continue or kill it",
                    self._layout.name, self._layout.lock_path, self._holder(),
                )  # fmt: skip

    @contextmanager
    def held(self) -> Iterator[None]:
        """After `acquire`: gives the lock back at the end of the block."""
        try:
            yield
        finally:
            self.unlock()

    def _holder(self) -> str:
        try:
            inode = str(os.fstat(self._layout.lock_fd).st_ino)
            with open("/proc/locks", encoding="ascii") as lines:
                for line in lines:
                    words = line.split()
                    if "->" not in words and words[5].rpartition(":")[2] == inode:
                        return f"process {words[4]}"
        except (OSError, IndexError):
            pass
        return "a process that cannot be seen from here"


class Committer:
    """Makes files visible and keeps the folder within its policy."""

    def __init__(self, mirror: Mirror, policy: EvictionPolicy) -> None:
        self.mirror = mirror
        self.lock = Lock(mirror)
        self.policy = policy
        self.evicted_blobs = 0
        self.evicted_bytes = 0
        self.spared_blobs = 0
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
        entry = index.blobs.get(digest)
        if entry is None or not entry.inode:
            return False
        folder, name = self.mirror.layout.place_of(digest)
        try:
            facts = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        except OSError:
            return False
        if not entry.is_known_as(facts.st_ino, facts.st_mtime_ns, facts.st_size):
            return False
        index.touch(digest, entry, time.time())
        return True

    async def commit(
        self, temp_name: str, folder: Folder, name: str, *, key: IndexKey, facts: os.stat_result, is_known: bool = True
    ) -> None:
        """Renames a finished file of `temp` to its place, for which it makes room before.

        `facts` is its stat; `is_known` says that its bytes are right (or that its key does not tell what is right).
        Raises OSError, or ExhaustedError if it cannot fit. *Cancellation*: the file is then still in `temp`.
        """
        executables = self.mirror.layout.executables
        self.refuse_too_large(key, facts.st_size)
        must_wait = self._is_bounded
        room = Room(self, self.mirror.index.cost(facts.st_size), replaced=key if folder is not executables else None)
        temp_fd = self.mirror.layout.temp.fd
        while True:
            if must_wait and not self.mirror.scanned.is_set():
                must_wait = await self._is_scanned_in_time()
            if not self.lock.try_lock():
                await self.lock.acquire()
            try:
                self.mirror.refresh()
                if must_wait and not self.mirror.scanned.is_set():
                    continue
                if not self._is_bounded or room.is_made():
                    os.rename(temp_name, name, src_dir_fd=temp_fd, dst_dir_fd=folder.fd)
                    entry = Entry(facts.st_size, used=-time.time())
                    if is_known:
                        entry.inode, entry.mtime_ns = facts.st_ino, facts.st_mtime_ns
                    self.mirror.placed(folder, name, key=key, entry=entry)
                    return
            finally:
                self.lock.unlock()
            await trio.lowlevel.checkpoint()

    async def trim(self) -> None:
        """Evicts what the policy does not allow, in slices: after a scan, and now and then for age."""
        room = Room(self, 0, count=0)
        while True:
            await self.lock.acquire()
            with self.lock.held():
                self.mirror.refresh()
                if not self.mirror.is_exact and self.mirror.is_watching:
                    return
                if room.is_made() and self._expire(_SLICE) < _SLICE:
                    return
            await trio.sleep(_POLITE_PAUSE_S)

    def evict_oldest(self) -> bool:
        """Deletes the least recently used blob, unless another process used it lately. Under the lock.

        Returns False if there is nothing to evict.
        """
        oldest = self.mirror.index.oldest()
        if oldest is None:
            return self._evict_orphan()
        key, entry = oldest
        folder, name = self.mirror.layout.place_of(key)
        try:
            facts = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        except FileNotFoundError:
            self.mirror.removed(folder, name, key=key)
            return True
        if facts.st_atime > abs(entry.used) + _ATIME_SLACK_S:
            # Somebody else used it: it goes round once more. `used` is now what the file says, so only once.
            entry.used = -facts.st_atime
            self.mirror.index.blobs.move_to_end(key)
            self.spared_blobs += 1
            return True
        self.delete(key, facts=facts)
        self.evicted_blobs += 1
        self.evicted_bytes += entry.size
        return True

    def delete(self, key: IndexKey, *, facts: os.stat_result) -> None:
        """Deletes a blob and its executable variant. Under the lock."""
        folder, name = self.mirror.layout.place_of(key)
        if facts.st_size >= _LARGE and facts.st_nlink == 1 and len(self._closing) < 64:
            # The blocks are freed when the last descriptor is closed: later, in a thread.
            try:
                self._closing.append(os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder.fd))
            except OSError:
                pass  # Then it is freed here and now.
        try:
            os.unlink(name, dir_fd=folder.fd)
        except FileNotFoundError:
            pass
        self.mirror.removed(folder, name, key=key)
        if folder is self.mirror.layout.blobs:
            self.delete_executable(key)

    def delete_executable(self, key: IndexKey) -> None:
        """Deletes the executable variant of a blob, if there is one. Under the lock."""
        if not isinstance(key, str) and key in self.mirror.index.executables:
            folder, name = self.mirror.layout.executables, name_of(key)
            try:
                os.unlink(name, dir_fd=folder.fd)
            except FileNotFoundError:
                pass
            self.mirror.removed(folder, name, key=key)

    async def rename(self, fd: int, old: Digest, new: Digest) -> None:
        """Gives the file that `fd` is open on, and that is `new`, its name; nothing if it has been replaced."""
        folder = self.mirror.layout.blobs
        await self.lock.acquire()
        with self.lock.held():
            self.mirror.refresh()
            ours = os.fstat(fd)
            try:
                there = os.stat(name_of(old), dir_fd=folder.fd, follow_symlinks=False)
            except FileNotFoundError:
                return
            if (there.st_ino, there.st_dev) != (ours.st_ino, ours.st_dev):
                return
            os.rename(name_of(old), name_of(new), src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
            self.mirror.removed(folder, name_of(old), key=old)
            entry = Entry(ours.st_size, used=time.time(), inode=ours.st_ino, mtime_ns=ours.st_mtime_ns)
            self.mirror.placed(folder, name_of(new), key=new, entry=entry)

    async def free_large(self) -> None:
        """Lets go of large files that were evicted."""
        while self._closing:
            closing, self._closing = self._closing, []
            await trio.to_thread.run_sync(_close_all, closing)

    def close(self) -> None:
        """Frees what is left, at the end."""
        _close_all(self._closing)
        self._closing.clear()

    def _evict_orphan(self) -> bool:
        for digest in self.mirror.index.executables:
            self.delete_executable(digest)
            return True
        return False

    def _expire(self, limit: int) -> int:
        """Deletes up to `limit` blobs that nobody has used for `max_seconds`; returns how many it looked at."""
        if not self.policy.max_seconds:
            return 0
        horizon = time.time() - self.policy.max_seconds
        for count in range(limit):
            oldest = self.mirror.index.oldest()
            if oldest is None or abs(oldest[1].used) >= horizon:
                return count
            self.evict_oldest()
        return limit

    async def _is_scanned_in_time(self) -> bool:
        """Waits until the index is complete, so that there is a sum to keep; False if that takes too long."""
        with trio.move_on_after(_SCAN_TIMEOUT_S):
            while not self.mirror.scanned.is_set():
                await self.mirror.scanned.wait()
            return True
        _log.warning(
            "store %s: listing %s takes more than %d s; uploads go on meanwhile, and max_bytes is kept afterwards",
            self.mirror.layout.name, self.mirror.layout.content_path, _SCAN_TIMEOUT_S,
        )  # fmt: skip
        return False


class Room:
    """Making room for one file: remembers, from slice to slice, how far down the eviction is to go."""

    def __init__(self, committer: Committer, cost: int, *, count: int = 1, replaced: IndexKey | None = None) -> None:
        self._committer = committer
        self._cost = cost
        self._count = count
        self._replaced = replaced
        self._target = -1

    def is_made(self) -> bool:
        """Evicts a slice of what is needed; True if the file may now be placed. Under the lock."""
        index = self._committer.mirror.index
        policy = self._committer.policy
        for _ in range(_SLICE):
            replaced = None if self._replaced is None else index.blobs.get(self._replaced)
            cost = self._cost - (index.cost(replaced.size) if replaced else 0)
            count = self._count - (1 if replaced else 0)
            if policy.max_bytes and self._target < 0 and index.bytes + cost > policy.max_bytes:
                self._target = max(0, policy.max_bytes - policy.evict_bytes)
            enough = self._target < 0 or index.bytes + cost <= max(self._target, self._cost)
            if enough and (not policy.max_count or len(index) + count <= policy.max_count):
                return True
            if not self._committer.evict_oldest():
                break
        else:
            return False
        return True  # Nothing is left to evict, and what could not fit alone has been refused before.


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)

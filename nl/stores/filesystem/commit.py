"""Commits: the short section in which a finished file becomes visible and old ones make room for it.

The section runs under the lock of the folder (lock.py). In it the index is brought up to date, so the sum that is
compared with `max_bytes` is the sum over all processes, and it stays under it whoever writes. Where the index is not
complete (during the first scan) the sum is the one that all processes keep in the lock's file, and what is evicted is
the oldest of what is known. No upload waits for a scan, but for a moment until enough is known to tell what is old.

Rules for this file: nothing awaits while the lock is held, and it is held for microseconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import trio

from nl.plugin import Digest, EvictionPolicy, TooLargeError
from nl.stores.filesystem.evicting import POLITE_PAUSE_S, SLICE, Evictor
from nl.stores.filesystem.layout import Folder
from nl.stores.filesystem.mirror import Mirror
from nl.stores.filesystem.names import IndexKey, index_key, name_of
from nl.stores.filesystem.room import Made, Room
from nl.stores.filesystem.scanning import Scanner

_PATIENCE_S = 10.0
"""How long after its beginning a scan may make uploads wait that do not know what to evict. It is its first piece that
they wait for: if that takes so long, the disk stands still."""


class Finished(NamedTuple):
    """A file of `temp` that is whole, and where it belongs."""

    temp_name: str
    folder: Folder
    name: str
    key: IndexKey
    facts: os.stat_result
    """Its stat."""


class Committer(Evictor):
    """Makes files visible and keeps the folder within its policy."""

    def __init__(self, mirror: Mirror, scanner: Scanner, policy: EvictionPolicy) -> None:
        super().__init__(mirror, scanner, policy)
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
        if slot is None or not index.is_known(slot) or not self._claim(digest):
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

    def is_there(self, digest: Digest) -> bool:
        """Whether there is a file of a blob, of its size, whoever has put it there; a use of it if so."""
        folder, index = self.mirror.layout.blobs, self.mirror.index
        if not self._claim(digest):
            return False
        try:
            size = os.stat(name_of(digest), dir_fd=folder.fd, follow_symlinks=False).st_size
        except OSError:
            return False
        slot = index.blob(digest)
        if slot is not None:
            index.touch(slot, time.monotonic())
        return size == digest.size

    def _claim(self, digest: Digest) -> bool:
        """Tells a use before it is looked whether a blob is there (see uses.py); False if it is being evicted now."""
        index = self.mirror.index
        if index.is_alone:
            return True
        key = index_key(digest)
        index.tell_keys((key,), time.monotonic())
        index.shared.fence()
        return index.shared.condemned != index.shared.cell_of(key)

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
        room: Room | None = None
        is_patient = self._is_bounded
        while True:
            await self.mirror.catch_up()
            if not self.lock.try_lock():
                await self.lock.acquire()
            with self.locked():
                if room is None and beside is None and self._has_room(cost):
                    made = Made.YES
                else:
                    count = 1 if beside is None else 0
                    room = room or Room(self, cost, count=count, folder=folder, name=name, beside=beside)
                    made = room.make(is_patient=is_patient) if self._is_bounded else Made.YES
                if made is Made.NOT_KNOWN and not is_patient:
                    made = Made.YES  # More than max_bytes for a while is better than a client that waits.
                if made is Made.YES:
                    self._place(temp_name, folder, name, key=key, facts=facts, is_known=is_known)
                    return
            if made is Made.NOT_KNOWN:
                is_patient = await self._scanner.progress(patience_s=_PATIENCE_S)
            await trio.lowlevel.checkpoint()

    async def commit_together(self, files: Sequence[Finished]) -> int:
        """Places files whose bytes are right, under the lock once, as long as they need no room made for them.

        Returns how many, from the first one on: the next one is to be committed by itself. Raises UnavailableError.
        """
        count = 0
        try:
            await self.lock.acquire()
            with self.locked():
                for temp_name, folder, name, key, facts in files:
                    if not self._has_room(self.mirror.index.cost(facts.st_size)):
                        break
                    self._place(temp_name, folder, name, key=key, facts=facts, is_known=True)
                    count += 1
        except OSError:
            pass  # committed by itself, the next one says why
        return count

    def _has_room(self, cost: int) -> bool:
        """Whether there is room for one more file, even if it replaces none: nearly always."""
        policy = self.policy
        return (not policy.max_bytes or self.sum + cost <= policy.max_bytes) and (
            not policy.max_count or len(self.mirror.index) < policy.max_count
        )

    def _place(
        self, temp_name: str, folder: Folder, name: str, *, key: IndexKey, facts: os.stat_result, is_known: bool
    ) -> None:
        mirror = self.mirror
        replaced = 0 if mirror.is_complete else self._cost_on_disk(folder, name)
        # Before: a process that is killed in between leaves too large a sum, not too small a one.
        self._count(mirror.index.cost(facts.st_size), folder, name, facts.st_size)
        try:
            os.rename(temp_name, name, src_dir_fd=mirror.layout.temp.fd, dst_dir_fd=folder.fd)
        except OSError:
            self._take_back(mirror.index.cost(facts.st_size))
            raise
        if replaced:
            self._take_back(replaced)
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
                if not self.mirror.is_complete:
                    return
                if room.make() is not Made.NOT_YET and self.expire(SLICE) < SLICE:
                    return
            await trio.sleep(POLITE_PAUSE_S)

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
            cost = self.mirror.index.cost(ours.st_size)
            self._count(cost, folder, name_of(new), ours.st_size)
            os.rename(name_of(old), name_of(new), src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
            self._count(-cost, folder, name_of(old), None)
            self.mirror.removed(folder, name_of(old))
            self.mirror.placed(
                folder, name_of(new), key=key, size=ours.st_size, inode=ours.st_ino, mtime_ns=ours.st_mtime_ns
            )

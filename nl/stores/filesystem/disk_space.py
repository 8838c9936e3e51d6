"""Room on the disk: whether an upload for which there is none may have it made, and a reserve that is kept free.

A store that is itself what fills the disk makes room by eviction, as under `max_bytes`. One that is not never does:
what fills the disk is then somebody else's, and a cache that shrank for it would shrink to nothing. The line is half of
what is used: a store shrinks no further than to as much as all others have.

The kernel says ENOSPC for three things: no bytes, no inodes, and a folder that cannot take one more name.
"""

from __future__ import annotations

import enum
import errno
import os

import trio

from nl.plugin import Digest, ExhaustedError
from nl.stores.filesystem.evicting import SLICE, Evictor
from nl.stores.filesystem.layout import SPREAD

_DEFAULT_SHARE = 100
_MOST_BY_DEFAULT = 1 << 30
_NAMES_SHARE = 100
"""Of a folder that is full of names, a hundredth is evicted at first: which of them collide cannot be known."""
ATTEMPTS = 5
"""How often an upload has room made before it is refused."""


class Lacking(enum.Enum):
    """What there is none of; the value is for messages, and says what to do."""

    BYTES = "the disk is full: free some space, or give the store a smaller max_bytes"
    INODES = (
        "the file system has no inodes left, though it has bytes: delete small files, give the store a max_count, or "
        "make the file system with more inodes (mkfs.ext4 -i)"
    )
    NAMES = (
        "the folder cannot take one more name, though the disk has room: give the store a max_count, or the file "
        "system larger folders (tune2fs -O large_dir)"
    )


class DiskSpace:
    """Looks at the file system of the folder. `min_free` is the reserve in bytes; None means the usual one."""

    def __init__(self, evictor: Evictor, *, min_free: int | None) -> None:
        self._evictor = evictor
        self._layout = evictor.mirror.layout
        self._min_free = min_free
        self.made_room = 0
        """How often blobs were evicted for the disk's sake."""

    async def make_room(self, error: OSError, size: int) -> bool:
        """After an error while bytes were written, `size` of which are left: evicts, if that helps. Whether there is
        room now, of which others may have made some. It may be taken again: to be called a few times only.
        """
        return await self._make_room(error, size, names=0)

    async def make_room_for_name(self, error: OSError, *, attempt: int) -> bool:
        """After an error while a file got its name: evicts, if that helps. Whether it did.

        `attempt` is how often it was tried before: each time twice as many names are evicted.
        """
        share = max(SLICE, len(self._evictor.mirror.index) // _NAMES_SHARE) << attempt
        return await self._make_room(error, 0, names=share)

    async def _make_room(self, error: OSError, size: int, *, names: int) -> bool:
        if error.errno != errno.ENOSPC:
            return False
        facts = self._facts()
        lacking = self._lacking(facts, size)
        before = self._evictor.evicted_blobs
        has_room = facts.f_bavail * facts.f_frsize >= size + self._reserve(facts)
        if has_room and not names and lacking is not Lacking.INODES:
            return True  # others have made it since the error: another upload, or who keeps the reserve
        if lacking is Lacking.NAMES and names:
            await self._evict(names)
        elif not self._is_filled_by_us(facts, lacking):
            return False
        elif lacking is Lacking.INODES:
            await self._evict(SLICE)
        else:
            await self._free(size + self._reserve(facts))
        if self._evictor.evicted_blobs == before:
            return False
        self.made_room += 1
        return True

    async def keep_reserve(self) -> None:
        """Evicts until the reserve is free, if it is this store that fills the disk. Call it now and then."""
        facts = self._facts()
        reserve = self._reserve(facts)
        if facts.f_bavail * facts.f_frsize < reserve and self._is_filled_by_us(facts, Lacking.BYTES):
            self.made_room += 1
            await self._free(reserve)

    def refuse_to_keep(self, digest: Digest, path: str) -> None:
        """Raises ExhaustedError for a file that is on the disk already, and would keep it full if it stayed."""
        facts = self._facts()
        if os.stat(path, follow_symlinks=False).st_dev != os.fstat(self._layout.blobs.fd).st_dev:
            return
        missing = self._reserve(facts) - facts.f_bavail * facts.f_frsize
        if 0 < missing <= digest.size and not self._is_filled_by_us(facts, Lacking.BYTES):
            raise ExhaustedError(
                f"{self._layout.where}: {path} is not taken over as {digest}: it fills the disk, of which "
                f"{self._reserve(facts)} bytes are to stay free"
            )

    def advice(self, error: OSError, size: int) -> str:
        """What is lacking and what to do, for messages; empty for other errors."""
        return self._lacking(self._facts(), size).value if error.errno == errno.ENOSPC else ""

    def _facts(self) -> os.statvfs_result:
        return os.fstatvfs(self._layout.blobs.fd)

    def _reserve(self, facts: os.statvfs_result) -> int:
        if self._min_free is not None:
            return self._min_free
        return min(facts.f_blocks * facts.f_frsize // _DEFAULT_SHARE, _MOST_BY_DEFAULT)

    def _lacking(self, facts: os.statvfs_result, size: int) -> Lacking:
        if facts.f_files and not facts.f_favail:
            return Lacking.INODES
        free = facts.f_bavail * facts.f_frsize
        return Lacking.NAMES if free > size + self._reserve(facts) else Lacking.BYTES

    def _is_filled_by_us(self, facts: os.statvfs_result, lacking: Lacking) -> bool:
        """Whether at least half of what is used is this store's."""
        index = self._evictor.mirror.index
        if lacking is Lacking.INODES:
            ours = len(index) + len(index.executables) + SPREAD
            return 2 * ours >= facts.f_files - facts.f_ffree
        return self._more_than_others(facts) >= 0

    def _more_than_others(self, facts: os.statvfs_result) -> int:
        """By how many bytes this store has more on the disk than all others; below zero if less."""
        return 2 * self._evictor.mirror.index.bytes - (facts.f_blocks - facts.f_bfree) * facts.f_frsize

    async def _free(self, count: int) -> None:
        """Evicts until so many bytes are free, or others have more on the disk than this store."""
        while True:
            facts = self._facts()
            missing, more = count - facts.f_bavail * facts.f_frsize, self._more_than_others(facts)
            if missing <= 0 or more < 0:
                return
            if not await self._evictor.evict_some(min(missing, max(more, 1))):  # a slice must not go further than that
                return
            await self._evictor.free_large()
            await trio.lowlevel.checkpoint()

    async def _evict(self, files: int) -> None:
        before = self._evictor.evicted_blobs
        while self._evictor.evicted_blobs < before + files and await self._evictor.evict_some():
            await trio.lowlevel.checkpoint()

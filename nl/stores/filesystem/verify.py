"""Never a wrong byte: files that are not known to be right are hashed before their bytes are served.

Known to be right is a file whose inode, size and mtime are those that it had when this process wrote or hashed it.
"""

from __future__ import annotations

import hashlib
import logging
import os

import trio

from nl.plugin import SMALL, Digest, Hasher, new_hasher
from nl.stores.filesystem.index import Entry, Index

_log = logging.getLogger(__name__)

_READ = 256 * 1024
_PIECE = 64 * 1024 * 1024
"""Bytes that are hashed in one stay in a thread: 40 ms, after which a cancelled caller is let go."""


class Verifier:
    """Hashes files once, however many ask for them at the same time, and remembers the result in the index."""

    def __init__(self, index: Index, *, threads: trio.CapacityLimiter) -> None:
        self._index = index
        self._threads = threads
        self._running: dict[Digest, trio.Event] = {}
        self.hashed_blobs = 0
        self.hashed_bytes = 0

    async def is_right(self, fd: int, digest: Digest, entry: Entry | None = None) -> os.stat_result | None:
        """Whether an open file has the bytes of `digest`: its stat if so, else None.

        `entry`, or else the index's entry of the digest, is what the result is remembered in.
        """
        attempts = 0
        while True:
            facts = os.fstat(fd)
            if facts.st_size != digest.size:
                return None
            known = entry or self._index.blobs.get(digest)
            if known is not None and known.is_known_as(facts.st_ino, facts.st_mtime_ns, facts.st_size):
                return facts
            running = self._running.get(digest)
            if running is not None:
                await running.wait()
                continue
            done = self._running[digest] = trio.Event()
            try:
                right = await self._has_hash(fd, digest)
            finally:
                del self._running[digest]
                done.set()
            after = os.fstat(fd)
            if (after.st_mtime_ns, after.st_size) != (facts.st_mtime_ns, facts.st_size):
                attempts += 1  # Somebody writes to it right now.
                if attempts < 3:
                    continue
                return None
            if not right:
                return None
            known = entry or self._index.blobs.get(digest)
            if known is not None:
                known.inode, known.mtime_ns = after.st_ino, after.st_mtime_ns
            return after

    async def hashed(self, fd: int, digest: Digest) -> os.stat_result | None:
        """Hashes an open file, whatever is known of it: its stat if it has the bytes of `digest`, else None."""
        before = os.fstat(fd)
        if before.st_size != digest.size or not await self._has_hash(fd, digest):
            return None
        after = os.fstat(fd)
        same = (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)
        return after if same else None

    async def _has_hash(self, fd: int, digest: Digest) -> bool:
        hasher = new_hasher(digest.function)
        if digest.size <= SMALL:
            _update(hasher, fd, 0, digest.size)
        else:
            for offset in range(0, digest.size, _PIECE):
                await trio.to_thread.run_sync(_update, hasher, fd, offset, _PIECE, limiter=self._threads)
        self.hashed_blobs += 1
        self.hashed_bytes += digest.size
        return hasher.hexdigest() == digest.hash


def _update(hasher: Hasher, fd: int, offset: int, length: int) -> None:
    """Feeds a part of a file to a hash object."""
    buffer = memoryview(bytearray(min(_READ, length)))
    end = offset + length
    while offset < end:
        count = os.preadv(fd, [buffer[: min(len(buffer), end - offset)]], offset)
        if not count:
            return
        hasher.update(buffer[:count])
        offset += count


def describe_content(fd: int, size: int) -> str:
    """What a wrong file hashes to, for the log; only of small files."""
    if size > SMALL:
        return f"{size} bytes"
    hasher = hashlib.sha256()
    _update(hasher, fd, 0, size)
    return f"{size} bytes with the SHA256 {hasher.hexdigest()}"

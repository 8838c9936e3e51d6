"""Executable variants: a second file of a blob, mode 0555, as the source of hard links to executable inputs.

A blob's own file is 0444 and is linked to by others who want it so: its mode cannot be changed. A variant is made when
it is first wanted, counts against `max_bytes`, and goes with its blob.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable

import trio

from nl.plugin import SMALL, Digest
from nl.stores.filesystem.commit import Committer
from nl.stores.filesystem.copying import copy_bytes
from nl.stores.filesystem.names import index_key, name_of
from nl.stores.filesystem.quarantine import Quarantine
from nl.stores.filesystem.verify import Verifier
from nl.stores.filesystem.writing import TempFile

MODE = 0o555


class Executables:
    """Makes executable variants, each once however many want it at the same time."""

    def __init__(
        self, committer: Committer, verifier: Verifier, quarantine: Quarantine, *, threads: trio.CapacityLimiter
    ) -> None:
        self._committer = committer
        self._verifier = verifier
        self._quarantine = quarantine
        self._threads = threads
        self._running: dict[Digest, trio.Event] = {}

    async def identity_of(
        self, digest: Digest, opened: Callable[[Digest], Awaitable[tuple[int, os.stat_result]]]
    ) -> os.stat_result:
        """The stat of a variant that is there and right. `opened` opens the blob itself, and raises if it is missing.

        Raises OSError, ExhaustedError if there is no room beside the blob, BlobNotFoundError.
        """
        while True:
            running = self._running.get(digest)
            if running is None:
                break
            await running.wait()
        done = self._running[digest] = trio.Event()
        try:
            return await self._find(digest) or await self._make(digest, opened)
        finally:
            del self._running[digest]
            done.set()

    async def _find(self, digest: Digest) -> os.stat_result | None:
        """The variant that is there, hashed if that is necessary; set aside if it is wrong."""
        mirror = self._committer.mirror
        folder = mirror.layout.executables
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO there must not block the loop
            fd = os.open(name_of(digest), flags, dir_fd=folder.fd)
        except FileNotFoundError:
            return None
        try:
            facts = os.fstat(fd)
            if mirror.index.executable(digest) is None and facts.st_size == digest.size:
                mirror.index.add_executable(index_key(digest), facts.st_size)
            right = await self._verifier.is_right(fd, digest, is_variant=True)
            if right is None or right.st_mode != stat.S_IFREG | MODE:
                await self._quarantine.set_aside(folder, digest, fd)
                return None
            return right
        finally:
            os.close(fd)

    async def _make(
        self, digest: Digest, opened: Callable[[Digest], Awaitable[tuple[int, os.stat_result]]]
    ) -> os.stat_result:
        fd, before = await opened(digest)
        try:
            layout = self._committer.mirror.layout
            with TempFile(layout, mode=MODE) as file:
                if digest.size <= SMALL:
                    copied = copy_bytes(fd, file.fd, digest.size)
                else:
                    copied = await trio.to_thread.run_sync(
                        copy_bytes, fd, file.fd, digest.size, limiter=self._threads
                    )
                if copied != digest.size or os.fstat(fd).st_mtime_ns != before.st_mtime_ns:
                    raise OSError(errno.EIO, f"{digest} was changed while it was copied")
                facts = file.finish()
                key = index_key(digest)
                await self._committer.commit(
                    file.name, layout.executables, name_of(digest), key=key, facts=facts, beside=key
                )
                file.committed = True
                return facts
        finally:
            os.close(fd)

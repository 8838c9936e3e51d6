"""Files taken over as blobs: the outputs of actions.

The file is first renamed into `temp`, out of the reach of those who know its path. There it is kept if nobody else
can write to it: it has no other link, nobody has it open for writing (only then does the kernel grant a read lease),
it belongs to this process's user, and its mode is 0444. Otherwise it is copied. The caller has hashed it, but cannot
know that it did not change afterwards: up to HASHED_SIZE it is hashed again here; a larger one is hashed before it is
first read.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

import trio

from nl.plugin import EMPTY_DIGESTS, SMALL, Digest, InvalidRequestError, UploadMismatchError
from nl.stores.filesystem.commit import Committer
from nl.stores.filesystem.copying import copy_bytes
from nl.stores.filesystem.disk_space import ATTEMPTS, DiskSpace
from nl.stores.filesystem.leases import nobody_writes_to
from nl.stores.filesystem.oserrors import translate
from nl.stores.filesystem.verify import Verifier
from nl.stores.filesystem.writing import TempFile

HASHED_SIZE = 16 * 1024 * 1024
_MODE = 0o444
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Adopter:
    """Takes files over."""

    def __init__(
        self, committer: Committer, verifier: Verifier, space: DiskSpace, *, threads: trio.CapacityLimiter
    ) -> None:
        self._committer = committer
        self._verifier = verifier
        self._space = space
        self._threads = threads
        self.adopted = 0
        self.copied = 0

    async def adopt_file(self, digest: Digest, path: str) -> None:
        """See LocalFiles. Raises UploadMismatchError if the file is not what `digest` says.

        *Cancellation*: the file is then put back to its path.
        """
        await self._committer.mirror.catch_up()
        if digest in EMPTY_DIGESTS or self._committer.is_intact(digest):
            return
        self._committer.refuse_too_large(digest, digest.size)
        layout = self._committer.mirror.layout
        try:
            self._space.refuse_to_keep(digest, path)
            name = layout.temp_name()
            try:
                os.rename(path, name, dst_dir_fd=layout.temp.fd)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EACCES):
                    raise
                fd = os.open(path, _READ_FLAGS)
                try:
                    await self._copy(digest, fd, path)
                finally:
                    os.close(fd)
                return
            await self._take(digest, name, path)
        except OSError as error:
            raise translate(error, store=layout.name, path=path, doing="take over") from error
        self.adopted += 1

    async def _take(self, digest: Digest, name: str, path: str) -> None:
        """Commits a file that was moved to `temp` under `name`, or puts it back."""
        layout = self._committer.mirror.layout
        temp_fd = layout.temp.fd
        committed = False
        try:
            fd = os.open(name, _READ_FLAGS, dir_fd=temp_fd)
            try:
                _require_file(digest, fd, path)
                if not _seal(fd):
                    await self._copy(digest, fd, path)
                    return
                is_known = digest.size <= HASHED_SIZE
                facts = os.fstat(fd)
                if is_known:
                    facts = await self._hashed(digest, fd, path)
                folder, target, key = layout.locate(digest)
                await self._committer.commit(name, folder, target, key=key, facts=facts, is_known=is_known)
                committed = True
            finally:
                os.close(fd)
        finally:
            if not committed:
                with suppress(FileNotFoundError):
                    os.rename(name, path, src_dir_fd=temp_fd)

    async def _copy(self, digest: Digest, fd: int, path: str) -> None:
        """Commits a copy of an open file, whoever else may write to that."""
        layout = self._committer.mirror.layout
        _require_file(digest, fd, path)
        with TempFile(layout) as file:
            await self._copy_bytes(digest, fd, file)
            facts = file.finish()
            copy_fd = os.open(file.name, _READ_FLAGS, dir_fd=layout.temp.fd)
            try:
                await self._hashed(digest, copy_fd, path)
            finally:
                os.close(copy_fd)
            folder, target, key = layout.locate(digest)
            await self._committer.commit(file.name, folder, target, key=key, facts=facts)
            file.committed = True
        self.copied += 1

    async def _copy_bytes(self, digest: Digest, fd: int, file: TempFile) -> None:
        for _ in range(ATTEMPTS):
            try:
                await self._copy_once(digest, fd, file)
            except OSError as error:
                if not await self._space.make_room(error, digest.size):
                    raise
            else:
                return
        await self._copy_once(digest, fd, file)

    async def _copy_once(self, digest: Digest, fd: int, file: TempFile) -> None:
        if digest.size <= SMALL:
            copy_bytes(fd, file.fd, digest.size)
        else:
            await trio.to_thread.run_sync(copy_bytes, fd, file.fd, digest.size, limiter=self._threads)

    async def _hashed(self, digest: Digest, fd: int, path: str) -> os.stat_result:
        """The stat of an open file whose bytes have just been hashed. Raises UploadMismatchError."""
        facts = await self._verifier.hashed(fd, digest)
        if facts is None:
            raise UploadMismatchError(f"{path} is not {digest}: it was changed after it had been hashed")
        return facts


def _require_file(digest: Digest, fd: int, path: str) -> None:
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        raise InvalidRequestError(f"{path} is not a regular file")
    if facts.st_size != digest.size:
        raise UploadMismatchError(f"{path} has {facts.st_size} bytes, its digest {digest} says {digest.size}")


def _seal(fd: int) -> bool:
    """Makes an open file read-only for good; False if somebody else could still write to it."""
    facts = os.fstat(fd)
    if facts.st_nlink != 1:
        return False
    me = os.geteuid()
    try:
        if facts.st_uid != me:
            os.fchown(fd, me, os.getegid())
        os.fchmod(fd, _MODE)
    except OSError:
        return False
    return nobody_writes_to(fd) and os.fstat(fd).st_nlink == 1

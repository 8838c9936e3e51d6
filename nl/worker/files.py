"""Files on the worker's disk: the way between them and a store, for stores with and without local files of their own.

`local_files` gives the store's own `LocalFiles` if it has the capability (hard links), else `CopiedFiles`, which
copies: so a worker runs on any store, only slower. Also here: hashing a file in one pass, following no link.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Sequence
from typing import NamedTuple

import trio

from nl.blob.file import FileReader
from nl.blob.hashing import digest_of, new_hasher
from nl.blob.reader import CHUNK, Buffer
from nl.blob.verify import VerifyingReader, check_bytes
from nl.errors import BlobNotFoundError, CorruptBlobError
from nl.model.digest import EMPTY, Digest, DigestFunction
from nl.storage.capabilities import Link, LocalFiles
from nl.storage.contract import SMALL, Store
from nl.worker.tasks import run_tasks

CONCURRENT = 16
"""Blobs on their way to or from a store at a time, per action."""
_COPIED_AT_ONCE = 1 << 30
_NO_RANGE_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF})
_NO_LINKS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Hashed(NamedTuple):
    """A regular file as it was found."""

    digest: Digest
    status: os.stat_result


def hash_file(path: str, function: DigestFunction) -> Hashed:
    """Hashes a regular file, reading it once. Blocks. Raises OSError, also if `path` is a link or no regular file."""
    fd = os.open(path, os.O_RDONLY | _NO_LINKS)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", path)
        if status.st_size <= SMALL:
            data = os.read(fd, SMALL + 1)
            if len(data) <= SMALL:
                return Hashed(digest_of(data, function) if data else EMPTY[function], status)
            os.lseek(fd, 0, os.SEEK_SET)
        hasher, size, buffer = new_hasher(function), 0, memoryview(bytearray(4 * CHUNK))
        while count := os.readv(fd, [buffer]):
            hasher.update(buffer[:count])
            size += count
        return Hashed(Digest(hasher.hexdigest(), size, function), status)
    finally:
        os.close(fd)


def copy_file(source: str, target: str, *, mode: int) -> None:
    """Copies a file to a new path, by the kernel where it can (a reflink, on file systems that have them). Blocks."""
    with open(source, "rb", buffering=0) as reader, open(target, "xb", buffering=0) as writer:
        try:
            while os.copy_file_range(reader.fileno(), writer.fileno(), _COPIED_AT_ONCE):
                pass
        except OSError as exc:
            if exc.errno not in _NO_RANGE_COPY:
                raise
            shutil.copyfileobj(reader, writer, 4 * CHUNK)  # goes on where the kernel has stopped
        os.fchmod(writer.fileno(), mode)


class CopiedFiles:
    """`LocalFiles` by copying, for stores that keep no local files."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def link_files(self, links: Sequence[Link]) -> list[Digest]:
        """See `LocalFiles.link_files`."""
        missing: dict[Digest, None] = {}
        order = iter(links)

        async def fetch() -> None:
            for link in order:
                try:
                    await self._fetch(link)
                except (BlobNotFoundError, CorruptBlobError):
                    missing[link.digest] = None

        await run_tasks(min(CONCURRENT, len(links)), fetch)
        return [digest for digest in dict.fromkeys(link.digest for link in links) if digest in missing]

    async def _fetch(self, link: Link) -> None:
        mode = 0o555 if link.executable else 0o444
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINKS
        if link.digest.size <= SMALL:
            data = await self._store.get(link.digest) if link.digest.size else b""
            fd = os.open(link.path, flags, 0o600)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fchmod(fd, mode)
            finally:
                os.close(fd)
            return
        async with self._store.open(link.digest) as reader:
            fd = os.open(link.path, flags, 0o600)
            try:
                while parts := await reader.receive_parts():
                    await trio.to_thread.run_sync(_write_all, fd, parts)
                os.fchmod(fd, mode)
            finally:
                os.close(fd)

    async def adopt_file(self, digest: Digest, path: str) -> None:
        """See `LocalFiles.adopt_file`."""
        if (await self._store.has([digest]))[0] is not None:
            return
        fd = os.open(path, os.O_RDONLY | _NO_LINKS)
        try:
            if digest.size <= SMALL:
                data = os.read(fd, digest.size + 1)
                check_bytes(data, digest)
                await self._store.put(digest, data)
            else:
                await self._store.write(digest, VerifyingReader(FileReader(fd), digest))
        finally:
            os.close(fd)


def _write_all(fd: int, parts: Sequence[Buffer]) -> None:
    for part in parts:
        view = memoryview(part)
        while view:
            view = view[os.write(fd, view) :]


def local_files(store: Store) -> LocalFiles:
    """The way between `store` and files on this machine."""
    return store.capability(LocalFiles) or CopiedFiles(store)

"""Uploads: from a buffer or a reader into a file of `temp`, and from there to its place (commit.py)."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Sequence
from contextlib import ExitStack

import trio

from nl.plugin import (
    EMPTY_DIGESTS,
    SMALL,
    Buffer,
    Digest,
    Key,
    NlError,
    Reader,
    UnavailableError,
    UploadMismatchError,
)
from nl.stores.filesystem.commit import Committer, Finished
from nl.stores.filesystem.copying import copy_bytes
from nl.stores.filesystem.disk_space import ATTEMPTS, DiskSpace
from nl.stores.filesystem.layout import Folder
from nl.stores.filesystem.names import IndexKey, name_of
from nl.stores.filesystem.oserrors import translate
from nl.stores.filesystem.writing import DiskPace, Gatherer, TempFile, drain

_TOGETHER = 16
"""Small blobs of a batch that are placed in one section under the lock: a fifth of a millisecond."""


class Uploader:
    """Takes values in. `flushes`: large ones are written through to the disk and leave the page cache.

    `durable`: what no digest guards is on the disk when it is acknowledged.
    """

    def __init__(
        self, committer: Committer, space: DiskSpace, *, threads: trio.CapacityLimiter, flushes: bool, durable: bool
    ) -> None:
        self._committer = committer
        self._mirror = committer.mirror
        self._space = space
        self._layout = committer.mirror.layout
        self._threads = threads
        self._flushes = flushes
        self._durable = durable
        self._pace = DiskPace()
        self.written_blobs = 0
        self.written_bytes = 0

    async def put(self, key: Key, data: Buffer) -> None:
        """See Store.put. The caller has checked that `data` is what `key` says."""
        if key in EMPTY_DIGESTS:
            return
        size = len(data)
        folder, name, index_key = self._layout.locate(key)
        if type(key) is Digest:
            _require_size(key, size)
            if self._committer.is_intact(key):  # by the file itself, so what is pending here need not be read before
                return
        self._committer.refuse_too_large(key, size)
        try:
            with await self._temp_file(size) as file:
                try:
                    if size <= SMALL:
                        file.append((data,))
                    else:
                        await trio.to_thread.run_sync(file.append, (data,), limiter=self._threads)
                except OSError as error:
                    await self._gatherer(file).resume((data,), written=file.size, error=error)
                await self._commit(file, folder, name, index_key)
        except OSError as error:
            raise self._failed(error, folder, name, size) from error

    async def put_small(self, blobs: Sequence[tuple[Digest, Buffer]]) -> list[NlError | None]:
        """What `put` raises for each of some small blobs, None where it is stored: some at a time share a section."""
        outcomes: list[NlError | None] = []
        for start in range(0, len(blobs), _TOGETHER):
            if start:
                await trio.lowlevel.checkpoint()
            outcomes += await self._put_together(blobs[start : start + _TOGETHER])
        return outcomes

    async def _put_together(self, blobs: Sequence[tuple[Digest, Buffer]]) -> list[NlError | None]:
        outcomes: list[NlError | None] = [None] * len(blobs)
        written: list[tuple[int, TempFile, Finished]] = []
        with ExitStack() as files:
            for at, (digest, data) in enumerate(blobs):
                try:
                    file = self._write_small(digest, data, files)
                    if file is not None:
                        written.append((at, file, Finished(file.name, *self._layout.locate(digest), file.finish())))
                except NlError as refused:
                    outcomes[at] = refused
                except OSError:  # a full disk, a folder that has gone: alone, it has room made, or says what is wrong
                    outcomes[at] = await _error_of(self.put(digest, data))
            try:
                count = await self._committer.commit_together([each for _, _, each in written])
            except UnavailableError as error:  # a process stands still with the lock: no need to wait for it again
                for at, _, _ in written:
                    outcomes[at] = error
                return outcomes
            for number, (at, file, each) in enumerate(written):
                if number < count:
                    self._count(file, each.facts)
                else:
                    outcomes[at] = await _error_of(self._place_alone(file, each))
        return outcomes

    def _write_small(self, digest: Digest, data: Buffer, files: ExitStack) -> TempFile | None:
        """A file of a small blob, which `files` closes; None if there need be none. Raises what `put` does; OSError."""
        if digest in EMPTY_DIGESTS:
            return None
        _require_size(digest, len(data))
        if self._committer.is_intact(digest):
            return None
        self._committer.refuse_too_large(digest, len(data))
        file = files.enter_context(TempFile(self._layout))
        file.append((data,))
        return file

    async def _place_alone(self, file: TempFile, finished: Finished) -> None:
        try:
            await self._place(file, finished)
        except OSError as error:
            raise self._failed(error, finished.folder, finished.name, finished.facts.st_size) from error

    async def write(self, key: Key, reader: Reader) -> None:
        """See Store.write."""
        if key in EMPTY_DIGESTS:
            await drain(reader)
            return
        await self._mirror.catch_up()
        folder, name, index_key = self._layout.locate(key)
        expected = key.size if type(key) is Digest else reader.size
        self._committer.refuse_too_large(key, expected)
        try:
            if type(key) is Digest and (fd := self._open_intact(key)) is not None:
                try:
                    await self._take_again(key, reader, fd)
                finally:
                    os.close(fd)
                return
            with await self._temp_file(expected) as file:
                await self._receive(reader, file)
                if type(key) is Digest:
                    _require_size(key, file.size)
                await self._commit(file, folder, name, index_key)
        except OSError as error:
            raise self._failed(error, folder, name, max(expected, 0)) from error

    def _open_intact(self, digest: Digest) -> int | None:
        """A descriptor of a blob that is there and known to be right. Raises OSError."""
        if not self._committer.is_intact(digest):
            return None
        try:
            return os.open(name_of(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._layout.blobs.fd)
        except FileNotFoundError:
            return None

    async def _take_again(self, digest: Digest, reader: Reader, fd: int) -> None:
        """Receives a blob that is there, and open as `fd`: of that, a copy is placed if it has gone meanwhile.

        Whoever has deleted it may have found it wrong, so the copy is hashed before it is served. Raises OSError,
        UnavailableError if somebody has written to it.
        """
        before = os.fstat(fd)
        _require_size(digest, await drain(reader))
        await self._mirror.catch_up()
        if self._committer.is_there(digest):
            return
        with await self._temp_file(digest.size) as file:
            if digest.size <= SMALL:
                copied = copy_bytes(fd, file.fd, digest.size)
            else:
                copied = await trio.to_thread.run_sync(copy_bytes, fd, file.fd, digest.size, limiter=self._threads)
            if copied != digest.size or os.fstat(fd).st_mtime_ns != before.st_mtime_ns:
                raise UnavailableError(
                    f"{digest} was changed in {self._layout.where} while it was being uploaded anew: upload it again"
                )
            await self._place(file, Finished(file.name, *self._layout.locate(digest), file.finish()), is_known=False)

    async def _temp_file(self, expected: int) -> TempFile:
        """A new file for so many bytes, -1 if that is not known. Raises OSError."""
        for _ in range(ATTEMPTS):
            try:
                return TempFile(self._layout, expected=expected)
            except OSError as error:
                if not await self._space.make_room(error, max(expected, 0)):
                    raise
        return TempFile(self._layout, expected=expected)

    def _gatherer(self, file: TempFile) -> Gatherer:
        return Gatherer(file, pace=self._pace, threads=self._threads, make_room=self._space.make_room)

    async def _receive(self, reader: Reader, file: TempFile) -> None:
        gatherer = self._gatherer(file)
        limit = self._committer.policy.max_bytes
        try:
            while parts := await reader.receive_parts(gatherer.wants):
                await gatherer.add(parts)
                if limit and file.size > limit:
                    self._committer.refuse_too_large("an upload of unknown size", file.size)
            await gatherer.flush()
        finally:
            gatherer.forget()
        if self._flushes and file.size > SMALL:
            await trio.to_thread.run_sync(file.flush_and_drop, limiter=self._threads)

    async def _commit(self, file: TempFile, folder: Folder, name: str, index_key: IndexKey) -> None:
        durable = self._durable and folder is not self._layout.blobs
        if durable:
            await trio.to_thread.run_sync(os.fsync, file.fd, limiter=self._threads)
        await self._place(file, Finished(file.name, folder, name, index_key, file.finish()))
        if durable:  # the name, too
            await trio.to_thread.run_sync(os.fsync, folder.fd, limiter=self._threads)

    async def _place(self, file: TempFile, finished: Finished, *, is_known: bool = True) -> None:
        temp_name, folder, name, key, facts = finished
        for attempt in range(ATTEMPTS):
            try:
                await self._committer.commit(temp_name, folder, name, key=key, facts=facts, is_known=is_known)
                break
            except OSError as error:
                if not await self._space.make_room_for_name(error, attempt=attempt):
                    raise
        else:
            await self._committer.commit(temp_name, folder, name, key=key, facts=facts, is_known=is_known)
        self._count(file, facts)

    def _count(self, file: TempFile, facts: os.stat_result) -> None:
        """A file is in its place."""
        file.committed = True
        self.written_blobs += 1
        self.written_bytes += facts.st_size

    def _failed(self, error: OSError, folder: Folder, name: str, size: int) -> NlError:
        self._layout.require_open()
        if error.errno == errno.ENOENT:
            self._mirror.folder_lost = True  # `temp_path` is not watched; the next tick makes it anew.
        advice = self._space.advice(error, size)
        return translate(error, store=self._layout.name, path=f"{folder.path}/{name}", doing="write", advice=advice)


async def _error_of(operation: Awaitable[None]) -> NlError | None:
    try:
        await operation
    except NlError as error:
        return error
    return None


def _require_size(digest: Digest, size: int) -> None:
    if size != digest.size:
        raise UploadMismatchError(f"{digest}: the upload has {size} bytes, its digest says {digest.size}")

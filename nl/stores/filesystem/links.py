"""Blobs as hard links at other paths: the inputs of actions.

The usual link costs a `link` and an `lstat` of the result: the inode that is linked is the one whose bytes are known
to be right, or the link is undone and the slow way taken (open, hash, link, else copy). The slow way holds the blob
open, so an eviction in between costs a copy, not a failure.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import trio

from nl.plugin import SMALL, BlobNotFoundError, Digest, ExhaustedError, InternalError, Link, NlError
from nl.stores.filesystem.commit import Committer
from nl.stores.filesystem.copying import copy_to_path
from nl.stores.filesystem.executables import MODE as EXECUTABLE
from nl.stores.filesystem.executables import Executables
from nl.stores.filesystem.names import name_of
from nl.stores.filesystem.oserrors import translate

_log = logging.getLogger(__name__)

_INLINE = 8
"""So many links are made on the loop (10 us each); more of them in a thread."""
_BATCH = 256
_PLAIN = 0o444
_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP)
_CALLERS_FAULT = (errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)

Opened = Callable[[Digest], Awaitable[tuple[int, os.stat_result]]]


class _Outcome(enum.Enum):
    DONE = enum.auto()
    NOT_THERE = enum.auto()
    NOT_KNOWN = enum.auto()
    CANNOT = enum.auto()
    TOO_MANY = enum.auto()


class _Job(NamedTuple):
    """A link to be tried: the identity is what the linked file must have. No name: an empty file is to be made."""

    folder_fd: int
    name: str
    path: str
    inode: int
    mtime_ns: int
    size: int
    mode: int


class Linker:
    """Hands out blobs as local files. `opened` opens a blob that is right, or raises BlobNotFoundError."""

    def __init__(
        self, committer: Committer, executables: Executables, opened: Opened, *, threads: trio.CapacityLimiter
    ) -> None:
        self._committer = committer
        self._executables = executables
        self._opened = opened
        self._threads = threads
        self._has_warned = False
        self._has_warned_of_many = False
        self.linked = 0
        self.copied = 0

    async def link_files(self, links: Sequence[Link]) -> list[Digest]:
        """See LocalFiles. *Cancellation*: links that were made stay; the caller removes its folder anyway."""
        missing: dict[Digest, None] = {}
        for start in range(0, len(links), _BATCH):
            batch = links[start : start + _BATCH]
            await self._committer.mirror.catch_up()
            jobs = [self._job(link) for link in batch]
            try:
                if len(batch) <= _INLINE:
                    outcomes = _link_all(jobs)
                else:
                    outcomes = await trio.to_thread.run_sync(_link_all, jobs, limiter=self._threads)
            except OSError as error:
                raise self._translated(error, error.filename or batch[0].path) from error
            for link, outcome in zip(batch, outcomes, strict=True):
                if outcome is _Outcome.DONE:
                    self.linked += 1
                elif not await self._link_slowly(link):
                    missing[link.digest] = None
        return list(missing)

    def _job(self, link: Link) -> _Job:
        """What is to be linked for `link`, going by the index, which counts as a use."""
        digest, path, executable = link
        mirror = self._committer.mirror
        mode = EXECUTABLE if executable else _PLAIN
        if not digest.size:
            return _Job(-1, "", path, 0, 0, 0, mode)
        index = mirror.index
        slot = index.blob(digest)
        if slot is not None:
            index.touch(slot, time.monotonic())
        if executable:
            slot = index.executable(digest)
        folder = mirror.layout.executables if executable else mirror.layout.blobs
        inode, mtime_ns = (0, 0) if slot is None else index.identity(slot)
        return _Job(folder.fd, name_of(digest), path, inode, mtime_ns, digest.size, mode)

    async def _link_slowly(self, link: Link) -> bool:
        """Verifies and links, or copies; False if the blob is missing."""
        try:
            fd, facts = await self._opened(link.digest)
        except BlobNotFoundError:
            return False
        try:
            job = await self._verified_job(link, facts)
            outcome = _Outcome.CANNOT if job is None else _link(job)
            if outcome is _Outcome.DONE:
                self.linked += 1
                return True
            if outcome is _Outcome.CANNOT and job is not None:
                self._warn_of_copies(link.path)
            elif outcome is _Outcome.TOO_MANY:
                self._warn_of_many_links(link.digest)
            await self._copy(fd, link)
            return True
        except OSError as error:
            raise self._translated(error, link.path) from error
        finally:
            os.close(fd)

    async def _verified_job(self, link: Link, facts: os.stat_result) -> _Job | None:
        """The link to be made, knowing that the blob is right; None if an executable variant cannot be had."""
        if link.executable:
            try:
                facts = await self._executables.identity_of(link.digest, self._opened)
            except (BlobNotFoundError, ExhaustedError):
                return None  # Evicted meanwhile, or no room for a second file: but the blob itself is open.
        return self._job(link)._replace(inode=facts.st_ino, mtime_ns=facts.st_mtime_ns)

    async def _copy(self, fd: int, link: Link) -> None:
        mode = EXECUTABLE if link.executable else _PLAIN
        size = link.digest.size
        if size <= SMALL:
            copy_to_path(fd, link.path, size=size, mode=mode)
        else:
            await trio.to_thread.run_sync(_copy_large, fd, link.path, size, mode, limiter=self._threads)
        self.copied += 1

    def _warn_of_copies(self, path: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            layout = self._committer.mirror.layout
            _log.warning(
                "store %s: inputs are copied because files of %s cannot be hard-linked at %s: put both on one file "
                "system, and let the files belong to the user that this process runs as",
                layout.name, layout.content_path, path,
            )  # fmt: skip

    def _warn_of_many_links(self, digest: Digest) -> None:
        if not self._has_warned_of_many:
            self._has_warned_of_many = True
            _log.warning(
                "store %s: %s has as many hard links as its file system allows (ext4: 65,000): it is copied for "
                "further inputs, until actions that have it as an input end. Other file systems (XFS) allow more",
                self._committer.mirror.layout.name, digest,
            )  # fmt: skip

    def _translated(self, error: OSError, path: str) -> NlError:
        at = error.filename2 or path
        at = at if isinstance(at, str) else path
        if error.errno in _CALLERS_FAULT:
            return InternalError(f"cannot make the input {at}: {error.strerror}")
        return translate(error, store=self._committer.mirror.layout.name, path=at, doing="make the input")


def _link_all(jobs: Sequence[_Job]) -> list[_Outcome]:
    """Tries all links; where one is not simply made, its outcome says why. May run in a thread."""
    return [_link(job) for job in jobs]


def _link(job: _Job) -> _Outcome:
    if not job.name:
        os.close(os.open(job.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, job.mode))
        os.chmod(job.path, job.mode)
        return _Outcome.DONE
    if not job.inode:
        return _Outcome.NOT_KNOWN
    try:
        os.link(job.name, job.path, src_dir_fd=job.folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return _Outcome.NOT_THERE
    except OSError as error:
        if error.errno == errno.EMLINK:
            return _Outcome.TOO_MANY
        if error.errno in _CANNOT_LINK:
            return _Outcome.CANNOT
        raise
    facts = os.lstat(job.path)
    expected = (job.inode, job.mtime_ns, job.size, job.mode)
    if (facts.st_ino, facts.st_mtime_ns, facts.st_size, facts.st_mode & 0o777) == expected:
        return _Outcome.DONE
    os.unlink(job.path)
    return _Outcome.NOT_KNOWN


def _copy_large(fd: int, path: str, size: int, mode: int) -> None:
    copy_to_path(fd, path, size=size, mode=mode)

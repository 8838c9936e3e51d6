"""Never a wrong byte: files that are not known to be right are hashed before their bytes are served.

Known to be right is a file whose inode, size and mtime are those that it had when this process wrote or hashed it.
"""

from __future__ import annotations

import hashlib
import os

import trio

from nl.plugin import SMALL, Digest, Hasher, UnavailableError, new_hasher
from nl.stores.filesystem.index import Index
from nl.stores.filesystem.readers import NO_NOWAIT

_READ = 256 * 1024
_PIECE = 64 * 1024 * 1024
"""Bytes that are hashed in one stay in a thread: 40 ms, after which others have their turn."""
_MOST_JOBS = 32
"""Files that are being hashed, or are next, each with a descriptor; whoever asks for one more waits."""
_ATTEMPTS = 3


class _Job:
    """The hashing of one file, which belongs to the store: those who wait for it may give up."""

    def __init__(self, fd: int, digest: Digest, *, is_variant: bool) -> None:
        self.fd = fd
        self.digest = digest
        self.is_variant = is_variant
        self.done = trio.Event()
        self.is_right = False
        self.facts: os.stat_result | None = None
        """What was hashed; None if it changed meanwhile, or could not be read."""
        self.error: OSError | None = None


class Verifier:
    """Hashes files once, however many ask for them at the same time, and remembers the result in the index.

    Usable while `run` runs, in which the hashing is done.
    """

    def __init__(self, index: Index, *, threads: trio.CapacityLimiter) -> None:
        self._index = index
        self._threads = threads
        self._jobs: dict[tuple[Digest, bool], _Job] = {}
        self._free_jobs = trio.Semaphore(_MOST_JOBS)
        self._nursery: trio.Nursery | None = None
        self._nowait = os.RWF_NOWAIT
        self.hashed_blobs = 0
        self.hashed_bytes = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hashes what is asked for, until it is cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def is_right(self, fd: int, digest: Digest, *, is_variant: bool = False) -> os.stat_result | None:
        """Whether an open file has the bytes of `digest`: its stat if so, else None.

        The result is remembered in the index's entry of the digest, or of its executable variant. Raises OSError.
        *Cancellation*: the file is hashed all the same, for those who ask next.
        """
        for _ in range(_ATTEMPTS):
            facts = os.fstat(fd)
            if facts.st_size != digest.size:
                return None
            if self._is_known(digest, facts, is_variant=is_variant):
                return facts
            if digest.size <= SMALL and (text := self._hash_in_memory(fd, digest)) is not None:
                job = _Job(fd, digest, is_variant=is_variant)
                self._note(job, facts, is_right=text == digest.hash)
            else:
                job = await self._hashed_by_the_store(fd, digest, is_variant=is_variant)
            if job.error is not None:
                raise OSError(*job.error.args)
            if job.facts is not None and _identity(job.facts) == _identity(os.fstat(fd)):
                return job.facts if job.is_right else None
        return None  # Somebody writes to it all the time.

    async def hashed(self, fd: int, digest: Digest) -> os.stat_result | None:
        """Hashes an open file, whatever is known of it: its stat if it has the bytes of `digest`, else None."""
        before = os.fstat(fd)
        if before.st_size != digest.size or await self._hash(fd, digest) != digest.hash:
            return None
        after = os.fstat(fd)
        return after if _identity(after) == _identity(before) else None

    def _is_known(self, digest: Digest, facts: os.stat_result, *, is_variant: bool) -> bool:
        index = self._index
        slot = index.executable(digest) if is_variant else index.blob(digest)
        return slot is not None and index.is_known_as(
            slot, inode=facts.st_ino, mtime_ns=facts.st_mtime_ns, size=facts.st_size
        )

    async def _hashed_by_the_store(self, fd: int, digest: Digest, *, is_variant: bool) -> _Job:
        """Waits for the hashing of a file, which is begun unless it is under way."""
        job = self._jobs.get((digest, is_variant))
        if job is None:
            await self._free_jobs.acquire()
            job = self._jobs.get((digest, is_variant))
            if job is not None or self._nursery is None:
                self._free_jobs.release()
            if self._nursery is None:
                raise UnavailableError("the store is being stopped")
            if job is None:
                job = self._jobs[digest, is_variant] = _Job(os.dup(fd), digest, is_variant=is_variant)
                self._nursery.start_soon(self._do, job, name=f"hash {digest}")
        await job.done.wait()
        return job

    async def _do(self, job: _Job) -> None:
        try:
            before = os.fstat(job.fd)
            text = await self._hash(job.fd, job.digest)
            if _identity(os.fstat(job.fd)) == _identity(before):
                self._note(job, before, is_right=text == job.digest.hash)
        except OSError as error:
            job.error = error
        finally:
            del self._jobs[job.digest, job.is_variant]
            os.close(job.fd)
            self._free_jobs.release()
            job.done.set()

    def _note(self, job: _Job, facts: os.stat_result, *, is_right: bool) -> None:
        job.facts, job.is_right = facts, is_right
        index = self._index
        slot = index.executable(job.digest) if job.is_variant else index.blob(job.digest)
        if is_right and slot is not None:
            index.know(slot, inode=facts.st_ino, mtime_ns=facts.st_mtime_ns)

    def _hash_in_memory(self, fd: int, digest: Digest) -> str | None:
        """The hash of a small file that lies in the page cache; None if it must be waited for."""
        data = bytearray(digest.size)
        try:
            if not self._nowait or os.preadv(fd, [data], 0, self._nowait) != digest.size:
                return None
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in NO_NOWAIT:
                raise
            self._nowait = 0
            return None
        self._count(digest)
        hasher = new_hasher(digest.function)
        hasher.update(data)
        return hasher.hexdigest()

    async def _hash(self, fd: int, digest: Digest) -> str:
        hasher = new_hasher(digest.function)
        for offset in range(0, digest.size, _PIECE):
            await trio.to_thread.run_sync(_update, hasher, fd, offset, _PIECE, limiter=self._threads)
        self._count(digest)
        return hasher.hexdigest()

    def _count(self, digest: Digest) -> None:
        self.hashed_blobs += 1
        self.hashed_bytes += digest.size


def _identity(facts: os.stat_result) -> tuple[int, int, int]:
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


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

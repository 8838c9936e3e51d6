"""The three sorts of jobs that travel together: lookups, small reads, small writes; and the calls that carry them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from grpclib.const import Status

from nl.pb import cas_calls
from nl.plugin import (
    SMALL,
    BlobNotFoundError,
    Buffer,
    CorruptBlobError,
    Digest,
    DigestFunction,
    NlError,
)
from nl.stores.grpc.batching import Job
from nl.stores.grpc.failures import Failure, Headers
from nl.stores.grpc.methods import BATCH_READ, BATCH_UPDATE, FIND_MISSING, Method
from nl.stores.grpc.remote import Remote, Retrying

ENTRY_BYTES: Final = 128
"""What a blob takes of a message beside its content, at the most: digest, tags, lengths, a status."""
_NOT_IN_BATCHES: Final = (Status.UNIMPLEMENTED, Status.RESOURCE_EXHAUSTED, Status.INVALID_ARGUMENT)
"""Statuses of a whole batch that say nothing of the blobs in it: they are then read or written one by one."""


class Group(NamedTuple):
    """What the jobs of one call have in common."""

    function: DigestFunction
    headers: Headers = ()


class Lookup(Job):
    """Whether some blobs are there. `missing` are those that are not."""

    __slots__ = ("digests", "missing")

    def __init__(self, digests: Sequence[Digest]) -> None:
        super().__init__(len(digests))
        self.digests = digests
        self.missing: frozenset[tuple[str, int]] = frozenset()


class SmallRead(Job):
    """A blob to be read whole. `alone`: it could not be had in a batch, and is to be asked for by itself."""

    __slots__ = ("alone", "data", "digest")

    def __init__(self, digest: Digest) -> None:
        super().__init__(digest.size + ENTRY_BYTES)
        self.digest = digest
        self.data: Buffer = b""
        self.alone = False


class SmallWrite(Job):
    """A blob to be stored. `alone` as for a read. `data` must not change until the job is finished."""

    __slots__ = ("alone", "data", "digest")

    def __init__(self, digest: Digest, data: bytes) -> None:
        super().__init__(digest.size + ENTRY_BYTES)
        self.digest = digest
        self.data = data
        self.alone = False


class Calls:
    """The calls that carry jobs, as `batching.Send`."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    async def find_missing(self, group: Group, jobs: Sequence[Lookup]) -> None:
        """FindMissingBlobs."""
        pairs = [digest[:2] for job in jobs for digest in job.digests]
        request = cas_calls.encode_find_missing(self._remote.instance, pairs, function=int(group.function))
        missing = await self._remote.ask(FIND_MISSING, [request], group.headers, what=f"{len(pairs)} blobs")
        for job in jobs:
            job.missing = missing
            job.finish()

    async def batch_read(self, group: Group, jobs: Sequence[SmallRead]) -> None:
        """BatchReadBlobs."""
        wanted = dict.fromkeys((job.digest.hash, job.digest.size) for job in jobs)
        request = cas_calls.encode_batch_read(self._remote.instance, wanted, function=int(group.function))
        found: cas_calls.ReadBlobs | None = await self._ask(BATCH_READ, [request], group, jobs)
        if found is None:
            return
        for job in jobs:
            got = found.get((job.digest.hash, job.digest.size))
            if got is None or got.code == Status.RESOURCE_EXHAUSTED.value:
                job.alone = True  # left out, or without room in this reply
                job.finish()
            elif got.code:
                job.finish(self._error_of(got.code, got.message, BATCH_READ, job.digest, group))
            elif len(got.data) != job.digest.size:
                job.finish(wrong_size(self._remote, job.digest, len(got.data)))
            else:
                # A small piece of it would keep the whole message in memory.
                job.data = bytes(got.data) if len(got.data) <= SMALL else got.data
                job.finish()

    async def batch_update(self, group: Group, jobs: Sequence[SmallWrite]) -> None:
        """BatchUpdateBlobs."""
        blobs = {(job.digest.hash, job.digest.size): job.data for job in jobs}
        parts = cas_calls.encode_batch_update(self._remote.instance, list(blobs.items()), function=int(group.function))
        stored: cas_calls.UpdatedBlobs | None = await self._ask(BATCH_UPDATE, parts, group, jobs)
        if stored is None:
            return
        for job in jobs:
            code, message = stored.get((job.digest.hash, job.digest.size), (Status.UNIMPLEMENTED.value, ""))
            if code == Status.UNIMPLEMENTED.value:
                job.alone = True
            failed = code and not job.alone
            job.finish(self._error_of(code, message, BATCH_UPDATE, job.digest, group) if failed else None)

    async def _ask(
        self, method: Method, parts: Sequence[Buffer], group: Group, jobs: Sequence[SmallRead] | Sequence[SmallWrite]
    ) -> Any:
        """The reply; None if the jobs are finished, to be done one by one."""
        retrying = Retrying(self._remote, method, f"{len(jobs)} blobs")
        while True:
            try:
                return await self._remote.ask_once(method, parts, group.headers)
            except Failure as failure:
                if failure.status in _NOT_IN_BATCHES:
                    for job in jobs:
                        job.alone = True
                        job.finish()
                    return None
                await retrying.failed(failure)

    def _error_of(self, code: int, message: str, method: Method, digest: Digest, group: Group) -> NlError:
        if code == Status.NOT_FOUND.value:
            return missing(self._remote, digest)
        return self._remote.error_of_blob(code, message, method, str(digest), group.headers)


def missing(remote: Remote, digest: Digest) -> BlobNotFoundError:
    """The server does not have it."""
    return BlobNotFoundError(digest, f"the grpc store {remote.name!r} ({remote.where})")


def wrong_size(remote: Remote, digest: Digest, got: int) -> CorruptBlobError:
    """The server's answer cannot be the blob."""
    return CorruptBlobError(f"the grpc store {remote.name!r} ({remote.where}): {got} bytes came for {digest}")

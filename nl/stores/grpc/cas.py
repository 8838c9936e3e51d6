"""The blobs of another server: store_type "cas"."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol, cast

import trio

from nl.plugin import (
    EMPTY_DIGESTS,
    MAX_WHOLE,
    SMALL,
    Buffer,
    BytesReader,
    CoderMemory,
    Digest,
    DigestFunction,
    InvalidRequestError,
    Key,
    NlError,
    Reader,
    Store,
    TooLargeError,
    UploadMismatchError,
    clamp,
    for_each,
    must_be_streamed,
    read_all,
    slice_bytes,
)
from nl.stores.grpc.batching import Batcher
from nl.stores.grpc.failures import Headers
from nl.stores.grpc.jobs import Calls, Group, Lookup, SmallRead, SmallWrite, missing
from nl.stores.grpc.options import GrpcOptions
from nl.stores.grpc.packing import LEAST_PACKED, Packing, unpacking
from nl.stores.grpc.reading import read_name, reading
from nl.stores.grpc.remote import Remote
from nl.stores.grpc.server_limits import ServerLimits
from nl.stores.grpc.writing import SpoolBudget, Upload

LOOKUP_DIGESTS: Final = 10_000
"""Digests in one FindMissingBlobs: 800 KiB, which every server takes."""
MAX_BATCH_JOBS: Final = 4000
_MAX_QUEUED_LOOKUPS: Final = 20 * LOOKUP_DIGESTS
_LOOKUP_SLOTS: Final = 2
_EMPTY: Final = frozenset((digest.hash, digest.size) for digest in EMPTY_DIGESTS)


class Inherited(Protocol):
    """The headers that a call gets from the request that causes it."""

    def __call__(self) -> Headers: ...


class RemoteCas(Store):
    """See the module. Keys are digests only."""

    def __init__(
        self, options: GrpcOptions, remote: Remote, inherited: Inherited, *, coder_memory: CoderMemory
    ) -> None:
        batching = options.experimental_read_batching
        self._remote = remote
        self._inherited = inherited
        self._legacy_names = options.use_legacy_resource_names
        self._limits = ServerLimits(remote)
        self._max_small = batching.max_blob_size_bytes
        self._max_batch = batching.max_batch_bytes
        self._spools = SpoolBudget()
        self._packing = Packing(coder_memory) if options.experimental_remote_cache_compression else None
        calls = Calls(remote)
        self._lookups: Batcher[Group, Lookup] = Batcher(
            calls.find_missing,
            room=_lookup_room,
            max_jobs=LOOKUP_DIGESTS,
            max_queued=_MAX_QUEUED_LOOKUPS,
            slots=_LOOKUP_SLOTS,
        )
        self._reads: Batcher[Group, SmallRead] = Batcher(
            calls.batch_read,
            room=self._batch_room,
            max_jobs=MAX_BATCH_JOBS,
            max_queued=batching.max_queued_bytes,
            slots=batching.dispatch_slots,
        )
        self._writes: Batcher[Group, SmallWrite] = Batcher(
            calls.batch_update,
            room=self._batch_room,
            max_jobs=MAX_BATCH_JOBS,
            max_queued=batching.max_queued_bytes,
            slots=batching.dispatch_slots,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            for batcher in (self._lookups, self._reads, self._writes):
                nursery.start_soon(batcher.run, self._remote.stopping)
            task_status.started()

    # --- existence

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        for key in keys:
            if type(key) is not Digest:
                self._digest(key)
        digests = cast("Sequence[Digest]", keys)
        functions = {digest.function for digest in digests}
        if len(functions) > 1:
            return await self._has_mixed(digests, functions)
        if not functions:
            return []
        missing = await self._missing(digests, functions.pop())
        if not missing:
            return [digest[1] for digest in digests]
        return [None if digest[:2] in missing else digest[1] for digest in digests]

    async def _has_mixed(self, digests: Sequence[Digest], functions: Iterable[DigestFunction]) -> list[int | None]:
        sizes: list[int | None] = [None] * len(digests)
        for function in functions:
            places = [at for at, digest in enumerate(digests) if digest.function is function]
            for at, size in zip(places, await self.has([digests[at] for at in places]), strict=True):
                sizes[at] = size
        return sizes

    async def _missing(self, digests: Sequence[Digest], function: DigestFunction) -> frozenset[tuple[str, int]]:
        """Hash and size of those that the server does not have. The empty blob is there, whatever a server says."""
        step = LOOKUP_DIGESTS
        jobs = [Lookup(digests[at : at + step]) for at in range(0, len(digests), step)]
        await self._lookups.submit(Group(function, self._inherited()), jobs)
        for job in jobs:
            if job.error is not None:
                raise job.error
        found = jobs[0].missing if len(jobs) == 1 else frozenset().union(*(job.missing for job in jobs))
        return found - _EMPTY if found else found

    # --- reading

    async def get(self, key: Key) -> Buffer:
        digest = self._digest(key)
        if digest.size > MAX_WHOLE:
            raise must_be_streamed(digest, digest.size)
        if not digest.size:
            return self._empty(digest)
        if digest.size > self._max_small:
            return await self._get_alone(digest)
        job = SmallRead(digest)
        await self._reads.submit(Group(digest.function, self._inherited()), [job])
        return await self._result_of(job)

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        found: list[Buffer | NlError] = [b""] * len(keys)
        jobs: dict[int, SmallRead] = {}
        groups: dict[Group, list[SmallRead]] = {}
        headers = self._inherited()
        for at, key in enumerate(keys):
            if isinstance(key, Digest) and 0 < key.size <= self._max_small:
                job = jobs[at] = SmallRead(key)
                groups.setdefault(Group(key.function, headers), []).append(job)
        for group, members in groups.items():
            await self._reads.submit(group, members)

        async def finish(at: int) -> None:
            try:
                job = jobs.get(at)
                found[at] = await (self.get(keys[at]) if job is None else self._result_of(job))
            except NlError as exc:
                found[at] = exc

        await for_each(len(keys), finish)
        return found

    async def _result_of(self, job: SmallRead) -> Buffer:
        if job.error is not None:
            raise job.error
        return await self._get_alone(job.digest) if job.alone else job.data

    async def _get_alone(self, digest: Digest) -> Buffer:
        async with self._reading(digest, offset=0, size=digest.size) as reader:
            return await read_all(reader)

    @asynccontextmanager
    async def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AsyncIterator[Reader]:
        digest = self._digest(key)
        size = clamp(digest.size, offset, length)
        if digest.size <= min(SMALL, self._max_small):
            yield slice_bytes(await self.get(digest), offset=offset, length=length)
        elif size:
            async with self._reading(digest, offset=offset, size=size) as reader:
                yield reader
        else:
            if (await self.has([digest]))[0] is None:
                raise missing(self._remote, digest)
            yield BytesReader(b"")

    @asynccontextmanager
    async def _reading(self, digest: Digest, *, offset: int, size: int) -> AsyncIterator[Reader]:
        headers = self._inherited()
        if self._packing is not None and size == digest.size and await self._packs(digest):
            with self._packing.memory_for_read(digest) as granted:
                if granted:
                    named = self._named(digest)
                    async with unpacking(self._remote, self._packing, digest, named=named, headers=headers) as reader:
                        yield reader
                    return
        name = read_name(self._remote.instance, self._named(digest))
        async with reading(self._remote, name, digest, offset=offset, size=size, headers=headers) as reader:
            yield reader

    # --- writing

    async def put(self, key: Key, data: Buffer) -> None:
        digest = self._digest(key)
        self._check_length(digest, len(data))
        if not digest.size:
            return
        if digest.size > self._max_small:
            await self._upload(digest, BytesReader(data))
            return
        job = SmallWrite(digest, data if type(data) is bytes else bytes(data))
        await self._writes.submit(Group(digest.function, self._inherited()), [job])
        await self._settle(job)

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        failed: list[NlError | None] = [None] * len(blobs)
        jobs: dict[int, SmallWrite] = {}
        groups: dict[Group, list[SmallWrite]] = {}
        headers = self._inherited()
        for at, (key, data) in enumerate(blobs):
            if isinstance(key, Digest) and 0 < key.size <= self._max_small and len(data) == key.size:
                job = jobs[at] = SmallWrite(key, data if type(data) is bytes else bytes(data))
                groups.setdefault(Group(key.function, headers), []).append(job)
        for group, members in groups.items():
            await self._writes.submit(group, members)

        async def finish(at: int) -> None:
            try:
                job = jobs.get(at)
                await (self.put(*blobs[at]) if job is None else self._settle(job))
            except NlError as exc:
                failed[at] = exc

        await for_each(len(blobs), finish)
        return failed

    async def _settle(self, job: SmallWrite) -> None:
        if job.error is not None:
            raise job.error
        if job.alone:
            await self._upload(job.digest, BytesReader(job.data))

    async def write(self, key: Key, reader: Reader) -> None:
        digest = self._digest(key)
        if reader.size >= 0:
            self._check_length(digest, reader.size)
        if digest.size > self._max_small:
            await self._upload(digest, reader)
            return
        await self.put(digest, await self._read_small(digest, reader))

    async def _read_small(self, digest: Digest, reader: Reader) -> bytes:
        parts: list[bytes] = []
        left = digest.size
        while got := await reader.receive_parts():
            left -= sum(map(len, got))
            if left < 0:
                raise UploadMismatchError(f"{digest}: the upload has more bytes than its digest says")
            parts.extend(map(bytes, got))
        return b"".join(parts)

    async def _upload(self, digest: Digest, reader: Reader) -> None:
        most = (await self._limits.get()).blob_bytes
        if most and digest.size > most:
            raise TooLargeError(f"{digest}: the server {self._remote.where} keeps blobs of up to {most} bytes")
        packing = self._packing if await self._packs(digest) else None
        with self._spools.rewindable(reader) as source:
            name, headers = self._named(digest), self._inherited()
            await Upload(self._remote, digest, source, name=name, headers=headers, packing=packing).run()

    # --- the rest

    async def _packs(self, digest: Digest) -> bool:
        """Whether a whole blob that is streamed may be packed: by the config, by its size, and by what the server says.
        """
        if self._packing is None or digest.size < LEAST_PACKED:
            return False
        return (await self._limits.get()).takes_zstd

    def statistics(self) -> Mapping[str, int | float | str]:
        packing = self._packing
        return {
            "read_packed": packing.reads if packing is not None else 0,
            "written_packed": packing.uploads if packing is not None else 0,
            "lookup_batches": self._lookups.batches,
            "read_batches": self._reads.batches,
            "read_in_batches": self._reads.jobs,
            "write_batches": self._writes.batches,
            "written_in_batches": self._writes.jobs,
        }

    async def _batch_room(self) -> int:
        return min(self._max_batch, (await self._limits.get()).batch_bytes)

    def _digest(self, key: Key) -> Digest:
        if isinstance(key, Digest):
            return key
        what = f"the name {key[:80]!r}" if isinstance(key, str) else f"{key}, a {type(key).__name__}"
        raise InvalidRequestError(
            f'the grpc store {self._remote.name!r} keeps blobs (store_type: "cas") and nothing else; it was asked for '
            f"{what}"
        )

    @staticmethod
    def _empty(digest: Digest) -> bytes:
        if digest not in EMPTY_DIGESTS:
            raise InvalidRequestError(f"{digest} is no digest: nothing of 0 bytes has that hash")
        return b""

    @staticmethod
    def _check_length(digest: Digest, length: int) -> None:
        if length != digest.size:
            raise UploadMismatchError(f"{digest}: the upload has {length} bytes, its digest says {digest.size}")

    def _named(self, digest: Digest) -> Digest:
        """The digest as resource names are to have it."""
        return digest._replace(function=DigestFunction.SHA256) if self._legacy_names else digest


async def _lookup_room() -> int:
    return LOOKUP_DIGESTS

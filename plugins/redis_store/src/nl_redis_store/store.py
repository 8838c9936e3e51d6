"""The Store: keys to values, answers to the contract's. What it is made of lies in the modules beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import trio

from nl.plugin import (
    EMPTY_DIGESTS,
    MAX_WHOLE,
    SMALL,
    BackendError,
    BlobNotFoundError,
    BlobSizeLimit,
    Buffer,
    BytesReader,
    Deletes,
    Digest,
    Key,
    NlError,
    OpenedReader,
    Opening,
    PromisedSource,
    Reader,
    Store,
    StoreContext,
    Traffic,
    Traits,
    UploadBatch,
    check_size,
    clamp,
    for_each,
    must_be_streamed,
    slice_bytes,
)
from nl_redis_store.client import GRACE_S, Op
from nl_redis_store.connection import Command
from nl_redis_store.download import PieceReader, piece
from nl_redis_store.keys import TEMPORARY_S, Names
from nl_redis_store.options import RedisStoreOptions
from nl_redis_store.scripts import COPY
from nl_redis_store.server import Server
from nl_redis_store.upload import Uploader

C = TypeVar("C")
WHOLE = 1024 * 1024
"""Values up to this many bytes are read by one command. So are readers of them undisturbed by what becomes of them."""


class RedisStore(Store):
    """Values of Redis under one prefix. Any number of servers share them; what is evicted, and when, is Redis's rule.

    A value whose size is not that of its digest is not there, and an upload mends it. A blob of more than 1 MiB that
    Redis evicts while it is being read ends its reader with UnavailableError.
    """

    Options = RedisStoreOptions

    def __init__(self, options: RedisStoreOptions, context: StoreContext) -> None:
        self._options = options
        self._name = context.name
        self._server = Server(options, context.name)
        self._names = Names(options.key_prefix)
        self._client = self._server.client
        self._backend = self._server.backend
        self._piece = options.read_chunk_size or WHOLE
        self._uploads = Uploader(
            self._client, self._names, ttl_s=options.ttl_s, chunk=self._piece, largest=options.max_blob_bytes,
            memory=options.max_upload_memory,
        )
        self._ttl = b"%d" % options.ttl_s
        self._traffic = Traffic()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Holds the connections. Raises ConfigError in one line for a wrong password, or the wrong kind of server."""
        await self._server.run(task_status=task_status)

    async def check(self) -> None:
        await self._server.check()

    @property
    def traits(self) -> Traits:
        """Use is tracked where it extends `key_ttl_s`, or where Redis, once it was reached, says that it evicts by it
        (`allkeys-lru`).
        """
        return Traits(authoritative=True, tracks_use=bool(self._options.ttl_s) or self._server.evicts_by_use)

    def capability(self, kind: type[C]) -> C | None:
        return self if kind in (Deletes, BlobSizeLimit) and isinstance(self, kind) else None

    def max_blob_bytes(self) -> int:
        """See `BlobSizeLimit`."""
        return self._options.max_blob_bytes

    def statistics(self) -> Mapping[str, int | float | str]:
        return {**self._traffic.statistics(), "uploads_busy": self._uploads.busy, **self._server.statistics()}

    # ------------------------------------------------------------------------------------------------------- looking

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        found: dict[Key, int | None] = {}
        asked: list[Key] = []
        for key in dict.fromkeys(keys):
            if key in EMPTY_DIGESTS:
                found[key] = 0
            else:
                asked.append(key)
        self._traffic.lookups += len(asked)
        outcomes = await self._client.many([self._looking(key) for key in asked])
        for key, outcome in zip(asked, outcomes, strict=True):
            if isinstance(outcome, BackendError):
                raise self._backend.translated(outcome) from outcome
            found[key] = self._size_of(key, *outcome[:2])
        return [found[key] for key in keys]

    def _looking(self, key: Key) -> Op:
        """STRLEN is a use for Redis's LRU, too; EXISTS is not."""
        name = self._names.of(key)
        use = self._use(name)
        if isinstance(key, Digest):
            return Op(name, ((b"STRLEN", name), *use))
        return Op(name, ((b"STRLEN", name), (b"EXISTS", name), *use))

    def _size_of(self, key: Key, size: int, exists: int = 1) -> int | None:
        if isinstance(key, Digest):
            return key.size if self._is_right(key, size) else None
        return size if exists else None

    def _is_right(self, key: Digest, size: int) -> bool:
        if size not in (0, key.size):
            self._backend.complain(f"{key} has {size} bytes: it counts as missing")
        return size == key.size

    def _use(self, name: bytes) -> tuple[Command, ...]:
        """What makes it live longer, if values do not live for ever."""
        return ((b"EXPIRE", name, self._ttl),) if self._options.ttl_s else ()

    # ------------------------------------------------------------------------------------------------------- reading

    async def get(self, key: Key) -> Buffer:
        (found,) = await self.get_many([key])
        if isinstance(found, NlError):
            raise found
        return found

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        found: dict[Key, Buffer | NlError] = {}
        asked: list[Key] = []
        for key in dict.fromkeys(keys):
            if key in EMPTY_DIGESTS:
                found[key] = b""
            elif isinstance(key, Digest) and key.size > MAX_WHOLE:
                found[key] = must_be_streamed(key, key.size)
            else:
                asked.append(key)
        self._traffic.downloads += len(asked)
        outcomes = await self._client.many([self._getting(key, MAX_WHOLE) for key in asked])
        for key, outcome in zip(asked, outcomes, strict=True):
            if isinstance(outcome, BackendError):
                found[key] = self._backend.translated(outcome)
                continue
            data, exists = outcome[0], isinstance(key, Digest) or outcome[1]
            if self._size_of(key, len(data), exists) is None:
                found[key] = BlobNotFoundError(key, self._name)
            else:
                found[key] = data if len(data) <= MAX_WHOLE else must_be_streamed(key, len(data))
        return [found[key] for key in keys]

    def _getting(self, key: Key, most: int) -> Op:
        """The value, and one byte more than it may have, so that a longer one is noticed and costs no more."""
        name = self._names.of(key)
        if isinstance(key, Digest):
            return piece(name, 0, key.size + 1, *self._use(name))
        getting = piece(name, 0, most + 1, (b"EXISTS", name), *self._use(name))
        return getting._replace(receives=SMALL)  # as most action results are: or each would be a trip of its own

    def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AbstractAsyncContextManager[Reader]:
        return Opening(lambda: self._opened(key, offset, length))

    async def _opened(self, key: Key, offset: int, length: int | None) -> OpenedReader:
        """For `open`: the reader of a range, and what deletes the copy that it reads, where it does."""
        if key in EMPTY_DIGESTS:
            clamp(0, offset, length)
            return BytesReader(b""), None
        self._traffic.downloads += 1
        try:
            if isinstance(key, Digest):
                return await self._open_blob(key, offset, length), None
            return await self._open_value(key, offset, length)
        except BackendError as error:
            raise self._backend.translated(error) from error

    async def _open_blob(self, key: Digest, offset: int, length: int | None) -> Reader:
        name = self._names.of(key)
        count = clamp(key.size, offset, length)
        at = min(count, WHOLE)
        looking: tuple[Command, ...] = ((b"STRLEN", name), *self._use(name))
        if not count:
            size, *_ = await self._client.one(Op(name, looking))
            data = b""
        else:
            data, size, *_ = await self._client.one(piece(name, offset, at, *looking))
        if not self._is_right(key, size) or len(data) != at:
            raise BlobNotFoundError(key, self._name)
        if at == count:
            return BytesReader(data)
        return PieceReader(
            data, at=offset + at, end=offset + count, fetch=self._fetch, what=str(key),
            ask=lambda at, end: piece(name, at, min(self._piece, end - at)),
        )

    async def _open_value(self, key: Key, offset: int, length: int | None) -> OpenedReader:
        """A value that may be replaced at any time: what is small is read at once, of what is large there is a copy."""
        data, exists, *_ = await self._client.one(self._getting(key, WHOLE))
        if not exists:
            raise BlobNotFoundError(key, self._name)
        if len(data) <= WHOLE:
            return slice_bytes(data, offset=offset, length=length), None
        name = self._names.of(key)
        copy, seconds = self._names.temporary(name), b"%d" % TEMPORARY_S
        try:
            size = await COPY.run(self._client, (name, copy), seconds)
            if size < 0:
                raise BlobNotFoundError(key, self._name)
            count = clamp(size, offset, length)
        except BaseException:
            await self._discard(copy)
            raise
        reader = PieceReader(
            b"", at=offset, end=offset + count, fetch=self._fetch, what=str(key),
            ask=lambda at, end: piece(copy, at, min(self._piece, end - at), (b"EXPIRE", copy, seconds)),
        )
        return reader, lambda: self._discard(copy)

    async def _fetch(self, op: Op) -> bytes:
        try:
            data, *_ = await self._client.one(op)
        except BackendError as error:
            raise self._backend.translated(error) from error
        assert isinstance(data, bytes)
        return data

    async def _discard(self, copy: bytes) -> None:
        """Deletes a copy that was read; if that fails, it expires."""
        with trio.move_on_after(GRACE_S, shield=True):
            try:
                await self._client.one(Op(copy, ((b"UNLINK", copy),)))
            except BackendError:
                pass

    # ------------------------------------------------------------------------------------------------------- writing

    async def put(self, key: Key, data: Buffer) -> None:
        (failed,) = await self.put_many([(key, data)])
        if failed is not None:
            raise failed

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        batch = UploadBatch(blobs)
        at_once = min(WHOLE, self._options.max_blob_bytes)
        small = [(key, data) for key, data in batch.values.items() if len(data) <= at_once]
        large = [(key, data) for key, data in batch.values.items() if len(data) > at_once]

        async def put_large(at: int) -> None:
            key, data = large[at]
            try:
                await self.write(key, BytesReader(data))
            except NlError as error:
                batch.failed[key] = error

        ops = [self._uploads.setting(self._names.of(key), data) for key, data in small]
        for (key, data), outcome in zip(small, await self._client.many(ops, changes=True), strict=True):
            if isinstance(outcome, BackendError):
                batch.failed[key] = self._backend.translated(outcome)
            else:
                self._traffic.uploaded(len(data))
        await for_each(len(large), put_large)
        return batch.outcomes()

    async def write(self, key: Key, reader: Reader) -> None:
        size = reader.size
        if isinstance(key, Digest):
            if size != -1:
                check_size(key, size)
            size = key.size
        source = PromisedSource(reader, size, str(key))
        if key in EMPTY_DIGESTS:
            await source.take(bytearray(1))
            return
        try:
            await self._uploads.write(self._names.of(key), source)
        except BackendError as error:
            raise self._backend.translated(error) from error
        self._traffic.uploaded(source.taken)

    async def delete(self, keys: Sequence[Key]) -> None:
        """See `Deletes`."""
        names = [self._names.of(key) for key in dict.fromkeys(keys) if key not in EMPTY_DIGESTS]
        for outcome in await self._client.many([Op(name, ((b"UNLINK", name),)) for name in names], changes=True):
            if isinstance(outcome, BackendError):
                raise self._backend.translated(outcome) from outcome

"""The Store: keys to documents, answers to the contract's. What it is made of lies in the modules beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import trio

from nl.plugin import (
    EMPTY_DIGESTS,
    MAX_WHOLE,
    SMALL,
    BackendError,
    BlobNotFoundError,
    Buffer,
    BytesReader,
    Deletes,
    Digest,
    InvalidRequestError,
    Key,
    NlError,
    OpenedReader,
    Opening,
    PromisedSource,
    Reader,
    ScanPage,
    Scans,
    Store,
    StoreContext,
    Traffic,
    Traits,
    UnavailableError,
    UploadBatch,
    check_size,
    clamp,
    for_each,
    must_be_streamed,
    slice_bytes,
)
from nl_mongo_store.connection import Connection
from nl_mongo_store.documents import TRIES, Documents, Value
from nl_mongo_store.download import ChunkReader, whole_chunks
from nl_mongo_store.options import MongoStoreOptions
from nl_mongo_store.upload import Uploader

C = TypeVar("C")
TRIP_BYTES, TRIP_COUNT = 4 * 1024 * 1024, 1000
"""What one request of `get_many` and `put_many` carries; a server's messages have 48 MB at most."""
TRIPS = 4
"""Requests of one such call that are under way at once."""
_AFTER = "after:"


class MongoStore(Store):
    """Documents of one collection under one prefix. Any number of servers share them.

    Values live for ever, or until nobody has used them for `key_ttl_s`. One whose size is not that of its digest, or of
    which chunks are missing, is not there, and an upload mends it.
    """

    Options = MongoStoreOptions

    def __init__(self, options: MongoStoreOptions, context: StoreContext) -> None:
        self._options = options
        self._name = context.name
        self._connection = Connection(options, context.name)
        self._backend = self._connection.backend
        self._names = self._connection.names
        self._uploads = Uploader(self._connection, chunk=options.chunk_size, memory=options.max_upload_memory)
        self._traits = Traits(authoritative=True, tracks_use=bool(options.key_ttl_s))
        self._traffic = Traffic()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Holds the client. Raises ConfigError in one line for a wrong password, or a lack of permissions."""
        await self._connection.run(task_status=task_status)

    async def check(self) -> None:
        await self._connection.check()

    @property
    def traits(self) -> Traits:
        return self._traits

    def capability(self, kind: type[C]) -> C | None:
        return self if kind in (Deletes, Scans) and isinstance(self, kind) else None

    def statistics(self) -> Mapping[str, int | float | str]:
        return {**self._traffic.statistics(), "uploads_busy": self._uploads.busy, **self._connection.statistics()}

    # ------------------------------------------------------------------------------------------------------- looking

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        asked = [key for key in dict.fromkeys(keys) if key not in EMPTY_DIGESTS]
        self._traffic.lookups += len(asked)
        found: dict[Key, int | None] = {}
        if asked:
            names = [self._names.of(key) for key in asked]
            try:
                sizes = await self._connection.look(Documents.sizes, names)
            except BackendError as error:
                raise self._backend.translated(error) from error
            found = {key: self._size_of(key, sizes.get(name)) for key, name in zip(asked, names, strict=True)}
        return [0 if key in EMPTY_DIGESTS else found[key] for key in keys]

    def _size_of(self, key: Key, size: int | None) -> int | None:
        if isinstance(key, Digest) and size not in (None, key.size):
            self._backend.complain(f"{key} has {size} bytes: it counts as missing")
            return None
        return size

    async def scan(self, cursor: str = "", *, limit: int = 1000) -> ScanPage:
        """See `Scans`. Strings whose names had to be cut short are not listed."""
        if cursor and not cursor.startswith(_AFTER):
            raise InvalidRequestError(f"{cursor[:80]!r} is no cursor of this store")
        limit = min(limit, TRIP_COUNT)
        try:
            after = self._names.named(cursor.removeprefix(_AFTER)) if cursor else ""
            page = await self._connection.look(Documents.page, after, limit)
        except BackendError as error:
            raise self._backend.translated(error) from error
        found: list[tuple[Key, int]] = []
        for name, size in page:
            key = self._names.key(name)
            if key is not None and size >= 0 and (not isinstance(key, Digest) or key.size == size):
                found.append((key, size))
        return ScanPage(found, _AFTER + self._names.text(page[-1][0]) if len(page) == limit else "")

    # ------------------------------------------------------------------------------------------------------- reading

    async def get(self, key: Key) -> Buffer:
        (found,) = await self.get_many([key])
        if isinstance(found, NlError):
            raise found
        return found

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        found: dict[Key, Buffer | NlError] = {}
        asked: list[tuple[Key, int]] = []
        for key in dict.fromkeys(keys):
            if key in EMPTY_DIGESTS:
                found[key] = b""
            elif isinstance(key, Digest) and key.size > MAX_WHOLE:
                found[key] = must_be_streamed(key, key.size)
            else:
                asked.append((key, key.size if isinstance(key, Digest) else SMALL))
        self._traffic.downloads += len(asked)
        trips = list(_trips(asked))

        async def get_some(at: int) -> None:
            found.update(await self._get_some([key for key, _ in trips[at]]))

        await for_each(len(trips), get_some, tasks=TRIPS)
        return [found[key] for key in keys]

    async def _get_some(self, keys: Sequence[Key]) -> dict[Key, Buffer | NlError]:
        names = [self._names.of(key) for key in keys]
        try:
            values = await self._connection.look(Documents.values, names)
        except BackendError as error:
            return dict.fromkeys(keys, self._backend.translated(error))
        found: dict[Key, Buffer | NlError] = {}
        large: list[Key] = []
        for key, name in zip(keys, names, strict=True):
            value = values.get(name)
            if value is None or self._size_of(key, value.size) is None:
                found[key] = BlobNotFoundError(key, self._name)
            elif value.size > MAX_WHOLE:
                found[key] = must_be_streamed(key, value.size)
            elif value.data is None:
                large.append(key)
            else:
                found[key] = value.data

        async def get_large(at: int) -> None:
            key = large[at]
            try:
                found[key] = await self._get_large(key, values[self._names.of(key)])
            except NlError as error:
                found[key] = error

        await for_each(len(large), get_large, tasks=TRIPS)
        return found

    async def _get_large(self, key: Key, value: Value) -> Buffer:
        reader = await self._begin(key, value, 0, None, per_trip=MAX_WHOLE)
        data = bytearray()
        while parts := await reader.receive_parts(MAX_WHOLE):
            for part in parts:
                data += part
        if len(data) > MAX_WHOLE:  # it was replaced by a larger one when it was found broken
            raise must_be_streamed(key, len(data))
        return data

    def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AbstractAsyncContextManager[Reader]:
        return Opening(lambda: self._opened(key, offset, length))

    async def _opened(self, key: Key, offset: int, length: int | None) -> OpenedReader:
        """For `open`: the reader of a range. Nothing is to be closed: it holds no more than what it has fetched."""
        if isinstance(key, Digest):
            clamp(key.size, offset, length)
            if key in EMPTY_DIGESTS:
                return BytesReader(b""), None
        self._traffic.downloads += 1
        value = await self._value(key)
        return await self._begin(key, value, offset, length, per_trip=self._options.read_chunk_size), None

    async def _value(self, key: Key) -> Value:
        name = self._names.of(key)
        try:
            value = (await self._connection.look(Documents.values, [name])).get(name)
        except BackendError as error:
            raise self._backend.translated(error) from error
        if value is None or self._size_of(key, value.size) is None:
            raise BlobNotFoundError(key, self._name)
        return value

    async def _begin(self, key: Key, value: Value, offset: int, length: int | None, *, per_trip: int) -> Reader:
        """A reader whose first bytes are here: what is broken is found before anything is promised."""
        for _ in range(TRIES):
            if value.data is not None:
                return slice_bytes(value.data, offset=offset, length=length)
            if not (count := clamp(value.size, offset, length)):
                return BytesReader(b"")

            async def fetch(value: Value, first: int, count: int) -> list[bytes]:
                return await self._fetch(key, value, first, count)

            reader = ChunkReader(value, offset=offset, count=count, per_trip=per_trip, fetch=fetch)
            try:
                await reader.advance()
                return reader
            except _BrokenError:
                value = await self._value(key)  # another one, or none
        raise UnavailableError(f"store {self._name}: {key} is replaced by others all the time")

    async def _fetch(self, key: Key, value: Value, first: int, count: int) -> list[bytes]:
        try:
            found = await self._connection.look(Documents.chunks, value.upload, first, count)
            chunks = whole_chunks(value, first, found)
            if chunks is None:
                self._backend.complain(f"the server has lost a part of {key}: it counts as missing")
                await self._connection.change(Documents.remove_broken, self._names.of(key), value.upload)
        except BackendError as error:
            raise self._backend.translated(error) from error
        if chunks is None:
            raise _BrokenError(f"store {self._name}: {key} left the server while it was being read")
        return chunks

    # ------------------------------------------------------------------------------------------------------- writing

    async def put(self, key: Key, data: Buffer) -> None:
        check_size(key, len(data))
        if key in EMPTY_DIGESTS:
            return
        if len(data) > self._options.chunk_size:
            await self.write(key, BytesReader(data))
            return
        try:
            await self._connection.change(Documents.put, self._names.of(key), data, new=isinstance(key, Digest))
        except BackendError as error:
            raise self._backend.translated(error) from error
        self._traffic.uploaded(len(data))

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        batch = UploadBatch(blobs)
        small = {key: data for key, data in batch.values.items() if len(data) <= self._options.chunk_size}
        large = [(key, data) for key, data in batch.values.items() if key not in small]
        trips = list(_trips([(key, len(data)) for key, data in small.items()]))

        async def put_some(at: int) -> None:
            keys = [key for key, _ in trips[at]]
            try:
                values = [(self._names.of(key), small[key]) for key in keys]
                await self._connection.change(Documents.put_many, values)
            except BackendError as error:
                batch.failed.update(dict.fromkeys(keys, self._backend.translated(error)))
            else:
                self._traffic.uploaded(*(len(small[key]) for key in keys))

        async def put_large(at: int) -> None:
            key, data = large[at]
            try:
                await self.write(key, BytesReader(data))
            except NlError as error:
                batch.failed[key] = error

        await for_each(len(trips), put_some, tasks=TRIPS)
        await for_each(len(large), put_large, tasks=TRIPS)
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
            await self._uploads.write(self._names.of(key), source, new=isinstance(key, Digest))
        except BackendError as error:
            raise self._backend.translated(error) from error
        self._traffic.uploaded(source.taken)

    async def delete(self, keys: Sequence[Key]) -> None:
        """See `Deletes`."""
        names = [self._names.of(key) for key in dict.fromkeys(keys) if key not in EMPTY_DIGESTS]
        if not names:
            return
        try:
            await self._connection.change(Documents.remove, names)
        except BackendError as error:
            raise self._backend.translated(error) from error


class _BrokenError(UnavailableError):
    """Chunks of a value are not there. In the middle of a reader that is all there is to say."""


def _trips(sized: Sequence[tuple[Key, int]]) -> Iterator[Sequence[tuple[Key, int]]]:
    """What goes in one request each."""
    begin, room = 0, TRIP_BYTES
    for at, (_, size) in enumerate(sized):
        room -= size
        if at > begin and (room < 0 or at - begin == TRIP_COUNT):
            yield sized[begin:at]
            begin, room = at, TRIP_BYTES - size
    if begin < len(sized):
        yield sized[begin:]

"""The Store: keys to objects, answers to the contract's. What it is made of lies in the modules beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import trio

from nl.plugin import (
    EMPTY_DIGESTS,
    MAX_WHOLE,
    BackendError,
    BlobNotFoundError,
    Buffer,
    BytesReader,
    Deletes,
    Digest,
    DigestFunction,
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
    UploadBatch,
    check_size,
    clamp,
    for_each,
    key_of_text,
    key_text,
    must_be_streamed,
)
from nl_cloud_object_store.client import ObjectChangedError, ObjectInfo, ObjectMissingError
from nl_cloud_object_store.connection import Connection
from nl_cloud_object_store.download import PIECE, Download, DownloadReader
from nl_cloud_object_store.existence import Remembered
from nl_cloud_object_store.options import CloudObjectStoreOptions

C = TypeVar("C")
REPLACED_MOST = 10
"""How often a value may be replaced while it is asked for, before that is taken for a fault of the server's."""
LIST_MOST = 1000
"""Objects that one request lists: no provider gives more."""


class CloudObjectStore(Store):
    """Objects of one bucket under one prefix. Any number of servers share them, and nothing is evicted from here.

    Digests that were there are remembered for a short while (`Remembered`), so `has` may say "there" of what somebody
    has just deleted. An object whose size is not that of its digest is not there, and an upload mends it.
    """

    Options = CloudObjectStoreOptions

    def __init__(self, options: CloudObjectStoreOptions, context: StoreContext) -> None:
        self._options = options
        self._name = context.name
        self._connection = Connection(options, context.name)
        self._remembered = Remembered(options.remember_s, options.remember_count)
        self._traits = Traits(authoritative=not options.remember_s, tracks_use=False)
        self._backend = self._connection.backend
        self._traffic = Traffic()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connects, and holds the connection. Raises ConfigError in one line if bucket or credentials are wrong."""
        await self._connection.run(task_status=task_status)

    async def check(self) -> None:
        await self._connection.check()

    @property
    def traits(self) -> Traits:
        return self._traits

    def capability(self, kind: type[C]) -> C | None:
        """It can delete and list. What leaves it, it cannot say: others and the bucket's rules tell nobody."""
        return self if kind in (Deletes, Scans) and isinstance(self, kind) else None

    def statistics(self) -> Mapping[str, int | float | str]:
        return {
            "bucket": self._options.bucket or self._options.container,
            **self._traffic.statistics(),
            "remembered": len(self._remembered),
            "lookups_spared": self._remembered.hits,
            **self._connection.statistics(),
        }

    # ------------------------------------------------------------------------------------------------------- looking

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        found: dict[Key, int | None] = {}
        unknown: list[Key] = []
        for key in keys:
            if key in found:
                continue
            if isinstance(key, Digest) and (key in EMPTY_DIGESTS or key in self._remembered):
                found[key] = key.size
            else:
                found[key] = None
                unknown.append(key)

        async def look(at: int) -> None:
            found[unknown[at]] = await self._look(unknown[at])

        if unknown:
            await for_each(len(unknown), look, tasks=self._options.max_threads)
        return [found[key] for key in keys]

    async def _look(self, key: Key) -> int | None:
        since = self._remembered.forgotten
        self._traffic.lookups += 1
        try:
            info = await self._connection.look(self._connection.client.head, self._object(key))
        except ObjectMissingError:
            return None
        except BackendError as error:
            raise self._error(key, error) from error
        return self._size_of(key, info, since)

    def _size_of(self, key: Key, info: ObjectInfo, since: int) -> int | None:
        """The size of an object that is there, right, and not about to be deleted."""
        lasts: float | None = None
        if expire := self._options.consider_expired_after_s:
            lasts = info.modified + expire - time.time()
            if lasts <= 0:
                return None
        if isinstance(key, Digest):
            if info.size != key.size:
                self._backend.complain(f"{self._object(key)} has {info.size} bytes: it counts as missing")
                return None
            self._remembered.add(key, seconds=lasts, since=since)
        return info.size

    async def scan(self, cursor: str = "", *, limit: int = 1000, lasting: float = 0) -> ScanPage:
        """See `Scans`. Of objects that expire (`consider_expired_after_s`) only those that have more than `lasting`
        seconds left. Strings whose names had to be cut short are not listed.
        """
        client, prefix = self._connection.client, self._options.key_prefix
        try:
            page = await self._connection.look(client.list_page, prefix, cursor, min(limit, LIST_MOST))
        except BackendError as error:
            raise self._backend.translated(error) from error
        expire = self._options.consider_expired_after_s
        oldest = time.time() + lasting - expire if expire else -math.inf
        found: list[tuple[Key, int]] = []
        for each in page.objects:
            key = key_of_text(each.key[len(prefix) :])
            if key is None or each.modified <= oldest or (isinstance(key, Digest) and key.size != each.size):
                continue
            found.append((key, each.size))
        return ScanPage(found, page.cursor)

    # ------------------------------------------------------------------------------------------------------- reading

    async def get(self, key: Key) -> Buffer:
        if key in EMPTY_DIGESTS:
            return b""
        if isinstance(key, Digest) and key.size > MAX_WHOLE:
            raise must_be_streamed(key, key.size)
        download, fetcher = self._download(key), self._connection.fetcher
        try:
            first = await fetcher.piece(download, MAX_WHOLE)
            if len(first) + download.left > MAX_WHOLE:
                raise must_be_streamed(key, download.total)
            return await fetcher.rest(download, first)
        except BackendError as error:
            raise self._error(key, error) from error
        finally:
            download.close()

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        found: list[Buffer | NlError] = [b""] * len(keys)

        async def get_one(at: int) -> None:
            try:
                found[at] = await self.get(keys[at])
            except NlError as error:
                found[at] = error

        await for_each(len(keys), get_one, tasks=self._options.max_threads)
        return found

    def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AbstractAsyncContextManager[Reader]:
        return Opening(lambda: self._opened(key, offset, length))

    async def _opened(self, key: Key, offset: int, length: int | None) -> OpenedReader:
        """For `open`: the reader of a range, and what ends its download."""
        if key in EMPTY_DIGESTS:
            clamp(0, offset, length)
            return BytesReader(b""), None
        try:
            if isinstance(key, Digest):
                return await self._open_blob(key, offset, length)
            if offset or length is not None:
                return await self._open_part_of_value(key, offset, length)
            return await self._begin(key, self._download(key))
        except BackendError as error:
            raise self._error(key, error) from error

    async def _open_blob(self, key: Digest, offset: int, length: int | None) -> OpenedReader:
        if count := clamp(key.size, offset, length):
            return await self._begin(key, self._download(key, offset=offset, count=count))
        if await self._look(key) is None:
            raise self._missed(key)
        return BytesReader(b""), None

    async def _open_part_of_value(self, key: Key, offset: int, length: int | None) -> OpenedReader:
        """A range of an object whose size is not in its key, and which may be replaced between the two requests."""
        client, name = self._connection.client, self._object(key)
        attempt = 0
        while True:
            attempt += 1
            info = await self._connection.look(client.head, name)
            if not (count := clamp(info.size, offset, length)):
                return BytesReader(b""), None
            try:
                return await self._begin(
                    key, Download(client, name, offset=offset, count=count, total=info.size, etag=info.etag)
                )
            except ObjectChangedError:
                if attempt == REPLACED_MOST:
                    raise

    def _download(self, key: Key, *, offset: int = 0, count: int | None = None) -> Download:
        self._traffic.downloads += 1
        client, name = self._connection.client, self._object(key)
        if not isinstance(key, Digest):
            return Download(client, name)
        count = key.size if count is None else count
        return Download(client, name, offset=offset, count=count, total=key.size, immutable=True)

    async def _begin(self, key: Key, download: Download) -> OpenedReader:
        """Asks for the object. What is small is then here as a whole, and needs its server no more."""
        fetcher = self._connection.fetcher
        try:
            first = await fetcher.piece(download)
            if len(first) + download.left <= PIECE:
                first = await fetcher.rest(download, first)
        except BaseException:
            download.close()
            raise
        if not download.left:
            return BytesReader(first), None
        reader = DownloadReader(download, first, fetcher=fetcher, translate=lambda error: self._error(key, error))
        return reader, reader.aclose

    # ------------------------------------------------------------------------------------------------------- writing

    async def put(self, key: Key, data: Buffer) -> None:
        check_size(key, len(data))
        if key in EMPTY_DIGESTS:
            return
        if len(data) > self._options.part_size:
            await self.write(key, BytesReader(data))
            return
        # A thread may go on sending after its caller was cancelled: it needs bytes that nobody changes.
        whole = data if isinstance(data, bytes) else bytes(data)
        uploads = self._connection.uploads
        await self._upload(key, uploads.put(self._object(key), whole, replace=not isinstance(key, Digest)), len(data))

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
        uploads = self._connection.uploads
        await self._upload(key, uploads.write(self._object(key), source, replace=not isinstance(key, Digest)), size)

    async def _upload(self, key: Key, upload: Awaitable[None], size: int) -> None:
        try:
            await upload
        except BackendError as error:
            raise self._error(key, error) from error
        self._traffic.uploaded(max(size, 0))
        if isinstance(key, Digest):
            self._remembered.add(key, seconds=self._options.consider_expired_after_s or None)

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        batch = UploadBatch(blobs)
        values = list(batch.values.items())

        async def put_one(at: int) -> None:
            key, data = values[at]
            try:
                await self.put(key, data)
            except NlError as error:
                batch.failed[key] = error

        await for_each(len(values), put_one, tasks=self._options.max_threads)
        return batch.outcomes()

    # ------------------------------------------------------------------------------------------------------- removal

    async def delete(self, keys: Sequence[Key]) -> None:
        """See `Deletes`."""
        gone = [key for key in dict.fromkeys(keys) if key not in EMPTY_DIGESTS]

        async def delete_one(at: int) -> None:
            await self._connection.change(self._connection.client.delete, self._object(gone[at]))

        self._forget(gone)
        try:
            await for_each(len(gone), delete_one, tasks=self._options.max_threads)
        except BackendError as error:
            raise self._backend.translated(error) from error
        finally:
            self._forget(gone)  # those that a lookup found there meanwhile

    def _forget(self, keys: Sequence[Key]) -> None:
        names = [key for key in keys if not isinstance(key, str)]  # a ForeignKey is a digest's object by another name
        self._remembered.forget(Digest(key.hash, key.size, function) for key in names for function in DigestFunction)

    def _missed(self, key: Key) -> BlobNotFoundError:
        """The object is not there, whatever was said before."""
        self._forget([key])
        return BlobNotFoundError(key, self._name)

    # ---------------------------------------------------------------------------------------------------------- names

    def _object(self, key: Key) -> str:
        return self._options.key_prefix + key_text(key)

    def _error(self, key: Key, error: BackendError) -> Exception:
        """What the contract calls a client's error."""
        if isinstance(error, ObjectMissingError) or (isinstance(key, Digest) and isinstance(error, ObjectChangedError)):
            if isinstance(error, ObjectChangedError):
                self._backend.complain(f"{error}: it counts as missing")
            return self._missed(key)
        return self._backend.translated(error)

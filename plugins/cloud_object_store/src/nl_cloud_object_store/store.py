"""The Store: keys to objects, answers to the contract's. What it is made of lies in the modules beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TypeVar

import trio

from nl.plugin import (
    EMPTY_DIGESTS,
    MAX_WHOLE,
    BlobNotFoundError,
    Buffer,
    BytesReader,
    Deletes,
    Digest,
    DigestFunction,
    Key,
    NlError,
    PromisedSource,
    Reader,
    ScanPage,
    Scans,
    Store,
    StoreContext,
    TooLargeError,
    Traits,
    UploadMismatchError,
    clamp,
    for_each,
    key_of_text,
    key_text,
)
from nl_cloud_object_store.client import ObjectChangedError, ObjectInfo, ObjectMissingError, ObjectStoreError
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
        self._counts = dict.fromkeys(("lookups", "downloads", "uploads", "bytes_uploaded"), 0)

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
            **self._counts,
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
        self._counts["lookups"] += 1
        try:
            info = await self._connection.look(self._connection.client.head, self._object(key))
        except ObjectMissingError:
            return None
        except ObjectStoreError as error:
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
                self._connection.complain(f"{self._object(key)} has {info.size} bytes: it counts as missing")
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
        except ObjectStoreError as error:
            raise self._connection.translated(error) from error
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
            raise _too_large(key, key.size)
        download, fetcher = self._download(key), self._connection.fetcher
        try:
            first = await fetcher.piece(download, MAX_WHOLE)
            if len(first) + download.left > MAX_WHOLE:
                raise _too_large(key, download.total)
            return await fetcher.rest(download, first)
        except ObjectStoreError as error:
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
        return _Opening(self, key, offset, length)

    async def opened(self, key: Key, offset: int, length: int | None) -> tuple[Reader, Download | None]:
        """For `open`: the reader of a range, and what is to be closed when it is no longer read."""
        if key in EMPTY_DIGESTS:
            clamp(0, offset, length)
            return BytesReader(b""), None
        try:
            if isinstance(key, Digest):
                return await self._open_blob(key, offset, length)
            if offset or length is not None:
                return await self._open_part_of_value(key, offset, length)
            return await self._begin(key, self._download(key))
        except ObjectStoreError as error:
            raise self._error(key, error) from error

    async def _open_blob(self, key: Digest, offset: int, length: int | None) -> tuple[Reader, Download | None]:
        if count := clamp(key.size, offset, length):
            return await self._begin(key, self._download(key, offset=offset, count=count))
        if await self._look(key) is None:
            raise self._missed(key)
        return BytesReader(b""), None

    async def _open_part_of_value(self, key: Key, offset: int, length: int | None) -> tuple[Reader, Download | None]:
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
        self._counts["downloads"] += 1
        client, name = self._connection.client, self._object(key)
        if not isinstance(key, Digest):
            return Download(client, name)
        count = key.size if count is None else count
        return Download(client, name, offset=offset, count=count, total=key.size, immutable=True)

    async def _begin(self, key: Key, download: Download) -> tuple[Reader, Download | None]:
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
        return reader, download

    # ------------------------------------------------------------------------------------------------------- writing

    async def put(self, key: Key, data: Buffer) -> None:
        if isinstance(key, Digest) and len(data) != key.size:
            raise UploadMismatchError(f"{key}: the upload has {len(data)} bytes, its digest says {key.size}")
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
            if size not in (-1, key.size):
                raise UploadMismatchError(f"{key}: the upload has {size} bytes, its digest says {key.size}")
            size = key.size
        source = PromisedSource(reader, size, str(key))
        if key in EMPTY_DIGESTS:
            await source.take(bytearray(1))
            return
        uploads = self._connection.uploads
        await self._upload(key, uploads.write(self._object(key), source, replace=not isinstance(key, Digest)), size)

    async def _upload(self, key: Key, upload: Awaitable[None], size: int) -> None:
        self._counts["uploads"] += 1
        try:
            await upload
        except ObjectStoreError as error:
            raise self._error(key, error) from error
        self._counts["bytes_uploaded"] += max(size, 0)
        if isinstance(key, Digest):
            self._remembered.add(key, seconds=self._options.consider_expired_after_s or None)

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        failed: list[NlError | None] = [None] * len(blobs)

        async def put_one(at: int) -> None:
            try:
                await self.put(*blobs[at])
            except NlError as error:
                failed[at] = error

        await for_each(len(blobs), put_one, tasks=self._options.max_threads)
        return failed

    # ------------------------------------------------------------------------------------------------------- removal

    async def delete(self, keys: Sequence[Key]) -> None:
        """See `Deletes`."""
        gone = [key for key in dict.fromkeys(keys) if key not in EMPTY_DIGESTS]

        async def delete_one(at: int) -> None:
            await self._connection.change(self._connection.client.delete, self._object(gone[at]))

        self._forget(gone)
        try:
            await for_each(len(gone), delete_one, tasks=self._options.max_threads)
        except ObjectStoreError as error:
            raise self._connection.translated(error) from error
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

    def _error(self, key: Key, error: ObjectStoreError) -> Exception:
        """What the contract calls a client's error."""
        if isinstance(error, ObjectMissingError) or (isinstance(key, Digest) and isinstance(error, ObjectChangedError)):
            if isinstance(error, ObjectChangedError):
                self._connection.complain(f"{error}: it counts as missing")
            return self._missed(key)
        return self._connection.translated(error)


class _Opening:
    """What `open` returns."""

    __slots__ = ("_asked", "_download", "_store")

    def __init__(self, store: CloudObjectStore, key: Key, offset: int, length: int | None) -> None:
        self._store = store
        self._asked = (key, offset, length)
        self._download: Download | None = None

    async def __aenter__(self) -> Reader:
        reader, self._download = await self._store.opened(*self._asked)
        return reader

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._download is not None:
            self._download.close()


def _too_large(key: Key, size: int) -> TooLargeError:
    return TooLargeError(f"{key} has {size} bytes; more than {MAX_WHOLE} must be streamed")

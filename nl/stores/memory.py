"""The `memory` kind: blobs in this process, the least recently used dropped first. Gone when the process ends.

What an entry costs is counted, not only its bytes: with `max_bytes` set, a million tiny blobs do not take a gigabyte
more than it says. Uploads under way are beside it, and bounded by as much again: an upload evicts nothing before it is
whole, since one that fails would have emptied the store for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import field
from typing import TypeVar, cast

import trio

from nl.plugin import (
    CHUNK,
    EMPTY_DIGESTS,
    MAX_WHOLE,
    BlobNotFoundError,
    BlobSizeLimit,
    Buffer,
    Deletes,
    EvictionPolicy,
    ExhaustedError,
    Key,
    LruIndex,
    NlError,
    Opened,
    Options,
    Reader,
    RemovalFeed,
    RemovalFeeds,
    Removals,
    Store,
    StoreContext,
    TooLargeError,
    for_each,
    must_be_streamed,
    slice_bytes,
)

C = TypeVar("C")
ENTRY_OVERHEAD = 640
"""Bytes that an entry costs beside its content: key, hash text, index entry, headers (measured, CPython 3.11-3.13)."""


_YIELD_BYTES = 1024 * 1024
"""An upload whose source never waits lets others have their turn after so many bytes."""


class MemoryOptions(Options):
    """Keeps blobs in the server's memory. They are gone when it stops."""

    EXAMPLE = '{ memory: { eviction_policy: { max_bytes: "1gb" } } }'

    eviction_policy: EvictionPolicy = field(default_factory=EvictionPolicy)
    """When blobs are dropped; without it, never. `max_bytes` bounds the memory used, overhead included, but for uploads
    under way, which may together take as much again."""


class MemoryStore(Store):
    """Blobs as immutable buffers in an LruIndex. No operation waits for anything but the reader it consumes.

    A blob that could never fit is refused with TooLargeError rather than taken and dropped at once.
    """

    Options = MemoryOptions

    def __init__(self, options: MemoryOptions, context: StoreContext) -> None:
        self._name = context.name
        self._index: LruIndex[Key, Buffer] = LruIndex(options.eviction_policy)
        self._removals = RemovalFeeds()
        self._uploading = 0
        self._hits = 0
        self._misses = 0

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        get = self._index.get
        sizes: list[int | None] = []
        for key in keys:
            data = get(key)
            if data is not None:
                sizes.append(len(data))
            else:
                sizes.append(0 if key in EMPTY_DIGESTS else None)
        return sizes

    async def get(self, key: Key) -> Buffer:
        data = self._find(key)
        if len(data) > MAX_WHOLE:
            raise must_be_streamed(key, len(data))
        return data

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        """See `Store`; nothing here waits, so no tasks are needed."""
        found: list[Buffer | NlError] = [b""] * len(keys)

        async def get_one(at: int) -> None:
            try:
                found[at] = await self.get(keys[at])
            except NlError as error:
                found[at] = error

        await for_each(len(keys), get_one, tasks=1)
        return found

    def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AbstractAsyncContextManager[Reader]:
        return Opened(lambda: slice_bytes(self._find(key), offset=offset, length=length))

    async def put(self, key: Key, data: Buffer) -> None:
        if key in EMPTY_DIGESTS:
            return
        self._refuse_too_large(key, len(data))
        self._insert(key, bytes(data))

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        """See `Store`; nothing here waits, so no tasks are needed."""
        failed: list[NlError | None] = [None] * len(blobs)

        async def put_one(at: int) -> None:
            try:
                await self.put(*blobs[at])
            except NlError as error:
                failed[at] = error

        await for_each(len(blobs), put_one, tasks=1)
        return failed

    async def write(self, key: Key, reader: Reader) -> None:
        if key in EMPTY_DIGESTS:
            while await reader.receive_parts():
                pass
            return
        self._refuse_too_large(key, reader.size)
        data = bytearray()
        unyielded = 0
        try:
            while parts := await reader.receive_parts(CHUNK):
                before = len(data)
                for part in parts:
                    data += part
                got = len(data) - before
                self._uploading += got
                self._refuse_too_many_uploads(key)
                unyielded += got
                if unyielded >= _YIELD_BYTES:
                    unyielded = 0
                    await trio.lowlevel.checkpoint()
        finally:
            self._uploading -= len(data)
        self._refuse_too_large(key, len(data))
        # Small blobs lose the spare room that a growing bytearray has; large ones are not worth a second copy.
        self._insert(key, bytes(data) if len(data) <= CHUNK else memoryview(data).toreadonly())

    def capability(self, kind: type[C]) -> C | None:
        if kind is BlobSizeLimit and not self._index.policy.max_bytes:
            return None
        if kind is Removals and self._index.policy.max_seconds:
            return None  # what expires is noticed when it is asked for
        return cast("C", self) if kind in (BlobSizeLimit, Deletes, Removals) else None

    async def delete(self, keys: Sequence[Key]) -> None:
        """See `Deletes`."""
        for key in keys:
            if self._index.discard(key) is not None:
                self._removals.removed(key)

    def watch_removals(self) -> RemovalFeed:
        """See `Removals`."""
        return self._removals.watch()

    def max_blob_bytes(self) -> int:
        """See `BlobSizeLimit`."""
        return max(self._index.policy.max_bytes - ENTRY_OVERHEAD, 0)

    def statistics(self) -> Mapping[str, int | float | str]:
        index = self._index
        return {
            "blobs": len(index),
            "bytes": index.total_bytes,
            "max_bytes": index.policy.max_bytes,
            "uploading_bytes": self._uploading,
            "evicted_blobs": index.evicted_count,
            "evicted_bytes": index.evicted_bytes,
            "hits": self._hits,
            "misses": self._misses,
        }

    def __repr__(self) -> str:
        return f"<MemoryStore {self._name!r}: {len(self._index)} blobs, {self._index.total_bytes} bytes>"

    def _find(self, key: Key) -> Buffer:
        data = self._index.get(key)
        if data is not None:
            self._hits += 1
            return data
        if key in EMPTY_DIGESTS:
            return b""
        self._misses += 1
        raise BlobNotFoundError(key, f"the memory store {self._name!r}")

    def _insert(self, key: Key, data: Buffer) -> None:
        self._tell(self._index.insert(key, data, size=len(data) + ENTRY_OVERHEAD))

    def _tell(self, gone: Sequence[tuple[Key, Buffer]]) -> None:
        if gone and self._removals:
            for key, _ in gone:
                self._removals.removed(key)

    def _refuse_too_many_uploads(self, key: Key) -> None:
        limit = self._index.policy.max_bytes
        if limit and self._uploading > limit:
            raise ExhaustedError(
                f"{key}: the uploads under way fill the memory store {self._name!r} ({limit} bytes)"
            )

    def _refuse_too_large(self, key: Key, size: int) -> None:
        limit = self._index.policy.max_bytes
        if limit and size + ENTRY_OVERHEAD > limit:
            raise TooLargeError(
                f"{key}: {size} bytes and {ENTRY_OVERHEAD} of overhead never fit into the memory store "
                f"{self._name!r} of {limit} bytes"
            )

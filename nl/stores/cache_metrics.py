"""The `cache_metrics` kind: counts what passes to the store behind it, and how long that takes. Changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter
from typing import TypeVar

from nl.plugin import (
    CHUNK,
    BlobNotFoundError,
    Buffer,
    Key,
    NlError,
    Options,
    Reader,
    StoreContext,
    StoreSpec,
    StoreWrapper,
    Text,
)

C = TypeVar("C")


class CacheMetricsOptions(Options):
    """Counts hits, misses, bytes and times of the store behind it; `/status` shows them."""

    EXAMPLE = '{ cache_metrics: { cache_type: "cas", backend: { ref_store: { name: "DISK" } } } }'

    cache_type: Text
    """What these figures are about, as the page is to call it."""
    backend: StoreSpec
    """The store counted."""


class CacheMetricsStore(StoreWrapper):
    """Passes everything on, capabilities too: what a worker links or a scan lists is not counted."""

    Options = CacheMetricsOptions

    def __init__(self, options: CacheMetricsOptions, context: StoreContext) -> None:
        super().__init__(context.child(options.backend))
        self._cache_type = options.cache_type
        self._asked = 0
        self._present = 0
        self._hits = 0
        self._misses = 0
        self._read_errors = 0
        self._read_bytes = 0
        self._read_s = 0.0
        self._writes = 0
        self._write_errors = 0
        self._written_bytes = 0
        self._write_s = 0.0

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        sizes = await self.backend.has(keys)
        self._asked += len(sizes)
        self._present += len(sizes) - sizes.count(None)
        return sizes

    async def get(self, key: Key) -> Buffer:
        began = perf_counter()
        try:
            data = await self.backend.get(key)
        except NlError as error:
            self._count_read(error)
            raise
        self._count_read(data)
        self._read_s += perf_counter() - began
        return data

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        began = perf_counter()
        found = await self.backend.get_many(keys)
        for data in found:
            self._count_read(data)
        self._read_s += perf_counter() - began
        return found

    @asynccontextmanager
    async def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AsyncIterator[Reader]:
        began = perf_counter()
        async with AsyncExitStack() as opening:
            try:
                reader = await opening.enter_async_context(self.backend.open(key, offset=offset, length=length))
            except NlError as error:
                self._count_read(error)
                raise
            self._hits += 1
            counting = _Counting(reader)
            try:
                yield counting
            finally:
                self._read_errors += counting.failed
                self._read_bytes += counting.bytes
                self._read_s += perf_counter() - began

    async def put(self, key: Key, data: Buffer) -> None:
        began = perf_counter()
        try:
            await self.backend.put(key, data)
        except NlError:
            self._write_errors += 1
            raise
        self._count_write(len(data), began)

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        began = perf_counter()
        failed = await self.backend.put_many(blobs)
        for (_, data), error in zip(blobs, failed, strict=True):
            if error is None:
                self._writes += 1
                self._written_bytes += len(data)
            else:
                self._write_errors += 1
        self._write_s += perf_counter() - began
        return failed

    async def write(self, key: Key, reader: Reader) -> None:
        began = perf_counter()
        counting = _Counting(reader)
        try:
            await self.backend.write(key, counting)
        except Exception:
            self._write_errors += 1
            raise
        self._count_write(counting.bytes, began)

    def capability(self, kind: type[C]) -> C | None:
        return self.backend.capability(kind)

    def statistics(self) -> Mapping[str, int | float | str]:
        return {
            "cache_type": self._cache_type,
            "asked": self._asked,
            "present": self._present,
            "hits": self._hits,
            "misses": self._misses,
            "read_errors": self._read_errors,
            "read_bytes": self._read_bytes,
            "read_seconds": round(self._read_s, 6),
            "writes": self._writes,
            "write_errors": self._write_errors,
            "written_bytes": self._written_bytes,
            "write_seconds": round(self._write_s, 6),
        }

    def _count_read(self, outcome: Buffer | NlError) -> None:
        if isinstance(outcome, BlobNotFoundError):
            self._misses += 1
        elif isinstance(outcome, NlError):
            self._read_errors += 1
        else:
            self._hits += 1
            self._read_bytes += len(outcome)

    def _count_write(self, size: int, began: float) -> None:
        self._writes += 1
        self._written_bytes += size
        self._write_s += perf_counter() - began


class _Counting(Reader):
    """Counts the bytes of another reader, and notes whether it failed."""

    __slots__ = ("_reader", "bytes", "failed", "size")

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.size = reader.size
        self.bytes = 0
        self.failed = False

    @property
    def can_rewind(self) -> bool:
        return self._reader.can_rewind

    async def rewind(self) -> None:
        await self._reader.rewind()
        self.bytes = 0

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        try:
            parts = await self._reader.receive_parts(max_bytes)
        except NlError:
            self.failed = True
            raise
        self.bytes += sum(map(len, parts))
        return parts

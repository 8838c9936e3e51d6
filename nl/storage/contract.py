"""The Store contract: five operations on keyed blobs. `nl.testing.StoreConformance` holds it in tests.

Every store kind, built in or third party, derives from `Store`. The chunked way (`open`, `write`) and the short way
(`get`, `put`) have one meaning; the short way exists because most blobs are a few KiB and must cost no task, no
thread hop and no reader.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import trio

from nl.blob.reader import Buffer, Reader
from nl.model.digest import Digest, Key

SMALL = 64 * 1024
"""Blobs up to this many bytes go the short way: whole, in memory, inline."""
MAX_WHOLE = 4 * 1024 * 1024
"""`get` refuses larger values: whoever wants more streams."""

C = TypeVar("C")


class Store(ABC):
    """A map from keys to immutable blobs that may forget (evict) but never lie.

    Promises that hold for every kind:

    * The empty blob (`EMPTY_DIGESTS`) is always there, is never stored, and writing it is a no-op.
    * A key of type `Digest` is only ever answered with bytes that hash to it. Callers hand `put` and `write` bytes
      whose digest they have checked or are checking (the reader raises `UploadMismatchError` at its end).
    * A blob becomes visible whole or not at all: a reader that raises, a cancelled task, a crash leave nothing behind.
    * `has` and reading refresh recency: what was just said to be there is the last to be evicted.

    *Cancellation*: safe at every await. *Concurrency*: all methods may run at once, also for one key.
    *Errors*: BlobNotFoundError, ExhaustedError (disk or quota full), CorruptBlobError (bytes found wrong halfway
    through a stream), UnavailableError (backend away). Anything else is a bug of the store.
    """

    @abstractmethod
    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        """For each key, in order, the blob's size in bytes, or None. Exact: neither over- nor under-reports."""

    @abstractmethod
    async def get(self, key: Key) -> Buffer:
        """The whole blob, which the caller may keep.

        Raises BlobNotFoundError; ExhaustedError if the blob is larger than MAX_WHOLE.
        """

    @abstractmethod
    def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AbstractAsyncContextManager[Reader]:
        """A reader over bytes [offset, offset + length), clamped to the blob's end; `length` None means to the end.

        Entering raises BlobNotFoundError, or RangeError if `offset` is beyond the end. Eviction does not disturb a
        reader that is open.
        """

    @abstractmethod
    async def put(self, key: Key, data: Buffer) -> None:
        """Stores a whole blob. `data` may be reused by the caller afterwards: a store that keeps it copies it."""

    @abstractmethod
    async def write(self, key: Key, reader: Reader) -> None:
        """Stores what the reader delivers, consuming it to its end.

        If the reader raises, nothing becomes visible and the error propagates.
        """

    def capability(self, kind: type[C]) -> C | None:
        """Something more that this store can do, as a Protocol of `nl.storage`, or None.

        A wrapper answers None unless it can stand in for what it wraps.
        """
        return None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Background work, until cancelled; `task_status.started()` when the store may be used. Children run by
        themselves: the builder starts every store of a chain, innermost first.
        """
        task_status.started()

    def statistics(self) -> Mapping[str, int | float | str]:
        """A snapshot of counters and levels for logs, metrics and pages."""
        return {}


class Link(NamedTuple):
    """One input file of an action: the blob `digest` is to appear at `path` (absolute, its parent exists)."""

    digest: Digest
    path: str
    executable: bool


@runtime_checkable
class LocalFiles(Protocol):
    """Capability: the store can hand out blobs as local files and take local files over."""

    async def link_files(self, links: Sequence[Link]) -> list[Digest]:
        """Makes each blob appear at its path as a read-only file (0444, or 0555 if executable).

        Hard links where possible: never chmod or write to them. Bytes are verified like any others. Returns the
        digests that are missing (deduplicated, in order); the other links are made all the same. Zero-size blobs are
        created as fresh empty files.
        """
        ...

    async def adopt_file(self, digest: Digest, path: str) -> None:
        """Takes over a regular file whose content the caller has hashed, by rename or link where possible, else by
        copying. The file may or may not be at `path` afterwards; its mode may change. If the blob is there already,
        nothing is stored.
        """
        ...


@runtime_checkable
class BlobSizeLimit(Protocol):
    """Capability: blobs above a size are refused, however empty the store is."""

    def max_blob_bytes(self) -> int:
        """The largest blob that can be kept."""
        ...


@runtime_checkable
class Discards(Protocol):
    """Capability: the store keeps nothing. Writes to it succeed and are gone, so a caller may spare them."""

    def discards_everything(self) -> bool:
        """True."""
        ...

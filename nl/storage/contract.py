"""The Store contract: operations on keyed blobs. `nl.testing.StoreConformance` holds it in tests.

Every store kind, built in or third party, derives from `Store`. The chunked way (`open`, `write`) and the short way
(`get`, `put`) have one meaning; the short way exists because most blobs are a few KiB and must cost no task, no
thread hop and no reader. The ways for many (`get_many`, `put_many`) exist because backends far away die of round trips.

**Who verifies** is said once, here. A store takes bytes that its caller has checked, or is checking: services check
uploads; whoever fills a store from another one checks what it fills; whoever adopts a file checks what it adopts.
A store checks again what it cannot be sure of: what was changed behind its back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeVar

import trio

from nl.blob.reader import Buffer, Reader
from nl.errors import NlError, TooLargeError
from nl.model.digest import Key
from nl.storage.concurrent import for_each

SMALL = 64 * 1024
"""Blobs up to this many bytes go the short way: whole, in memory, inline."""
MAX_WHOLE = 4 * 1024 * 1024
"""`get` refuses larger values: whoever wants more streams."""

C = TypeVar("C")


def must_be_streamed(key: Key, size: int, *, at_least: bool = False) -> TooLargeError:
    """What `get` answers of a value of more than MAX_WHOLE bytes: of `size`, or `at_least` so many."""
    many = f"{size} bytes or more" if at_least else f"{size} bytes"
    return TooLargeError(f"{key} has {many}; more than {MAX_WHOLE} must be streamed")


@dataclass(frozen=True, slots=True)
class Traits:
    """What callers may rely on, as a store knows it."""

    authoritative: bool = True
    """`has` is exact at the moment of its answer. Where it is not, a yes may be out of date: an upload is never left
    out because of it."""
    tracks_use: bool = True
    """`has`, `touch` and reading are uses: what was used last is the last to be evicted. Where it is not, blobs go by
    rules of the backend (a lifecycle, an expiry time), and touching is in vain."""


_EXACT = Traits()


class Store(ABC):
    """A map from keys to immutable blobs that may forget (evict) but never lie.

    Promises that hold for every kind:

    * The empty blob (`EMPTY_DIGESTS`) is always there, is never stored, and writing it is a no-op.
    * A key of type `Digest` is only ever answered with bytes that hash to it, by its own function. Callers hand `put`
      and `write` bytes whose digest they have checked or are checking (the reader raises `UploadMismatchError` at its
      end).
    * A blob becomes visible whole or not at all: a reader that raises, a cancelled task, a crash leave nothing behind.
    * What is acknowledged is there for whoever asks next, in this process or another on the same backend.

    *Cancellation*: safe at every await. *Concurrency*: all methods may run at once, also for one key.
    *Errors*: BlobNotFoundError, TooLargeError (never fits), ExhaustedError (no room now), CorruptBlobError (bytes found
    wrong halfway through a stream), UnavailableError (backend away). Anything else is a bug of the store. Errors whose
    `retryable` is set may go away by themselves; all operations may be repeated, since blobs are immutable.
    *Threads*: none is needed to call a store. A kind whose backend blocks uses `trio.to_thread.run_sync` with a
    CapacityLimiter of its own; a thread cannot be cancelled, so either its result is waited for or it must not matter
    (`abandon_on_cancel`), and clean-up after a cancellation needs a shielded scope with a deadline.
    """

    @property
    def traits(self) -> Traits:
        """What callers may rely on; the same for as long as the store runs."""
        return _EXACT

    @abstractmethod
    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        """For each key, in order, the blob's size in bytes, or None; one trip however many there are.

        The size is the logical one: for a Digest its own. A use, as `Traits` has it.
        """

    async def touch(self, keys: Sequence[Key]) -> None:
        """Counts as a use of each, wherever it was really read. Those that are not there are no error."""
        if self.traits.tracks_use:
            await self.has(keys)

    @abstractmethod
    async def get(self, key: Key) -> Buffer:
        """The whole blob, which the caller may keep.

        Raises BlobNotFoundError; TooLargeError if the blob is larger than MAX_WHOLE.
        """

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        """What `get` returns or raises, for each key in order. The caller bounds how much they are together."""
        found: list[Buffer | NlError] = [b""] * len(keys)

        async def get_one(at: int) -> None:
            try:
                found[at] = await self.get(keys[at])
            except NlError as exc:
                found[at] = exc

        await for_each(len(keys), get_one)
        return found

    @abstractmethod
    def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AbstractAsyncContextManager[Reader]:
        """A reader over bytes [offset, offset + length), clamped to the blob's end; `length` None means to the end.

        Entering raises BlobNotFoundError, or RangeError if `offset` is beyond the end. Eviction does not disturb a
        reader that is open.
        """

    @abstractmethod
    async def put(self, key: Key, data: Buffer) -> None:
        """Stores a whole blob. `data` may be reused by the caller afterwards: a store that keeps it copies it."""

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        """What `put` raises, None where it is stored, for each in order. The caller bounds how much they are together.

        Of several values for one key the last is there afterwards, as after one `put` behind the other.
        """
        failed: list[NlError | None] = [None] * len(blobs)
        turns: dict[Key, list[int]] = {}
        for at, (key, _) in enumerate(blobs):
            turns.setdefault(key, []).append(at)
        in_turn = list(turns.values())

        async def put_in_turn(number: int) -> None:
            for at in in_turn[number]:
                try:
                    await self.put(*blobs[at])
                except NlError as exc:
                    failed[at] = exc

        await for_each(len(in_turn), put_in_turn)
        return failed

    @abstractmethod
    async def write(self, key: Key, reader: Reader) -> None:
        """Stores what the reader delivers, consuming it to its end.

        If the reader raises, nothing becomes visible and the error propagates. A store that tries again rewinds the
        reader if it can be (`Reader.can_rewind`), or keeps a bounded part of it (`nl.plugin.SpoolingReader`).
        """

    def capability(self, kind: type[C]) -> C | None:
        """Something more that this store can do, as a Protocol of `nl.storage.capabilities`, or None.

        A wrapper answers None unless it can stand in for what it wraps.
        """
        return None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Background work, until cancelled; `task_status.started()` when the store may be used.

        Children run by themselves: every store of a chain is started after the ones it stands on and cancelled before
        them, so that one that batches can flush into a backend that still works. Before `started`, ConfigError says
        what is wrong with the options, as one line with its place in the config; any other error is reported as the
        kind's failure. After `started`, an error is logged once with its place, and the store answers UnavailableError
        from then on; the server goes on.
        """
        task_status.started()

    async def check(self) -> None:
        """Raises the NlError that an operation would meet now, where that can be found out cheaply: for health.

        A wrapper need not ask its backends: whoever wants to know asks every store of the chain.
        """
        return

    def statistics(self) -> Mapping[str, int | float | str]:
        """A snapshot of counters and levels for logs, metrics and pages."""
        return {}

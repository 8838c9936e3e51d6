"""The `noop` kind: keeps nothing. For a `fast_slow` that has only one side, or a cache that must stay empty."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar, cast

from nl.plugin import (
    EMPTY_DIGESTS,
    BlobNotFoundError,
    Buffer,
    Deletes,
    Discards,
    Key,
    Opened,
    Options,
    Reader,
    Store,
    StoreContext,
    slice_bytes,
)

C = TypeVar("C")


class NoopOptions(Options):
    """Keeps nothing: writing succeeds, and nothing is ever there but the empty blob."""

    EXAMPLE = "{ noop: {} }"


class NoopStore(Store):
    """Consumes what is written, so that a bad upload is still noticed, and forgets it."""

    Options = NoopOptions

    def __init__(self, options: NoopOptions, context: StoreContext) -> None:
        self._name = context.name

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        return [0 if key in EMPTY_DIGESTS else None for key in keys]

    async def get(self, key: Key) -> Buffer:
        return self._find(key)

    def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AbstractAsyncContextManager[Reader]:
        return Opened(lambda: slice_bytes(self._find(key), offset=offset, length=length))

    async def put(self, key: Key, data: Buffer) -> None:
        return None

    async def write(self, key: Key, reader: Reader) -> None:
        while await reader.receive_parts():
            pass

    async def delete(self, keys: Sequence[Key]) -> None:
        """Nothing is there: see `Deletes`."""

    def _find(self, key: Key) -> bytes:
        if key in EMPTY_DIGESTS:
            return b""
        raise BlobNotFoundError(key, f"the noop store {self._name!r}")

    def discards_everything(self) -> bool:
        """True: see `Discards`."""
        return True

    def capability(self, kind: type[C]) -> C | None:
        return cast("C", self) if kind in (Discards, Deletes) else None

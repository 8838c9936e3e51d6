"""A store that passes everything on: the base of kinds that stand in front of one other and change little of it.

What a kind changes it overrides; what the contract gains later passes through by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from nl.blob.reader import Buffer, Reader
from nl.errors import NlError
from nl.model.digest import Key
from nl.storage.contract import Store, Traits


class StoreWrapper(Store):
    """Passes every operation on to `backend`. Capabilities are not passed on: each kind says which it stands in for."""

    def __init__(self, backend: Store) -> None:
        self._backend = backend

    @property
    def backend(self) -> Store:
        """The store behind this one."""
        return self._backend

    @property
    def traits(self) -> Traits:
        return self.backend.traits

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        return await self.backend.has(keys)

    async def touch(self, keys: Sequence[Key]) -> None:
        await self.backend.touch(keys)

    async def get(self, key: Key) -> Buffer:
        return await self.backend.get(key)

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        return await self.backend.get_many(keys)

    def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AbstractAsyncContextManager[Reader]:
        return self.backend.open(key, offset=offset, length=length)

    async def put(self, key: Key, data: Buffer) -> None:
        await self.backend.put(key, data)

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        return await self.backend.put_many(blobs)

    async def write(self, key: Key, reader: Reader) -> None:
        await self.backend.write(key, reader)

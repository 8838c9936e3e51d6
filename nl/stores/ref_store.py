"""The `ref_store` kind: another name for a store that is defined elsewhere. Adds nothing and hides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import trio

from nl.plugin import Buffer, Key, Options, Reader, Store, StoreContext, StoreName

C = TypeVar("C")


class RefOptions(Options):
    """Uses a store of the top-level `stores` in a place where a store is written inline."""

    EXAMPLE = '{ ref_store: { name: "CAS_MAIN_STORE" } }'

    name: StoreName
    """The name of the store meant. Where it is defined, before or after, does not matter."""


class RefStore(Store):
    """Passes every call on. Looks the store up at the first one, as it may be built later than this."""

    Options = RefOptions

    def __init__(self, options: RefOptions, context: StoreContext) -> None:
        self._target_name = options.name
        self._context = context
        self._target: Store | None = None

    @property
    def target(self) -> Store:
        """The store meant."""
        target = self._target
        if target is None:
            target = self._target = self._context.lookup(self._target_name)
        return target

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        return await self.target.has(keys)

    async def get(self, key: Key) -> Buffer:
        return await self.target.get(key)

    def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AbstractAsyncContextManager[Reader]:
        return self.target.open(key, offset=offset, length=length)

    async def put(self, key: Key, data: Buffer) -> None:
        await self.target.put(key, data)

    async def write(self, key: Key, reader: Reader) -> None:
        await self.target.write(key, reader)

    def capability(self, kind: type[C]) -> C | None:
        return self.target.capability(kind)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        # Whoever defines the store runs it; this one has no work of its own.
        task_status.started()

    def statistics(self) -> Mapping[str, int | float | str]:
        return {"name": self._target_name}

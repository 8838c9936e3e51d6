"""A store's surroundings without a config: a context that hands out stores that exist already, and their running."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from nl.plugin import CoderMemory, ConfigError, Options, Store, StoreContext, StoreSpec


class BareContext(StoreContext):
    """A StoreContext for tests: `spec(store)` is what a child field of the options takes, `named[...]` is looked up."""

    def __init__(
        self, name: str = "TEST", *, named: dict[str, Store] | None = None, coder_memory: CoderMemory | None = None
    ) -> None:
        self.name = name
        self.coder_memory = coder_memory or CoderMemory()
        self.named = named or {}
        self.children: list[Store] = []

    def spec(self, store: Store) -> StoreSpec:
        """A spec that stands for `store`; `child` gives it back, and `started` runs it."""
        self.children.append(store)
        return StoreSpec(kind="given", options=Options(), path=str(len(self.children) - 1))

    def child(self, spec: StoreSpec) -> Store:
        if spec.kind != "given":
            raise ConfigError(spec.path, "this context only knows stores that it was given")
        return self.children[int(spec.path)]

    def lookup(self, name: str) -> Store:
        return self.named[name]


@asynccontextmanager
async def started(store: Store, context: BareContext | None = None) -> AsyncIterator[Store]:
    """Runs a store's background work, and that of the children that `context` gave it, while the block lasts."""
    inner = [] if context is None else [*context.named.values(), *context.children]
    async with trio.open_nursery() as nursery:
        for each in (*inner, store):
            await nursery.start(_run, each)
        yield store
        nursery.cancel_scope.cancel()


async def _run(store: Store, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    await store.run(task_status=task_status)

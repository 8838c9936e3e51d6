"""grpc stores for tests, and one that keeps everything: blobs and results behind the wire, names in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio

from nl.cas.action_results import seal
from nl.pb import reapi
from nl.pb.codec import encode
from nl.plugin import ActionKey, Buffer, CoderMemory, Digest, Key, NlError, Reader, Store
from nl.stores.grpc import GrpcEndpoint, GrpcOptions, GrpcRetry, GrpcStore
from nl.testing import BareContext, started

QUICK = GrpcRetry(max_retries=4, delay=0.02, jitter=0.0)


def grpc_store(
    *ports: int | str, kind: Any = "cas", retry: GrpcRetry = QUICK, name: str = "REMOTE",
    coder_memory: CoderMemory | None = None, **more: Any,
) -> GrpcStore:
    """A store of servers on loopback (or at whole addresses), not started."""
    endpoints = tuple(
        GrpcEndpoint(address=f"grpc://127.0.0.1:{port}" if isinstance(port, int) else port) for port in ports
    )
    options = GrpcOptions(store_type=kind, **{"endpoints": endpoints, "retry": retry, **more})
    return GrpcStore(options, BareContext(name, coder_memory=coder_memory))


@asynccontextmanager
async def remote_cas(*ports: int | str, **more: Any) -> AsyncIterator[Store]:
    """A running store of blobs."""
    async with started(grpc_store(*ports, **more)) as store:
        yield store


def make_result(size: int, *, seed: int = 0) -> bytes:
    """A sealed action result of about `size` bytes."""
    text = bytes((seed + at) % 251 for at in range(max(0, size - 30)))
    return seal(encode(reapi.ActionResult(exit_code=seed + 1, stdout_raw=text)))


class Sorting(Store):
    """Each key to the store that is made for it."""

    def __init__(self, blobs: Store, results: Store, names: Store) -> None:
        self._all = (blobs, results, names)

    def _of(self, key: Key) -> Store:
        blobs, results, names = self._all
        return blobs if isinstance(key, Digest) else results if isinstance(key, ActionKey) else names

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            for each in self._all:
                await nursery.start(each.run)
            task_status.started()

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        found: dict[int, int | None] = {}
        for store in self._all:
            own = [at for at, key in enumerate(keys) if self._of(key) is store]
            found.update(zip(own, await store.has([keys[at] for at in own]), strict=True))
        return [found[at] for at in range(len(keys))]

    async def get(self, key: Key) -> Buffer:
        return await self._of(key).get(key)

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        found: dict[int, Buffer | NlError] = {}
        for store in self._all:
            own = [at for at, key in enumerate(keys) if self._of(key) is store]
            found.update(zip(own, await store.get_many([keys[at] for at in own]), strict=True))
        return [found[at] for at in range(len(keys))]

    def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AbstractAsyncContextManager[Reader]:
        return self._of(key).open(key, offset=offset, length=length)

    async def put(self, key: Key, data: Buffer) -> None:
        await self._of(key).put(key, data)

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        failed: dict[int, NlError | None] = {}
        for store in self._all:
            own = [at for at, (key, _) in enumerate(blobs) if self._of(key) is store]
            failed.update(zip(own, await store.put_many([blobs[at] for at in own]), strict=True))
        return [failed[at] for at in range(len(blobs))]

    async def write(self, key: Key, reader: Reader) -> None:
        await self._of(key).write(key, reader)

    async def check(self) -> None:
        for each in self._all:
            await each.check()

"""The Store contract over our own server in this process: blobs and action results behind the wire."""

from __future__ import annotations

from pathlib import Path

import trio

from nl.plugin import Store
from nl.stores.grpc.options import ReadBatching
from nl.testing import BareContext, StoreConformance
from tests.support.grpc_stores import Sorting, grpc_store, make_result
from tests.support.serving import memory_store, serving


class Served(Sorting):
    """Brings its own server."""

    def __init__(self, *, packs: bool = False) -> None:
        super().__init__(memory_store(), memory_store(), memory_store())
        self._packs = packs

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        more = {"experimental_remote_cache_compression": True, "experimental_read_batching": FEW} if self._packs else {}
        async with serving(packs=self._packs) as server:
            self._all = (grpc_store(server.port, **more), grpc_store(server.port, kind="ac"), self._all[2])
            await super().run(task_status=task_status)


FEW = ReadBatching(max_blob_size_bytes=1000)
"""Most blobs travel by themselves, and packed where they have 64 KiB."""


class TestGrpcStore(StoreConformance):
    """The server in this process."""

    def make_value(self, size: int, *, seed: int = 0) -> bytes:
        return make_result(size, seed=seed)

    def make_store(self, context: BareContext, folder: Path) -> Store:
        return Served()


class TestPackedGrpcStore(TestGrpcStore):
    """Large blobs travel packed."""

    def make_store(self, context: BareContext, folder: Path) -> Store:
        return Served(packs=True)

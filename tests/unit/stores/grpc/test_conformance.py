"""The Store contract over our own server in this process: blobs and action results behind the wire."""

from __future__ import annotations

from pathlib import Path

import trio

from nl.plugin import Store
from nl.testing import BareContext, StoreConformance
from tests.support.grpc_stores import Sorting, grpc_store, make_result
from tests.support.serving import memory_store, serving


class Served(Sorting):
    """Brings its own server."""

    def __init__(self) -> None:
        super().__init__(memory_store(), memory_store(), memory_store())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with serving() as server:
            self._all = (grpc_store(server.port), grpc_store(server.port, kind="ac"), self._all[2])
            await super().run(task_status=task_status)


class TestGrpcStore(StoreConformance):
    """The server in this process."""

    def make_value(self, size: int, *, seed: int = 0) -> bytes:
        return make_result(size, seed=seed)

    def make_store(self, context: BareContext, folder: Path) -> Store:
        return Served()

"""The Store contract over our own server: blobs and action results behind the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nl.plugin import Store
from nl.testing import StoreConformance, started
from tests.support.grpc_stores import Sorting, grpc_store, make_result
from tests.support.serving import memory_store, serving


class TestGrpcStore(StoreConformance):
    """The server in this process."""

    def make_value(self, size: int, *, seed: int = 0) -> bytes:
        return make_result(size, seed=seed)

    @asynccontextmanager
    async def running_store(self, folder: Path) -> AsyncIterator[Store]:
        async with serving() as server:
            blobs, results = grpc_store(server.port), grpc_store(server.port, kind="ac")
            async with started(Sorting(blobs, results, memory_store())) as store:
                yield store

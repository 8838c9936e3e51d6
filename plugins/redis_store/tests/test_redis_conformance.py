"""The Store contract over real servers: one, one whose values expire, a cluster of three."""

import hashlib
from collections.abc import Collection
from pathlib import Path

import pytest
from redis_support import RedisCluster, RedisServer, cluster, options_for, redis  # noqa: F401

from nl.plugin import Store
from nl.testing import BareContext, DurableStoreConformance, StoreConformance
from nl_redis_store import RedisStore


def prefix_of(folder: Path) -> str:
    """The same for the same folder: a store after a restart finds what the one before it has left."""
    return hashlib.sha256(str(folder).encode()).hexdigest()[:12] + ":"


@pytest.fixture(scope="class")
def over_one(request: pytest.FixtureRequest, redis: RedisServer) -> None:  # noqa: F811
    request.cls.server = redis


@pytest.fixture(scope="class")
def over_cluster(request: pytest.FixtureRequest, cluster: RedisCluster) -> None:  # noqa: F811
    request.cls.server = cluster


class OverRedis(StoreConformance, DurableStoreConformance):
    server: RedisServer | RedisCluster

    def list_raw(self, folder: Path) -> Collection[str]:
        return {key for key in self.server.all_keys() if prefix_of(folder) in key}


@pytest.mark.usefixtures("over_one")
class TestOverOneServer(OverRedis):
    def make_store(self, context: BareContext, folder: Path) -> Store:
        return RedisStore(options_for(self.server.url, key_prefix=prefix_of(folder)), context)


@pytest.mark.usefixtures("over_one")
class TestWithExpiry(OverRedis):
    """And with small chunks, so that uploads take several, and one connection."""

    def make_store(self, context: BareContext, folder: Path) -> Store:
        return RedisStore(options_for(
            f"{self.server.url}/3", key_prefix=prefix_of(folder), key_ttl_s=600, read_chunk_size=65536,
            connection_pool_size=1, max_client_permits=7,
        ), context)


@pytest.mark.usefixtures("over_cluster")
class TestOverCluster(OverRedis):
    def make_store(self, context: BareContext, folder: Path) -> Store:
        return RedisStore(options_for(*self.server.urls, mode="cluster", key_prefix=prefix_of(folder)), context)

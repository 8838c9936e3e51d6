"""The Store contract over a real server, with small chunks, one to a request, and values that expire."""

import hashlib
from collections.abc import Collection
from pathlib import Path

import pytest
from mongo_support import MongoServer, mongo, options_for  # noqa: F401

from nl.plugin import Store
from nl.testing import BareContext, DurableStoreConformance, StoreConformance, histories
from nl_mongo_store import MongoStore

PREFIX = "cas/"


def collection_of(folder: Path) -> str:
    """The same for the same folder: a store after a restart finds what the one before it has left."""
    return "c" + hashlib.sha256(str(folder).encode()).hexdigest()[:12]


@pytest.fixture(scope="class")
def over_mongo(request: pytest.FixtureRequest, mongo: MongoServer) -> None:  # noqa: F811
    request.cls.server = mongo


class OverMongo(StoreConformance, DurableStoreConformance):
    server: MongoServer

    def list_raw(self, folder: Path) -> Collection[str]:
        with self.server.collection(collection_of(folder)) as collection:
            return {each["_id"] for each in collection.find({}, {"_id": 1})}

    @histories(6)
    async def test_any_history_is_that_of_a_dict(self, tmp_path_factory, steps):
        await self.hold(tmp_path_factory.mktemp("history"), steps)  # a second each


@pytest.mark.usefixtures("over_mongo")
class TestWithSmallChunksAndExpiry(OverMongo):
    def make_store(self, context: BareContext, folder: Path) -> Store:
        return MongoStore(options_for(
            self.server.url, cas_collection=collection_of(folder), key_prefix=PREFIX, chunk_size=131_072,
            read_chunk_size=1000, key_ttl_s=3600, max_requests=3, max_upload_memory=20 * 131_072,
        ), context)

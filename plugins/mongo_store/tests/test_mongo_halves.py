"""What a request comes to where a part of it fails: each value has its own fate, nothing is said to be stored that is
not, no chunk stays without a record.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pymongo
import pytest
import trio
import trio.testing
from mongo_support import MongoServer, mongo, new_collection, options_for  # noqa: F401
from pymongo.errors import BulkWriteError, DuplicateKeyError, OperationFailure

from nl.plugin import (
    BlobNotFoundError,
    InternalError,
    RefusedError,
    RetryOptions,
    TransientError,
    UnavailableError,
    digest_of,
    key_text,
)
from nl.testing import BareContext, CancellingReader, PartsReader, make_blob, split, started
from nl_mongo_store import MongoStore
from nl_mongo_store.connection import Connection
from nl_mongo_store.documents import TRIES, Documents
from nl_mongo_store.keys import Names
from nl_mongo_store.store import TRIP_BYTES, TRIP_COUNT, _trips

KIB = 1024


@pytest.fixture
def collection(mongo: MongoServer):  # noqa: F811
    with mongo.collection(new_collection()) as found:
        yield found


@asynccontextmanager
async def running(mongo: MongoServer, collection, **options: object) -> AsyncIterator[MongoStore]:  # noqa: F811
    specs = options_for(mongo.url, cas_collection=collection.name, **{"retry": RetryOptions(), **options})
    async with started(MongoStore(specs, BareContext("CAS"))) as store:
        yield store  # type: ignore[misc]


def names(collection, kind: str) -> list[str]:
    return sorted(each["_id"] for each in collection.find({}, {"_id": 1}) if each["_id"].startswith(kind))


async def test_no_value_of_a_batch_that_is_refused_is_said_to_be_stored(
    mongo: MongoServer, collection, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    def refuse(documents: Documents, *arguments: object, **more: object) -> None:
        raise RefusedError("not for you")

    blobs = [(digest_of(data), data) for data in map(make_blob, (10, 20, 30, 20 * KIB))]
    async with running(mongo, collection, chunk_size=4 * KIB) as store:
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(Documents, "put_many", refuse)
            meanwhile.setattr(Documents, "begin", refuse)
            outcomes = await store.put_many(blobs)
        assert [str(each) for each in outcomes] == ["store CAS: not for you"] * 4
        assert store.statistics()["uploads"] == 0
        assert await store.put_many(blobs) == [None] * 4


async def test_no_value_of_a_batch_that_cannot_be_read_is_said_to_be_missing(
    mongo: MongoServer, collection, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    def fail(documents: Documents, *arguments: object) -> None:
        raise TransientError("away")

    blobs = [(digest_of(data), data) for data in map(make_blob, (10, 20, 20 * KIB))]
    async with running(mongo, collection, chunk_size=4 * KIB) as store:
        assert await store.put_many(blobs) == [None] * 3
        for method, away in (("values", [0, 1, 2]), ("chunks", [2])):
            with monkeypatch.context() as meanwhile:
                meanwhile.setattr(Documents, method, fail)
                found = await store.get_many([digest for digest, _ in blobs])
            assert [at for at, each in enumerate(found) if isinstance(each, UnavailableError)] == away
            assert [bytes(found[at]) for at in range(3) if at not in away] == [  # type: ignore[arg-type]
                data for at, (_, data) in enumerate(blobs) if at not in away]


def test_what_a_request_carries_is_bounded_after_the_first_as_well() -> None:
    sized = [(digest_of(b"%d" % number), TRIP_BYTES // 4 + 1) for number in range(10)]
    trips = list(_trips(sized))
    assert [each for trip in trips for each in trip] == sized
    assert [len(trip) for trip in trips] == [3, 3, 3, 1]


async def test_large_values_of_a_batch_are_in_chunks(mongo: MongoServer, collection) -> None:  # noqa: F811
    data = make_blob(20 * KIB)
    async with running(mongo, collection, chunk_size=4 * KIB) as store:
        assert await store.put_many([(digest_of(b"x"), b"x"), (digest_of(data), data)]) == [None, None]
    assert len(names(collection, "!chunk:")) == 5
    assert "data" not in collection.find_one({"_id": key_text(digest_of(data))})


async def test_a_document_that_is_no_value_is_not_listed(mongo: MongoServer, collection) -> None:  # noqa: F811
    collection.insert_one({"_id": "~text", "size": "large"})
    collection.insert_one({"_id": "~another", "size": 4, "data": b"data"})
    async with running(mongo, collection) as store:
        assert (await store.scan()).entries == [("another", 4)]


async def test_a_page_has_no_more_than_one_request_carries_however_much_is_asked_for(
    mongo: MongoServer, collection, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    asked, page = list[int](), Documents.page

    def counted(documents: Documents, after: str, limit: int) -> list[tuple[str, int]]:
        asked.append(limit)
        return page(documents, after, limit)

    monkeypatch.setattr(Documents, "page", counted)
    async with running(mongo, collection) as store:
        assert (await store.scan(limit=10**9)).entries == []
    assert asked == [TRIP_COUNT]


def test_a_record_that_goes_while_it_is_made_again_still_has_its_key(
    collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def there_just_now(collection: object, document: object) -> None:
        raise DuplicateKeyError("there is one")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(pymongo.collection.Collection, "insert_one", there_just_now)
        Documents(collection, Names(""), ttl_s=0).begin("upload", "name")
    assert collection.find_one({"_id": "!upload:upload"})["key"] == "name", "or its chunks would be nobody's"


async def test_an_upload_that_is_cancelled_leaves_nothing(mongo: MongoServer, collection) -> None:  # noqa: F811
    data = make_blob(20 * KIB)
    async with running(mongo, collection, chunk_size=4 * KIB) as store:
        with trio.CancelScope() as scope:
            await store.write(digest_of(data), CancellingReader(split(data, KIB), scope, at_call=12))
        assert scope.cancelled_caught
    assert collection.count_documents({}) == 0


async def test_an_upload_that_cannot_be_tidied_up_fails_as_it_did(
    mongo: MongoServer, collection, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    def fail(documents: Documents, upload: str, number: int, chunk: bytes) -> None:
        raise RefusedError("the first")

    def fail_again(documents: Documents, upload: str, *, in_doubt: bool = False) -> None:
        raise RefusedError("another")

    monkeypatch.setattr(Documents, "add", fail)
    monkeypatch.setattr(Documents, "discard", fail_again)
    data = make_blob(20 * KIB)
    async with running(mongo, collection, chunk_size=4 * KIB) as store:
        with pytest.raises(UnavailableError, match="the first"):
            await store.write(digest_of(data), PartsReader(split(data, KIB)))
    assert len(names(collection, "!upload:")) == 1, "by which it is tidied up one day"


def test_chunks_of_a_value_that_is_taken_out_as_broken_have_a_record(collection) -> None:
    documents = Documents(collection, Names(""), ttl_s=0)
    documents.begin("upload", "name")
    documents.add("upload", 0, b"data")
    documents.finish("upload", "name", size=4, chunk=4, new=True)
    documents.forget("upload")
    documents.remove_broken("name", "upload")
    assert names(collection, "!upload:") == ["!upload:upload"]
    assert collection.find_one({"_id": "!upload:upload"})["key"] == "name"


def test_a_chunk_that_is_written_again_is_no_error_and_stays_what_it_was(collection) -> None:
    documents = Documents(collection, Names(""), ttl_s=0)
    for _ in range(2):  # the answer to the first was lost
        documents.add("upload", 0, b"data")
    assert documents.chunks("upload", 0, 2) == [b"data", None]


@pytest.mark.parametrize("document", [
    {"size": 4, "upload": "u", "chunk": 0}, {"size": 4, "upload": "u", "chunk": -4},
    {"size": -4, "upload": "u", "chunk": 4}, {"size": 4, "upload": "u"}, {"size": 4, "chunk": 4}, {"size": 4},
])  # fmt: skip
async def test_what_others_have_written_under_a_name_is_no_value_unless_all_of_it_makes_sense(
    mongo: MongoServer, collection, document: dict[str, object]  # noqa: F811
) -> None:
    digest = digest_of(b"data")
    collection.insert_one({"_id": key_text(digest), **document})
    async with running(mongo, collection) as store:
        with pytest.raises(BlobNotFoundError):
            await store.get(digest)


def test_a_value_that_others_replace_all_the_time_is_tried_again_later() -> None:
    records, others = list[str](), iter(range(1000))

    def conflict(*arguments: object, **more: object) -> None:
        raise DuplicateKeyError("another one")

    class Busy:
        """A collection in which somebody else is always first."""

        insert_one = replace_one = staticmethod(conflict)

        def find_one(self, condition: object, fields: object) -> dict[str, str]:
            return {"upload": f"other-{next(others)}"}

        def update_one(self, condition: dict[str, str], change: object, *, upsert: bool) -> None:
            records.append(condition["_id"])

    with pytest.raises(TransientError, match="all the time") as caught:
        Documents(Busy(), Names(""), ttl_s=0).put("name", b"data", new=True)  # type: ignore[arg-type]
    assert caught.value.code == "Aborted"
    assert records == [f"!upload:other-{number}" for number in range(TRIES)], "each might have been replaced"


@pytest.mark.parametrize("ttl_s", [0, 3600])
async def test_there_is_an_index_of_use_where_values_expire(
    mongo: MongoServer, collection, ttl_s: int  # noqa: F811
) -> None:
    async with running(mongo, collection, key_ttl_s=ttl_s) as store:
        await store.put("name", b"data")
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(120):
            while ttl_s and "used_1" not in await trio.to_thread.run_sync(collection.index_information):  # noqa: ASYNC110
                await trio.sleep(0.01)
    assert ("used_1" in collection.index_information()) is bool(ttl_s)


def test_a_file_that_tls_needs_and_that_went_after_the_config_was_read_is_a_fault_of_the_config(tmp_path: Path) -> None:
    (file := tmp_path / "key").write_text("")
    options = options_for(f"mongodb://127.0.0.1:1/?tls=true&tlsCertificateKeyFile={file}")
    file.unlink()
    with pytest.raises(RefusedError) as caught:
        Connection(options, "CAS")._connect()
    assert caught.value.option == "connection_string"


@pytest.mark.parametrize("codes", [(11000, 121), (121, 11000), (121,)])
def test_a_batch_of_which_one_value_is_refused_is_not_written_one_by_one(codes: tuple[int, ...]) -> None:
    def bulk_write(requests: object, **more: object) -> None:
        raise BulkWriteError({"writeErrors": [{"code": code, "errmsg": "no"} for code in codes]})

    documents = Documents(SimpleNamespace(bulk_write=bulk_write), Names(""), ttl_s=0)  # type: ignore[arg-type]
    with pytest.raises(BulkWriteError):
        documents.put_many([("name", b"data"), ("another", b"data")])


def test_the_driver_has_the_times_of_the_options_and_what_the_connection_string_says_besides() -> None:
    url = "mongodb://127.0.0.1:1/?maxPoolSize=3&connectTimeoutMS=77"
    options = options_for(url, command_timeout_ms=1234, connection_timeout_ms=5678)
    connection = Connection(options, "CAS")
    client = connection._connect().collection.database.client
    try:
        pool = client.options.pool_options
        assert (pool.socket_timeout, pool.connect_timeout, pool.max_pool_size) == (1.234, 0.077, 3)
        assert client.options.server_selection_timeout == 5.678
        assert (client.options.retry_reads, client.options.retry_writes) == (False, False)
    finally:
        connection._close()


async def test_a_store_that_has_ended_says_so_and_can_be_started_again(
    mongo: MongoServer, collection  # noqa: F811
) -> None:
    specs = options_for(mongo.url, cas_collection=collection.name)
    store = MongoStore(specs, BareContext("CAS"))
    for value in (b"first", b"second"):
        async with started(store):
            await store.put("name", value)
            assert await store.get("name") == value
        with pytest.raises(InternalError, match="has not been started"):
            await store.get("name")


async def test_a_request_that_is_refused_tells_its_reason_once(
    mongo: MongoServer, collection, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    asked = []

    def refuse(documents: Documents, *arguments: object) -> None:
        asked.append(arguments)
        raise OperationFailure("not authorized", code=13)

    monkeypatch.setattr(Documents, "sizes", refuse)
    async with running(mongo, collection, retry=RetryOptions(max_retries=5)) as store:
        with pytest.raises(UnavailableError, match="not authorized") as caught:
            await store.has([digest_of(b"x")])
    assert not caught.value.retryable
    assert len(asked) == 1

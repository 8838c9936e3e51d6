"""What happens between a look and what follows from it, at a real server: values that are replaced or used meanwhile,
uploads that fail in doubt, documents that others have written.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing
from mongo_support import MongoServer, mongo, new_collection, options_for  # noqa: F401
from pymongo.errors import BulkWriteError, OperationFailure

from nl.plugin import (
    CHUNK,
    Buffer,
    ConfigError,
    InvalidRequestError,
    RefusedError,
    RetryOptions,
    TransientError,
    UnavailableError,
    digest_of,
)
from nl.testing import BareContext, BlockingReader, PartsReader, make_blob, split, started
from nl_mongo_store import MongoStore
from nl_mongo_store.documents import NAMES_BYTES, Documents, batches
from nl_mongo_store.errors import meaning
from nl_mongo_store.keys import Names
from nl_mongo_store.sweep import sweep

KIB = 1024


@pytest.fixture
def collection(mongo: MongoServer):  # noqa: F811
    with mongo.collection(new_collection()) as found:
        yield found


@asynccontextmanager
async def running(mongo: MongoServer, collection, **options: object) -> AsyncIterator[MongoStore]:  # noqa: F811
    specs = options_for(mongo.url, cas_collection=collection.name, **options)
    async with started(MongoStore(specs, BareContext("CAS"))) as store:
        yield store  # type: ignore[misc]


def records(collection) -> list[str]:
    return [each["_id"] for each in collection.find({}, {"_id": 1}) if each["_id"].startswith("!upload:")]


def large(documents: Documents, name: str, upload: str) -> None:
    """A value in one chunk."""
    documents.begin(upload, name)
    documents.add(upload, 0, b"data")
    documents.finish(upload, name, size=4, chunk=4, new=False)
    documents.forget(upload)


def test_a_value_that_was_replaced_is_not_taken_out_for_what_its_predecessor_had_lost(collection) -> None:
    documents = Documents(collection, Names(""), ttl_s=0)
    large(documents, "name", "old")
    large(documents, "name", "new")
    documents.remove_broken("name", "old")
    assert documents.values(["name"])["name"].upload == "new"
    documents.remove_broken("name", "new")
    assert documents.values(["name"]) == {}


def test_a_large_value_that_is_used_while_it_is_being_expired_stays(
    collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = Documents(collection, Names(""), ttl_s=1000)
    large(documents, "name", "upload")
    long_ago, record = datetime.now(UTC) - timedelta(seconds=5000), documents._record

    def use(upload: str, name: str) -> None:
        record(upload, name)
        collection.update_one({"_id": name}, {"$set": {"used": datetime.now(UTC)}})

    collection.update_one({"_id": "name"}, {"$set": {"used": long_ago}})
    monkeypatch.setattr(documents, "_record", use)
    documents.remove(["name"], unused_since=datetime.now(UTC) - timedelta(seconds=1000))
    assert documents.sizes(["name"]) == {"name": 4}


def test_a_value_that_is_used_after_it_was_found_expired_stays(collection, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, name = Documents(collection, Names(""), ttl_s=1000), str(digest_of(b"data"))
    documents.put(name, b"data", new=True)
    collection.update_one({"_id": name}, {"$set": {"used": datetime.now(UTC) - timedelta(seconds=5000)}})
    remove = documents.remove

    def use(names: list[str], **options: object) -> None:
        collection.update_one({"_id": name}, {"$set": {"used": datetime.now(UTC)}})
        remove(names, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(documents, "remove", use)
    sweep(documents)
    assert documents.sizes([name]) == {name: 4}


async def test_a_value_whose_time_of_use_is_none_is_there_and_gets_one(
    mongo: MongoServer, collection  # noqa: F811
) -> None:
    digest = digest_of(b"data")
    collection.insert_one({"_id": str(digest), "size": 4, "data": b"data", "used": "yesterday"})
    async with running(mongo, collection, key_ttl_s=1000) as store:
        assert await store.has([digest]) == [4]
        assert await store.get(digest) == b"data"
    assert isinstance(collection.find_one({"_id": str(digest)})["used"], datetime)


@pytest.mark.parametrize(("error", "left"), [
    (TransientError("the answer was lost"), 1), (RefusedError("no permission"), 0),
])  # fmt: skip
async def test_an_upload_that_fails_in_doubt_leaves_its_record_for_chunks_that_come_late(
    mongo: MongoServer, collection, monkeypatch: pytest.MonkeyPatch, error: Exception, left: int  # noqa: F811
) -> None:
    data, add = make_blob(20 * KIB), Documents.add

    def fail(documents: Documents, upload: str, number: int, chunk: bytes) -> None:
        if number == 2:
            raise error
        add(documents, upload, number, chunk)

    monkeypatch.setattr(Documents, "add", fail)
    once = RetryOptions(max_retries=1, delay=0.001)
    async with running(mongo, collection, chunk_size=4 * KIB, retry=once) as store:
        with pytest.raises(UnavailableError, match=str(error)):
            await store.write(digest_of(data), PartsReader(split(data, KIB)))
        assert len(records(collection)) == left
        assert collection.count_documents({}) == left, "no chunk is left"


async def test_an_upload_that_takes_long_makes_its_record_new_every_five_minutes_however_steadily_it_gets_on(
    mongo: MongoServer, collection, mock_clock: trio.testing.MockClock  # noqa: F811
) -> None:
    data, old = make_blob(80 * KIB), datetime.now(UTC) - timedelta(minutes=30)
    renewed: list[int] = []

    class Slow(PartsReader):
        async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
            mock_clock.jump(100)
            for record in records(collection):
                before = collection.find_one_and_update({"_id": record}, {"$set": {"at": old}})
                if before["at"] > old + timedelta(minutes=1):
                    renewed.append(self.calls)
            return await super().receive_parts(max_bytes)

    async with running(mongo, collection, chunk_size=4 * KIB) as store:
        await store.write(digest_of(data), Slow(split(data, 4 * KIB)))
        assert renewed == [1, 5, 9, 13, 17], "when it begins, and after 400 s each time"
        assert await store.has([digest_of(data)]) == [len(data)]


async def test_uploads_that_find_no_memory_are_not_read_before_others_have_ended(
    mongo: MongoServer, collection  # noqa: F811
) -> None:
    data = make_blob(10 * KIB)
    first, second = BlockingReader([data[:KIB]]), PartsReader(split(data, KIB))
    async with running(mongo, collection, chunk_size=4 * KIB, max_upload_memory=4 * KIB) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, "first", first)
            await first.blocked.wait()
            nursery.start_soon(store.write, digest_of(data), second)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert (second.calls, store.statistics()["uploads_busy"]) == (0, 1)
            nursery.cancel_scope.cancel()
        await store.write(digest_of(data), second)
        assert await store.has(["first", digest_of(data)]) == [None, len(data)]


async def test_no_error_shows_a_password(
    mongo: MongoServer, collection, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    def refuse(documents: Documents, *arguments: object) -> None:
        raise OperationFailure("not for somebody:s3cret", code=13)

    monkeypatch.setattr(Documents, "ping", lambda documents: None)
    monkeypatch.setattr(Documents, "sizes", refuse)
    url = mongo.url.replace("mongodb://", "mongodb://somebody:s3cret@")
    specs = options_for(url, cas_collection=collection.name)
    async with started(MongoStore(specs, BareContext("CAS"))) as store:
        with pytest.raises(UnavailableError, match=r"not for (\*\*\*|somebody:\*\*\*)") as caught:
            await store.has([digest_of(b"x")])
    assert "s3cret" not in caught.value.message


async def test_a_cursor_of_somebody_else_is_refused(mongo: MongoServer, collection) -> None:  # noqa: F811
    async with running(mongo, collection) as store:
        with pytest.raises(InvalidRequestError, match="is no cursor of this store"):
            await store.scan("cas/1234")


def test_names_are_asked_for_in_requests_of_a_few_megabytes() -> None:
    names = [f"{number:04d}" * 250 for number in range(3000)]
    found = list(batches(names))
    assert [name for some in found for name in some] == names
    assert len(found) == 3
    assert all(sum(len(name) * 4 + 16 for name in some) <= NAMES_BYTES for some in found)


def test_a_write_that_too_few_servers_have_in_time_is_tried_again() -> None:
    error = meaning(BulkWriteError({"writeConcernErrors": [{"code": 100, "errmsg": "waiting"}]}), ())
    assert (type(error), error.code) == (TransientError, "DeadlineExceeded")


@pytest.mark.parametrize("prefix", ["~cas/", "!cas/"])
def test_a_prefix_whose_names_could_be_others_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="has a meaning") as caught:
        options_for("mongodb://127.0.0.1/", key_prefix=prefix)
    assert caught.value.path == "key_prefix"

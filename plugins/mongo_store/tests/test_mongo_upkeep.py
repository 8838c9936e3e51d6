"""What a store keeps in order beside its values: records and their times, the server's clock, what is tidied up in one
go, names as others find them, uploads that begin again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from mongo_support import MongoServer, mongo, new_collection, options_for  # noqa: F401
from pymongo import WriteConcern

from nl.plugin import EMPTY_DIGESTS, BytesReader, RefusedError, UnavailableError, digest_of
from nl.testing import BareContext, FailingReader, PartsReader, make_blob, same, split, started
from nl_mongo_store import MongoStore, sweep, upload
from nl_mongo_store.connection import Connection
from nl_mongo_store.connection_string import secrets_of
from nl_mongo_store.documents import Documents
from nl_mongo_store.errors import LostError
from nl_mongo_store.keys import Names
from nl_mongo_store.store import TRIP_COUNT, _trips

KIB = 1024
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
DATA = make_blob(20 * KIB)


@pytest.fixture
def collection(mongo: MongoServer):  # noqa: F811
    with mongo.collection(new_collection()) as found:
        yield found


@asynccontextmanager
async def running(mongo: MongoServer, collection, **options: object) -> AsyncIterator[MongoStore]:  # noqa: F811
    specs = options_for(mongo.url, cas_collection=collection.name, chunk_size=4 * KIB, **options)
    async with started(MongoStore(specs, BareContext("CAS"))) as store:
        yield store  # type: ignore[misc]


def names(collection) -> list[str]:
    return sorted(each["_id"] for each in collection.find({}, {"_id": 1}))


# ------------------------------------------------------------------------------------------------------------ uploads


async def test_an_upload_that_the_server_loses_twice_begins_again_twice(
    mongo: MongoServer, collection, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    finish, lost = Documents.finish, [LostError("lost"), LostError("lost")]

    def lose(documents: Documents, *arguments: object, **more: object) -> None:
        if lost:
            raise lost.pop()
        finish(documents, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Documents, "finish", lose)
    async with running(mongo, collection) as store:
        await store.write(digest_of(DATA), BytesReader(DATA))
        assert same(await store.get(digest_of(DATA)), DATA)


async def test_an_upload_that_takes_long_keeps_its_record_new(
    mongo: MongoServer, collection, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    beats, going_on = list[str](), Documents.still_going_on

    def beat(documents: Documents, name: str) -> None:
        beats.append(name)
        going_on(documents, name)

    monkeypatch.setattr(Documents, "still_going_on", beat)
    monkeypatch.setattr(upload, "BEAT_S", -1)
    async with running(mongo, collection) as store:
        await store.write(digest_of(DATA), PartsReader(split(DATA, KIB)))
    assert len(beats) == 5, "after each of five chunks but the last, and before the end"


async def test_a_value_whose_record_cannot_be_deleted_is_stored(
    mongo: MongoServer, collection, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    def refuse(documents: Documents, name: str) -> None:
        raise RefusedError("no permission")

    monkeypatch.setattr(Documents, "forget", refuse)
    async with running(mongo, collection) as store:
        await store.write(digest_of(DATA), PartsReader(split(DATA, KIB)))
        assert same(await store.get(digest_of(DATA)), DATA)


async def test_what_is_said_to_be_the_empty_blob_is_read_to_its_end(mongo: MongoServer, collection) -> None:  # noqa: F811
    error = UnavailableError("the source broke")
    async with running(mongo, collection) as store:
        for empty in EMPTY_DIGESTS:
            with pytest.raises(UnavailableError, match="the source broke"):
                await store.write(empty, FailingReader([], error, size=0))


async def test_a_value_of_up_to_four_mebibytes_is_got_in_one_request(
    mongo: MongoServer, collection, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    asked, chunks = list[int](), Documents.chunks

    def counted(documents: Documents, name: str, first: int, count: int) -> list[bytes | None]:
        asked.append(count)
        return chunks(documents, name, first, count)

    monkeypatch.setattr(Documents, "chunks", counted)
    async with running(mongo, collection, read_chunk_size=KIB) as store:
        await store.put(digest_of(DATA), DATA)
        assert same(await store.get(digest_of(DATA)), DATA)
    assert asked == [5]


def test_a_request_has_a_thousand_values_at_most() -> None:
    sized = [(digest_of(b"%d" % number), 1) for number in range(2 * TRIP_COUNT + 500)]
    assert [len(trip) for trip in _trips(sized)] == [1000, 1000, 500]


# --------------------------------------------------------------------------------------------------- records and times


def test_a_record_that_is_made_again_is_new(collection) -> None:
    documents = Documents(collection, Names(""), ttl_s=0)
    collection.insert_one({"_id": "!upload:u", "key": "name", "at": LONG_AGO})
    documents.remove_broken("name", "u")  # who reads it has an hour from now on
    assert collection.find_one({"_id": "!upload:u"})["at"] > LONG_AGO


def test_each_small_value_has_its_time_of_use(collection) -> None:
    documents = Documents(collection, Names(""), ttl_s=0)
    documents.put("one", b"data", new=True)
    documents.put_many([("two", b"data")])
    assert {each["_id"] for each in collection.find({"used": {"$gt": LONG_AGO}})} == {"one", "two"}


def test_times_are_by_the_servers_clock_and_a_store_that_may_not_read_notices() -> None:
    ahead, asked = timedelta(hours=5), list[object]()

    def command(name: str) -> dict[str, object]:
        return {"localTime": (datetime.now(UTC) + ahead).replace(tzinfo=None)}

    server = SimpleNamespace(
        database=SimpleNamespace(command=command), find_one=lambda *arguments: asked.append(arguments))
    documents = Documents(server, Names(""), ttl_s=0)  # type: ignore[arg-type]
    documents.ping()
    assert documents.now() - datetime.now(UTC) > ahead - timedelta(hours=1)
    assert len(asked) == 1


def test_a_record_that_has_become_new_since_it_was_found_is_left_alone_with_its_chunks(collection) -> None:
    documents = Documents(collection, Names(""), ttl_s=0)
    documents.begin("u", "name")
    documents.add("u", 0, b"data")
    sweep._settle(documents, {"_id": "!upload:u", "key": "name", "at": LONG_AGO})
    documents.still_going_on("u")
    documents.finish("u", "name", size=4, chunk=4, new=True)
    assert documents.sizes(["name"]) == {"name": 4}


@pytest.mark.parametrize("ttl_s", [0, 3600])
def test_records_are_tidied_up_as_long_as_there_are_more(
    collection, monkeypatch: pytest.MonkeyPatch, ttl_s: int
) -> None:
    monkeypatch.setattr(sweep, "SOME", 2)
    documents = Documents(collection, Names(""), ttl_s=ttl_s)
    collection.insert_many([{"_id": f"!upload:{name}", "key": name, "at": LONG_AGO} for name in ("aa", "bb", "ff")])
    assert [sweep.sweep(documents), sweep.sweep(documents)] == [True, False]
    assert names(collection) == []


def test_values_are_expired_as_long_as_there_are_more_of_ours(collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "SOME", 2)
    documents = Documents(collection, Names(""), ttl_s=3600)
    ours = [str(digest_of(b"%d" % number)) for number in range(3)]
    collection.insert_many([{"_id": name, "size": 1, "data": b"1", "used": LONG_AGO} for name in ours])
    assert [sweep.sweep(documents), sweep.sweep(documents)] == [True, False]
    assert names(collection) == []
    foreign = ["a name of another program", "another of these", "third"]
    collection.insert_many([{"_id": name, "used": LONG_AGO} for name in foreign])
    assert sweep.sweep(documents) is False, "or it would go on for ever"
    assert names(collection) == foreign


# ------------------------------------------------------------------------------------------- names, options, secrets


def test_names_of_chunks_are_in_the_order_of_their_numbers_for_who_wrote_them_and_who_reads_them() -> None:
    found = Names("cas/")
    assert found.chunk("u", 255) == "cas/!chunk:u:000000ff"
    low, high = found.records
    assert all(low <= found.record(name) < high for name in ("0" * 24, "f" * 24))


def test_a_write_is_acknowledged_by_as_many_servers_as_the_options_say() -> None:
    options = options_for("mongodb://127.0.0.1:1/?w=1", write_concern_w="majority", write_concern_j=True)
    connection = Connection(options, "CAS")
    try:
        assert connection._connect().collection.write_concern == WriteConcern(w="majority", j=True)
    finally:
        connection._close()


def test_secrets_are_known_however_options_are_separated() -> None:
    for between in "&;":
        text = f"mongodb://h/?tls=true{between}tlsCertificateKeyFilePassword=s3cret{between}appName=x"
        assert secrets_of(text) == {"s3cret"}

"""Servers that go away, lose what they had, refuse; what killed uploads leave: nothing acknowledged is lost, nothing
wrong is served, nothing stays for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pymongo
import pytest
import trio
import trustme
from mongo_support import PATIENT, MongoServer, mongo, mongo_server, new_collection, options_for  # noqa: F401

from nl.plugin import (
    ActionKey,
    BlobNotFoundError,
    BytesReader,
    ConfigError,
    Digest,
    Reader,
    RetryOptions,
    Scans,
    Store,
    UnavailableError,
    digest_of,
    key_text,
)
from nl.testing import BareContext, HalfwayReader, drain, make_blob, read, same, started
from nl_mongo_store import MongoStore

KIB = 1024
LARGE = 300 * KIB
"""Several chunks of those that tests have."""
NEVER = RetryOptions()
LONG_AGO = datetime.now(UTC) - timedelta(days=1)


@asynccontextmanager
async def running(url: str, **options: object):
    options = {"chunk_size": 64 * KIB, "read_chunk_size": 1, **options}
    async with started(MongoStore(options_for(url, **options), context := BareContext()), context) as store:
        yield store


@pytest.fixture
def own(tmp_path: Path) -> Iterator[MongoServer]:
    """A server of the test's own."""
    with mongo_server(tmp_path / "mongo") as server:
        yield server


@pytest.fixture
def collection(mongo: MongoServer):  # noqa: F811
    """One of the test's own, as PyMongo sees it."""
    with mongo.collection(new_collection()) as found:
        yield found


def restart(server: MongoServer) -> None:
    server.kill()
    server.start()


def names(collection, kind: str = "") -> set[str]:
    return {each["_id"] for each in collection.find({}, {"_id": 1}) if each["_id"].startswith(kind)}


async def until(done: Callable[[], bool]) -> None:
    """The store tidies up in the background: what it will do is waited for."""
    with trio.fail_after(120):
        while not await trio.to_thread.run_sync(done):  # noqa: ASYNC110  what is looked at is a database
            await trio.sleep(0.02)


# ------------------------------------------------------------------------------------------------ killed and restarted


async def test_an_upload_goes_on_after_the_server_was_killed(own: MongoServer) -> None:
    digest = digest_of(data := make_blob(LARGE))
    async with running(own.url, retry=PATIENT) as store:
        await store.write(digest, HalfwayReader(data, partial(restart, own), piece=10_000, once=True))
        assert same(await read(store, digest), data)
    with own.collection("cas") as collection:
        assert not names(collection, "!upload")


async def test_a_download_goes_on_after_the_server_was_killed(own: MongoServer) -> None:
    digest = digest_of(data := make_blob(LARGE))
    async with running(own.url, retry=PATIENT) as store:
        await store.write(digest, BytesReader(data))
        async with store.open(digest, offset=5) as reader:
            first = b"".join(map(bytes, await reader.receive_parts(1000)))
            restart(own)
            assert same(first + await drain(reader, taken=len(first)), data[5:])


async def test_nothing_acknowledged_is_lost_while_the_server_is_killed_again_and_again(own: MongoServer) -> None:
    blobs = {digest_of(data): data for number in range(24) for data in [make_blob(3000 + number * 8_000)]}
    there: list[Digest] = []
    async with running(own.url, retry=PATIENT) as store:

        async def upload(mine: list[Digest]) -> None:
            for digest in mine:
                await store.write(digest, BytesReader(blobs[digest]))
                there.append(digest)
                for other in there[-2:]:
                    assert same(await read(store, other), blobs[other])

        async with trio.open_nursery() as nursery:
            digests = list(blobs)
            for number in range(4):
                nursery.start_soon(upload, digests[number::4])
            for count in (4, 12):
                while len(there) < count:  # noqa: ASYNC110  the server is killed while uploads go on
                    await trio.sleep(0.005)
                own.kill()
                own.start()
        assert await store.has(digests) == [digest.size for digest in digests]
        for digest in digests:
            assert same(await read(store, digest), blobs[digest])


async def test_a_server_that_is_away_keeps_no_store_from_starting(own: MongoServer, caplog) -> None:
    own.kill()
    digest = digest_of(b"data")
    async with running(own.url, retry=NEVER, connection_timeout_ms=50) as store:
        assert "the store TEST starts without its server" in caplog.text
        for failing in (lambda: store.put(digest, b"data"), lambda: store.has([digest]), lambda: store.get(digest),
                        store.check):
            with pytest.raises(UnavailableError) as caught:
                await failing()
            assert caught.value.retryable
            assert caught.value.message.startswith("store TEST: ")
            assert not [each for each in ("\n", "Topology") if each in caught.value.message]
    own.start()
    async with running(own.url, retry=PATIENT) as store:
        await store.put(digest, b"data")
        own.kill()
        own.start()
        assert await store.has([digest]) == [4]


async def test_a_server_that_says_nothing_is_not_waited_for(own: MongoServer) -> None:
    digest = digest_of(b"data")
    async with running(own.url, retry=NEVER, command_timeout_ms=300, connection_timeout_ms=300) as store:
        own.stop()
        with trio.fail_after(60), pytest.raises(UnavailableError):
            await store.has([digest])
        own.go_on()
    async with running(own.url, retry=PATIENT) as store:
        assert await store.has([digest]) == [None]


# ------------------------------------------------------------------------------------------------- what servers forget


def forget_a_chunk(collection) -> None:
    assert collection.delete_one({"_id": min(names(collection, "!chunk"))}).deleted_count == 1


async def test_an_upload_of_which_the_server_has_lost_a_chunk_begins_again(mongo, collection) -> None:  # noqa: F811
    digest = digest_of(data := make_blob(LARGE))
    async with running(mongo.url, cas_collection=collection.name) as store:
        reader = HalfwayReader(data, partial(forget_a_chunk, collection), piece=10_000)
        await store.write(digest, reader)
        assert reader.rewound == 1
        assert same(await read(store, digest), data)


async def test_an_upload_that_cannot_begin_again_fails_and_is_not_there_with_a_hole(mongo, collection) -> None:  # noqa: F811
    data = make_blob(LARGE)
    async with running(mongo.url, cas_collection=collection.name) as store:
        for key in (digest_of(data), ActionKey("ab" * 32, 5)):
            reader = HalfwayReader(data, partial(forget_a_chunk, collection), piece=10_000, once=True)
            with pytest.raises(UnavailableError, match="the server has 4 of the 5 chunks of an upload") as caught:
                await store.write(key, reader)
            assert caught.value.retryable
            assert await store.has([key]) == [None]


async def test_an_upload_that_others_have_tidied_up_fails(mongo, collection) -> None:  # noqa: F811
    digest = digest_of(data := make_blob(LARGE))

    def claim() -> None:
        collection.update_one({"_id": min(names(collection, "!upload"))}, {"$set": {"swept": True}})

    async with running(mongo.url, cas_collection=collection.name) as store:
        with pytest.raises(UnavailableError, match="stood still"):
            await store.write(digest, HalfwayReader(data, claim, piece=10_000, once=True))
        assert await store.has([digest]) == [None]


@pytest.mark.parametrize("how", ["open", "get"])
async def test_a_value_that_has_lost_a_chunk_is_missing_until_it_is_uploaded_again(
    mongo, collection, how: str  # noqa: F811
) -> None:
    digest = digest_of(data := make_blob(LARGE))
    async with running(mongo.url, cas_collection=collection.name) as store:
        await store.write(digest, BytesReader(data))
        forget_a_chunk(collection)
        with pytest.raises(BlobNotFoundError):
            await (read(store, digest) if how == "open" else store.get(digest))
        assert await store.has([digest]) == [None]
        await store.write(digest, BytesReader(data))
        assert same(await read(store, digest), data)


async def test_a_read_ends_with_an_error_where_a_chunk_is_missing(mongo, collection) -> None:  # noqa: F811
    digest = digest_of(data := make_blob(LARGE))
    async with running(mongo.url, cas_collection=collection.name) as store:
        await store.write(digest, BytesReader(data))
        async with store.open(digest) as reader:
            await reader.receive_parts(1000)
            collection.update_one({"_id": max(names(collection, "!chunk"))}, {"$set": {"data": b"short"}})
            with pytest.raises(UnavailableError, match="left the server"):
                await drain(reader, taken=1000)
        assert await store.has([digest]) == [None]


async def test_a_range_needs_only_its_chunks(mongo, collection) -> None:  # noqa: F811
    digest = digest_of(data := make_blob(LARGE))
    async with running(mongo.url, cas_collection=collection.name, read_chunk_size=KIB * KIB) as store:
        await store.write(digest, BytesReader(data))
        chunks = sorted(names(collection, "!chunk"))
        collection.delete_many({"_id": {"$in": [chunks[0], chunks[3], chunks[4]]}})
        got = await read(store, digest, offset=64 * KIB, length=128 * KIB)
        assert same(got, data[64 * KIB : 192 * KIB])


# ------------------------------------------------------------------------------------------------------- tidying up


async def test_what_a_killed_upload_has_left_goes_after_an_hour(mongo, collection) -> None:  # noqa: F811
    fresh, old = datetime.now(UTC), LONG_AGO
    for upload, at in (("aa", old), ("bb", fresh)):
        collection.insert_one({"_id": f"!upload:{upload}", "key": "nobody's", "at": at})
        collection.insert_many([{"_id": f"!chunk:{upload}:{number:08x}", "data": b"left"} for number in range(3)])
    async with running(mongo.url, cas_collection=collection.name):
        await until(lambda: "!upload:aa" not in names(collection))
        assert names(collection, "!chunk:") == {f"!chunk:bb:{number:08x}" for number in range(3)}


async def test_a_record_of_a_value_that_is_there_goes_alone(mongo, collection) -> None:  # noqa: F811
    digest = digest_of(data := make_blob(LARGE))
    async with running(mongo.url, cas_collection=collection.name) as store:
        await store.write(digest, BytesReader(data))
    upload = collection.find_one({"_id": key_text(digest)})["upload"]
    collection.insert_one({"_id": f"!upload:{upload}", "key": key_text(digest), "at": LONG_AGO})
    async with running(mongo.url, cas_collection=collection.name) as store:
        await until(lambda: not names(collection, "!upload"))
        assert same(await read(store, digest), data)


@pytest.mark.parametrize("how", ["large", "small", "delete"])
async def test_chunks_of_a_value_that_was_replaced_go_after_an_hour(mongo, collection, how: str) -> None:  # noqa: F811
    key, old, new = ActionKey("ab" * 32, 7), make_blob(LARGE), make_blob(LARGE if how == "large" else 90)
    async with running(mongo.url, cas_collection=collection.name) as store:
        await store.write(key, BytesReader(old))
        before = names(collection, "!chunk")
        if how == "large":
            await store.write(key, BytesReader(new))
        elif how == "small":
            assert await store.put_many([(key, new)]) == [None]
        else:
            await store.delete([key])
        assert names(collection, "!chunk") >= before
    assert len(names(collection, "!upload")) == 1
    collection.update_many({"key": key_text(key)}, {"$set": {"at": LONG_AGO}})
    async with running(mongo.url, cas_collection=collection.name) as store:
        await until(lambda: not names(collection, "!upload"))
        assert not names(collection, "!chunk") & before
        if how != "delete":
            assert same(await read(store, key), new)


async def test_values_that_nobody_has_used_for_long_go_with_their_chunks(mongo, collection) -> None:  # noqa: F811
    blobs = [make_blob(100), make_blob(LARGE), make_blob(200)]
    digests = [digest_of(blob) for blob in blobs]
    for prefix in ("", "other/"):
        async with running(mongo.url, cas_collection=collection.name, key_prefix=prefix) as store:
            for digest, blob in zip(digests, blobs, strict=True):
                await store.write(digest, BytesReader(blob))
    unused = [key_text(digests[0]), key_text(digests[1]), "other/" + key_text(digests[0])]
    collection.update_many({"_id": {"$in": unused}}, {"$set": {"used": LONG_AGO}})
    async with running(mongo.url, cas_collection=collection.name, key_ttl_s=3600) as store:
        assert await store.has(digests) == [None, None, 200]
        await until(lambda: not names(collection) & {key_text(digest) for digest in digests[:2]})
        assert {each["key"] for each in collection.find({"at": {"$ne": None}})} == {key_text(digests[1])}
        await store.write(digests[1], BytesReader(blobs[1]))
        assert await store.has(digests) == [None, LARGE, 200]
    async with running(mongo.url, cas_collection=collection.name, key_prefix="other/") as store:
        assert await store.has(digests) == [100, LARGE, 200]


@pytest.mark.parametrize("how", ["has", "get", "open", "touch"])
async def test_each_way_of_asking_is_a_use(mongo, collection, how: str) -> None:  # noqa: F811
    digest = digest_of(b"used")
    earlier = datetime.now(UTC) - timedelta(minutes=40)
    async with running(mongo.url, cas_collection=collection.name, key_ttl_s=3600) as store:
        await store.put(digest, b"used")
        collection.update_one({"_id": key_text(digest)}, {"$set": {"used": earlier}})
        assert store.traits.tracks_use
        ways = {"has": store.has, "get": store.get_many, "touch": store.touch}
        await (read(store, digest) if how == "open" else ways[how]([digest]))
        assert collection.find_one({"_id": key_text(digest)})["used"] > earlier + timedelta(minutes=30)


# ------------------------------------------------------------------------------------------------ what else is there


async def test_a_document_of_nativelink_is_a_value_and_is_replaced(mongo, collection) -> None:  # noqa: F811
    digest = digest_of(b"foreign")
    collection.insert_one({"_id": f"cas/{key_text(digest)}", "data": b"foreign", "size": 7, "version": 1})
    for ttl_s in (0, 3600):
        async with running(mongo.url, cas_collection=collection.name, key_prefix="cas/", key_ttl_s=ttl_s) as store:
            assert await store.has([digest]) == [7]
            assert await store.get(digest) == b"foreign"
    async with running(mongo.url, cas_collection=collection.name, key_prefix="cas/") as store:
        await store.put(digest, b"foreign")
        assert await read(store, digest, offset=3) == b"eign"


async def test_a_document_that_cannot_be_right_is_missing_and_an_upload_mends_it(mongo, collection, caplog) -> None:  # noqa: F811
    digest = digest_of(b"wanted")
    for wrong in ({"size": 5, "data": b"other"}, {"size": "many", "data": 7}, {"size": 6, "upload": 3, "chunk": "x"}):
        collection.replace_one({"_id": key_text(digest)}, {"_id": key_text(digest), **wrong}, upsert=True)
        async with running(mongo.url, cas_collection=collection.name) as store:
            with pytest.raises(BlobNotFoundError):
                await store.get(digest)
            with pytest.raises(BlobNotFoundError):
                await read(store, digest)
            await store.put(digest, b"wanted")
            assert await read(store, digest) == b"wanted"


async def test_a_scan_has_neither_chunks_nor_what_other_stores_have(mongo, collection) -> None:  # noqa: F811
    digests = [digest_of(make_blob(size)) for size in (10, LARGE, 20)]
    for prefix in ("", "cas/"):
        async with running(mongo.url, cas_collection=collection.name, key_prefix=prefix) as store:
            for digest in digests:
                await store.write(digest, BytesReader(make_blob(digest.size)))
    for prefix in ("", "cas/"):
        async with running(mongo.url, cas_collection=collection.name, key_prefix=prefix) as store:
            scans, found, cursor = store.capability(Scans), [], ""
            while True:
                page = await scans.scan(cursor, limit=2)
                found += page.entries
                if not (cursor := page.cursor):
                    break
            assert sorted(found) == sorted((digest, digest.size) for digest in digests)


async def test_a_value_of_another_size_than_its_digest_says_is_neither_there_nor_listed(mongo, collection) -> None:  # noqa: F811
    right, wrong = digest_of(b"right"), digest_of(b"wrong")
    async with running(mongo.url, cas_collection=collection.name) as store:
        await store.put(right, b"right")
        await store.put("a name", b"any size")
        collection.insert_one({"_id": key_text(wrong), "data": b"others", "size": 6})
        assert await store.has([right, wrong]) == [5, None]
        page = await store.capability(Scans).scan()
        assert dict(page.entries) == {right: 5, "a name": 8}


@pytest.mark.parametrize(("first", "last"), [(LARGE, 90), (90, LARGE), (LARGE, LARGE), (90, 90)])
async def test_of_two_values_for_one_key_in_a_batch_the_last_is_kept(mongo, collection, first: int, last: int) -> None:  # noqa: F811
    key, old, new = ActionKey("ab" * 32, 7), make_blob(first), make_blob(last)[::-1]
    async with running(mongo.url, cas_collection=collection.name) as store:
        assert await store.put_many([(key, old), ("other", b"1"), (key, new)]) == [None] * 3
        assert same(await read(store, key), new)
        assert await store.has([key, "other"]) == [last, 1]


async def test_a_large_value_that_came_while_the_one_before_was_being_deleted_stays(
    mongo, collection, monkeypatch  # noqa: F811
) -> None:
    digest = digest_of(data := make_blob(LARGE))
    real = pymongo.collection.Collection.bulk_write

    def replace_first(self: object, requests: object, **more: object) -> object:
        collection.update_one({"_id": str(digest)}, {"$set": {"upload": "another"}})
        return real(self, requests, **more)  # type: ignore[arg-type]

    async with running(mongo.url, cas_collection=collection.name) as store:
        await store.write(digest, BytesReader(data))
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(pymongo.collection.Collection, "bulk_write", replace_first)
            await store.delete([digest])
        assert collection.find_one({"_id": str(digest)})["upload"] == "another"


async def test_thousands_of_keys_are_asked_for_at_once(mongo, collection) -> None:  # noqa: F811
    digests = [digest_of(b"%d" % number) for number in range(12_000)]
    async with running(mongo.url, cas_collection=collection.name) as store:
        assert await store.put_many([(digests[at], b"%d" % at) for at in (3, 11_999)]) == [None, None]
        found = await store.has(digests)
        assert [at for at, size in enumerate(found) if size is not None] == [3, 11_999]


# ----------------------------------------------------------------------------------------------- refused, TLS, secrets


async def test_a_wrong_password_ends_the_start_in_one_line(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    settings = ("--test-enable-new-auth", "--setup-username=user", "--setup-password=hunter2-is-secret",
                "--setup-database=admin")
    with mongo_server(tmp_path / "mongo", *settings) as server:
        place = server.url.removeprefix("mongodb://")
        url = f"mongodb://user:hunter2-is-secret@{place}?authMechanism=SCRAM-SHA-256"
        digest = digest_of(b"data")
        async with running(url) as store:
            await store.put(digest, b"data")
            assert await store.get(digest) == b"data"
        wrong = url.replace("hunter2", "hunter3")
        with pytest.raises(ExceptionGroup) as caught:
            async with running(wrong):
                raise AssertionError("it has started")
    (error,) = caught.value.exceptions
    assert isinstance(error, ConfigError)
    assert str(error).startswith("connection_string: ")
    assert "\n" not in str(error)
    assert "hunter" not in str(error) + caplog.text


async def test_tls_is_as_the_connection_string_says(tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    paths = {name: tmp_path / name for name in ("ca", "cert", "key", "other")}
    authority.cert_pem.write_to_path(paths["ca"])
    other.cert_pem.write_to_path(paths["other"])
    certificate.private_key_pem.write_to_path(paths["key"])
    certificate.cert_chain_pems[0].write_to_path(paths["cert"])
    client = authority.issue_cert("client@example.org")
    client.private_key_and_cert_chain_pem.write_to_path(mine := tmp_path / "client")
    digest = digest_of(b"data")
    with mongo_server(tmp_path / "mongo", tls={name: paths[name] for name in ("ca", "cert", "key")}) as server:
        tls = f"{server.url}?tls=true&tlsCertificateKeyFile={mine}&tlsCAFile="
        async with running(f"{tls}{paths['ca']}") as store:
            await store.put(digest, b"data")
            assert await store.get(digest) == b"data"
        for url in (f"{tls}{paths['other']}", server.url):
            async with running(url, retry=NEVER, connection_timeout_ms=500) as store:
                with pytest.raises(UnavailableError):
                    await store.get(digest)


async def test_statistics_count_what_was_done(mongo, collection) -> None:  # noqa: F811
    store: Store
    async with running(mongo.url, cas_collection=collection.name) as store:
        data = [make_blob(size) for size in (10, LARGE)]
        await store.put_many([(digest_of(blob), blob) for blob in data])
        await store.has([digest_of(blob) for blob in data])
        reader: Reader
        async with store.open(digest_of(data[1])) as reader:
            await drain(reader)
        told = store.statistics()
    assert (told["uploads"], told["bytes_uploaded"], told["lookups"], told["downloads"]) == (2, LARGE + 10, 2, 1)
    assert told["collection"] == f"nativelink.{collection.name}"
    assert (told["failed"], told["uploads_busy"]) == (0, 0)

"""What the index of `ontap_s3_existence_cache` learns and forgets, above all of what happens while it is being asked or
listed. The bucket is one in memory, whose requests are held up where that matters.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from memory_bucket import Bucket

from nl.plugin import (
    ActionKey,
    BlobNotFoundError,
    Deletes,
    Digest,
    DigestFunction,
    ForeignKey,
    RefusedError,
    RetryOptions,
    Store,
    UnavailableError,
    digest_of,
)
from nl.testing import BareContext, PartsReader, read, started
from nl_cloud_object_store import OntapExistenceCacheOptions, OntapExistenceCacheStore, ontap_cache
from nl_cloud_object_store.digest_set import DigestSet
from nl_cloud_object_store.index_file import IndexFile, Listing
from nl_cloud_object_store.ontap_cache import OntapBackend
from nl_cloud_object_store.providers import PROVIDERS, Provider

ONE, TWO = digest_of(b"one"), digest_of(b"two")
LIST = "list 1000"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    client = Bucket()
    provider = PROVIDERS["ontap"]
    monkeypatch.setitem(PROVIDERS, "ontap", Provider(lambda options: client, provider.needs, provider.takes))
    client.store(f"cas/{ONE}", b"one")
    client.store(f"cas/{TWO}", b"two")
    return client


class Hold:
    """Holds up the requests of one name, from now until `let_go`."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        self._begun, self._go_on = threading.Event(), threading.Event()
        bucket.before[name] = self._wait

    def _wait(self) -> None:
        self._begun.set()
        assert self._go_on.wait(60)

    async def begun(self) -> None:
        """Until there is one."""
        assert await trio.to_thread.run_sync(self._begun.wait, 60)

    def let_go(self) -> None:
        self._go_on.set()


@asynccontextmanager
async def running(*, index_path: object = "", listed: bool = True, **more: object) -> AsyncIterator[Store]:
    backend = {
        "endpoint": "https://ontap", "vserver_name": "a-vserver", "bucket": "b", "key_prefix": "cas/", "remember_s": 0,
        "retry": RetryOptions(), **more,
    }
    options = OntapExistenceCacheOptions(
        index_path=str(index_path), sync_interval_seconds=3600, backend=OntapBackend(**backend)
    )
    async with started(OntapExistenceCacheStore(options, BareContext("CAS"))) as store:
        if listed:
            await until_listed(store)
        yield store


async def until_listed(store: Store) -> None:
    with trio.fail_after(60):
        while not store.statistics()["listings"]:  # noqa: ASYNC110
            await trio.sleep(0.001)


async def asked(bucket: Bucket, store: Store, *digests: Digest) -> int:
    """How many requests it takes to know which of these are there."""
    bucket.took()
    await store.has(digests)
    return bucket.took().count("head")


async def get_both(store: Store) -> None:
    assert all(isinstance(each, BlobNotFoundError) for each in await store.get_many([ONE, TWO]))


async def get_each(store: Store) -> None:
    for digest in (ONE, TWO):
        with pytest.raises(BlobNotFoundError):
            await store.get(digest)


async def read_each(store: Store) -> None:
    for digest in (ONE, TWO):
        with pytest.raises(BlobNotFoundError):
            await read(store, digest)


async def delete_both(store: Store) -> None:
    deletes = store.capability(Deletes)
    assert deletes is not None
    await deletes.delete([ONE, TWO])


async def delete_by_another_name(store: Store) -> None:
    await store.delete([ForeignKey(*ONE[:2]), ForeignKey(*TWO[:2])])  # type: ignore[attr-defined]


MEETINGS = [get_both, get_each, read_each, delete_both, delete_by_another_name]


@pytest.mark.parametrize("meet", MEETINGS)
async def test_what_was_met_missing_or_deleted_is_asked_for_from_then_on(
    bucket: Bucket, meet: Callable[[Store], Awaitable[None]]
) -> None:
    async with running() as store:
        assert await asked(bucket, store, ONE, TWO) == 0
        bucket.objects.clear()
        await meet(store)
        assert await asked(bucket, store, ONE, TWO) == 2


@pytest.mark.parametrize("meet", MEETINGS)
async def test_what_has_gone_during_a_listing_is_asked_for_after_it_whatever_the_listing_says(
    bucket: Bucket, meet: Callable[[Store], Awaitable[None]]
) -> None:
    listing = Hold(bucket, LIST)
    async with running(listed=False) as store:
        await listing.begun()
        there, bucket.objects = bucket.objects, {}
        await meet(store)
        bucket.objects = there  # as it was when the server began with its answer
        listing.let_go()
        await until_listed(store)
        assert store.statistics()["indexed"] == 0
        assert await asked(bucket, store, ONE, TWO) == 2


async def put(store: Store) -> None:
    await store.put(ONE, b"one")


async def put_among_others(store: Store) -> None:
    assert await store.put_many([(ONE, b"one"), (ActionKey(*TWO), b"two")]) == [None, None]


async def write(store: Store) -> None:
    await store.write(ONE, PartsReader([b"one"]))


async def has(store: Store) -> None:
    assert await store.has([ONE]) == [3]


UPLOADS = [put, put_among_others, write]


@pytest.mark.parametrize("upload", UPLOADS)
async def test_what_is_written_again_during_a_listing_is_known_after_it(
    bucket: Bucket, upload: Callable[[Store], Awaitable[None]]
) -> None:
    listing = Hold(bucket, LIST)
    async with running(listed=False) as store:
        await listing.begun()
        there, bucket.objects = bucket.objects, {}
        await get_both(store)
        await upload(store)
        bucket.objects = there
        del there[f"cas/{ONE}"]  # the server began with its answer before
        listing.let_go()
        await until_listed(store)
        assert await asked(bucket, store, ONE) == 0


@pytest.mark.parametrize(("request_", "name"), [(has, "head"), *((each, "put") for each in UPLOADS)])
async def test_what_is_deleted_while_it_is_asked_for_or_written_is_not_learnt(
    bucket: Bucket, request_: Callable[[Store], Awaitable[None]], name: str
) -> None:
    async with running() as store:
        await delete_both(store)
        bucket.store(f"cas/{ONE}", b"one")
        held = Hold(bucket, name)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request_, store)
            await held.begun()
            await delete_both(store)
            bucket.store(f"cas/{ONE}", b"one")
            held.let_go()
        assert await asked(bucket, store, ONE) == 1


@pytest.mark.parametrize("upload", UPLOADS)
async def test_where_objects_expire_only_a_listing_says_for_how_long_one_stays(
    bucket: Bucket, upload: Callable[[Store], Awaitable[None]]
) -> None:
    async with running(consider_expired_after_s=3 * 3600) as store:
        assert await asked(bucket, store, ONE, TWO) == 0
        bucket.objects.clear()
        await get_both(store)
        await upload(store)
        assert await asked(bucket, store, ONE) == 1


async def test_an_upload_that_failed_among_others_is_not_learnt(bucket: Bucket) -> None:
    bucket.objects.clear()
    async with running(max_threads=1) as store:
        bucket.errors["put"] = [RefusedError("no permission")]
        first, second = await store.put_many([(ONE, b"one"), (TWO, b"two")])
        assert isinstance(first or second, UnavailableError)
        assert await asked(bucket, store, ONE, TWO) == 1


async def test_a_listing_during_which_too_much_has_gone_is_made_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ontap_cache, "MOST_GONE", 1)
    monkeypatch.setattr(ontap_cache, "AGAIN_S", 0.01)
    listing = Hold(bucket, LIST)
    async with running(listed=False) as store:
        await listing.begun()
        there, bucket.objects = bucket.objects, {}
        await get_both(store)
        bucket.objects = there
        listing.let_go()
        await until_listed(store)
        assert "too much of it has gone meanwhile" in caplog.text
        assert await asked(bucket, store, ONE, TWO) == 0


@pytest.mark.parametrize("end", ["fails", "is cancelled"])
async def test_a_deletion_that_does_not_end_well_may_have_deleted_all_the_same(
    bucket: Bucket, tmp_path: Path, end: str
) -> None:
    """Neither the index nor its file takes what it was about to be there any longer."""
    path = tmp_path / "index.json"
    async with running(index_path=path) as store:
        with trio.fail_after(60):
            while not path.exists():  # noqa: ASYNC110
                await trio.sleep(0.001)
        if end == "fails":
            bucket.errors["delete"] = [RefusedError("no permission")]
            with pytest.raises(UnavailableError):
                await store.delete([ONE])  # type: ignore[attr-defined]
        else:
            held = Hold(bucket, "delete")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.delete, [ONE])  # type: ignore[attr-defined]
                await held.begun()
                nursery.cancel_scope.cancel()
                held.let_go()
        assert not path.exists()
        assert await asked(bucket, store, ONE, TWO) == 1


def test_a_file_has_as_many_digests_as_the_bucket(tmp_path: Path) -> None:
    digests, file = DigestSet(), IndexFile(str(tmp_path / "index.json"), "here")
    for number in range(20_001):
        digests.add(Digest(f"{number:064x}"[::-1], number, list(DigestFunction)[number % 2]))
    file.write(Listing(digests, time.time()), file.outdated)
    assert sorted(file.read(max_age=600, most=30_000).digests) == sorted(digests)
    assert len(file.read(max_age=600, most=10_000).digests) == 10_000


async def test_what_a_lookup_found_there_while_it_was_being_deleted_is_asked_for_afterwards(bucket: Bucket) -> None:
    async with running() as store:
        held = Hold(bucket, "delete")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(delete_both, store)
            await held.begun()
            assert await store.has([ONE, TWO]) == [3, 3]
            held.let_go()
        assert await store.has([ONE, TWO]) == [None, None]


async def test_a_listing_that_is_being_written_when_something_is_deleted_leaves_no_file(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart would find there what has been deleted."""
    begun, go_on, write_into = threading.Event(), threading.Event(), IndexFile._write_into

    def hold(*arguments: object) -> None:
        begun.set()
        assert go_on.wait(60)
        write_into(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(IndexFile, "_write_into", hold)
    async with running(index_path=tmp_path / "index.json") as store:
        assert await trio.to_thread.run_sync(begun.wait, 60)
        await store.delete([ONE])  # type: ignore[attr-defined]
        go_on.set()
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240


def test_bytes_of_two_neighbours_that_look_like_a_digest_are_none() -> None:
    first, second = Digest("0000" + bytes(range(1, 31)).hex(), 7), Digest("0000" + bytes(range(61, 91)).hex(), 9)
    packed = bytes(range(1, 31)) + (7).to_bytes(8, "little") + bytes(range(61, 91)) + (9).to_bytes(8, "little")
    for at in (1, 8, 30, 37):
        digests = DigestSet()
        digests.add(first)
        digests.add(second)
        like = Digest("0000" + packed[at : at + 30].hex(), int.from_bytes(packed[at + 30 : at + 38], "little"))
        assert like not in digests
        digests.discard(like)
        assert list(digests) == [first, second]
        digests.add(like)
        assert list(digests) == [first, second, like]
        digests.discard(first)
        assert list(digests) == [second, like]


async def test_what_goes_after_its_page_was_listed_is_asked_for_after_the_listing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nl_cloud_object_store.store.LIST_MOST", 1)
    second, pages = Hold(bucket, "list 1"), iter([None])

    def hold_but_the_first(hold: Callable[[], None] = bucket.before["list 1"]) -> None:
        if next(pages, hold) is hold:
            hold()

    bucket.before["list 1"] = hold_but_the_first
    async with running(listed=False) as store:
        await second.begun()
        first = min(ONE, TWO)
        await store.delete([first])  # type: ignore[attr-defined]
        second.let_go()
        await until_listed(store)
        assert store.statistics()["indexed"] == 1
        assert await asked(bucket, store, ONE, TWO) == 1


async def test_where_objects_expire_one_that_is_written_again_is_known_by_the_listing_that_finds_it(
    bucket: Bucket,
) -> None:
    listing = Hold(bucket, LIST)
    async with running(listed=False, consider_expired_after_s=3 * 3600) as store:
        await listing.begun()
        bucket.objects.clear()
        await get_both(store)
        await put(store)
        listing.let_go()
        await until_listed(store)
        assert await asked(bucket, store, ONE) == 0


async def test_a_file_is_as_old_as_the_beginning_of_its_listing(bucket: Bucket, tmp_path: Path) -> None:
    listing, path = Hold(bucket, LIST), tmp_path / "index.json"
    async with running(listed=False, index_path=path) as store:
        await listing.begun()
        begun = time.time()
        listing.let_go()
        await until_listed(store)
        with trio.fail_after(60):
            while not path.exists():  # noqa: ASYNC110
                await trio.sleep(0.001)
    assert IndexFile(str(path), "https://ontap/b/cas/").read(max_age=600, most=10).listed_at <= begun

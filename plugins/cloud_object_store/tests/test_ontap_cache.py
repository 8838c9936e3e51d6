"""`ontap_s3_existence_cache` over moto and rclone: what it remembers, for how long, how it notices what has gone."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
import trio
from cloud_support import KEY, QUICK, SECRET, S3Server
from faulty_proxy import Fault, FaultyProxy, faulty_proxy
from hypothesis import given, settings
from hypothesis import strategies as st

from nl.plugin import ActionKey, BlobNotFoundError, ConfigError, Digest, DigestFunction, Store, digest_of, key_text
from nl.testing import BareContext, DurableStoreConformance, StoreConformance, started
from nl_cloud_object_store import OntapExistenceCacheOptions, OntapExistenceCacheStore, ontap_cache
from nl_cloud_object_store.digest_set import DigestSet
from nl_cloud_object_store.index_file import IndexFile, Listing
from nl_cloud_object_store.ontap_cache import OntapBackend


@pytest.fixture
def bucket(moto: S3Server) -> str:
    return moto.bucket()


@pytest.fixture
def proxy(moto: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(moto.port) as proxy:
        yield proxy


def cache(
    bucket: str, url: str, *, index_path: object = "", interval: int = 3600, most: int = 1000, **more: object
) -> Store:
    backend = {
        "endpoint": url, "vserver_name": "a-vserver", "bucket": bucket, "key_prefix": "cas/", "retry": QUICK,
        "insecure_allow_http": True, "access_key_id": KEY, "secret_access_key": SECRET, "remember_s": 0, **more,
    }
    return OntapExistenceCacheStore(OntapExistenceCacheOptions(
        index_path=str(index_path), sync_interval_seconds=interval, max_count=most, backend=OntapBackend(**backend)
    ), BareContext())


async def until_listed(store: Store, times: int = 1) -> None:
    with trio.fail_after(60):
        while int(store.statistics()["listings"]) < times:  # noqa: ASYNC110
            await trio.sleep(0.01)


def put(moto: S3Server, bucket: str, *values: bytes) -> list[Digest]:
    """As another server would."""
    for value in values:
        moto.client.put_object(Bucket=bucket, Key=f"cas/{key_text(digest_of(value))}", Body=value)
    return [digest_of(value) for value in values]


@pytest.mark.usefixtures("over_server")
class TestConformance(DurableStoreConformance, StoreConformance):
    SERVER = "rclone"
    server: S3Server

    def make_store(self, context: BareContext, folder: Path) -> Store:
        return cache(self.server.bucket_of(folder), self.server.url, index_path=folder / "index.json")

    def list_raw(self, folder: Path) -> Collection[str]:
        bucket = self.server.bucket_of(folder)
        return [*self.server.objects(bucket), *self.server.open_uploads(bucket)]


async def test_what_the_bucket_had_when_it_was_listed_is_answered_without_a_request(
    bucket: str, proxy: FaultyProxy, moto: S3Server
) -> None:
    there, missing = put(moto, bucket, *(b"%d" % number for number in range(30))), digest_of(b"missing")
    async with started(cache(bucket, proxy.url)) as store:
        await until_listed(store)
        proxy.requests.clear()
        assert await store.has([*there, missing]) == [each.size for each in there] + [None]
        assert proxy.kinds() == ["head"], "only what is not known is asked for"
        assert store.statistics()["indexed"] == 30
        await store.put(missing, b"missing")
        assert await store.has([missing, missing]) == [7, 7]
        assert proxy.kinds() == ["head", "put"]
        assert not store.traits.authoritative


async def test_what_another_server_has_written_since_is_asked_for_once(
    bucket: str, proxy: FaultyProxy, moto: S3Server
) -> None:
    async with started(cache(bucket, proxy.url)) as store:
        await until_listed(store)
        (digest,) = put(moto, bucket, b"late")
        proxy.requests.clear()
        for _ in range(3):
            assert await store.has([digest]) == [4]
        assert proxy.kinds() == ["head"]


async def test_what_has_gone_is_noticed_when_it_is_read(bucket: str, moto: S3Server) -> None:
    digests = put(moto, bucket, b"one", b"two", b"three")
    async with started(cache(bucket, moto.url)) as store:
        await until_listed(store)
        for digest in digests:
            moto.client.delete_object(Bucket=bucket, Key=f"cas/{key_text(digest)}")
        assert await store.has(digests) == [3, 3, 5]
        with pytest.raises(BlobNotFoundError):
            await store.get(digests[0])
        with pytest.raises(BlobNotFoundError):
            async with store.open(digests[1]):
                pass
        (failed,) = await store.get_many([digests[2]])
        assert isinstance(failed, BlobNotFoundError)
        assert await store.has(digests) == [None] * 3


async def test_the_next_listing_forgets_what_has_gone_and_finds_what_is_new(
    bucket: str, proxy: FaultyProxy, moto: S3Server
) -> None:
    (old,) = put(moto, bucket, b"old")
    async with started(cache(bucket, proxy.url, interval=1)) as store:
        await until_listed(store)
        moto.client.delete_object(Bucket=bucket, Key=f"cas/{key_text(old)}")
        (new,) = put(moto, bucket, b"new!")
        await until_listed(store, int(store.statistics()["listings"]) + 2)
        proxy.requests.clear()
        assert await store.has([new, old]) == [4, None]
        assert [request.path for request in proxy.requests if request.kind == "head"] == [f"/{bucket}/cas/{old}"]


async def test_what_is_deleted_and_written_during_a_listing_is_known_after_it(
    bucket: str, proxy: FaultyProxy, moto: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, kept, new = [*put(moto, bucket, b"gone", b"kept"), digest_of(b"new")]
    async with started(store := cache(bucket, proxy.url)) as _:
        await until_listed(store)
        listed = store._bucket.scan

        async def scan_late(cursor: str = "", **more: object):
            page = await listed(cursor, **more)
            await store.delete([gone])
            await store.put(new, b"new")
            return page

        monkeypatch.setattr(store._bucket, "scan", scan_late)
        await store._list()
        proxy.requests.clear()
        assert await store.has([kept, new, gone]) == [4, 3, None]
        assert proxy.count("head") == 1


async def test_a_bucket_of_many_pages_is_listed_whole_but_for_what_is_no_blob(
    bucket: str, moto: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nl_cloud_object_store.store.LIST_MOST", 10)
    digests = put(moto, bucket, *(b"%d" % number for number in range(65)))
    for name in ("cas/readme.txt", "other/" + key_text(digests[0]), "cas/" + key_text(ActionKey(*digests[0]))):
        moto.client.put_object(Bucket=bucket, Key=name, Body=b"value")
    moto.client.put_object(Bucket=bucket, Key=f"cas/{key_text(wrong := digest_of(b'wrong'))}", Body=b"size")
    async with started(cache(bucket, moto.url)) as store:
        await until_listed(store)
        assert store.statistics()["indexed"] == 65
        assert await store.has([*digests, wrong]) == [each.size for each in digests] + [None]


async def test_no_more_is_kept_than_the_config_allows(bucket: str, moto: S3Server) -> None:
    digests = put(moto, bucket, *(b"%d" % number for number in range(20)))
    async with started(cache(bucket, moto.url, most=7)) as store:
        await until_listed(store)
        await store.put(digest_of(b"more"), b"more")
        assert store.statistics()["indexed"] == 7
        assert await store.has([*digests, digest_of(b"more")]) == [each.size for each in digests] + [4]


async def test_what_may_expire_before_the_next_listing_is_asked_for(
    bucket: str, proxy: FaultyProxy, moto: S3Server
) -> None:
    (digest,) = put(moto, bucket, b"data")
    for expire, requests in ((3 * 3600, []), (3600, ["head"])):
        async with started(cache(bucket, proxy.url, interval=3600, consider_expired_after_s=expire)) as store:
            await until_listed(store)
            proxy.requests.clear()
            assert await store.has([digest]) == [4]
            assert proxy.kinds() == requests


async def test_the_file_spares_the_listing_after_a_restart_unless_it_is_too_old(
    bucket: str, proxy: FaultyProxy, moto: S3Server, tmp_path: Path
) -> None:
    path = tmp_path / "folder" / "index.json"
    digests = [*put(moto, bucket, b"one", b"two"), digest_of(b"three", DigestFunction.BLAKE3)]
    moto.client.put_object(Bucket=bucket, Key=f"cas/{key_text(digests[2])}", Body=b"three")
    async with started(cache(bucket, proxy.url, index_path=path)) as store:
        await until_listed(store)
        await until_written(path)
    assert [each.name for each in path.parent.iterdir()] == ["index.json"]
    proxy.requests.clear()
    async with started(cache(bucket, proxy.url, index_path=path)) as store:
        assert await store.has(digests) == [3, 3, 5]
        assert "head" not in proxy.kinds()
        assert store.statistics()["listings"] == 0
    written = json.loads(path.read_text())
    for wrong in (
        {**written, "listed_at": written["listed_at"] - 4000}, {**written, "source": "another bucket"},
        {**written, "version": 0}, {**written, "digests": ["no digest"]}, [], {**written, "digests": 3},
    ):
        path.write_text(json.dumps(wrong))
        async with started(cache(bucket, proxy.url, index_path=path)) as store:
            await until_listed(store)
            assert store.statistics()["indexed"] == 3


async def test_what_was_deleted_after_the_listing_is_not_found_again_after_a_restart(
    bucket: str, moto: S3Server, tmp_path: Path
) -> None:
    """Here, since the file of before goes at once: a process that is killed then has left none."""
    path = tmp_path / "index.json"
    gone, kept = put(moto, bucket, b"gone", b"stays")
    async with started(cache(bucket, moto.url, index_path=path)) as store:
        await until_listed(store)
        await until_written(path)
        await store.delete([gone])
        assert not list(tmp_path.iterdir())  # noqa: ASYNC240
        await store.delete([gone])
    for _ in range(2):
        async with started(cache(bucket, moto.url, index_path=path)) as store:
            assert await store.has([gone, kept]) == [None, 5]
            await until_written(path)


def test_a_listing_is_not_written_if_something_has_been_deleted_since_it_ended(tmp_path: Path) -> None:
    file, listing = IndexFile(str(tmp_path / "index.json"), "here"), Listing(DigestSet(), time.time())
    file.write(listing, file.outdated)
    assert file.read(max_age=60, most=10).listed_at == listing.listed_at
    ended, file.outdated = file.outdated, file.outdated + 1
    file.remove()
    file.write(listing, ended)
    assert list(tmp_path.iterdir()) == []


async def until_written(path: Path) -> None:
    with trio.fail_after(60):
        while not path.exists():  # noqa: ASYNC110, ASYNC240
            await trio.sleep(0.01)


async def test_a_file_that_cannot_be_written_is_a_warning(
    bucket: str, moto: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "index.json").mkdir()
    async with started(cache(bucket, moto.url, index_path=tmp_path / "index.json")) as store:
        with trio.fail_after(60):
            while "the index cannot be kept" not in caplog.text:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert await store.has([digest_of(b"missing")]) == [None]
    assert [each.name for each in tmp_path.iterdir()] == ["index.json"]  # noqa: ASYNC240


async def test_a_listing_that_fails_is_a_warning_and_tried_again(
    bucket: str, proxy: FaultyProxy, moto: S3Server, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr(ontap_cache, "AGAIN_S", 0.01)
    (digest,) = put(moto, bucket, b"data")
    caplog.set_level(logging.WARNING)
    proxy.faults = [Fault("list", "status", status=403, code="AccessDenied", skip=1)]  # the first is the probe
    async with started(cache(bucket, proxy.url)) as store:
        assert await store.has([digest]) == [4]
        await until_listed(store)
        assert "the bucket cannot be listed" in caplog.text


@pytest.mark.parametrize(("wrong", "path"), [({"bucket": "no-such-bucket"}, "backend.bucket")])
async def test_what_is_wrong_with_the_bucket_ends_the_start_with_its_place(
    wrong: dict[str, object], path: str, moto: S3Server
) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError)) as caught:
        async with started(cache(**{"bucket": "", "url": moto.url, **wrong})):
            pass
    assert caught.value.exceptions[0].path == path


def test_a_listing_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected 1 or more"):
        OntapExistenceCacheOptions(sync_interval_seconds=0, backend=OntapBackend(bucket="b")).check()


# ------------------------------------------------------------------------------------------------------- the digest set

DIGESTS = st.builds(
    Digest,
    st.sampled_from(["00" * 32, "0000" + "ab" * 30, "0000" + "ba" * 30, "00" * 31 + "01", "00" * 2 + "abba" * 15]),
    st.sampled_from([0, 1, 0xAB, 0xABABABABABABAB, 0xBABABABABABABAB, (1 << 63) - 1]), st.sampled_from(DigestFunction),
)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.booleans(), DIGESTS), max_size=60))
def test_the_set_does_what_a_set_does(steps: list[tuple[bool, Digest]]) -> None:
    packed, plain = DigestSet(), set()
    for adds, digest in steps:
        (packed.add if adds else packed.discard)(digest)
        (plain.add if adds else plain.discard)(digest)
        assert len(packed) == len(plain)
        assert (digest in packed) == adds
    copy = packed.copy()
    for digest in plain:
        packed.discard(digest)
    assert sorted(copy) == sorted(plain)
    assert list(packed) == []


async def test_a_file_is_believed_no_longer_than_the_listing_that_it_is_of(
    bucket: str, moto: S3Server, tmp_path: Path
) -> None:
    path = tmp_path / "index.json"
    async with started(cache(bucket, moto.url, index_path=path)) as store:
        await until_listed(store)
        await until_written(path)
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "listed_at": written["listed_at"] - 3598}))
    async with started(cache(bucket, moto.url, index_path=path)) as store:
        await until_listed(store)

"""Servers that fail: what passes is tried again and right in the end, what does not pass is one clear error."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cloud_support import KEY, PATIENT, SECRET, KilledAtHalf, S3Server, options_for, refused, s3_server
from faulty_proxy import Fault, FaultyProxy, faulty_proxy

from nl.plugin import (
    ActionKey,
    BlobNotFoundError,
    Deletes,
    Digest,
    ExhaustedError,
    Removals,
    RetryOptions,
    Store,
    TooLargeError,
    UnavailableError,
    digest_of,
    key_text,
)
from nl.testing import BareContext, PartsReader, drain, make_blob, read, split, started
from nl_cloud_object_store import CloudObjectStore

MIB = 1024 * 1024
TRANSIENT = {
    "500": {"what": "status"},
    "503 SlowDown": {"what": "status", "status": 503, "code": "SlowDown"},
    "503 without a body": {"what": "status", "status": 503, "code": ""},
    "429": {"what": "status", "status": 429, "code": "TooManyRequests"},
    "400 RequestTimeout": {"what": "status", "status": 400, "code": "RequestTimeout"},
    "connection ended": {"what": "refuse"},
    "connection reset": {"what": "refuse", "abrupt": True},
    "answer lost": {"what": "lose answer"},
    "answer cut": {"what": "cut answer", "after": 10},
    "silence": {"what": "silence", "seconds": 0.8},
}
BODILESS = {"400 RequestTimeout", "answer cut"}
"""What cannot happen to requests or answers without a body."""


@pytest.fixture
def bucket(moto: S3Server) -> str:
    return moto.bucket()


@pytest.fixture
def proxy(moto: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(moto.port) as proxy:
        yield proxy


@asynccontextmanager
async def running(bucket: str, url: str, **options: object):
    options = {"remember_s": 0, **options}
    async with started(CloudObjectStore(options_for(bucket, url, **options), BareContext())) as store:
        yield store


# ---------------------------------------------------------------------------------------------------- what passes


@pytest.mark.parametrize("fault", TRANSIENT)
@pytest.mark.parametrize("size", [1000, 3 * MIB], ids=["small", "streamed"])
async def test_a_blob_is_written_found_and_read_although_each_first_request_fails(
    bucket: str, proxy: FaultyProxy, fault: str, size: int
) -> None:
    digest = digest_of(data := make_blob(size))
    async with running(bucket, proxy.url, read_timeout_s=0.5 if fault == "silence" else 30) as store:
        for kind in ("get",) if fault in BODILESS else ("put", "head", "get"):
            proxy.faults.append(Fault(kind, **TRANSIENT[fault], times=2))
        await store.put(digest, data)
        assert await store.has([digest]) == [size]
        assert await store.get(digest) == data
        proxy.faults = [Fault("get", **TRANSIENT[fault], times=2)]
        assert await read(store, digest) == data
        assert await read(store, digest, offset=size // 2, length=100) == data[size // 2 : size // 2 + 100]
        assert int(store.statistics()["retries"]) >= 4


@pytest.mark.parametrize("fault", TRANSIENT)
async def test_a_multipart_upload_gets_through_although_each_first_request_fails(
    bucket: str, proxy: FaultyProxy, moto: S3Server, fault: str
) -> None:
    digest = digest_of(data := make_blob(17 * MIB))
    async with running(bucket, proxy.url, read_timeout_s=0.5 if fault == "silence" else 30) as store:
        for kind in ("create", "part", "complete"):
            proxy.faults.append(Fault(kind, **TRANSIENT[fault], times=2))
        await store.write(digest, PartsReader(split(data, 300_000)))
        assert await read(store, digest) == data
    assert proxy.count("create") >= 3
    assert proxy.count("part") >= (4 if fault in BODILESS else 6)
    assert proxy.count("complete") >= 3
    if fault not in ("answer lost", "answer cut", "silence"):  # an upload whose id never came back cannot be aborted
        assert moto.open_uploads(bucket) == []


async def test_a_download_survives_resets(bucket: str, proxy: FaultyProxy) -> None:
    """What had arrived may be lost with the connection."""
    digest = digest_of(data := make_blob(9 * MIB))
    async with running(bucket, proxy.url) as store:
        await store.put(digest, data)
        proxy.faults = [Fault("get", "cut answer", after=1_700_000, times=4, abrupt=True)]
        assert await read(store, digest) == data
        assert proxy.count("get") == 5


async def test_a_connection_that_always_breaks_after_some_bytes_still_gets_through(
    bucket: str, proxy: FaultyProxy
) -> None:
    digest = digest_of(data := make_blob(3 * MIB))
    async with running(bucket, proxy.url, retry=RetryOptions(max_retries=1)) as store:
        await store.put(digest, data)
        proxy.faults = [Fault("get", "cut answer", after=200_000, times=1000)]
        assert await read(store, digest) == data
        assert await store.get(digest) == data


async def test_a_blob_written_again_in_the_middle_of_a_download_is_read_on(
    bucket: str, proxy: FaultyProxy, moto: S3Server
) -> None:
    digest = digest_of(data := make_blob(11 * MIB))
    async with running(bucket, proxy.url) as store:
        await store.put(digest, data)
        proxy.faults = [Fault("get", "cut answer", after=2 * MIB)]
        async with store.open(digest) as reader:
            first = b"".join(map(bytes, await reader.receive_parts(1000)))
            moto.client.put_object(Bucket=bucket, Key=f"cas/{key_text(digest)}", Body=data)  # other parts, other etag
            assert first + await drain(reader, taken=1000) == data


async def test_a_reader_that_is_left_halfway_lets_its_connection_go(bucket: str, proxy: FaultyProxy) -> None:
    digest = digest_of(data := make_blob(30 * MIB))
    async with running(bucket, proxy.url) as store:
        await store.put(digest, data)
        async with store.open(digest) as reader:
            await reader.receive_parts(1000)
            assert proxy.busy == 1, "the rest is waiting to be sent"
        with trio.fail_after(120):
            while proxy.busy:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert reader.size == len(data)


# ---------------------------------------------------------------------------------------------- what does not pass


async def test_retries_end_and_the_error_says_what_happened(bucket: str, proxy: FaultyProxy) -> None:
    async with running(bucket, proxy.url, retry=RetryOptions(max_retries=3, delay=0.01)) as store:
        proxy.faults = [Fault("any", "status", status=503, code="SlowDown", times=100)]
        for kind, operation in operations(store):
            proxy.requests.clear()
            with pytest.raises(UnavailableError, match=r"TEST.*(SlowDown|503)") as caught:
                await operation()
            assert caught.value.retryable
            assert proxy.count(kind) == 4


async def test_without_retries_there_is_one_attempt(bucket: str, proxy: FaultyProxy) -> None:
    async with running(bucket, proxy.url, retry=RetryOptions()) as store:
        proxy.faults = [Fault("any", "status", times=100)]
        for kind, operation in operations(store):
            proxy.requests.clear()
            with pytest.raises(UnavailableError):
                await operation()
            assert proxy.count(kind) == 1


async def test_only_the_errors_that_the_config_names_are_tried_again(bucket: str, proxy: FaultyProxy) -> None:
    retry = RetryOptions(max_retries=5, retry_on_errors=("ResourceExhausted",))
    async with running(bucket, proxy.url, retry=retry) as store:
        proxy.faults = [Fault("head", "status", status=429, code="", times=3)]
        assert await store.has(["name"]) == [None]
        proxy.faults = [Fault("head", "status", status=500, times=3)]
        with pytest.raises(UnavailableError):
            await store.has(["name"])
        assert proxy.count("head") == 5


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
async def test_refused_credentials_are_not_tried_again(
    bucket: str, proxy: FaultyProxy, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(bucket, proxy.url) as store:
        proxy.faults = [Fault("any", "status", status=403, code=code, times=100)]
        for kind, operation in operations(store):
            proxy.requests.clear()
            with pytest.raises(UnavailableError) as caught:
                await operation()
            assert not caught.value.retryable
            assert proxy.count(kind) == 1
    complaints = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(complaints) == 1, "one line a minute is enough"


async def test_a_full_bucket_and_an_object_that_is_too_large_are_two_errors(bucket: str, proxy: FaultyProxy) -> None:
    async with running(bucket, proxy.url) as store:
        proxy.faults = [Fault("put", "status", status=403, code="QuotaExceeded")]
        with pytest.raises(ExhaustedError, match="QuotaExceeded") as caught:
            await store.put("name", b"value")
        assert not isinstance(caught.value, TooLargeError)
        proxy.faults = [Fault("put", "status", status=400, code="EntityTooLarge")]
        with pytest.raises(TooLargeError):
            await store.put("name", b"value")


async def test_no_secret_is_in_a_log_or_an_error_however_much_is_logged(
    bucket: str, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    texts = []
    async with running(bucket, proxy.url, retry=RetryOptions(max_retries=1)) as store:
        for fault in (*TRANSIENT.values(), {"what": "status", "status": 403, "code": "SignatureDoesNotMatch"}):
            proxy.faults = [Fault("any", **fault, times=2)]
            try:
                await store.put(digest_of(b"data"), b"data")
            except UnavailableError as error:
                texts += [str(error), repr(error.__cause__)]
    logged = caplog.text + "".join(texts)
    assert len(texts) > 10
    assert SECRET not in logged
    assert KEY not in logged


def operations(store: Store):
    """One operation for each kind of request that a store begins with."""
    data = make_blob(1000)
    return [
        ("head", lambda: store.has([digest_of(data)])),
        ("get", lambda: store.get(digest_of(data))),
        ("get", lambda: read(store, digest_of(data))),
        ("put", lambda: store.put(digest_of(data), data)),
        ("create", lambda: store.put(digest_of(large), large)),
    ]


large = make_blob(6 * MIB)


# --------------------------------------------------------------------------------------------- killed and restarted


async def test_a_server_killed_in_an_upload_that_comes_once_and_restarted_has_nothing_of_it(tmp_path: Path) -> None:
    """rclone forgets the parts that it had. (What can be read again begins anew: `test_cloud_servers`.)"""
    digest = digest_of(data := make_blob(30 * MIB))
    with s3_server(tmp_path, "rclone") as server:
        async with running(bucket := server.bucket(), server.url, retry=PATIENT) as store:
            source = KilledAtHalf(server, data, rewindable=False)
            with pytest.raises(UnavailableError) as caught:
                await store.write(digest, source)
            assert source.killed
            assert caught.value.retryable
            assert await store.has([digest]) == [None]
            assert server.objects(bucket) == {}
            await store.put(digest, data)
            assert await read(store, digest) == data
            assert server.open_uploads(bucket) == []


# ------------------------------------------------------------------------------------------------------ the start


async def test_a_server_that_cannot_be_reached_does_not_hold_up_the_start(
    tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    with s3_server(tmp_path, "rclone") as server:
        bucket = server.bucket()
        server.kill()
        async with running(bucket, server.url, retry=RetryOptions(max_retries=1, delay=0.01)) as store:
            assert "starts without its bucket" in caplog.text
            with pytest.raises(UnavailableError):
                await store.put("name", b"value")
            with pytest.raises(UnavailableError):
                await store.check()
            await trio.to_thread.run_sync(server.start)
            await store.put("name", b"value")
            await store.check()
            assert await store.get("name") == b"value"


async def test_wrong_credentials_and_buckets_are_one_line(moto: S3Server, rclone: S3Server, bucket: str) -> None:
    assert "no-such-bucket" in await refused("bucket", options_for("no-such-bucket", moto.url))
    line = await refused("", options_for(rclone.bucket(), rclone.url, access_key_id="somebody-elses-key"))
    assert "credentials are refused (InvalidAccessKeyId" in line
    line = await refused("", options_for(rclone.bucket(), rclone.url, secret_access_key="another-secret-key"))
    assert "credentials are refused (SignatureDoesNotMatch" in line
    assert "another-secret-key" not in line
    assert "not a bucket name" in await refused("bucket", options_for("not a bucket name", moto.url))


async def test_missing_credentials_are_one_line(moto: S3Server, bucket: str, monkeypatch, tmp_path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    assert "no credentials" in await refused("", options_for(bucket, moto.url, access_key_id="", secret_access_key=""))


# ---------------------------------------------------------------------------------------------------- many at once


async def test_no_more_requests_run_at_once_than_threads_are_allowed(bucket: str, proxy: FaultyProxy) -> None:
    digests = [digest_of(b"%d" % number) for number in range(60)]
    async with running(bucket, proxy.url, max_threads=4) as store:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(store.has, digests)
        assert proxy.count("head") == 240
        assert 2 <= proxy.most_busy <= 4


async def test_a_lookup_of_thousands_does_not_hold_up_a_read(bucket: str, proxy: FaultyProxy) -> None:
    digests, begun = [digest_of(b"%d" % number) for number in range(1000)], threading.Event()
    async with running(bucket, proxy.url, max_threads=4) as store:
        await store.put("name", b"value")
        proxy.seen = lambda _: begun.set() if proxy.count("head") >= 10 else None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.has, digests)
            await trio.to_thread.run_sync(begun.wait)
            assert await store.get("name") == b"value"
            assert proxy.count("head") < 500
            nursery.cancel_scope.cancel()


async def test_what_was_there_is_not_asked_for_again_for_a_while(bucket: str, proxy: FaultyProxy) -> None:
    there, missing = digest_of(b"there"), digest_of(b"missing")
    action = ActionKey(*there)
    async with running(bucket, proxy.url, remember_s=60) as store, running(bucket, proxy.url) as other:
        await other.put_many([(there, b"there"), (action, b"result")])
        for _ in range(3):
            assert await store.has([there, missing, action]) == [5, None, 6]
        assert proxy.count("head") == 1 + 3 + 3, "what is missing, and what may change, is asked for each time"
        assert [store.traits.authoritative, other.traits.authoritative] == [False, True]
        await other.delete([there])
        assert await store.has([there]) == [5]
        with pytest.raises(BlobNotFoundError):
            await store.get(there)
        assert await store.has([there]) == [None]


async def test_no_news_are_offered_of_what_others_delete(bucket: str, moto: S3Server) -> None:
    async with running(bucket, moto.url) as store:
        assert store.capability(Removals) is None, "a cache in front would believe for ever what it has learnt"
        assert store.capability(Deletes) is not None


async def test_an_object_of_a_wrong_size_is_not_there_until_it_is_mended(
    bucket: str, moto: S3Server
) -> None:
    digest = digest_of(data := make_blob(2 * MIB))
    for wrong in (data[:-1], data + b"x", b""):
        moto.client.put_object(Bucket=bucket, Key=f"cas/{key_text(digest)}", Body=wrong)
        async with running(bucket, moto.url) as store:
            assert await store.has([digest]) == [None]
            for offset, length in ((0, None), (0, 10), (len(data) - 5, None)):
                with pytest.raises(BlobNotFoundError):
                    await read(store, digest, offset=offset, length=length)
            with pytest.raises(BlobNotFoundError):
                await store.get(digest)
            await store.put(digest, data)
            assert await store.has([digest]) == [len(data)]
            assert await read(store, digest) == data


async def test_what_is_about_to_expire_counts_as_missing(bucket: str, moto: S3Server, monkeypatch) -> None:
    import time

    digest = digest_of(b"old")
    async with running(bucket, moto.url, consider_expired_after_s=3600, remember_s=60) as store:
        await store.put(digest, b"old")
        assert await store.has([digest]) == [3]
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 3605)
        store._remembered.forget([digest])
        assert await store.has([digest, Digest(*digest)]) == [None, None]
        assert await store.get(digest) == b"old", "it is still there"

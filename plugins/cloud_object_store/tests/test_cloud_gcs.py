"""The provider `gcs` over fake-gcs-server: the contract, credentials, failing servers; sessions as Google does them."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from faulty_proxy import GCS_KINDS, Fault, FaultyProxy, faulty_proxy
from gcs_sessions import resumable_sessions
from gcs_support import FakeGcs, fake_gcs, fake_gcs_server, gcs_options, nobody  # noqa: F401

from nl.plugin import ActionKey, ConfigError, RetryOptions, Store, UnavailableError, digest_of, key_text
from nl.testing import (
    BareContext,
    CancellingReader,
    DurableStoreConformance,
    PartsReader,
    StoreConformance,
    drain,
    make_blob,
    read,
    split,
    started,
)
from nl_cloud_object_store import CloudObjectStore
from nl_cloud_object_store.client import RefusedError
from nl_cloud_object_store.gcs_auth import find_credentials

MIB = 1024 * 1024
PATIENT = RetryOptions(max_retries=11, delay=0.02)
"""While a server starts again: 80 s in all; pauses double."""


@pytest.fixture(scope="class")
def over_fake_gcs(request: pytest.FixtureRequest, fake_gcs: FakeGcs) -> None:  # noqa: F811
    request.cls.server = fake_gcs


@pytest.mark.usefixtures("over_fake_gcs")
class TestOverFakeGcs(DurableStoreConformance, StoreConformance):
    server: FakeGcs

    def make_store(self, context: BareContext, folder: Path) -> Store:
        return CloudObjectStore(gcs_options(self.server.bucket_of(folder), self.server.url), context)

    def list_raw(self, folder: Path) -> Collection[str]:
        return list(self.server.objects(self.server.bucket_of(folder)))


@pytest.fixture
def bucket(fake_gcs: FakeGcs) -> str:  # noqa: F811
    return fake_gcs.bucket()


@pytest.fixture
def proxy(fake_gcs: FakeGcs) -> Iterator[FaultyProxy]:  # noqa: F811
    with faulty_proxy(fake_gcs.port, GCS_KINDS) as proxy:
        yield proxy


@asynccontextmanager
async def running(bucket: str, url: str, **options: object):
    options = {"remember_s": 0, **options}
    async with started(CloudObjectStore(gcs_options(bucket, url, **options), BareContext())) as store:
        yield store


# ------------------------------------------------------------------------------------------------- parts and ranges


@pytest.mark.parametrize("size", [5 * MIB, 5 * MIB + 1, 10 * MIB, 17 * MIB + 3])
async def test_a_blob_in_parts_is_whole_and_in_ranges(bucket: str, fake_gcs: FakeGcs, size: int) -> None:  # noqa: F811
    digest = digest_of(data := make_blob(size))
    async with running(bucket, fake_gcs.url) as store:
        for key in (digest, "a name"):
            await store.write(key, PartsReader(split(data, 700_001), size=-1))
            assert fake_gcs.objects(bucket)[f"cas/{key_text(key)}"] == len(data)
            assert await read(store, key) == data
        for offset in (0, 5 * MIB - 1, len(data) - 1):
            assert await read(store, digest, offset=offset, length=70_000) == data[offset : offset + 70_000]


async def test_a_write_cancelled_anywhere_leaves_all_or_nothing(bucket: str, fake_gcs: FakeGcs) -> None:  # noqa: F811
    async with running(bucket, fake_gcs.url) as store:
        for step in (0, 6, 13, 24, 27):
            digest = digest_of(data := make_blob(12 * MIB, seed=step))
            with trio.CancelScope() as scope:
                await store.write(digest, CancellingReader(split(data, MIB // 2), scope, at_call=step))
            assert await store.has([digest]) in ([None], [len(data)])


# ------------------------------------------------------------------------------------------------------ what passes

TRANSIENT = {
    "500": {"what": "status"},
    "503 without a body": {"what": "status", "status": 503, "code": ""},
    "429": {"what": "status", "status": 429},
    "connection reset": {"what": "refuse", "abrupt": True},
    "answer lost": {"what": "lose answer"},
}


@pytest.mark.parametrize("fault", TRANSIENT)
async def test_a_blob_is_written_found_and_read_although_each_first_request_fails(
    bucket: str, proxy: FaultyProxy, fault: str
) -> None:
    small, large = make_blob(1000), make_blob(11 * MIB)
    async with running(bucket, proxy.url) as store:
        proxy.faults = [Fault(kind, **TRANSIENT[fault], times=2) for kind in ("put", "create", "head", "get")]
        for data in (small, large):
            digest = digest_of(data)
            await store.write(digest, PartsReader(split(data, 300_000)))
            assert await store.has([digest]) == [len(data)]
            assert await read(store, digest) == data
        assert all(fault.times == 0 for fault in proxy.faults)
        assert int(store.statistics()["retries"]) >= 8


async def test_a_download_goes_on_where_the_connection_broke(bucket: str, proxy: FaultyProxy) -> None:
    digest = digest_of(data := make_blob(9 * MIB))
    async with running(bucket, proxy.url) as store:
        await store.put(digest, data)
        proxy.requests.clear()
        proxy.faults = [Fault("get", "cut answer", after=1_700_000, times=4)]
        assert await read(store, digest) == data
        gets = [request for request in proxy.requests if request.kind == "get"]
        assert len(gets) == 5
        assert all("Range" in get.headers and "ifGenerationMatch=" in get.path for get in gets[1:])


async def test_a_value_replaced_in_the_middle_of_a_download_is_never_mixed(bucket: str, proxy: FaultyProxy) -> None:
    key = ActionKey(*digest_of(b"an action"))
    async with running(bucket, proxy.url) as store:
        await store.put(key, make_blob(4 * MIB, seed=1))
        proxy.faults = [Fault("get", "cut answer", after=2 * MIB)]
        async with store.open(key) as reader:
            await reader.receive_parts(1000)
            await store.put(key, make_blob(4 * MIB, seed=2))
            with pytest.raises(UnavailableError):
                await drain(reader, taken=1000)
        assert await read(store, key) == make_blob(4 * MIB, seed=2)


# ---------------------------------------------------------------------------------------------------------- sessions


@pytest.mark.parametrize("faults", [
    [], ["lose answer"] * 3, ["500"] * 3, ["half"] * 3, ["pass", "half", "lose answer", "500", "half", "lose answer"],
    ["pass"] * 3 + ["lose answer"], ["pass"] * 3 + ["500"],
])
@pytest.mark.parametrize("size", [15 * MIB, 15 * MIB + 70_001])
async def test_a_session_goes_on_with_what_has_not_arrived(faults: list[str], size: int) -> None:
    digest = digest_of(data := make_blob(size))
    with resumable_sessions() as sessions:
        sessions.faults = list(faults)
        async with running("a-bucket", sessions.url) as store:
            await store.write(digest, PartsReader(split(data, 1_000_000)))  # which cannot be read again
        assert sessions.faults == []
        assert sessions.objects == {f"cas/{key_text(digest)}": data}
        if faults:
            assert ("bytes */*" in sessions.asked) == (faults != ["half"] * 3)
        else:
            assert sessions.asked[:3] == [f"bytes {at}-{at + 5 * MIB - 1}/*" for at in range(0, 15 * MIB, 5 * MIB)]
            assert len(sessions.asked) == 4


async def test_a_session_that_is_forgotten_begins_again_or_fails_as_a_whole() -> None:
    digest = digest_of(data := make_blob(12 * MIB))
    with resumable_sessions() as sessions:
        async with running("a-bucket", sessions.url) as store:
            sessions.faults = ["pass", "forget"]
            with pytest.raises(UnavailableError):
                await store.write(digest, PartsReader(split(data, 1_000_000)))
            assert (sessions.objects, sessions.open) == ({}, {})
            sessions.faults = ["pass", "forget"]
            await store.put(digest, data)
        assert sessions.objects == {f"cas/{key_text(digest)}": data}


async def test_an_upload_that_is_given_up_ends_its_session_and_parts_can_be_larger() -> None:
    digest = digest_of(data := make_blob(20 * MIB))
    with resumable_sessions() as sessions:
        async with running("a-bucket", sessions.url, resumable_chunk_size=7_000_000) as store:
            with trio.CancelScope() as scope:
                await store.write(digest, CancellingReader(split(data, MIB), scope, at_call=18))
            assert (sessions.objects, sessions.open) == ({}, {})
            sessions.asked.clear()
            await store.put(digest, data)
            assert sessions.asked[0] == f"bytes 0-{27 * 256 * 1024 - 1}/*", "7 MB in multiples of 256 KiB"
        assert sessions.objects == {f"cas/{key_text(digest)}": data}


# ------------------------------------------------------------------------------------------------ killed and restarted


async def test_a_server_killed_in_a_download_or_an_upload_and_restarted_loses_nothing(tmp_path: Path) -> None:
    """It forgets the sessions that it had: the upload begins again where it can."""
    digest, other = digest_of(data := make_blob(24 * MIB)), digest_of(more := make_blob(24 * MIB, seed=2))
    with fake_gcs_server(tmp_path, "filesystem") as server:
        async with running(bucket := server.bucket(), server.url, retry=PATIENT) as store:
            await store.put(digest, data)
            async with store.open(digest) as reader, trio.open_nursery() as nursery:
                first = b"".join(map(bytes, await reader.receive_parts(1000)))
                server.kill()
                nursery.start_soon(trio.to_thread.run_sync, server.start)
                assert first + await drain(reader, taken=1000) == data

            class Source(PartsReader):
                killed = False
                can_rewind = True

                async def rewind(self) -> None:
                    self._parts = split(more, 1_000_000)

                async def receive_parts(self, max_bytes: int = 256 * 1024):
                    if not self.killed and sum(map(len, self._parts)) < 12 * MIB:
                        Source.killed = True
                        await trio.to_thread.run_sync(server.kill)
                        await trio.to_thread.run_sync(server.start)
                    return await super().receive_parts(max_bytes)

            await store.write(other, Source(split(more, 1_000_000)))
            assert Source.killed
            assert await read(store, other) == more
        assert set(server.objects(bucket)) == {f"cas/{key_text(each)}" for each in (digest, other)}


# -------------------------------------------------------------------------------------------------------- credentials


async def refused(option: str, bucket: str, url: str, **options: object) -> str:
    """The line with which a store does not start."""
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError)) as caught:
        async with running(bucket, url, **options):
            pass
    error = caught.value.exceptions[0]
    assert isinstance(error, ConfigError)
    assert error.path == option, error
    assert "\n" not in error.problem
    return error.problem


@contextmanager
def token_server(status: int = 200) -> Iterator[tuple[str, list[bytes]]]:
    """Where a service account gets its tokens. Its address, and what was sent there."""
    asked: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            good = {"access_token": f"token-{len(asked)}", "expires_in": 3600, "token_type": "Bearer"}
            body = json.dumps(good if status == 200 else {"error": "invalid_grant", "error_description": "no"}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/token", asked
        finally:
            server.shutdown()
            thread.join()


def service_account(token_url: str) -> str:
    """The text of a service account's file."""
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return json.dumps({
        "type": "service_account", "project_id": "p", "private_key_id": "k", "private_key": key,
        "client_email": "nl@p.iam.gserviceaccount.com", "client_id": "1", "token_uri": token_url,
    })


@pytest.mark.parametrize("way", ["file", "text"])
async def test_a_service_accounts_token_goes_with_every_request_and_shows_nowhere(
    bucket: str, proxy: FaultyProxy, way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    with token_server() as (url, asked):
        text = service_account(url)
        (tmp_path / "account.json").write_text(text)
        if way == "file":
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
        else:
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS_JSON", text)
        async with running(bucket, proxy.url, authentication_required=True) as store:
            for data in (b"data", make_blob(6 * MIB)):
                digest = digest_of(data)
                await store.put(digest, data)
                assert await store.has([digest]) == [len(data)]
                assert await read(store, digest) == data
        assert {request.headers["authorization"] for request in proxy.requests} == {"Bearer token-1"}
        assert len(asked) == 1
    assert "token-1" not in caplog.text


async def test_wrong_credentials_and_buckets_are_one_line(
    fake_gcs: FakeGcs, bucket: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path  # noqa: F811
) -> None:
    assert "no-such-bucket" in await refused("bucket", "no-such-bucket", fake_gcs.url)
    assert "no credentials" in await refused("", bucket, fake_gcs.url, authentication_required=True)
    for status, said in ((401, "credentials are refused"), (403, "storage.objects.get")):
        proxy.faults = [Fault("list", "status", status=status)]
        assert said in await refused("", bucket, proxy.url)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    assert "missing.json" in await refused("", bucket, fake_gcs.url)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS_JSON", "no json")
    assert "cannot be used" in await refused("", bucket, fake_gcs.url)
    with token_server(400) as (url, _):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS_JSON", service_account(url))
        assert "the credentials are refused: invalid_grant" in await refused("", bucket, fake_gcs.url)


def test_a_missing_library_says_how_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.auth", None)
    with pytest.raises(RefusedError, match=r"nl-cloud-object-store\[gcs\]"):
        find_credentials(required=False)


@pytest.mark.parametrize(("options", "where"), [
    ({"bucket": ""}, "bucket"), ({"container": "c"}, "container"), ({"region": "europe-west1"}, "region"),
    ({"url": "http://x", "insecure_allow_http": False}, "endpoint"),
])
def test_options_that_cannot_work_are_refused(options: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        gcs_options(**{"bucket": "b", "url": "", **options})
    assert caught.value.path == where

"""The provider `azure` over Azurite, Microsoft's own emulator: the contract, credentials, servers that fail."""

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
from azure_support import (  # noqa: F401
    ACCOUNT,
    KEY,
    Azurite,
    azure_options,
    azurite,
    azurite_server,
    key_in_the_environment,
)
from faulty_proxy import AZURE_KINDS, Fault, FaultyProxy, faulty_proxy

from nl.plugin import ActionKey, ConfigError, RetryOptions, Store, UnavailableError, digest_of, key_text
from nl.testing import (
    BareContext,
    BlockingReader,
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
from nl_cloud_object_store import CloudObjectStore, CloudObjectStoreOptions
from nl_cloud_object_store.azure_auth import SharedAccessSignature, SharedKey, Token, find_authorization
from nl_cloud_object_store.client import RefusedError

MIB = 1024 * 1024
PATIENT = RetryOptions(max_retries=11, delay=0.02)
"""While a server starts again: 80 s in all; pauses double."""


@pytest.fixture(scope="class")
def over_azurite(request: pytest.FixtureRequest, azurite: Azurite) -> None:  # noqa: F811
    request.cls.server = azurite


@pytest.mark.usefixtures("over_azurite")
class TestOverAzurite(DurableStoreConformance, StoreConformance):
    server: Azurite

    def make_store(self, context: BareContext, folder: Path) -> Store:
        return CloudObjectStore(azure_options(self.server.container_of(folder), self.server.url), context)

    def list_raw(self, folder: Path) -> Collection[str]:
        return list(self.server.objects(self.server.container_of(folder)))


@pytest.fixture
def container(azurite: Azurite) -> str:  # noqa: F811
    return azurite.container()


@pytest.fixture
def proxy(azurite: Azurite) -> Iterator[FaultyProxy]:  # noqa: F811
    with faulty_proxy(azurite.port, AZURE_KINDS) as proxy:
        yield proxy


@asynccontextmanager
async def running(container: str, url: str, **options: object):
    options = {"remember_s": 0, **options}
    if not url.endswith(ACCOUNT):
        url = f"{url}/{ACCOUNT}"
    async with started(CloudObjectStore(azure_options(container, url, **options), BareContext())) as store:
        yield store


# ------------------------------------------------------------------------------------------------- parts and ranges


async def test_a_blob_in_parts_is_whole_and_in_ranges(container: str, azurite: Azurite) -> None:  # noqa: F811
    digest = digest_of(data := make_blob(17 * MIB + 3))
    async with running(container, azurite.url) as store:
        await store.write(digest, PartsReader(split(data, 700_001), size=-1))
        assert azurite.objects(container) == {f"cas/{key_text(digest)}": len(data)}
        assert await read(store, digest) == data
        for offset in (0, 5 * MIB - 1, 5 * MIB, len(data) - 1):
            assert await read(store, digest, offset=offset, length=70_000) == data[offset : offset + 70_000]


async def test_two_who_write_the_same_blob_at_once_both_succeed(container: str, azurite: Azurite) -> None:  # noqa: F811
    """Azure forgets the parts of the one when the other completes."""
    digest = digest_of(data := make_blob(13 * MIB))
    async with running(container, azurite.url) as store, running(container, azurite.url) as other:
        slow = BlockingReader(split(data[: 11 * MIB], MIB), rest=data[11 * MIB :])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, digest, slow)
            await slow.blocked.wait()
            await other.write(digest, PartsReader(split(data, MIB)))
            slow.go_on.set()
        assert await read(store, digest) == data


async def test_a_write_cancelled_anywhere_leaves_all_or_nothing(container: str, azurite: Azurite) -> None:  # noqa: F811
    async with running(container, azurite.url) as store:
        for step in (0, 6, 13, 24, 27):
            digest = digest_of(data := make_blob(12 * MIB, seed=step))
            with trio.CancelScope() as scope:
                await store.write(digest, CancellingReader(split(data, MIB // 2), scope, at_call=step))
            assert await store.has([digest]) in ([None], [len(data)])


# ------------------------------------------------------------------------------------------------------ what passes

TRANSIENT = {
    "500": {"what": "status", "code": "InternalError"},
    "503 ServerBusy": {"what": "status", "status": 503, "code": "ServerBusy"},
    "429 without a body": {"what": "status", "status": 429, "code": ""},
    "connection reset": {"what": "refuse", "abrupt": True},
    "answer lost": {"what": "lose answer"},
}


@pytest.mark.parametrize("fault", TRANSIENT)
async def test_a_blob_is_written_found_and_read_although_each_first_request_fails(
    container: str, proxy: FaultyProxy, fault: str
) -> None:
    small, large = make_blob(1000), make_blob(11 * MIB)
    async with running(container, proxy.url) as store:
        proxy.faults = [Fault(kind, **TRANSIENT[fault], times=2) for kind in ("put", "part", "complete", "head", "get")]
        for data in (small, large):
            digest = digest_of(data)
            await store.write(digest, PartsReader(split(data, 300_000)))
            assert await store.has([digest]) == [len(data)]
            assert await read(store, digest) == data
        assert all(fault.times == 0 for fault in proxy.faults)
        assert int(store.statistics()["retries"]) >= 10


async def test_a_complete_whose_answer_was_lost_is_found_to_have_worked(container: str, proxy: FaultyProxy) -> None:
    for key in (digest_of(data := make_blob(6 * MIB)), ActionKey(*digest_of(b"an action"))):
        async with running(container, proxy.url) as store:
            proxy.requests.clear()
            gone = Fault("complete", "status", status=400, code="InvalidBlockList")
            proxy.faults = [Fault("complete", "lose answer"), gone]
            await store.put(key, data)
            assert proxy.kinds()[-3:] == ["complete", "complete", "head"]
            assert await read(store, key) == data


async def test_a_download_goes_on_where_the_connection_broke(container: str, proxy: FaultyProxy) -> None:
    digest = digest_of(data := make_blob(9 * MIB))
    async with running(container, proxy.url) as store:
        await store.put(digest, data)
        proxy.requests.clear()
        proxy.faults = [Fault("get", "cut answer", after=1_700_000, times=4)]
        assert await read(store, digest) == data
        gets = [request.headers for request in proxy.requests if request.kind == "get"]
        assert len(gets) == 5
        assert all("If-Match" in headers and "Range" in headers for headers in gets[1:])


async def test_a_value_replaced_in_the_middle_of_a_download_is_never_mixed(container: str, proxy: FaultyProxy) -> None:
    key = ActionKey(*digest_of(b"an action"))
    async with running(container, proxy.url) as store:
        await store.put(key, make_blob(4 * MIB, seed=1))
        proxy.faults = [Fault("get", "cut answer", after=2 * MIB)]
        async with store.open(key) as reader:
            await reader.receive_parts(1000)
            await store.put(key, make_blob(4 * MIB, seed=2))
            with pytest.raises(UnavailableError, match="ConditionNotMet"):
                await drain(reader, taken=1000)
        assert await read(store, key) == make_blob(4 * MIB, seed=2)


# ------------------------------------------------------------------------------------------------ killed and restarted


async def test_a_server_killed_in_a_download_or_an_upload_and_restarted_loses_nothing(tmp_path: Path) -> None:
    """It forgets the parts that it had: the upload begins again where it can."""
    digest, other = digest_of(data := make_blob(24 * MIB)), digest_of(more := make_blob(24 * MIB, seed=2))
    with azurite_server(tmp_path) as server:
        async with running(container := server.container(), server.url, retry=PATIENT) as store:
            await store.put(digest, data)
            await trio.to_thread.run_sync(server.wait_until_saved, f"cas/{key_text(digest)}")
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
        assert set(server.objects(container)) == {f"cas/{key_text(each)}" for each in (digest, other)}


# -------------------------------------------------------------------------------------------------------- credentials


async def test_wrong_credentials_and_containers_are_one_line(
    azurite: Azurite, container: str, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    assert "no-such-container" in await refused("container", "no-such-container", azurite.url)
    wrong = "d3JvbmcgYnV0IGEga2V5"
    line = await refused("", container, azurite.url, sas_url=azurite.sas_url(container, key=wrong))
    assert "credentials are refused" in line
    monkeypatch.setenv("AZURE_STORAGE_KEY", wrong)
    line = await refused("", container, azurite.url)
    assert "credentials are refused" in line
    assert wrong not in line
    monkeypatch.setenv("AZURE_STORAGE_KEY", "not base64!")
    assert "not base64" in await refused("", container, azurite.url)


async def refused(option: str, container: str, url: str, **options: object) -> str:
    """The line with which a store does not start."""
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError)) as caught:
        async with running(container, url, **options):
            pass
    error = caught.value.exceptions[0]
    assert isinstance(error, ConfigError)
    assert error.path == option, error
    assert "\n" not in error.problem
    return error.problem


async def test_a_shared_access_signature_is_enough_and_shows_nowhere(
    azurite: Azurite, container: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture  # noqa: F811
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    caplog.set_level(logging.DEBUG)
    url = azurite.sas_url(container, permissions="rwd")
    secret, texts = url.partition("sig=")[2], []
    digest = digest_of(data := make_blob(7 * MIB))
    with faulty_proxy(azurite.port, AZURE_KINDS) as proxy:
        through = url.replace(f":{azurite.port}/", f":{proxy.port}/")
        async with running(container, proxy.url, sas_url=through, retry=RetryOptions()) as store:
            await store.put(digest, data)
            assert await read(store, digest) == data
            for fault in (*TRANSIENT.values(), {"what": "status", "status": 403, "code": "AuthenticationFailed"}):
                proxy.faults = [Fault("any", **fault)]
                try:
                    await store.put(digest_of(b"data"), b"data")
                except UnavailableError as error:
                    texts += [str(error), repr(error.__cause__)]
    assert len(texts) == 12
    assert secret not in caplog.text + "".join(texts)


def test_the_environment_is_asked_as_azures_own_tools_do(monkeypatch: pytest.MonkeyPatch) -> None:
    told = f"DefaultEndpointsProtocol=https;AccountName=acct;AccountKey={KEY};EndpointSuffix=core.windows.net"
    for environment, kind in (
        ({"AZURE_STORAGE_KEY": KEY}, SharedKey), ({"AZURE_STORAGE_ACCOUNT_KEY": KEY}, SharedKey),
        ({"AZURE_STORAGE_SAS_TOKEN": "?sv=1&sig=2"}, SharedAccessSignature),
        ({"AZURE_STORAGE_CONNECTION_STRING": told}, SharedKey),
        ({"AZURE_STORAGE_CONNECTION_STRING": "SharedAccessSignature=sv=1&sig=2"}, SharedAccessSignature),
    ):
        assert type(find_authorization("acct", environment)) is kind
    other = {"AZURE_STORAGE_CONNECTION_STRING": told}
    pytest.importorskip("azure.identity")
    assert type(find_authorization("another", other)) is Token
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    with pytest.raises(RefusedError, match="install azure-identity"):
        find_authorization("another", {})


def test_requests_are_signed_as_azures_documentation_does() -> None:
    """The example of "Authorize with Shared Key" in Azure's REST reference."""
    headers = {"x-ms-date": "Fri, 26 Jun 2015 23:39:12 GMT", "x-ms-version": "2015-02-21"}
    url = "https://myaccount.blob.core.windows.net/mycontainer?restype=container&comp=metadata&timeout=20"
    assert SharedKey("myaccount", KEY).text_to_sign("GET", url, headers) == (
        "GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\nx-ms-version:2015-02-21\n"
        "/myaccount/mycontainer\ncomp:metadata\nrestype:container\ntimeout:20"
    )


@contextmanager
def identity_endpoint() -> Iterator[tuple[str, list[str]]]:
    """What an Azure App Service offers its programs: tokens. Its address, and what was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            asked.append(self.path)
            body = json.dumps({
                "access_token": f"token-{len(asked)}", "expires_on": "4102444800", "token_type": "Bearer",
                "resource": "https://storage.azure.com",
            }).encode()
            self.send_response(200 if self.headers["X-IDENTITY-HEADER"] == "known" else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/token", asked
        server.shutdown()
        thread.join()


async def test_the_machines_identity_is_used_where_nothing_else_is_given(
    azurite: Azurite, container: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture  # noqa: F811
) -> None:
    pytest.importorskip("azure.identity")
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    caplog.set_level(logging.DEBUG)
    with identity_endpoint() as (url, asked), faulty_proxy(azurite.port, AZURE_KINDS) as proxy:
        monkeypatch.setenv("IDENTITY_ENDPOINT", url)
        monkeypatch.setenv("IDENTITY_HEADER", "known")
        # Azurite takes tokens over TLS only: that ours is sent is what can be seen.
        proxy.faults = [Fault("any", "status", status=404, code="BlobNotFound", times=100)]
        async with running(container, proxy.url) as store:
            assert await store.has([digest_of(b"%d" % number) for number in range(5)]) == [None] * 5
        assert {request.headers["Authorization"] for request in proxy.requests} == {"Bearer token-1"}
        assert len(asked) == 1
        assert "storage.azure.com" in asked[0]
    assert "token-1" not in caplog.text


# -------------------------------------------------------------------------------------------------------- the config


@pytest.mark.parametrize(("options", "where"), [
    ({"account_name": ""}, "account_name"), ({"container": ""}, "container"), ({"bucket": "b"}, "bucket"),
    ({"region": "westeurope"}, "region"), ({"endpoint": "http://x", "insecure_allow_http": False}, "endpoint"),
    ({"sas_url": "http://x?sig=hidden", "insecure_allow_http": False}, "sas_url"),
    ({"sas_url": "sig=hidden"}, "sas_url"),
])
def test_options_that_cannot_work_are_refused(options: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        azure_options(**{"container": "c", "url": "", **options})
    assert caught.value.path == where
    assert "hidden" not in str(caught.value)


def test_the_address_is_that_of_the_account_or_of_the_container() -> None:
    from nl_cloud_object_store.azure import AzureSettings

    def url(**more: str) -> str:
        return AzureSettings(account="acct", container="c", **more).url

    assert url() == "https://acct.blob.core.windows.net/c"
    assert url(endpoint="https://h/acct/") == url(endpoint="https://h/acct/c") == "https://h/acct/c"
    assert url(sas_url="https://h/other?sig=x") == "https://h/other"
    assert CloudObjectStoreOptions(provider="azure", account_name="a", container="c").check() is None

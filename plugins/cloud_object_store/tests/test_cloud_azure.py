"""The provider `azure` over Azurite, Microsoft's own emulator: who we are to it, and what is Azure's alone. What holds
with all providers is in `test_cloud_servers`.
"""

from __future__ import annotations

import logging
import sys
import time
from types import SimpleNamespace

import pytest
import trio
from azure_support import KEY, Azurite
from cloud_support import refused, running
from faulty_proxy import AZURE_KINDS, Fault, faulty_proxy
from test_cloud_servers import TRANSIENT
from token_server import token_server

from nl.plugin import RefusedError, RetryOptions, TransientError, UnavailableError, digest_of
from nl.testing import BlockingReader, PartsReader, make_blob, read, split
from nl_cloud_object_store import CloudObjectStoreOptions
from nl_cloud_object_store.azure_auth import SharedAccessSignature, SharedKey, Token, find_authorization

MIB = 1024 * 1024


@pytest.fixture
def container(azurite: Azurite) -> str:
    return azurite.bucket()


async def test_two_who_write_the_same_blob_at_once_both_succeed(container: str, azurite: Azurite) -> None:
    """Azure forgets the parts of the one when the other completes."""
    digest = digest_of(data := make_blob(13 * MIB))
    async with running(azurite.options(container)) as store, running(azurite.options(container)) as other:
        slow = BlockingReader(split(data[: 11 * MIB], MIB), rest=data[11 * MIB :])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, digest, slow)
            await slow.blocked.wait()
            await other.write(digest, PartsReader(split(data, MIB)))
            slow.go_on.set()
        assert await read(store, digest) == data


# -------------------------------------------------------------------------------------------------------- credentials


async def test_wrong_credentials_and_containers_are_one_line(
    azurite: Azurite, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no-such-container" in await refused("container", azurite.options("no-such-container"))
    wrong = "d3JvbmcgYnV0IGEga2V5"
    line = await refused("", azurite.options(container, sas_url=azurite.sas_url(container, key=wrong)))
    assert "credentials are refused" in line
    monkeypatch.setenv("AZURE_STORAGE_KEY", wrong)
    line = await refused("", azurite.options(container))
    assert "credentials are refused" in line
    assert wrong not in line
    monkeypatch.setenv("AZURE_STORAGE_KEY", "not base64!")
    assert "not base64" in await refused("", azurite.options(container))


async def test_a_shared_access_signature_is_enough_and_shows_nowhere(
    azurite: Azurite, container: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    caplog.set_level(logging.DEBUG)
    url = azurite.sas_url(container, permissions="rwd")
    secret, texts = url.partition("sig=")[2], []
    digest = digest_of(data := make_blob(7 * MIB))
    with faulty_proxy(azurite.port, AZURE_KINDS) as proxy:
        through = url.replace(f":{azurite.port}/", f":{proxy.port}/")
        async with running(azurite.options(container, sas_url=through, retry=RetryOptions())) as store:
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


def test_a_body_without_bytes_is_signed_as_one_without_a_length() -> None:
    """So it is since version 2015-02-21."""
    key = SharedKey("myaccount", KEY)
    for told, signed in (("0", ""), ("5", "5")):
        lines = key.text_to_sign("PUT", "https://h/c/k", {"Content-Length": told}).split("\n")
        assert (lines[0], lines[3], lines[-1]) == ("PUT", signed, "/myaccount/c/k")


class Tokens:
    """A credential as azure-identity has them: tokens that are good for so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.given = 0
        self.error: Exception | None = None

    def get_token(self, scope: str) -> SimpleNamespace:
        assert scope == "https://storage.azure.com/.default"
        if self.error is not None:
            raise self.error
        self.given += 1
        return SimpleNamespace(token=f"token-{self.given}", expires_on=time.time() + self.seconds)


@pytest.mark.parametrize(("seconds", "looks"), [
    (3600, [(0, 1), (3299, 1), (2, 2), (3299, 2), (2, 3)]), (10, [(0, 1), (0.5, 1), (0.6, 2), (1.1, 3)]),
])
def test_a_token_is_renewed_five_minutes_before_it_ends_and_no_more_than_once_a_second(
    seconds: float, looks: list[tuple[float, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("azure.core")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    token = Token(tokens := Tokens(seconds))
    for later, given in looks:
        now += later
        headers: dict[str, str] = {}
        assert token.sign("GET", "https://h/c", headers) == "https://h/c"
        assert (headers, tokens.given) == ({"Authorization": f"Bearer token-{given}"}, given)


def test_credentials_that_are_wrong_end_it_and_a_place_for_tokens_that_is_away_does_not() -> None:
    azure = pytest.importorskip("azure.core.exceptions")
    tokens = Tokens(3600)
    for error, kind in (
        (azure.ClientAuthenticationError("no\nway"), RefusedError), (azure.ServiceRequestError("away"), TransientError),
    ):
        tokens.error = error
        with pytest.raises(kind, match=r"no credentials: no way|no token: away"):
            Token(tokens).sign("GET", "https://h/c", {})


async def test_the_machines_identity_is_used_where_nothing_else_is_given(
    azurite: Azurite, container: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("azure.identity")
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    caplog.set_level(logging.DEBUG)
    with token_server() as (url, asked), faulty_proxy(azurite.port, AZURE_KINDS) as proxy:
        monkeypatch.setenv("IDENTITY_ENDPOINT", url)
        monkeypatch.setenv("IDENTITY_HEADER", "known")
        # Azurite takes tokens over TLS only: that ours is sent is what can be seen.
        proxy.faults = [Fault("any", "status", status=404, code="BlobNotFound", times=100)]
        async with running(azurite.options(container, proxy.url)) as store:
            assert await store.has([digest_of(b"%d" % number) for number in range(5)]) == [None] * 5
        assert {request.headers["Authorization"] for request in proxy.requests} == {"Bearer token-1"}
        assert len(asked) == 1
        assert "storage.azure.com" in asked[0]
    assert "token-1" not in caplog.text


# -------------------------------------------------------------------------------------------------------- the config


def test_the_address_is_that_of_the_account_or_of_the_container() -> None:
    from nl_cloud_object_store.azure import AzureSettings

    def url(**more: str) -> str:
        return AzureSettings(account="acct", container="c", **more).url

    assert url() == "https://acct.blob.core.windows.net/c"
    assert url(endpoint="https://h/acct/") == url(endpoint="https://h/acct/c") == "https://h/acct/c"
    assert url(sas_url="https://h/other?sig=x") == "https://h/other"
    assert CloudObjectStoreOptions(provider="azure", account_name="a", container="c").check() is None

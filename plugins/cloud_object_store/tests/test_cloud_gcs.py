"""The provider `gcs`: resumable sessions as Google does them, who we are to it. What holds with all providers is in
`test_cloud_servers`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from cloud_support import refused, running
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from faulty_proxy import GCS_KINDS, Fault, FaultyProxy, faulty_proxy
from gcs_sessions import resumable_sessions
from gcs_support import FakeGcs
from token_server import token_server

from nl.plugin import RefusedError, UnavailableError, digest_of, key_text
from nl.testing import CancellingReader, PartsReader, make_blob, read, split
from nl_cloud_object_store.gcs_auth import find_credentials

MIB = 1024 * 1024


@pytest.fixture
def bucket(fake_gcs: FakeGcs) -> str:
    return fake_gcs.bucket()


@pytest.fixture
def proxy(fake_gcs: FakeGcs) -> Iterator[FaultyProxy]:
    with faulty_proxy(fake_gcs.port, GCS_KINDS) as proxy:
        yield proxy


# ---------------------------------------------------------------------------------------------------------- sessions


@pytest.mark.parametrize("faults", [
    [], ["lose answer"], ["500"], ["lose answer"] * 3, ["500"] * 3, ["half"] * 3,
    ["pass", "half", "lose answer", "500", "half", "lose answer"], ["pass"] * 3 + ["lose answer"],
    ["pass"] * 3 + ["500"],
])
@pytest.mark.parametrize("size", [15 * MIB, 15 * MIB + 70_001])
async def test_a_session_goes_on_with_what_has_not_arrived(faults: list[str], size: int) -> None:
    digest = digest_of(data := make_blob(size))
    with resumable_sessions() as sessions:
        sessions.faults = list(faults)
        async with running(sessions.options()) as store:
            await store.write(digest, PartsReader(split(data, 1_000_000)))  # which cannot be read again
        assert sessions.faults == []
        assert sessions.objects == {f"cas/{key_text(digest)}": data}
        if faults:
            assert sessions.asked.count("bytes */*") == faults.count("lose answer") + faults.count("500")
        else:
            assert sessions.asked[:3] == [f"bytes {at}-{at + 5 * MIB - 1}/*" for at in range(0, 15 * MIB, 5 * MIB)]
            assert len(sessions.asked) == 4


async def test_a_session_that_is_forgotten_begins_again_or_fails_as_a_whole() -> None:
    digest = digest_of(data := make_blob(12 * MIB))
    with resumable_sessions() as sessions:
        async with running(sessions.options()) as store:
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
        async with running(sessions.options(resumable_chunk_size=7_000_000)) as store:
            with trio.CancelScope() as scope:
                await store.write(digest, CancellingReader(split(data, MIB), scope, at_call=18))
            assert (sessions.objects, sessions.open) == ({}, {})
            sessions.asked.clear()
            await store.put(digest, data)
            assert sessions.asked[0] == f"bytes 0-{27 * 256 * 1024 - 1}/*", "7 MB in multiples of 256 KiB"
        assert sessions.objects == {f"cas/{key_text(digest)}": data}


# -------------------------------------------------------------------------------------------------------- credentials


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
    fake_gcs: FakeGcs, bucket: str, proxy: FaultyProxy, way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
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
        async with running(fake_gcs.options(bucket, proxy.url, authentication_required=True)) as store:
            for data in (b"data", make_blob(6 * MIB)):
                digest = digest_of(data)
                await store.put(digest, data)
                assert await store.has([digest]) == [len(data)]
                assert await read(store, digest) == data
        assert {request.headers["authorization"] for request in proxy.requests} == {"Bearer token-1"}
        assert len(asked) == 1
    assert "token-1" not in caplog.text


async def test_wrong_credentials_and_buckets_are_one_line(
    fake_gcs: FakeGcs, bucket: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "no-such-bucket" in await refused("bucket", fake_gcs.options("no-such-bucket"))
    assert "no credentials" in await refused("", fake_gcs.options(bucket, authentication_required=True))
    for status, said in ((401, "credentials are refused"), (403, "storage.objects.get")):
        proxy.faults = [Fault("list", "status", status=status)]
        assert said in await refused("", fake_gcs.options(bucket, proxy.url))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    assert "missing.json" in await refused("", fake_gcs.options(bucket))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS_JSON", "no json")
    assert "cannot be used" in await refused("", fake_gcs.options(bucket))
    with token_server(400) as (url, _):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS_JSON", service_account(url))
        assert "the credentials are refused: invalid_grant" in await refused("", fake_gcs.options(bucket))


def test_a_missing_library_says_how_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.auth", None)
    with pytest.raises(RefusedError, match=r"nl-cloud-object-store\[gcs\]"):
        find_credentials(required=False)

"""What holds with every provider, over a server that speaks as it does: parts, ranges, requests that fail, servers that
are killed. What S3 has besides is in `test_cloud_faults` and `test_cloud_uploads`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
import trio
from azure_support import azurite_server
from cloud_support import PATIENT, KilledAtHalf, running, s3_server
from faulty_proxy import Fault, FaultyProxy, faulty_proxy
from gcs_support import fake_gcs_server
from server_process import Places, ServerProcess

from nl.plugin import ActionKey, ConfigError, Key, UnavailableError, digest_of, key_text
from nl.testing import CancellingReader, PartsReader, drain, make_blob, read, split
from nl_cloud_object_store import CloudObjectStoreOptions

MIB = 1024 * 1024
SPOKEN_PLAINLY = ["azurite", "fake_gcs"]
"""Those whose requests are ours and not a library's."""
ALL = ["moto", *SPOKEN_PLAINLY]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Places:
    return request.getfixturevalue(request.param)


@pytest.fixture
def bucket(server: Places) -> str:
    return server.bucket()


@pytest.fixture
def proxy(server: Places) -> Iterator[FaultyProxy]:
    with faulty_proxy(server.port, server.KINDS) as proxy:
        yield proxy


# ------------------------------------------------------------------------------------------------- parts and ranges


@pytest.mark.parametrize("server", SPOKEN_PLAINLY, indirect=True)
@pytest.mark.parametrize("size", [5 * MIB, 5 * MIB + 1, 10 * MIB, 17 * MIB + 3])
async def test_a_blob_in_parts_is_whole_and_in_ranges(server: Places, bucket: str, size: int) -> None:
    digest = digest_of(data := make_blob(size))
    async with running(server.options(bucket)) as store:
        for key in (digest, "a name"):
            await store.write(key, PartsReader(split(data, 700_001), size=-1))
            assert server.objects(bucket)[f"cas/{key_text(key)}"] == len(data)
            assert await read(store, key) == data
        assert len(server.objects(bucket)) == 2
        for offset in (0, 5 * MIB - 1, 5 * MIB, len(data) - 1):
            assert await read(store, digest, offset=offset, length=70_000) == data[offset : offset + 70_000]


@pytest.mark.parametrize("server", SPOKEN_PLAINLY, indirect=True)
async def test_a_write_cancelled_anywhere_leaves_all_or_nothing(server: Places, bucket: str) -> None:
    async with running(server.options(bucket)) as store:
        for step in (0, 6, 13, 24, 27):
            digest = digest_of(data := make_blob(12 * MIB, seed=step))
            with trio.CancelScope() as scope:
                await store.write(digest, CancellingReader(split(data, MIB // 2), scope, at_call=step))
            assert await store.has([digest]) in ([None], [len(data)])


# ------------------------------------------------------------------------------------------------------ what passes

TRANSIENT = {
    "500": {"what": "status"},
    "503": {"what": "status", "status": 503, "code": "ServerBusy"},
    "429 without a body": {"what": "status", "status": 429, "code": ""},
    "connection reset": {"what": "refuse", "abrupt": True},
    "answer lost": {"what": "lose answer"},
}
REQUESTS = {"azurite": ("put", "part", "complete", "head", "get"), "fake_gcs": ("put", "create", "head", "get")}
"""fake-gcs-server ends a session whose part is sent again."""


@pytest.mark.parametrize(("server", "kinds"), REQUESTS.items(), indirect=["server"], ids=REQUESTS)
@pytest.mark.parametrize("fault", TRANSIENT)
async def test_a_blob_is_written_found_and_read_although_each_first_request_fails(
    server: Places, bucket: str, proxy: FaultyProxy, kinds: tuple[str, ...], fault: str
) -> None:
    small, large = make_blob(1000), make_blob(11 * MIB)
    async with running(server.options(bucket, proxy.url)) as store:
        proxy.faults = [Fault(kind, **TRANSIENT[fault], times=2) for kind in kinds]
        for data in (small, large):
            digest = digest_of(data)
            await store.write(digest, PartsReader(split(data, 300_000)))
            assert await store.has([digest]) == [len(data)]
            assert await read(store, digest) == data
        assert all(fault.times == 0 for fault in proxy.faults)
        assert int(store.statistics()["retries"]) >= 2 * len(kinds)


GONE = {"moto": {"status": 404, "code": "NoSuchUpload"}, "azurite": {"status": 400, "code": "InvalidBlockList"}}
"""What is said of an upload that there is no longer. (moto would answer as before.)"""


@pytest.mark.parametrize(("server", "gone"), GONE.items(), indirect=["server"], ids=GONE)
@pytest.mark.parametrize("key", [digest_of(make_blob(6 * MIB)), ActionKey(*digest_of(b"an action"))], ids=str)
async def test_a_complete_whose_answer_was_lost_is_found_to_have_worked(
    server: Places, bucket: str, proxy: FaultyProxy, gone: dict[str, object], key: Key
) -> None:
    data = make_blob(6 * MIB)
    async with running(server.options(bucket, proxy.url)) as store:
        proxy.faults = [Fault("complete", "lose answer"), Fault("complete", "status", **gone)]
        await store.put(key, data)
        assert proxy.kinds()[-3:] == ["complete", "complete", "head"]
        assert await read(store, key) == data


@pytest.mark.parametrize("server", ALL, indirect=True)
async def test_a_download_goes_on_where_the_connection_broke(server: Places, bucket: str, proxy: FaultyProxy) -> None:
    digest = digest_of(data := make_blob(9 * MIB))
    async with running(server.options(bucket, proxy.url)) as store:
        await store.put(digest, data)
        proxy.requests.clear()
        proxy.faults = [Fault("get", "cut answer", after=1_700_000, times=4)]
        assert await read(store, digest) == data
        gets = [request for request in proxy.requests if request.kind == "get"]
        starts = [int(get.headers["Range"].partition("=")[2].partition("-")[0]) for get in gets[1:]]
        assert len(gets) == 5
        assert starts == sorted(starts)
        assert starts[-1] > 3 * MIB
        assert all("If-Match" in get.headers or "ifGenerationMatch=" in get.path for get in gets[1:])


@pytest.mark.parametrize("server", ALL, indirect=True)
async def test_a_value_replaced_in_the_middle_of_a_download_is_never_mixed(
    server: Places, bucket: str, proxy: FaultyProxy
) -> None:
    key = ActionKey(*digest_of(b"an action"))
    async with running(server.options(bucket, proxy.url)) as store:
        await store.put(key, make_blob(4 * MIB, seed=1))
        proxy.faults = [Fault("get", "cut answer", after=2 * MIB)]
        async with store.open(key) as reader:
            await reader.receive_parts(1000)
            await store.put(key, make_blob(4 * MIB, seed=2))
            with pytest.raises(UnavailableError, match=r"PreconditionFailed|ConditionNotMet|replaced"):
                await drain(reader, taken=1000)
        assert await read(store, key) == make_blob(4 * MIB, seed=2)


# ------------------------------------------------------------------------------------------------ killed and restarted

SERVERS: dict[str, Callable[[Path], AbstractContextManager[ServerProcess]]] = {
    "rclone": partial(s3_server, kind="rclone"),
    "azurite": azurite_server,
    "fake_gcs": partial(fake_gcs_server, backend="filesystem"),
}


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_server_killed_in_a_download_or_an_upload_and_restarted_loses_nothing(
    tmp_path: Path, kind: str
) -> None:
    """It forgets the parts that it had: the upload begins again where it can."""
    digest, other = digest_of(data := make_blob(30 * MIB)), digest_of(more := make_blob(30 * MIB, seed=2))
    with SERVERS[kind](tmp_path) as server:
        async with running(server.options(bucket := server.bucket(), retry=PATIENT)) as store:
            await store.put(digest, data)
            await trio.to_thread.run_sync(server.wait_until_saved, f"cas/{key_text(digest)}")
            async with store.open(digest) as reader, trio.open_nursery() as nursery:
                first = b"".join(map(bytes, await reader.receive_parts(1000)))
                server.kill()
                nursery.start_soon(trio.to_thread.run_sync, server.start)
                assert first + await drain(reader, taken=1000) == data
            source = KilledAtHalf(server, more, rewindable=True)
            await store.write(other, source)
            assert source.killed
            assert await read(store, other) == more
        assert set(server.objects(bucket)) == {f"cas/{key_text(each)}" for each in (digest, other)}
        assert server.open_uploads(bucket) == []


# ---------------------------------------------------------------------------------------------------------- the config


@pytest.mark.parametrize(("provider", "options", "where"), [
    ("azure", {"account_name": ""}, "account_name"), ("azure", {"container": ""}, "container"),
    ("azure", {"bucket": "b"}, "bucket"), ("azure", {"region": "westeurope"}, "region"),
    ("azure", {"endpoint": "http://x", "insecure_allow_http": False}, "endpoint"),
    ("azure", {"sas_url": "http://x?sig=hidden", "insecure_allow_http": False}, "sas_url"),
    ("azure", {"sas_url": "sig=hidden"}, "sas_url"),
    ("gcs", {"bucket": ""}, "bucket"), ("gcs", {"container": "c"}, "container"),
    ("gcs", {"region": "europe-west1"}, "region"),
    ("gcs", {"endpoint": "http://x", "insecure_allow_http": False}, "endpoint"),
])
def test_options_that_cannot_work_are_refused(provider: str, options: dict[str, object], where: str) -> None:
    enough = {"azure": {"account_name": "a", "container": "c"}, "gcs": {"bucket": "b"}}[provider]
    CloudObjectStoreOptions(provider=provider, **enough).check()
    with pytest.raises(ConfigError) as caught:
        CloudObjectStoreOptions(**{"provider": provider, **enough, **options}).check()
    assert caught.value.path == where
    assert "hidden" not in str(caught.value)

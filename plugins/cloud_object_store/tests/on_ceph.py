"""The oracle: Ceph's gateway, a production S3. Run by `./dev ceph` alone, which installs it: two minutes of their own,
so this file is not among those that pytest collects by their names.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
from ceph_server import CephServer, ceph_server, missing
from cloud_support import QUICK, options_for
from nl_cloud_object_store import CloudObjectStore
from nl.plugin import ActionKey, BlobNotFoundError, RetryOptions, digest_of, key_text
from test_cloud_conformance import OverServer

from nl.testing import BareContext, PartsReader, drain, make_blob, read, split, started

MIB = 1024 * 1024
PATIENT = RetryOptions(max_retries=13, delay=0.005)
"""80 s in all; pauses double."""

if missing():
    pytest.skip("NOT TESTED AGAINST CEPH: it is not installed (as root: ./dev ceph)", allow_module_level=True)


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephServer]:
    with ceph_server(tmp_path_factory.mktemp("ceph")) as server:
        yield server


class TestOverCeph(OverServer):
    SERVER = "ceph"


def running(server: CephServer, bucket: str, *, retry: RetryOptions = QUICK):
    return started(CloudObjectStore(options_for(bucket, server.url, remember_s=0, retry=retry), BareContext()))


async def test_100_mib_in_parts_are_whole_and_in_ranges(ceph: CephServer) -> None:
    digest = digest_of(data := make_blob(100 * MIB))
    async with running(ceph, bucket := ceph.bucket()) as store:
        await store.write(digest, PartsReader(split(data, 1 << 20)))
        assert ceph.objects(bucket) == {f"cas/{key_text(digest)}": len(data)}
        assert await read(store, digest) == data
        for offset in (0, 5 * MIB - 1, 5 * MIB, 99 * MIB, 100 * MIB - 1):
            assert await read(store, digest, offset=offset, length=70_000) == data[offset : offset + 70_000]
    assert ceph.open_uploads(bucket) == []


async def test_a_cancelled_upload_is_aborted(ceph: CephServer) -> None:
    digest = digest_of(data := make_blob(30 * MIB))
    async with running(ceph, bucket := ceph.bucket()) as store:
        with trio.CancelScope() as scope:

            class Source(PartsReader):
                async def receive_parts(self, max_bytes: int = 256 * 1024):
                    if sum(map(len, self._parts)) < 12 * MIB:
                        scope.cancel()
                    return await super().receive_parts(max_bytes)

            await store.write(digest, Source(split(data, 1_000_000)))
        assert scope.cancelled_caught
        assert ceph.open_uploads(bucket) == []
        assert ceph.objects(bucket) == {}


async def test_two_stores_share_a_bucket(ceph: CephServer) -> None:
    digest, action = digest_of(data := make_blob(7 * MIB)), ActionKey(*digest_of(b"an action"))
    bucket = ceph.bucket()
    async with running(ceph, bucket) as one, running(ceph, bucket) as two:
        await one.put(digest, data)
        await one.put(action, b"first")
        assert await two.has([digest, action]) == [len(data), 5]
        assert await read(two, digest) == data
        await two.put(action, b"second")
        assert await one.get(action) == b"second"
        await two.delete([digest])
        with pytest.raises(BlobNotFoundError):
            await read(one, digest)


# last: a gateway that was killed keeps its successor waiting for half a minute


async def test_the_gateway_killed_in_an_upload_and_restarted_loses_nothing(ceph: CephServer) -> None:
    """Unlike the servers of the other tests it keeps the parts that it had."""
    digest = digest_of(data := make_blob(40 * MIB))
    async with running(ceph, bucket := ceph.bucket(), retry=PATIENT) as store:

        class Source(PartsReader):
            killed = False

            async def receive_parts(self, max_bytes: int = 256 * 1024):
                if not self.killed and sum(map(len, self._parts)) < 20 * MIB:
                    self.killed = True
                    ceph.kill()
                    nursery.start_soon(trio.to_thread.run_sync, ceph.start)
                return await super().receive_parts(max_bytes)

        source = Source(split(data, 1_000_000))
        async with trio.open_nursery() as nursery:
            await store.write(digest, source)
        assert source.killed
        assert await read(store, digest) == data
    assert ceph.open_uploads(bucket) == []


async def test_the_gateway_killed_in_a_download_and_restarted_loses_nothing(ceph: CephServer) -> None:
    digest = digest_of(data := make_blob(40 * MIB))
    async with running(ceph, ceph.bucket(), retry=PATIENT) as store:
        await store.put(digest, data)
        async with store.open(digest) as reader, trio.open_nursery() as nursery:
            first = b"".join(map(bytes, await reader.receive_parts(1000)))
            ceph.kill()
            nursery.start_soon(trio.to_thread.run_sync, ceph.start)
            assert first + await drain(reader, taken=1000) == data

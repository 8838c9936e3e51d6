"""Blobs of a grpc store as zstd on the wire: where a foreign server offers it, and what happens where it fails."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from nl.model.caller import caused_by
from nl.plugin import (
    CHUNK,
    BlobNotFoundError,
    BytesReader,
    CoderMemory,
    CorruptBlobError,
    Digest,
    DigestFunction,
    ExhaustedError,
    Store,
    UnavailableError,
    UploadMismatchError,
    digest_of,
)
from nl.stores.grpc import GrpcRetry, GrpcStore
from nl.stores.grpc.options import ReadBatching
from nl.testing import PartsReader, drain, make_blob, read, same, split, started
from nl.testing.readers import FailingReader
from tests.support.foreign_server import PIECE, Fault, ForeignServer, fail
from tests.support.grpc_stores import grpc_store, remote_cas

SIZE = 4_000_000
ZSTD = 1
LEAST = 64 * 1024


def packable(size: int, *, seed: int = 0) -> bytes:
    """Bytes that pack to a third or so."""
    return make_blob(size // 3 + 1, seed=seed).hex().encode()[:size].ljust(size, b".")


def kept(server: ForeignServer, size: int = SIZE) -> tuple[Digest, bytes]:
    digest = digest_of(data := packable(size))
    server.put(data, digest)
    return digest, data


@pytest.fixture
def server() -> Iterator[ForeignServer]:
    with ForeignServer(offers=(ZSTD,)).running() as running:
        yield running


def packing_store(server: ForeignServer, **more: Any) -> GrpcStore:
    return grpc_store(server.port, experimental_remote_cache_compression=True, **more)


@asynccontextmanager
async def packing(server: ForeignServer, **more: Any) -> AsyncIterator[Store]:
    async with started(packing_store(server, **more)) as store:
        yield store


def names(server: ForeignServer, method: str) -> list[str]:
    """Which way each call of a method asked for."""
    return [
        "packed" if "compressed-blobs/zstd/" in request.resource_name else "plain"
        for call, request in zip(server.calls, server.requests, strict=True)
        if call == method
    ]


async def store_and_load(store: Store, data: bytes, function: DigestFunction = DigestFunction.SHA256) -> Digest:
    digest = digest_of(data, function)
    await store.write(digest, PartsReader(split(data, 70_000)))
    assert same(await read(store, digest), data)
    return digest


# --- who packs


@pytest.mark.parametrize("function", list(DigestFunction))
async def test_blobs_come_and_go_packed_where_config_and_server_want_it(
    server: ForeignServer, function: DigestFunction
) -> None:
    async with packing(server, instance_name="a/b") as store:
        digest = await store_and_load(store, data := packable(SIZE), function)
        await store.put(digest_of(more := packable(SIZE, seed=1)), more)
        counts = store.statistics()
        assert (counts["read_packed"], counts["written_packed"], counts["retries"]) == (1, 2, 0)
    assert server.blobs[digest.hash, SIZE] == data
    assert 0 < server.packed[digest.hash, SIZE] < 0.7 * SIZE
    middle = "blake3/" if function is DigestFunction.BLAKE3 else ""
    assert server.requests[2].resource_name == f"a/b/compressed-blobs/zstd/{middle}{digest.hash}/{SIZE}"


@pytest.mark.parametrize(("offers", "wants"), [((), True), ((2, 3), True), ((ZSTD,), False), ((ZSTD,), None)])
async def test_blobs_go_as_they_are_where_config_or_server_do_not_want_it(
    offers: tuple[int, ...], wants: bool | None
) -> None:
    with ForeignServer(offers=offers).running() as server:
        async with remote_cas(server.port, experimental_remote_cache_compression=wants) as store:
            await store_and_load(store, packable(SIZE))
            assert store.statistics()["read_packed"] == store.statistics()["written_packed"] == 0
        assert names(server, "Write") == names(server, "Read") == ["plain"]


async def test_a_server_that_does_not_say_what_it_offers_gets_blobs_as_they_are(server: ForeignServer) -> None:
    server.plan("GetCapabilities", fail("UNIMPLEMENTED"))
    async with packing(server) as store:
        await store_and_load(store, packable(SIZE))
    assert names(server, "Write") == names(server, "Read") == ["plain"]


async def test_ranges_and_small_blobs_go_as_they_are(server: ForeignServer) -> None:
    digest, data = kept(server)
    async with packing(server, experimental_read_batching=ReadBatching(max_blob_size_bytes=1000)) as store:
        assert same(await read(store, digest, length=SIZE - 1), data[:-1])
        assert same(await read(store, digest, offset=1), data[1:])
        assert names(server, "Read") == ["plain"] * 2
        server.calls.clear()
        server.requests.clear()
        for size in (LEAST - 1, LEAST):
            await store_and_load(store, packable(size))
    assert names(server, "Write") == names(server, "Read") == ["plain", "packed"]


async def test_names_as_before_are_so_for_packed_blobs_too(server: ForeignServer) -> None:
    async with packing(server, use_legacy_resource_names=True) as store:
        digest = await store_and_load(store, packable(SIZE), DigestFunction.BLAKE3)
    assert server.requests[-1].resource_name == f"compressed-blobs/zstd/{digest.hash}/{SIZE}"
    assert server.requests[-2].resource_name.split("/")[2:] == ["compressed-blobs", "zstd", digest.hash, str(SIZE)]


async def test_action_results_are_never_packed_and_who_wants_it_is_told(
    server: ForeignServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with packing(server, kind="ac"):
            pass
        assert "experimental_remote_cache_compression does nothing for action results" in caplog.text
        caplog.clear()
        async with packing(server):
            pass
        assert not caplog.text


async def test_blobs_that_get_no_memory_go_as_they_are_and_give_back_what_others_got(server: ForeignServer) -> None:
    digest, data = kept(server)
    memory = CoderMemory(20 * 1024 * 1024)
    async with packing(server, coder_memory=memory) as store:
        async with memory.reading(9 * 1024 * 1024):
            assert same(await read(store, digest), data)
            await store.put(digest_of(more := packable(SIZE, seed=1)), more)
        assert same(await read(store, digest), data)
        await store.put(digest_of(more := packable(SIZE, seed=2)), more)
        async with store.open(digest) as reader:
            await reader.receive_parts(10)
            assert SIZE < memory.used < SIZE + 3 * 1024 * 1024
        assert memory.used == 0
    assert names(server, "Read") == ["plain", "packed", "packed"] and names(server, "Write") == ["plain", "packed"]


# --- reading


async def test_a_packed_read_that_breaks_goes_on_plain_at_the_byte_where_it_broke_off(server: ForeignServer) -> None:
    digest, data = kept(server)
    server.plan("Read", fail("UNAVAILABLE", after=20 * PIECE), fail("UNAVAILABLE", after=5 * PIECE))
    async with packing(server) as store:
        assert same(await read(store, digest), data)
        assert store.statistics()["retries"] == 2
    assert names(server, "Read") == ["packed", "plain", "plain"]
    assert 0 == server.offsets[0] < server.offsets[1] < server.offsets[2]


async def test_a_packed_read_that_fails_at_its_end_is_ended_plain(server: ForeignServer) -> None:
    digest, data = kept(server)
    server.plan("Read", fail("UNAVAILABLE", after=SIZE))
    async with packing(server) as store:
        assert same(await read(store, digest), data)
    assert names(server, "Read") == ["packed", "plain"] and 0 < server.offsets[1] < SIZE


async def test_a_blob_that_is_not_there_is_missing_and_asked_for_once(server: ForeignServer) -> None:
    digest = digest_of(packable(SIZE))
    async with packing(server) as store:
        with pytest.raises(BlobNotFoundError) as caught:
            await read(store, digest)
    assert caught.value.key == digest and server.count("Read") == 1


@pytest.mark.parametrize(("code", "kind"), [("RESOURCE_EXHAUSTED", ExhaustedError), ("DATA_LOSS", CorruptBlobError)])
async def test_what_would_be_in_vain_is_not_tried_plain(
    server: ForeignServer, code: str, kind: type[Exception]
) -> None:
    digest, _ = kept(server)
    server.plan("Read", fail(code))
    async with packing(server) as store:
        with pytest.raises(kind, match=f"Read of {digest}"):
            await read(store, digest)
    assert server.count("Read") == 1


async def test_who_never_tries_again_does_not_try_plain_either(server: ForeignServer) -> None:
    digest, data = kept(server)
    server.plan("Read", fail("UNAVAILABLE"))
    server.plan("Write", fail("UNAVAILABLE"))
    async with packing(server, retry=GrpcRetry(max_retries=0)) as store:
        with pytest.raises(UnavailableError):
            await read(store, digest)
        with pytest.raises(UnavailableError):
            await store.put(digest_of(more := packable(SIZE, seed=1)), more)
    assert server.count("Read") == server.count("Write") == 1


async def test_a_server_that_does_not_do_what_it_offers_is_asked_plain_at_once() -> None:
    with ForeignServer(offers=(ZSTD,), packs=False).running() as server:
        async with packing(server, retry=GrpcRetry(max_retries=0)) as store:
            await store_and_load(store, packable(SIZE))
        assert names(server, "Write") == names(server, "Read") == ["packed", "plain"]


@pytest.mark.parametrize("code", ["UNIMPLEMENTED", "INVALID_ARGUMENT", "FAILED_PRECONDITION"])
async def test_a_server_that_refuses_what_it_offers_is_asked_plain(server: ForeignServer, code: str) -> None:
    server.plan("Write", fail(code))
    server.plan("Read", fail(code))
    async with packing(server, retry=GrpcRetry(max_retries=0)) as store:
        await store_and_load(store, packable(SIZE))
    assert names(server, "Write") == names(server, "Read") == ["packed", "plain"]


@pytest.mark.parametrize("spoils", [lambda packed: b"plain " + packed, lambda packed: b""], ids=["plain", "nothing"])
async def test_what_comes_packed_and_is_not_is_asked_for_plain(
    server: ForeignServer, spoils: Any, caplog: pytest.LogCaptureFixture
) -> None:
    digest, data = kept(server)
    server.plan("Read", Fault(spoils=spoils))
    async with packing(server, max_concurrent_requests=1) as store:
        with trio.fail_after(60):  # in its own place: another one there is not
            assert same(await read(store, digest), data)
        assert store.statistics()["read_packed"] == 0
    assert names(server, "Read") == ["packed", "plain"]
    assert f"what came packed for {digest} is wrong" in caplog.text


@pytest.mark.parametrize(("spoils", "why"), [
    (lambda packed: packed[:-10], "ends within a zstd frame"), (lambda packed: packed + b"x", "not a zstd frame"),
], ids=["short", "long"])  # fmt: skip
async def test_what_is_wrong_with_a_packed_blob_after_some_of_it_was_given_is_told(
    server: ForeignServer, spoils: Any, why: str
) -> None:
    digest, _ = kept(server)
    server.plan("Read", Fault(spoils=spoils))
    async with packing(server) as store:
        with pytest.raises(CorruptBlobError, match=f"'REMOTE' .*what came packed for {digest} is wrong: .*{why}"):
            await read(store, digest)
    assert server.count("Read") == 1


@pytest.mark.parametrize("alter", [lambda data: data[:-1], lambda data: data + b"x"], ids=["short", "long"])
async def test_a_packed_blob_of_another_size_is_no_blob(server: ForeignServer, alter: Any) -> None:
    digest, _ = kept(server)
    server.plan("Read", Fault(alter=alter))
    async with packing(server) as store:
        with pytest.raises(CorruptBlobError, match=str(digest)):
            await read(store, digest)


async def test_a_reader_of_a_packed_blob_keeps_to_what_it_is_asked_for_and_may_leave(server: ForeignServer) -> None:
    digest, data = kept(server, 300_000)
    async with packing(server, max_concurrent_requests=1) as store:
        async with store.open(digest) as reader:
            assert reader.size == digest.size
            assert same(await drain(reader, 10_000), data)
        for _ in range(33):
            async with store.open(digest) as reader:
                await reader.receive_parts(10)
        assert store.statistics()["read_packed"] == 34, "each gives its place back"
        with pytest.raises(OSError, match="the client is gone"):
            async with store.open(digest) as reader:
                raise OSError("the client is gone")
        with trio.fail_after(60):
            assert await store.has([digest]) == [digest.size]


async def test_what_goes_on_plain_has_the_same_name_and_headers_and_may_be_left_as_well(server: ForeignServer) -> None:
    digest = digest_of(data := packable(SIZE), DigestFunction.BLAKE3)
    server.put(data, digest)
    more = {"forward_headers": ("x-who",), "use_legacy_resource_names": True, "max_concurrent_requests": 1}
    server.plan("Read", fail("UNAVAILABLE", after=10 * PIECE))
    server.plan("Write", fail("UNAVAILABLE"))
    async with packing(server, instance_name="a", **more) as store:
        with caused_by((("x-who", "me"),)):
            async with store.open(digest) as reader:
                while server.count("Read") < 2:
                    assert await reader.receive_parts(100_000)
            with trio.fail_after(60):
                await store.put(digest_of(other := packable(SIZE, seed=1), DigestFunction.BLAKE3), other)
    calls = list(zip(server.calls, server.requests, strict=True))
    asked = [(call, each.resource_name.split("/")) for call, each in calls if call in ("Read", "Write")]
    assert [name for call, name in asked if call == "Read"] == [
        ["a", "compressed-blobs", "zstd", digest.hash, str(SIZE)], ["a", "blobs", digest.hash, str(SIZE)]
    ]
    assert [name[3:] for call, name in asked if call == "Write"] == [
        ["compressed-blobs", "zstd", digest_of(other, DigestFunction.BLAKE3).hash, str(SIZE)],
        ["blobs", digest_of(other, DigestFunction.BLAKE3).hash, str(SIZE)],
    ]
    sent = [headers.get("x-who") for call, headers in zip(server.calls, server.metadata, strict=True)
            if call != "GetCapabilities"]  # fmt: skip
    assert sent == ["me"] * 4


async def test_who_leaves_while_the_first_bytes_are_being_unpacked_gives_the_turn_back(server: ForeignServer) -> None:
    digest, data = kept(server)
    left = trio.CancelScope()

    async def leave() -> None:
        with left:
            await read(store, digest)

    async with started(store := packing_store(server, max_concurrent_requests=1)), trio.open_nursery() as nursery:
        threads = store.backend._packing.threads
        busy = [object() for _ in range(int(threads.total_tokens))]
        for each in busy:
            threads.acquire_on_behalf_of_nowait(each)
        nursery.start_soon(leave)
        with trio.fail_after(60):
            while not threads.statistics().tasks_waiting:
                await trio.sleep(0.01)
        left.cancel()
        for each in busy:
            threads.release_on_behalf_of(each)
        with trio.fail_after(60):
            assert same(await read(store, digest), data)
    assert left.cancelled_caught


# --- writing


@pytest.mark.parametrize("after", [0, 1_000_000])
async def test_a_packed_upload_that_breaks_is_sent_plain_from_the_start(server: ForeignServer, after: int) -> None:
    digest = digest_of(data := packable(SIZE))
    server.plan("Write", fail("UNAVAILABLE", after=after), fail("UNAVAILABLE", after=500_000))
    async with packing(server) as store:
        await store.write(digest, PartsReader(split(data, 70_000)))
        assert store.statistics()["written_packed"] == 0
    assert same(server.blobs[digest.hash, SIZE], data)
    assert names(server, "Write") == ["packed", "plain", "plain"]
    assert server.offsets[-2] == 0 < server.offsets[-1]


async def test_a_packed_upload_that_breaks_and_cannot_be_had_again_fails(server: ForeignServer) -> None:
    digest = digest_of(data := packable(20_000_000))
    server.plan("Write", fail("UNAVAILABLE", after=6_000_000))
    async with packing(server) as store:
        with pytest.raises(UnavailableError, match=f"Write of {digest}"):
            await store.write(digest, PartsReader(split(data, CHUNK)))
        await store.write(digest, BytesReader(data))
    assert server.blobs[digest.hash, digest.size] == data


async def test_a_server_that_had_the_blob_all_along_ends_a_packed_upload(server: ForeignServer) -> None:
    digest, data = kept(server)
    reader = PartsReader(split(data, 10_000))
    async with packing(server) as store:
        await store.write(digest, reader)
        assert not await reader.receive_parts()
        with pytest.raises(UploadMismatchError, match="more bytes than its digest says"):
            await store.write(digest, PartsReader(split(data + b"x", 10_000), size=-1))
    assert set(names(server, "Write")) == {"packed"}


async def test_a_server_that_says_ok_and_has_taken_less_is_not_believed(server: ForeignServer) -> None:
    digest = digest_of(data := packable(SIZE))
    server.plan("Write", Fault(commits=17))
    async with packing(server) as store:
        await store.put(digest, data)
    assert names(server, "Write") == ["packed", "plain"] and server.blobs[digest.hash, SIZE] == data


async def test_a_packed_upload_of_another_size_leaves_nothing(server: ForeignServer) -> None:
    digest = digest_of(data := packable(SIZE))
    async with packing(server) as store:
        for parts, what in (([data[:-1]], "ended after"), ([data, b"x"], "more bytes than its digest says")):
            with pytest.raises(UploadMismatchError, match=what):
                await store.write(digest, PartsReader(parts, size=-1))
        with pytest.raises(UploadMismatchError, match="the client left"):
            await store.write(digest, FailingReader([data], UploadMismatchError("the client left"), size=SIZE))
        assert await store.has([digest]) == [None]


async def test_a_packed_stream_that_stands_still_goes_on_plain_after_the_time_limit(
    server: ForeignServer, later: threading.Event
) -> None:
    digest, data = kept(server)
    server.plan("Read", Fault(held=later, after=PIECE))
    server.plan("Write", Fault(held=later))
    async with packing(server, rpc_timeout_s=0.6) as store:
        assert same(await read(store, digest), data)
        await store.put(digest_of(more := packable(SIZE, seed=1)), more)
    assert names(server, "Read")[:2] == names(server, "Write")[:2] == ["packed", "plain"]

"""The calls of a grpc store as a foreign server gets them: how many, how large, with which fields and headers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.cas.action_results import MAX_ACTION_RESULT_BYTES, seal
from nl.config.workers import ClientTlsOptions
from nl.model.caller import caused_by
from nl.plugin import (
    CHUNK,
    EMPTY_DIGESTS,
    MAX_WHOLE,
    SMALL,
    ActionKey,
    BlobNotFoundError,
    Buffer,
    BytesReader,
    ConfigError,
    CorruptBlobError,
    Digest,
    DigestFunction,
    ForwardsHeaders,
    InternalError,
    NlError,
    PermissionDeniedError,
    TooLargeError,
    UnavailableError,
    UploadMismatchError,
    digest_of,
)
from nl.stores.grpc import GrpcEndpoint, GrpcRetry
from nl.stores.grpc.options import ReadBatching
from nl.testing import PartsReader, drain, make_blob, read, split
from tests.support.foreign import REAPI
from tests.support.foreign_server import Fault, ForeignServer, fail
from tests.support.grpc_stores import QUICK, grpc_store, remote_cas

LARGE = 200_000
MESSAGE = 4 * 1024 * 1024 - 64 * 1024
"""What blobs take of a message at most."""
ACTION = ActionKey(*digest_of(b"action"))


def requests_of(server: ForeignServer, method: str) -> list[Any]:
    return [request for name, request in zip(server.calls, server.requests, strict=True) if name == method]


class TogetherReader(PartsReader):
    """Gives all that it has at once, in as many parts."""

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        parts: list[Buffer] = []
        while got := await super().receive_parts(max_bytes):
            parts.extend(map(bytes, got))  # which are valid until more is asked for
        return parts


# --- what the server says it takes


async def test_what_a_server_takes_is_asked_once_by_all_and_again_after_ten_minutes(
    server: ForeignServer, mock_clock
) -> None:
    blobs = [server.keep(100 + number) for number in range(20)]
    async with remote_cas(server.port) as store:
        for count, seconds in ((1, 590), (1, 20), (2, 0)):
            async with trio.open_nursery() as nursery:
                for digest, data in blobs:
                    nursery.start_soon(store.get, digest)
                    nursery.start_soon(store.put, digest, data)
                nursery.start_soon(store.put, digest_of(large := make_blob(LARGE)), large)
            assert server.count("GetCapabilities") == count
            mock_clock.jump(seconds)


@pytest.mark.parametrize(
    "code", ["UNIMPLEMENTED", "NOT_FOUND", "INVALID_ARGUMENT", "PERMISSION_DENIED", "UNAUTHENTICATED"]
)
async def test_a_server_that_does_not_say_what_it_takes_gets_batches_of_a_message(
    server: ForeignServer, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.plan("GetCapabilities", *[fail(code)] * 5)
    blobs = [(digest_of(data := make_blob(100_000, seed=number)), data) for number in range(50)]
    batching = ReadBatching(max_batch_bytes=64 * 1024 * 1024)
    async with remote_cas(server.port, experimental_read_batching=batching) as store:
        assert await store.put_many(blobs) == [None] * 50
    sizes = [sum(len(each.data) for each in request.requests) for request in requests_of(server, "BatchUpdateBlobs")]
    assert sum(sizes) == 5_000_000 and MESSAGE - 101_000 < max(sizes) <= MESSAGE
    assert server.count("GetCapabilities") == 1
    assert f"{MESSAGE} bytes a batch are assumed" in caplog.text


async def test_a_server_that_says_nothing_of_its_cache_is_one_that_does_not_say(server: ForeignServer) -> None:
    server.plan("GetCapabilities", Fault(drops=True))
    digest = digest_of(data := make_blob(LARGE))
    async with remote_cas(server.port) as store:
        await store.put(digest, data)
    assert server.blobs[digest.hash, LARGE] == data


async def test_what_a_server_takes_is_asked_again_if_there_was_no_answer(server: ForeignServer) -> None:
    digest, data = server.keep(100)
    server.plan("GetCapabilities", fail("UNAVAILABLE"), fail("INTERNAL"))
    async with remote_cas(server.port) as store:
        assert await store.get(digest) == data
        assert server.count("GetCapabilities") == 3


async def test_no_answer_to_what_a_server_takes_fails_who_asked_and_nobody_later(server: ForeignServer) -> None:
    digest, data = server.keep(100)
    server.plan("GetCapabilities", *[fail("UNAVAILABLE", says="gone fishing")] * 2)
    async with remote_cas(server.port, retry=GrpcRetry(max_retries=1, delay=0.001)) as store:
        with pytest.raises(UnavailableError, match="GetCapabilities: gone fishing"):
            await store.get(digest)
        assert await store.get(digest) == data


async def test_who_waits_for_what_a_server_takes_fails_with_who_asks_and_not_one_after_the_other(
    server: ForeignServer, later: threading.Event
) -> None:
    away = fail("UNAVAILABLE", says="gone fishing")
    server.plan("GetCapabilities", replace(away, held=later), *[away] * 20)
    outcomes: list[NlError] = []
    async with remote_cas(server.port, retry=GrpcRetry(max_retries=1, delay=0.001)) as store:

        async def upload(data: bytes) -> None:
            with pytest.raises(UnavailableError, match="GetCapabilities: gone fishing") as failed:
                await store.put(digest_of(data), data)
            outcomes.append(failed.value)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(upload, make_blob(LARGE, seed=number))
            await wait_all_tasks_blocked()
            later.set()
    assert server.count("GetCapabilities") == 2
    assert len(set(map(id, outcomes))) == 5, "each has an error of its own"


@pytest.mark.parametrize(("says", "wants", "most"), [(100 * 1024 * 1024, 64 * 1024 * 1024, MESSAGE),
                                                     (1_000_000, 64 * 1024 * 1024, 1_000_000),
                                                     (1_000_000, 700_000, 700_000)])  # fmt: skip
async def test_a_batch_is_as_large_as_server_config_and_message_allow(says: int, wants: int, most: int) -> None:
    with ForeignServer(max_batch=says).running() as server:
        blobs = [server.keep(100_000, seed=number) for number in range(50)]
        async with remote_cas(
            server.port, experimental_read_batching=ReadBatching(max_batch_bytes=wants, max_queued_bytes=10**9)
        ) as store:
            got = await store.get_many([digest for digest, _ in blobs])
            assert [bytes(each) for each in got if not isinstance(each, NlError)] == [data for _, data in blobs]
            server.blobs.clear()
            assert await store.put_many(blobs) == [None] * 50
        for method, size_of in (("BatchReadBlobs", lambda each: sum(one.size_bytes for one in each.digests)),
                                ("BatchUpdateBlobs", lambda each: sum(len(one.data) for one in each.requests))):
            sizes = [size_of(request) for request in requests_of(server, method)]
            assert most - 101_000 < max(sizes) <= most, sizes


# --- how many at once


async def test_blobs_as_small_as_the_config_says_travel_in_batches_and_larger_ones_alone(server: ForeignServer) -> None:
    small, large = server.keep(1000), server.keep(1001)
    batching = ReadBatching(max_blob_size_bytes=1000)
    async with remote_cas(server.port, experimental_read_batching=batching) as store:
        for (digest, data), read_by, written_by in (
            (small, "BatchReadBlobs", "BatchUpdateBlobs"), (large, "Read", "Write")
        ):  # fmt: skip
            server.calls.clear()
            server.requests.clear()
            assert await store.get(digest) == data
            assert await store.get_many([digest]) == [data]
            assert await read(store, digest) == data
            assert await read(store, digest, offset=10, length=20) == data[10:30]
            await store.put(digest, data)
            await store.put_many([(digest, data)])
            await store.write(digest, PartsReader([data]))
            if read_by == "Read":
                assert [(each.read_offset, each.read_limit) for each in requests_of(server, "Read")][-1] == (10, 20)
            assert [call for call in server.calls if call != "GetCapabilities"] == [read_by] * 4 + [written_by] * 3


async def test_each_of_those_whose_lookups_travel_together_is_answered(
    server: ForeignServer, later: threading.Event
) -> None:
    there, lacking = [server.keep(100, seed=seed)[0] for seed in (1, 2)], [digest_of(b"one"), digest_of(b"two")]
    asked = [[there[0]], [lacking[0]], [there[1], lacking[1]], [lacking[1], there[0]]]
    found: list[Any] = [None] * len(asked)

    async def ask(at: int) -> None:
        found[at] = await store.has(asked[at])

    server.plan("FindMissingBlobs", Fault(held=later), Fault(held=later))
    async with remote_cas(server.port) as store, trio.open_nursery() as nursery:
        for at in range(2):
            nursery.start_soon(store.has, [there[at]])
            await trio.to_thread.run_sync(server.wait_for, "FindMissingBlobs", at + 1)
        for at in range(len(asked)):
            nursery.start_soon(ask, at)
        await wait_all_tasks_blocked()
        later.set()
    assert found == [[100], [None], [100, None], [None, 100]]
    assert server.count("FindMissingBlobs") == 3


async def test_a_blob_that_several_ask_for_comes_once_in_a_batch_and_to_each(
    server: ForeignServer, later: threading.Event
) -> None:
    (first, _), (digest, data) = server.keep(100, seed=1), server.keep(1000, seed=2)
    got: list[bytes] = []

    async def get() -> None:
        got.append(bytes(await store.get(digest)))

    server.plan("BatchReadBlobs", Fault(held=later))
    batching = ReadBatching(dispatch_slots=1)
    async with (
        remote_cas(server.port, experimental_read_batching=batching) as store, trio.open_nursery() as nursery,
    ):
        nursery.start_soon(store.get, first)
        await trio.to_thread.run_sync(server.wait_for, "BatchReadBlobs", 1)
        for _ in range(3):
            nursery.start_soon(get)
        await wait_all_tasks_blocked()
        later.set()
    assert got == [data] * 3
    assert [len(each.digests) for each in requests_of(server, "BatchReadBlobs")] == [1, 1]


async def test_what_travels_in_batches_is_had_whole_only_up_to_the_size_that_is_small_everywhere(
    server: ForeignServer,
) -> None:
    """A reader holds no more of a blob than it is asked for, however large a blob the config wants in batches."""
    small, large = server.keep(SMALL), server.keep(SMALL + 1)
    batching = ReadBatching(max_blob_size_bytes=10 * SMALL)
    async with remote_cas(server.port, experimental_read_batching=batching) as store:
        for (digest, data), call in ((small, "BatchReadBlobs"), (large, "Read")):
            assert await read(store, digest) == data
            assert server.calls[-1] == call


@pytest.mark.parametrize("many", [False, True])
async def test_who_leaves_an_upload_may_change_its_bytes_at_once(
    server: ForeignServer, later: threading.Event, many: bool
) -> None:
    """A batch is not given up with one of its callers: what it carries is its own."""
    data = bytearray(original := make_blob(10_000))
    digest, other = digest_of(original), digest_of(b"other")
    left = trio.CancelScope()

    async def upload() -> None:
        with left:
            await (store.put_many([(digest, data)]) if many else store.put(digest, data))

    async with remote_cas(server.port, max_concurrent_requests=1) as store, trio.open_nursery() as nursery:
        await store.put(other, b"other")  # what the server takes is known
        server.plan("FindMissingBlobs", Fault(held=later))
        nursery.start_soon(store.has, [other])
        await trio.to_thread.run_sync(server.wait_for, "FindMissingBlobs", 1)
        nursery.start_soon(upload)
        with trio.fail_after(60):
            while store.statistics()["write_batches"] < 2:
                await trio.sleep(0.01)
        left.cancel()
        data[:] = bytes(len(data))
        later.set()
        with trio.fail_after(60):
            while (digest.hash, digest.size) not in server.blobs:
                await trio.sleep(0.01)
    assert left.cancelled_caught
    assert server.blobs[digest.hash, digest.size] == original


async def test_a_small_upload_that_goes_on_and_on_is_not_gathered(server: ForeignServer) -> None:
    digest = digest_of(b"x" * 1000)
    reader = PartsReader([b"x" * 1000] * 50, size=-1)
    async with remote_cas(server.port) as store:
        with pytest.raises(UploadMismatchError, match="more bytes than its digest says"):
            await store.write(digest, reader)
    assert reader.calls <= 2


async def test_a_batch_has_four_thousand_blobs_at_most(server: ForeignServer) -> None:
    blobs = [(digest_of(data := b"%d" % number), data) for number in range(4100)]
    async with remote_cas(server.port) as store:
        assert await store.put_many(blobs) == [None] * 4100
        assert await store.get_many([digest for digest, _ in blobs]) == [data for _, data in blobs]
    counts = [len(request.requests) for request in requests_of(server, "BatchUpdateBlobs")]
    assert sum(counts) == 4100 and max(counts) == 4000
    counts = [len(request.digests) for request in requests_of(server, "BatchReadBlobs")]
    assert sum(counts) == 4100 and max(counts) == 4000


@pytest.mark.parametrize("slots", [1, 3])
async def test_as_many_batches_of_each_sort_are_under_way_as_the_config_says_and_two_of_lookups(
    server: ForeignServer, later: threading.Event, slots: int
) -> None:
    blobs = [server.keep(100 + number) for number in range(6)]
    for method in ("FindMissingBlobs", "BatchReadBlobs", "BatchUpdateBlobs"):
        server.plan(method, *[Fault(held=later)] * 6)
    async with remote_cas(server.port, experimental_read_batching=ReadBatching(dispatch_slots=slots)) as store:
        await store.put(digest_of(large := make_blob(LARGE)), large)  # what the server takes is known
        async with trio.open_nursery() as nursery:
            for digest, data in blobs:
                nursery.start_soon(store.get, digest)
                nursery.start_soon(store.put, digest, data)
                nursery.start_soon(store.has, [digest])
                await wait_all_tasks_blocked()
            counts = store.statistics()
            assert (counts["read_batches"], counts["read_in_batches"]) == (slots, slots)
            assert (counts["write_batches"], counts["written_in_batches"]) == (slots, slots)
            assert counts["lookup_batches"] == 2
            later.set()
        counts = store.statistics()
        assert (counts["read_batches"], counts["read_in_batches"]) == (slots + 1, 6)


@pytest.mark.parametrize("method", ["BatchReadBlobs", "BatchUpdateBlobs"])
async def test_no_more_gathers_for_the_next_batch_than_the_config_says(
    server: ForeignServer, later: threading.Event, method: str
) -> None:
    blobs = [server.keep(100, seed=seed) for seed in range(12)]
    batching = ReadBatching(dispatch_slots=1, max_queued_bytes=1000)  # a blob counts with what else it takes: 228
    server.plan(method, Fault(held=later))
    async with remote_cas(server.port, experimental_read_batching=batching) as store, trio.open_nursery() as nursery:
        for digest, data in blobs:
            if method == "BatchReadBlobs":
                nursery.start_soon(store.get, digest)
            else:
                nursery.start_soon(store.put, digest, data)
            if digest is blobs[0][0]:
                await trio.to_thread.run_sync(server.wait_for, method, 1)
        await wait_all_tasks_blocked()
        later.set()
    field = "digests" if method == "BatchReadBlobs" else "requests"
    counts = [len(getattr(request, field)) for request in requests_of(server, method)]
    assert counts[:2] == [1, 4] and sum(counts) == 12 and max(counts) == 4


async def test_two_hundred_thousand_lookups_gather_at_most(server: ForeignServer, later: threading.Event) -> None:
    server.plan("FindMissingBlobs", *[Fault(held=later)] * 2)
    digests = [digest_of(b"x")] * 10_000
    async with remote_cas(server.port) as store, trio.open_nursery() as nursery:
        for _ in range(24):
            nursery.start_soon(store.has, digests)
            await wait_all_tasks_blocked()
        assert store.backend._lookups._queued == 200_000
        nursery.cancel_scope.cancel()


async def test_the_statistics_count_calls_retries_failures_and_connections(server: ForeignServer) -> None:
    digest, _ = server.keep(100)
    server.plan("BatchReadBlobs", fail("UNAVAILABLE"), fail("UNKNOWN"), fail("UNAVAILABLE"))
    async with remote_cas(server.port, retry=GrpcRetry(max_retries=2, delay=0.001)) as store:
        assert store.statistics()["connections"] == 0
        with pytest.raises(UnavailableError):
            await store.get(digest)
        counts = store.statistics()
        assert counts["servers"] == f"127.0.0.1:{server.port}"
        assert [counts[name] for name in ("connections", "calls", "retries", "failures")] == [1, 4, 2, 1]


async def test_as_many_connections_are_kept_as_the_config_says(server: ForeignServer) -> None:
    digest, data = server.keep(3_000_000)
    async with remote_cas(server.port, connections_per_endpoint=3) as store:
        with trio.fail_after(60):
            while store.statistics()["connections"] < 3:
                assert await store.get(digest) == data
        assert store.statistics()["connections"] == 3


async def test_as_many_calls_share_a_connection_as_the_endpoint_says(
    server: ForeignServer, later: threading.Event
) -> None:
    endpoint = GrpcEndpoint(address=f"grpc://127.0.0.1:{server.port}", concurrency_limit=2)
    digests = [server.keep(LARGE + number)[0] for number in range(5)]
    server.plan("Read", *[Fault(held=later)] * 5)
    async with remote_cas(endpoints=(endpoint,)) as store, trio.open_nursery() as nursery:
        for digest in digests:
            nursery.start_soon(store.get, digest)
        await trio.to_thread.run_sync(server.wait_for, "Read", 2)
        await trio.sleep(0.05)  # a third, if it were sent, would mostly be here by now
        assert server.count("Read") == 2
        later.set()
    assert server.count("Read") == 5


# --- what stands in them


@pytest.mark.parametrize("function", list(DigestFunction))
async def test_every_request_says_the_digest_function_and_the_instance(
    server: ForeignServer, function: DigestFunction
) -> None:
    small, large = make_blob(100), make_blob(LARGE)
    action = ActionKey(*digest_of(b"action", function))
    async with remote_cas(server.port, instance_name="a/b") as store:
        for data in (small, large):
            digest = digest_of(data, function)
            await store.put(digest, data)
            assert await store.put_many([(digest, data)]) == [None]
            assert await store.has([digest]) == [len(data)]
            assert await store.get(digest) == data
            assert await store.get_many([digest]) == [data]
    async with remote_cas(server.port, kind="ac", instance_name="a/b") as store:
        await store.put(action, seal(b""))
        assert await store.has([action]) == [len(await store.get(action))]
    for call, request in zip(server.calls, server.requests, strict=True):
        if call in ("Read", "Write"):
            name = "blake3/" if function is DigestFunction.BLAKE3 else ""
            assert request.resource_name.startswith("a/b/")
            assert request.resource_name.endswith(f"/blobs/{name}{digest_of(large, function).hash}/{LARGE}")
        else:
            assert request.instance_name == "a/b", call
            assert call == "GetCapabilities" or request.digest_function == int(function), call
    assert len(set(server.calls)) == 8


async def test_digests_of_both_functions_travel_in_batches_of_their_own(server: ForeignServer) -> None:
    blobs = [(digest_of(data := make_blob(100 + number), function), data)
             for number in range(5) for function in DigestFunction]
    async with remote_cas(server.port) as store:
        assert await store.put_many(blobs) == [None] * 10
        assert await store.get_many([digest for digest, _ in blobs]) == [data for _, data in blobs]
        assert await store.has([digest for digest, _ in blobs]) == [len(data) for _, data in blobs]
    of = {(digest.hash, digest.size): int(digest.function) for digest, _ in blobs}
    for request in requests_of(server, "BatchUpdateBlobs"):
        assert {of[each.digest.hash, each.digest.size_bytes] for each in request.requests} == {request.digest_function}
    for request in requests_of(server, "BatchReadBlobs"):
        assert {of[each.hash, each.size_bytes] for each in request.digests} == {request.digest_function}
    for request in requests_of(server, "FindMissingBlobs"):
        assert {of[each.hash, each.size_bytes] for each in request.blob_digests} == {request.digest_function}


async def test_the_headers_of_the_request_that_causes_a_call_go_with_it_by_name(server: ForeignServer) -> None:
    small, large = server.keep(100), server.keep(LARGE)
    new = digest_of(more := make_blob(LARGE, seed=1))
    given = {"headers": {"X-Team": "ours", "x-own": "own"}, "forward_headers": ("X-Request-Id", "x-team")}
    server.plan("Write", fail("UNAVAILABLE"))
    async with remote_cas(server.port, **given) as blobs, remote_cas(server.port, kind="ac", **given) as results:
        assert blobs.capability(ForwardsHeaders).forwarded_headers() == {"x-request-id", "x-team"}
        with caused_by((("x-request-id", "r-1"), ("x-team", "theirs"), ("authorization", "Bearer t"))):
            assert await blobs.has([small[0], digest_of(b"x")]) == [100, None]
            assert await blobs.get(small[0]) == small[1]
            assert await blobs.get_many([small[0]]) == [small[1]]
            assert await read(blobs, large[0]) == large[1]
            await blobs.put_many([small])
            await blobs.put(*small)
            await blobs.put(new, more)
            await results.put(ACTION, seal(b""))
            await results.get(ACTION)
        for call, headers in zip(server.calls, server.metadata, strict=True):
            assert headers["x-own"] == "own" and "authorization" not in headers
            theirs = ("r-1", "theirs") if call != "GetCapabilities" else (None, "ours")
            assert (headers.get("x-request-id"), headers["x-team"]) == theirs, call
        assert len(set(server.calls)) == 9
        server.metadata.clear()
        await blobs.has([small[0]])
        assert server.metadata[0]["x-team"] == "ours" and "x-request-id" not in server.metadata[0]


async def test_jobs_with_other_headers_do_not_share_a_call(server: ForeignServer) -> None:
    blobs = [server.keep(100 + number) for number in range(10)]
    async with remote_cas(server.port, forward_headers=("x-who",)) as store, trio.open_nursery() as nursery:
        for number, (digest, data) in enumerate(blobs):
            with caused_by((("x-who", str(number % 2)),)):
                nursery.start_soon(store.get, digest)
                nursery.start_soon(store.put, digest, data)
                nursery.start_soon(store.has, [digest])
    for call, request, headers in zip(server.calls, server.requests, server.metadata, strict=True):
        asked = {"BatchReadBlobs": "digests", "FindMissingBlobs": "blob_digests"}.get(call)
        if call == "BatchUpdateBlobs":
            sizes = [each.digest.size_bytes for each in request.requests]
        elif asked:
            sizes = [each.size_bytes for each in getattr(request, asked)]
        else:
            continue
        assert {str(size % 2) for size in sizes} == {headers["x-who"]}


async def test_what_a_client_sent_along_is_not_shown_in_what_the_server_says(server: ForeignServer) -> None:
    digest, _ = server.keep(LARGE)
    says = "not with 'Bearer client-token', client-token, or team-key of the config"
    server.plan("Read", fail("PERMISSION_DENIED", says=says))
    async with remote_cas(
        server.port, headers={"x-key": "basic team-key"}, forward_headers=("authorization",)
    ) as store:
        with caused_by((("authorization", "Bearer client-token"),)), pytest.raises(PermissionDeniedError) as caught:
            await store.get(digest)
    assert "not with '***', ***, or *** of the config" in str(caught.value)


async def test_nothing_of_a_secret_is_shown_either_in_what_the_server_says_of_one_blob_or_of_a_result_that_is_missing(
    server: ForeignServer,
) -> None:
    digest, data = server.keep(100)
    says = "'Bearer client-token' has no right"
    for method in ("BatchReadBlobs", "BatchUpdateBlobs"):
        server.plan(method, Fault(blob_code=7, says=says))
    server.plan("GetActionResult", fail("NOT_FOUND", says=says))
    told = []
    async with (
        remote_cas(server.port, forward_headers=("authorization",)) as blobs,
        remote_cas(server.port, kind="ac", forward_headers=("authorization",)) as results,
    ):
        with caused_by((("authorization", "Bearer client-token"),)):
            for call in (partial(blobs.get, digest), partial(blobs.put, digest, data), partial(results.get, ACTION)):
                with pytest.raises((PermissionDeniedError, BlobNotFoundError)) as caught:
                    await call()
                told.append(str(caught.value))
    assert all("'***' has no right" in each for each in told), told


def test_a_store_without_headers_to_forward_asks_for_none() -> None:
    assert grpc_store(1).capability(ForwardsHeaders) is None


# --- single answers


async def test_nothing_is_asked_about_nothing_and_the_empty_blob(server: ForeignServer) -> None:
    async with remote_cas(server.port) as store:
        assert await store.has([]) == [] and await store.get_many([]) == [] and await store.put_many([]) == []
        for digest in EMPTY_DIGESTS:
            await store.put(digest, b"")
            await store.write(digest, BytesReader(b""))
            assert await store.get(digest) == b"" == await read(store, digest)
            with pytest.raises(UploadMismatchError):
                await store.put(digest, b"x")
        empties = sorted(EMPTY_DIGESTS)
        assert await store.get_many(empties) == [b""] * len(empties)
        assert await store.put_many([(digest, b"") for digest in empties]) == [None] * len(empties)
    assert not server.calls


async def test_what_is_too_large_to_be_had_whole_is_not_asked_for(server: ForeignServer) -> None:
    async with remote_cas(server.port) as store:
        with pytest.raises(TooLargeError, match="must be streamed"):
            await store.get(Digest("ab" * 32, MAX_WHOLE + 1))
    assert not server.calls


async def test_a_range_of_no_bytes_is_of_a_blob_that_is_there(server: ForeignServer) -> None:
    digest, _ = server.keep(LARGE)
    missing = digest_of(b"x" * LARGE)
    async with remote_cas(server.port) as store:
        assert await read(store, digest, offset=LARGE) == b"" == await read(store, digest, length=0)
        with pytest.raises(BlobNotFoundError, match="'REMOTE'"):
            await read(store, missing, length=0)
    assert set(server.calls) == {"FindMissingBlobs"}


async def test_a_lookup_of_which_one_call_fails_says_of_no_blob_that_it_is_there(
    server: ForeignServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nl.stores.grpc.cas.LOOKUP_DIGESTS", 10)
    server.plan("FindMissingBlobs", *[Fault()] * 9, fail("FAILED_PRECONDITION", says="no"))
    async with remote_cas(server.port) as store:
        with pytest.raises(InternalError, match="FAILED_PRECONDITION: no"):
            await store.has([digest_of(b"%d" % number) for number in range(100)])
    assert server.count("FindMissingBlobs") == 10


async def test_what_is_wrong_with_a_lookup_is_told_to_all_who_asked(server: ForeignServer) -> None:
    server.plan("FindMissingBlobs", *[fail("FAILED_PRECONDITION", says="no")] * 4)
    async with remote_cas(server.port) as store:
        for digests in ([digest_of(b"x")], [digest_of(b"x"), digest_of(b"x", DigestFunction.BLAKE3)]):
            with pytest.raises(InternalError, match="FindMissingBlobs of 1 blobs: FAILED_PRECONDITION: no"):
                await store.has(digests)


@pytest.mark.parametrize(("code", "kind"), [(13, UnavailableError), (14, UnavailableError), (7, PermissionDeniedError),
                                            (99, UnavailableError), (15, CorruptBlobError)])  # fmt: skip
async def test_a_blobs_status_in_a_batch_means_what_it_means_of_a_call(
    server: ForeignServer, code: int, kind: type[NlError]
) -> None:
    digest, data = server.keep(100)
    async with remote_cas(server.port) as store:
        server.plan("BatchReadBlobs", Fault(blob_code=code))
        with pytest.raises(kind, match=f"BatchReadBlobs of {digest}.*as planned"):
            await store.get(digest)
        server.plan("BatchUpdateBlobs", Fault(blob_code=code))
        with pytest.raises(kind, match=f"BatchUpdateBlobs of {digest}.*as planned"):
            await store.put(digest, data)


@pytest.mark.parametrize("code", ["UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"])
async def test_every_blob_of_a_batch_that_is_refused_as_a_whole_travels_alone(server: ForeignServer, code: str) -> None:
    blobs = [server.keep(100 + number) for number in range(3)]
    server.plan("BatchReadBlobs", fail(code))
    server.plan("BatchUpdateBlobs", fail(code))
    async with remote_cas(server.port) as store:
        assert await store.get_many([digest for digest, _ in blobs]) == [data for _, data in blobs]
        server.blobs.clear()
        assert await store.put_many(blobs) == [None] * 3
    assert server.blobs == {(digest.hash, digest.size): data for digest, data in blobs}
    assert server.count("Read") == server.count("Write") == 3


async def test_a_small_blob_does_not_keep_the_message_it_came_in(server: ForeignServer) -> None:
    blobs = [server.keep(size) for size in (100, 64 * 1024, 64 * 1024 + 1)]
    async with remote_cas(server.port) as store:
        got = await store.get_many([digest for digest, _ in blobs])
    assert got == [data for _, data in blobs]
    assert [type(each) for each in got] == [bytes, bytes, memoryview], "a large one is not copied"


@pytest.mark.parametrize("method", ["BatchReadBlobs", "Read", "FindMissingBlobs"])
async def test_a_call_is_sent_again_after_a_pause_that_grows(
    server: ForeignServer, mock_clock: Any, method: str
) -> None:
    digest, _ = server.keep(LARGE if method == "Read" else 100)
    server.plan(method, *[fail("UNAVAILABLE")] * 2)
    retry = GrpcRetry(max_retries=2, delay=5, jitter=0)
    async with remote_cas(server.port, retry=retry) as store, trio.open_nursery() as nursery:
        if method == "FindMissingBlobs":
            nursery.start_soon(store.has, [digest])
        else:
            nursery.start_soon(store.get, digest)
        for retries, pause in ((1, 10), (2, 20)):
            while store.statistics()["retries"] < retries:  # until its failure is here
                await trio.to_thread.run_sync(time.sleep, 0.001)
            mock_clock.jump(pause - 0.1)
            await wait_all_tasks_blocked()
            assert store.statistics()["calls"] - (method == "BatchReadBlobs") == retries
            mock_clock.jump(0.2)
    assert server.count(method) == 3


async def test_a_failure_names_the_server_that_it_came_from(server: ForeignServer) -> None:
    with ForeignServer().running() as other:
        for each in (server, other):
            each.plan("FindMissingBlobs", *[fail("FAILED_PRECONDITION", says=str(each.port))] * 10)
        async with remote_cas(server.port, other.port) as store:
            for _ in range(10):
                with pytest.raises(InternalError) as caught:
                    await store.has([digest_of(b"x")])
                port = int(str(caught.value).rpartition(" ")[2])
                assert f"the grpc store 'REMOTE' (127.0.0.1:{port}): " in str(caught.value)


async def test_a_store_that_is_not_running_says_so() -> None:
    store = grpc_store(1)
    with pytest.raises(UnavailableError, match="the grpc store 'REMOTE' is not running"):
        await store.check()
    with pytest.raises(InternalError, match="while its store does not run"):
        await store.get(digest_of(b"x"))
    async with remote_cas(1) as ended:
        pass
    with pytest.raises(UnavailableError, match="is not running"):
        await ended.check()


async def test_a_check_waits_five_seconds_for_an_answer(
    server: ForeignServer, later: threading.Event, mock_clock
) -> None:
    outcome: list[str] = []

    async def check() -> None:
        try:
            await store.check()
            outcome.append("well")
        except UnavailableError as error:
            outcome.append(error.message)

    async with remote_cas(server.port) as store:
        await store.check()
        server.plan("GetCapabilities", Fault(held=later))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(check)
            await trio.to_thread.run_sync(server.wait_for, "GetCapabilities", 2)
            mock_clock.jump(4.9)
            await wait_all_tasks_blocked()
            assert not outcome
            mock_clock.jump(0.2)
    assert "GetCapabilities: DEADLINE_EXCEEDED" in outcome[0]
    assert server.count("GetCapabilities") == 2, "a check does not try again"


# --- action results


async def test_results_of_up_to_sixteen_mebibytes_come_and_go(server: ForeignServer) -> None:
    message = REAPI.ActionResult(stdout_raw=b"x" * (MAX_ACTION_RESULT_BYTES - 8))
    encoded = message.SerializeToString()
    assert MAX_ACTION_RESULT_BYTES - 8 < len(encoded) <= MAX_ACTION_RESULT_BYTES
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with ForeignServer(options=options).running() as roomy:
        async with remote_cas(roomy.port, kind="ac") as store:
            await store.write(ACTION, BytesReader(seal(encoded)))
            assert roomy.results[ACTION.hash, ACTION.size] == encoded
            with pytest.raises(TooLargeError):  # as a whole
                await store.get(ACTION)
            assert await read(store, ACTION) == seal(encoded)
            calls = len(roomy.calls)
            larger = REAPI.ActionResult(stdout_raw=b"x" * MAX_ACTION_RESULT_BYTES).SerializeToString()
            with pytest.raises(TooLargeError):
                await store.put(ACTION, larger)
            with pytest.raises(TooLargeError, match=f"of action {ACTION} has more than {MAX_ACTION_RESULT_BYTES} byte"):
                await store.write(ACTION, PartsReader([larger, larger], size=-1))
            assert len(roomy.calls) == calls


async def test_a_result_of_another_size_than_its_reader_says_is_not_stored(server: ForeignServer) -> None:
    async with remote_cas(server.port, kind="ac") as store:
        with pytest.raises(UploadMismatchError, match="20 bytes came of 24"):
            await store.write(ACTION, PartsReader([seal(b"")], size=24))
        await store.write(ACTION, PartsReader([seal(b"\x20\x01")], size=-1))
        async with store.open(ACTION) as reader:
            assert await drain(reader) == seal(b"\x20\x01")
        assert await read(store, ACTION, offset=1, length=5) == seal(b"\x20\x01")[1:6]
        await store.write(ACTION, TogetherReader(split(seal(b"\x20\x01"), 3)))
    assert server.calls == ["UpdateActionResult", *["GetActionResult"] * 2, "UpdateActionResult"]
    assert server.results == {(ACTION.hash, ACTION.size): b"\x20\x01"}


async def test_a_result_that_is_not_there_is_missing_and_its_key_and_server_are_named(server: ForeignServer) -> None:
    async with remote_cas(server.port, kind="ac") as store:
        with pytest.raises(BlobNotFoundError) as caught:
            await store.get(ACTION)
    assert caught.value.key == ACTION
    says = f"{ACTION} not found in the grpc store 'REMOTE' (127.0.0.1:{server.port}): no such result"
    assert caught.value.message == says


async def test_what_goes_wrong_with_a_result_is_tried_again_and_then_told(server: ForeignServer) -> None:
    server.plan("GetActionResult", *[fail("UNAVAILABLE")] * QUICK.max_retries)
    server.plan("UpdateActionResult", fail("UNAVAILABLE"))
    async with remote_cas(server.port, kind="ac") as store:
        await store.put(ACTION, seal(b""))
        assert await store.get(ACTION) == seal(b"")
        server.plan("GetActionResult", fail("FAILED_PRECONDITION", says="no"))
        with pytest.raises(InternalError, match=f"GetActionResult of {ACTION}: FAILED_PRECONDITION: no"):
            await store.has([ACTION])
        server.plan("UpdateActionResult", fail("PERMISSION_DENIED"))
        with pytest.raises(PermissionDeniedError, match=f"UpdateActionResult of {ACTION}.*write_ac"):
            await store.put(ACTION, seal(b""))
    assert server.count("UpdateActionResult") == 3


# --- tokens


@pytest.mark.parametrize(("content", "why"), [
    (None, "cannot read .*: No such file"), (b"", "has no token in its first line"), (b"\n\ntoken", "has no token"),
    (b"two words\n", "has no token"), ("tökén".encode(), "it is not ASCII"), (b"a\x01b", "has no token"),
])  # fmt: skip
async def test_a_token_file_that_cannot_be_used_ends_the_start(
    tmp_path: Path, content: bytes | None, why: str
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    endpoints = (GrpcEndpoint(address="grpc://127.0.0.1:1"),
                 GrpcEndpoint(address="grpc://127.0.0.1:2", token_file=str(path)))  # fmt: skip
    with pytest.raises(ExceptionGroup) as caught:
        async with remote_cas(endpoints=endpoints):
            pass
    (error,) = caught.value.exceptions
    assert isinstance(error, ConfigError) and error.path == "endpoints[1].token_file"
    assert str(path) in error.problem or content is not None and "ASCII" in error.problem
    with pytest.raises(ConfigError, match=why):
        raise error


@pytest.mark.parametrize(("address", "warns"), [
    ("grpc://127.1.2.3:1", False), ("grpc://localhost:1", False), ("grpc://[::1]:1", False), ("unix:/tmp/x", False),
    ("grpcs://cache.example.com:1", False), ("grpc://cache.example.com:1", True), ("grpc://10.0.0.1:1", True),
    ("tls_config grpc://cache.example.com:1", False),
])  # fmt: skip
@pytest.mark.parametrize("where", ["config", "file", "nowhere"])
async def test_a_token_that_would_go_over_a_network_in_clear_text_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, address: str, warns: bool, where: str
) -> None:
    (tmp_path / "token").write_text("t0ken\n")
    token: dict[str, Any] = {"config": {"token": "t0ken"}, "file": {"token_file": str(tmp_path / "token")}}.get(
        where, {}
    )
    tls, _, address = address.rpartition(" ")
    endpoint = GrpcEndpoint(address=address, tls_config=ClientTlsOptions() if tls else None, **token)
    with caplog.at_level(logging.WARNING):
        async with remote_cas(endpoints=(endpoint,)):
            pass
    assert ("sends its token" in caplog.text) is (warns and where != "nowhere")
    assert "t0ken" not in caplog.text

"""grpc stores against a server that is not ours (grpcio) and that misbehaves by plan."""

from __future__ import annotations

import pytest
import trio

from nl.cas.action_results import seal, store_action_result, unseal
from nl.plugin import (
    CHUNK,
    EMPTY_DIGESTS,
    ActionKey,
    BlobNotFoundError,
    BytesReader,
    CorruptBlobError,
    Digest,
    DigestFunction,
    ExhaustedError,
    InvalidRequestError,
    NlError,
    PermissionDeniedError,
    TooLargeError,
    UnavailableError,
    digest_of,
)
from nl.stores.grpc import GrpcEndpoint, GrpcRetry
from nl.testing import PartsReader, drain, make_blob, read, split
from tests.support.foreign import REAPI, digest
from tests.support.foreign_server import Fault, ForeignServer, fail
from tests.support.grpc_stores import QUICK, grpc_store, remote_cas
from tests.support.processes import free_port
from tests.support.serving import serving

LARGE = 1_000_000


# --- reading


async def test_small_and_large_blobs_come_from_a_foreign_server(server: ForeignServer) -> None:
    async with remote_cas(server.port) as store:
        for size in (1, 5000, 200_000, LARGE):
            digest, data = server.keep(size)
            assert await store.get(digest) == data
            assert await read(store, digest) == data
            assert await read(store, digest, offset=size // 2, length=100) == data[size // 2 :][:100]
        assert await store.has([digest, digest_of(b"missing")]) == [LARGE, None]


async def test_a_read_goes_on_at_the_byte_where_it_broke_off(server: ForeignServer) -> None:
    digest, data = server.keep(LARGE)
    server.plan("Read", fail("UNAVAILABLE", after=300_000), fail("UNAVAILABLE"), fail("ABORTED", after=200_000))
    async with remote_cas(server.port) as store:
        assert await read(store, digest) == data
    assert server.count("Read") == 4
    first, second, third = server.offsets  # one failed before it was looked at
    assert first == 0 < second < third, server.offsets


async def test_a_range_goes_on_where_it_broke_off_and_ends_where_it_should(server: ForeignServer) -> None:
    digest, data = server.keep(LARGE)
    server.plan("Read", fail("UNAVAILABLE", after=100_000))
    async with remote_cas(server.port) as store:
        assert await read(store, digest, offset=1000, length=500_000) == data[1000:501_000]


async def test_a_read_that_always_breaks_is_given_up(server: ForeignServer) -> None:
    digest, _ = server.keep(LARGE)
    server.plan("Read", *[fail("UNAVAILABLE", says="gone fishing")] * 10)
    async with remote_cas(server.port) as store:
        with pytest.raises(UnavailableError, match=f"'REMOTE' .*127.0.0.1:{server.port}.*Read of {digest}.*fishing"):
            await read(store, digest)
    assert server.count("Read") == 1 + QUICK.max_retries


async def test_a_read_that_breaks_again_and_again_but_gets_on_comes_to_its_end(server: ForeignServer) -> None:
    digest, data = server.keep(LARGE)
    server.plan("Read", *[fail("UNAVAILABLE", after=100_000)] * 6)
    async with remote_cas(server.port) as store:
        assert await read(store, digest) == data
    assert server.count("Read") == 7 > 1 + QUICK.max_retries


async def test_the_empty_blob_is_there_whatever_a_server_says(server: ForeignServer) -> None:
    async with remote_cas(server.port) as store:
        assert await store.has([*sorted(EMPTY_DIGESTS), digest_of(b"x")]) == [0, 0, None]


async def test_what_would_be_in_vain_is_not_tried_again(server: ForeignServer) -> None:
    digest, _ = server.keep(LARGE)
    async with remote_cas(server.port) as store:
        for code, kind in (
            ("RESOURCE_EXHAUSTED", ExhaustedError), ("DATA_LOSS", CorruptBlobError), ("NOT_FOUND", BlobNotFoundError),
        ):  # fmt: skip
            server.calls.clear()
            server.plan("Read", fail(code))
            with pytest.raises(kind):
                await store.get(digest)
            assert server.count("Read") == 1


@pytest.mark.parametrize("alter", [lambda data: data[:-1], lambda data: data + b"x"], ids=["short", "long"])
@pytest.mark.parametrize("size", [5000, LARGE])
async def test_a_blob_of_another_size_is_no_blob(server: ForeignServer, size: int, alter) -> None:
    digest, _ = server.keep(size)
    method = "BatchReadBlobs" if size == 5000 else "Read"
    async with remote_cas(server.port) as store:
        for way in (store.get, lambda key: read(store, key)):
            server.plan(method, Fault(alter=alter))
            with pytest.raises(CorruptBlobError, match=str(digest)):
                await way(digest)


async def test_blobs_that_a_batch_leaves_out_or_has_no_room_for_travel_alone(server: ForeignServer) -> None:
    digest, data = server.keep(5000)
    async with remote_cas(server.port) as store:
        whole = [fail(code) for code in ("UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")]
        for fault in (Fault(drops=True), Fault(blob_code=8), *whole):
            server.plan("BatchReadBlobs", fault)
            assert await store.get(digest) == data
        assert server.count("Read") == 5
        for fault in (Fault(drops=True), Fault(blob_code=12), *whole):
            server.blobs.clear()
            server.plan("BatchUpdateBlobs", fault)
            await store.put(digest, data)
            assert server.blobs == {(digest.hash, 5000): data}
        assert server.count("Write") == 5


async def test_a_batch_is_sent_again(server: ForeignServer) -> None:
    digest, data = server.keep(5000)
    server.plan("BatchReadBlobs", fail("UNAVAILABLE"), fail("INTERNAL"))
    server.plan("FindMissingBlobs", fail("UNAVAILABLE"))
    server.plan("BatchUpdateBlobs", fail("UNAVAILABLE"))
    other = digest_of(b"other")
    async with remote_cas(server.port) as store:
        assert await store.get(digest) == data
        assert await store.has([digest]) == [5000]
        await store.put(other, b"other")
        assert store.statistics()["retries"] == 4
    assert server.blobs[other.hash, 5] == b"other"


async def test_a_thousand_small_blobs_are_a_few_calls(server: ForeignServer) -> None:
    blobs = [server.keep(1000 + number) for number in range(1000)]
    got: dict[Digest, object] = {}

    async def get(digest: Digest) -> None:
        got[digest] = await store.get(digest)

    async with remote_cas(server.port) as store:
        async with trio.open_nursery() as nursery:
            for digest, _ in blobs:
                nursery.start_soon(get, digest)
        assert all(got[digest] == data for digest, data in blobs)
        assert server.count("BatchReadBlobs") <= 6, server.calls
        server.calls.clear()
        assert [bytes(each) for each in await store.get_many([digest for digest, _ in blobs])] == [
            data for _, data in blobs
        ]
        assert server.count("BatchReadBlobs") <= 6 and not server.count("Read")
        server.calls.clear()
        server.blobs.clear()
        async with trio.open_nursery() as nursery:
            for digest, data in blobs:
                nursery.start_soon(store.put, digest, data)
        assert len(server.blobs) == 1000
        assert server.count("BatchUpdateBlobs") <= 6, server.calls
        server.calls.clear()
        async with trio.open_nursery() as nursery:
            for digest, _ in blobs:
                nursery.start_soon(store.has, [digest])
        assert server.count("FindMissingBlobs") <= 4, server.calls


async def test_batches_are_no_larger_than_the_server_says() -> None:
    with ForeignServer(max_batch=20_000).running() as server:
        blobs = [server.keep(3000, seed=number) for number in range(50)] + [server.keep(30_000)]
        async with remote_cas(server.port) as store:
            got = await store.get_many([digest for digest, _ in blobs])
            assert [bytes(each) for each in got] == [data for _, data in blobs]
            server.blobs.clear()
            assert await store.put_many(blobs) == [None] * 51
        sizes = [sum(each.size_bytes for each in request.digests) for request in server.requests
                 if request.DESCRIPTOR.name == "BatchReadBlobsRequest" and len(request.digests) > 1]
        assert sizes and max(sizes) <= 20_000, sizes
        sizes = [sum(len(each.data) for each in request.requests) for request in server.requests
                 if request.DESCRIPTOR.name == "BatchUpdateBlobsRequest" and len(request.requests) > 1]
        assert sizes and max(sizes) <= 20_000, sizes


async def test_ten_thousand_lookups_and_more_are_cut_into_calls(server: ForeignServer) -> None:
    digests = [digest_of(b"%d" % number) for number in range(12_345)]
    for number in range(0, 12_345, 2):
        server.put(b"%d" % number, digests[number])
    other = [digest_of(b"%d" % number, DigestFunction.BLAKE3) for number in range(5)]
    async with remote_cas(server.port) as store:
        sizes = await store.has([*digests, *other])
    assert sizes == [len(b"%d" % n) if n % 2 == 0 else None for n in range(12_345)] + [None] * 5
    asked = [len(each.blob_digests) for each in server.requests if hasattr(each, "blob_digests")]
    assert sorted(asked) == [5, 2345, 10_000]


# --- writing


async def test_uploads_of_every_size_reach_a_foreign_server(server: ForeignServer) -> None:
    async with remote_cas(server.port) as store:
        for size in (1, 5000, 200_000, LARGE):
            digest = digest_of(data := make_blob(size))
            await store.write(digest, PartsReader(split(data, 70_000)))
            assert server.blobs.pop((digest.hash, size)) == data
            await store.put(digest, data)
            assert server.blobs[digest.hash, size] == data


@pytest.mark.parametrize("forgets", [False, True], ids=["the server has kept it", "the server has forgotten"])
async def test_an_upload_goes_on_where_the_server_has_come_to(server: ForeignServer, forgets: bool) -> None:
    digest = digest_of(data := make_blob(LARGE))
    server.plan("Write", fail("UNAVAILABLE", after=300_000, drops=forgets), fail("UNAVAILABLE"))
    async with remote_cas(server.port) as store:
        await store.write(digest, PartsReader(split(data, 70_000)))
    assert server.blobs[digest.hash, LARGE] == data
    assert (server.offsets[-1] > 0) is not forgets, server.offsets


async def test_an_upload_that_cannot_be_had_again_fails_and_leaves_nothing(server: ForeignServer) -> None:
    size = 6 * 1024 * 1024
    digest = digest_of(data := make_blob(size))
    server.plan("Write", fail("UNAVAILABLE", after=5 * 1024 * 1024, drops=True))
    async with remote_cas(server.port) as store:
        with pytest.raises(UnavailableError):
            await store.write(digest, PartsReader(split(data, CHUNK)))
        assert await store.has([digest]) == [None]
        server.plan("Write", fail("UNAVAILABLE", after=5 * 1024 * 1024, drops=True))
        await store.write(digest, BytesReader(data))  # this one can be rewound
    assert server.blobs[digest.hash, size] == data


async def test_a_blob_that_is_there_ends_the_upload_and_the_reader_is_read_to_its_end(server: ForeignServer) -> None:
    digest, data = server.keep(LARGE)
    reader = PartsReader(split(data, 10_000))
    async with remote_cas(server.port) as store:
        await store.write(digest, reader)
        assert not await reader.receive_parts()


async def test_a_server_that_says_ok_and_has_taken_less_is_not_believed(server: ForeignServer) -> None:
    digest = digest_of(data := make_blob(LARGE))
    server.plan("Write", *[Fault(commits=17)] * 20)
    async with remote_cas(server.port, retry=GrpcRetry(max_retries=1, delay=0.01)) as store:
        with pytest.raises(UnavailableError, match="took 17 of 1000000 bytes"):
            await store.put(digest, data)


async def test_a_blob_larger_than_the_server_keeps_is_not_sent() -> None:
    with ForeignServer(max_blob=500_000).running() as server:
        digest = digest_of(data := make_blob(LARGE))
        async with remote_cas(server.port) as store:
            with pytest.raises(TooLargeError, match="500000"):
                await store.put(digest, data)
        assert not server.count("Write")


async def test_each_blob_of_a_batch_has_its_own_fate(server: ForeignServer) -> None:
    digest, data = server.keep(100)
    missing = digest_of(b"missing")
    async with remote_cas(server.port) as store:
        got = await store.get_many([digest, missing])
        assert got[0] == data and isinstance(got[1], BlobNotFoundError) and got[1].key == missing
        server.plan("BatchUpdateBlobs", Fault(blob_code=8))
        (full,) = await store.put_many([(missing, b"missing")])
        assert isinstance(full, ExhaustedError)


# --- refusals and time limits


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "UNAUTHENTICATED"])
async def test_a_refusal_names_the_server_and_the_right_and_never_the_token(server: ForeignServer, code: str) -> None:
    token = "tok-very-secret"
    endpoint = GrpcEndpoint(address=f"grpc://127.0.0.1:{server.port}", token=token)
    digest, _ = server.keep(LARGE)
    server.plan("Read", fail(code, says=f"not with Bearer {token}"))
    server.plan("BatchUpdateBlobs", fail(code, says=token))
    async with remote_cas(endpoints=(endpoint,), instance_name="main") as store:
        with pytest.raises(PermissionDeniedError) as caught:
            await store.get(digest)
        text = str(caught.value)
        assert f"127.0.0.1:{server.port}" in text and "read_cas" in text and "'main'" in text
        assert token not in text and "***" in text
        with pytest.raises(PermissionDeniedError, match="write_cas"):
            await store.put(digest_of(b"x"), b"x")
    assert server.metadata[-1]["authorization"] == f"Bearer {token}"


async def test_a_server_that_does_not_answer_costs_the_time_limit(server: ForeignServer) -> None:
    digest, data = server.keep(5000)
    server.plan("BatchReadBlobs", Fault(delay_s=1.5))
    async with remote_cas(server.port, rpc_timeout_s=0.3) as store:
        assert await store.get(digest) == data
    assert server.count("BatchReadBlobs") == 2


async def test_no_server_is_a_failure_that_says_so() -> None:
    port = free_port()
    async with remote_cas(port, retry=GrpcRetry(max_retries=1, delay=0.01)) as store:
        with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}.*[Cc]onnection refused"):
            await store.get(digest_of(b"x"))
        with pytest.raises(UnavailableError):
            await store.check()


async def test_a_server_that_sends_everybody_away_all_the_time_fails_nobody() -> None:
    options = [("grpc.max_connection_age_ms", 150), ("grpc.max_connection_age_grace_ms", 100)]
    with ForeignServer(options=options).running() as server:
        blobs = [server.keep(3000 + number) for number in range(30)] + [server.keep(LARGE)]
        async with remote_cas(server.port) as store:
            for _ in range(8):
                got = await store.get_many([digest for digest, _ in blobs])
                assert [each if isinstance(each, NlError) else bytes(each) for each in got] == [d for _, d in blobs]
                await trio.sleep(0.1)


async def test_one_of_two_servers_answers_nothing(server: ForeignServer) -> None:
    digest, data = server.keep(5000)
    large, more = server.keep(LARGE)
    hole = await trio.open_tcp_listeners(0, host="127.0.0.1")  # takes connections and says nothing
    port = hole[0].socket.getsockname()[1]
    async with remote_cas(port, server.port) as store:
        with trio.fail_after(10):
            for _ in range(5):
                assert await store.get(digest) == data
                assert await store.get(large) == more
                assert await store.has([digest]) == [5000]
    await hole[0].aclose()


async def test_two_servers_share_the_calls() -> None:
    with ForeignServer().running() as one, ForeignServer().running() as two:
        digest, data = one.keep(LARGE)
        two.put(data, digest)
        async with remote_cas(one.port, two.port) as store:
            for _ in range(20):
                assert await store.get(digest) == data
        assert one.count("Read") >= 5 and two.count("Read") >= 5


async def test_a_caller_that_leaves_takes_nothing_from_the_others_of_its_batch(server: ForeignServer) -> None:
    blobs = [server.keep(100 + number) for number in range(10)]
    server.plan("BatchReadBlobs", *[Fault(delay_s=0.3)] * 4)
    async with remote_cas(server.port) as store:
        got: list[object] = []
        async with trio.open_nursery() as nursery:
            async def stay(digest: Digest) -> None:
                got.append(await store.get(digest))

            async def leave(digest: Digest) -> None:
                with trio.move_on_after(0.1):
                    await store.get(digest)

            for number, (digest, _) in enumerate(blobs):
                nursery.start_soon(leave if number % 2 else stay, digest)
        assert sorted(map(bytes, got)) == sorted(data for number, (_, data) in enumerate(blobs) if not number % 2)


async def test_only_so_many_calls_at_once(server: ForeignServer) -> None:
    digest, _ = server.keep(LARGE)
    async with remote_cas(server.port, max_concurrent_requests=1) as store:
        async with store.open(digest) as reader:
            await reader.receive_parts(1000)
            with trio.move_on_after(0.2) as scope:
                await store.has([digest_of(b"x")])
            assert scope.cancelled_caught
            await drain(reader, taken=1000)
        assert await store.has([digest_of(b"x")]) == [None]


# --- action results


async def test_results_are_plain_on_the_wire_and_sealed_in_stores(server: ForeignServer) -> None:
    action = ActionKey(*digest_of(b"action"))
    encoded = REAPI.ActionResult(exit_code=3, stdout_raw=b"said").SerializeToString()
    async with remote_cas(server.port, kind="ac") as store:
        assert await store.has([action]) == [None]
        await store_action_result(store, action, encoded)
        assert server.results[action.hash, action.size] == encoded
        value = bytes(await store.get(action))
        assert value == seal(encoded) and unseal(value) == encoded
        assert await store.has([action]) == [len(value)]
        await store.put(action, encoded)  # without a seal
        with pytest.raises(InvalidRequestError, match="no action result"):
            await store.put(action, b"\xff\xff garbage")


async def test_an_empty_result_is_one(server: ForeignServer) -> None:
    action = ActionKey(*digest_of(b"action"))
    server.results[action.hash, action.size] = b""
    async with remote_cas(server.port, kind="ac") as store:
        assert unseal(await store.get(action)) == b""


async def test_what_is_no_action_result_is_not_sealed(server: ForeignServer) -> None:
    action = ActionKey(*digest_of(b"action"))
    server.results[action.hash, action.size] = b"\x0a\xff"
    async with remote_cas(server.port, kind="ac") as store:
        with pytest.raises(CorruptBlobError, match=str(action)):
            await store.get(action)


async def test_keys_of_the_other_sort_are_refused(server: ForeignServer) -> None:
    digest = digest_of(b"x")
    async with remote_cas(server.port) as blobs, remote_cas(server.port, kind="ac") as results:
        for store, key in ((blobs, ActionKey(*digest)), (blobs, "a name"), (results, digest), (results, "a name")):
            reader = BytesReader(b"x")
            for attempt in (store.has([key]), store.get(key), store.put(key, b"x"), store.write(key, reader)):
                with pytest.raises(InvalidRequestError, match="store_type"):
                    await attempt
            with pytest.raises(InvalidRequestError):
                await read(store, key)
    assert server.count("FindMissingBlobs") == 0


# --- names and headers


async def test_names_say_instance_and_function_unless_they_are_to_be_as_before(server: ForeignServer) -> None:
    digest = digest_of(data := make_blob(LARGE), DigestFunction.BLAKE3)
    for legacy in (False, True):
        server.blobs.clear()
        async with remote_cas(server.port, instance_name="a/b", use_legacy_resource_names=legacy) as store:
            await store.put(digest, data)
            assert await store.get(digest) == data
        middle = "" if legacy else "blake3/"
        assert server.requests[-1].resource_name == f"a/b/blobs/{middle}{digest.hash}/{LARGE}"


async def test_headers_go_with_every_call(server: ForeignServer) -> None:
    async with remote_cas(server.port, headers={"X-Team": "build"}) as store:
        await store.has([digest_of(b"x")])
        with pytest.raises(BlobNotFoundError):
            await store.get(digest_of(b"x" * LARGE))
    assert len(server.metadata) == 2 and all(each["x-team"] == "build" for each in server.metadata)


# --- behind our own services


async def test_a_clients_batch_is_a_batch_on_the_other_side_as_well(server: ForeignServer) -> None:
    blobs = [make_blob(100 + number) for number in range(200)]
    async with serving(store=grpc_store(server.port)) as front:
        updated = await front.client.update(*((digest(data), data) for data in blobs))
        assert all(each.status.code == 0 for each in updated) and len(updated) == 200
        assert server.count("BatchUpdateBlobs") == 1 and len(server.blobs) == 200
        missing = digest(b"missing")
        got = await front.client.batch_read([*map(digest, blobs), missing])
        assert [each.data for each in got[:-1]] == blobs and got[-1].status.code == 5
        assert server.count("BatchReadBlobs") == 1

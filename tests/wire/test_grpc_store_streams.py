"""Large blobs between a grpc store and a server that is not ours: what is sent again, from where, and what is not."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import trio

from nl.plugin import (
    CHUNK,
    BlobNotFoundError,
    Buffer,
    BytesReader,
    CorruptBlobError,
    InvalidRequestError,
    TooLargeError,
    UnavailableError,
    UploadMismatchError,
    digest_of,
)
from nl.stores.grpc import GrpcRetry
from nl.stores.grpc.options import ReadBatching
from nl.stores.grpc.writing import SpoolBudget
from nl.testing import PartsReader, drain, make_blob, read, same, split
from nl.testing.readers import FailingReader, HalfwayReader
from tests.support.foreign_server import PIECE, Fault, ForeignServer, fail
from tests.support.grpc_stores import QUICK, remote_cas

LARGE = 1_000_000
MANY_PIECES = 16 * PIECE
ONCE = GrpcRetry(max_retries=1, delay=0.01, jitter=0.0)
LIMIT_S = 0.6
"""Of what does not move at all; what does is never so slow, twice."""


# --- reading


async def test_after_its_last_byte_a_server_may_still_say_that_a_blob_is_wrong(server: ForeignServer) -> None:
    digest, _ = server.keep(LARGE)
    server.plan("Read", fail("DATA_LOSS", after=LARGE, says="wrong after all"))
    async with remote_cas(server.port) as store:
        with pytest.raises(CorruptBlobError, match="wrong after all"):
            await read(store, digest)
    assert server.count("Read") == 1


async def test_whatever_else_goes_wrong_after_the_last_byte_changes_nothing(server: ForeignServer) -> None:
    digest, data = server.keep(LARGE)
    server.plan("Read", fail("UNAVAILABLE", after=LARGE))
    async with remote_cas(server.port) as store:
        assert same(await read(store, digest), data)
        assert store.statistics()["retries"] == 0
    assert server.count("Read") == 1


async def test_a_message_after_the_last_byte_makes_a_blob_of_another_size(server: ForeignServer) -> None:
    digest, _ = server.keep(MANY_PIECES)
    server.plan("Read", Fault(alter=lambda data: data + b"surplus"))
    async with remote_cas(server.port) as store:
        with pytest.raises(CorruptBlobError, match=f"{MANY_PIECES + 7} bytes came for {digest}"):
            await read(store, digest)


async def test_fields_that_nobody_knows_stand_in_no_blobs_way(server: ForeignServer) -> None:
    digest, data = server.keep(LARGE)
    server.plan("Read", Fault(prefix=b"\x78\x01"))
    async with remote_cas(server.port) as store:
        assert same(await read(store, digest), data)
    assert server.count("Read") == 1


async def test_a_message_that_cannot_be_decoded_is_a_failure_like_others(server: ForeignServer) -> None:
    digest, data = server.keep(LARGE)
    server.plan("Read", Fault(prefix=b"\x78\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
    async with remote_cas(server.port) as store:
        assert same(await read(store, digest), data)
    assert server.count("Read") == 2


async def test_a_read_that_stands_still_for_the_time_limit_goes_on_in_another_call(
    server: ForeignServer, later: threading.Event
) -> None:
    digest, data = server.keep(LARGE)
    server.plan("Read", Fault(held=later, after=3 * PIECE))
    async with remote_cas(server.port, rpc_timeout_s=LIMIT_S) as store:
        assert same(await read(store, digest), data)
    assert server.count("Read") >= 2


async def test_a_server_that_answers_nothing_costs_the_time_limit_twice_and_no_more(
    server: ForeignServer, later: threading.Event
) -> None:
    digest, _ = server.keep(LARGE)
    server.plan("Read", *[Fault(held=later)] * 10)
    async with remote_cas(server.port, rpc_timeout_s=0.2) as store:
        with pytest.raises(UnavailableError, match=r"nothing moved for 0.2 s \(rpc_timeout_s\)"):
            await read(store, digest)
        assert store.statistics()["calls"] == 2


async def test_without_a_time_limit_a_server_may_take_any_time(server: ForeignServer, later: threading.Event) -> None:
    digest, data = server.keep(LARGE)
    server.plan("Read", Fault(held=later, after=PIECE))
    got: list[bytes] = []

    async def get() -> None:
        got.append(await read(store, digest))

    async with remote_cas(server.port, rpc_timeout_s=0) as store, trio.open_nursery() as nursery:
        nursery.start_soon(get)
        await trio.sleep(0.1)
        assert not got
        later.set()
        nursery.cancel_scope.deadline = trio.current_time() + 60
    assert same(got[0], data)
    assert server.count("Read") == 1


async def test_who_finds_no_server_gives_the_turn_back() -> None:
    digest = digest_of(data := make_blob(LARGE))
    async with remote_cas(1, retry=ONCE, max_concurrent_requests=1) as store:
        with trio.fail_after(60):
            for _ in range(2):
                with pytest.raises(UnavailableError, match="127.0.0.1:1"):
                    await read(store, digest)
                with pytest.raises(UnavailableError, match="127.0.0.1:1"):
                    await store.put(digest, data)


async def test_a_reader_that_leaves_early_gives_its_turn_back(server: ForeignServer) -> None:
    digest, _ = server.keep(16 * 1024 * 1024)
    async with remote_cas(server.port, max_concurrent_requests=1) as store:
        with trio.fail_after(60):
            for _ in range(3):
                async with store.open(digest) as reader:
                    await reader.receive_parts(1000)
            assert await store.has([digest]) == [digest.size]


async def test_a_read_that_is_wrong_from_its_first_message_on_gives_its_turn_back(server: ForeignServer) -> None:
    digest, _ = server.keep(PIECE // 2)
    server.plan("Read", *[Fault(alter=lambda data: data + b"surplus")] * 2)
    batching = ReadBatching(max_blob_size_bytes=1000)
    async with remote_cas(server.port, max_concurrent_requests=1, experimental_read_batching=batching) as store:
        with trio.fail_after(60):
            for _ in range(2):
                with pytest.raises(CorruptBlobError, match=f"{digest.size + 7} bytes came for {digest}"):
                    await read(store, digest)
            assert await store.has([digest]) == [digest.size]


async def test_a_reader_that_has_come_to_its_end_holds_no_turn(server: ForeignServer) -> None:
    digest, data = server.keep(LARGE)
    async with remote_cas(server.port, max_concurrent_requests=1) as store, store.open(digest) as reader:
        assert same(await drain(reader), data)
        with trio.fail_after(60):
            assert await store.has([digest]) == [LARGE]


async def test_a_reader_leaves_in_peace_from_a_call_that_has_failed_meanwhile(server: ForeignServer) -> None:
    digest, data = server.keep(LARGE)
    server.plan("Read", fail("UNAVAILABLE", after=PIECE))
    async with remote_cas(server.port) as store:
        async with store.open(digest) as reader:
            (part, *_) = await reader.receive_parts(1000)
            assert bytes(part) == data[: len(part)]
            await trio.sleep(0.05)  # the failure arrives; if not, there is nothing to leave in peace from
        assert server.count("Read") == 1


async def test_a_blob_that_goes_while_it_is_read_is_missing(server: ForeignServer) -> None:
    digest, _ = server.keep(LARGE)
    server.plan("Read", fail("UNAVAILABLE", after=PIECE))
    async with remote_cas(server.port) as store, store.open(digest) as reader:
        await reader.receive_parts(1000)
        server.blobs.clear()
        with pytest.raises(BlobNotFoundError, match="'REMOTE'") as caught:
            await drain(reader, taken=1000)
        assert caught.value.key == digest


async def test_a_reader_gives_no_more_at_once_than_it_is_asked_for(server: ForeignServer) -> None:
    digest, data = server.keep(300_000)
    async with remote_cas(server.port) as store, store.open(digest, offset=7) as reader:
        assert reader.size == 299_993
        assert same(await drain(reader, 1000), data[7:])


# --- writing


async def test_an_upload_that_breaks_again_and_again_but_gets_on_comes_to_its_end(server: ForeignServer) -> None:
    digest = digest_of(data := make_blob(3_000_000))
    server.plan("Write", *[fail("UNAVAILABLE", after=100_000)] * 4)
    async with remote_cas(server.port, retry=ONCE) as store:
        await store.write(digest, PartsReader(split(data, 70_000)))
    assert same(server.blobs[digest.hash, digest.size], data)
    assert server.count("Write") == 5


async def test_an_upload_that_never_gets_on_is_given_up(server: ForeignServer) -> None:
    digest = digest_of(data := make_blob(LARGE))
    server.plan("Write", *[fail("UNAVAILABLE", after=100_000, drops=True, says="gone fishing")] * 20)
    async with remote_cas(server.port) as store:
        with pytest.raises(UnavailableError, match=f"'REMOTE' .*127.0.0.1:{server.port}.*Write of {digest}.*fishing"):
            await store.write(digest, PartsReader(split(data, 70_000)))
    assert server.count("Write") == 1 + QUICK.max_retries


async def test_an_upload_whose_answer_is_lost_is_not_sent_again(server: ForeignServer) -> None:
    digest = digest_of(data := make_blob(LARGE))
    server.plan("Write", Fault(fail("UNAVAILABLE").code, after=LARGE, keeps=True))
    reader = PartsReader(split(data, 70_000))
    async with remote_cas(server.port) as store:
        await store.write(digest, reader)
        assert not await reader.receive_parts()
    assert server.calls[-2:] == ["Write", "QueryWriteStatus"]


@pytest.mark.parametrize(("says", "completes"), [
    (10**12, False), (-5, False), (LARGE + 1, False), (LARGE + 1, True), (LARGE - 1, True), (0, True),
])  # fmt: skip
async def test_a_server_that_has_come_further_than_was_sent_or_contradicts_itself_gets_everything_again(
    server: ForeignServer, says: int, completes: bool
) -> None:
    digest = digest_of(data := make_blob(LARGE))
    server.plan("Write", fail("UNAVAILABLE", after=300_000, drops=True))
    server.plan("QueryWriteStatus", Fault(commits=says, completes=completes))
    async with remote_cas(server.port) as store:
        await store.write(digest, PartsReader(split(data, 70_000)))
    assert same(server.blobs[digest.hash, LARGE], data)
    assert server.offsets == [0, 0]


class PausingReader(HalfwayReader):
    """Takes its time before the last pieces, in which a failure of what went before mostly comes."""

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if len(self._parts) in (5, 6):
            await trio.sleep(0.2)
        return await super().receive_parts(max_bytes)


async def test_a_blob_that_came_from_elsewhere_meanwhile_asks_nothing_more_of_a_reader_that_cannot_be_had_again(
    server: ForeignServer,
) -> None:
    digest = digest_of(data := make_blob(8 * 1024 * 1024))
    server.plan("Write", fail("UNAVAILABLE", after=6 * 1024 * 1024))
    reader = PausingReader(data, lambda: server.put(data, digest), piece=CHUNK // 2, once=True)
    async with remote_cas(server.port) as store:
        await store.write(digest, reader)
    assert server.count("Write") == 1
    assert not await reader.receive_parts(), "it was read to its end, as its sender checks it there"


@pytest.mark.parametrize("code", ["NOT_FOUND", "UNIMPLEMENTED", "INVALID_ARGUMENT"])
async def test_a_server_that_does_not_know_how_far_it_has_come_gets_everything_again(
    server: ForeignServer, code: str
) -> None:
    digest = digest_of(data := make_blob(LARGE))
    server.plan("Write", fail("UNAVAILABLE", after=300_000, drops=True))
    server.plan("QueryWriteStatus", fail(code))
    async with remote_cas(server.port) as store:
        await store.write(digest, PartsReader(split(data, 70_000)))
    assert same(server.blobs[digest.hash, LARGE], data)
    assert server.count("QueryWriteStatus") == 1 and server.offsets == [0, 0]


async def test_how_far_a_server_has_come_is_asked_again(server: ForeignServer) -> None:
    digest = digest_of(data := make_blob(LARGE))
    server.plan("Write", fail("UNAVAILABLE", after=300_000))
    server.plan("QueryWriteStatus", fail("UNAVAILABLE"), fail("INTERNAL"))
    async with remote_cas(server.port) as store:
        await store.write(digest, PartsReader(split(data, 70_000)))
    assert same(server.blobs[digest.hash, LARGE], data)
    assert server.count("QueryWriteStatus") == 3 and server.offsets[1] >= 300_000


async def test_how_far_a_server_has_come_is_not_asked_for_ever(server: ForeignServer) -> None:
    digest = digest_of(data := make_blob(LARGE))
    server.plan("Write", fail("UNAVAILABLE", after=300_000))
    server.plan("QueryWriteStatus", *[fail("UNAVAILABLE")] * 20)
    async with remote_cas(server.port) as store:
        with pytest.raises(UnavailableError):
            await store.write(digest, PartsReader(split(data, 70_000)))
    assert server.count("QueryWriteStatus") == QUICK.max_retries


async def test_an_upload_of_which_the_server_has_every_byte_goes_on_without_having_them_again(
    server: ForeignServer,
) -> None:
    digest = digest_of(data := make_blob(6 * 1024 * 1024))
    server.plan("Write", fail("UNAVAILABLE", after=digest.size))
    async with remote_cas(server.port) as store:
        await store.write(digest, PartsReader(split(data, CHUNK)))
    assert same(server.blobs[digest.hash, digest.size], data)
    assert server.offsets == [0, digest.size]


async def test_an_upload_goes_on_from_the_very_byte_that_the_server_says_it_has_come_to(server: ForeignServer) -> None:
    """This one says so in the middle of a piece, of which it has nothing."""
    digest = digest_of(data := make_blob(LARGE))
    server.plan("Write", fail("UNAVAILABLE", after=300_000, drops=True))
    server.plan("QueryWriteStatus", Fault(commits=100_001))
    async with remote_cas(server.port) as store:
        with pytest.raises(InvalidRequestError, match="offset 100001, expected 0"):
            await store.write(digest, PartsReader(split(data, 70_000)))
    assert server.offsets == [0, 100_001]


async def test_a_reader_that_has_less_when_it_is_read_again_is_told_so(server: ForeignServer) -> None:
    class Shrinking(HalfwayReader):
        async def rewind(self) -> None:
            self._parts = [data[:200_000]]

    digest = digest_of(data := make_blob(LARGE))
    server.plan("Write", fail("UNAVAILABLE", after=300_000))
    async with remote_cas(server.port) as store:
        with trio.fail_after(60), pytest.raises(UploadMismatchError, match="ended after 200000 bytes when resumed"):
            await store.write(digest, Shrinking(data, lambda: None, piece=70_000))
    assert not server.blobs


async def test_four_mebibytes_of_an_upload_can_be_had_again(server: ForeignServer) -> None:
    digest = digest_of(data := make_blob(4 * 1024 * 1024))
    server.plan("Write", fail("UNAVAILABLE", after=digest.size, drops=True))
    async with remote_cas(server.port) as store:
        await store.write(digest, PartsReader(split(data, CHUNK)))
    assert same(server.blobs[digest.hash, digest.size], data)
    assert server.offsets == [0, 0]


def test_sixteen_uploads_at_once_can_be_had_again_and_others_when_these_have_ended() -> None:
    budget = SpoolBudget()

    def keep(count: int) -> list[Any]:
        ways = [budget.rewindable(PartsReader([b"x"])) for _ in range(count)]
        assert [way.__enter__().can_rewind for way in ways] == [True] * min(16, count) + [False] * (count - 16)
        return ways

    for _ in range(2):
        for way in keep(18):
            with pytest.raises(OSError, match="failed"):
                way.gen.throw(OSError("failed"))


@pytest.mark.parametrize("size", [LARGE, 24 * 1024 * 1024], ids=["at its end", "in the middle"])
async def test_an_upload_that_stands_still_for_the_time_limit_is_made_anew(
    server: ForeignServer, later: threading.Event, size: int
) -> None:
    digest = digest_of(data := make_blob(size))
    server.plan("Write", Fault(held=later))
    async with remote_cas(server.port, rpc_timeout_s=LIMIT_S) as store:
        await store.write(digest, BytesReader(data))
    assert same(server.blobs[digest.hash, size], data)


@pytest.mark.parametrize("there", [False, True])
async def test_bytes_beyond_the_digest_are_told_whether_the_server_has_the_blob_or_not(
    server: ForeignServer, there: bool
) -> None:
    digest = digest_of(data := make_blob(LARGE))
    if there:
        server.put(data, digest)
    async with remote_cas(server.port) as store:
        with pytest.raises(UploadMismatchError, match="more bytes than its digest says"):
            await store.write(digest, PartsReader(split(data + b"x" * 200_000, 70_000), size=-1))
        assert await store.has([digest]) == [LARGE if there else None]


async def test_an_upload_that_ends_too_early_leaves_nothing(server: ForeignServer) -> None:
    digest = digest_of(data := make_blob(LARGE))
    async with remote_cas(server.port) as store:
        with pytest.raises(UploadMismatchError, match=f"ended after {LARGE - 1} bytes, its digest says {LARGE}"):
            await store.write(digest, PartsReader(split(data[:-1], 70_000), size=-1))
        with pytest.raises(UploadMismatchError, match="the client left"):
            await store.write(digest, FailingReader([data], UploadMismatchError("the client left"), size=LARGE))
        assert await store.has([digest]) == [None]


async def test_a_size_that_is_not_the_digests_is_told_before_anything_is_sent(server: ForeignServer) -> None:
    large, small = digest_of(b"x" * LARGE), digest_of(b"small")
    async with remote_cas(server.port) as store:
        for digest in (large, small):
            says = f"{digest}: the upload has {digest.size + 1} bytes, its digest says {digest.size}"
            with pytest.raises(UploadMismatchError, match=says):
                await store.put(digest, b"x" * (digest.size + 1))
            with pytest.raises(UploadMismatchError, match=says):
                await store.write(digest, PartsReader([b"x" * (digest.size + 1)]))
        (failure, none) = await store.put_many([(small, b"smaller"), (small, b"small")])
        assert isinstance(failure, UploadMismatchError) and none is None
    assert set(server.calls) <= {"GetCapabilities", "BatchUpdateBlobs"} and server.count("BatchUpdateBlobs") == 1


async def test_a_server_that_had_the_blob_all_along_may_say_minus_one(server: ForeignServer) -> None:
    digest = digest_of(data := make_blob(LARGE))
    server.plan("Write", Fault(commits=-1))
    async with remote_cas(server.port) as store:
        await store.put(digest, data)
    assert server.count("Write") == 1


async def test_a_blob_as_large_as_the_server_keeps_is_sent_and_one_larger_by_a_byte_is_not() -> None:
    with ForeignServer(max_blob=LARGE).running() as server:
        async with remote_cas(server.port) as store:
            for size in (LARGE, LARGE + 1):
                digest = digest_of(data := make_blob(size))
                if size == LARGE:
                    await store.put(digest, data)
                    continue
                with pytest.raises(TooLargeError, match=f"127.0.0.1:{server.port} keeps blobs of up to {LARGE} bytes"):
                    await store.write(digest, PartsReader([data]))
        assert server.count("Write") == 1 and list(server.blobs) == [(digest_of(make_blob(LARGE)).hash, LARGE)]


async def test_a_limit_that_is_negative_is_none() -> None:
    digest = digest_of(data := make_blob(LARGE))
    with ForeignServer(max_blob=-1, max_batch=-1).running() as server:
        async with remote_cas(server.port) as store:
            await store.put(digest, data)
            small = [(digest_of(each), each) for each in (b"one", b"two", b"three")]
            assert await store.put_many(small) == [None] * 3
        assert same(server.blobs[digest.hash, LARGE], data)
        assert server.count("BatchUpdateBlobs") == 1


async def test_what_hashes_to_nothing_but_has_no_bytes_is_no_digest(server: ForeignServer) -> None:
    wrong = digest_of(b"x")._replace(size=0)
    async with remote_cas(server.port) as store:
        with pytest.raises(InvalidRequestError, match="no digest: nothing of 0 bytes has that hash"):
            await store.get(wrong)
    assert not server.calls

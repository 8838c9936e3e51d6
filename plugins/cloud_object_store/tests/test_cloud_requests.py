"""Which requests a store makes of its provider, how many, and what becomes of their answers. The provider is a bucket
in memory that notes what it is asked and fails when it is told to.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from cloud_support import options_for
from memory_bucket import Bucket

from nl.plugin import (
    MAX_WHOLE,
    ActionKey,
    BlobNotFoundError,
    BytesReader,
    ConfigError,
    Deletes,
    Digest,
    DigestFunction,
    ExhaustedError,
    ForeignKey,
    FullError,
    InternalError,
    LocalFiles,
    RangeError,
    RefusedError,
    Removals,
    RetryOptions,
    Scans,
    TooLargeError,
    Traits,
    TransientError,
    UnavailableError,
    UploadMismatchError,
    ValueTooLargeError,
    digest_of,
    key_text,
)
from nl.testing import BareContext, PartsReader, drain, read, split, started
from nl_cloud_object_store import CloudObjectStore
from nl_cloud_object_store import sweep as sweeping
from nl_cloud_object_store.client import (
    ObjectClient,
    OpenUpload,
    UploadGoneError,
    UploadsPage,
)
from nl_cloud_object_store.download import PIECE
from nl_cloud_object_store.providers import PROVIDERS, Provider
from nl_cloud_object_store.sweep import Sweeper
from nl_cloud_object_store.threads import AbandonedError, ImpatientThreads

MIB = 1024 * 1024
PROBE_S, CHECKED_S, COMPLAIN_S, AGAIN_S, LIST_S, FORGOTTEN_S = 15, 30, 60, 30, 6 * 3600, 24 * 3600
"""Not those of the code: these are promised."""
ONE, TWO = digest_of(b"one"), digest_of(b"two")
RETRY = RetryOptions(max_retries=2, delay=0.0, jitter=0.0)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    client = Bucket()
    provider = PROVIDERS["aws"]
    monkeypatch.setitem(PROVIDERS, "aws", Provider(lambda options: client, provider.needs, provider.takes))
    return client


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests whose clock jumps whenever all wait, so that it does not while a thread is at work. The bucket in
    memory never blocks.
    """

    async def run_here(function: Callable[..., object], *args: object, **options: object) -> object:
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_here)


@asynccontextmanager
async def running(**options: object) -> AsyncIterator[CloudObjectStore]:
    specs = options_for("a-bucket", "http://127.0.0.1:1", **{"retry": RETRY, **options})
    async with started(CloudObjectStore(specs, BareContext("CAS"))) as store:
        await trio.testing.wait_all_tasks_blocked()
        while store.statistics()["threads_busy"]:  # the first look for forgotten uploads
            await trio.testing.wait_all_tasks_blocked(0.001)
        yield store  # type: ignore[misc]


def counted(store: CloudObjectStore) -> dict[str, object]:
    return {name: value for name, value in store.statistics().items() if value and name != "bucket"}


# --- lookups


async def test_what_was_there_is_not_asked_for_again_and_what_was_missing_is(bucket: Bucket) -> None:
    async with running() as store:
        bucket.store(f"cas/{ONE}", b"one")
        assert await store.has([ONE, TWO, ONE, digest_of(b"")]) == [3, None, 3, 0]
        assert bucket.took() == ["head", "head"]
        assert await store.has([ONE, TWO]) == [3, None]
        assert bucket.took() == ["head"]
        assert counted(store) == {"lookups": 3, "remembered": 1, "lookups_spared": 1}
        assert store.traits == Traits(authoritative=False, tracks_use=False)


async def test_without_memory_each_question_is_a_request_and_the_answer_is_exact(bucket: Bucket) -> None:
    async with running(remember_s=0) as store:
        assert store.traits.authoritative
        await store.put(ONE, b"one")
        for _ in range(3):
            assert await store.has([ONE]) == [3]
        assert bucket.took() == ["put", "head", "head", "head"]


async def test_values_that_may_change_are_always_asked_for(bucket: Bucket) -> None:
    action = ActionKey(*ONE)
    async with running() as store:
        for key in (action, "name"):
            await store.put(key, b"value")
            assert await store.has([key, key]) == [5, 5]
            assert await store.has([key]) == [5]
        assert bucket.took() == ["put", "head", "head"] * 2
        assert sorted(bucket.objects) == ["cas/" + key_text(action), "cas/" + key_text("name")]


async def test_an_object_of_another_size_is_missing_and_an_upload_mends_it(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as store:
        bucket.store(f"cas/{ONE}", b"wrong size")
        for _ in range(3):
            assert await store.has([ONE]) == [None]
            with pytest.raises(BlobNotFoundError):
                await store.get(ONE)
        assert len(caplog.records) == 1
        assert f"cas/{ONE} has 10 bytes: it counts as missing" in caplog.text
        await store.put(ONE, b"one")
        assert await store.get(ONE) == b"one"
        assert bucket.open_bodies == 0


@pytest.mark.parametrize(("age", "there"), [(0, True), (80, True), (120, False)])
async def test_what_will_soon_be_deleted_by_the_bucket_is_missing(bucket: Bucket, age: float, there: bool) -> None:
    async with running(consider_expired_after_s=100) as store:
        bucket.store(f"cas/{ONE}", b"one", age=age)
        bucket.store("cas/~name", b"value", age=age)
        assert await store.has([ONE, "name"]) == ([3, 5] if there else [None, None])
        if there:
            assert store._remembered._until[ONE] - time.monotonic() <= min(60, 100 - age)


async def test_what_was_uploaded_is_remembered_no_longer_than_the_bucket_keeps_it(bucket: Bucket) -> None:
    async with running(consider_expired_after_s=30) as store:
        await store.put(ONE, b"one")
        assert 0 < store._remembered._until[ONE] - time.monotonic() <= 30
    async with running() as store:
        await store.put(ONE, b"one")
        assert 30 < store._remembered._until[ONE] - time.monotonic() <= 60


async def test_an_answer_from_before_a_deletion_is_not_remembered_after_it(bucket: Bucket) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        asked.set()
        go_on.wait(60)

    bucket.before["head"] = wait
    async with running() as store:
        bucket.store(f"cas/{ONE}", b"one")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.has, [ONE])
            await trio.to_thread.run_sync(asked.wait, 60)
            bucket.errors["delete"] = [RefusedError("no answer")]
            with pytest.raises(UnavailableError):
                await store.delete([ONE])
            go_on.set()
        bucket.took()
        assert await store.has([ONE]) == [3]
        assert bucket.took() == ["head"]


async def test_what_has_gone_is_forgotten_by_whoever_meets_it(bucket: Bucket) -> None:
    async with running() as store:
        for meet in (store.get(ONE), read(store, ONE), read(store, ONE, length=0)):
            await store.put(ONE, b"one")
            del bucket.objects[f"cas/{ONE}"]
            assert await store.has([ONE]) == [3]
            with pytest.raises(BlobNotFoundError, match="CAS"):
                await meet
            assert await store.has([ONE]) == [None]


async def test_a_server_that_is_away_is_tried_again_as_often_as_the_config_says(bucket: Bucket) -> None:
    async with running() as store:
        bucket.errors["head"] = [TransientError("down")] * 2
        assert await store.has([ONE]) == [None]
        assert bucket.took() == ["head"] * 3
        assert counted(store) == {"lookups": 1, "retries": 2}
        bucket.errors["head"] = [TransientError("down")] * 3
        with pytest.raises(UnavailableError, match="store CAS: down") as caught:
            await store.has([ONE])
        assert caught.value.retryable
        assert bucket.took() == ["head"] * 3
        assert counted(store) == {"lookups": 2, "retries": 4, "failed": 1}
        bucket.errors["head"] = [RefusedError("no")]
        with pytest.raises(UnavailableError) as caught:
            await store.has([ONE])
        assert not caught.value.retryable
        assert bucket.took() == ["head"]


# --- reading


@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
async def test_a_blob_is_one_request_however_it_is_read(bucket: Bucket, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    digest = digest_of(data)
    async with running() as store:
        bucket.store(f"cas/{digest}", data)
        assert await store.get(digest) == data
        assert [name for name in bucket.took() if name != "read"] == ["get"]
        assert await read(store, digest) == data
        assert [name for name in bucket.took() if name != "read"] == ["get"]
        assert await read(store, digest, offset=1, length=size) == data[1:]
        assert [name for name in bucket.took() if name != "read"] == ([f"get 1+{size - 1}"] if size > 1 else ["head"])
        assert bucket.open_bodies == 0
        assert store.statistics()["downloads"] == 2 + (size > 1)


async def test_an_answer_that_comes_in_small_pieces_is_read_to_its_end_by_one_request(bucket: Bucket) -> None:
    data = bytes(range(250)) * 10_000
    bucket.most_per_read = 400_000
    bucket.store("cas/~name", data)
    bucket.store(f"cas/{digest_of(data)}", data)
    async with running() as store:
        for key in ("name", digest_of(data)):
            bucket.took()
            assert await store.get(key) == data
            assert bucket.took().count("get") == 1
            assert await read(store, key) == data
        assert bucket.open_bodies == 0


async def test_a_blob_that_may_not_be_had_whole_is_not_asked_for_and_a_value_is_given_up(bucket: Bucket) -> None:
    async with running() as store:
        large, exact = Digest("ab" * 32, MAX_WHOLE + 1), bytes(MAX_WHOLE)
        with pytest.raises(TooLargeError, match=str(MAX_WHOLE + 1)):
            await store.get(large)
        assert bucket.took() == []
        bucket.store("cas/~exact", exact)
        assert await store.get("exact") == exact
        bucket.store("cas/~large", exact + b"x")
        with pytest.raises(TooLargeError):
            await store.get("large")
        assert bucket.open_bodies == 0


async def test_a_broken_download_goes_on_at_the_byte_and_counts_its_retries_anew_with_each_piece(
    bucket: Bucket,
) -> None:
    data = bytes(range(256)) * 5 * 4096
    digest = digest_of(data)
    async with running() as store:
        bucket.store(f"cas/{digest}", data)
        async with store.open(digest) as reader:
            got = bytearray()
            for end in (1, 3, 5):  # the first piece is the smallest
                while len(got) < end * PIECE:
                    got += b"".join(await reader.receive_parts())
                bucket.errors["read"] = [TransientError("broken")] * 2
            assert got == data
        assert [name for name in bucket.took() if name != "read"] == [
            "get", f"get {PIECE}+{4 * PIECE}", f"get {PIECE}+{4 * PIECE}", f"get {3 * PIECE}+{2 * PIECE}",
            f"get {3 * PIECE}+{2 * PIECE}",
        ]  # fmt: skip
        assert store.statistics()["retries"] == 4
        assert bucket.open_bodies == 0
        bucket.errors["read"] = []
        async with store.open(digest) as reader:
            await reader.receive_parts()
            bucket.errors["read"] = [TransientError("broken")] * 3
            with pytest.raises(UnavailableError, match="broken"):
                await drain(reader)
        assert bucket.open_bodies == 0


async def test_a_blob_that_was_replaced_meanwhile_is_read_on_and_a_value_is_not(bucket: Bucket) -> None:
    data = bytes(3 * PIECE)
    digest = digest_of(data)
    async with running() as store:
        for key, name in ((digest, f"cas/{digest}"), ("name", "cas/~name")):
            bucket.store(name, data)
            async with store.open(key) as reader:
                await reader.receive_parts(PIECE)
                bucket.store(name, data)
                bucket.errors["read"] = [TransientError("broken")]
                if key is digest:
                    assert len(await drain(reader, taken=PIECE)) == 2 * PIECE
                else:
                    with pytest.raises(UnavailableError, match="is another one"):
                        await drain(reader)
        bucket.store(f"cas/{digest}", data)
        async with store.open(digest) as reader:
            await reader.receive_parts(PIECE)
            bucket.store(f"cas/{digest}", data + b"x")
            bucket.errors["read"] = [TransientError("broken")]
            with pytest.raises(BlobNotFoundError):
                await drain(reader)
        assert bucket.open_bodies == 0


async def test_ranges_of_values_are_clamped_to_the_size_that_they_have(bucket: Bucket) -> None:
    async with running() as store:
        bucket.store("cas/~name", b"0123456789")
        assert await read(store, "name", offset=3, length=4) == b"3456"
        assert bucket.took() == ["head", "get 3+4", "read"]
        assert await read(store, "name", offset=8, length=5) == b"89"
        assert await read(store, "name", offset=10) == b""
        assert await read(store, "name", length=0) == b""
        bucket.took()
        for offset in (11, -1):
            with pytest.raises(RangeError):
                await read(store, "name", offset=offset)
        bucket.store(f"cas/{ONE}", b"one")
        for offset in (4, -1):
            with pytest.raises(RangeError):
                await read(store, ONE, offset=offset)
        assert bucket.took() == ["head", "head"]
        assert await read(store, ONE, offset=3) == b""
        assert bucket.took() == ["head"]
        with pytest.raises(BlobNotFoundError):
            await read(store, TWO, offset=3)


async def test_a_value_that_is_replaced_between_the_two_requests_is_asked_for_again(bucket: Bucket) -> None:
    async with running() as store:
        bucket.store("cas/~name", b"0123456789")
        values = [b"abcdefghij", b"ABCDEFGHIJ"]

        def replace() -> None:
            if values:
                bucket.store("cas/~name", values.pop(0))

        bucket.before["get 3+4"] = replace
        assert await read(store, "name", offset=3, length=4) == b"DEFG"
        assert bucket.took() == ["head", "get 3+4"] * 3 + ["read"]


# --- writing


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", [1, 5 * MIB, 5 * MIB + 1, 15 * MIB, 15 * MIB + 7])
async def test_an_upload_is_one_request_or_parts_of_one_size(bucket: Bucket, size: int, known: bool) -> None:
    data = bytes(range(251)) * (size // 251) + bytes(size % 251)
    key = digest_of(data) if known else "name"
    parts = -(-size // (5 * MIB))
    async with running() as store:
        await store.write(key, PartsReader(split(data, MIB), size=size if known else -1))
        asked = bucket.took()
        if size < 5 * MIB or (known and size == 5 * MIB):
            assert asked == ["put"]
        else:
            assert asked[0] == "create"
            assert asked[-1] == "complete"
            assert sorted(asked[1:-1]) == [f"part {number + 1}" for number in range(parts)]
        assert bucket.objects["cas/" + key_text(key)][0] == data
        assert bucket.uploads == {}
        statistics = store.statistics()
        assert (statistics["uploads"], statistics["bytes_uploaded"]) == (1, size if known else 0)
        assert statistics["upload_memory"] == statistics["uploads_to_abort"] == statistics["threads_busy"] == 0
        assert await store.has([key]) == [size]
        assert bucket.took() == ([] if known else ["head"])


@pytest.mark.parametrize("where", ["create", "part 1", "part 3", "complete"])
async def test_each_request_of_an_upload_is_tried_again_by_itself(bucket: Bucket, where: str) -> None:
    data = bytes(11 * MIB)
    async with running() as store:
        bucket.errors[where] = [TransientError("down")] * 2
        await store.write(digest_of(data), BytesReader(data))
        asked = bucket.took()
        assert asked.count(where) == 3
        assert len(asked) == 7
        assert store.statistics()["retries"] == 2
        assert bucket.objects[f"cas/{digest_of(data)}"][0] == data


@pytest.mark.parametrize("where", ["create", "part 1", "part 3", "complete"])
async def test_an_upload_that_fails_is_aborted_and_gives_its_memory_back(bucket: Bucket, where: str) -> None:
    data = bytes(11 * MIB)
    digest = digest_of(data)
    async with running() as store:
        bucket.errors[where] = [TransientError("down")] * 3
        with pytest.raises(UnavailableError, match="down"):
            await store.write(digest, BytesReader(data))
        asked = bucket.took()
        assert asked.count(where) == 3
        assert asked.count("abort") == (where != "create")
        assert bucket.uploads == {}
        assert bucket.objects == {}
        statistics = store.statistics()
        assert statistics["upload_memory"] == statistics["uploads_to_abort"] == statistics["bytes_uploaded"] == 0
        assert await store.has([digest]) == [None], "it is not remembered"


async def test_a_reader_that_fails_aborts_the_upload(bucket: Bucket) -> None:
    data = bytes(12 * MIB)
    async with running() as store:
        for cut, error in ((11 * MIB, UploadMismatchError), (6 * MIB, UploadMismatchError)):
            with pytest.raises(error, match=f"ended after {cut} bytes"):
                await store.write(digest_of(data), PartsReader(split(data[:cut], MIB), size=-1))
        with pytest.raises(UploadMismatchError, match="more than"):
            await store.write(digest_of(data[:MIB]), PartsReader(split(data[: MIB + 1], MIB), size=-1))
        assert bucket.uploads == {}
        assert bucket.objects == {}
        assert bucket.took().count("abort") == 2
        assert store.statistics()["upload_memory"] == 0


async def test_an_abort_that_fails_is_tried_again_later(
    bucket: Bucket, autojump_clock: object, no_threads: None
) -> None:
    data = bytes(11 * MIB)
    async with running() as store:
        bucket.errors["complete"] = [RefusedError("no")]
        bucket.errors["abort"] = [TransientError("down")] * 2
        with pytest.raises(UnavailableError):
            await store.write(digest_of(data), BytesReader(data))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(bucket.uploads) == 1
        assert store.statistics()["uploads_to_abort"] == 1
        await trio.sleep(AGAIN_S * 2.5)
        assert bucket.uploads == {}
        assert store.statistics()["uploads_to_abort"] == 0
        assert bucket.took().count("abort") == 3


async def test_an_abort_that_takes_longer_than_its_caller_waits_is_made_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody learns what has become of it, and parts that nobody aborts are paid for."""
    monkeypatch.setattr("nl_cloud_object_store.upload.GRACE_S", 0.1)
    go_on = threading.Event()

    def hang_once() -> None:
        del bucket.before["abort"]
        go_on.wait(60)
        raise TransientError("down")

    data = bytes(11 * MIB)
    async with running() as store:
        bucket.before["abort"] = hang_once
        bucket.errors["complete"] = [RefusedError("no")]
        with pytest.raises(UnavailableError):
            await store.write(digest_of(data), BytesReader(data))
        go_on.set()
        with trio.fail_after(90):
            while store.statistics()["uploads_to_abort"]:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert bucket.uploads == {}


async def test_an_upload_that_the_server_has_lost_begins_anew_where_the_source_can(bucket: Bucket) -> None:
    data = bytes(range(256)) * 11 * 4096
    digest = digest_of(data)
    async with running() as store:
        for losses, works in ((2, True), (3, False)):
            bucket.objects.clear()
            bucket.errors["complete"] = [UploadGoneError("gone")] * losses
            if works:
                await store.write(digest, BytesReader(data))
                assert bucket.objects[f"cas/{digest}"][0] == data
            else:
                with pytest.raises(UnavailableError, match="gone"):
                    await store.write(digest, BytesReader(data))
            assert bucket.took().count("create") == 3
            assert bucket.uploads == {}
        bucket.errors["complete"] = [UploadGoneError("gone")]
        with pytest.raises(UnavailableError, match="gone"):
            await store.write(digest, PartsReader(split(data, MIB)))
        bucket.store(f"cas/{digest}", data)
        bucket.errors["complete"] = [UploadGoneError("gone")]
        await store.write(digest, PartsReader(split(data, MIB)))  # another has written it meanwhile


async def test_a_value_that_the_server_has_lost_is_not_taken_for_the_older_one_of_the_same_size(bucket: Bucket) -> None:
    old, new = bytes(11 * MIB), b"x" * (11 * MIB)
    async with running() as store:
        bucket.store("cas/~name", old)
        bucket.errors["complete"] = [UploadGoneError("gone")]
        with pytest.raises(UnavailableError, match="gone"):
            await store.write("name", PartsReader(split(new, MIB)))
        assert bucket.objects["cas/~name"][0] == old
        bucket.errors["complete"] = [UploadGoneError("gone")]
        await store.write("name", BytesReader(new))
        assert bucket.objects["cas/~name"][0] == new, "it began anew"
        assert "head" not in bucket.took()
        bucket.errors["complete"] = [TransientError("lost"), UploadGoneError("gone")]
        await store.write("name", PartsReader(split(new, MIB)))  # the first request may have worked
        assert bucket.took()[-3:] == ["complete", "complete", "head"]


async def test_what_no_parts_of_the_largest_size_can_hold_is_too_large_and_is_not_begun(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bucket, "MAX_PARTS", 2)
    monkeypatch.setattr(Bucket, "MAX_PART", 6 * MIB)
    async with running() as store:
        await store.write("name", PartsReader(split(bytes(12 * MIB), MIB)))
        bucket.took()
        reader = PartsReader(split(bytes(12 * MIB + 2), MIB))
        with pytest.raises(TooLargeError, match=f"{12 * MIB + 2} bytes are more than an object can have"):
            await store.write("name", reader)
        assert (bucket.took(), reader.calls) == ([], 0)
        assert store.statistics()["upload_memory"] == 0


@pytest.mark.parametrize(("in_order", "threads", "parts", "most"), [
    (False, 16, 10, 10), (False, 2, 10, 3), (True, 16, 10, 2), (True, 16, 1, 1),
])
async def test_an_upload_takes_as_many_parts_into_memory_as_can_be_of_use(
    bucket: Bucket, in_order: bool, threads: int, parts: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are sent, and one that is being taken; of those that go in order only one is sent."""
    monkeypatch.setattr(Bucket, "IN_ORDER", in_order)
    size, go_on = 12 * 5 * MIB, threading.Event()
    for number in range(1, 13):
        bucket.before[f"part {number}"] = go_on.wait  # type: ignore[assignment]
    async with running(max_threads=threads, multipart_max_concurrent_uploads=parts) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, "name", PartsReader(split(bytes(size), 5 * MIB)))
            with trio.fail_after(120):
                while store.statistics()["upload_memory"] < most * 5 * MIB or "part 1" not in bucket.asked:  # noqa: ASYNC110
                    await trio.sleep(0.001)
            await trio.testing.wait_all_tasks_blocked()
            assert store.statistics()["upload_memory"] == most * 5 * MIB
            if in_order:
                assert store.statistics()["threads_busy"] == 1
                assert bucket.took() == ["create", "part 1"]
            go_on.set()
        assert len(bucket.objects["cas/~name"][0]) == size


async def test_a_cancelled_upload_of_a_blob_in_one_request_waits_for_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are the same whenever they arrive; those of a value, or a deletion, could come after what is next."""
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        go_on.wait(60)

    monkeypatch.setattr("nl_cloud_object_store.threads.GRACE_S", 100)
    bucket.before["put"] = bucket.before["delete"] = wait
    async with running() as store:
        for request, ended in (
            (lambda: store.put(ONE, b"one"), False), (lambda: store.put("name", b"one"), True),
            (lambda: store.delete([ONE]), True),
        ):
            begun.clear()
            go_on.clear()
            began = time.monotonic()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(request)
                await trio.to_thread.run_sync(begun.wait, 60)
                nursery.cancel_scope.cancel()
                if ended:
                    threading.Timer(0.05, go_on.set).start()
            assert go_on.is_set() == ended
            assert time.monotonic() - began < 50
            go_on.set()


async def test_a_cancelled_upload_is_not_aborted_while_its_last_request_is_under_way(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that gets both at once may do either, and the next upload of that name is begun after both."""
    monkeypatch.setattr("nl_cloud_object_store.threads.GRACE_S", 100)
    begun, go_on, ended_before = threading.Event(), threading.Event(), list[bool]()

    def wait() -> None:
        begun.set()
        go_on.wait(60)

    bucket.before["complete"] = wait
    bucket.before["abort"] = lambda: ended_before.append(go_on.is_set())
    data = bytes(11 * MIB)
    async with running() as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.write, digest_of(data), PartsReader(split(data, MIB)))
        await trio.to_thread.run_sync(begun.wait, 60)
        nursery.cancel_scope.cancel()
        threading.Timer(0.1, go_on.set).start()
    assert ended_before == [True]


@pytest.mark.parametrize(("stored", "works"), [("all", True), ("another size", False), ("nothing", False)])
async def test_an_answer_that_was_lost_is_looked_for(bucket: Bucket, stored: str, works: bool) -> None:
    """The request has worked, its answer was lost: asked again, the upload is gone."""
    data = bytes(11 * MIB)
    digest = digest_of(data)
    async with running() as store:
        def lose() -> None:
            if stored == "all":
                bucket.store(f"cas/{digest}", data)
            elif stored == "another size":
                bucket.store(f"cas/{digest}", data[1:])

        bucket.before["complete"] = lose
        bucket.errors["complete"] = [TransientError("lost"), UploadGoneError("gone")]
        reader = PartsReader(split(data, MIB))
        if works:
            await store.write(digest, reader)
        else:
            with pytest.raises(UnavailableError, match="gone"):
                await store.write(digest, reader)
        assert "head" in bucket.took()


async def test_parts_of_one_upload_are_under_way_together_up_to_a_number(bucket: Bucket) -> None:
    data = bytes(5 * MIB) * 6
    lock, under_way = threading.Lock(), [0, 0]

    def enter() -> None:
        with lock:
            under_way[0] += 1
            under_way[1] = max(under_way)
        time.sleep(0.02)
        with lock:
            under_way[0] -= 1

    for at_once in (1, 2, 4):
        under_way[:] = [0, 0]
        for number in range(1, 7):
            bucket.before[f"part {number}"] = enter
        async with running(multipart_max_concurrent_uploads=at_once) as store:
            await store.write("name", PartsReader(split(data, 5 * MIB), size=len(data)))
        assert 1 <= under_way[1] <= at_once


async def test_what_is_put_is_not_what_its_caller_changes_afterwards(bucket: Bucket) -> None:
    async with running() as store:
        data = bytearray(b"one")
        await store.put(ONE, data)
        data[:] = b"two"
        assert bucket.objects[f"cas/{ONE}"][0] == b"one"
        with pytest.raises(UploadMismatchError, match="has 3 bytes, its digest says 4"):
            await store.put(Digest("ab" * 32, 4), b"one")
        reader = PartsReader([b"one"])
        with pytest.raises(UploadMismatchError):
            await store.write(Digest("ab" * 32, 4), reader)
        assert reader.calls == 0
        failed = await store.put_many([(TWO, b"two"), (Digest("ab" * 32, 4), b"one")])
        assert failed[0] is None
        assert isinstance(failed[1], UploadMismatchError)
        await store.put(digest_of(b""), b"")
        await store.write(digest_of(b""), BytesReader(b""))
        assert bucket.took() == ["put", "put"]


async def test_of_two_values_for_one_key_in_a_batch_the_last_is_there_and_is_all_that_is_sent(bucket: Bucket) -> None:
    action = ActionKey("ab" * 32, 5)
    async with running() as store:
        for older, newer in ((b"1", b"22"), (bytes(9 * MIB), b"small"), (b"small", bytes(9 * MIB))):
            bucket.took()
            assert await store.put_many([(action, older), (ONE, b"one"), (action, newer)]) == [None, None, None]
            assert ("complete" in bucket.took()) == (len(newer) > MIB)
            assert await store.has([action]) == [len(newer)]
        bucket.errors["put"] = [TransientError("down")] * 3
        first, last = await store.put_many([(action, b"older"), (action, b"newer")])
        assert isinstance(first, UnavailableError)
        assert first is last


@pytest.mark.parametrize(
    ("error", "kind"),
    [(FullError("quota"), ExhaustedError), (ValueTooLargeError("5 TB"), TooLargeError),
     (RefusedError("no"), UnavailableError), (TransientError("x", code="DataLoss"), UnavailableError)],
)  # fmt: skip
async def test_failures_have_the_contracts_names(bucket: Bucket, error: Exception, kind: type[Exception]) -> None:
    async with running(retry=RetryOptions()) as store:
        bucket.errors["put"] = [error]
        with pytest.raises(kind, match=f"^store CAS: {error}$") as caught:
            await store.put(ONE, b"one")
        assert type(caught.value) is kind
        assert store.statistics()["failed"] == 1


# --- removal, listing


async def test_what_is_deleted_is_forgotten_also_under_its_other_names(bucket: Bucket) -> None:
    async with running() as store:
        await store.put_many([(ONE, b"one"), (TWO, b"two")])
        bucket.took()
        await store.delete([ONE, ForeignKey(*TWO[:2]), ONE, digest_of(b"")])
        assert bucket.took() == ["delete", "delete"]
        assert await store.has([ONE, TWO]) == [None, None]
        await store.put(ONE, b"one")
        bucket.errors["delete"] = [RefusedError("no")]
        with pytest.raises(UnavailableError, match="no"):
            await store.delete([ONE])
        bucket.took()
        assert await store.has([ONE]) == [3]
        assert bucket.took() == ["head"], "it may be gone, for all that is known"
        assert store.capability(Deletes) is store.capability(Scans) is store
        assert store.capability(Removals) is None
        assert store.capability(LocalFiles) is None


async def test_while_something_is_being_deleted_it_is_asked_for_and_afterwards_forgotten_again(bucket: Bucket) -> None:
    blake3 = Digest("ab" * 32, 3, DigestFunction.BLAKE3)
    asked, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        asked.set()
        go_on.wait(60)

    bucket.before["delete"] = wait
    async with running() as store:
        for digest in (ONE, blake3):
            asked.clear()
            go_on.clear()
            await store.put(digest, b"one")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.delete, [digest])
                await trio.to_thread.run_sync(asked.wait, 60)
                bucket.took()
                assert await store.has([digest]) == [3]
                assert bucket.took() == ["head"]
                go_on.set()
            assert await store.has([digest]) == [None]


async def test_what_may_have_been_deleted_although_no_answer_came_is_asked_for(bucket: Bucket) -> None:
    """Also where a lookup has found it there since the deletion began."""
    asked, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        asked.set()
        go_on.wait(60)

    bucket.before["delete"] = wait
    async with running() as store:
        async def delete() -> None:
            with pytest.raises(UnavailableError):
                await store.delete([ONE])

        await store.put(ONE, b"one")
        bucket.errors["delete"] = [RefusedError("the answer cannot be read")]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(delete)
            await trio.to_thread.run_sync(asked.wait, 60)
            assert await store.has([ONE]) == [3]
            go_on.set()
        bucket.took()
        assert await store.has([ONE]) == [3]
        assert bucket.took() == ["head"]


async def test_a_download_that_is_given_up_as_it_begins_lets_its_connection_go(bucket: Bucket) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        reading.set()
        go_on.wait(60)

    bucket.before["read"] = wait
    digest = digest_of(data := bytes(3 * PIECE))
    async with running() as store:
        bucket.store(f"cas/{digest}", data)
        for attempt in (store.get, lambda key: read(store, key)):
            reading.clear()
            go_on.clear()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(attempt, digest)
                await trio.to_thread.run_sync(reading.wait, 60)
                assert bucket.open_bodies == 1
                nursery.cancel_scope.cancel()
            go_on.set()
            with trio.fail_after(120):
                while bucket.open_bodies:  # noqa: ASYNC110
                    await trio.sleep(0.001)


async def test_a_listing_has_what_is_right_and_lasts_and_pages_as_large_as_wanted(bucket: Bucket) -> None:
    async with running(consider_expired_after_s=100) as store:
        bucket.store(f"cas/{ONE}", b"one", age=90)
        bucket.store(f"cas/{TWO}", b"wrong size")
        bucket.store("cas/~name", b"value", age=50)
        bucket.store("cas/~old", b"value", age=101)
        bucket.store("cas/README", b"not ours")
        bucket.store("other/~name", b"not ours")
        page = await store.scan()
        assert sorted(page.entries, key=str) == sorted([(ONE, 3), ("name", 5)], key=str)
        assert page.cursor == ""
        assert (await store.scan(lasting=20)).entries == [("name", 5)]
        assert bucket.took() == ["list 1000"] * 2
        await store.scan(limit=5000)
        found, cursor = [], ""
        while True:
            page = await store.scan(cursor, limit=1)
            found += [key for key, _ in page.entries]
            if not (cursor := page.cursor):
                break
        assert sorted(found, key=str) == sorted([ONE, "name"], key=str)
        assert bucket.took() == ["list 1000"] + ["list 1"] * 5


# --- the connection


async def test_wrong_credentials_end_the_start_and_an_unreachable_server_does_not(
    bucket: Bucket, autojump_clock: object, no_threads: None, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.errors["probe"] = [RefusedError("no such bucket", option="bucket")]
    with pytest.raises((ConfigError, ExceptionGroup)) as caught:
        async with running():
            pass
    error = caught.value
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ConfigError)
    assert (error.path, error.problem) == ("bucket", "no such bucket")
    assert bucket.closed
    bucket.errors["probe"] = [TransientError("down")] * 3
    bucket.took()
    with caplog.at_level(logging.INFO):
        async with running() as store:
            assert bucket.took("probe") == ["probe"]
            await store.put(ONE, b"one")
            bucket.took()
            await trio.sleep(PROBE_S * 2.5)
            assert bucket.took("probe") == ["probe"] * 2
            await trio.sleep(PROBE_S)
            assert bucket.took("probe") == ["probe"]
            await trio.sleep(PROBE_S * 10)
            assert bucket.took("probe") == []
    assert "the store CAS has reached its bucket" in caplog.text


async def test_a_bucket_that_turns_out_to_refuse_us_is_told_once(
    bucket: Bucket, autojump_clock: object, no_threads: None, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.errors["probe"] = [TransientError("down"), RefusedError("no permission")]
    async with running():
        bucket.took()
        await trio.sleep(PROBE_S * 3)
        assert bucket.took("probe") == ["probe"]
        assert "the store CAS can be reached, and cannot be used: no permission" in caplog.text


async def test_an_option_with_which_there_is_no_client_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(options: object) -> ObjectClient:
        raise RefusedError("the address is none", option="endpoint")

    monkeypatch.setitem(PROVIDERS, "aws", Provider(connect, PROVIDERS["aws"].needs, PROVIDERS["aws"].takes))
    store = CloudObjectStore(options_for("a-bucket", "http://127.0.0.1:1"), BareContext("CAS"))
    with pytest.raises(ConfigError, match="the address is none") as caught:
        await store.run()
    assert caught.value.path == "endpoint"


async def test_a_good_answer_about_health_is_believed_for_a_while_and_a_bad_one_is_not(
    bucket: Bucket, autojump_clock: object, no_threads: None
) -> None:
    async with running() as store:
        bucket.took()
        for _ in range(2):
            bucket.errors["probe"] = [TransientError("down")]
            with pytest.raises(UnavailableError, match="down"):
                await store.check()
            assert bucket.took("probe") == ["probe"]
        await store.check()
        await trio.sleep(CHECKED_S - 1)
        await store.check()
        assert bucket.took("probe") == ["probe"]
        await trio.sleep(2)
        await store.check()
        assert bucket.took("probe") == ["probe"]


async def test_what_only_somebody_can_mend_is_one_line_a_minute(
    bucket: Bucket, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as store:
        for seconds, lines in ((0, 1), (1, 1), (COMPLAIN_S - 2, 1), (1, 2), (COMPLAIN_S, 3)):
            mock_clock.jump(seconds)
            bucket.errors["put"] = [RefusedError("no permission")]
            with pytest.raises(UnavailableError):
                await store.put(ONE, b"one")
            assert len(caplog.records) == lines
        assert {record.getMessage() for record in caplog.records} == {"store CAS: no permission"}


async def test_before_it_runs_it_says_so(bucket: Bucket) -> None:
    store = CloudObjectStore(options_for("a-bucket", "http://127.0.0.1:1"), BareContext("CAS"))
    for attempt in (store.has([ONE]), store.get(ONE), store.put(ONE, b"one")):
        with pytest.raises(InternalError, match="'CAS' has not been started"):
            await attempt


# --- forgotten uploads


async def test_forgotten_uploads_are_aborted_when_they_are_old_and_were_seen_twice(
    bucket: Bucket, autojump_clock: object, no_threads: None
) -> None:
    name, old = str(digest_of(bytes(1))), time.time() - FORGOTTEN_S - 60
    bucket.listed = [
        OpenUpload(f"cas/{name}", "1", old), OpenUpload(f"cas/{name}", "2", time.time() - FORGOTTEN_S + 600),
        OpenUpload("cas/not ours", "3", old), OpenUpload(f"cas/{name}.blake3", "4", old),
        OpenUpload(f"other/{name}", "5", old),
    ]  # fmt: skip
    aborted: list[str] = []
    bucket.abort_upload = lambda key, upload: aborted.append(upload)  # type: ignore[method-assign]
    async with running():
        await trio.sleep(LIST_S - 1)
        assert aborted == []
        assert bucket.took("open uploads").count("open uploads") == 3
        bucket.listed.append(OpenUpload(f"cas/{name}.ac", "6", old))
        await trio.sleep(2)
        assert sorted(aborted) == ["1", "4"]
        bucket.listed = bucket.listed[-1:]
        await trio.sleep(LIST_S)
        assert sorted(aborted) == ["1", "4", "6"]


async def test_a_look_that_fails_forgets_nothing_and_what_is_to_be_aborted_is_bounded(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeper = Sweeper(bucket, threads=ImpatientThreads(1), prefix="cas/")
    old = time.time() - FORGOTTEN_S - 60
    bucket.listed = [OpenUpload(f"cas/{digest_of(bytes(1))}", str(number), old) for number in range(5)]
    await sweeper._find_forgotten()
    bucket.errors["open uploads"] = [TransientError("down")]
    await sweeper._find_forgotten()
    assert sweeper.pending == 0
    await sweeper._find_forgotten()
    assert sweeper.pending == 5
    monkeypatch.setattr(sweeping, "MOST", 3)
    assert len(await sweeper._old_ones()) == 4, "a page more at the most"
    monkeypatch.setattr(sweeping, "PAGES", 1)
    assert len(await sweeper._old_ones()) == 2


async def test_a_look_ends_after_a_thousand_pages_and_ten_thousand_aborts_are_kept(
    bucket: Bucket, no_threads: None
) -> None:
    sweeper = Sweeper(bucket, threads=ImpatientThreads(1), prefix="cas/")
    old = time.time() - FORGOTTEN_S - 60
    bucket.listed = [OpenUpload(f"cas/{digest_of(bytes(1))}", str(number), old) for number in range(2010)]
    assert len(await sweeper._old_ones()) == 2000, "there are two on a page here"
    for number in range(10_005):
        sweeper.add("cas/x", str(number))
    assert sweeper.pending == 10_000


async def test_a_server_that_knows_no_pages_is_not_asked_for_the_same_one_for_ever(
    bucket: Bucket, no_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def first_page(prefix: str, after: object = None) -> UploadsPage:
        asked.append(after)
        return UploadsPage([], ("cas/x", "1"))

    monkeypatch.setattr(bucket, "open_uploads", first_page)
    assert await Sweeper(bucket, threads=ImpatientThreads(1), prefix="cas/")._old_ones() == set()
    assert asked == [None, ("cas/x", "1")]


async def test_aborts_wait_for_the_one_that_fails(bucket: Bucket) -> None:
    sweeper = Sweeper(bucket, threads=ImpatientThreads(1), prefix="cas/")
    for upload in "abc":
        sweeper.add("cas/x", upload)
    bucket.errors["abort"] = [TransientError("down")]
    await sweeper._abort_all()
    assert (sweeper.pending, bucket.took()) == (3, ["abort"])
    await sweeper._abort_all()
    assert (sweeper.pending, bucket.took()) == (0, ["abort"] * 3)


# --- threads


async def test_a_request_that_changes_something_is_waited_for_and_one_that_looks_is_not() -> None:
    threads = ImpatientThreads(2)
    began, may_end, ended = threading.Event(), threading.Event(), []

    def work() -> None:
        began.set()
        may_end.wait(60)
        ended.append(True)
        ended_at_last.set()

    ended_at_last = threading.Event()
    for hop, waits in ((threads.look, False), (threads.change, True)):
        began.clear()
        may_end.clear()
        ended_at_last.clear()
        ended.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hop, work)
            await trio.to_thread.run_sync(began.wait, 60)
            nursery.cancel_scope.cancel()
            if waits:
                threading.Timer(0.1, may_end.set).start()
        assert ended == ([True] if waits else [])
        may_end.set()
        await trio.to_thread.run_sync(ended_at_last.wait, 60)


async def test_a_request_that_does_not_end_is_waited_for_five_seconds(autojump_clock: object) -> None:
    threads, begun, may_end = ImpatientThreads(1), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        may_end.wait(60)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.change, work)
        await trio.to_thread.run_sync(begun.wait, 60)
        cancelled_at = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - cancelled_at == pytest.approx(5)
    may_end.set()


async def test_a_change_whose_caller_left_before_it_began_does_not_begin() -> None:
    threads = ImpatientThreads(1)
    may_end, changed = threading.Event(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.look, may_end.wait, 60)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.01) as scope:
            await threads.change(changed.append, 1)
        assert scope.cancelled_caught
        may_end.set()
    assert changed == []
    assert issubclass(AbandonedError, Exception)

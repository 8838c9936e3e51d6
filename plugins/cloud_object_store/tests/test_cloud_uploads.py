"""Uploads in bounded memory, whole or not at all: cancelled anywhere, broken off, many at once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from cloud_support import S3Server, options_for
from faulty_proxy import Fault, FaultyProxy, faulty_proxy

from nl.plugin import (
    ActionKey,
    BytesReader,
    Digest,
    TransientError,
    UnavailableError,
    UploadMismatchError,
    digest_of,
    key_text,
)
from nl.testing import (
    BareContext,
    BlockingReader,
    CancellingReader,
    FailingReader,
    PartsReader,
    make_blob,
    read,
    split,
    started as started_bare,
)
from nl_cloud_object_store import CloudObjectStore
from nl_cloud_object_store.client import OpenUpload, UploadsPage
from nl_cloud_object_store.sweep import Sweeper
from nl_cloud_object_store.threads import ImpatientThreads

MIB = 1024 * 1024


@pytest.fixture
def bucket(moto: S3Server) -> str:
    return moto.bucket()


@pytest.fixture
def proxy(moto: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(moto.port) as proxy:
        yield proxy


def running(bucket: str, url: str, **options: object):
    return started_bare(CloudObjectStore(options_for(bucket, url, remember_s=0, **options), BareContext()))


# ----------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", [5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 10 * MIB, 10 * MIB + 1])
@pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
async def test_blobs_around_the_size_of_a_part_are_whole(
    bucket: str, proxy: FaultyProxy, moto: S3Server, size: int, known: bool
) -> None:
    data = make_blob(size)
    async with running(bucket, proxy.url) as store:
        for key in (digest_of(data), ActionKey(*digest_of(b"an action")), "a name"):
            proxy.requests.clear()
            await store.write(key, PartsReader(split(data, 700_001), size=None if known else -1))
            assert moto.objects(bucket)[f"cas/{key_text(key)}"] == size
            assert await read(store, key) == data
            one_request = size <= 5 * MIB and (known or isinstance(key, Digest) or size < 5 * MIB)
            assert proxy.count("put") == (1 if one_request else 0)
    assert moto.open_uploads(bucket) == []


async def test_parts_are_as_large_as_the_config_says_and_equal(bucket: str, proxy: FaultyProxy) -> None:
    digest = digest_of(data := make_blob(20 * MIB + 7))
    async with running(bucket, proxy.url, max_retry_buffer_per_request=6 * MIB) as store:
        await store.write(digest, BytesReader(data))
        assert await read(store, digest) == data
    sizes = sorted(len(request.body) for request in proxy.requests if request.kind == "part")
    assert sizes == [2 * MIB + 7, 6 * MIB, 6 * MIB, 6 * MIB]


@pytest.mark.parametrize("delivered", [3 * MIB, 12 * MIB])
@pytest.mark.parametrize("wrong", [-1, 1], ids=["too few bytes", "too many"])
async def test_a_source_that_does_not_keep_its_promise_leaves_nothing(
    bucket: str, moto: S3Server, delivered: int, wrong: int
) -> None:
    data = make_blob(delivered)
    digest = Digest(digest_of(data).hash, delivered - wrong)
    async with running(bucket, moto.url) as store:
        with pytest.raises(UploadMismatchError):
            await store.write(digest, PartsReader(split(data, 1 << 20), size=-1))
        with pytest.raises(UploadMismatchError):
            await store.put(digest, data)
        with pytest.raises(UploadMismatchError):
            await store.write(digest, BytesReader(data))
    assert moto.objects(bucket) == {}
    assert moto.open_uploads(bucket) == []


# --------------------------------------------------------------------------------------------------- whole or nothing


async def test_a_reader_that_breaks_off_leaves_no_open_upload(bucket: str, moto: S3Server) -> None:
    digest = digest_of(data := make_blob(18 * MIB))
    async with running(bucket, moto.url) as store:
        for delivered in (0, MIB, 6 * MIB, 17 * MIB):
            error = UnavailableError("the source broke")
            reader = FailingReader(split(data[:delivered], 500_000), error, size=len(data))
            with pytest.raises(UnavailableError, match="the source broke"):
                await store.write(digest, reader)
            await settled(store)
            assert moto.objects(bucket) == {}
            assert moto.open_uploads(bucket) == []
            assert store.statistics()["upload_memory"] == 0


async def test_a_part_that_cannot_be_sent_ends_the_upload_and_aborts_it(
    bucket: str, proxy: FaultyProxy, moto: S3Server
) -> None:
    digest = digest_of(data := make_blob(30 * MIB))
    for kind in ("part", "complete"):
        proxy.requests.clear()
        async with running(bucket, proxy.url) as store:
            skip = 2 if kind == "part" else 0
            proxy.faults = [Fault(kind, "status", status=403, code="AccessDenied", times=100, skip=skip)]
            with pytest.raises(UnavailableError, match="AccessDenied"):
                await store.write(digest, PartsReader(split(data, 500_000)))
        assert proxy.count("abort") == 1
        assert moto.objects(bucket) == {}
        assert moto.open_uploads(bucket) == []


async def test_a_write_cancelled_at_any_call_of_its_reader_leaves_no_open_upload(
    bucket: str, moto: S3Server
) -> None:
    async with running(bucket, moto.url) as store:
        for step in (0, 1, 3, 6, 10, 13, 14, 15, 16):
            digest = digest_of(data := make_blob(14 * MIB, seed=step))
            with trio.CancelScope() as scope:
                await store.write(digest, CancellingReader(split(data, MIB // 2), scope, at_call=step * 4))
            await settled(store)
            assert moto.open_uploads(bucket) == []
            assert await store.has([digest]) in ([None], [len(data)])


@pytest.mark.parametrize("kind", ["create", "part", "complete"])
@pytest.mark.parametrize("when", ["as it is sent", "as it is answered"])
async def test_a_write_cancelled_during_any_request_leaves_no_open_upload(
    bucket: str, proxy: FaultyProxy, moto: S3Server, kind: str, when: str
) -> None:
    token = trio.lowlevel.current_trio_token()
    async with running(bucket, proxy.url) as store:
        for skip in range(3 if kind == "part" else 1):
            digest = digest_of(data := make_blob(16 * MIB, seed=skip))
            with trio.CancelScope() as scope:

                def cancel(scope: trio.CancelScope = scope) -> None:
                    token.run_sync_soon(scope.cancel)

                slow = Fault(kind, "lose answer", action=cancel) if when == "as it is answered" else None
                proxy.faults = [slow or Fault(kind, "call", action=cancel, skip=skip)]
                await store.write(digest, PartsReader(split(data, 500_000)))
            assert scope.cancelled_caught
            await settled(store)
            assert moto.open_uploads(bucket) == [] or kind == "create"
            assert await store.has([digest]) in ([None], [len(data)])
            for key in moto.open_uploads(bucket):  # whose id never came back: for the bucket's lifecycle rule
                assert when == "as it is answered", key


async def settled(store: CloudObjectStore) -> None:
    """Waits for the aborts that did not succeed at once: a request may take longer than a cancelled caller waits."""
    with trio.fail_after(90):
        while store.statistics()["uploads_to_abort"]:  # noqa: ASYNC110
            await trio.sleep(0.01)


class Held:
    """A request that stays in the proxy until `go_on`. Its write is cancelled, and waits for it in vain."""

    def __init__(self, kind: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._scope = trio.CancelScope()
        proxy.faults = [Fault(kind, "call", action=self._hold)]
        monkeypatch.setattr("nl_cloud_object_store.threads.GRACE_S", 0.01)
        monkeypatch.setattr("nl_cloud_object_store.upload.GRACE_S", 0.01)

    def _hold(self) -> None:
        self._token.run_sync_soon(self._scope.cancel)
        assert self.go_on.wait(60)

    async def cancelled_write(self, store: CloudObjectStore) -> None:
        with self._scope:
            await store.write(digest_of(data := make_blob(11 * MIB)), PartsReader(split(data, 500_000)))
        assert self._scope.cancelled_caught


async def test_an_upload_begun_too_late_is_aborted_by_the_sweeper_where_its_thread_could_not(
    bucket: str, proxy: FaultyProxy, moto: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held("create", proxy, monkeypatch)
    async with running(bucket, proxy.url) as store:
        await held.cancelled_write(store)
        proxy.faults = [Fault("abort", "status")]
        held.go_on.set()
        with trio.fail_after(90):
            while proxy.count("abort") < 2:  # noqa: ASYNC110
                await trio.sleep(0.01)
        await settled(store)
    assert moto.open_uploads(bucket) == []


async def test_a_part_that_comes_after_the_abort_is_followed_by_another_abort(
    bucket: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held("part", proxy, monkeypatch)
    async with running(bucket, proxy.url) as store:
        await held.cancelled_write(store)
        with trio.fail_after(90):
            # An abort that took longer than its caller waits goes on in its thread, or may not even have begun there.
            while store.statistics()["uploads_to_abort"] != 1 or store.statistics()["threads_busy"] > 1:  # noqa: ASYNC110
                await trio.sleep(0.01)
        proxy.requests.clear()
        held.go_on.set()
        await settled(store)
    assert proxy.kinds() == ["abort"]


async def test_a_request_that_no_thread_had_begun_when_its_caller_was_cancelled_is_never_made(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    run_sync, scope, go_on, made = trio.to_thread.run_sync, trio.CancelScope(), threading.Event(), []

    async def run_late(work, **options):
        token = trio.lowlevel.current_trio_token()

        def late() -> None:
            token.run_sync_soon(scope.cancel)
            assert go_on.wait(60)
            work()

        await run_sync(late, **options)

    monkeypatch.setattr("trio.to_thread.run_sync", run_late)
    threads = ImpatientThreads(1)
    with scope:
        await threads.change(made.append, "a request")
    assert scope.cancelled_caught
    go_on.set()
    async with threads.limiter:  # the thread has ended
        assert made == []


async def test_a_put_cancelled_during_its_request_is_whole_or_not_there(bucket: str, proxy: FaultyProxy) -> None:
    token = trio.lowlevel.current_trio_token()
    async with running(bucket, proxy.url) as store:
        for number in range(5):
            digest = digest_of(data := make_blob(2 * MIB, seed=number))
            buffer = bytearray(data)
            with trio.CancelScope() as scope:
                proxy.faults = [Fault("put", "call", action=lambda scope=scope: token.run_sync_soon(scope.cancel))]
                await store.put(digest, buffer)
            buffer[:] = bytes(len(buffer))
            await trio.to_thread.run_sync(quiet, proxy)
            if await store.has([digest]) == [len(data)]:
                assert await read(store, digest) == data


async def test_what_an_abandoned_thread_still_sends_is_not_what_the_caller_writes_there_next(
    bucket: str, moto: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, sent, go_on, done = trio.lowlevel.current_trio_token(), [], threading.Event(), threading.Event()
    digest, buffer = digest_of(b"data"), bytearray(b"data")
    async with running(bucket, moto.url) as store:

        def put_late(key: str, data: bytes) -> None:
            token.run_sync_soon(scope.cancel)
            go_on.wait(20)
            sent.append(bytes(data))
            done.set()

        monkeypatch.setattr(store._connection.client, "put", put_late)
        for lend in (lambda: buffer, lambda: memoryview(buffer)):
            buffer[:] = b"data"
            go_on.clear()
            done.clear()
            with trio.CancelScope() as scope:
                await store.put(digest, lend())
            assert scope.cancelled_caught
            buffer[:] = b"else"
            go_on.set()
            assert done.wait(20)
    assert sent == [b"data", b"data"]


async def test_a_cancelled_write_of_a_value_does_not_come_after_the_next_one(bucket: str, proxy: FaultyProxy) -> None:
    key, token = ActionKey(*digest_of(b"an action")), trio.lowlevel.current_trio_token()
    async with running(bucket, proxy.url) as store:
        for number in range(5):
            with trio.CancelScope() as scope:

                def cancel_and_dawdle(scope: trio.CancelScope = scope) -> None:
                    token.run_sync_soon(scope.cancel)
                    threading.Event().wait(0.1)

                proxy.faults = [Fault("put", "call", action=cancel_and_dawdle)]
                await store.put(key, b"old %d" % number)
            await store.put(key, b"new %d" % number)
            await trio.to_thread.run_sync(quiet, proxy)
            assert await store.get(key) == b"new %d" % number


def quiet(proxy: FaultyProxy) -> None:
    """Waits until no request is under way."""
    while proxy.busy:
        threading.Event().wait(0.01)


async def test_what_could_not_be_aborted_is_aborted_when_the_server_is_back(
    bucket: str, proxy: FaultyProxy, moto: S3Server
) -> None:
    digest = digest_of(data := make_blob(11 * MIB))
    async with running(bucket, proxy.url) as store:
        proxy.faults = [Fault("abort", "status", times=1)]
        reader = FailingReader(split(data[: 7 * MIB], 500_000), UnavailableError("the source broke"), size=len(data))
        with pytest.raises(UnavailableError, match="the source broke"):
            await store.write(digest, reader)
        await settled(store)
        assert proxy.count("abort") == 2
        assert moto.open_uploads(bucket) == []


# ------------------------------------------------------------------------------------------------ forgotten uploads


class Uploads:
    """A client as the sweeper sees it: pages of one upload. Each look shows one more, which is gone at the next."""

    def __init__(self, uploads: list[OpenUpload], *, failures: int) -> None:
        self.uploads = uploads
        self.failures = failures
        self.looks = 0
        self.aborted: list[str] = []

    def open_uploads(self, prefix: str, after: tuple[str, str] | None = None) -> UploadsPage:
        if after is None:
            self.looks += 1
            return UploadsPage([OpenUpload(NAME, f"seen at look {self.looks} only", OLD)], ("", "0"))
        at = int(after[1])
        return UploadsPage(self.uploads[at : at + 1], ("", str(at + 1)) if at + 1 < len(self.uploads) else None)

    def abort_upload(self, key: str, upload: str) -> None:
        if self.failures:
            self.failures -= 1
            raise TransientError("not now")
        self.aborted.append(upload)
        self.uploads = [each for each in self.uploads if each.upload != upload]


OLD = time.time() - 2 * 86400
NAME = "cas/" + "ab" * 32 + "-7000000"


async def test_only_old_uploads_of_ours_that_were_there_at_the_last_look_are_aborted() -> None:
    uploads = Uploads([
        OpenUpload(NAME, "young", time.time()), OpenUpload("cas/a-film.mp4", "somebody else's", OLD),
        OpenUpload(f"{NAME}.mp4/x", "another's", OLD), OpenUpload(NAME, "forgotten", OLD),
    ], failures=2)
    sweeper = Sweeper(uploads, threads=ImpatientThreads(2), prefix="cas/", again_s=0.01, list_s=0.01)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sweeper.run)
        with trio.fail_after(120):
            while uploads.looks < 6 or sweeper.pending:  # noqa: ASYNC110
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert set(uploads.aborted) == {"forgotten"}
    assert [each.upload for each in uploads.uploads] == ["young", "somebody else's", "another's"]


async def test_a_look_for_forgotten_uploads_that_takes_longer_than_it_may_is_followed_by_the_next() -> None:
    uploads = Uploads([], failures=0)
    sweeper = Sweeper(uploads, threads=ImpatientThreads(2), prefix="cas/", list_s=0.0)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sweeper.run)
        with trio.fail_after(120):
            while uploads.looks < 3:  # noqa: ASYNC110
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_open_uploads_are_listed_to_the_last_page(
    rclone: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nl_cloud_object_store.s3.PAGE", 2)
    bucket = rclone.bucket()
    async with running(bucket, rclone.url) as store:
        client = store._connection.client
        begun = {(f"cas/{name}", client.create_upload(f"cas/{name}")) for name in ("a", "b", "b", "b", "c")}
        client.create_upload("somebody else's")
        found: list[OpenUpload] = []
        page = client.open_uploads("cas/")
        found += page.uploads
        while page.after is not None:
            page = client.open_uploads("cas/", page.after)
            found += page.uploads
    assert {(each.key, each.upload) for each in found} == begun
    assert len(found) == len(begun)


# ---------------------------------------------------------------------------------------------------- bounded memory

MEMORY = '''
import sys, os, resource, trio
sys.path.insert(0, sys.argv[1])
from cloud_support import options_for
from nl.plugin import Reader
from nl.testing import BareContext, started
from nl_cloud_object_store import CloudObjectStore

PIECE = os.urandom(1 << 18)


class Source(Reader):
    def __init__(self, size):
        self.size = self.left = size

    async def receive_parts(self, max_bytes=1 << 18):
        await trio.lowlevel.checkpoint()
        part = memoryview(PIECE)[: min(max_bytes, self.left, len(PIECE))]
        self.left -= len(part)
        return (part,) if part else ()


async def main():
    bucket, url, size, count, more = sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), eval(sys.argv[6])
    async with started(CloudObjectStore(options_for(bucket, url, **more), BareContext())) as store:
        await store.put("warm", b"up")
        await store.write("warm", Source(6 << 20))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(store.write, str(number), Source(size))
        after_writing = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(count):
            got = 0
            async with store.open(str(number)) as reader:
                while parts := await reader.receive_parts():
                    got += sum(map(len, parts))
            assert got == size
        print((after_writing - before) // 1024, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)


trio.run(main)
'''


@pytest.mark.parametrize(("size", "count", "options", "most"), [
    (100 * MIB, 1, {"multipart_max_concurrent_uploads": 4}, 4 * 5 + 15),
    (30 * MIB, 12, {"max_upload_memory": 40 * MIB}, 40 + 25),
], ids=["one of 100 MiB, four parts at once", "twelve of 30 MiB, 40 MiB for all"])
def test_memory_is_bounded(rclone: S3Server, size: int, count: int, options: dict, most: int) -> None:
    """Peak of resident memory over that of a small multipart upload, in a process of its own."""
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", MEMORY, here, rclone.bucket(), rclone.url, str(size), str(count), repr(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    writing, both = map(int, done.stdout.split())
    assert writing <= most, f"{writing} MiB"
    assert both <= most + 5, f"{both} MiB with reading"


async def test_uploads_that_find_no_memory_wait_and_go_on(bucket: str, moto: S3Server) -> None:
    blobs = [make_blob(11 * MIB, seed=seed) for seed in range(6)]
    async with running(bucket, moto.url, max_upload_memory=12 * MIB, max_threads=2) as store:
        stalled = BlockingReader([b"x" * 1000], rest=make_blob(MIB))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, "stalled", stalled)
            await stalled.blocked.wait()
            async with trio.open_nursery() as uploads:
                for number, blob in enumerate(blobs):
                    uploads.start_soon(store.write, str(number), PartsReader(split(blob, 1 << 20)))
            stalled.go_on.set()
        for number, blob in enumerate(blobs):
            assert await read(store, str(number)) == blob
        assert store.statistics()["upload_memory"] == 0

"""Opening blobs: what is a hit, what a miss, what is set aside, and that no descriptor stays behind."""

import errno
import os

import pytest
import trio
import trio.testing

from nl.blob.hashing import digest_of
from nl.plugin import (
    EMPTY_DIGESTS,
    MAX_WHOLE,
    ActionKey,
    BlobNotFoundError,
    CorruptBlobError,
    Digest,
    DigestFunction,
    Link,
    LocalFiles,
    NlError,
    RangeError,
    TooLargeError,
    UnavailableError,
    key_text,
)
from nl.stores.filesystem import mirror, quarantine, verify
from nl.testing import PartsReader, find, make_blob, read, split

from .conftest import put
from .test_verification import flip, overwrite, replace


@pytest.fixture
def unwatched(monkeypatch):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def seen(store):
    return store.statistics()["hits"], store.statistics()["misses"]


async def missing(attempt):
    with pytest.raises(BlobNotFoundError, match="the filesystem store 'CAS'"):
        await attempt


async def test_reads_are_hits_or_misses_whichever_way_and_questions_are_neither(place):
    gone = digest_of(b"gone")
    async with place.running() as store:
        digest, key = await put(store, b"blob"), ActionKey("ab" * 32, 3)
        await store.put(key, b"result")
        await store.put("name", b"value")
        await store.has([digest, gone, key, "name"])
        assert seen(store) == (0, 0)
        for hits, each in enumerate((digest, key, "name"), 1):
            await store.get(each)
            assert seen(store) == (hits, 0)
        await read(store, digest)
        await store.get_many([digest, "name"])
        assert seen(store) == (6, 0)
        for misses, each in enumerate((gone, ActionKey("cd" * 32, 3), "none"), 1):
            await missing(store.get(each))
            assert seen(store) == (6, misses)
        await missing(read(store, gone))
        assert seen(store) == (6, 4)
        for empty in EMPTY_DIGESTS:
            assert await store.get(empty) == await read(store, empty) == b""
        assert seen(store) == (6, 4)


async def test_what_is_gone_or_wrong_is_one_miss(place):
    async with place.running() as store:
        one, two, three = [await put(store, make_blob(size)) for size in (100, 200, 300)]
        place.file(one).unlink()
        overwrite(place.file(two), flip(make_blob(200)))
        overwrite(place.file(three), make_blob(299))
        for misses, digest in enumerate((one, two, three), 1):
            await missing(store.get(digest))
            assert seen(store) == (0, misses)
        assert store.statistics()["corrupt_blobs"] == 2


@pytest.mark.parametrize("size", [0, 1, 100_000])
async def test_no_descriptor_stays_behind(place, size):
    data = make_blob(size)
    async with place.running() as store:
        digest = await put(store, data)
        before = descriptors()
        await store.get(digest)
        async with store.open(digest):
            assert descriptors() == before + (size > 0)
        for offset, length, error in ((size + 1, None, RangeError), (-1, None, RangeError), (0, -1, Exception)):
            with pytest.raises(error):
                async with store.open(digest, offset=offset, length=length):
                    pass
        assert descriptors() == before


async def test_no_descriptor_stays_behind_of_what_is_too_large_missing_or_wrong(place, monkeypatch):
    async with place.running() as store:
        large = await put(store, bytes(MAX_WHOLE + 1))
        exact = await put(store, bytes(MAX_WHOLE))
        wrong, short = await put(store, make_blob(100)), await put(store, make_blob(200))
        overwrite(place.file(wrong), flip(make_blob(100)))
        overwrite(place.file(short), b"short")
        before = descriptors()
        with pytest.raises(TooLargeError, match=f"has {MAX_WHOLE + 1} bytes"):
            await store.get(large)
        assert len(await store.get(exact)) == MAX_WHOLE
        for digest in (wrong, short, digest_of(b"none")):
            await missing(store.get(digest))
        assert descriptors() == before

        def preadv(*args):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        small = await put(store, b"small")
        monkeypatch.setattr(os, "preadv", preadv)
        with pytest.raises(UnavailableError, match=f"cannot read {place.file(small)}: the disk reports an I/O error"):
            await store.get(small)
        assert descriptors() == before
        store._index.know(store._index.blob(small), inode=0, mtime_ns=0)
        with pytest.raises(UnavailableError, match=f"cannot check {place.file(small)}"):
            await store.get(small)
        assert descriptors() == before


async def test_what_cannot_be_opened_is_no_miss(place, monkeypatch):
    async with place.running() as store:
        digest = await put(store, b"blob")
        real = os.open

        def refuse(path, flags, *args, **options):
            if path == place.file(digest).name:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real(path, flags, *args, **options)

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(UnavailableError, match="cannot open .*too many files open"):
            await store.get(digest)
        assert seen(store) == (0, 0)
        monkeypatch.setattr(os, "open", real)
        assert await store.get(digest) == b"blob"


async def test_a_file_that_is_cut_short_while_it_is_read_whole_is_missing(place, monkeypatch):
    async with place.running() as store:
        digest = await put(store, make_blob(100))
        real = os.preadv
        monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset, flags=0: (
            real(fd, [memoryview(buffers[0])[:50]], offset) if not offset else 0
        ))
        await missing(store.get(digest))
        with pytest.raises(CorruptBlobError, match="cut short while it was being read"):
            await read(store, digest)


async def test_without_inotify_what_a_read_finds_gone_or_of_another_size_is_counted_so(place, monkeypatch):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    async with place.running() as store:
        gone = await put(store, make_blob(5000))
        await store.put("name", b"value")
        place.file(gone).unlink()
        (place.content / "s" / "name").unlink()
        (place.content / "s" / "name").write_bytes(make_blob(9000))
        await missing(store.get(gone))
        assert await store.get("name") == make_blob(9000)
        assert store.statistics()["blobs"] == 1 and store.statistics()["bytes"] == place.used() == 12_288


async def test_a_result_that_an_older_cache_left_among_the_blobs_is_one_file_however_it_is_asked_for(place):
    key = ActionKey("ab" * 32, 3)
    path = place.lay(Digest(key.hash, key.size), b"an older result")
    async with place.running() as store:
        for _ in range(2):
            assert await store.get(key) == b"an older result"
            assert await store.has([key]) == [15]
        assert (store.statistics()["blobs"], store.statistics()["bytes"]) == (1, 4096)
        path.unlink()
        assert await store.has([key]) == [None] and store.statistics()["blobs"] == 0


async def test_a_newer_result_is_not_hidden_by_an_older_caches_where_uses_are_looked_at(place):
    key = ActionKey("ab" * 32, 3)
    place.lay(Digest(key.hash, key.size), b"an older result")
    async with place.running(policy={"max_seconds": 3600}) as store:
        assert await store.get(key) == b"an older result"
        await store.put(key, b"a newer one")
        assert await store.get(key) == b"a newer one"
        assert await store.has([key]) == [11]


async def test_without_inotify_links_and_pipes_among_the_files_are_followed_and_waited_for_by_nobody(
    place, monkeypatch, tmp_path
):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    (tmp_path / "secret").write_bytes(b"secret")
    async with place.running() as store:
        digest, value = digest_of(b"secret"), place.content / "s" / "name"
        place.file(digest).symlink_to(tmp_path / "secret")
        value.symlink_to(tmp_path / "secret")
        for key in (digest, "name"):
            with pytest.raises(NlError):
                await store.get(key)
            assert await store.has([key]) == [None]
        place.file(digest).unlink()
        os.mkfifo(place.file(digest))
        await missing(store.get(digest))
        await store.put(digest, b"secret")
        assert await store.get(digest) == b"secret"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize(("key", "folder"), [("name", "s"), (ActionKey("ab" * 32, 3), "a")], ids=["text", "action"])
async def test_without_inotify_what_is_no_file_is_no_value(place, unwatched, make, key, folder):
    async with place.running() as store:
        path = place.content / folder / (key if folder == "s" else key_text(key))
        make(path)
        await missing(store.get(key))
        await missing(read(store, key))
        assert await store.has([key]) == [None]
        assert seen(store) == (0, 2) and (store.statistics()["blobs"], store.statistics()["bytes"]) == (0, 0)
        if make is os.mkfifo:
            await store.put(key, b"value")
            assert await store.get(key) == b"value"


async def test_without_inotify_a_blob_is_read_that_another_process_has_placed_since(place, unwatched):
    async with place.running() as store:
        digest = digest_of(b"of another process")
        place.lay(digest, b"of another process")
        assert await store.get(digest) == b"of another process"


async def test_without_inotify_a_blob_of_a_wrong_size_that_another_process_has_mended_is_read_and_stays(
    place, unwatched
):
    digest = digest_of(b"whole")
    place.lay(digest, b"who")
    async with place.running() as store:
        replace(place.file(digest), b"whole")
        assert await store.get(digest) == b"whole"
        assert await store.has([digest]) == [5] and place.file(digest).exists()
        assert store.statistics()["corrupt_blobs"] == 0


async def test_without_inotify_a_blob_of_a_wrong_size_that_another_process_has_deleted_is_missing(place, unwatched):
    digest = digest_of(b"whole")
    place.lay(digest, b"who")
    async with place.running() as store:
        place.file(digest).unlink()
        await missing(store.get(digest))
        assert store.statistics()["blobs"] == 0


async def test_without_inotify_what_nobody_has_used_for_too_long_is_not_read(place, unwatched):
    async with place.running(policy={"max_seconds": 0.01}) as store:
        await store.put("name", b"value")
        await trio.sleep(0.1)  # its access time is as coarse as the kernel's ticks
        await missing(store.get("name"))


# Hashing


@pytest.mark.parametrize("size", [1000, 300_000])
async def test_a_blob_that_cannot_be_hashed_is_neither_wrong_nor_missing(place, monkeypatch, size):
    data = make_blob(size)
    digest = digest_of(data)
    place.lay(digest, data)
    real = os.preadv

    def preadv(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with place.running() as store:
        before = descriptors()
        with monkeypatch.context() as patched:
            patched.setattr(os, "preadv", preadv)
            for _ in range(2):
                with pytest.raises(UnavailableError, match=f"cannot check {place.file(digest)}: the disk reports"):
                    await store.get(digest)
        assert descriptors() == before and seen(store) == (0, 0)
        assert os.preadv is real and await store.get(digest) == data
        assert store.statistics()["corrupt_blobs"] == 0


@pytest.mark.parametrize("size", [1000, 300_000])
async def test_a_blob_that_is_evicted_while_it_is_hashed_is_read_and_leaves_no_trace(place, monkeypatch, size):
    data = make_blob(size)
    digest = digest_of(data)
    place.lay(digest, data)
    async with place.running() as store:
        hashed, evict = store._verifier.is_right, store._committer.evict_some

        async def evict_and_hash(fd, digest):
            await evict()
            return await hashed(fd, digest)

        monkeypatch.setattr(store._verifier, "is_right", evict_and_hash)
        assert await store.get(digest) == data
        assert await store.has([digest]) == [None]
        assert not await evict(), "nothing is left, and nothing is taken for the oldest"
        assert store.statistics()["evicted_blobs"] == 1 and store.statistics()["bytes"] == 0
        other = await put(store, b"another, which gets its place in the index")
        await evict()
        assert await store.has([other]) == [None]


async def test_what_was_found_wrong_is_not_remembered_as_right(place):
    for size in (100, 100_000):
        data = make_blob(size)
        digest = digest_of(data)
        place.lay(digest, flip(data))
        async with place.running() as store:
            fd = os.open(place.file(digest), os.O_RDONLY)
            for count in (1, 2):
                assert await store._verifier.is_right(fd, digest) is None
                assert store.statistics()["hashed_blobs"] == count
                assert store.statistics()["hashed_bytes"] == count * size
            os.close(fd)
            await missing(store.get(digest))


@pytest.mark.parametrize("size", [4, 5, 8, 9, 10])
async def test_a_file_is_hashed_in_pieces_that_make_it_whole(place, monkeypatch, size):
    monkeypatch.setattr(verify, "_PIECE", 4)
    monkeypatch.setattr(verify, "_READ", 3)
    monkeypatch.setattr(verify, "SMALL", 1)
    data = make_blob(size)
    for function in DigestFunction:
        place.lay(digest_of(data, function), data)
    async with place.running() as store:
        for function in DigestFunction:
            assert await find(store, digest_of(data, function)) == data
        assert store.statistics()["hashed_blobs"] == 2


async def test_files_that_are_hashed_wait_for_each_other_beyond_a_number(place, monkeypatch):
    datas = [make_blob(100_000, seed=seed) for seed in range(40)]
    for data in datas:
        place.lay(digest_of(data), data)
    async with place.running() as store:
        most = 0

        async def get(digest):
            nonlocal most
            data = await store.get(digest)
            most = max(most, len(store._verifier._jobs))
            assert digest_of(data) == digest

        async with trio.open_nursery() as nursery:
            for data in datas:
                nursery.start_soon(get, digest_of(data))
            await trio.testing.wait_all_tasks_blocked(0.0)
            most = max(most, len(store._verifier._jobs))
        assert 1 <= most <= 32
        assert store._verifier._free_jobs.value == 32
        assert store.statistics()["hashed_blobs"] == 40


async def test_who_waits_for_a_hash_when_the_store_ends_is_told_so(place, monkeypatch):
    """Also who waits for his turn to have one made."""
    real, told = trio.to_thread.run_sync, []

    async def run_sync(function, *args, **options):
        if function is verify._update:
            await trio.sleep_forever()
        return await real(function, *args, **options)

    async def get(digest):
        with pytest.raises(UnavailableError, match="the store is being stopped"):
            await store.get(digest)
        told.append(digest)

    datas = [make_blob(100_000, seed=seed) for seed in range(40)]
    for data in datas:
        place.lay(digest_of(data), data)
    async with trio.open_nursery() as nursery, place.running() as store:
        monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
        for data in datas:
            nursery.start_soon(get, digest_of(data))
        await trio.testing.wait_all_tasks_blocked()
        assert len(store._verifier._jobs) == 32 and not told
    assert len(told) == 40
    assert store._verifier._jobs == {} and store._verifier._free_jobs.value == 32


async def test_no_thread_but_the_stores_own_does_what_takes_long(place, monkeypatch):
    """Reading, writing, hashing and copying in trio's threads would leave none for all others."""
    real, hops = trio.to_thread.run_sync, []

    async def run_sync(function, *args, **options):
        hops.append((function.__name__, options.get("limiter") is not None))
        return await real(function, *args, **options)

    data = make_blob(3 << 20)
    async with place.running(evict_page_cache=True) as store:
        monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
        store._uploader._pace.note(1.0)
        digest = await put(store, data)
        await store.write(digest_of(data[1:]), PartsReader(split(data[1:], 1 << 20)))
        store._index.know(store._index.blob(digest), inode=0, mtime_ns=0)
        store._access.nowait = 0
        assert await find(store, digest) == data
    own = {name for name, is_own in hops if is_own}
    assert {"append", "_append", "flush_and_drop", "_update", "preadv"} <= own
    assert {name for name, is_own in hops if not is_own} <= {
        "_list_piece", "_write_atimes", "_close_all", "is_in_place", "reopen",
    }  # fmt: skip


# What is set aside


@pytest.mark.parametrize(("max_bytes", "size", "kept"), [(20 * 8192, 8192, 1), (20 * 8192, 8193, 0), (0, 8193, 1)])
async def test_wrong_files_are_set_aside_up_to_a_twentieth_of_the_store(place, max_bytes, size, kept):
    async with place.running(policy={"max_bytes": max_bytes}) as store:
        digest = await put(store, make_blob(size))
        overwrite(place.file(digest), flip(make_blob(size)))
        await missing(store.get(digest))
        assert len(os.listdir(place.corrupt)) == kept
        assert not place.file(digest).exists()
        assert store.statistics()["corrupt_blobs"] == 1
        assert (store.statistics()["blobs"], store.statistics()["bytes"]) == (0, 0)


@pytest.mark.parametrize("bound", ["files", "bytes"])
async def test_of_wrong_files_the_latest_are_kept_to_the_bound(place, monkeypatch, bound):
    if bound == "files":
        monkeypatch.setattr(quarantine, "MAX_FILES", 3)
    async with place.running() as store:
        if bound == "bytes":
            monkeypatch.setattr(store._quarantine, "_max_bytes", 300)
        digests = []
        for number in range(5):
            digests.append(await put(store, make_blob(100, seed=number)))
            overwrite(place.file(digests[-1]), flip(make_blob(100, seed=number)))
            await missing(store.get(digests[-1]))
            names = sorted(name.partition(".")[0] for name in os.listdir(place.corrupt))
            assert names == sorted(map(str, digests[-3:]))


def test_the_bounds_are_those_that_the_options_tell():
    assert (quarantine.MAX_FILES, quarantine.MAX_BYTES, quarantine._SHARE) == (64, 256 << 20, 20)


async def test_a_wrong_variant_is_set_aside_and_its_blob_stays(place):
    async with place.running() as store:
        digest = await put(store, make_blob(100))
        files = store.capability(LocalFiles)
        await files.link_files([Link(digest, str(place.inputs / "tool"), True)])
        overwrite(place.inputs / "tool", flip(make_blob(100)))
        os.chmod(place.inputs / "tool", 0o555)
        assert await files.link_files([Link(digest, str(place.inputs / "again"), True)]) == []
        assert len(os.listdir(place.corrupt)) == 1
        assert await store.get(digest) == make_blob(100)
        assert store.statistics()["executables"] == 1 and store.statistics()["corrupt_blobs"] == 1
        assert (place.inputs / "again").read_bytes() == make_blob(100)


async def test_names_of_other_sizes_are_other_blobs(place):
    data = make_blob(100)
    digest = digest_of(data)
    async with place.running() as store:
        await store.put(digest, data)
        other = Digest(digest.hash, 101)
        assert await store.has([other, digest]) == [None, 100]
        await missing(store.get(other))
        assert await store.get(digest) == data
        assert store.statistics()["corrupt_blobs"] == 0

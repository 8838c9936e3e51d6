"""What is there: exact answers, from the index and from the disk, whichever keys are asked for and however many."""

import errno
import os
import time

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import EMPTY_DIGESTS, ActionKey, Digest, DigestFunction, UnavailableError
from nl.stores.filesystem import mirror
from nl.stores.filesystem.watch import WatchUnavailableError

from .conftest import put, until
from .test_evicting import watched as watched  # a fixture


async def laid(store):
    """One of each sort, and what `has` is to say of them."""
    action, blake3 = ActionKey("ab" * 32, 3), digest_of(b"blake3", DigestFunction.BLAKE3)
    await store.put(action, b"result")
    await store.put("name", b"value")
    await store.put(blake3, b"blake3")
    blob = await put(store, b"blob")
    return {
        action: 6, "name": 5, blake3: 6, blob: 4, **dict.fromkeys(EMPTY_DIGESTS, 0),
        digest_of(b"none"): None, "none": None, ActionKey("cd" * 32, 3): None, Digest(blob.hash, 5): None,
        ActionKey(*blob): None, Digest(blake3.hash, 6): None, digest_of(b"none", DigestFunction.BLAKE3): None,
    }  # fmt: skip


@pytest.mark.parametrize("times", [1, 3, 40])
async def test_each_key_has_its_own_answer_among_others(place, watched, times):
    async with place.running() as store:
        sizes = await laid(store)
        keys = list(sizes) * times
        assert await store.has(keys) == [sizes[key] for key in keys]
        for key, size in sizes.items():
            assert await store.has([key]) == [size]
            assert await store.has([key] * 3) == [size] * 3
        assert await store.has([]) == []


@pytest.mark.parametrize("count", [1, 2, 3, 4])
async def test_blobs_of_which_all_some_or_none_are_there(place, watched, count):
    async with place.running() as store:
        there = [await put(store, b"%d" % number) for number in range(count)]
        gone = [digest_of(b"none %d" % number) for number in range(count)]
        wrong = [Digest(digest.hash, digest.size + 1) for digest in there]
        empty = [digest_of(b"")]
        assert await store.has(there) == [1] * count
        assert await store.has(gone) == await store.has(wrong) == [None] * count
        assert await store.has(empty + there) == [0] + [1] * count
        assert await store.has(gone + there + wrong + empty) == [None] * count + [1] * count + [None] * count + [0]


@pytest.mark.parametrize(("count", "threads"), [(32, 0), (33, 1)])
async def test_without_inotify_few_files_are_looked_at_at_once_and_many_in_a_thread(
    place, monkeypatch, count, threads
):
    def refuse():
        raise WatchUnavailableError("there are too many")

    monkeypatch.setattr(mirror, "Watch", refuse)
    real, hops = trio.to_thread.run_sync, []

    async def run_sync(function, *args, **options):
        hops.append(function.__name__)
        return await real(function, *args, **options)

    async with place.running() as store:
        digests = [await put(store, b"%d" % number) for number in range(count)]
        monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
        assert await store.has(digests) == [len(b"%d" % number) for number in range(count)]
    assert hops.count("_stat_all") == threads


@pytest.mark.parametrize("times", [1, 40])
async def test_what_lies_under_the_name_that_others_give_it_is_there_until_it_is_gone(place, watched, times):
    action, blake3 = ActionKey("ab" * 32, 3), digest_of(b"blake3", DigestFunction.BLAKE3)
    paths = [place.lay(Digest("ab" * 32, 3), b"a result"), place.lay(Digest(*blake3[:2]), b"blake3")]
    async with place.running() as store:
        assert await store.has([action, blake3] * times) == [8, 6] * times
        for path in paths:
            path.unlink()
        assert await store.has([action, blake3, *EMPTY_DIGESTS] * times) == [None, None, 0, 0] * times


@pytest.mark.parametrize(("age", "is_there"), [(95, True), (105, False)])
@pytest.mark.parametrize("times", [1, 40])
async def test_what_lies_under_the_name_that_others_give_it_goes_by_age_like_all_else(
    place, watched, times, age, is_there
):
    action, blake3 = ActionKey("ab" * 32, 3), digest_of(b"blake3", DigestFunction.BLAKE3)
    for path in (place.lay(Digest("ab" * 32, 3), b"a result"), place.lay(Digest(*blake3[:2]), b"blake3")):
        os.utime(path, (time.time() - age, path.stat().st_mtime))
    async with place.running(policy={"max_seconds": 200}) as store:
        store._presence.max_age_s = 100  # so that it is not deleted as soon as the folder was listed
        assert await store.has([action, blake3] * times) == ([8, 6] if is_there else [None, None]) * times


async def test_asking_for_a_result_that_an_older_cache_left_is_a_use(place):
    action = ActionKey("ab" * 32, 3)
    async with place.running(policy={"max_count": 3}) as store:
        path = place.lay(Digest("ab" * 32, 3), b"a result")
        for name in (b"a", b"b"):
            await put(store, name)
        assert await store.has([action]) == [8]
        await put(store, b"c")
        assert path.exists() and await store.get(action) == b"a result"


@pytest.mark.parametrize("count", [1, 40])
async def test_a_digest_of_no_bytes_that_is_not_the_empty_blobs_is_not_there(place, watched, count):
    async with place.running() as store:
        blob = await put(store, b"blob")
        asked = [blob, Digest("ab" * 32, 0), Digest("ab" * 32, 0, DigestFunction.BLAKE3), *EMPTY_DIGESTS]
        assert await store.has(asked * count) == [4, None, None, 0, 0] * count
        assert await store.has([blob, Digest("ab" * 32, 0), blob] * count) == [4, None, 4] * count


async def test_what_is_no_file_of_that_size_is_not_there(place, watched):
    digests = [digest_of(b"%d" % number) for number in range(4)]
    place.file(digests[0]).parent.mkdir(parents=True)
    place.file(digests[0]).mkdir()
    os.symlink("/etc/passwd", place.file(digests[1]))
    place.lay(digests[2], b"longer")
    place.lay(digests[3], b"3")
    (place.content / "s" / "folder").mkdir(parents=True)
    os.mkfifo(place.content / "s" / "pipe")
    os.symlink("/etc/passwd", place.content / "s" / "link")
    async with place.running() as store:
        assert await store.has(["folder", "pipe", "link"]) == [None] * 3
        assert await store.has(digests) == [None, None, None, 1]
        for digest in digests:
            assert await store.has([digest]) == [1 if digest is digests[3] else None]


async def test_a_disk_that_cannot_be_asked_is_not_an_empty_one(place, monkeypatch):
    def refuse():
        raise WatchUnavailableError("there are too many")

    monkeypatch.setattr(mirror, "Watch", refuse)
    async with place.running() as store:
        digest = await put(store, b"blob")
        real = os.stat

        def fail(path, **options):
            if path == place.file(digest).name:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(path, **options)

        monkeypatch.setattr(os, "stat", fail)
        with pytest.raises(UnavailableError, match=f"cannot look at {place.file(digest)}: the disk reports"):
            await store.has([digest])
        monkeypatch.setattr(os, "stat", real)
        assert await store.has([digest]) == [4]


@pytest.mark.parametrize(("age", "is_there"), [(0, True), (95, True), (105, False)])
async def test_what_nobody_has_used_for_too_long_is_not_there_whoever_looks(place, watched, age, is_there):
    async with place.running(policy={"max_seconds": 100}) as store:
        digest, key = await put(store, b"blob"), ActionKey("ab" * 32, 3)
        await store.put(key, b"result")
        for path in (place.file(digest), place.content / "a" / f"{key}"):
            os.utime(path, (time.time() - age, path.stat().st_mtime))
        for slot in store._index.slots.values():
            store._index.used[slot] = time.monotonic() - age
        assert await store.has([digest] * 3) == ([4] * 3 if is_there else [None] * 3)
        assert await store.has([digest] * 3 + [key]) == ([4, 4, 4, 6] if is_there else [None] * 4)


@pytest.mark.parametrize("count", [1, 3, 40])
async def test_what_only_others_have_used_lately_is_there(place, count):
    """Told by the table of uses, or by the time of access where they do not share one."""
    policy = {"max_seconds": 100}
    async with place.running(policy=policy) as one, place.running(policy=policy) as two:
        await until(lambda: not one._uses.is_alone and not two._uses.is_alone)
        told, written, neither = [await put(one, name) for name in (b"told", b"written", b"neither")]
        await two.has([told, written, neither])
        long_ago = time.monotonic() - 200
        for digest in (told, written, neither):
            for store in (one, two):
                slot = store._index.blob(digest)
                store._index.used[slot] = long_ago
                store._uses.times[store._index.cells[slot]] = 0.0
            path = place.file(digest)
            os.utime(path, (time.time() - 200 * (digest is not written), path.stat().st_mtime))
        two._index.touch(two._index.blob(told), time.monotonic())
        assert await one.has([told, written, neither] * count) == [4, 7, None] * count


@pytest.mark.parametrize("count", [3, 40])
async def test_among_blobs_of_one_hash_function_those_of_the_other_are_found(place, watched, count):
    async with place.running() as store:
        digests = [
            digest_of(b"%d" % number, DigestFunction.BLAKE3 if number % 2 else DigestFunction.SHA256)
            for number in range(count)
        ]  # fmt: skip
        for number, digest in enumerate(digests):
            await store.put(digest, b"%d" % number)
        sizes = [digest.size for digest in digests]
        assert await store.has(digests) == sizes
        assert await store.has(digests[::-1]) == sizes[::-1]


async def test_an_answer_is_a_use_however_many_are_asked_for(place, watched):
    async with place.running() as store:
        digests = [await put(store, b"%d" % number) for number in range(3)]
        for keys in (digests[:1], digests, [*digests, digest_of(b"none")]):
            before = time.monotonic()
            await store.has(keys)
            used = [store._index.used[store._index.blob(digest)] for digest in keys[:3]]
            assert all(before <= each <= time.monotonic() for each in used)


async def test_without_inotify_nothing_is_too_old_because_the_wall_clock_was_set(place, monkeypatch):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    real = time.time
    async with place.running(policy={"max_seconds": 1800}) as store:
        digest = await put(store, b"young")
        monkeypatch.setattr(time, "time", lambda: real() + 3600)
        assert await store.has([digest]) == [5]

"""What goes, and exactly when: bounds to the byte, in whichever way a blob is used, with and without inotify."""

import errno
import os
import time

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import (
    ActionKey,
    BlobSizeLimit,
    BytesReader,
    Deletes,
    Digest,
    Link,
    LocalFiles,
    Removals,
    key_text,
)
from nl.stores.filesystem import evicting, mirror
from nl.stores.filesystem.watch import WatchUnavailableError
from nl.testing import make_blob

from .conftest import put, until
from .test_scanning import held_scan


@pytest.fixture(params=["watched", "unwatched"])
def watched(request, monkeypatch):
    def refuse():
        raise WatchUnavailableError("there are too many")

    if request.param == "unwatched":
        monkeypatch.setattr(mirror, "Watch", refuse)
    return request.param == "watched"


def data_of(name, size=10):
    return name.encode() * size


async def put_each(store, names, size=10):
    for name in names:
        await store.put(digest_of(data_of(name, size)), data_of(name, size))


def there(place, names, size=10):
    """Which blobs have a file: looking is no use of them."""
    return "".join(name for name in names if place.file(digest_of(data_of(name, size))).exists())


async def use(store, place, way, name):
    digest, data = digest_of(data_of(name)), data_of(name)
    files = store.capability(LocalFiles)
    absent = [Digest(f"{number:064x}", 1) for number in range(40)]
    if way == "has":
        assert await store.has([digest]) == [10]
    elif way == "has of many":
        assert await store.has([digest] * 5) == [10] * 5
    elif way == "has of many of which some are missing":
        assert await store.has([absent[0], digest, absent[1]]) == [None, 10, None]
    elif way == "has of very many":
        assert await store.has([*absent, digest]) == [*[None] * 40, 10]
    elif way == "has of keys of several sorts":
        assert await store.has(["name", digest, ActionKey(*digest)]) == [None, 10, None]
    elif way == "touch":
        await store.touch([digest])
    elif way == "get":
        assert await store.get(digest) == data
    elif way == "get_many":
        assert await store.get_many([digest]) == [data]
    elif way == "open":
        async with store.open(digest, offset=5) as reader:
            await reader.receive_parts()
    elif way == "put":
        await store.put(digest, data)
    elif way == "write":
        await store.write(digest, BytesReader(data))
    elif way == "adopt":
        (place.inputs / "out").write_bytes(data)
        await files.adopt_file(digest, str(place.inputs / "out"))
    else:
        count = 20 if "many" in way else 1
        links = [Link(digest, str(place.inputs / f"{name}{at}"), "executable" in way) for at in range(count)]
        assert await files.link_files(links) == []


WAYS = [
    "has", "has of many", "has of many of which some are missing", "has of very many", "has of keys of several sorts",
    "touch", "get", "get_many", "open", "put", "write", "adopt", "link", "link many", "link executable",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
async def test_whatever_uses_a_blob_keeps_it(place, watched, way):
    async with place.running(policy={"max_bytes": 50}, block_size=1) as store:
        await put_each(store, "abcd")
        await use(store, place, way, "a")
        await put_each(store, "ef")
        # a variant takes the room of one more
        assert there(place, "abcdef") == ("adef" if way == "link executable" else "acdef")


@pytest.mark.parametrize("way", ["has", "has of many", "get", "open", "write"])
@pytest.mark.parametrize("key", [ActionKey("ab" * 32, 7), "name"])
async def test_whatever_uses_a_value_keeps_it(place, watched, way, key):
    async with place.running(policy={"max_count": 3}) as store:
        await store.put(key, b"value")
        await put_each(store, "ab")
        if way == "has":
            assert await store.has([key]) == [5]
        elif way == "has of many":
            assert await store.has([digest_of(b""), key, "none", key]) == [0, 5, None, 5]
        elif way == "get":
            await store.get(key)
        elif way == "open":
            async with store.open(key):
                pass
        else:
            await store.write(key, BytesReader(b"value"))
        await put_each(store, "cd")
        assert there(place, "abcd") == "cd"
        assert await store.get(key) == b"value"


async def test_an_old_action_result_among_the_blobs_is_used_too(place):
    key = ActionKey("ab" * 32, 142)
    place.lay(Digest("ab" * 32, 142), b"an old result")
    async with place.running(policy={"max_count": 2}) as store:
        await put_each(store, "a")
        assert await store.has([key]) == [13]
        await put_each(store, "b")
        assert there(place, "ab") == "b"
        assert await store.get(key) == b"an old result"
        await put_each(store, "c")
        assert there(place, "abc") == "c"
        assert await store.has([key]) == [13]


@pytest.mark.parametrize(
    ("policy", "size", "kept"),
    [
        ({"max_bytes": 40}, 10, "bcde"), ({"max_bytes": 41}, 10, "bcde"), ({"max_bytes": 49}, 10, "bcde"),
        ({"max_bytes": 50}, 10, "abcde"), ({"max_bytes": 40, "evict_bytes": 1}, 10, "cde"),
        ({"max_bytes": 40, "evict_bytes": 10}, 10, "cde"), ({"max_bytes": 40, "evict_bytes": 11}, 10, "de"),
        ({"max_bytes": 40, "evict_bytes": 30}, 10, "e"), ({"max_bytes": 40, "evict_bytes": 40}, 10, "e"),
        ({"max_bytes": 50, "evict_bytes": 50}, 10, "abcde"), ({"max_count": 4}, 10, "bcde"),
        ({"max_count": 5}, 10, "abcde"), ({"max_count": 3, "max_bytes": 40}, 10, "cde"),
        ({"max_count": 4, "max_bytes": 30}, 10, "cde"), ({}, 10, "abcde"),
    ],
)  # fmt: skip
async def test_bounds_are_exact(place, watched, policy, size, kept):
    async with place.running(policy=policy, block_size=1) as store:
        await put_each(store, "abcde", size)
        assert there(place, "abcde", size) == kept
        statistics = store.statistics()
        assert statistics["evicted_blobs"] == 5 - len(kept)
        assert statistics["evicted_bytes"] == size * (5 - len(kept))
        assert (statistics["blobs"], statistics["bytes"]) == (len(kept), size * len(kept))


async def test_what_is_replaced_makes_room_for_what_replaces_it(place, watched):
    async with place.running(policy={"max_bytes": 30}, block_size=1) as store:
        await store.put("name", bytes(10))
        await put_each(store, "ab")
        await store.put("name", bytes(10))
        assert there(place, "ab") == "ab"
        await store.put("name", bytes(11))
        assert there(place, "ab") == "b"
        assert await store.has(["name"]) == [11]


@pytest.mark.parametrize(("block_size", "largest"), [(1, 10_000), (4096, 8192), (1000, 10_000), (10_001, 0)])
async def test_the_largest_blob_that_is_said_to_fit_does_and_one_byte_more_does_not(place, block_size, largest):
    async with place.running(policy={"max_bytes": 10_000}, block_size=block_size) as store:
        assert store.capability(BlobSizeLimit).max_blob_bytes() == largest
        if largest:
            await store.put("name", bytes(largest))
        with pytest.raises(Exception, match="never fit"):
            await store.put("name", bytes(largest + 1))


async def test_what_it_can_do_depends_on_its_policy(place):
    for policy, offered in (
        ({}, [False, True]), ({"max_bytes": 9}, [True, True]), ({"max_seconds": 9}, [False, False]),
    ):  # fmt: skip
        async with place.running(policy=policy) as store:
            assert [store.capability(kind) is not None for kind in (BlobSizeLimit, Removals)] == offered
            assert store.capability(Deletes) is not None and store.capability(LocalFiles) is not None


async def test_a_blob_goes_with_its_variant_and_both_are_counted(place, watched):
    async with place.running(policy={"max_bytes": 40}, block_size=1) as store:
        await put_each(store, "a")
        await use(store, place, "link executable", "a")
        variant = place.executables / key_text(digest_of(data_of("a")))
        assert variant.exists() and store.statistics()["bytes"] == 20 and store.statistics()["executables"] == 1
        await put_each(store, "bc")
        assert variant.exists()
        await put_each(store, "d")
        assert not variant.exists() and there(place, "abcd") == "bcd"
        assert store.statistics()["bytes"] == 30 and store.statistics()["executables"] == 0
        assert store.statistics()["evicted_blobs"] == 1


async def test_a_variant_that_finds_no_room_beside_its_blob_is_a_copy(place, watched):
    async with place.running(policy={"max_bytes": 19}, block_size=1) as store:
        await put_each(store, "a")
        await use(store, place, "link executable", "a")
        assert there(place, "a") == "a" and os.listdir(place.executables) == []
        assert (place.inputs / "a0").read_bytes() == data_of("a")
        assert (place.inputs / "a0").stat().st_mode & 0o777 == 0o555
        assert (store.statistics()["linked_files"], store.statistics()["copied_files"]) == (0, 1)
    async with place.running(policy={"max_bytes": 20}, block_size=1) as store:
        (place.inputs / "a0").unlink()
        await use(store, place, "link executable", "a")
        assert len(os.listdir(place.executables)) == 1


async def test_variants_whose_blob_is_gone_go_when_the_store_starts(place):
    async with place.running() as store:
        await put_each(store, "ab")
        for name in "ab":
            await use(store, place, "link executable", name)
    place.file(digest_of(data_of("a"))).unlink()
    async with place.running() as store:
        await until(lambda: len(os.listdir(place.executables)) == 1)
        assert store.statistics()["executables"] == 1
        assert os.listdir(place.executables) == [key_text(digest_of(data_of("b")))]


@pytest.mark.parametrize(("age", "kept"), [(99, True), (101, False)])
async def test_age_counts_from_the_last_use(place, age, kept):
    async with place.running(policy={"max_seconds": 100}) as store:
        await put_each(store, "ab")
        digest = digest_of(data_of("a"))
        index = store._index
        slot = index.blob(digest)
        path = place.file(digest)
        os.utime(path, (time.time() - age, path.stat().st_mtime))
        index.used[slot] = time.monotonic() - age
        index.order.add_found([(index.used[slot], slot)])
        assert (await store.has([digest]) == [10]) is kept
        await store._committer.trim()
        assert there(place, "ab") == ("ab" if kept else "b")
        assert store.statistics()["evicted_blobs"] == (not kept)
        await store.put(digest, data_of("a"))
        assert await store.has([digest]) == [10]


async def test_large_files_are_freed_in_a_thread_and_not_more_than_some_are_kept_open(place, monkeypatch):
    monkeypatch.setattr(evicting, "_LARGE", 10)
    monkeypatch.setattr("nl.stores.filesystem.store._TICK_S", 1000)  # nobody else frees them
    async with place.running() as store:
        for number in range(100):
            await store.put(str(number), bytes(10 if number != 50 else 9))
        before = len(os.listdir("/proc/self/fd"))
        committer = store._committer
        for _ in range(100):
            await committer.evict_some(1)
        kept = len(committer._closing)
        assert kept <= 64 and len(os.listdir("/proc/self/fd")) == before + kept
        await committer.free_large()
        assert committer._closing == [] and len(os.listdir("/proc/self/fd")) == before


async def test_large_files_that_are_evicted_while_others_are_freed_are_freed_too(place, monkeypatch):
    monkeypatch.setattr(evicting, "_LARGE", 10)
    monkeypatch.setattr("nl.stores.filesystem.store._TICK_S", 1000)  # nobody else frees them
    async with place.running() as store:
        for number in range(3):
            await store.put(str(number), bytes(10))
        before, committer, real = len(os.listdir("/proc/self/fd")), store._committer, evicting._close_all

        def evict_and_close(fds):
            trio.from_thread.run(committer.evict_some, 1)
            real(fds)

        await committer.evict_some(1)
        with monkeypatch.context() as patched:
            patched.setattr(evicting, "_close_all", evict_and_close)
            await committer.free_large()
        assert committer._closing == [] and os.listdir(place.content / "s") == []
        assert len(os.listdir("/proc/self/fd")) == before


async def test_an_eviction_that_fails_condemns_nothing_any_more(place, monkeypatch):
    """Else what is still there would be said to be missing."""
    async with place.running() as one, place.running():
        digest = await put(one, b"x")
        await until(lambda: not one._uses.is_alone)

        def refuse(*args, **options):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patched:
            patched.setattr(os, "unlink", refuse)
            with pytest.raises(OSError, match="Input/output"):
                await one._committer.evict_some(1)
        assert one._uses.condemned == -1
        assert await one.has([digest]) == [1]


async def test_an_eviction_before_all_is_listed_takes_the_variant_along(place, monkeypatch):
    async with place.running() as store:
        digest = await put(store, b"tool")
        links = [Link(digest, str(place.inputs / "tool"), True)]
        assert await store.capability(LocalFiles).link_files(links) == []
    with held_scan(monkeypatch) as go_on:
        async with place.running(scanned=False) as store:
            assert await store.has([digest]) == [4]
            evicted = await store._committer.evict_some(1)
            left = os.listdir(place.content / "d"), os.listdir(place.executables)
            go_on()
            assert evicted and left == ([], [])


async def test_a_large_file_that_cannot_be_kept_open_is_evicted_all_the_same(place, monkeypatch):
    monkeypatch.setattr(evicting, "_LARGE", 10)
    real = os.open

    def refuse(path, *args, **options):
        if path == "name":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *args, **options)

    async with place.running() as store:
        await store.put("name", bytes(10))
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", refuse)
            assert await store._committer.evict_some(1)
        assert os.listdir(place.content / "s") == [] and store._committer._closing == []


async def test_what_a_crash_left_is_deleted_slice_by_slice_to_its_end(place, monkeypatch):
    monkeypatch.setattr(evicting, "SLICE", 2)
    place.executables.mkdir(parents=True)
    for number in range(5):
        (place.executables / str(digest_of(b"%d" % number))).write_bytes(b"%d" % number)
        place.lay(digest_of(b"empty %d" % number), b"")
    async with place.running() as store:
        await until(lambda: os.listdir(place.executables) == os.listdir(place.content / "d") == [])
        assert store.statistics()["bytes"] == 0


async def test_files_that_were_evicted_last_are_closed_when_the_store_ends(place, monkeypatch):
    monkeypatch.setattr(evicting, "_LARGE", 10)
    before = len(os.listdir("/proc/self/fd"))
    async with place.running() as store:
        await store.put("name", bytes(10))
        await store._committer.evict_some()
        assert store._committer._closing or not os.listdir(place.content / "s")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("size", "gone"), [(None, 64), (1, 1), (10, 1), (11, 2), (100, 10), (10_000, 64), (0, 0)])
async def test_a_slice_of_evictions_is_bounded_by_number_and_by_what_is_wanted(place, size, gone):
    async with place.running() as store:
        for number in range(70):
            await put(store, make_blob(10, seed=number))
        assert await store._committer.evict_some(size)
        assert store.statistics()["evicted_blobs"] == gone


async def test_an_empty_store_has_nothing_to_evict(place):
    async with place.running() as store:
        assert not await store._committer.evict_some()
        await put_each(store, "a")
        assert not await store._committer.evict_some(), "nothing was left before the slice was full"
        assert there(place, "a") == ""


@pytest.mark.parametrize("count", [1, 20])
async def test_linking_a_variant_that_is_there_keeps_its_blob(place, watched, count):
    def links(name):
        return [Link(digest_of(data_of("a")), str(place.inputs / f"{name}{at}"), True) for at in range(count)]

    async with place.running(policy={"max_bytes": 50}, block_size=1) as store:
        files = store.capability(LocalFiles)
        await put_each(store, "a")
        assert await files.link_files(links("first")) == []
        await put_each(store, "bcd")
        assert await files.link_files(links("second")) == []
        await put_each(store, "ef")
        assert there(place, "abcdef") == "adef", "the blob has a variant, which takes the room of one more"

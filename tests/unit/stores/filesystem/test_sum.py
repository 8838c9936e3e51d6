"""The sum of bytes that processes on a folder keep together, where none of them sees all of it."""

import errno
import fcntl
import os

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import (
    BlobNotFoundError,
    BytesReader,
    Deletes,
    Digest,
    DigestFunction,
    Link,
    LocalFiles,
    NlError,
    TooLargeError,
)
from nl.stores.filesystem import mirror
from nl.stores.filesystem.journal import Change, Journal
from nl.testing import PartsReader, split

from .conftest import put, until
from .test_evicting import watched as watched  # a fixture
from .test_intervals import idle, passes
from .test_scanning import held_scan

BLOCK = 4096


@pytest.fixture
def unwatched(monkeypatch):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")


def told(store):
    """What whoever has the lock next will believe, in blocks."""
    journal = Journal(store._layout)
    journal.read()
    assert journal.sum is not None
    return journal.sum // BLOCK


def refuse(*args, **options):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


async def test_it_says_what_is_there_whoever_has_written_or_deleted_it(place, unwatched):
    async with place.running() as one, place.running() as two:
        digests = [await put((one, two)[number % 2], b"%d" % number) for number in range(4)]
        assert told(one) == 4
        await one.capability(Deletes).delete(digests[:3])
        assert told(two) == 1
        await two.put("name", bytes(2 * BLOCK))
        assert told(two) == 3
        await one.put("name", bytes(BLOCK + 1))
        assert told(two) == 3
        await two.put("name", bytes(1))
        assert told(one) == 2 and place.used() == 2 * BLOCK


@pytest.mark.parametrize("wrong", [0, 3, 100])
async def test_a_process_that_was_killed_between_deed_and_word_is_made_up_for_by_the_next_that_has_the_lock(
    place, unwatched, wrong
):
    async with place.running() as store:
        for number in range(10):
            await put(store, b"%d" % number)
        journal = Journal(store._layout)
        journal.read()
        journal.tell(wrong * BLOCK)
        await put(store, b"one more")
        assert told(store) == 11


async def test_who_does_not_see_everything_yet_tells_nobody_its_own_sum_but_what_it_adds(place, watched, monkeypatch):
    async with place.running() as one:
        for number in range(3):
            await put(one, b"%d" % number)
        await one.put("name", b"value")
        await one._committer.tell_sum()
        with held_scan(monkeypatch) as go_on:
            async with place.running(scanned=False) as two:
                await two._committer.tell_sum()
                assert told(one) == 4
                await put(two, b"one more")
                assert told(one) == 5
                await two.put("name", bytes(2 * BLOCK))
                assert told(one) == 6, "one block was replaced by two"
                with monkeypatch.context() as patched, pytest.raises(NlError):
                    patched.setattr(os, "rename", refuse)
                    await put(two, b"not to be placed")
                assert told(one) == 6 == place.used() // BLOCK
                go_on()


async def test_without_inotify_all_hear_of_what_was_set_aside_and_renamed(place, unwatched):
    wrong, unmarked = digest_of(b"right"), digest_of(b"unmarked", DigestFunction.BLAKE3)
    place.lay(wrong, b"wrong")
    place.lay(Digest(*unmarked[:2]), b"unmarked")
    async with place.running() as one, place.running() as two:
        assert two.statistics()["blobs"] == 2
        with pytest.raises(BlobNotFoundError):
            await one.get(wrong)
        assert await one.get(unmarked) == b"unmarked"
        await two._committer.follow()
        assert list(two._index.slots) == ["b" + unmarked.hash]
        assert told(one) == two.statistics()["bytes"] // BLOCK == 1


async def test_the_bound_holds_also_after_the_file_with_the_sum_was_deleted(place, unwatched):
    async with place.running(policy={"max_bytes": 3 * BLOCK}) as store:
        for number in range(3):
            await put(store, b"%d" % number)
        (place.content / ".lock").unlink()
        await put(store, b"one more")
        assert place.used() == 3 * BLOCK and told(store) == 3


async def test_the_sum_is_told_to_who_comes_where_inotify_knows_it(place):
    async with place.running() as one:
        for number in range(3):
            await put(one, b"%d" % number)
        async with place.running(scanned=False):
            await until(lambda: told(one) == 3 and not one._uses.is_alone)
            await put(one, b"one more")
            assert told(one) == 4, "and each time it changes, for whoever lists the folder still"


async def test_who_is_alone_tells_the_sum_every_few_seconds_and_at_its_end_to_who_comes_after_it(
    place, mock_clock, monkeypatch
):
    """Perhaps after it was killed."""
    async with place.running() as store:
        for number in range(3):
            await put(store, b"%d" % number)
        await passes(5.25, store, mock_clock)
        assert told(store) == 3
        await put(store, b"one more")
        assert told(store) == 3, "nobody wants to know it now"
    with held_scan(monkeypatch) as go_on:
        async with place.running(scanned=False) as store:
            await store._committer.lock.acquire()
            with store._committer.locked():
                count = store._committer.sum
            go_on()
            assert count == 4 * BLOCK


async def test_who_is_told_that_one_has_no_inotify_writes_behind_what_that_one_has_written(place):
    async with place.running() as store:
        await put(store, b"first")
        journal = Journal(store._layout)
        journal.read()
        journal.follow()
        store._uses.tell_blind()
        journal.write(Change(store._layout.blobs, str(digest_of(b"another's")), 9))
        journal.tell(2 * BLOCK)
        digest = await put(store, b"second")
        journal.read()
        assert journal.changes() == [Change(store._layout.blobs, str(digest), 6)]


async def test_without_inotify_an_empty_file_that_was_deleted_is_nowhere(place, unwatched):
    digest = digest_of(b"x")
    async with place.running() as other:
        place.lay(digest, b"")
        async with place.running() as store:
            await until(lambda: not place.file(digest).exists())
            await idle(store)
            assert store.statistics()["blobs"] == 0 and await store.has([digest]) == [None]
            assert told(store) == 0
            await other._committer.follow()
            assert other.statistics()["blobs"] == 0


async def test_only_files_that_are_still_empty_and_written_by_nobody_are_deleted_as_such(place):
    async with place.running() as store:
        folder = store._layout.blobs
        for name, data in (("empty", b""), ("full", b"x"), ("written", b"")):
            (place.content / "d" / name).write_bytes(data)
        (place.content / "d" / "link").symlink_to(place.content / "d" / "empty")
        os.mkfifo(place.content / "d" / "FIFO")
        before = len(os.listdir("/proc/self/fd"))
        with (place.content / "d" / "written").open("ab"), trio.fail_after(60):
            files = [(folder, name) for name in ("empty", "full", "gone", "written", "link")]
            assert await store._committer.delete_empty(files) == 1
        assert len(os.listdir("/proc/self/fd")) == before
        assert sorted(os.listdir(place.content / "d")) == ["FIFO", "full", "link", "written"]


async def test_a_variant_whose_blob_comes_back_while_the_lock_is_waited_for_stays(place):
    async with place.running() as store:
        digest = await put(store, b"tool")
        await store.capability(LocalFiles).link_files([Link(digest, str(place.inputs / "tool"), True)])
        place.file(digest).unlink()
        assert await store.has([digest]) == [None]
        with (place.content / ".lock").open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store._committer.delete_orphans)
                await until(lambda: store._committer.lock.waits > 0)
                place.lay(digest, b"tool")
                fcntl.flock(file, fcntl.LOCK_UN)
        assert len(os.listdir(place.executables)) == 1
        place.file(digest).unlink()
        assert await store.has([digest]) == [None]
        await store._committer.delete_orphans()
        assert os.listdir(place.executables) == []


async def test_where_only_variants_are_left_they_make_room(place):
    async with place.running(policy={"max_bytes": 4 * BLOCK}) as store:
        digests = [await put(store, b"%d" % number) for number in range(2)]
        links = [Link(digest, str(place.inputs / digest.hash), True) for digest in digests]
        assert await store.capability(LocalFiles).link_files(links) == []
        for digest in digests:
            place.file(digest).unlink()
        await store.put("name", bytes(3 * BLOCK))
        assert place.used() == 4 * BLOCK and len(os.listdir(place.executables)) == 1
        assert store.statistics()["bytes"] == 4 * BLOCK


async def test_who_evicts_a_blob_deletes_also_the_variant_that_another_process_has_made_unseen(place, unwatched):
    async with place.running() as one, place.running() as two:
        digest = await put(one, b"tool")
        await two.capability(LocalFiles).link_files([Link(digest, str(place.inputs / "tool"), True)])
        assert told(one) == 2 and len(os.listdir(place.executables)) == 1
        assert await one._committer.evict_some(1)
        assert os.listdir(place.executables) == [] and told(two) == 0


async def test_under_the_lock_the_index_has_what_others_have_done_until_then(place):
    async with place.running() as store:
        committer, digest = store._committer, digest_of(b"x")
        await committer.lock.acquire()
        place.lay(digest, b"x")
        with committer.locked():
            assert committer.sum == BLOCK and len(store._index) == 1


async def test_before_the_folder_is_listed_nothing_is_deleted_to_keep_it_in_bounds(place, monkeypatch):
    async with place.running() as store:
        digests = [await put(store, b"%d" % number) for number in range(5)]
    with held_scan(monkeypatch) as go_on:
        async with place.running(scanned=False, policy={"max_bytes": 3 * BLOCK}) as store:
            assert await store.has(digests) == [1] * 5
            await store._committer.trim()
            assert len(os.listdir(place.content / "d")) == 5
            go_on()
            await until(lambda: len(os.listdir(place.content / "d")) == 3)


async def test_the_lock_is_free_again_if_the_section_under_it_cannot_begin_or_fails(place, monkeypatch):
    async with place.running() as store:
        committer = store._committer
        await committer.lock.acquire()
        with monkeypatch.context() as patched:
            patched.setattr(store._mirror, "refresh", lambda: 1 // 0)
            with pytest.raises(ZeroDivisionError), committer.locked():
                raise AssertionError("not begun")
        with (place.content / ".lock").open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        await committer.lock.acquire()
        with pytest.raises(ZeroDivisionError), committer.locked():
            raise ZeroDivisionError
        with (place.content / ".lock").open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_an_upload_of_unknown_size_that_only_its_blocks_make_too_large_is_refused(place):
    async with place.running(policy={"max_bytes": 10_000}) as store:
        kept = await put(store, b"kept")
        with pytest.raises(TooLargeError, match="9000 bytes never fit"):
            await store.write("name", PartsReader(split(bytes(9000), 1000), size=-1))
        assert await store.has([kept, "name"]) == [4, None] and place.temp_files() == []


@pytest.mark.parametrize("way", ["has", "put", "write"])
async def test_a_use_is_told_to_all_processes_before_it_is_looked_whether_the_file_is_there(
    place, unwatched, monkeypatch, way
):
    """Whoever evicts then either has done so, or knows better."""
    async with place.running() as one, place.running() as two:
        await until(lambda: not one._uses.is_alone and not two._uses.is_alone)
        digest, looks, real = await put(one, b"x"), [], os.stat
        cell = one._uses.cell_of(digest.hash)

        def stat(path, *args, **kwargs):
            if path == str(digest):
                looks.append(two._uses.times[cell] > 1.0)
                two._uses.times[cell] = 1.0
            return real(path, *args, **kwargs)

        one._uses.times[cell] = 1.0
        monkeypatch.setattr(os, "stat", stat)
        if way == "has":
            assert await one.has([digest]) == [1]
        elif way == "put":
            await one.put(digest, b"x")
        else:
            await one.write(digest, BytesReader(b"x"))
        assert looks == [True] * (2 if way == "write" else 1)


async def test_an_upload_of_what_is_there_is_a_use_at_its_end_too(place):
    class Slow(BytesReader):
        async def receive_parts(self, max_bytes=1 << 20):
            for data in (b"e" * 10, b"f" * 10):
                await store.put(digest_of(data), data)
            return await super().receive_parts(max_bytes)

    async with place.running(policy={"max_bytes": 40}, block_size=1) as store:
        digests = {name: await put(store, name.encode() * 10) for name in "abcd"}
        await store.write(digests["a"], Slow(b"a" * 10))
        for name in "gh":
            await put(store, name.encode() * 10)
        assert place.file(digests["a"]).exists() and not place.file(digests["d"]).exists()


@pytest.mark.parametrize("instead", ["nothing", "another"])
async def test_a_file_that_was_replaced_while_it_was_hashed_does_not_hand_its_name_on(place, instead):
    other, digest = Digest("ab" * 32, 1), Digest("ab" * 32, 1, DigestFunction.BLAKE3)
    path = place.lay(other, b"x")
    async with place.running() as store:
        with path.open("rb") as file:
            path.unlink()
            if instead == "another":
                path.write_bytes(b"y")
            await store._committer.rename(file.fileno(), other, digest, key="b" + digest.hash)
        assert os.listdir(place.content / "d") == ([path.name] if instead == "another" else [])


async def test_what_is_set_aside_while_the_folder_is_listed_is_taken_off_as_it_was_counted(place, monkeypatch):
    async with place.running() as store:
        short, whole = await put(store, b"x" * 10 * BLOCK), await put(store, b"y" * 10 * BLOCK)
        os.truncate(place.file(short), 1)
        assert await store.has([short, whole]) == [None, 10 * BLOCK]
    with held_scan(monkeypatch) as go_on:
        async with place.running(scanned=False) as store:
            before = told(store)
            with pytest.raises(BlobNotFoundError):
                await store.get(short)
            after = told(store)
            go_on()
        assert (before, after) == (11, 10) and place.used() == 10 * BLOCK


async def test_what_is_deleted_while_the_folder_is_listed_is_taken_off(place, monkeypatch):
    async with place.running() as store:
        large, small = await put(store, b"x" * 10 * BLOCK), await put(store, b"y")
    with held_scan(monkeypatch) as go_on:
        async with place.running(scanned=False) as store:
            before = told(store)
            await store.capability(Deletes).delete([large])
            after = told(store)
            go_on()
        assert (before, after) == (11, 1) and place.file(small).exists() and place.used() == BLOCK

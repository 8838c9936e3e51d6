"""What one process says is there while another one is about to evict it; with inotify and without."""

import os
from contextlib import asynccontextmanager

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import EMPTY_DIGESTS, ActionKey, UnavailableError
from nl.stores.filesystem import mirror
from nl.stores.filesystem.journal import Change
from nl.stores.filesystem.names import index_key, legacy_action_key
from nl.stores.filesystem.watch import WatchUnavailableError
from nl.testing import BlockingReader, make_blob

from .conftest import put, until

BLOCK = 4096


@pytest.fixture(params=["inotify", "no inotify"])
def watched(request, monkeypatch):
    if request.param == "no inotify":
        monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")


async def refused(store, digest, upload):
    with pytest.raises(UnavailableError, match="upload it again"):
        await store.write(digest, upload)


@asynccontextmanager
async def two_stores(place, blocks):
    policy = {"max_bytes": blocks * BLOCK}
    async with place.running(policy=policy) as one, place.running(policy=policy) as two:
        await until(lambda: not one._uses.is_alone and not two._uses.is_alone)
        yield one, two


def at_once(question):
    """What is awaited, in the midst of what another store does: the answer waits for nothing."""
    try:
        question.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def once(monkeypatch, owner, name, *, before=None, after=None):
    """At its next call, something else happens right before or after it."""
    real = getattr(owner, name)

    def call(*args, **kwargs):
        monkeypatch.setattr(owner, name, real)
        if before is not None:
            before()
        result = real(*args, **kwargs)
        if after is not None:
            after()
        return result

    monkeypatch.setattr(owner, name, call)


async def test_what_is_said_to_be_there_after_the_evictors_look_is_not_evicted(place, watched, monkeypatch):
    async with two_stores(place, 3) as (one, two):
        a, b, c = [await put(one, name) for name in (b"a", b"b", b"c")]
        told = []
        once(monkeypatch, one._index, "oldest", after=lambda: told.append(at_once(two.has([a]))))
        d = await put(one, b"d")
        assert told == [[1]]
        assert await two.has([a, b, c, d]) == [1, None, 1, 1]


async def test_what_is_asked_for_while_it_is_being_evicted_is_not_said_to_be_there(place, watched, monkeypatch):
    async with two_stores(place, 3) as (one, two):
        a, b, c = [await put(one, name) for name in (b"a", b"b", b"c")]
        told = []

        def ask():
            told.append(at_once(two.has([a, b])))
            told.append((two._committer.is_intact(a), two._committer.is_there(a), two._committer.is_there(b)))

        once(monkeypatch, one._uses, "fence", after=ask)  # the evictor's look, and it will find the use or not
        d = await put(one, b"d")
        assert told == [[None, 1], (False, False, True)]
        assert await two.has([a, b, c, d]) == [1, 1, None, 1], "asked for in time, they stay: the next one goes"

        told.clear()
        for each in (a, b, d):
            await two.has([each])
        once(monkeypatch, one._committer, "delete", before=ask)  # too late
        e = await put(one, b"e")
        assert told == [[None, 1], (False, False, True)]
        assert await two.has([a, b, c, d, e]) == [None, 1, None, 1, 1]


@pytest.mark.parametrize("count", [1, 40])
async def test_what_is_evicted_right_after_it_was_looked_at_is_not_said_to_be_there(place, watched, monkeypatch, count):
    """The evictor had written down what it evicts before the use was told, so it did not find that."""
    async with two_stores(place, 9) as (one, two):
        a, b = await put(one, b"a"), await put(one, b"b")
        assert await two.has([a, b]) == [1, 1]

        def evict():
            place.file(a).unlink()
            one._uses.acquit()

        one._uses.condemn(one._uses.cell_of(a.hash))
        if two._mirror.is_exact:
            once(monkeypatch, two._mirror, "refresh", after=evict)
        else:
            once(monkeypatch, two._presence, "_stat_all", after=evict)
        assert await two.has([b, a] * count) == [1, None] * count


async def test_an_upload_of_what_is_being_evicted_is_written_again(place, watched, monkeypatch):
    async with two_stores(place, 3) as (one, two):
        a = await put(two, b"a")
        for name in (b"b", b"c"):
            await put(one, name)
        intact = []
        once(monkeypatch, one._committer, "delete", before=lambda: intact.append(two._committer.is_intact(a)))
        await put(one, b"d")
        assert intact == [False]
        await put(two, b"a")
        assert await one.has([a]) == [1]


@pytest.mark.parametrize("size", [1000, 300_000])
async def test_what_is_evicted_while_it_is_uploaded_anew_is_placed_again_and_hashed(place, watched, size):
    data = make_blob(size)
    async with place.running() as store:
        digest = await put(store, data)
        written = store.statistics()["written_blobs"]
        async with trio.open_nursery() as nursery:
            upload = BlockingReader([data])
            nursery.start_soon(store.write, digest, upload)
            await upload.blocked.wait()
            place.file(digest).unlink()
            assert await store.has([digest]) == [None]
            upload.go_on.set()
        assert store.statistics()["written_blobs"] == written + 1
        assert await store.has([digest]) == [size]
        hashed = store.statistics()["hashed_blobs"]
        assert await store.get(digest) == data
        assert store.statistics()["hashed_blobs"] == hashed + 1
        assert place.temp_files() == []


async def test_what_somebody_has_written_to_before_he_deleted_it_is_not_placed_again(place, watched):
    data = make_blob(1000)
    async with place.running() as store:
        digest = await put(store, data)
        upload = BlockingReader([data])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused, store, digest, upload)
            await upload.blocked.wait()
            place.file(digest).chmod(0o644)
            place.file(digest).write_bytes(bytes(1000))
            os.utime(place.file(digest), ns=(1, 1))  # whatever the clock's resolution
            place.file(digest).unlink()
            upload.go_on.set()
        assert await store.has([digest]) == [None]
        assert place.temp_files() == []


async def test_what_a_killed_process_was_evicting_is_missing_only_until_somebody_has_the_lock(place, watched):
    async with two_stores(place, 9) as (one, two):
        key = ActionKey("ab" * 32, 7)
        a, b = await put(one, b"a"), await put(one, b"b")
        await one.put(key, b"result")
        for condemned, sizes in (
            (a.hash, [None, 1, 6]), (b.hash, [1, None, 6]), (legacy_action_key(key), [1, 1, None]),
        ):  # fmt: skip
            one._uses.condemn(one._uses.cell_of(condemned))
            assert await two.has([a, b, key]) == sizes
            await put(two, b"another")
            await put(two, b"upload of %r" % sizes)
            assert await two.has([a, b, key]) == [1, 1, 6]
        many = [a, *(digest_of(b"%d" % number) for number in range(50)), b]
        one._uses.condemn(one._uses.cell_of(a.hash))
        assert await two.has(many) == [None] * 51 + [1]


async def test_the_oldest_of_all_goes_whoever_has_written_it_and_nothing_is_listed_for_it(place, watched):
    async with two_stores(place, 5) as (one, two):
        old = [await put(two, b"old %d" % number) for number in range(4)]
        used = await put(one, b"used")
        assert await one.has([used]) == [4]
        new = await put(one, b"new")
        assert await one.has([used, new, *old]) == [4, 3, None, 5, 5, 5]
        assert one._scanner.scans == two._scanner.scans == 1
        assert one.statistics()["bytes"] == place.used()


async def test_what_is_learned_of_late_is_as_old_as_it_is(place, watched):
    async with two_stores(place, 4) as (one, two):
        a, b = await put(one, b"a"), await put(one, b"b")
        x = await put(two, b"x")
        y = await put(two, b"y")
        assert await two.has([a, b]) == [1, 1]
        news = [await put(one, b"new %d" % number) for number in range(2)]
        assert await one.has([a, b, x, y, *news]) == [1, 1, None, None, 5, 5]


async def test_a_process_that_got_no_inotify_is_told_by_those_that_have(place, monkeypatch):
    def refuse():
        raise WatchUnavailableError("too many instances")

    policy = {"max_bytes": 5 * BLOCK}
    async with place.running(policy=policy) as one:
        for number in range(3):
            await put(one, b"old %d" % number)
        monkeypatch.setattr(mirror, "Watch", refuse)
        async with place.running(policy=policy) as two:
            monkeypatch.undo()
            names = []
            for number in range(20):
                names += [await put(one, b"one %d" % number), await put(two, b"two %d" % number)]
                assert place.used() <= 5 * BLOCK
            assert await one.has(names[-5:]) == await two.has(names[-5:]) == [len(b"one 17")] * 5
            assert (one.statistics()["bytes"], two.statistics()["bytes"]) == (5 * BLOCK, 5 * BLOCK)
            assert two._scanner.scans == 1
            assert not two._mirror.is_watching and one._mirror.is_watching
        assert one._uses.is_one_blind
    async with place.running() as one:
        assert not one._uses.is_one_blind, "alone again, it tells nobody"


async def test_a_file_that_a_killed_process_has_told_and_not_placed_costs_no_more_than_its_room(place, monkeypatch):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    async with two_stores(place, 3) as (one, two):
        await one._committer.lock.acquire()
        with one._committer.locked():
            one._committer.journal.write(Change(one._layout.blobs, str(digest_of(b"never placed")), 12))
        digests = [await put(two, b"%d" % number) for number in range(5)]
        assert await two.has(digests) == [None, None, 1, 1, 1]
        assert place.used() == 3 * BLOCK == two.statistics()["bytes"]


async def test_who_was_too_far_behind_lists_the_folder(place, monkeypatch):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    async with two_stores(place, 5) as (one, two):
        await one._committer.lock.acquire()
        with one._committer.locked():
            one._committer.journal._head += 1 << 30
            one._committer.journal.follow()
        os.unlink(place.file(await put(one, b"gone")))
        await until(lambda: two._scanner.scans == 2 and two._mirror.scanned.is_set())
        for number in range(9):
            await put(two, b"%d" % number)
            assert place.used() <= 5 * BLOCK
        assert two.statistics()["bytes"] == place.used() == 5 * BLOCK


async def test_the_empty_blob_is_no_file_and_there_whatever_is_evicted(place, watched):
    async with two_stores(place, 5) as (one, two):
        kept = await put(one, b"kept")
        for empty in EMPTY_DIGESTS:
            one._uses.condemn(one._uses.cell_of(index_key(empty)))
            assert at_once(two.has([kept, empty])) == [4, 0]
        one._uses.acquit()

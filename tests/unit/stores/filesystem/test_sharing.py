"""Several stores on one folder: each sees at once what the others do. (Processes: tests/integration.)"""

import logging
import os

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import ActionKey, BlobNotFoundError, EvictionPolicy, Link, LocalFiles, UnavailableError
from nl.stores.filesystem import FilesystemOptions, FilesystemStore, lock, mirror
from nl.stores.filesystem.journal import Journal
from nl.stores.filesystem.layout import SPREAD
from nl.testing import BareContext, find, make_blob, started

from .conftest import put, until

BLOCK = 4096


async def test_what_one_writes_the_other_has_at_once(place):
    async with place.running() as one, place.running() as two:
        for number in range(300):
            data = b"%d" % number
            digest = await put(one, data)
            assert await two.has([digest]) == [len(data)]
            assert await two.get(digest) == data
        await one.put(ActionKey("ab" * 32, 7), b"result")
        await one.put("name", b"value")
        assert await two.has([ActionKey("ab" * 32, 7), "name"]) == [6, 5]
        assert two.statistics()["state"] == "exact"


async def test_what_one_evicts_the_other_has_no_more(place):
    async with place.running(policy={"max_bytes": 2 * BLOCK}) as one, place.running() as two:
        a, b = await put(one, b"a"), await put(one, b"b")
        assert await two.has([a, b]) == [1, 1]
        c = await put(one, b"c")
        assert await two.has([a, b, c]) == [None, 1, 1]
        with pytest.raises(BlobNotFoundError):
            await two.get(a)


async def test_what_is_evicted_while_it_is_asked_for_is_not_said_to_be_there(place, monkeypatch):
    async with place.running() as one, place.running() as two:
        digests = [await put(one, b"%d" % number) for number in range(20)]
        assert await two.has(digests) == [1] * 10 + [2] * 10
        touch_all = two._index.touch_all

        def touch_all_late(slots, now):
            place.file(digests[3]).unlink(missing_ok=True)
            touch_all(slots, now)

        monkeypatch.setattr(two._index, "touch_all", touch_all_late)
        assert await two.has(digests) == [1] * 3 + [None] + [1] * 6 + [2] * 10


@pytest.mark.parametrize("what", ["has", "put"])
async def test_thousands_of_changes_by_another_process_do_not_hold_the_loop_up_as_a_whole(place, monkeypatch, what):
    async with place.running() as store:
        kept = await put(store, b"kept")
        digests = [digest_of(b"%d" % number) for number in range(4000)]
        for number, digest in enumerate(digests):
            place.lay(digest, b"%d" % number)
        await until(lambda: len(store._index) == 4001)
        for digest in digests:
            place.file(digest).unlink()
        in_turn = most = 0
        reconcile = store._mirror._reconcile

        def count_and_reconcile(*args, **kwargs) -> None:
            nonlocal in_turn, most
            in_turn += 1
            most = max(most, in_turn)
            reconcile(*args, **kwargs)

        async def begin_turns() -> None:
            nonlocal in_turn
            while True:
                await trio.lowlevel.checkpoint()
                in_turn = 0

        monkeypatch.setattr(store._mirror, "_reconcile", count_and_reconcile)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin_turns)
            if what == "has":
                assert await store.has([kept, *digests]) == [4] + [None] * 4000
            else:
                await put(store, b"new")
                assert len(store._index) == 2
            nursery.cancel_scope.cancel()
        assert 0 < most < 2500


async def test_the_sum_of_all_stays_under_max_bytes(place):
    policy = {"max_bytes": 10 * BLOCK}
    async with place.running(policy=policy) as one, place.running(policy=policy) as two:
        for number in range(50):
            await put((one, two)[number % 2], b"%d" % number)
            assert place.used() <= 10 * BLOCK
        await one.has([])
        await two.has([])
        assert one.statistics()["bytes"] == two.statistics()["bytes"] == place.used() == 10 * BLOCK


async def test_what_one_mends_the_other_serves(place):
    data = make_blob(500)
    async with place.running() as one, place.running() as two:
        digest = await put(one, data)
        assert await two.get(digest) == data
        os.chmod(place.file(digest), 0o644)
        place.file(digest).write_bytes(bytes(500))
        with pytest.raises(BlobNotFoundError):
            await one.get(digest)
        assert await two.has([digest]) == [None]
        await two.put(digest, data)
        assert await find(one, digest) == data


async def test_values_replaced_by_one_are_new_for_the_other(place):
    async with place.running() as one, place.running() as two:
        for number in range(10):
            value = b"x" * (number + 1)
            await (one, two)[number % 2].put("name", value)
            assert [await store.get("name") for store in (one, two)] == [value, value]
            assert await one.has(["name"]) == await two.has(["name"]) == [number + 1]


async def test_variants_made_by_one_are_used_and_counted_by_the_other(place):
    async with place.running() as one, place.running() as two:
        digest = await put(one, b"tool")
        assert await one.capability(LocalFiles).link_files([Link(digest, str(place.inputs / "1"), True)]) == []
        assert await two.capability(LocalFiles).link_files([Link(digest, str(place.inputs / "2"), True)]) == []
        assert os.stat(place.inputs / "1").st_ino == os.stat(place.inputs / "2").st_ino
        assert one.statistics()["bytes"] == two.statistics()["bytes"] == 2 * BLOCK


async def test_a_writer_that_was_evicted_and_comes_back_is_there(place):
    """Deletions and creations of one name, read late and all together, leave the index right."""
    async with place.running() as one, place.running() as two:
        digest = await put(one, b"there and back")
        for _ in range(5):
            place.file(digest).unlink()
            await one.put(digest, b"there and back")
        assert await two.has([digest]) == await one.has([digest]) == [14]
        place.file(digest).unlink()
        assert await two.has([digest]) == await one.has([digest]) == [None]


async def test_files_copied_in_by_hand_are_blobs(place):
    data = make_blob(5000)
    digest = digest_of(data)
    async with place.running() as store:
        place.file(digest).write_bytes(data)
        assert await store.has([digest]) == [5000]
        assert await store.get(digest) == data


async def test_lost_events_are_made_up_for(place, caplog):
    async with place.running() as one, place.running() as two:
        kept, gone = await put(one, b"kept"), await put(one, b"gone")
        assert await two.has([kept, gone]) == [4, 4]
        with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as file:
            most = int(file.read())
        folder, other = str(place.content / "s" / "x"), str(place.content / "s" / "y")
        with caplog.at_level(logging.WARNING):
            place.file(gone).unlink()
            open(folder, "wb").close()
            for _ in range(most // 4 + 10):
                os.rename(folder, other)
                os.rename(other, folder)
            late = digest_of(b"late")
            place.file(late).write_bytes(b"late")
            assert await two.has([kept, gone, late, "x"]) == [4, None, 4, 0]
        assert "max_queued_events" in caplog.text
        await until(lambda: two.statistics()["state"] == "exact")
        assert await two.has([kept, gone, late, "x"]) == [4, None, 4, 0]
        assert await two.get(late) == b"late"


@pytest.mark.parametrize("what", ["content", "d", "temp", "all"])
async def test_deleting_the_folders_under_a_store_does_not_end_it(place, what):
    import shutil

    async with place.running() as store:
        digest = await put(store, b"gone with the folder")
        victim = {"content": place.content, "d": place.content / "d", "temp": place.temp}.get(what)
        for path in [victim] if victim else [place.content, place.temp, place.executables.parent]:
            shutil.rmtree(path)
        if what != "temp":
            assert await store.has([digest]) == [None]

        async def is_back():
            try:
                await store.put(digest, b"gone with the folder")
            except UnavailableError:
                return False
            return place.file(digest).exists()

        with trio.fail_after(20):
            while not await is_back():
                await trio.sleep(0.05)
        assert await store.has([digest]) == [20]
        assert await store.get(digest) == b"gone with the folder"
        await until(lambda: store.statistics()["state"] == "exact")
        async with place.running() as other:
            await until(lambda: not store._uses.is_alone)
            assert not other._uses.is_alone, "they share what was used, also after that"


async def test_waiting_for_the_lock_stalls_no_reads_and_says_who_has_it(place, monkeypatch, caplog):
    import fcntl

    monkeypatch.setattr(lock, "_WARNING_S", 0.05)
    monkeypatch.setattr(lock, "_TIMEOUT_S", 0.2)
    async with place.running() as store:
        digest = await put(store, b"before")
        with open(place.content / ".lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with caplog.at_level(logging.WARNING), pytest.raises(UnavailableError, match=f"process {os.getpid()}"):
                await put(store, b"after")
            assert f"process {os.getpid()}" in caplog.text
            assert await store.get(digest) == b"before"
            with trio.move_on_after(0.02) as scope:
                await put(store, b"after")
            assert scope.cancelled_caught
        assert place.temp_files() == []
        await put(store, b"after")


async def test_a_lock_that_is_never_given_back_does_not_end_the_background_work(place, monkeypatch, caplog):
    import fcntl

    monkeypatch.setattr(lock, "_TIMEOUT_S", 0.05)
    async with place.running() as store:
        await put(store, b"one")
        await put(store, b"two")
    async with place.running(scanned=False, policy={"max_count": 1}) as store:
        with open(place.content / ".lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            await until(lambda: "eviction is tried again" in caplog.text)
            assert store.statistics()["blobs"] == 2
        await put(store, b"three")
        assert len(os.listdir(place.content / "d")) == 1


async def test_a_lock_file_that_was_deleted_is_replaced_by_one_for_all(place):
    policy = {"max_bytes": 10 * BLOCK}
    async with place.running(policy=policy) as one:
        await put(one, b"before")
        (place.content / ".lock").unlink()
        async with place.running(policy=policy) as two:
            assert one._committer.lock.try_lock()
            assert not two._committer.lock.try_lock()
            one._committer.lock.unlock()
            for number in range(40):
                (place.content / ".lock").unlink(missing_ok=True)
                await put((one, two)[number % 2], b"%d" % number)
                assert place.used() <= 10 * BLOCK


async def test_two_paths_to_one_folder_are_one_store(place):
    place.content.mkdir()
    (place.root / "elsewhere").mkdir()
    (place.root / "elsewhere" / "link").symlink_to(place.content)
    options = FilesystemOptions(
        content_path=str(place.root / "elsewhere" / "link"), temp_path=str(place.root / "temp2"),
        eviction_policy=EvictionPolicy(max_bytes=10 * BLOCK),
    )  # fmt: skip
    other = FilesystemStore(options, BareContext())
    async with place.running(policy={"max_bytes": 10 * BLOCK}) as one, started(other) as two:
        await until(lambda: two.statistics()["state"] == "exact")
        for number in range(8):
            digest = await put((one, two)[number % 2], b"%d" % number)
            for store in (one, two):
                links = [Link(digest, str(place.inputs / f"{number} {id(store)}"), True)]
                assert await store.capability(LocalFiles).link_files(links) == []
            assert place.used() <= 10 * BLOCK
        await one.has([])
        await two.has([])
        assert one.statistics()["bytes"] == two.statistics()["bytes"] == place.used()
        assert os.listdir(place.root / "elsewhere") == ["link"]


async def test_unfinished_files_are_spread_over_folders_that_are_there(place):
    async with place.running() as store:
        names = [store._layout.temp_name() for _ in range(1000)]
        assert len(set(names)) == 1000
        folders = {name.partition("/")[0] for name in names}
        assert folders == set(os.listdir(place.temp / "d"))
        assert len(folders) == SPREAD


async def test_two_stores_may_share_a_temp_folder_and_clean_only_after_the_dead(place):
    async with place.running() as one:
        name = one._layout.temp_name()
        (place.temp / "d" / name).write_bytes(b"under way")
        (place.temp / "d" / "stranger").write_bytes(b"of somebody else")
        os.utime(place.temp / "d" / "stranger", (1, 1))
        (place.temp / "d" / "young-stranger").write_bytes(b"of somebody else")
        async with place.running():
            assert sorted(place.temp_files()) == sorted([os.path.basename(name), "young-stranger"])
    (place.temp / "d" / "dead0-1").write_bytes(b"")
    (place.temp / "dead0.session").write_bytes(b"")
    async with place.running():
        assert place.temp_files().count("dead0-1") == 0
        assert not (place.temp / "dead0.session").exists()
    assert [name for name in os.listdir(place.temp) if name.endswith(".session")] == []


@pytest.mark.parametrize("blind", [False, True])
async def test_who_has_inotify_writes_down_its_changes_if_somebody_has_none(place, monkeypatch, blind):
    async with place.running() as one:
        if blind:
            monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
        async with place.running() as two:
            await until(lambda: not one._uses.is_alone and not two._uses.is_alone)
            await put(one, b"first")
            journal = Journal(one._layout)
            journal.read()
            journal.follow()
            digest = await put(one, b"second")
            journal.read()
            changes = [] if not blind else [(one._layout.blobs, place.file(digest).name, 6)]
            assert journal.changes() == changes
            await two._committer.follow()
            assert two.statistics()["blobs"] == 2 or not blind
            assert await two.has([digest]) == [6]

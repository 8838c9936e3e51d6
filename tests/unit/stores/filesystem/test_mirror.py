"""What the index has while files come and go, also between a listing and its being told, and where events are lost."""

import os
import threading
import time
from contextlib import suppress

import pytest
import trio

from nl.plugin import ActionKey, Deletes, Digest, Removals, digest_of
from nl.stores.filesystem import mirror, scanning
from nl.stores.filesystem.journal import Change, Journal
from nl.stores.filesystem.watch import IN_Q_OVERFLOW, Event, Watch, WatchUnavailableError
from nl.testing import find, make_blob

from .conftest import put, until
from .test_evicting import watched as watched  # a fixture
from .test_scanning import held_scan

BLOCK = 4096


def after_listing(monkeypatch, folder, change):
    """`change` is made between the listing of a folder and its being told."""
    real = scanning._list_piece

    def list_piece(listed, items):
        found = real(listed, items)
        if listed.path.endswith(f"content/{folder}"):
            change()
        return found

    monkeypatch.setattr(scanning, "_list_piece", list_piece)


async def listed(store):
    await until(lambda: store._scanner.scans > 0 and store._scanner.began_at < 0)


async def test_what_others_do_between_listing_and_telling_is_known(place, monkeypatch):
    gone, cut, come = digest_of(b"gone"), digest_of(b"cut short"), digest_of(b"come")
    place.lay(gone, b"gone")
    place.lay(cut, b"cut short")

    def change():
        place.file(gone).unlink(missing_ok=True)
        os.truncate(place.file(cut), 3)
        place.lay(come, b"come")

    after_listing(monkeypatch, "d", change)
    async with place.running() as store:
        await listed(store)
        assert store.statistics()["blobs"] == 2
        assert await store.has([gone, cut, come]) == [None, None, 4]


async def test_what_the_store_does_between_listing_and_telling_is_known(place, monkeypatch, watched):
    async with place.running() as store:
        gone, _ = await put(store, b"gone"), await store.put("name", b"value")
    changes = []

    async def change():
        await store.put("name", b"a longer value")
        await store.put("new", b"new")
        await put(store, b"come")
        if not changes:
            await store.capability(Deletes).delete([gone])
        changes.append(1)

    after_listing(monkeypatch, "d", lambda: trio.from_thread.run(change))
    after_listing(monkeypatch, "s", lambda: trio.from_thread.run(change))
    async with place.running(scanned=False) as store:
        await listed(store)
        assert len(changes) == 2
        assert await store.has([gone, digest_of(b"come"), "name", "new"]) == [None, 4, 14, 3]
        assert store.statistics()["blobs"] == 3 and store.statistics()["bytes"] == place.used() == 3 * BLOCK


@pytest.mark.parametrize("what", ["events", "folder"])
async def test_a_listing_during_which_events_or_the_folder_were_lost_is_not_the_last(place, monkeypatch, what):
    calls, real = [], scanning._list_piece
    monkeypatch.setattr(scanning, "_list_piece", lambda *args: calls.append(args) or real(*args))
    with held_scan(monkeypatch) as go_on:
        async with place.running(scanned=False) as store:
            await until(lambda: store._scanner.began_at >= 0)
            if what == "events":
                store._mirror._note(Event(-1, IN_Q_OVERFLOW, ""), {})
            else:
                store._mirror.folder_lost = True
            go_on()
            await until(lambda: store.statistics()["state"] == "exact")
            assert store._scanner.scans == 1 and len(calls) == 2 * 4


async def test_only_regular_files_are_blobs_when_the_folder_is_listed(place, caplog):
    digests = [Digest(f"{number:064x}", 1) for number in range(3)]
    place.lay(digests[0], b"x")
    place.file(digests[1]).symlink_to(place.file(digests[0]))
    os.mkfifo(place.file(digests[2]))
    (place.content / "d" / "stranger").write_bytes(b"x")
    (place.content / "d" / "another").write_bytes(b"x")
    async with place.running() as store:
        assert store.statistics()["blobs"] == 1
        assert await store.has(digests) == [1, None, None]
        strangers = [record for record in caplog.records if "is not a file of this cache" in record.getMessage()]
        assert len(strangers) == 1


async def test_after_the_watching_began_anew_what_is_put_into_place_is_seen(place):
    """Though an upload of the store's own had not been reported by then."""
    async with place.running() as store:
        digest = await put(store, b"x")
        store._mirror.watch_anew()
        await until(lambda: store._mirror.is_exact)
        place.file(digest).unlink()
        assert await store.has([digest]) == [None]
        (place.root / "x").write_bytes(b"x")
        os.rename(place.root / "x", place.file(digest))
        assert await store.has([digest]) == [1]


async def test_after_events_were_lost_what_is_put_into_place_is_seen(place):
    async with place.running() as store:
        digest = await put(store, b"x")
        store._mirror._watch.read()  # the event of the upload is among them
        store._mirror._note(Event(-1, IN_Q_OVERFLOW, ""), {})
        assert store.statistics()["state"] != "exact"
        await until(lambda: store._mirror.is_exact)
        place.file(digest).unlink()
        assert await store.has([digest]) == [None]
        (place.root / "x").write_bytes(b"x")
        os.rename(place.root / "x", place.file(digest))
        assert await store.has([digest]) == [1]


async def test_two_files_of_one_hash_are_both_counted_and_both_evicted(place):
    async with place.running(policy={"max_count": 2}) as store:
        right = digest_of(b"right")
        other = Digest(right.hash, 6)
        paths = [place.file(right), place.file(other)]
        await store.put(right, b"right")
        await store.put(other, b"other.")
        assert all(path.exists() for path in paths)
        assert await store.has([right, other]) == [None, 6]
        assert store.statistics()["blobs"] == 2 and store.statistics()["bytes"] == 2 * BLOCK
        await put(store, b"a")
        assert [path.exists() for path in paths] == [False, True]
        await put(store, b"b")
        assert [path.exists() for path in paths] == [False, False]
        assert store.statistics()["blobs"] == 2


async def test_a_folder_that_was_moved_away_takes_its_files_out_of_the_index(place):
    async with place.running() as store:
        digest, action = await put(store, b"x"), ActionKey("ab" * 32, 3)
        await store.put(action, b"result")
        os.rename(place.content / "d", place.root / "elsewhere")
        await until(lambda: (place.content / "d").exists() and store.statistics()["state"] == "exact")
        assert store.statistics()["blobs"] == 1 and store.statistics()["bytes"] == BLOCK
        await put(store, b"x")
        assert await store.has([digest, action]) == [1, 6]
        assert (place.root / "elsewhere" / str(digest)).exists()


async def test_news_of_more_than_one_read_of_events_are_all_there(place):
    async with place.running() as store:
        digests = [await put(store, b"%d" % number) for number in range(400)]
        feed = store.capability(Removals).watch_removals()
        feed.take()
        for digest in digests:
            place.file(digest).unlink()
        assert set(feed.take()) >= set(digests)


@pytest.mark.parametrize("works_for", [0, 2])
async def test_where_not_all_folders_can_be_watched_none_is_and_the_state_says_why(place, monkeypatch, works_for):
    real, added = Watch.add, []

    def add(self, path):
        added.append(path)
        if len(added) > works_for:
            raise WatchUnavailableError("there are too many")
        return real(self, path)

    monkeypatch.setattr(Watch, "add", add)
    async with place.running() as store:
        descriptors = []
        for fd in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # what listed them is among them
                descriptors.append(os.readlink(f"/proc/self/fd/{fd}"))
        assert "anon_inode:inotify" not in descriptors
        assert store.statistics()["state"] == "there are too many" and not store._mirror.is_watching
        digest = await put(store, make_blob(10))
        place.file(digest).unlink()
        assert await store.has([digest]) == [None]


async def test_who_is_far_behind_others_goes_on_without_pauses_in_the_end(place, monkeypatch):
    """Else it might never catch up, while others change more and more."""

    class Endless:
        left = 1000

        def read(self):
            self.left -= 1
            return [Event(-1, 0, "")] if self.left > 0 else []

        def pending(self):
            return self.left > 0

    async with place.running(name="CAS") as store:
        watch, turns = store._mirror._watch, 0
        monkeypatch.setattr(store._mirror, "_watch", Endless())

        async def count():
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            await store._mirror.catch_up()
            assert store._mirror._watch.left <= 0
            nursery.cancel_scope.cancel()
        monkeypatch.setattr(store._mirror, "_watch", watch)
    assert 150 < turns < 250


async def test_variants_and_results_of_others_are_seen_and_forgotten(place):
    async with place.running() as store:
        digest = await put(store, b"tool")
        variant = place.executables / str(digest)
        variant.write_bytes(b"tool")
        await store.has([])
        assert (store.statistics()["executables"], store.statistics()["bytes"]) == (1, 2 * BLOCK)
        variant.unlink()
        await store.has([])
        assert (store.statistics()["executables"], store.statistics()["bytes"]) == (0, BLOCK)


async def test_who_opens_a_blob_for_writing_and_writes_nothing_has_changed_nothing(place):
    data = make_blob(100_000)
    async with place.running() as store:
        digest = await put(store, data)
        feed = store.capability(Removals).watch_removals()
        hashed = store.statistics()["hashed_blobs"]
        with place.file(digest).open("r+b"):
            pass
        assert store._mirror._watch.pending()
        assert await store.has([digest]) == [len(data)]
        assert await find(store, digest) == data
        assert store.statistics()["hashed_blobs"] == hashed and not feed.take()


async def test_the_right_file_in_the_place_of_one_cut_short_is_counted_once(place, watched):
    digest = digest_of(b"right")
    place.lay(digest, b"cut")
    async with place.running() as store:
        assert store.statistics()["blobs"] == 1 and await store.has([digest]) == [None]
        await put(store, b"right")
        assert store.statistics()["blobs"] == 1 and store.statistics()["bytes"] == BLOCK
        assert await store.has([digest]) == [5]


async def test_without_inotify_what_others_do_between_listing_and_telling_is_known(place, monkeypatch):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    begun, changes = threading.Event(), []
    async with place.running() as one:
        gone = await put(one, b"gone")

        async def change():
            await one.capability(Deletes).delete([gone])
            await put(one, b"come")
            await put(two, b"learns of both, as it has the lock")

        def change_once():
            begun.wait(120)
            if not changes:
                changes.append(1)
                trio.from_thread.run(change)

        after_listing(monkeypatch, "d", change_once)
        async with place.running(scanned=False) as two:
            begun.set()
            await listed(two)
            assert changes and gone.hash not in two._index.slots
            assert two.statistics()["blobs"] == 2 and two.statistics()["bytes"] == place.used() == 2 * BLOCK


async def test_without_inotify_what_nobody_has_told_a_use_of_is_not_taken_for_the_oldest(place, monkeypatch):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    async with place.running(policy={"max_count": 3}) as store:
        old = [await put(store, name) for name in (b"a", b"b")]
        journal = Journal(store._layout)
        new = place.lay(digest_of(b"x"), b"x")
        journal.read()
        journal.write(Change(store._layout.blobs, new.name, 1))
        journal.tell(3 * BLOCK)
        await store._committer.follow()
        for name, left in ((b"c", [False, True]), (b"d", [False, False])):
            await put(store, name)
            assert [place.file(digest).exists() for digest in old] == left and new.exists()


async def test_what_changes_is_remembered_only_while_the_folder_is_listed(place):
    """Else it would be more and more."""
    async with place.running() as store:
        await put(store, b"x")
        assert store._mirror.changed_during_scan is None


async def test_what_is_looked_at_while_the_folder_is_listed_anew_counts_as_seen(place, monkeypatch):
    async with place.running() as store:
        digest = await put(store, b"x")

        def change():
            with place.file(digest).open("r+b"):
                pass

        after_listing(monkeypatch, "d", change)
        store._mirror.scan_wanted = True
        store._scanner.asked.set()
        await until(lambda: store._scanner.scans == 2)
        assert store.statistics()["blobs"] == 1 and store.statistics()["bytes"] == BLOCK


async def test_a_value_of_a_name_that_is_no_text_is_seen_and_its_use_is_written(place):
    async with place.running() as store:
        name = os.fsencode(place.content / "s") + b"/\xff"
        with open(name, "wb"):
            pass
        os.utime(name, (1, 1))
        assert await store.has(["something else"]) == [None]
        [slot] = store._index.slots.values()
        store._index.touch(slot, time.monotonic())
        await store._recency.flush()
        assert os.stat(name).st_atime > 1


async def test_a_link_in_the_place_of_a_blob_is_none(place):
    async with place.running() as store:
        digest, other = await put(store, b"x"), digest_of(b"y")
        (place.root / "outside").write_bytes(b"x")
        place.file(other).symlink_to(place.root / "outside")
        (place.root / "link").symlink_to(place.root / "outside")
        os.rename(place.root / "link", place.file(digest))
        assert await store.has([digest, other]) == [None, None]
        assert store.statistics()["blobs"] == 0 == store.statistics()["bytes"]


async def test_who_has_lost_track_relies_on_its_index_no_more_until_the_folder_is_listed(place, watched):
    async with place.running() as store:
        await put(store, b"x")
        assert store._mirror.is_complete
        store._mirror.lose_track()
        assert not store._mirror.is_complete and store._mirror.scan_wanted
        store._scanner.asked.set()
        await until(lambda: store._mirror.is_complete and not store._mirror.scan_wanted)


async def test_two_files_of_one_hash_that_others_have_written_are_both_counted_and_both_evicted(place):
    async with place.running(policy={"max_count": 2}) as store:
        digest = digest_of(b"right")
        paths = [place.lay(digest, b"right"), place.lay(Digest(digest.hash, 6), b"other.")]
        assert await store.has([digest, digest_of(b"none")]) == [5, None]
        assert store.statistics()["blobs"] == 2 and store.statistics()["bytes"] == 2 * BLOCK
        await put(store, b"a")
        assert [path.exists() for path in paths] == [True, False]
        await put(store, b"b")
        assert [path.exists() for path in paths] == [False, False]
        assert store.statistics()["blobs"] == 2

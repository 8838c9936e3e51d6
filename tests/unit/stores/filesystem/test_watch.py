"""inotify, and what happens where there is none."""

import ctypes
import errno
import os
import shutil
import sys
from types import SimpleNamespace

import pytest
import trio
from trio.testing import assert_no_checkpoints

from nl.blob.hashing import digest_of
from nl.plugin import BlobNotFoundError, NlError, Removals
from nl.stores.filesystem import FilesystemStore, mirror
from nl.stores.filesystem import watch as watch_module
from nl.stores.filesystem.journal import Journal
from nl.stores.filesystem.watch import (
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_MODIFY,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    Watch,
    WatchUnavailableError,
    remote_file_system,
)
from nl.testing import BareContext

from .conftest import put, until


def test_every_change_can_be_read_at_once(tmp_path):
    watch = Watch()
    number = watch.add(str(tmp_path))
    assert not watch.read()
    for name in ("plain", "ü", "x" * 200):
        (tmp_path / name).touch()
        events = watch.read()
        assert events[0] == (number, IN_CREATE, name)
        assert not watch.read()
    os.rename(tmp_path / "plain", tmp_path / "other")
    os.unlink(tmp_path / "other")
    kinds = [(event.mask, event.name) for event in watch.read()]
    assert (IN_MOVED_TO, "other") in kinds and kinds[-1] == (IN_DELETE, "other")
    watch.close()


def test_names_need_not_be_text(tmp_path):
    folder = tmp_path / os.fsdecode(b"folder-\xff")
    folder.mkdir()
    watch = Watch()
    number = watch.add(str(folder))
    os.mkdir(folder / os.fsdecode(b"\xfe"))
    assert watch.read() == [(number, watch_module.IN_CREATE | 0x40000000, os.fsdecode(b"\xfe"))]
    watch.close()


def test_whatever_may_change_a_file_or_take_the_folder_away_is_reported_while_it_happens(tmp_path):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "file").write_bytes(b"x")
    watch = Watch()
    number = watch.add(str(folder))
    with (folder / "file").open("r+b", buffering=0) as file:
        file.truncate(0)
        assert watch.read() == [(number, IN_MODIFY, "file")], "though it is still being written"
    assert watch.read() == [(number, IN_CLOSE_WRITE, "file")]
    os.rename(folder / "file", tmp_path / "file")
    assert watch.read() == [(number, IN_MOVED_FROM, "file")]
    os.rename(folder, elsewhere)
    assert watch.read() == [(number, IN_MOVE_SELF, "")]
    os.rmdir(elsewhere)
    assert watch.read()[0] == (number, IN_DELETE_SELF, "")
    watch.close()


def test_events_are_handed_out_some_hundred_at_a_time_and_in_order(tmp_path):
    """So that who is far behind goes on in steps, between which others run."""
    watch = Watch()
    watch.add(str(tmp_path))
    names = [f"{number:064x}-{number}" for number in range(1000, 2000)]
    for name in names:
        os.close(os.open(tmp_path / name, os.O_CREAT | os.O_RDONLY))
    got = []
    while events := watch.read():
        assert len(events) < 200 and (len(events) > 100 or len(got) + len(events) == 1000)
        got += [event.name for event in events]
    assert got == names
    watch.close()


def test_a_watch_is_not_handed_on_to_commands_and_never_waits():
    watch = Watch()
    assert not os.get_inheritable(watch.fd)
    assert not os.get_blocking(watch.fd)
    assert watch.pending() == 0 and not watch.read()
    watch.close()


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EMFILE, "fs.inotify.max_user_instances or ulimit -n"), (errno.ENOSPC, "fs.inotify.max_user_watches"),
        (errno.EACCES, "Permission denied"),
    ],
)  # fmt: skip
def test_why_nothing_can_be_watched_is_said_with_what_to_change(monkeypatch, number, advice):
    def refuse(*args):
        ctypes.set_errno(number)
        return -1

    watch = Watch()
    monkeypatch.setattr(watch_module, "_libc", SimpleNamespace(inotify_init1=refuse, inotify_add_watch=refuse))
    with pytest.raises(WatchUnavailableError, match=advice):
        Watch()
    with pytest.raises(WatchUnavailableError, match=f"^/the/folder: .*{advice}"):
        watch.add("/the/folder")
    watch.close()


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0x6969, "nfs"), (0xFF534D42, "cifs"), (0xFE534D42, "smb2"), (0x65735546, "fuse"), (0x01021997, "9p"),
        (0x00C36400, "ceph"), (0x0BD00BD0, "lustre"), (0xEF53, None), (0x01021994, None), (0x58465342, None),
    ],
)  # fmt: skip
def test_network_file_systems_are_known_by_their_number(monkeypatch, number, name):
    """As `man 2 statfs` has them; the last ones are ext4, tmpfs and XFS."""

    def statfs(path, buffer):
        assert path == b"/the/folder"
        buffer[:8] = number.to_bytes(8, sys.byteorder)
        return 0

    monkeypatch.setattr(watch_module, "_libc", SimpleNamespace(statfs=statfs))
    assert remote_file_system("/the/folder") == name


def test_a_folder_that_cannot_be_asked_counts_as_local():
    assert remote_file_system("/no/such/folder") is None


def test_a_folder_that_is_not_there_cannot_be_watched(tmp_path):
    watch = Watch()
    with pytest.raises(WatchUnavailableError, match="nowhere"):
        watch.add(str(tmp_path / "nowhere"))
    watch.close()


def test_local_folders_are_not_remote(tmp_path):
    assert remote_file_system(str(tmp_path)) is None


@pytest.fixture(params=["no inotify", "network file system"])
def unwatched(request, monkeypatch):
    if request.param == "no inotify":

        def refuse():
            raise WatchUnavailableError("too many instances: raise fs.inotify.max_user_instances")

        monkeypatch.setattr(mirror, "Watch", refuse)
        return "max_user_instances"
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    return "network file system \\(nfs\\)"


async def test_without_inotify_stores_still_see_each_other(place, unwatched, caplog):
    async with place.running() as one, place.running() as two:
        for number in range(50):
            data = b"%d" % number
            digest = await put(one, data)
            assert await two.has([digest]) == [len(data)]
            assert await two.get(digest) == data
            place.file(digest).unlink()
            assert await one.has([digest]) == await two.has([digest]) == [None]
            with pytest.raises(BlobNotFoundError):
                await one.get(digest)
        await one.put("name", b"value")
        await two.put("name", b"longer value")
        assert await one.get("name") == b"longer value"
        assert await one.has(["name"]) == [12]
    import re

    warnings = [record.getMessage() for record in caplog.records if "cannot watch" in record.getMessage()]
    assert len(warnings) == 2 and all(re.search(unwatched, text) for text in warnings)


async def test_without_inotify_one_store_keeps_its_bound(place, unwatched):
    async with place.running(policy={"max_bytes": 5 * 4096}) as store:
        for number in range(20):
            await put(store, b"%d" % number)
            assert place.used() <= 5 * 4096


async def test_without_inotify_what_was_put_again_is_not_evicted_as_what_was_there_before(place, unwatched):
    policy = {"max_bytes": 3 * 4096}
    async with place.running(policy=policy) as one, place.running(policy=policy) as two:
        await until(lambda: not one._uses.is_alone)
        again = await put(two, b"again")
        place.file(again).unlink()  # another process has evicted it
        await put(two, b"second")
        await put(one, b"again")
        await put(two, b"third")
        assert await one.has([again]) == [5]


async def test_without_inotify_a_file_is_told_before_it_is_there_lest_a_kill_comes_between(
    place, unwatched, monkeypatch
):
    rename, told = os.rename, []

    def note_and_rename(*args, **kwargs):
        other = Journal(store._layout)
        other.read()
        told.append((other.sum, other._head))
        if len(told) == 3:
            raise OSError(errno.EIO, "Input/output error")
        rename(*args, **kwargs)

    async with place.running() as store:
        await put(store, b"first")
        head = store._committer.journal._head
        monkeypatch.setattr("nl.stores.filesystem.commit.os.rename", note_and_rename)
        await store.put("value", b"one")
        await store.put("value", b"two")
        with pytest.raises(NlError):
            await put(store, b"not to be placed")
        await put(store, b"last")
        assert [sum_ for sum_, _ in told] == [2 * 4096, 3 * 4096, 3 * 4096, 3 * 4096]
        assert head < told[0][1] < told[1][1] < told[2][1] < told[3][1]
        assert store.statistics()["bytes"] == 3 * 4096


async def test_without_inotify_has_of_many_is_right(place, unwatched):
    async with place.running() as store:
        digests = [await put(store, b"%d" % number) for number in range(100)]
        for number in range(0, 100, 3):
            place.file(digests[number]).unlink()
        digests.append(digest_of(b"never"))
        sizes = await store.has(digests)
        assert [size is None for size in sizes] == [number % 3 == 0 for number in range(100)] + [True]


async def test_before_the_first_listing_is_done_everything_is_found(place):
    async with place.running() as store:
        digest = await put(store, b"from before")
        await store.put("name", b"value")
    async with place.running(scanned=False) as store:
        assert not store._mirror.is_exact
        assert await store.has([digest, "name", digest_of(b"no")]) == [11, 5, None]
        assert await store.get(digest) == b"from before"
        assert await store.get("name") == b"value"
        await store._mirror.scanned.wait()
        assert await store.has([digest, "name", digest_of(b"no")]) == [11, 5, None]
        assert store.statistics()["blobs"] == 2


async def test_after_a_folder_was_moved_away_and_back_the_index_is_exact_again(place):
    async with place.running() as store:
        digest = await put(store, b"x")
        feed = store.capability(Removals).watch_removals()
        os.rename(place.content / "d", place.content / "elsewhere")
        (place.content / "elsewhere" / str(digest)).unlink()
        os.rename(place.content / "elsewhere", place.content / "d")
        assert feed.take() is None, "until it is listed anew, anything may have gone"
        await until(lambda: store._mirror.is_exact)
        assert feed.take() is None, "nor is it known what went meanwhile"
        assert await store.has([digest]) == [None]
        other = place.lay(digest_of(b"y"), b"y")
        assert await store.has([digest_of(b"y")]) == [1], "changes are noticed"
        other.unlink()
        assert await store.has([digest_of(b"y")]) == [None]


async def test_folders_that_cannot_be_made_anew_at_once_are_made_and_watched_later(place, monkeypatch):
    monkeypatch.setattr("nl.stores.filesystem.store._FLUSH_S", 0.1)
    async with place.running() as store:
        reopen, failures = store._layout.reopen, [OSError(24, "Too many open files")] * 2

        def reopen_later():
            if failures:
                raise failures.pop()
            reopen()

        monkeypatch.setattr(store._layout, "reopen", reopen_later)
        shutil.rmtree(place.content)
        await until(lambda: not failures)
        await until(lambda: store._mirror.is_exact)
        assert await store.get(await put(store, b"x")) == b"x"


async def test_a_store_whose_folder_is_gone_ends_all_the_same(place):
    before = len(os.listdir("/proc/self/fd"))
    async with trio.open_nursery() as nursery:
        store = FilesystemStore(place.options(), BareContext("CAS"))
        await nursery.start(store.run)
        await store._mirror.scanned.wait()
        shutil.rmtree(place.root)
        nursery.cancel_scope.cancel()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_the_event_of_an_own_upload_makes_nobody_wait(place):
    async with place.running() as store:
        first = await put(store, b"first")
        with assert_no_checkpoints():
            assert await store.has([first, digest_of(b"second")]) == [5, None]
            await put(store, b"second")

"""Input files that actions may write to: what they do to them is found, stays theirs, and reaches no other action."""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.storage.capabilities import Link, LocalFiles
from nl.storage.contract import Store
from nl.worker import lending
from nl.worker.lending import Copies, Lender
from tests.support.stores import filesystem_store

GOOD, LARGE = b"good", b"x" * 300_000
"""One that is read whole, and one that is copied in pieces."""


@pytest.fixture(autouse=True)
def _a_disk_with_room(monkeypatch):
    """How full the disk is under the tests is nobody's business here."""
    monkeypatch.setattr(lending, "RESERVED_SHARE", 1 << 62)


@dataclass
class Bench:
    store: Store
    lender: Lender
    at: Path

    async def borrow(self, name, *, digest=digest_of(GOOD), executable=False):
        """An action that has one input: what it borrowed, and where that is."""
        path = self.at / name
        borrowed = self.lender.borrow()
        assert await borrowed.link_files([Link(digest, str(path), executable)]) == []
        await borrowed.settle()
        return borrowed, path

    async def ended(self, borrowed):
        """What has changed, by an action that is over."""
        changed = await borrowed.changed()
        borrowed.release()
        return changed


@asynccontextmanager
async def bench(tmp_path, *, max_bytes=1 << 30):
    store = filesystem_store(tmp_path / "cas")
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        for data in (GOOD, LARGE):
            await store.put(digest_of(data), data)
        lender = Lender(store.capability(LocalFiles), str(tmp_path / "lent"), max_bytes=max_bytes)
        (tmp_path / "at").mkdir()
        yield Bench(store, lender, tmp_path / "at")
        nursery.cancel_scope.cancel()


def overwrite(path):
    """As an ordinary user has to: and nothing that a stat shows is left."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"EVIL")
    path.chmod(before.st_mode & 0o777)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def append(path):
    path.chmod(0o644)
    with path.open("ab") as file:
        file.write(b"more")


def truncate(path):
    path.chmod(0o644)
    os.truncate(path, 1)


def hide(path):
    path.chmod(0)


def touch(path):
    os.utime(path, (1, 1))


def remove(path):
    path.unlink()


def replace(path):
    path.unlink()
    path.write_bytes(b"EVIL")


def rename(path):
    path.rename(path.with_name("elsewhere"))


def write_under_another_name(path):
    os.link(path, path.with_name("alias"))
    path.unlink()
    overwrite(path.with_name("alias"))


SPOILING = [overwrite, append, truncate, hide, touch, write_under_another_name]
HARMLESS = [remove, replace, rename]


@pytest.mark.parametrize("data", [GOOD, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("do", SPOILING)
async def test_whatever_is_done_to_an_input_is_found_and_the_next_action_and_the_store_have_the_right_bytes(
    tmp_path, do, data
):
    async with bench(tmp_path) as at:
        digest = digest_of(data)
        borrowed, path = await at.borrow("a", digest=digest)
        do(path)
        assert bytes(await at.store.get(digest)) == data  # also meanwhile
        assert await at.ended(borrowed) == [digest]
        borrowed, path = await at.borrow("b", digest=digest)
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o777 == 0o444
        assert await at.ended(borrowed) == []
        assert bytes(await at.store.get(digest)) == data
        assert at.store.statistics()["corrupt_blobs"] == 0


@pytest.mark.parametrize("do", HARMLESS)
async def test_what_leaves_the_file_as_it_is_does_not_count_as_a_change(tmp_path, do):
    async with bench(tmp_path) as at:
        borrowed, path = await at.borrow("a")
        do(path)
        assert await at.ended(borrowed) == []
        borrowed, path = await at.borrow("b")
        assert path.read_bytes() == GOOD
        assert at.lender.statistics()["input_files_made"] == 1


@pytest.mark.parametrize("do", SPOILING)
async def test_another_action_that_had_the_file_is_told_as_well_whichever_ends_first(tmp_path, do):
    async with bench(tmp_path) as at:
        guilty, path = await at.borrow("a")
        before, _path = await at.borrow("b")
        await at.ended((await at.borrow("c"))[0])
        do(path)
        assert await at.ended(before) == [digest_of(GOOD)]
        assert await at.ended(guilty) == [digest_of(GOOD)]


async def test_an_action_that_begins_after_the_change_gets_right_bytes_or_is_told(tmp_path):
    async with bench(tmp_path) as at:
        guilty, path = await at.borrow("a")
        overwrite(path)
        after, other = await at.borrow("b")
        assert other.read_bytes() == b"EVIL"  # nothing but reading all its bytes would have told
        assert await at.ended(after) == [digest_of(GOOD)]
        assert await at.ended(guilty) == [digest_of(GOOD)]


async def test_what_a_cancelled_action_did_is_found_by_the_next(tmp_path):
    async with bench(tmp_path) as at:
        guilty, path = await at.borrow("a")
        overwrite(path)
        guilty.release()  # nobody has looked
        path.unlink()
        borrowed, _path = await at.borrow("b")
        assert await at.ended(borrowed) == [digest_of(GOOD)]


async def test_a_cancelled_action_that_did_nothing_makes_nothing_anew(tmp_path):
    async with bench(tmp_path) as at:
        (await at.borrow("a"))[0].release()
        for name in "bc":
            assert await at.ended((await at.borrow(name))[0]) == []
        assert at.lender.statistics()["input_files_made"] == 1
        assert at.lender.statistics()["input_files_compared"] == 1  # what the first of them had found is known


async def test_a_changed_file_is_seen_before_it_is_lent_again_if_a_stat_shows_it(tmp_path):
    async with bench(tmp_path) as at:
        guilty, path = await at.borrow("a")
        append(path)
        borrowed, path = await at.borrow("b")
        assert path.read_bytes() == GOOD
        assert await at.ended(borrowed) == []
        assert await at.ended(guilty) == [digest_of(GOOD)]
        assert at.lender.statistics()["input_files_made"] == 2
        assert at.lender.statistics()["input_files"] == 1  # the new one, for who comes next


async def test_a_write_by_an_earlier_mapping_which_no_time_shows_is_found_by_whoever_began_after_it(tmp_path):
    async with bench(tmp_path) as at:
        guilty, path = await at.borrow("a")
        before = path.stat()
        path.chmod(0o644)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 4) as mapped:
            mapped[:4] = GOOD  # from here on, the page is writable without a fault
            path.chmod(0o444)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            path.unlink()
            borrowed, other = await at.borrow("b")
            mapped[:4] = b"EVIL"
            assert other.read_bytes() == b"EVIL"
            assert await at.ended(borrowed) == [digest_of(GOOD)]
        assert await at.ended(guilty) == [digest_of(GOOD)]


async def test_a_blob_that_is_an_input_twice_is_one_file_and_its_modes_are_two(tmp_path):
    async with bench(tmp_path) as at:
        digest = digest_of(GOOD)
        borrowed = at.lender.borrow()
        paths = [str(at.at / name) for name in "abc"]
        await borrowed.link_files([Link(digest, path, path.endswith("c")) for path in paths])
        assert [os.stat(path).st_mode & 0o777 for path in paths] == [0o444, 0o444, 0o555]
        assert os.path.samefile(paths[0], paths[1])
        assert not os.path.samefile(paths[0], paths[2])
        await borrowed.settle()
        os.chmod(paths[2], 0)
        assert await at.ended(borrowed) == [digest]


async def test_missing_blobs_are_listed_and_the_others_linked(tmp_path):
    async with bench(tmp_path) as at:
        gone = digest_of(b"gone")
        borrowed = at.lender.borrow()
        links = [Link(gone, str(at.at / "a"), False), Link(digest_of(GOOD), str(at.at / "b"), False)]
        assert await borrowed.link_files([*links, Link(gone, str(at.at / "c"), True)]) == [gone]
        assert sorted(os.listdir(at.at)) == ["b"]
        assert os.listdir(tmp_path / "lent" / "new") == []


async def test_empty_files_are_nobodys(tmp_path):
    async with bench(tmp_path) as at:
        borrowed, path = await at.borrow("a", digest=digest_of(b""), executable=True)
        assert (path.stat().st_size, path.stat().st_mode & 0o777, path.stat().st_nlink) == (0, 0o555, 1)
        path.chmod(0o644)
        path.write_bytes(b"mine")
        assert await at.ended(borrowed) == []


async def test_what_is_kept_for_later_has_a_bound_and_what_is_lent_stays(tmp_path):
    async with bench(tmp_path, max_bytes=10) as at:
        first, path = await at.borrow("a", digest=digest_of(LARGE))
        second, _path = await at.borrow("b")
        assert at.lender.statistics()["input_bytes"] == len(LARGE) + len(GOOD)
        assert await at.ended(first) == []
        assert at.lender.statistics()["input_bytes"] == len(GOOD)
        assert await at.ended(second) == []
        assert at.lender.statistics()["input_files"] == 1
        assert path.read_bytes() == LARGE


async def test_what_is_kept_for_later_makes_room_for_others_on_the_disk(tmp_path, monkeypatch):
    async with bench(tmp_path) as at:
        await at.ended((await at.borrow("a"))[0])
        lent, _path = await at.borrow("b", digest=digest_of(LARGE))
        assert at.lender.statistics()["input_files"] == 2
        monkeypatch.setattr(lending, "RESERVED_SHARE", 1)  # all of it is to be free
        monkeypatch.setattr(lending, "LOOK_S", 0.001)
        with trio.move_on_after(60) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(at.lender.run)
                while at.lender.statistics()["input_files"] > 1:
                    await trio.sleep(0.001)
                nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught
        assert await at.ended(lent) == []
        assert at.lender.statistics()["input_bytes"] == 0


async def test_a_file_that_is_lent_once_more_is_not_among_those_that_may_go(tmp_path):
    async with bench(tmp_path, max_bytes=10) as at:
        await at.ended((await at.borrow("a"))[0])
        again, _path = await at.borrow("b")
        await at.ended((await at.borrow("c", digest=digest_of(LARGE)))[0])
        assert at.lender.statistics()["input_files"] == 1
        assert await at.ended(again) == []


async def test_a_file_that_has_as_many_links_as_can_be_is_copied(tmp_path, monkeypatch):
    async with bench(tmp_path) as at:
        borrowed, path = await at.borrow("a")
        real = os.link

        def link(source, target, **more):
            if "lent" in source:
                raise OSError(errno.EMLINK, "Too many links", source)
            real(source, target, **more)

        monkeypatch.setattr(os, "link", link)
        other, copy = await at.borrow("b")
        assert copy.read_bytes() == GOOD and copy.stat().st_nlink == 1
        assert await at.ended(other) == [] == await at.ended(borrowed)


async def test_copies_are_shared_with_nobody(tmp_path):
    async with bench(tmp_path) as at:
        copies = Copies(at.lender)
        links = [Link(digest_of(data), str(at.at / name), False) for name, data in (("a", GOOD), ("b", LARGE))]
        assert await copies.link_files(links) == []
        for link, data in zip(links, (GOOD, LARGE), strict=True):
            path = Path(link.path)
            assert path.read_bytes() == data and path.stat().st_nlink == 1
            path.chmod(0o644)
            path.write_bytes(b"EVIL")
            assert bytes(await at.store.get(link.digest)) == data

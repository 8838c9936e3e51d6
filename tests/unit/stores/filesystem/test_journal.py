"""The journal of a folder: the sum, and what others did, for who has no inotify."""

import errno
import os
import struct

import pytest

from nl.stores.filesystem import journal as journal_module
from nl.stores.filesystem.journal import Change, Journal
from nl.stores.filesystem.layout import Layout


@pytest.fixture
def layouts(tmp_path):
    """Two processes' views of one folder."""
    layouts = [
        Layout(content_path=str(tmp_path / "content"), temp_path=str(tmp_path / "temp"), name="CAS") for _ in range(2)
    ]
    for layout in layouts:
        layout.open()
    yield layouts
    for layout in layouts:
        layout.close()


@pytest.fixture
def journals(layouts):
    """Two that follow each other."""
    journals = [Journal(layout) for layout in layouts]
    for journal in journals:
        journal.read()
        journal.tell(0)
        journal.follow()
    return journals


def write(journal, *changes):
    """As in a section under the lock: the changes that others made before are lost on this one."""
    journal.read()
    journal.changes()
    for change in changes:
        journal.write(change)
    journal.tell(0)


def news(journal):
    journal.read()
    return journal.changes()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_where_there_is_no_room_for_the_first_sum_nobody_is_told_and_whoever_has_the_lock_goes_on(
    layouts, monkeypatch, code
):
    one, two = map(Journal, layouts)

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", refuse)
        if code == errno.EIO:
            with pytest.raises(OSError, match="Input/output"):
                one.tell(5)
            return
        one.tell(5)
    two.read()
    assert (one.sum, two.sum) == (5, None)
    one.tell(6)
    two.read()
    assert two.sum == 6


def test_there_is_no_sum_until_somebody_has_told_it(layouts):
    one, two = map(Journal, layouts)
    one.read()
    assert one.sum is None
    one.tell(1 << 40)
    two.read()
    assert two.sum == 1 << 40
    two.tell(-5)
    one.read()
    assert one.sum == 0
    os.pwrite(layouts[0].lock_fd, b"nl sum 2", 0)
    one.read()
    assert one.sum is None, "another version's"
    one.tell(3)
    os.ftruncate(layouts[0].lock_fd, 23)
    two.read()
    assert two.sum is None


def test_the_sum_has_the_form_that_other_versions_read(layouts):
    journal = Journal(layouts[0])
    journal.read()
    journal.tell(5)
    assert os.pread(layouts[0].lock_fd, 100, 0) == struct.pack("<8sQQ", b"nl sum 3", 5, journal._head)


def test_what_one_writes_the_other_reads_once_and_in_order(journals, layouts):
    one, two = journals
    names, sizes = ("ab" * 32 + "-5", "x", "\udcff%20", "y" * 255), (5, None, 0, 1 << 40)
    changes = list(map(Change, layouts[0].indexed_folders, names, sizes))
    assert not two.has_news()
    write(one, *changes)
    assert two.has_news() and two.has_news()
    found = news(two)
    assert [(change.name, change.size) for change in found] == [(change.name, change.size) for change in changes]
    assert [change.folder for change in found] == list(layouts[1].indexed_folders)
    assert news(two) == [] and not two.has_news()
    assert news(one) == [], "what it has written itself is no news"


def test_the_ring_goes_round_and_who_is_too_far_behind_is_told_so(journals, layouts, monkeypatch):
    monkeypatch.setattr(journal_module, "RING", 100)
    one, two = journals
    folder, other = layouts[0].blobs, layouts[1].blobs
    for number in range(100):
        write(one, Change(folder, f"name {number}", number))
        if number % 3 == 0:
            assert news(two) == [Change(other, f"name {each}", each) for each in range(max(0, number - 2), number + 1)]
    write(one, *(Change(folder, f"name {number}", number) for number in range(10)))
    assert news(two) is None
    assert news(two) == []
    write(one, Change(folder, "next", 7))
    assert news(two) == [Change(other, "next", 7)]


@pytest.mark.parametrize("number", [4, 5, 255])
def test_what_is_of_no_folder_is_not_understood_as_a_whole(journals, layouts, number):
    one, two = journals
    write(one, Change(layouts[0].blobs, "x", 1))
    os.pwrite(layouts[0].lock_fd, bytes([number]), 4096 + (one._head - len("x") - 9) % journal_module.RING)
    assert news(two) is None
    write(one, Change(layouts[0].blobs, "y", 1))
    assert news(two) == [Change(layouts[1].blobs, "y", 1)]


def test_another_lock_file_has_another_journal(journals, layouts):
    one, two = journals
    for layout in layouts:
        if layout is layouts[0]:
            os.unlink(layout.lock_path)
        layout.open_lock_file()
    write(one, Change(layouts[0].blobs, "x", 1))
    assert news(two) is None
    write(one, Change(layouts[0].blobs, "y", 1))
    assert news(two) == [Change(layouts[1].blobs, "y", 1)]


def test_what_cannot_be_written_on_a_full_disk_is_missed_by_nobody(journals, layouts, monkeypatch):
    one, two = journals
    pwrite = os.pwrite

    def refuse(fd, data, at):
        if at >= 4096:
            raise OSError(errno.ENOSPC, "full")
        return pwrite(fd, data, at)

    with monkeypatch.context() as full:
        full.setattr(journal_module.os, "pwrite", refuse)
        write(one, Change(layouts[0].blobs, "x", None))
    assert news(two) is None and news(one) == []


def test_what_makes_no_sense_is_told_as_lost(journals, layouts):
    one, two = journals
    for nonsense in (b"", b"\xff" * 5, struct.pack("<HBq", 3, 9, 1)):
        write(one, Change(layouts[0].blobs, "name", 5))
        entry = struct.calcsize("<HBq") + 4
        os.pwrite(layouts[0].lock_fd, nonsense, 4096 + (one._head - entry) % journal_module.RING)
        assert (news(two) is None) == bool(nonsense)


@pytest.mark.parametrize("torn", [b"\x05", b"\x05\x00\x00" + bytes(8) + b"abc", b"\x01\x00\x09" + bytes(8) + b"x"])
def test_what_is_no_whole_change_is_not_believed(journals, layouts, torn):
    one, two = journals
    one.read()
    one.write(Change(layouts[0].blobs, "x", 5))
    head = one._head
    one._write_ring(torn)
    os.pwrite(layouts[0].lock_fd, struct.pack("<8sQQ", b"nl sum 3", 0, head + len(torn)), 0)
    assert news(two) is None, "it lists the folder instead"


def test_who_writes_before_it_has_read_loses_nothing_and_who_does_not_follow_follows_no_more_for_it(journals, layouts):
    one, two = journals
    write(one, Change(layouts[0].texts, "of one", 5))
    two.read()
    two.write(Change(layouts[1].texts, "of two", 6))
    two.tell(0)
    assert [name for _, name, _ in news(two)] == ["of one", "of two"]
    third = Journal(layouts[0])
    third.read()
    third.write(Change(layouts[0].texts, "x", 1))
    assert not third.is_followed


def test_a_change_has_the_form_that_other_versions_read(journals, layouts):
    one, _ = journals
    one.read()
    at = 4096 + one._head % (1 << 20)
    one.write(Change(layouts[0].executables, "name", 5))
    one.write(Change(layouts[0].blobs, "x", None))
    told = struct.pack("<HBq4sHBq1s", 4, 3, 5, b"name", 1, 0, -1, b"x")
    first = os.pread(layouts[0].lock_fd, len(told), at)[: 4096 + (1 << 20) - at]
    assert first + os.pread(layouts[0].lock_fd, len(told) - len(first), 4096) == told


def test_a_journal_for_which_no_room_is_reserved_is_followed_all_the_same(layouts, monkeypatch):
    def refuse(fd, *, offset, count):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal_module, "reserve", refuse)
    journal = Journal(layouts[0])
    journal.read()
    journal.follow()
    assert journal.is_followed

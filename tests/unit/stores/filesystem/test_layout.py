"""Folders and their files: what is made, what is tidied up at the start and what is left alone, what is closed."""

import errno
import fcntl
import logging
import os
import shutil
import sys
import time

import pytest

from nl.blob.hashing import digest_of
from nl.plugin import ActionKey, ConfigError, Digest, DigestFunction, ForeignKey, InternalError
from nl.stores.filesystem import layout as module
from nl.stores.filesystem.layout import SPREAD, Layout


def make(tmp_path, **more):
    places = {"content_path": str(tmp_path / "content"), "temp_path": str(tmp_path / "temp"), "name": "CAS"}
    return Layout(**{**places, **more})


@pytest.fixture
def opened(tmp_path):
    layouts = []

    def open_one():
        layouts.append(make(tmp_path))
        layouts[-1].open()
        return layouts[-1]

    yield open_one
    for layout in layouts:
        layout.close()


def temp_files(layout):
    return sorted(name for _, _, files in os.walk(layout.temp.path) for name in files)


def age(path, seconds):
    os.utime(path, (1, time.time() - seconds))


def test_all_folders_are_made_and_open_and_closed_again(tmp_path, opened):
    before = len(os.listdir("/proc/self/fd"))
    layout = opened()
    assert layout.is_open
    for folder in ("content/d", "content/a", "content/s", "content.exec/d", "content.corrupt", "temp/d"):
        assert (tmp_path / folder).is_dir()
    assert len(os.listdir("/proc/self/fd")) == before + 8, "six folders, the lock and the session"
    assert len(list((tmp_path / "temp").glob("*.session"))) == 1
    layout.close()
    layout.close()
    assert not layout.is_open and len(os.listdir("/proc/self/fd")) == before
    assert not list((tmp_path / "temp").glob("*.session"))
    with pytest.raises(InternalError, match="'CAS' is used while it is not running"):
        layout.require_open()


def test_a_start_that_fails_leaves_no_descriptor(tmp_path, monkeypatch):
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "content").mkdir()
    (tmp_path / "content" / "s").write_bytes(b"a file")
    with pytest.raises(Exception, match="content/s"):
        make(tmp_path).open()
    assert len(os.listdir("/proc/self/fd")) == before


def test_names_of_files_under_way_are_spread_and_nobody_elses(opened):
    one, two = opened(), opened()
    names = [layout.temp_name() for _ in range(2 * SPREAD) for layout in (one, two)]
    assert len(set(names)) == len(names)
    folders = {name.partition("/")[0] for name in names}
    assert folders == {f"{number:02x}" for number in range(SPREAD)} == set(os.listdir(one.temp.path))


def test_folders_of_unfinished_files_are_asked_to_lie_in_different_parts_of_the_disk(tmp_path, monkeypatch):
    """With the flag that `chattr +T` sets, beside those that the folder has; also when it is made anew."""
    asked = []

    def ioctl(fd, request, argument):
        path = os.readlink(f"/proc/self/fd/{fd}")
        if request == 0x80086601:  # FS_IOC_GETFLAGS
            argument[:] = (0x80000).to_bytes(8, sys.byteorder)
        else:
            asked.append((path, request, int.from_bytes(argument, sys.byteorder)))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    layout = make(tmp_path)
    layout.open()
    once = (str(tmp_path / "temp" / "d"), 0x40086602, 0x80000 | 0x20000)  # FS_IOC_SETFLAGS, extents, TOPDIR
    assert asked == [once]
    shutil.rmtree(tmp_path / "temp" / "d")
    layout.reopen()
    layout.close()
    assert asked == [once] * 2


@pytest.mark.parametrize("code", [errno.ENOTTY, errno.EPERM, errno.EOPNOTSUPP])
def test_where_that_cannot_be_asked_for_it_works_all_the_same(tmp_path, monkeypatch, code):
    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    layout = make(tmp_path)
    layout.open()
    assert layout.is_open
    layout.close()


def test_what_dead_processes_were_writing_goes_and_what_living_ones_write_stays(opened, caplog):
    living, dead = opened(), opened()
    for layout in (living, dead):
        for _ in range(3):
            with open(f"{layout.temp.path}/{layout.temp_name()}", "wb"):
                pass
    os.close(dead._session_fd)  # as if it was killed
    dead._session_fd = -1
    with caplog.at_level(logging.INFO):
        new = opened()
    assert {name.partition("-")[0] for name in temp_files(new)} == {living._session}
    assert len(temp_files(new)) == 3
    assert "store CAS: deleted 3 unfinished uploads of dead processes" in caplog.text
    sessions = {name for name in os.listdir(new.temp_path) if name.endswith(".session")}
    assert sessions == {f"{living._session}.session", f"{new._session}.session"}


@pytest.mark.parametrize(("hours", "stays"), [(0, True), (23.9, True), (24.1, False)])
def test_what_nobody_of_ours_was_writing_is_left_alone_for_a_day(opened, hours, stays):
    layout = opened()
    path = f"{layout.temp.path}/somebody-1"
    with open(path, "wb"):
        pass
    age(path, hours * 3600)
    opened()
    assert os.path.exists(path) is stays
    assert module._FOREIGN_TEMP_AGE_S == 24 * 3600


def test_a_session_is_locked_for_as_long_as_it_lives(opened):
    layout = opened()
    path = f"{layout.temp_path}/{layout._session}.session"
    fd = os.open(path, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
    living, dead = layout._sessions()
    assert (living, dead) == ({layout._session}, {})


def test_a_session_that_ends_while_another_process_starts_is_nothing_to_it(tmp_path, opened, monkeypatch):
    """Between the listing and the look at it, or as both clean up after the same dead one."""
    dead = opened()
    os.close(dead._session_fd)
    dead._session_fd = -1
    before, listdir, sessions = len(os.listdir("/proc/self/fd")), os.listdir, Layout._sessions

    def list_one_that_is_gone(path):
        return [*listdir(path), "0123456789ab.session"]

    def another_cleans(layout):
        living, found = sessions(layout)
        for session in found:
            os.unlink(f"{layout.temp_path}/{session}.session")
        return living, found

    monkeypatch.setattr(os, "listdir", list_one_that_is_gone)
    monkeypatch.setattr(Layout, "_sessions", another_cleans)
    layout = opened()
    monkeypatch.undo()
    assert [name for name in os.listdir(tmp_path / "temp") if name != "d"] == [f"{layout._session}.session"]
    layout.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_a_living_process_has_been_writing_for_days_stays(opened):
    layout = opened()
    path = f"{layout.temp.path}/{layout.temp_name()}"
    with open(path, "wb"):
        pass
    age(path, 72 * 3600)
    opened()
    assert os.path.exists(path)


def test_a_lock_file_that_another_took_the_place_of_is_not_the_one_that_is_there(tmp_path, opened):
    layout = opened()
    lock = tmp_path / "content" / ".lock"
    lock.unlink()
    lock.touch()
    assert not layout.has_lock_file(is_local=True) and not layout.has_lock_file(is_local=False)
    layout.open_lock_file()
    assert layout.has_lock_file(is_local=True) and layout.has_lock_file(is_local=False)


def test_blobs_of_the_oldest_layout_are_moved_and_counted_and_nothing_else(tmp_path, opened, caplog):
    (tmp_path / "content").mkdir()
    digests = [digest_of(b"%d" % number) for number in range(3)]
    for digest in digests:
        (tmp_path / "content" / str(digest)).write_bytes(b"x")
    (tmp_path / "content" / str(digest_of(b"folder"))).mkdir()
    os.symlink("/etc/passwd", tmp_path / "content" / str(digest_of(b"link")))
    with caplog.at_level(logging.INFO):
        layout = opened()
    assert sorted(os.listdir(layout.blobs.path)) == sorted(map(str, digests))
    assert f"store CAS: moved 3 blobs of an old layout into {layout.blobs.path}" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        opened()
    assert "moved" not in caplog.text and "deleted" not in caplog.text


def test_each_key_has_its_folder_whichever_way_it_is_asked_for(opened):
    layout = opened()
    for function in DigestFunction:
        digest = digest_of(b"x", function)
        for key, folder in (
            (digest, layout.blobs), (ActionKey(*digest), layout.actions), (ForeignKey(*digest), layout.blobs),
            ("a name", layout.texts), ("", layout.texts),
        ):  # fmt: skip
            found, name, index_key = layout.locate(key)
            assert found is folder
            assert layout.place_of(index_key, 1) == (folder, name)
    assert layout.locate(Digest("ab" * 32, 5))[1] == f"{'ab' * 32}-5"


@pytest.mark.parametrize("what", ["d", "a", "s", "content.exec", "temp/d", ".lock", "all"])
def test_what_was_deleted_is_made_anew_under_the_same_descriptors(tmp_path, opened, what):
    layout = opened()
    fds = [folder.fd for folder in (*layout.indexed_folders, layout.temp, layout.corrupt)] + [layout.lock_fd]
    before = len(os.listdir("/proc/self/fd"))
    assert layout.is_in_place() and layout.has_lock_file(is_local=True) and layout.has_lock_file(is_local=False)
    content = tmp_path / "content"
    if what == "all":
        shutil.rmtree(content)
        shutil.rmtree(tmp_path / "temp")
    elif what == ".lock":
        (content / ".lock").unlink()
        assert not layout.has_lock_file(is_local=True) and not layout.has_lock_file(is_local=False)
    elif what == "temp/d":
        shutil.rmtree(tmp_path / "temp" / "d")
    else:
        shutil.rmtree(tmp_path / what if what == "content.exec" else content / what)
        assert not layout.is_in_place()
    layout.reopen()
    assert layout.is_in_place() and layout.has_lock_file(is_local=True) and layout.has_lock_file(is_local=False)
    after = [folder.fd for folder in (*layout.indexed_folders, layout.temp, layout.corrupt)] + [layout.lock_fd]
    assert after == fds
    assert len(os.listdir("/proc/self/fd")) == before
    with open(f"{layout.temp.path}/{layout.temp_name()}", "wb"):
        pass
    assert os.path.exists(f"{layout.temp_path}/{layout._session}.session")


def test_a_folder_that_another_took_the_place_of_is_not_in_place(tmp_path, opened):
    layout = opened()
    os.rename(tmp_path / "content" / "d", tmp_path / "content" / "elsewhere")
    assert not layout.is_in_place()
    (tmp_path / "content" / "d").mkdir()
    assert not layout.is_in_place()
    os.rmdir(tmp_path / "content" / "d")
    os.rename(tmp_path / "content" / "elsewhere", tmp_path / "content" / "d")
    assert layout.is_in_place()


def test_where_nothing_can_be_made_beside_the_content_its_siblings_lie_in_it(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "access", lambda *args: asked.append(args))
    layout = make(tmp_path)
    layout.open()
    try:
        assert asked == [(str(tmp_path), os.W_OK | os.X_OK)]
        assert layout.executables.path == f"{tmp_path}/content/.exec/d"
        assert layout.corrupt.path == f"{tmp_path}/content/.corrupt"
    finally:
        layout.close()


def test_a_link_to_the_content_has_its_siblings_beside_what_it_leads_to(tmp_path):
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "link")
    layout = make(tmp_path, content_path=str(tmp_path / "link"))
    layout.open()
    try:
        assert layout.executables.path == f"{tmp_path}/real.exec/d"
        assert layout.corrupt.path == f"{tmp_path}/real.corrupt"
    finally:
        layout.close()


def test_a_session_that_was_taken_for_a_dead_ones_before_it_was_locked_is_begun_anew(tmp_path, opened, monkeypatch):
    """Or whoever starts next would delete what this process is writing."""
    real, deleted = fcntl.flock, []

    def flock(fd, operation):
        path = os.readlink(f"/proc/self/fd/{fd}")
        if path.endswith(".session") and not deleted:
            deleted.append(path)
            os.unlink(path)
        real(fd, operation)

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(fcntl, "flock", flock)
    layout = opened()
    [session] = (tmp_path / "temp").glob("*.session")
    assert deleted and str(session) not in deleted
    assert layout.temp_name().startswith(f"00/{session.name.removesuffix('.session')}-")
    assert len(os.listdir("/proc/self/fd")) == before + 8


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_only_where_temp_lies_on_another_disk_another_place_is_taken_for_it(tmp_path, monkeypatch, code):
    def refuse(*args, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "rename", refuse)
    layout = make(tmp_path)
    with pytest.raises(ConfigError):
        layout.open()
    assert os.listdir(tmp_path / "temp") == [] and not (tmp_path / "content" / ".temp").exists()

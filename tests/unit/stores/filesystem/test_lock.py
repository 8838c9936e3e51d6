"""The lock of a folder: who waits, and what a waiter is told."""

import errno
import fcntl
import io
import logging
import os

import pytest
import trio

from nl.plugin import UnavailableError
from nl.stores.filesystem import lock as lock_module
from nl.stores.filesystem.clock import Clock
from nl.stores.filesystem.index import Index
from nl.stores.filesystem.layout import Layout
from nl.stores.filesystem.lock import Lock
from nl.stores.filesystem.mirror import Mirror
from nl.stores.filesystem.uses import UseTable


@pytest.fixture
def layout(tmp_path):
    layout = Layout(content_path=str(tmp_path / "content"), temp_path=str(tmp_path / "temp"), name="CAS")
    layout.open()
    yield layout
    layout.close()


@pytest.fixture
def lock(layout):
    return Lock(Mirror(layout, Index(1, UseTable()), Clock()))


@pytest.fixture
def other(layout):
    """The lock's file, as another process has it open."""
    fd = os.open(layout.lock_path, os.O_RDWR)
    yield fd
    os.close(fd)


def test_one_at_a_time_has_the_lock(lock, other):
    assert lock.try_lock()
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.unlock()
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not lock.try_lock()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EIO])
async def test_a_file_system_that_cannot_lock_is_not_one_to_wait_for(lock, monkeypatch, code):
    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        await lock.acquire()
    assert caught.value.errno == code and lock.waits == 0


def test_a_lock_file_that_a_cleaner_has_deleted_is_made_anew(lock, layout, other):
    os.unlink(layout.lock_path)
    assert lock.try_lock()
    assert os.stat(layout.lock_path).st_ino == os.fstat(layout.lock_fd).st_ino != os.fstat(other).st_ino
    fd = os.open(layout.lock_path, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_a_lock_file_that_was_moved_away_is_no_lock_where_other_machines_may_have_done_so(lock, layout, tmp_path):
    """There, the count of its links is only known by its path."""
    os.rename(layout.lock_path, tmp_path / "elsewhere")
    os.close(os.open(layout.lock_path, os.O_CREAT | os.O_RDWR))
    assert lock.try_lock()
    fd = os.open(layout.lock_path, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


async def test_a_lock_that_is_free_is_taken_without_waiting(lock):
    with trio.CancelScope() as scope:
        scope.cancel()
        await lock.acquire()
    assert not scope.cancelled_caught and lock.waits == 0
    lock.unlock()


async def test_a_waiter_gets_it_when_it_is_free_and_waiting_is_counted(lock, other, autojump_clock):
    fcntl.flock(other, fcntl.LOCK_EX)
    taken = []

    async def take(number):
        await lock.acquire()
        taken.append(number)
        lock.unlock()

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(take, number)
        await trio.sleep(4)
        assert taken == []
        fcntl.flock(other, fcntl.LOCK_UN)
    assert sorted(taken) == [0, 1, 2]
    assert lock.waits == 3


async def test_who_gives_up_waiting_leaves_the_turn_to_the_next(lock, other, autojump_clock):
    fcntl.flock(other, fcntl.LOCK_EX)
    with trio.move_on_after(1) as scope:
        await lock.acquire()
    assert scope.cancelled_caught
    fcntl.flock(other, fcntl.LOCK_UN)
    with trio.fail_after(10):
        await lock.acquire()
    lock.unlock()


@pytest.mark.parametrize("locks", [None, "", "1: FLOCK\n"], ids=["unreadable", "empty", "short"])
async def test_a_holder_that_cannot_be_told_is_waited_for_like_others(
    lock, other, autojump_clock, monkeypatch, tmp_path, locks
):
    """As in a container, or without /proc."""

    def open_other(path, **options):
        if locks is None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return io.StringIO(locks)

    monkeypatch.setattr(lock_module, "open", open_other, raising=False)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UnavailableError, match="for 60 s by a process that cannot be seen from here"):
        await lock.acquire()


async def test_a_stopped_holder_is_named_after_seconds_and_uploads_fail_after_a_minute(
    lock, layout, other, autojump_clock, caplog
):
    fcntl.flock(other, fcntl.LOCK_EX)
    began = trio.current_time()

    async def look_at_the_log():
        await trio.sleep(lock_module._WARNING_S - 0.1)
        assert not caplog.records
        await trio.sleep(0.2)
        assert len(caplog.records) == 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_at_the_log)
        with pytest.raises(UnavailableError) as caught:
            await lock.acquire()
    assert 60 <= trio.current_time() - began < 60.1
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    for text in (record.getMessage(), caught.value.message):
        assert f"process {os.getpid()}" in text and layout.lock_path in text and "CAS" in text
    assert "for 60 s" in caught.value.message


async def test_who_waits_reads_meanwhile_what_the_kernel_has_to_tell(lock, layout, other, autojump_clock):
    """Or its queue would run over, and the folder be listed anew."""
    mirror = lock._mirror
    mirror.start()
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lock.acquire)
            await trio.sleep(0.1)
            with open(f"{layout.blobs.path}/{'a' * 64}-1", "wb") as file:
                file.write(b"x")
            await trio.sleep(0.1)
            assert len(mirror.index) == 1
            fcntl.flock(other, fcntl.LOCK_UN)
        lock.unlock()
    finally:
        mirror.stop()

"""Certificates that are renewed: when files are looked at, what is loaded, and what stays when it cannot be."""

import logging
import os
import threading

import pytest
import trio
import trio.testing

from nl.errors import ConfigError
from nl.rpc.live_tls import LiveContext


class Files:
    """Counts how often it is asked for a context; raises what it is told to."""

    def __init__(self, path):
        self.path = path
        self.loaded = 0
        self.error = None

    def load(self):
        if self.error is not None:
            raise self.error
        self.loaded += 1
        return self.loaded


@pytest.fixture
def files(tmp_path):
    path = tmp_path / "cert.pem"
    path.write_text("one")
    return Files(path)


def live(files, *others):
    return LiveContext(files.load, [str(files.path), *others], interval_s=60)


def test_it_is_loaded_at_once_and_says_what_is_wrong(files):
    assert live(files).context == 1
    files.error = ConfigError("cert_file", "no certificate")
    with pytest.raises(ConfigError, match="no certificate"):
        live(files)


def written(path, text, stamp):
    path.write_text(text)
    os.utime(path, ns=(stamp, stamp))


@pytest.mark.parametrize("what", ["size", "time", "replaced", "gone", "came"])
def test_files_that_have_changed_are_loaded_once(files, what, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    other = tmp_path / "other.pem"
    written(files.path, "one", 10**18)
    context = live(files, str(other))
    context._reload()
    assert context.context == 1
    if what == "size":
        written(files.path, "longer", 10**18)
    elif what == "time":
        written(files.path, "two", 10**18 + 1)
    elif what == "replaced":
        new = tmp_path / "new"
        written(new, "new", 10**18)
        new.rename(files.path)
    elif what == "gone":
        files.path.unlink()
    else:
        other.write_text("x")
    for _ in range(2):
        context._reload()
        assert context.context == 2
    text = f"TLS files have changed, new connections get them: {files.path}, {other}"
    assert [record.getMessage() for record in caplog.records] == [text]


def test_files_that_cannot_be_used_leave_what_there_was_and_are_told_once(files, caplog):
    context = live(files)
    files.path.write_text("half a cert")
    files.error = ConfigError("cert_file", "it is torn")
    for _ in range(2):
        context._reload()
    assert context.context == 1
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "cannot be used, the earlier ones stay" in record.getMessage()
    assert "it is torn" in record.getMessage()
    files.error = None
    files.path.write_text("a whole one")
    context._reload()
    assert context.context == 2


async def test_the_files_are_looked_at_as_often_as_was_said(files, autojump_clock):
    context, looks, enough = live(files), [], trio.Event()
    token = trio.lowlevel.current_trio_token()

    def note():
        looks.append(trio.current_time() - start)
        if len(looks) == 3:
            enough.set()

    context._reload = lambda: trio.from_thread.run_sync(note, trio_token=token)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(context.run)
        await enough.wait()
        nursery.cancel_scope.cancel()
    assert looks == [60, 120, 180]


async def test_a_look_that_takes_for_ever_keeps_nobody_from_leaving(files, mock_clock):
    context = live(files)
    begun, release, done = threading.Event(), threading.Event(), threading.Event()

    def reload():
        begun.set()
        release.wait(20)
        done.set()

    context._reload = reload
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.run)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(60)
            while not begun.is_set():
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert not done.is_set()
    finally:
        release.set()

"""A file that is read again when it changes: the first change, the second, and what is in the way of one."""

import logging
import os

import pytest
import trio

from nl.auth import watched_file
from nl.auth.watched_file import RETRY_S, WatchedFile
from nl.errors import ConfigError
from tests.support.changing import change


class Reader:
    """Takes note of what is read and who is told; refuses what begins with `bad`."""

    def __init__(self, path):
        self.read, self.told = [], 0
        self.file = WatchedFile(str(path), self.load)
        self.file.on_change = self.changed

    def load(self, path):
        try:
            with open(path) as file:
                text = file.read()
        except FileNotFoundError:
            raise ConfigError("", "there is no such file", source="f") from None
        self.read.append(text)
        if text.startswith("bad"):
            raise ConfigError("", f"it says {text}", source="f")

    def changed(self):
        self.told += 1

    async def looks(self, count):
        for _ in range(count):
            await self.file.look()


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "file"
    found.write_text("first")
    return found


@pytest.fixture
def reader(path):
    made = Reader(path)
    made.file.load()
    return made


async def test_a_file_that_does_not_change_is_read_once(reader):
    await reader.looks(5)
    assert (reader.read, reader.told) == (["first"], 0)


async def test_each_change_is_taken_up_when_two_looks_have_seen_the_same(reader, path, caplog):
    caplog.set_level(logging.INFO, "nl.auth")
    for number, text in enumerate(["second", "third", "fourth", "fifth"], start=1):
        change(path, text)
        await reader.looks(1)
        assert (len(reader.read), reader.told) == (number, number - 1)
        await reader.looks(1)
        assert (reader.read[-1], reader.told) == (text, number)
        await reader.looks(3)
        assert (len(reader.read), reader.told) == (number + 1, number)
    assert caplog.messages == [f"read {path} again"] * 4


async def test_a_file_that_is_changed_between_all_looks_is_not_at_rest(reader, path):
    for number in range(5):
        change(path, "x" * number)
        await reader.looks(1)
    assert reader.read == ["first"]
    await reader.looks(1)
    assert reader.read == ["first", "xxxx"]


@pytest.mark.parametrize("how", ["replaced", "another mode"])
async def test_a_change_is_seen_that_leaves_size_and_time(reader, path, how):
    found = path.stat()
    if how == "replaced":
        other = path.with_name("other")
        other.write_text("FIRST")
        os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
        other.replace(path)
    else:
        while path.stat().st_ctime_ns == found.st_ctime_ns:  # which a kernel counts in steps
            path.chmod(0o600)
            path.chmod(0o640)
    await reader.looks(2)
    assert len(reader.read) == 2


async def test_a_file_that_went_away_and_came_back_is_read(reader, path, caplog):
    path.unlink()
    await reader.looks(5)
    assert caplog.messages == ["f: there is no such file; what was read before stays in force"]
    path.write_text("back")
    await reader.looks(2)
    assert (reader.read, reader.told) == (["first", "back"], 1)


async def test_what_is_wrong_is_said_once_for_each_change_and_nobody_is_told_of_one(reader, path, caplog):
    for number in (1, 2):
        change(path, "bad" + "!" * number)
        await reader.looks(6)
    change(path, "bad!!")  # again what was said last: yet it is another change
    await reader.looks(2)
    expected = [f"f: it says {text}; what was read before stays in force" for text in ("bad!", "bad!!", "bad!!")]
    assert (caplog.messages, reader.told) == (expected, 0)


@pytest.mark.parametrize(("later_s", "times"), [(RETRY_S - 0.1, 1), (RETRY_S, 2)])
async def test_what_was_wrong_is_tried_again_after_a_while(autojump_clock, reader, path, caplog, later_s, times):
    change(path, "bad")
    await reader.looks(2)
    await trio.sleep(later_s)
    await reader.looks(3)
    assert reader.read[1:] == ["bad"] * times
    assert len(caplog.messages) == 1, "said once"


async def test_another_problem_of_the_same_file_is_said_and_its_end_too(autojump_clock, reader, path, caplog):
    caplog.set_level(logging.INFO, "nl.auth")
    problems = iter(["no memory", "no memory", "no descriptors", None])

    def load(_):
        if (problem := next(problems)) is not None:
            raise ConfigError("", problem, source="f")

    reader.file._load = load
    change(path, "x")
    await reader.looks(2)
    for _ in range(3):
        await trio.sleep(RETRY_S)
        await reader.looks(1)
    stays = "what was read before stays in force"
    assert caplog.messages == [f"f: no memory; {stays}", f"f: no descriptors; {stays}", f"read {path} again"]
    assert reader.told == 1
    await trio.sleep(10 * RETRY_S)
    await reader.looks(3)  # nothing is tried again any more: `problems` has ended


async def test_a_watch_looks_every_half_second(autojump_clock, path):
    reader = Reader(path)
    reader.file.load()
    times = []

    async def look():
        times.append(trio.current_time())

    reader.file.look = look
    began = trio.current_time()
    with trio.move_on_after(2.2):
        await reader.file.watch()
    assert [round(each - began, 3) for each in times] == [0.5, 1.0, 1.5, 2.0]
    assert (watched_file.LOOK_S, RETRY_S) == (0.5, 10.0)


def test_what_is_wrong_at_the_start_is_raised(path):
    path.write_text("bad")
    with pytest.raises(ConfigError, match="it says bad"):
        Reader(path).file.load()

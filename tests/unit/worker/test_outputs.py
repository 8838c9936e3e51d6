"""Outputs as actions leave them: what can be had is there, what cannot is told, and nothing is copied for nothing."""

from __future__ import annotations

import os
import socket

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.model.digest import EMPTY, DigestFunction
from nl.storage.capabilities import LocalFiles
from nl.worker.command import CommandPlan, Output
from nl.worker.outputs import scan, upload
from tests.support.privileges import as_ordinary_user
from tests.support.stores import filesystem_store

SHA256 = DigestFunction.SHA256


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "action" / "work"
    path.mkdir(parents=True)
    (path / "good").write_bytes(b"good")
    return path


def plan(*paths: str) -> CommandPlan:
    outputs = [Output(path, path) for path in paths]
    return CommandPlan([], {}, "", outputs, frozenset(), trees=True, directories=False)


async def scanned(root, *paths, streams=()):
    with as_ordinary_user():
        return await scan(str(root), plan(*paths), streams=streams, function=SHA256)


def fifo(path):
    os.mkfifo(path / "f")


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as sock:
        old = os.getcwd()
        os.chdir(path)  # the whole path is longer than a socket's may be
        try:
            sock.bind("s")
        finally:
            os.chdir(old)


def latin1(path):
    (path / os.fsdecode(b"\xe9")).touch()


def too_deep(path):
    here = os.open(path, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


@pytest.mark.parametrize("spoil", [fifo, unix_socket, latin1, too_deep])
async def test_a_directory_that_no_message_can_tell_is_a_problem_and_the_others_are_there(root, spoil):
    (root / "bad").mkdir()
    (root / "bad" / "file").write_bytes(b"junk")
    spoil(root / "bad")
    outputs = (await scanned(root, "bad", "good")).outputs
    assert [file.path for file in outputs.files] == ["good"]
    assert not outputs.directories
    [problem] = outputs.problems
    assert problem.startswith("the output 'bad': ")
    assert str(root) not in problem.replace("File name too long", "")
    assert list(outputs.local) == [digest_of(b"good")]  # of what is not in the result, nothing is stored
    assert not outputs.made


@pytest.mark.parametrize("closed", ["d/e", "d", ".", ".."])
async def test_directories_that_the_action_has_closed_are_opened_again(root, closed):
    (root / "d" / "e").mkdir(parents=True)
    (root / "d" / "e" / "o").write_bytes(b"x")
    (root / closed).chmod(0)
    outputs = (await scanned(root, "d/e/o", "good")).outputs
    assert [file.path for file in outputs.files] == ["d/e/o", "good"]
    assert not outputs.problems


async def test_a_closed_directory_behind_a_link_is_not_opened(root, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir(mode=0)
    (root / "link").symlink_to(outside)
    outputs = (await scanned(root, "link/x", "good")).outputs
    assert [file.path for file in outputs.files] == ["good"]
    assert len(outputs.problems) == 1
    assert outside.stat().st_mode & 0o777 == 0


async def test_printed_text_that_is_gone_is_a_problem_and_the_empty_digest(root):
    streams = [("stdout", f"{root}/nothing", 1), ("stderr", f"{root}/good", 4)]
    collected = await scanned(root, "good", streams=streams)
    assert collected.streams == (EMPTY[SHA256], digest_of(b"good"))
    assert [problem.partition(":")[0] for problem in collected.outputs.problems] == [
        "what the command printed on stdout"
    ]


async def test_a_shared_file_that_the_store_has_is_not_copied(root, tmp_path):
    store = filesystem_store(tmp_path / "cas")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (root / "new").write_bytes(b"new")
    for name in ("good", "new"):
        os.link(root / name, tmp_path / name)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        await store.put(digest_of(b"good"), b"good")
        outputs = (await scanned(root, "good", "new")).outputs
        refused = await upload(outputs, scratch=str(scratch), store=store, files=store.capability(LocalFiles))
        assert refused == {}
        assert bytes(await store.get(digest_of(b"new"))) == b"new"
        assert not os.listdir(scratch)  # the one copy that was made is in the store now
        assert store.statistics()["adopted_files"] == 1
        nursery.cancel_scope.cancel()

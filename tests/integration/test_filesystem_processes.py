"""Several processes on one folder, working, stopped, killed."""

import os
import random
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nl.testing import started

from .filesystem_process import digest_of, make, make_store, used

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def process(mode, root, *, max_bytes=0, seed=0, rounds=0):
    numbers = [str(number) for number in (max_bytes, seed, rounds)]
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.filesystem_process", mode, str(root), *numbers],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )
    try:
        yield running
    finally:
        if running.poll() is None:
            running.kill()
        running.wait()
        running.stdin.close()
        running.stdout.close()


def unfinished(temp):
    return [name for _, _, files in os.walk(temp / "d") for name in files]


def ask(running, line):
    running.stdin.write(line.encode() + b"\n")
    running.stdin.flush()
    return running.stdout.readline().decode().strip()


@pytest.mark.parametrize(("count", "max_bytes"), [(2, 0), (4, 2_000_000)], ids=["two, unbounded", "four, evicting"])
def test_processes_that_write_evict_read_and_link_at_once_never_see_a_wrong_byte(tmp_path, count, max_bytes):
    """Each checks in every step: bytes right, `has` exact, sum under max_bytes, links right or missing."""
    with ExitStack() as stack:
        all_of_them = [
            stack.enter_context(process("work", tmp_path, max_bytes=max_bytes, seed=seed, rounds=400))
            for seed in range(count)
        ]
        for each in all_of_them:
            each.stdin.close()
            assert each.stdout.read().startswith(b"right")
            assert each.wait() == 0
    assert unfinished(tmp_path / "temp") == []
    if max_bytes:
        assert used(tmp_path) <= max_bytes


async def test_fifty_kills_lose_nothing_acknowledged_and_show_nothing_half_written(tmp_path):
    chance = random.Random(4)
    acknowledged = set()
    for round_ in range(10):
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.integration.filesystem_process", "write", str(tmp_path), "0",
                 str(round_ * 5 + each), "0"],
                cwd=ROOT, stdout=subprocess.PIPE,
            )
            for each in range(5)
        ]  # fmt: skip
        for each in running:
            for _ in range(chance.randrange(1, 20)):
                each.stdout.readline()
            each.send_signal(signal.SIGKILL)
        for each in running:
            # What comes after the lines read here was acknowledged as well; only whole lines count.
            rest = each.stdout.read()
            each.wait()
            each.stdout.close()
            acknowledged.update(rest.decode().split("\n")[:-1])
    assert len(acknowledged) > 50
    names = {name: (tmp_path / "content" / "d" / name).read_bytes() for name in os.listdir(tmp_path / "content" / "d")}
    assert all(str(digest_of(data)) == name for name, data in names.items())
    assert acknowledged <= names.keys()
    for temp in ("temp0", "temp1"):
        async with started(store := make_store(tmp_path, 0, temp=temp)):
            await store._mirror.scanned.wait()
            assert unfinished(tmp_path / temp) == []
            assert store.statistics()["blobs"] == len(names)


def test_what_a_process_wrote_another_has_at_its_next_question(tmp_path):
    with process("answer", tmp_path) as one, process("answer", tmp_path) as two:
        assert one.stdout.readline() == two.stdout.readline() == b"ready\n"
        for number in range(1, 40):
            size = str(len(make(number)))
            writer, reader = (one, two) if number % 2 else (two, one)
            assert ask(reader, f"has {number}") == "None"
            assert ask(writer, f"put {number}") == "ok"
            assert ask(reader, f"has {number}") == size
            assert ask(reader, f"get {number}") == "right"
            (tmp_path / "content" / "d" / str(digest_of(make(number)))).unlink()
            assert ask(reader, f"has {number}") == "None"


def test_what_one_process_was_told_is_there_is_the_last_that_another_evicts(tmp_path):
    """And what it was told before the other one came."""
    most = 12 * 4096
    with process("answer", tmp_path, max_bytes=most) as one:
        assert one.stdout.readline() == b"ready\n"
        for number in range(1, 10):
            assert ask(one, f"put {number}") == "ok"
        assert ask(one, "has 1") == str(len(make(1)))
        with process("answer", tmp_path, max_bytes=most) as two:
            assert two.stdout.readline() == b"ready\n"
            assert ask(one, "has 2") == str(len(make(2)))
            for number in range(11, 20):
                assert ask(two, f"put {number}") == "ok"
            assert ask(one, "get 1") == ask(one, "get 2") == "right"
            assert [ask(one, f"has {number}") for number in (3, 4, 5)] == ["None"] * 3
            assert used(tmp_path) <= most


def test_a_stopped_process_does_not_stall_the_others(tmp_path):
    with process("answer", tmp_path, max_bytes=10_000_000) as one, process("answer", tmp_path) as two:
        assert one.stdout.readline() == two.stdout.readline() == b"ready\n"
        assert ask(one, "put 1") == "ok"
        two.send_signal(signal.SIGSTOP)
        try:
            for number in range(2, 30):
                assert ask(one, f"put {number}") == "ok"
                assert ask(one, f"get {number}") == "right"
        finally:
            two.send_signal(signal.SIGCONT)
        for number in range(1, 30):
            assert ask(two, f"get {number}") == "right"

"""Memory goes back to the kernel once a server has grown and no longer grows."""

import subprocess
import sys

import pytest

from nl.rpc import arena
from nl.rpc.arena import Inbox
from nl.server.memory import MemoryReturner, resident_bytes

MIB = 1 << 20


@pytest.fixture
def returner(monkeypatch):
    """One that reads its sizes from a list and writes down when it trims."""
    sizes, trims = [], []
    monkeypatch.setattr("nl.server.memory.resident_bytes", lambda: sizes.pop(0) * MIB)
    found = MemoryReturner()
    found._trim = trims.append
    found._kept = found._before = 50 * MIB
    found.sizes, found.trims = sizes, trims
    return found


def test_it_waits_until_the_storm_is_over(returner):
    returner.sizes += [80, 120, 121, 60]
    assert [returner.look(), returner.look(), returner.look()] == [False, False, True]
    assert returner.trims == [0]


def test_little_growth_is_left_alone_and_what_stayed_is_the_new_measure(returner):
    returner.sizes += [57, 90, 91, 70, 72, 71]
    assert [returner.look(), returner.look(), returner.look()] == [False, False, True]
    assert [returner.look(), returner.look()] == [False, False]


def test_what_went_by_itself_is_the_new_measure_too(returner):
    returner.sizes += [30, 39, 39, 30]
    assert [returner.look(), returner.look(), returner.look()] == [False, False, True]


@pytest.mark.parametrize(("size", "is_worth_it"), [(57, False), (58, True)])
def test_eight_megabytes_are_worth_it(returner, size, is_worth_it):
    returner.sizes += [size, 50]
    assert returner.look() is is_worth_it


@pytest.mark.parametrize(("size", "is_over"), [(68, True), (69, False)])
def test_a_storm_is_over_when_it_grows_by_less_than_that(returner, size, is_over):
    returner.sizes += [60 + 9, size + 9, 50]
    assert [returner.look(), returner.look()] == [False, is_over]


def test_pooled_receive_buffers_go_as_well(returner):
    inbox = Inbox()
    inbox.for_reading(0.0, ())
    inbox.rest(())
    assert arena._pool
    returner.sizes += [90, 90, 60]
    returner.look()
    assert returner.look()
    assert not arena._pool


def test_it_knows_what_the_process_has_in_memory():
    before = resident_bytes()
    block = bytearray(64 * MIB)
    block[::4096] = b"x" * len(block[::4096])
    assert 60 * MIB < resident_bytes() - before < 70 * MIB


_REQUESTS = """
import resource, trio
from nl.server.memory import MemoryReturner

def faults_of_a_request():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [b"x" * 700_000 for _ in range(4)]
    del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

async def main():
    async with trio.open_nursery() as nursery:
        await nursery.start(MemoryReturner().run)
        faults = [faults_of_a_request() for _ in range(20)]
        print(sorted(faults)[10])
        nursery.cancel_scope.cancel()

trio.run(main)
"""


@pytest.mark.skipif(MemoryReturner()._tune is None, reason="needs glibc's mallopt")
def test_what_a_large_request_has_freed_is_there_for_the_next_one():
    run = subprocess.run([sys.executable, "-c", _REQUESTS], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 100, "700 pages were taken and given back for each"

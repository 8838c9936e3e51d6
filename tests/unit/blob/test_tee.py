import os
import weakref

import pytest
import trio
import trio.testing

from nl.blob.reader import CHUNK, BytesReader
from nl.blob.tee import Tee
from nl.errors import UnavailableError
from nl.testing import BlockingReader, FailingReader, PartsReader, drain, split


@pytest.mark.parametrize("sizes", [(CHUNK, CHUNK), (100, 7000), (7000, 100), (1, CHUNK)])
async def test_both_sides_get_every_byte_whatever_they_ask_for(sizes):
    data = os.urandom(3000)
    tee = Tee(PartsReader(split(data, 333)))
    got = {}

    async def take(name, side, most):
        got[name] = await drain(side, most)
        side.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, "follower", tee.follower, sizes[0])
        nursery.start_soon(take, "leader", tee.leader, sizes[1])
    assert got == {"follower": data, "leader": data}


async def test_nothing_is_copied():
    data = os.urandom(1000)
    tee = Tee(BytesReader(data))
    got = []

    async def take(side):
        (part,) = await side.receive_parts()
        got.append(part.obj)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, tee.follower)
        nursery.start_soon(take, tee.leader)
    assert got[0] is data
    assert got[1] is data


async def test_the_slower_side_sets_the_pace():
    source = PartsReader(split(os.urandom(1000), 10))
    tee = Tee(source)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain, tee.follower)
        await trio.testing.wait_all_tasks_blocked()
        assert source.calls == 0
        await tee.leader.receive_parts(10)
        await trio.testing.wait_all_tasks_blocked()
        assert source.calls == 1
        tee.leader.close()


async def test_a_side_that_leaves_does_not_hold_the_other_up():
    data = os.urandom(1000)
    tee = Tee(PartsReader(split(data, 10)))
    got = []

    async def take_all():
        got.append(await drain(tee.follower))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_all)
        await tee.leader.receive_parts(10)
        tee.leader.close()
    assert got == [data]


async def test_a_side_that_left_before_the_start_is_not_waited_for():
    tee = Tee(BytesReader(b"abc"))
    tee.leader.close()
    tee.leader.close()
    assert await drain(tee.follower) == b"abc"


@pytest.mark.parametrize("error", [UnavailableError("the source broke"), OSError("its disk broke")])
async def test_what_the_source_raises_both_sides_raise(error):
    tee = Tee(FailingReader([b"abc"], error, size=10))
    raised = []

    async def take(side):
        try:
            await drain(side)
        except type(error) as caught:
            raised.append(caught)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, tee.follower)
            nursery.start_soon(take, tee.leader)
    assert raised == [error, error]
    assert tee.error is error


async def test_a_side_cancelled_while_it_reads_breaks_the_other_instead_of_hanging_it():
    source = BlockingReader([])
    tee = Tee(source)
    scope = trio.CancelScope()

    async def take_cancelled():
        with scope:
            await tee.leader.receive_parts()
        tee.leader.close()

    async with trio.open_nursery() as nursery:

        async def take():
            with pytest.raises(UnavailableError, match="cancelled"):
                await tee.follower.receive_parts()

        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(take_cancelled)
        await source.blocked.wait()
        scope.cancel()


async def test_a_side_cancelled_while_it_waits_leaves_the_source_whole():
    tee = Tee(PartsReader(split(b"abcdef", 2)))
    with trio.CancelScope() as scope:
        scope.cancel()
        await tee.leader.receive_parts()
    tee.leader.close()
    assert await drain(tee.follower) == b"abcdef"


async def test_a_follower_that_is_cancelled_or_late_never_touches_the_source():
    data = os.urandom(100)
    got = []

    async def follow():
        with trio.move_on_after(0.01):
            while True:
                await tee.follower.receive_parts()
                await trio.sleep(0.002)
        tee.follower.close()

    class Slowly(PartsReader):
        async def receive_parts(self, max_bytes=CHUNK):
            await trio.sleep(0.003)
            return await super().receive_parts(10)

    tee = Tee(Slowly(split(data, 10)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        got.append(await drain(tee.leader))
    assert got == [data]
    assert tee.error is None


async def test_a_follower_reads_on_when_the_leader_has_left():
    tee = Tee(PartsReader(split(b"abcdef", 2)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tee.leader.receive_parts)
        assert bytes((await tee.follower.receive_parts(2))[0]) == b"ab"
    tee.leader.close()
    assert await drain(tee.follower, taken=2) == b"cdef"


async def test_a_follower_that_gave_up_waiting_and_comes_again_has_missed_nothing():
    data = os.urandom(100)
    source = PartsReader(split(data, 10))
    tee = Tee(source)
    got = []
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(lambda: _after_all_wait(scope.cancel))
            await tee.follower.receive_parts()
        nursery.start_soon(_drained, tee.leader, got)
        await trio.testing.wait_all_tasks_blocked()
        assert source.calls == 0
        nursery.start_soon(_drained, tee.follower, got)
    assert got == [data, data]


async def _after_all_wait(act):
    await trio.testing.wait_all_tasks_blocked()
    act()


async def _drained(side, got):
    got.append(await drain(side))
    side.close()


async def test_what_is_pulled_is_no_more_than_either_side_asked_for():
    for leader, follower in ((5, 9), (9, 5)):
        tee = Tee(BytesReader(bytes(100)))
        got = {}

        async def take(name, side, most):
            got[name] = sum(map(len, await side.receive_parts(most)))  # noqa: B023

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, "follower", tee.follower, follower)
            nursery.start_soon(take, "leader", tee.leader, leader)
        assert got == {"leader": 5, "follower": 5}
        tee.follower.close()
        await take("leader", tee.leader, leader)
        assert got["leader"] == leader, "whoever has left asks for nothing"


@pytest.mark.parametrize("size", [-1, 3])
async def test_both_sides_know_what_the_source_knows_of_its_size_and_of_their_end(size):
    tee = Tee(PartsReader([b"abc"], size=size))
    assert tee.leader.size == tee.follower.size == size
    got = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_drained, tee.follower, got)
        nursery.start_soon(_drained, tee.leader, got)
    assert tee.ended and tee.error is None
    assert tee.leader.closed and tee.follower.closed


async def test_a_follower_that_left_while_bytes_were_on_their_way_keeps_none_of_them():
    source = BlockingReader([], rest=b"abc")
    tee = Tee(source)
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(tee.leader.receive_parts)
            nursery.start_soon(lambda: _when(source.blocked, scope.cancel))
            await tee.follower.receive_parts()
        tee.follower.close()
        source.go_on.set()
    assert tee.follower._parts is None
    assert await tee.leader.receive_parts() == []


async def _when(event, act):
    await event.wait()
    act()


async def test_a_leader_that_waits_for_the_follower_goes_on_when_that_leaves():
    data = os.urandom(100)
    tee = Tee(PartsReader(split(data, 10)))
    got = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_drained, tee.leader, got)
        await trio.testing.wait_all_tasks_blocked()
        assert not got
        tee.follower.close()
    assert got == [data]


async def test_a_tee_that_is_done_holds_neither_its_source_nor_what_that_has_raised():
    """The sides and the tee know each other, and the collector is rare; the source may be a coder of many MiB."""

    class Failure(Exception):
        pass

    class Broken(PartsReader):
        async def receive_parts(self, max_bytes=CHUNK):
            raise Failure

    async def failed():
        source = Broken([b"abc"])
        tee = Tee(source)
        tee.follower.close()
        try:
            await tee.leader.receive_parts()
        except Failure as error:
            return tee, weakref.ref(source), weakref.ref(error)

    tee, source, error = await failed()
    assert tee.error is error() and source() is not None
    tee.forget()
    assert tee.error is source() is error() is None


async def test_the_end_is_the_end_for_each_side_however_often_it_asks_and_whatever_the_other_does():
    source = PartsReader([b"abc"])
    tee = Tee(source)
    got = []

    async def take(side):
        got.append(await drain(side))
        for _ in range(2):
            assert not await side.receive_parts()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:  # neither says that it wants no more
            nursery.start_soon(take, tee.follower)
            nursery.start_soon(take, tee.leader)
    assert got == [b"abc"] * 2 and tee.ended
    assert source.calls == 2, "who has ended is not asked again"


async def test_a_follower_that_leaves_lets_go_of_what_it_had_not_taken():
    source = BlockingReader([], rest=b"abc")
    tee = Tee(source)
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(tee.leader.receive_parts)
            nursery.start_soon(lambda: _when(source.blocked, scope.cancel))
            await tee.follower.receive_parts()
        source.go_on.set()
    assert tee.follower._parts is not None, "it may come again"
    tee.follower.close()
    assert tee.follower._parts is None

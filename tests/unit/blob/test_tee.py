import os

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
        nursery.start_soon(take, "left", tee.left, sizes[0])
        nursery.start_soon(take, "right", tee.right, sizes[1])
    assert got == {"left": data, "right": data}


async def test_nothing_is_copied():
    data = os.urandom(1000)
    tee = Tee(BytesReader(data))
    got = []

    async def take(side):
        (part,) = await side.receive_parts()
        got.append(part.obj)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, tee.left)
        nursery.start_soon(take, tee.right)
    assert got[0] is data
    assert got[1] is data


async def test_the_slower_side_sets_the_pace():
    source = PartsReader(split(os.urandom(1000), 10))
    tee = Tee(source)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain, tee.left)
        await trio.testing.wait_all_tasks_blocked()
        assert source.calls == 0
        await tee.right.receive_parts(10)
        await trio.testing.wait_all_tasks_blocked()
        assert source.calls == 1
        tee.right.close()


async def test_a_side_that_leaves_does_not_hold_the_other_up():
    data = os.urandom(1000)
    tee = Tee(PartsReader(split(data, 10)))
    got = []

    async def take_all():
        got.append(await drain(tee.left))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_all)
        await tee.right.receive_parts(10)
        tee.right.close()
    assert got == [data]


async def test_a_side_that_left_before_the_start_is_not_waited_for():
    tee = Tee(BytesReader(b"abc"))
    tee.right.close()
    tee.right.close()
    assert await drain(tee.left) == b"abc"


async def test_what_the_source_raises_both_sides_raise():
    error = UnavailableError("the source broke")
    tee = Tee(FailingReader([b"abc"], error, size=10))
    raised = []

    async def take(side):
        try:
            await drain(side)
        except UnavailableError as caught:
            raised.append(caught)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, tee.left)
        nursery.start_soon(take, tee.right)
    assert raised == [error, error]
    assert tee.error is error


async def test_a_side_cancelled_while_it_reads_breaks_the_other_instead_of_hanging_it():
    source = BlockingReader([])
    tee = Tee(source)
    scope = trio.CancelScope()

    async def take_cancelled():
        with scope:
            await tee.right.receive_parts()
        tee.right.close()

    async with trio.open_nursery() as nursery:

        async def take():
            with pytest.raises(UnavailableError, match="cancelled"):
                await tee.left.receive_parts()

        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(take_cancelled)
        await source.blocked.wait()
        scope.cancel()


async def test_a_side_cancelled_while_it_waits_leaves_the_source_whole():
    tee = Tee(PartsReader(split(b"abcdef", 2)))
    with trio.CancelScope() as scope:
        scope.cancel()
        await tee.right.receive_parts()
    tee.right.close()
    assert await drain(tee.left) == b"abcdef"

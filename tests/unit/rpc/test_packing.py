"""gzip of messages: the same bytes on either way, and the loop goes on meanwhile."""

import os

import pytest
import trio

from nl.errors import ExhaustedError, InvalidRequestError
from nl.rpc import messages
from nl.rpc.packing import INLINE_UP_TO, pack, unpack


@pytest.mark.parametrize("size", [0, 100, INLINE_UP_TO, INLINE_UP_TO + 1, 3_000_000])
async def test_what_is_packed_is_unpacked(size):
    data = os.urandom(size // 2) + bytes(size - size // 2)
    packed = await pack([data[:10], memoryview(data)[10:]], length=size)
    assert packed == messages.compress([data])
    assert await unpack(packed, max_bytes=size) == data


async def test_a_bomb_and_nonsense_are_refused_also_in_a_thread():
    packed = await pack([bytes(50_000_000)], length=50_000_000)
    with pytest.raises(ExhaustedError):
        await unpack(packed, max_bytes=1_000_000)
    with pytest.raises(InvalidRequestError):
        await unpack(os.urandom(20_000), max_bytes=1_000_000)


@pytest.mark.parametrize("size", [4 * INLINE_UP_TO, 4 * INLINE_UP_TO + 1, 900_000])
async def test_what_unpacks_to_much_more_is_unpacked_in_a_thread(monkeypatch, size):
    """Bombs come by the dozen in one segment, so what a message says of itself does not decide who waits for it."""
    packed = await pack([bytes(size)], length=size)
    assert len(packed) < INLINE_UP_TO // 4
    threads = []
    run_sync = trio.to_thread.run_sync

    async def counted(*args, **kwargs):
        threads.append(args)
        return await run_sync(*args, **kwargs)

    monkeypatch.setattr(trio.to_thread, "run_sync", counted)
    assert await unpack(packed, max_bytes=size) == bytes(size)
    assert len(threads) == (size > 4 * INLINE_UP_TO)
    with pytest.raises(ExhaustedError):
        await unpack(packed, max_bytes=size - 1)


async def test_the_loop_goes_on_while_a_large_message_is_packed(nursery):
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await trio.sleep(0)
            ticks += 1

    nursery.start_soon(tick)
    data = os.urandom(4_000_000)
    before = ticks
    packed = await pack([data], length=len(data))
    between = ticks
    await unpack(packed, max_bytes=len(data))
    assert between > before
    assert ticks > between
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("over", [0, 1])
async def test_up_to_a_size_no_thread_is_needed(monkeypatch, over):
    threads = []
    run_sync = trio.to_thread.run_sync

    async def counted(*args, **kwargs):
        threads.append(kwargs["limiter"].total_tokens)
        return await run_sync(*args, **kwargs)

    monkeypatch.setattr(trio.to_thread, "run_sync", counted)
    size = INLINE_UP_TO + over
    await pack([os.urandom(size)], length=size)
    assert threads == [2] * over
    threads.clear()
    with pytest.raises(InvalidRequestError):
        await unpack(os.urandom(size), max_bytes=1 << 20)
    assert threads == [2] * over
    threads.clear()
    bomb = messages.compress([bytes(4 * INLINE_UP_TO + 1)])
    with pytest.raises(ExhaustedError, match=str(4 * INLINE_UP_TO)):
        await unpack(bomb, max_bytes=4 * INLINE_UP_TO)
    assert threads == [], "what may not be larger needs no second look"

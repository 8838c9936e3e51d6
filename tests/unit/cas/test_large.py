"""What takes long is done beside the loop, with the same meaning."""

import threading

import pytest
import trio

from nl.cas.large import IN_PLACE_BYTES, MANY, READ_IN_PLACE_BYTES, off_loop_if, off_loop_if_large
from nl.pb import reapi
from nl.pb.codec import DecodeError, encode
from nl.pb.find_missing import FindMissingRequest
from nl.services.bounded import decode_find_missing


async def test_others_get_their_turns_while_a_large_request_is_decoded():
    digests = [reapi.Digest(hash=f"{at:064x}", size_bytes=at * 7_000_000) for at in range(215_000)]
    data = encode(reapi.FindMissingBlobsRequest(blob_digests=digests))
    turns = 0

    async def others():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        request = await off_loop_if_large(decode_find_missing, data)
        nursery.cancel_scope.cancel()
    assert request.is_plain
    assert list(request.pairs()) == [(digest.hash, digest.size_bytes) for digest in digests]
    assert turns > 10


async def test_what_is_small_is_done_in_place():
    sizes = []
    with trio.CancelScope() as scope:  # which a thread would notice
        scope.cancel()
        sizes.append(await off_loop_if_large(len, b"x" * IN_PLACE_BYTES))
        sizes.append(await off_loop_if_large(len, b"x" * (IN_PLACE_BYTES + 1)))
    assert scope.cancelled_caught and sizes == [IN_PLACE_BYTES]


@pytest.mark.parametrize("size", [10, IN_PLACE_BYTES + 1])
async def test_errors_are_the_same_either_way(size):
    with pytest.raises(DecodeError):
        await off_loop_if_large(FindMissingRequest.decode, b"\xff" * size)


async def test_what_takes_long_by_another_measure_is_done_in_a_thread_and_else_in_place():
    def place(*args):
        return trio.lowlevel.in_trio_run(), args

    assert await off_loop_if(False, place, 1, 2) == (True, (1, 2))
    assert await off_loop_if(True, place, 1, 2) == (False, (1, 2))
    assert (IN_PLACE_BYTES, READ_IN_PLACE_BYTES, MANY) == (64 * 1024, 1024 * 1024, 1000), "ten milliseconds each"


@pytest.mark.parametrize("way", ["large", "long"])
async def test_nobody_who_gives_up_waits_for_the_thread(way):
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work(data):
        begun.set()
        go_on.wait(60)
        ended.set()

    async with trio.open_nursery() as nursery:
        data = bytes(IN_PLACE_BYTES + 1)
        if way == "large":
            nursery.start_soon(off_loop_if_large, work, data)
        else:
            nursery.start_soon(off_loop_if, True, work, data)
        await trio.to_thread.run_sync(begun.wait, 60)
        nursery.cancel_scope.cancel()
    assert begun.is_set() and not ended.is_set()
    go_on.set()

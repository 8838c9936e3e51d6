"""Which calls get a stream of a connection, and when those that wait for one find out what has changed."""

import trio
from grpclib.const import Cardinality
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from nl.rpc import frames as fr
from nl.rpc.channel import Channel
from tests.wire.raw_server import RawConnection

ONE_STREAM = {fr.Setting.MAX_CONCURRENT_STREAMS: 1}


def channel_to(nursery, *scripts):
    """A channel whose first connection is to the first script, and so on."""
    left = list(scripts)

    async def run(script, connection):
        try:
            await script(connection)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await trio.aclose_forcefully(connection.stream)

    async def connect():
        ours, theirs = memory_stream_pair()
        nursery.start_soon(run, left.pop(0), RawConnection(theirs, len(scripts) - len(left)))
        return ours

    return Channel(connect)


async def call(channel):
    async with channel.request("/t.S/M", Cardinality.UNARY_UNARY, bytes, bytes) as stream:
        await stream.send_message(b"", end=True)
        return await stream.recv_message()


async def serve(connection):
    await connection.greet()
    while (sid := await connection.request()) is not None:
        await connection.reply(sid, b"second")


async def test_a_call_that_waits_for_a_stream_gets_one_when_the_server_allows_more(autojump_clock, nursery):
    async def script(connection):
        await connection.greet(ONE_STREAM)
        first = await connection.request()
        await go.wait()
        await connection.send(fr.settings({fr.Setting.MAX_CONCURRENT_STREAMS: 3}))
        for _ in range(2):
            await connection.reply(await connection.request(), b"more")
        await connection.reply(first, b"first")

    go, replies = trio.Event(), []

    async def one():
        replies.append(await call(channel))

    async with channel_to(nursery, script) as channel:
        with trio.fail_after(10):
            async with trio.open_nursery() as calls:
                for _ in range(3):
                    calls.start_soon(one)
                    await wait_all_tasks_blocked()
                go.set()
    assert sorted(replies) == [b"first", b"more", b"more"]


async def moves_on(nursery, script, leave):
    """What two calls get, of which the second waits for a stream of a connection that takes no new calls then."""
    replies = []

    async def one():
        replies.append(await call(channel))

    async with channel_to(nursery, script, serve) as channel:
        with trio.fail_after(10):
            async with trio.open_nursery() as calls:
                calls.start_soon(one)
                await wait_all_tasks_blocked()
                calls.start_soon(one)
                await wait_all_tasks_blocked()
                assert replies == []
                leave(channel)
    return replies


async def test_a_call_that_waits_for_a_stream_goes_elsewhere_at_a_goaway_and_the_one_under_way_ends_in_peace(
    autojump_clock, nursery
):
    async def script(connection):
        await connection.greet(ONE_STREAM)
        sid = await connection.request()
        await go.wait()
        await connection.send(fr.goaway(sid, 0))
        await trio.sleep(5)
        await connection.reply(sid, b"first")

    go = trio.Event()
    assert await moves_on(nursery, script, lambda channel: go.set()) == [b"second", b"first"]


async def test_a_call_that_waits_for_a_stream_goes_elsewhere_when_the_connection_is_retired(autojump_clock, nursery):
    async def script(connection):
        await connection.greet(ONE_STREAM)
        sid = await connection.request()
        await trio.sleep(5)
        await connection.reply(sid, b"first")

    def retire(channel):
        [connection] = channel._pool.connections
        connection.retire()

    assert await moves_on(nursery, script, retire) == [b"second", b"first"]

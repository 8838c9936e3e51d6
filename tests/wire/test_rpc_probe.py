"""A handler asks the other end of its connection for a sign of life, and gets one from the transport alone."""

import grpclib.const
import trio

from nl.pb import wkt
from nl.rpc.channel import Channel
from nl.rpc.server import Server

METHOD = "/test.Quiet/Listen"
KIND = grpclib.const.Cardinality.STREAM_STREAM


class Quiet:
    """Says when its client's end has given a sign of life after it was asked for one; the client says nothing."""

    async def listen(self, stream):
        before = trio.current_time()
        while stream.probe() <= before:
            await trio.sleep(0.005)
        await stream.send_message(wkt.Empty())

    def __mapping__(self):
        return {METHOD: grpclib.const.Handler(self.listen, KIND, wkt.Empty, wkt.Empty)}


async def test_a_client_that_says_nothing_gives_a_sign_of_life_all_the_same():
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(Server([Quiet()]).serve, [listener])
        port = listener.socket.getsockname()[1]
        async with Channel(f"127.0.0.1:{port}") as channel, channel.request(METHOD, KIND, wkt.Empty, wkt.Empty) as call:
            await call.send_request()
            assert await call.recv_message() == wkt.Empty()
        nursery.cancel_scope.cancel()

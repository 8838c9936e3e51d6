"""Connections that nobody waits for any more are closed, not kept beside the one that is used."""

import pytest
import trio
from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError
from trio.testing import wait_all_tasks_blocked

from nl.rpc.channel import Channel
from nl.rpc.options import ChannelOptions


async def call(channel):
    async with channel.request("/t.S/Echo", Cardinality.UNARY_UNARY, bytes, bytes) as stream:
        await stream.send_message(b"x", end=True)
        await stream.recv_message()


@pytest.mark.parametrize("how", ["cancelled", "too slow"])
async def test_a_connection_whose_server_stays_silent_is_closed_with_the_attempt(how):
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    options = ChannelOptions(connect_timeout=0.05 if how == "too slow" else 20)
    async with listener, Channel(f"127.0.0.1:{port}", options=options) as channel:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                if how == "too slow":
                    with pytest.raises(GRPCError, match="cannot connect"):
                        await call(channel)
                else:
                    nursery.start_soon(call, channel)
                stream = await listener.accept()
                await wait_all_tasks_blocked()
                scope.cancel()
        with trio.fail_after(10):  # the client's preface, and then its end
            while await stream.receive_some(4096):
                pass
        await stream.aclose()

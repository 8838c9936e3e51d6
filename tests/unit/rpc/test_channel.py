"""What a call gets from its own arguments, from the channel's options and from the context, before it is sent."""

import pytest
import trio
from grpclib.const import Cardinality
from grpclib.metadata import Deadline

from nl.rpc.call_context import calling
from nl.rpc.channel import Channel
from nl.rpc.options import ChannelOptions


def left(channel, **given):
    """Seconds that a call would have, None for no end."""
    deadline = channel.request("/t.S/M", Cardinality.UNARY_UNARY, bytes, bytes, **given).deadline
    return None if deadline is None else round(deadline.time_remaining())


async def test_a_call_s_own_limit_counts_instead_of_the_channel_s_also_where_it_is_longer(autojump_clock):
    channel = Channel("here:1", options=ChannelOptions(call_timeout=50))
    assert left(channel) == 50
    assert left(channel, timeout=100) == 100
    assert left(channel, timeout=10) == 10
    assert left(channel, deadline=Deadline.from_timeout(100)) == 100
    assert left(channel, deadline=Deadline.from_timeout(10)) == 10
    assert left(channel, timeout=70, deadline=Deadline.from_timeout(100)) == 70
    assert left(Channel("here:1")) is None


async def test_the_context_s_limit_can_only_make_a_call_s_time_shorter(autojump_clock):
    channel = Channel("here:1", options=ChannelOptions(call_timeout=50))
    with calling(timeout=70):
        assert left(channel) == 50
        assert left(channel, deadline=Deadline.from_timeout(100)) == 70
        assert left(channel, deadline=Deadline.from_timeout(60)) == 60
        await trio.sleep(40)
        assert left(channel) == 30


@pytest.mark.parametrize("option", [True, False])
async def test_a_call_says_for_itself_whether_it_waits_for_a_connection(autojump_clock, option):
    channel = Channel("here:1", options=ChannelOptions(wait_for_ready=option))
    waits = [
        channel.request("/t.S/M", Cardinality.UNARY_UNARY, bytes, bytes, wait_for_ready=own)._wait_for_ready
        for own in (None, True, False)
    ]
    assert waits == [option, True, False]


async def test_what_may_not_be_sent_is_refused_before_there_is_a_call():
    channel = Channel("here:1")
    for metadata in ({"Upper": "x"}, {"grpc-x": "x"}, {"x": "a\nb"}):
        with pytest.raises(ValueError, match="metadata"):
            channel.request("/t.S/M", Cardinality.UNARY_UNARY, bytes, bytes, metadata=metadata)
    with pytest.raises(ValueError, match="surrogates"):
        channel.request("/t.S/\ud800", Cardinality.UNARY_UNARY, bytes, bytes)

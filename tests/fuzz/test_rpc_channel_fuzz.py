"""A server that sends anything at all: every call ends, by a reply or a GRPCError, and the channel lives on."""

import random

import trio
from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair

from nl.pb import health
from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.channel import Channel
from nl.rpc.options import ChannelOptions
from nl.rpc.retry import RetryPolicy
from tests.wire.raw_server import RawConnection, only_trailers, trailers

BLOCKS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([hpack.RESPONSE, hpack.TRAILERS_OK, hpack.RESPONSE + hpack.TRAILERS_OK, hpack.RESPONSE_GZIP]),
    st.lists(
        st.tuples(
            st.sampled_from([b":status", b"grpc-status", b"grpc-message", b"x-bin", b"content-type", b"grpc-encoding",
                             b"grpc-status-details-bin", b"grpc-retry-pushback-ms", b"te", b"X", b"\xff"]),
            st.one_of(st.binary(max_size=12), st.sampled_from([b"0", b"14", b"200", b"9" * 5000, b"gzip"])),
        ),
        max_size=4,
    ).map(hpack.encode),
)  # fmt: skip
SIDS = st.sampled_from([0, 1, 1, 1, 2, 3, 5, 2**31 - 1])
MESSAGES = st.one_of(
    st.binary(max_size=30), st.binary(max_size=8).map(lambda data: fr.PREFIX.pack(0, len(data)) + data)
)
FRAMES = st.one_of(
    st.tuples(BLOCKS, SIDS, st.booleans()).map(
        lambda each: fr.header_frames(each[0], each[1], end_stream=each[2], max_frame=16384)
    ),
    st.tuples(st.sampled_from([0, 1, 8, 9]), SIDS, MESSAGES).map(lambda each: fr.frame(fr.DATA, *each)),
    st.tuples(st.integers(0, 12), st.integers(0, 255), SIDS, st.binary(max_size=40)).map(lambda each: fr.frame(*each)),
    st.tuples(SIDS, st.integers(0, 15)).map(lambda each: fr.rst_stream(*each)),
    st.tuples(SIDS, st.integers(0, 15)).map(lambda each: fr.goaway(*each)),
    st.tuples(SIDS, st.integers(0, 40)).map(lambda each: only_trailers(*each)),
    st.tuples(SIDS, st.integers(0, 40)).map(lambda each: trailers(*each)),
    st.binary(max_size=30),
)


class Hostile:
    """The first connections get `sent`, cut into pieces, and are closed or left open; later ones are served well."""

    def __init__(self, sent, *, greets, closes, seed, bad=2):
        self.sent, self.greets, self.closes, self.bad = sent, greets, closes, bad
        self.rng = random.Random(seed)
        self.count = 0
        self.nursery = None

    async def connect(self):
        self.count += 1
        ours, theirs = memory_stream_pair()
        self.nursery.start_soon(self.serve, RawConnection(theirs, self.count))
        return ours

    async def serve(self, connection):
        try:
            if connection.number > self.bad:
                await connection.greet()
                while (sid := await connection.request()) is not None:
                    await connection.reply(sid)
                return
            if self.greets:
                await connection.greet()
                await connection.request()
            data = b"".join(self.sent)
            while data:
                size = self.rng.choice([1, 7, 50, len(data)])
                await connection.send(data[:size])
                data = data[size:]
            if not self.closes:
                await connection.to_the_end()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(connection.stream)


async def one_call(channel, how):
    kind = Cardinality.UNARY_STREAM if how == "stream" else Cardinality.UNARY_UNARY
    reply = health.HealthCheckResponse if how == "decoded" else bytes
    async with channel.request("/t.S/M", kind, bytes, reply, timeout=30) as stream:
        await stream.send_message(b"request", end=True)
        if how == "body":
            body = await stream.receive_body()
            while body is not None and await body.receive_parts():
                pass
        elif how == "stream":
            async for _ in stream:
                pass
        else:
            await stream.recv_message()


@settings(max_examples=150, deadline=None)
@given(
    sent=st.lists(FRAMES, max_size=6),
    greets=st.booleans(),
    closes=st.booleans(),
    how=st.sampled_from(["message", "decoded", "body", "stream"]),
    retries=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_whatever_a_server_sends_the_call_ends_and_the_channel_lives_on(sent, greets, closes, how, retries, seed):
    async def main():
        hostile = Hostile(sent, greets=greets, closes=closes, seed=seed)
        policy = RetryPolicy(max_retries=2, methods=frozenset({"/t.S/M"})) if retries else None
        options = ChannelOptions(retry=policy, connect_timeout=5)
        async with trio.open_nursery() as nursery:
            hostile.nursery = nursery
            async with Channel(hostile.connect, options=options) as channel:
                for _ in range(2):
                    try:
                        await one_call(channel, how)
                    except GRPCError:
                        pass
                for connection in list(channel._pool.connections):
                    connection.retire()
                hostile.bad = 0
                await trio.sleep(100)
                await one_call(channel, "message")
                assert {connection.taken for connection in channel._pool.connections} <= {0}
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))

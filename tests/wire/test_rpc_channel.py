"""Our channel: against our own server over a socket pair, and against grpcio's server as a foreign judge."""
# ruff: noqa: SIM117  # nested blocks say which ends first

import math
import socket
from concurrent import futures

import grpc
import pytest
import trio
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError

from nl.rpc.channel import Channel
from nl.rpc.options import ChannelOptions, ServerOptions
from tests.wire.rpc_hosting import serving
from tests.wire.rpc_service import RawService

KINDS = Cardinality


class GrpcioService:
    """The same trivial methods on grpcio's synchronous server."""

    def __init__(self):
        self.cancelled = trio.Event()

    def handlers(self):
        return {
            "Echo": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
            "Repeat": grpc.unary_stream_rpc_method_handler(self.repeat),
            "Total": grpc.stream_unary_rpc_method_handler(lambda requests, _: b"%d" % sum(map(len, requests))),
            "Chat": grpc.stream_stream_rpc_method_handler(lambda requests, _: (each.upper() for each in requests)),
            "Metadata": grpc.unary_unary_rpc_method_handler(self.metadata),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "Deadline": grpc.unary_unary_rpc_method_handler(lambda _, context: b"%d" % round(context.time_remaining())),
        }

    def repeat(self, request, context):
        for index in range(5):
            yield b"%d:" % index + request

    def metadata(self, request, context):
        context.send_initial_metadata([("x-first", "one"), ("x-first-bin", b"\x00\xff")])
        context.set_trailing_metadata([("x-last", "two")])
        return repr(sorted((k, v) for k, v in context.invocation_metadata() if k.startswith("x-"))).encode()

    def fail(self, request, context):
        context.abort(grpc.StatusCode.NOT_FOUND, "nicht da: ü %")


@pytest.fixture
async def grpcio_port():
    pool = futures.ThreadPoolExecutor(8)
    server = grpc.server(pool, options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.S", GrpcioService().handlers()),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()
    pool.shutdown()


@pytest.fixture
async def service():
    return RawService()


@pytest.fixture
async def pair(service):
    """Our channel to our server."""
    async with serving(service) as (_, port), Channel(f"127.0.0.1:{port}") as channel:
        yield channel


@pytest.fixture(params=["ours", "grpcio"])
async def channel(request, service, grpcio_port):
    if request.param == "grpcio":
        async with Channel(f"127.0.0.1:{grpcio_port}") as channel:
            yield channel
    else:
        async with serving(service) as (_, port), Channel(f"127.0.0.1:{port}") as channel:
            yield channel


async def unary(channel, name, message=b"", **kwargs):
    async with channel.request(f"/t.S/{name}", KINDS.UNARY_UNARY, bytes, bytes, **kwargs) as stream:
        await stream.send_message(message, end=True)
        return await stream.recv_message()


@pytest.mark.parametrize("size", [0, 5, 16_379, 16_380, 200_000, 3_900_000])
async def test_unary(channel, size):
    assert await unary(channel, "Echo", b"e" * size) == b"e" * size


async def test_unary_many_at_once(channel):
    got = {}

    async def one(index):
        got[index] = await unary(channel, "Echo", b"%d" % index)

    async with trio.open_nursery() as nursery:
        for index in range(300):
            nursery.start_soon(one, index)
    assert got == {index: b"%d" % index for index in range(300)}


async def test_after_the_one_reply_there_is_none(channel):
    async with channel.request("/t.S/Echo", KINDS.UNARY_UNARY, bytes, bytes) as stream:
        await stream.send_message(b"x", end=True)
        assert await stream.recv_message() == b"x"
        assert await stream.recv_message() is None


async def test_server_streaming(channel):
    async with channel.request("/t.S/Repeat", KINDS.UNARY_STREAM, bytes, bytes) as stream:
        await stream.send_message(b"m", end=True)
        assert [message async for message in stream] == [b"%d:m" % index for index in range(5)]


@pytest.mark.parametrize("sizes", [[], [0, 1], [1_000_000] * 8])
async def test_client_streaming(channel, sizes):
    async with channel.request("/t.S/Total", KINDS.STREAM_UNARY, bytes, bytes) as stream:
        await stream.send_request()
        for size in sizes:
            await stream.send_message(bytes(size))
        await stream.end()
        assert await stream.recv_message() == b"%d" % sum(sizes)


async def test_bidirectional_streaming(channel):
    async with channel.request("/t.S/Chat", KINDS.STREAM_STREAM, bytes, bytes) as stream:
        for word in (b"one", b"two"):
            await stream.send_message(word)
            assert await stream.recv_message() == word.upper()
        await stream.end()
        assert await stream.recv_message() is None


async def test_metadata_in_both_directions(channel):
    metadata = {"x-text": "a b", "x-raw-bin": b"\x00\xff"}
    async with channel.request("/t.S/Metadata", KINDS.UNARY_UNARY, bytes, bytes, metadata=metadata) as stream:
        await stream.send_message(b"", end=True)
        reply = await stream.recv_message()
    assert reply == repr([("x-raw-bin", b"\x00\xff"), ("x-text", "a b")]).encode()
    assert stream.initial_metadata["x-first"] == "one" and stream.initial_metadata["x-first-bin"] == b"\x00\xff"
    assert stream.trailing_metadata["x-last"] == "two"


async def test_the_timeout_reaches_the_server(channel):
    assert await unary(channel, "Deadline", timeout=100) == b"100"


@pytest.mark.parametrize("timeout", [math.inf, 1e300])
async def test_a_timeout_without_end_harms_nobody(pair, timeout):
    """The stream was taken and then reset without ever having had headers, which ends the connection."""
    async with pair.request("/t.S/Hang", KINDS.UNARY_UNARY, bytes, bytes) as other:
        await other.send_message(b"", end=True)
        assert await unary(pair, "Echo", b"x", timeout=timeout) == b"x"
        assert pair.statistics().connections == 1
        with pytest.raises(UnicodeEncodeError):
            await unary(pair, "Echo\ud800")
        assert await unary(pair, "Echo", b"y") == b"y"
        other._call.raise_if_over()
        await other.cancel()


async def test_a_status_is_raised_with_its_message(channel):
    with pytest.raises(GRPCError) as caught:
        await unary(channel, "Fail", b"unicode")
    assert caught.value.status is Status.NOT_FOUND
    assert caught.value.message.startswith("nicht da: ü %")


async def test_details_are_raised_with_the_status(pair):
    from nl.pb import rpc_status, wkt

    with pytest.raises(GRPCError) as caught:
        await unary(pair, "Fail", b"missing")
    assert caught.value.status is Status.FAILED_PRECONDITION
    failure = wkt.unpack(caught.value.details[0], rpc_status.PreconditionFailure)
    assert failure.violations[0].subject == "blobs/abc/3"


async def test_a_deadline_ends_the_call_on_both_sides(pair, service):
    await unary(pair, "Echo", b"connect")  # which may take longer than the deadline
    with pytest.raises(GRPCError) as caught:
        await unary(pair, "Hang", timeout=0.2)
    assert caught.value.status is Status.DEADLINE_EXCEEDED
    with trio.fail_after(5):
        await service.finished.wait()
    assert await unary(pair, "Echo", b"alive") == b"alive"


async def test_cancelling_a_call_cancels_its_handler_and_leaves_the_block_quietly(pair, service):
    async with pair.request("/t.S/Hang", KINDS.UNARY_UNARY, bytes, bytes) as stream:
        await stream.send_message(b"", end=True)
        await service.started.wait()
        await stream.cancel()
        with pytest.raises(GRPCError) as caught:
            await stream.recv_message()
        assert caught.value.status is Status.CANCELLED
        with trio.fail_after(5):
            await service.finished.wait()
    assert service.cancelled == ["/t.S/Hang"]


async def test_a_cancelled_task_cancels_the_handler(pair, service):
    with trio.CancelScope() as scope:
        async with pair.request("/t.S/Hang", KINDS.UNARY_UNARY, bytes, bytes) as stream:
            await stream.send_message(b"", end=True)
            await service.started.wait()
            scope.cancel()
            await stream.recv_message()
    with trio.fail_after(5):
        await service.finished.wait()
    assert service.cancelled == ["/t.S/Hang"]


async def test_a_reply_is_received_as_a_body_of_views(pair):
    async with pair.request("/t.S/Big", KINDS.UNARY_UNARY, bytes, bytes) as stream:
        await stream.send_message(b"2000000", end=True)
        body = await stream.receive_body()
        assert body.size == 2_000_000
        count = 0
        while parts := await body.receive_parts(100_000):
            assert sum(map(len, parts)) <= 100_000
            count += sum(map(len, parts))
        assert count == 2_000_000


async def test_a_reply_over_the_limit_is_resource_exhausted(service):
    options = ChannelOptions(max_message_size=1000)
    async with serving(service) as (_, port), Channel(f"127.0.0.1:{port}", options=options) as channel:
        with pytest.raises(GRPCError) as caught:
            await unary(channel, "Big", b"1001")
        assert caught.value.status is Status.RESOURCE_EXHAUSTED
        assert await unary(channel, "Big", b"1000") == bytes(1000)


async def test_nobody_listening_is_unavailable():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with Channel(f"127.0.0.1:{unused.getsockname()[1]}") as channel:
            with pytest.raises(GRPCError) as caught:
                await unary(channel, "Echo")
            assert caught.value.status is Status.UNAVAILABLE


async def test_a_lost_connection_fails_its_calls_and_the_next_call_connects_again(service):
    async with serving(service) as (server, port), Channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(GRPCError) as caught:
            async with channel.request("/t.S/Hang", KINDS.UNARY_UNARY, bytes, bytes) as stream:
                await stream.send_message(b"", end=True)
                await service.started.wait()
                for connection in list(server._connections):
                    connection.close_soon()
                await stream.recv_message()
        assert caught.value.status is Status.UNAVAILABLE
        assert await unary(channel, "Echo", b"back") == b"back"
        assert server.statistics()["accepted"] == 2


async def test_goaway_moves_new_calls_to_a_new_connection_while_old_ones_finish(service):
    async with serving(service) as (server, port), Channel(f"127.0.0.1:{port}") as channel:
        async with channel.request("/t.S/Hang", KINDS.UNARY_UNARY, bytes, bytes) as stream:
            await stream.send_message(b"", end=True)
            await service.started.wait()
            (old,) = server._connections
            old.drain()
            while not channel.statistics().draining:
                await trio.lowlevel.checkpoint()
            assert await unary(channel, "Echo", b"new") == b"new"
            assert server.statistics()["accepted"] == 2
            service.release.set()
            assert await stream.recv_message() == b"released"


async def test_calls_wait_for_a_stream_when_the_server_allows_few(service):
    from nl.rpc.h2.limits import Limits

    options = ServerOptions(limits=Limits(max_concurrent_streams=2))
    async with serving(service, options=options) as (_, port), Channel(f"127.0.0.1:{port}") as channel:
        got = []

        async def one(index):
            got.append(await unary(channel, "SlowEcho", b"%d" % index))

        async with trio.open_nursery() as nursery:
            for index in range(50):
                nursery.start_soon(one, index)
        assert sorted(map(int, got)) == list(range(50))


async def test_gzip_from_the_channel(service):
    options = ServerOptions(send_compression="gzip", accepted_compression=("gzip",))
    async with serving(service, options=options) as (_, port):
        async with Channel(f"127.0.0.1:{port}", options=ChannelOptions(send_compression="gzip")) as channel:
            assert await unary(channel, "Echo", b"z" * 100_000) == b"z" * 100_000


async def test_a_server_that_answers_early_ends_the_sending(pair):
    async with pair.request("/t.S/Early", KINDS.STREAM_UNARY, bytes, bytes, timeout=30) as stream:
        while not stream.is_answered:
            await stream.send_message(bytes(1_000_000))
        await stream.end()
        assert await stream.recv_message() == b"that will do"


async def test_an_error_in_the_block_leaves_the_channel_ungrouped(service):
    async with serving(service) as (_, port):
        with pytest.raises(KeyError):
            async with Channel(f"127.0.0.1:{port}") as channel:
                await unary(channel, "Echo", b"x")
                raise KeyError("mine")

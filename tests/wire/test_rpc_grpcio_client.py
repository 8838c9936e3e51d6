"""grpcio's client (C core) against our server: what the gRPC protocol promises, seen by somebody else."""

import grpc
import pytest
import trio
from google.protobuf import any_pb2  # noqa: F401  # registers Any for the details
from grpc import StatusCode

from nl.rpc.options import ServerOptions
from tests.wire.rpc_hosting import in_thread, serving
from tests.wire.rpc_service import RawService

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Client:
    """grpcio, raw bytes."""

    def __init__(self, port, options=(), **kwargs):
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[*UNLIMITED, *options], **kwargs)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.channel.close()

    def unary(self, name, message=b"", **kwargs):
        return self.channel.unary_unary(f"/t.S/{name}")(message, timeout=kwargs.pop("timeout", 30), **kwargs)

    def error(self, name, message=b"", **kwargs):
        with pytest.raises(grpc.RpcError) as caught:
            self.unary(name, message, **kwargs)
        return caught.value


@pytest.fixture
async def service():
    return RawService()


async def call(service, function, options=None, client_options=()):
    async with serving(service, options=options) as (_, port):

        def run():
            with Client(port, client_options) as client:
                return function(client)

        return await in_thread(run)


@pytest.mark.parametrize("name", ["Echo", "SlowEcho"])
@pytest.mark.parametrize("size", [0, 1, 80, 16_000, 16_379, 16_380, 70_000, 3_000_000])
async def test_a_unary_call_returns_the_bytes_it_was_sent(service, name, size):
    payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert await call(service, lambda client: client.unary(name, payload)) == payload


async def test_many_unary_calls_in_flight_get_their_own_answers(service):
    def run(client):
        method = client.channel.unary_unary("/t.S/SlowEcho")
        futures = [method.future(b"%d" % index) for index in range(500)]
        return [future.result(30) for future in futures]

    assert await call(service, run) == [b"%d" % index for index in range(500)]


async def test_a_server_stream_delivers_its_messages_in_order(service):
    got = await call(service, lambda client: list(client.channel.unary_stream("/t.S/Repeat")(b"m")))
    assert got == [b"%d:m" % index for index in range(5)]


@pytest.mark.parametrize("sizes", [[], [0], [5, 0, 7], [100_000] * 30, [3_900_000, 1]])
async def test_a_client_stream_is_received_whole(service, sizes):
    def run(client):
        return client.channel.stream_unary("/t.S/Total")(iter([bytes(size) for size in sizes]))

    assert await call(service, run) == b"%d" % sum(sizes)


@pytest.mark.parametrize("sizes", [[], [0], [5, 0, 7], [100_000] * 30, [3_900_000, 1]])
async def test_bodies_are_received_as_views_without_losing_a_byte(service, sizes):
    def run(client):
        return client.channel.stream_unary("/t.S/Drain")(iter([bytes(size) for size in sizes]))

    assert await call(service, run) == b"%d in %d" % (sum(sizes), len(sizes))


async def test_a_bidirectional_stream_answers_while_it_is_being_written(service):
    def run(client):
        import queue

        outgoing = queue.Queue()
        replies = client.channel.stream_stream("/t.S/Chat")(iter(outgoing.get, None))
        seen = []
        for word in (b"one", b"two", b"three"):
            outgoing.put(word)
            seen.append(next(replies))
        outgoing.put(None)
        return seen, list(replies)

    assert await call(service, run) == ([b"ONE", b"TWO", b"THREE"], [])


async def test_metadata_travels_in_both_directions_also_binary(service):
    def run(client):
        metadata = [("x-text", "a b"), ("x-raw-bin", b"\x00\x01\xff"), ("x-text", "again")]
        reply, rpc = client.channel.unary_unary("/t.S/Metadata").with_call(b"", metadata=metadata)
        return reply, dict(rpc.initial_metadata()), dict(rpc.trailing_metadata())

    reply, initial, trailing = await call(service, run)
    assert reply == repr([("x-raw-bin", b"\x00\x01\xff"), ("x-text", "a b"), ("x-text", "again")]).encode()
    assert initial["x-first"] == "one" and initial["x-first-bin"] == b"\x00\xff"
    assert trailing["x-last"] == "two" and trailing["x-last-bin"] == b"\xfe"


async def test_the_handler_sees_the_clients_deadline(service):
    seen = await call(service, lambda client: client.unary("Deadline", timeout=100))
    assert seen in (b"100", b"101")  # grpcio rounds what is left up when it writes the header


async def test_a_deadline_cancels_the_handler_and_is_answered(service):
    error = await call(service, lambda client: client.error("Hang", timeout=0.3))
    assert error.code() is StatusCode.DEADLINE_EXCEEDED
    with trio.fail_after(5):
        await service.finished.wait()
    assert service.cancelled == ["/t.S/Hang"]


async def test_cancelling_a_call_cancels_its_handler_and_leaves_the_connection_alone(service):
    async with serving(service) as (server, port):
        with Client(port) as client:
            future = client.channel.unary_unary("/t.S/Hang").future(b"")
            await service.started.wait()
            future.cancel()
            with trio.fail_after(5):
                await service.finished.wait()
            assert service.cancelled == ["/t.S/Hang"]
            assert await in_thread(client.unary, "Echo", b"alive") == b"alive"
            assert server.statistics()["accepted"] == 1


async def test_a_lost_connection_cancels_its_handlers(service):
    async with serving(service) as (_, port):
        client = Client(port)
        future = client.channel.unary_unary("/t.S/Hang").future(b"")
        await service.started.wait()
        await in_thread(client.channel.close)
        with trio.fail_after(5):
            await service.finished.wait()
        assert future.done()
    assert service.cancelled == ["/t.S/Hang"]


@pytest.mark.parametrize(
    ("how", "code", "text"),
    [
        (b"unicode", StatusCode.NOT_FOUND, "nicht da: ü % \n"),
        (b"grpclib", StatusCode.ABORTED, "again"),
        (b"group", StatusCode.NOT_FOUND, "in a nursery"),
        (b"late", StatusCode.NOT_FOUND, "after all"),
        (b"silent", StatusCode.INTERNAL, "/t.S/Fail: the handler returned without a reply"),
        (b"bug", StatusCode.INTERNAL, "internal error in /t.S/Fail: RuntimeError"),
    ],
)
async def test_what_a_handler_raises_becomes_a_status(service, how, code, text):
    error = await call(service, lambda client: client.error("Fail", how))
    assert (error.code(), error.details()) == (code, text)


async def test_error_details_arrive_as_google_rpc_status(service):
    from nl.pb import rpc_status, wkt
    from nl.pb.codec import decode

    error = await call(service, lambda client: client.error("Fail", b"missing"))
    assert error.code() is StatusCode.FAILED_PRECONDITION
    trailing = dict(error.trailing_metadata())
    status = decode(rpc_status.Status, trailing["grpc-status-details-bin"])
    assert (status.code, status.message) == (9, "upload it first")
    failure, bad, retry = status.details
    violation = wkt.unpack(failure, rpc_status.PreconditionFailure).violations[0]
    assert (violation.type, violation.subject) == ("MISSING", "blobs/abc/3")
    assert wkt.unpack(bad, rpc_status.BadRequest).field_violations[0].field == "f"
    assert wkt.unpack(retry, rpc_status.RetryInfo).retry_delay == wkt.Duration(seconds=1, nanos=500_000_000)


async def test_a_stream_that_fails_halfway_delivers_what_came_before(service):
    def run(client):
        replies = client.channel.unary_stream("/t.S/Half")(b"")
        first = next(replies)
        with pytest.raises(grpc.RpcError) as caught:
            next(replies)
        return first, caught.value.code(), caught.value.details()

    assert await call(service, run) == (b"one", StatusCode.NOT_FOUND, "the rest")


async def test_an_unknown_method_is_unimplemented(service):
    error = await call(service, lambda client: client.error("Nothing"))
    assert error.code() is StatusCode.UNIMPLEMENTED
    assert "/t.S/Nothing" in error.details()


async def test_a_message_over_the_limit_is_resource_exhausted(service):
    options = ServerOptions(max_message_size=1000)
    error = await call(service, lambda client: client.error("Echo", bytes(1001)), options)
    assert error.code() is StatusCode.RESOURCE_EXHAUSTED
    assert "1001" in error.details()
    assert await call(service, lambda client: client.unary("Echo", bytes(1000)), options) == bytes(1000)


@pytest.mark.parametrize("name", ["Big"])
@pytest.mark.parametrize("size", [16_379, 16_380, 1 << 20, 9_000_000])
async def test_large_replies_arrive_whole(service, name, size):
    assert await call(service, lambda client: client.unary("Big", b"%d" % size)) == bytes(size)


async def test_gzip_works_in_both_directions(service):
    options = ServerOptions(send_compression="gzip", accepted_compression=("gzip",))
    payload = b"compressible " * 10_000

    def run(client):
        return client.unary("Echo", payload, compression=grpc.Compression.Gzip)

    assert await call(service, run, options) == payload


async def test_an_encoding_that_is_not_accepted_is_unimplemented(service):
    error = await call(service, lambda client: client.error("Echo", b"x" * 5000, compression=grpc.Compression.Gzip))
    assert error.code() is StatusCode.UNIMPLEMENTED
    assert "gzip" in error.details()


async def test_a_decompression_bomb_stops_at_the_message_limit(service):
    options = ServerOptions(accepted_compression=("gzip",), max_message_size=100_000)

    def run(client):
        return client.error("Echo", bytes(50_000_000), compression=grpc.Compression.Gzip)

    error = await call(service, run, options)
    assert error.code() is StatusCode.RESOURCE_EXHAUSTED


async def test_too_many_headers_cost_the_call_and_not_the_connection(service):
    async with serving(service) as (server, port):
        lax = [("grpc.max_metadata_size", 1 << 20), ("grpc.absolute_max_metadata_size", 1 << 20)]
        with Client(port, lax) as client:
            error = await in_thread(lambda: client.error("Echo", metadata=[("x-big", "v" * 20_000)]))
            assert error.code() is StatusCode.RESOURCE_EXHAUSTED
            assert await in_thread(client.unary, "Echo", b"alive") == b"alive"
            assert server.statistics()["accepted"] == 1


async def test_shutdown_lets_calls_in_flight_finish(service):
    async with serving(service) as (server, port):
        with Client(port) as client:
            future = client.channel.unary_unary("/t.S/Hang").future(b"")
            await service.started.wait()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.shutdown, 30)
                await trio.testing.wait_all_tasks_blocked()
                service.release.set()
            assert await in_thread(future.result, 10) == b"released"


async def test_shutdown_cancels_what_outlives_the_grace_period(service):
    async with serving(service) as (server, port):
        with Client(port, [("grpc.enable_retries", 0)]) as client:
            future = client.channel.unary_unary("/t.S/Hang").future(b"")
            await service.started.wait()
            await server.shutdown(0)
            assert service.cancelled == ["/t.S/Hang"]

            def outcome():
                with pytest.raises(grpc.RpcError) as caught:
                    future.result(10)
                return caught.value.code()

            assert await in_thread(outcome) is StatusCode.UNAVAILABLE


async def test_a_stream_that_is_answered_early_gets_its_answer(service):
    def run(client):
        return client.channel.stream_unary("/t.S/Early")(iter([bytes(500_000)] * 40), timeout=30)

    assert await call(service, run) == b"that will do"

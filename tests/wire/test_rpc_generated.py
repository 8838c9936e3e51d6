"""Generated betterproto2 services and stubs on our server and channel; grpcio's generated client meets them."""

import grpc
import trio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpclib.const import Cardinality

from nl.pb import bytestream, health
from nl.rpc.channel import Channel
from tests.wire.rpc_hosting import in_thread, serving

SERVING = 1


class Health(health.HealthBase):
    def __init__(self):
        self.closed = trio.Event()

    async def check(self, message):
        return health.HealthCheckResponse(status=SERVING)

    async def watch(self, message):
        try:
            while True:
                yield health.HealthCheckResponse(status=SERVING)
                await trio.lowlevel.checkpoint()
        finally:
            self.closed.set()


class Bytes(bytestream.ByteStreamBase):
    async def read(self, message):
        for offset in range(3):
            yield bytestream.ReadResponse(data=f"{message.resource_name}{offset}".encode())

    async def write(self, messages):
        total = 0
        async for message in messages:
            total += len(message.data)
        return bytestream.WriteResponse(committed_size=total)


async def test_generated_stubs_talk_to_generated_services():
    async with serving(Health(), Bytes()) as (_, port), Channel(f"127.0.0.1:{port}") as channel:
        reply = await health.HealthStub(channel).check(health.HealthCheckRequest(service="x"))
        assert reply.status == SERVING
        kind = Cardinality.UNARY_STREAM
        path = "/google.bytestream.ByteStream/Read"
        async with channel.request(path, kind, bytestream.ReadRequest, bytestream.ReadResponse, timeout=30) as stream:
            await stream.send_message(bytestream.ReadRequest(resource_name="r"), end=True)
            assert [bytes(each.data) async for each in stream] == [b"r0", b"r1", b"r2"]
        stub = bytestream.ByteStreamStub(channel)

        async def messages():
            for _ in range(3):
                yield bytestream.WriteRequest(data=bytes(100_000))

        assert (await stub.write(messages(), timeout=30)).committed_size == 300_000


async def test_a_cancelled_stream_closes_its_generator():
    service = Health()
    async with serving(service) as (_, port):

        def run():
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                replies = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="x"))
                assert next(replies).status == SERVING
                replies.cancel()

        await in_thread(run)
        with trio.fail_after(10):
            await service.closed.wait()

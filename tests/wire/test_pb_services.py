"""Generated services and stubs over real sockets: our server, our channel, messages by our codec."""

from __future__ import annotations

import pytest
import trio
from grpclib.const import Cardinality

from nl.errors import LocalProtocolError
from nl.pb import bytestream, reflection_v1
from nl.rpc.channel import Channel
from tests.wire.rpc_hosting import serving


class Stored(bytestream.ByteStreamBase):
    """Reads give the same chunk for ever, or once with a limit; writes count their bytes."""

    def __init__(self):
        self.closed = trio.Event()

    async def read(self, message):
        try:
            chunk = message.resource_name.encode() * 1000
            while True:
                yield bytestream.ReadResponse(data=chunk)
                if message.read_limit:
                    return
        finally:
            self.closed.set()

    async def write(self, messages):
        size = 0
        async for message in messages:
            size += len(message.data)
        return bytestream.WriteResponse(committed_size=size)

    async def query_write_status(self, message):
        return bytestream.QueryWriteStatusResponse(committed_size=len(message.resource_name), complete=True)


async def test_stubs_and_services_meet_in_calls_with_one_reply():
    async with serving(Stored()) as (_, port), Channel(f"127.0.0.1:{port}") as channel:
        stub = bytestream.ByteStreamStub(channel, timeout=30)
        status = await stub.query_write_status(bytestream.QueryWriteStatusRequest(resource_name="abc"))
        assert status == bytestream.QueryWriteStatusResponse(committed_size=3, complete=True)
        requests = [bytestream.WriteRequest(data=b"y" * size) for size in (10, 5000)]
        assert (await stub.write(requests)).committed_size == 5010

        async def one_by_one():
            for request in requests:
                yield request

        assert (await stub.write(one_by_one())).committed_size == 5010


class LeavingError(Exception):
    """Why a client leaves the block of its call."""


def open_read(channel):
    types = (bytestream.ReadRequest, bytestream.ReadResponse)
    return channel.request("/google.bytestream.ByteStream/Read", Cardinality.UNARY_STREAM, *types)


async def test_a_generated_service_streams_its_replies():
    async with serving(Stored()) as (_, port), Channel(f"127.0.0.1:{port}") as channel, open_read(channel) as stream:
        await stream.send_message(bytestream.ReadRequest(resource_name="x", read_limit=1), end=True)
        assert [reply.data async for reply in stream] == [b"x" * 1000]


async def test_a_stream_that_the_client_leaves_is_closed_on_the_server():
    service = Stored()
    async with serving(service) as (_, port), Channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(LeavingError):
            async with open_read(channel) as stream:
                await stream.send_message(bytestream.ReadRequest(resource_name="x"), end=True)
                assert (await stream.recv_message()).data == b"x" * 1000
                raise LeavingError
        with trio.fail_after(20):
            await service.closed.wait()


async def test_stubs_refuse_calls_that_reply_with_a_stream():
    async with Channel("127.0.0.1:1") as channel:
        with pytest.raises(LocalProtocolError, match="Read replies with a stream"):
            await anext(bytestream.ByteStreamStub(channel).read(bytestream.ReadRequest()))
        with pytest.raises(LocalProtocolError, match="ServerReflectionInfo replies with a stream"):
            await anext(reflection_v1.ServerReflectionStub(channel).server_reflection_info([]))

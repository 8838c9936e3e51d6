"""The transport bench's trivial service on grpclib's server. Run: python -m tests.bench.transport_grpclib PORT."""

import asyncio
import sys

from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from grpclib.server import Server

BLOB = bytes(1 << 20)
MESSAGES = 4


class RawCodec(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: object) -> bytes:
        return message

    def decode(self, data: bytes, message_type: object) -> bytes:
        return data


class Service:
    async def unary(self, stream) -> None:
        request = await stream.recv_message()
        await stream.send_message(request[:40])

    async def read(self, stream) -> None:
        await stream.recv_message()
        for _ in range(MESSAGES):
            await stream.send_message(BLOB)

    async def write(self, stream) -> None:
        async for _ in stream:
            pass
        await stream.send_message(b"\x08\x01")

    def __mapping__(self) -> dict[str, Handler]:
        return {
            "/t.S/Unary": Handler(self.unary, Cardinality.UNARY_UNARY, bytes, bytes),
            "/t.S/Read": Handler(self.read, Cardinality.UNARY_STREAM, bytes, bytes),
            "/t.S/Write": Handler(self.write, Cardinality.STREAM_UNARY, bytes, bytes),
        }


async def main(port: int) -> None:
    server = Server([Service()], codec=RawCodec())
    await server.start("127.0.0.1", port)
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))

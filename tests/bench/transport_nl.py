"""The transport bench's trivial service on this project's server. Run: python -m tests.bench.transport_nl PORT."""

import sys

import trio
from grpclib.const import Cardinality, Handler

from nl.rpc.options import ServerOptions
from nl.rpc.server import Server
from nl.server.collector import calm_collector

BLOB = bytes(1 << 20)
MESSAGES = 4


class Service:
    async def unary(self, stream) -> None:
        request = await stream.recv_message()
        await stream.send_parts((request[:40],))

    async def read(self, stream) -> None:
        await stream.recv_message()
        for _ in range(MESSAGES):
            await stream.send_parts((BLOB,))

    async def write(self, stream) -> None:
        while (body := await stream.receive_body()) is not None:
            while await body.receive_parts():
                pass
        await stream.send_parts((b"\x08\x01",))

    def __mapping__(self) -> dict[str, Handler]:
        return {
            "/t.S/Unary": Handler(self.unary, Cardinality.UNARY_UNARY, bytes, bytes),
            "/t.S/Read": Handler(self.read, Cardinality.UNARY_STREAM, bytes, bytes),
            "/t.S/Write": Handler(self.write, Cardinality.STREAM_UNARY, bytes, bytes),
        }


async def main(port: int) -> None:
    options = ServerOptions(max_message_size=64 << 20)
    await Server([Service()], options=options).serve(await trio.open_tcp_listeners(port, host="127.0.0.1"))


if __name__ == "__main__":
    calm_collector()  # as `nl serve` does
    trio.run(main, int(sys.argv[1]))

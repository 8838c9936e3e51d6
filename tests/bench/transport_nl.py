"""The transport bench's trivial service on this project's server.

Run: `python -m tests.bench.transport_nl PORT [TLS_PORT CERT_FILE KEY_FILE]`.
"""

import dataclasses
import sys

import trio
from grpclib.const import Cardinality, Handler

from nl.rpc.options import ServerOptions
from nl.rpc.server import Server
from nl.rpc.tls import server_context
from nl.server.collector import calm_collector
from nl.server.interpreter import take_short_turns

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


async def main(port: int, tls_port: int = 0, cert_file: str = "", key_file: str = "") -> None:
    options = ServerOptions(max_message_size=64 << 20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, port, options)
        if tls_port:
            tls = server_context(cert_file=cert_file, key_file=key_file)
            nursery.start_soon(serve, tls_port, dataclasses.replace(options, tls=tls))


async def serve(port: int, options: ServerOptions) -> None:
    await Server([Service()], options=options).serve(await trio.open_tcp_listeners(port, host="127.0.0.1"))


if __name__ == "__main__":
    calm_collector()  # as `nl serve` does
    take_short_turns()
    first, *secure = sys.argv[1:]
    trio.run(main, int(first), *map(int, secure[:1]), *secure[1:])

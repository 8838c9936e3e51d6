"""The transport bench's trivial service on grpcio.aio (C core). Run: python -m tests.bench.transport_grpcio PORT."""

import asyncio
import sys

import grpc
import grpc.aio

BLOB = bytes(1 << 20)
MESSAGES = 4


async def unary(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return request[:40]


async def read(request: bytes, context: grpc.aio.ServicerContext):
    for _ in range(MESSAGES):
        yield BLOB


async def write(requests, context: grpc.aio.ServicerContext) -> bytes:
    async for _ in requests:
        pass
    return b"\x08\x01"


async def main(port: int) -> None:
    limit = 64 << 20
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", limit)]
    )
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Read": grpc.unary_stream_rpc_method_handler(read),
        "Write": grpc.stream_unary_rpc_method_handler(write),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.S", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))

"""The connections to one server, without the store above them."""

from __future__ import annotations

import trio
import trio.testing
from redis_support import RedisServer, new_prefix, redis  # noqa: F401

from nl_redis_store.addresses import parse_address
from nl_redis_store.connection import Connection, dial
from nl_redis_store.node import Node, Request


async def ask(node: Node, *command: bytes) -> object:
    request = Request([command], sends=0, receives=0)
    node.enqueue(request)
    await request.done.wait()
    assert request.error is None
    return request.replies[0]


async def test_a_caller_that_gives_up_gets_its_buffer_back_unread(redis: RedisServer) -> None:  # noqa: F811
    """Whenever it gives up, also while the connection is being replaced."""

    async def connect() -> Connection:
        return await dial(parse_address(redis.url, ""), timeout_s=5, tls=None)

    node = Node("redis", connect, connections=1, timeout_s=30)
    prefix = new_prefix().encode()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.run)
        for steps in range(12):
            key, data = prefix + b"%d" % steps, bytes([65 + steps]) * 300_000
            assert await ask(node, b"PING") == b"PONG"
            node.renew()
            buffer = bytearray(data)
            request = Request([(b"SET", key, buffer)], sends=len(buffer), receives=0)
            node.enqueue(request)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            await request.settle(10)
            buffer[:] = bytes(len(buffer))
            assert await ask(node, b"GET", key) in (None, data), f"after {steps} steps"
        nursery.cancel_scope.cancel()
    assert node.open == 0


async def test_what_gathers_while_a_connection_is_busy_is_one_trip(redis: RedisServer) -> None:  # noqa: F811
    async def connect() -> Connection:
        return await dial(parse_address(redis.url, ""), timeout_s=5, tls=None)

    node = Node("redis", connect, connections=1, timeout_s=30)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.run)
        await ask(node, b"PING")
        async with trio.open_nursery() as callers:
            for number in range(100):
                callers.start_soon(ask, node, b"ECHO", b"%d" % number)
        assert node.trips <= 4
        nursery.cancel_scope.cancel()


async def test_who_waits_when_a_node_ends_is_told(redis: RedisServer) -> None:  # noqa: F811
    async def connect() -> Connection:
        return await trio.sleep_forever()

    node = Node("redis", connect, connections=1, timeout_s=30)
    requests = [Request([(b"PING",)], sends=2_000_000, receives=0) for _ in range(3)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.run)
        for request in requests:
            node.enqueue(request)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    late = Request([(b"PING",)], sends=0, receives=0)
    node.enqueue(late)
    for request in (*requests, late):
        assert request.done.is_set()
        assert "is not asked any more" in str(request.error)

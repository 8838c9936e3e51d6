"""A call without a network: messages cross it encoded, as on the wire, and handlers cannot tell the difference."""

import math
from contextlib import asynccontextmanager

import trio
from multidict import MultiDict

from nl.model.access import EVERYONE
from nl.pb.codec import decode, encode, encode_parts


class MemoryStream:
    """Both ends of one call: the handler's (`nl.rpc.contract.ServerStream`) and, as `send`/`receive`, the client's."""

    def __init__(self, handler, method, metadata=(), identity=EVERYONE):
        self.method = method
        self.peer = "test:1"
        self.deadline = None
        self.identity = identity
        self.kept = 0
        self.peer_answers = False
        self.metadata = MultiDict(metadata)
        self._handler = handler
        self._to_server, self._requests = trio.open_memory_channel(math.inf)
        self._replies, self._from_server = trio.open_memory_channel(math.inf)

    # the client's end
    async def send(self, message):
        await self._to_server.send(encode(message))

    def half_close(self):
        self._to_server.close()

    async def receive(self):
        try:
            return decode(self._handler.reply_type, await self._from_server.receive())
        except trio.EndOfChannel:
            return None

    def receive_nowait(self):
        return decode(self._handler.reply_type, self._from_server.receive_nowait())

    # the handler's end
    def header(self, name):
        return self.metadata.get(name)

    def keep(self, count):
        self.kept = count

    def probe(self):
        return trio.current_time() if self.peer_answers else -math.inf

    async def recv_message(self):
        try:
            return decode(self._handler.request_type, await self._requests.receive())
        except trio.EndOfChannel:
            return None

    async def send_message(self, message):
        await self.send_parts(encode_parts(message))

    async def send_parts(self, parts):
        await self._replies.send(b"".join(parts))

    async def serve(self):
        """Runs the handler. Raises what it raises; the client sees the end."""
        try:
            await self._handler.func(self)
        finally:
            self._replies.close()


@asynccontextmanager
async def calling(service, method, *messages, metadata=(), half_close=True, identity=EVERYONE):
    """A call under way; leaving the block cancels it, as RST_STREAM would. `method` is the last part of its name."""
    [(full, handler)] = [item for item in service.__mapping__().items() if item[0].endswith("/" + method)]
    stream = MemoryStream(handler, full, metadata, identity)
    for message in messages:
        await stream.send(message)
    if half_close:
        stream.half_close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.serve)
        yield stream
        nursery.cancel_scope.cancel()


async def call(service, method, *messages, metadata=(), identity=EVERYONE):
    """All replies of a call that ends by itself. Raises the handler's error as it is."""
    [(full, handler)] = [item for item in service.__mapping__().items() if item[0].endswith("/" + method)]
    stream = MemoryStream(handler, full, metadata, identity)
    for message in messages:
        await stream.send(message)
    stream.half_close()
    await stream.serve()
    replies = []
    while (reply := await stream.receive()) is not None:
        replies.append(reply)
    return replies

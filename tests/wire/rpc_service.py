"""The service that the transport tests call: raw bytes in, raw bytes out, every cardinality and every way to fail."""

import trio
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from nl.errors import FieldViolation, NotFoundError, PreconditionError, RetryAfter, Violation

POURED = bytes(1 << 20)
"""What Pour sends again and again."""


class RawService:
    def __init__(self):
        self.cancelled = []
        self.started = trio.Event()
        self.finished = trio.Event()
        self.release = trio.Event()
        self.seen = []

    async def echo(self, stream):
        await stream.send_message(await stream.recv_message())

    async def slow_echo(self, stream):
        message = await stream.recv_message()
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        await stream.send_message(message)

    async def repeat(self, stream):
        message = await stream.recv_message()
        for index in range(5):
            await stream.send_message(b"%d:" % index + message)

    async def total(self, stream):
        count = 0
        async for message in stream:
            count += len(message)
        await stream.send_message(b"%d" % count)

    async def drain(self, stream):
        count = messages = 0
        while (body := await stream.receive_body()) is not None:
            messages += 1
            while parts := await body.receive_parts():
                count += sum(map(len, parts))
        await stream.send_parts([b"%d in " % count, b"%d" % messages])

    async def chat(self, stream):
        async for message in stream:
            await stream.send_message(message.upper())

    async def metadata(self, stream):
        await stream.send_initial_metadata(metadata={"x-first": "one", "x-first-bin": b"\x00\xff"})
        await stream.recv_message()
        pairs = sorted((key, value) for key, value in stream.metadata.items() if key.startswith("x-"))
        await stream.send_message(repr(pairs).encode())
        await stream.send_trailing_metadata(metadata={"x-last": "two", "x-last-bin": b"\xfe"})

    async def big(self, stream):
        size = int(await stream.recv_message())
        await stream.send_message(bytes(size))

    async def pour(self, stream):
        await stream.recv_message()
        self.poured = 0
        try:
            while True:
                await stream.wait_send_credit()
                await stream.send_parts([POURED])
                self.poured += len(POURED)
        finally:
            self.finished.set()

    async def hang(self, stream):
        await stream.recv_message()
        self.started.set()
        try:
            await self.release.wait()
            await stream.send_message(b"released")
        except trio.Cancelled:
            self.cancelled.append(stream.method)
            raise
        finally:
            self.finished.set()

    async def deadline(self, stream):
        await stream.recv_message()
        left = stream.deadline.time_remaining() if stream.deadline else -1
        await stream.send_message(b"%d" % round(left))

    async def fail(self, stream):
        how = await stream.recv_message()
        if how == b"missing":
            details = (Violation("MISSING", "blobs/abc/3"), FieldViolation("f", "is wrong"), RetryAfter(1.5))
            raise PreconditionError("upload it first", details=details)
        if how == b"unicode":
            raise NotFoundError("nicht da: ü % \n")
        if how == b"grpclib":
            raise GRPCError(Status.ABORTED, "again")
        if how == b"group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._raise)
        if how == b"late":
            await stream.send_message(b"never seen")
            raise NotFoundError("after all")
        if how == b"silent":
            return
        raise RuntimeError("secret of the house")

    async def _raise(self):
        raise NotFoundError("in a nursery")

    async def early(self, stream):
        await stream.recv_message()
        await stream.send_message(b"that will do")

    async def half(self, stream):
        await stream.recv_message()
        await stream.send_message(b"one")
        raise NotFoundError("the rest")

    def __mapping__(self):
        kinds = Cardinality
        methods = {
            "Echo": (self.echo, kinds.UNARY_UNARY), "SlowEcho": (self.slow_echo, kinds.UNARY_UNARY),
            "Repeat": (self.repeat, kinds.UNARY_STREAM), "Total": (self.total, kinds.STREAM_UNARY),
            "Drain": (self.drain, kinds.STREAM_UNARY), "Chat": (self.chat, kinds.STREAM_STREAM),
            "Metadata": (self.metadata, kinds.UNARY_UNARY), "Big": (self.big, kinds.UNARY_UNARY),
            "Pour": (self.pour, kinds.UNARY_STREAM), "Hang": (self.hang, kinds.UNARY_UNARY),
            "Deadline": (self.deadline, kinds.UNARY_UNARY), "Fail": (self.fail, kinds.UNARY_UNARY),
            "Early": (self.early, kinds.STREAM_UNARY), "Half": (self.half, kinds.UNARY_STREAM),
        }  # fmt: skip
        return {f"/t.S/{name}": Handler(func, kind, bytes, bytes) for name, (func, kind) in methods.items()}

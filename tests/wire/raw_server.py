"""A server that says what a test wants it to say, frame by frame."""

from contextlib import asynccontextmanager

import trio

from nl.rpc import frames as fr
from nl.rpc import hpack


class RawServer:
    """`script(connection)` runs for every connection that is accepted."""

    def __init__(self, script):
        self.script = script
        self.accepted = 0
        self.port = 0

    async def handle(self, stream):
        self.accepted += 1
        connection = RawConnection(stream, self.accepted)
        try:
            await self.script(connection)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)


class RawConnection:
    """One accepted connection; `number` counts from 1."""

    def __init__(self, stream, number):
        self.stream = stream
        self.number = number
        self._inbox = b""
        self._greeted = False

    async def send(self, *frames):
        await self.stream.send_all(b"".join(frames))

    async def greet(self, settings=None):
        await self.send(fr.settings(settings or {}))

    async def frame(self):
        """The next (type, flags, stream, payload), None at the end."""
        skip = 0 if self._greeted else len(fr.PREFACE)
        while True:
            if len(self._inbox) >= skip + fr.HEADER_SIZE:
                length = int.from_bytes(self._inbox[skip : skip + 3], "big")
                stop = skip + fr.HEADER_SIZE + length
                if len(self._inbox) >= stop:
                    head, payload = self._inbox[skip : skip + 9], self._inbox[skip + 9 : stop]
                    self._inbox = self._inbox[stop:]
                    self._greeted = True
                    return head[3], head[4], int.from_bytes(head[5:9], "big"), payload
            data = await self.stream.receive_some(65536)
            if not data:
                return None
            self._inbox += data

    async def request(self):
        """The stream of the next request, once its headers are here; None at the end."""
        while (frame := await self.frame()) is not None:
            if frame[0] == fr.HEADERS:
                return frame[2]
        return None

    async def to_the_end(self):
        while await self.frame() is not None:
            pass

    async def reply(self, sid, message=b"", *, status=0, extra=()):
        await self.send(
            fr.header_frames(hpack.RESPONSE + hpack.encode(extra), sid, end_stream=False, max_frame=16384),
            fr.frame(fr.DATA, 0, sid, fr.PREFIX.pack(0, len(message)) + message),
            trailers(sid, status),
        )


def trailers(sid, status, *extra):
    block = hpack.encode([(b"grpc-status", b"%d" % status), *extra])
    return fr.header_frames(block, sid, end_stream=True, max_frame=16384)


def only_trailers(sid, status, *extra):
    block = hpack.RESPONSE + hpack.encode([(b"grpc-status", b"%d" % status), *extra])
    return fr.header_frames(block, sid, end_stream=True, max_frame=16384)


@asynccontextmanager
async def raw_server(script):
    server = RawServer(script)
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(lambda task_status: trio.serve_tcp(
            server.handle, 0, host="127.0.0.1", task_status=task_status))
        server.port = listener.socket.getsockname()[1]
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()

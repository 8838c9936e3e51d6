"""A hand-made HTTP/2 client that may break any rule: frames in, frames out."""

import trio

from nl.rpc import frames as fr
from nl.rpc import hpack

REQUEST = hpack.METHOD_POST + hpack.SCHEME_HTTP + hpack.encode_path(b"/t.S/Echo")
GRPC = hpack.encode([(b":authority", b"x"), (b"te", b"trailers"), (b"content-type", b"application/grpc")])


def request_block(method="Echo", extra=()):
    path = hpack.encode_path(f"/t.S/{method}".encode())
    return hpack.METHOD_POST + hpack.SCHEME_HTTP + path + GRPC + hpack.encode(list(extra))


def headers(sid, method="Echo", *, end=False, extra=()):
    flags = fr.END_HEADERS | (fr.END_STREAM if end else 0)
    return fr.frame(fr.HEADERS, flags, sid, request_block(method, extra))


def message(sid, data=b"", *, end=True):
    return fr.frame(fr.DATA, fr.END_STREAM if end else 0, sid, fr.PREFIX.pack(0, len(data)) + data)


class RawClient:
    """Sends bytes and collects frames as (type, flags, stream, payload)."""

    opened = []

    def __init__(self, stream):
        self.opened.append(stream)
        self.stream = stream
        self.buffer = bytearray()
        self.seen = []

    @classmethod
    def close_all(cls):
        """After a test: no socket outlives it."""
        while cls.opened:
            cls.opened.pop().socket.close()

    @classmethod
    async def connect(cls, port, *, settings=None, hello=True):
        client = cls(await trio.open_tcp_stream("127.0.0.1", port))
        if hello:
            await client.send(fr.PREFACE + fr.settings(settings or {}))
        return client

    async def send(self, *parts):
        """Everything, also to a peer that hangs up meanwhile."""
        try:
            await self.stream.send_all(b"".join(parts))
        except trio.BrokenResourceError:
            pass

    async def frame(self):
        """The next frame, or None at the end of the connection."""
        while True:
            if len(self.buffer) >= 9:
                high, low, kind, flags, sid = fr.HEADER.unpack_from(self.buffer)
                stop = 9 + (high << 8 | low)
                if len(self.buffer) >= stop:
                    payload = bytes(self.buffer[9:stop])
                    del self.buffer[:stop]
                    self.seen.append((kind, flags, sid, payload))
                    return self.seen[-1]
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self.buffer += data

    async def until(self, kind, *, sid=None):
        """The payload of the next frame of that type, skipping others."""
        with trio.fail_after(20):
            while (frame := await self.frame()) is not None:
                if frame[0] == kind and sid in (None, frame[2]):
                    return frame[3]
        raise AssertionError(f"the connection ended without a frame of type {kind}; seen: {self.seen[-5:]}")

    async def goaway_code(self):
        payload = await self.until(fr.GOAWAY)
        return fr.ErrorCode(fr.U32.unpack_from(payload, 4)[0])

    async def reset_code(self, sid):
        return fr.ErrorCode(fr.U32.unpack(await self.until(fr.RST_STREAM, sid=sid))[0])

    async def closed(self):
        """Waits for the end of the connection."""
        with trio.fail_after(20):
            while await self.frame() is not None:
                pass

    async def settled(self):
        """Everything sent so far has been looked at."""
        await self.send(fr.ping(b"settled!"))
        with trio.fail_after(20):
            while (frame := await self.frame()) is not None:
                if frame[0] == fr.PING and frame[3] == b"settled!":
                    return
        raise AssertionError("the connection ended")

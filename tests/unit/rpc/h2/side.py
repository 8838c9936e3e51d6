"""One side of an HTTP/2 connection in memory: what it is told, and what it sends as frames."""

from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.h2.limits import Limits
from nl.rpc.h2.protocol import H2Connection, NoRole
from nl.rpc.h2.reader import FrameReader
from nl.rpc.h2.stream import Stream

BLOCK = hpack.METHOD_POST + hpack.SCHEME_HTTP + hpack.encode_path(b"/t.S/M")


class Side(NoRole):
    """A role that keeps every stream and remembers what happened."""

    def __init__(self, *, limits=None, client=False, settings=None):
        self.sent = []
        self.h2 = H2Connection(limits or Limits(), self, emit=self.sent.append, client=client)
        self.reader = FrameReader(self.h2)
        self.streams = {}
        self.requests = []
        self.told = []
        self.feed(fr.settings(settings or {}))
        self.sent.clear()

    def feed(self, *frames):
        data = b"".join(frames)
        pos = self.reader.receive(memoryview(data), start=0, end=len(data))
        while self.reader.paused:
            pos = self.reader.receive(memoryview(data), start=pos, end=len(data))
        assert pos == len(data)

    def open(self, *sids, end=False):
        flags = fr.END_HEADERS | (fr.END_STREAM if end else 0)
        self.feed(*(fr.frame(fr.HEADERS, flags, sid, BLOCK) for sid in sids))
        return [self.streams.get(sid) for sid in sids]

    def frames(self):
        """What was sent since the last call, as (type, stream, payload)."""
        data, out = b"".join(self.sent), []
        self.sent.clear()
        while data:
            size = int.from_bytes(data[:3], "big")
            out.append((data[3], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
            data = data[9 + size :]
        return out

    def on_request(self, sid, fields, *, ended):
        self.requests.append((sid, [field[:2] for field in fields], ended))
        self.streams[sid] = Noted(self.h2, sid)
        return self.streams[sid]

    def on_oversized_request(self, sid, *, ended):
        self.told.append(("oversized", sid))

    def on_ping_ack(self, payload):
        self.told.append(("ping", payload))

    def on_goaway(self, last_sid, code):
        self.told.append(("goaway", last_sid, code))


class Noted(Stream):
    """A stream that counts its calls."""

    def __init__(self, h2, sid):
        super().__init__(h2, sid)
        self.woken = 0
        self.told = 0
        self.headers = []
        self.resets = []

    def on_headers(self, fields):
        self.headers.append([field[:2] for field in fields])

    def on_data(self):
        self.told += 1

    def on_window(self):
        self.woken += 1

    def on_reset(self, code):
        self.resets.append(code)

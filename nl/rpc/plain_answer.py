"""The answer to a request that is HTTP/2 but not gRPC: a status and a line of text, once the request is complete."""

from __future__ import annotations

from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.h2.protocol import H2Connection
from nl.rpc.h2.stream import Stream


class PlainAnswer(Stream):
    """A stream that takes its request without keeping it, and answers as the client's windows allow."""

    __slots__ = ("_body", "_head")

    def __init__(self, core: H2Connection, sid: int, *, status: int, text: str) -> None:
        super().__init__(core, sid)
        self._body = memoryview(f"{text}\n".encode())
        length = b"%d" % len(self._body)
        fields = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", length)]
        if status == 405:
            fields.append((b"allow", b"POST"))
        self._head = hpack.encode_status(status) + hpack.encode(fields)

    def on_data(self) -> None:
        """Forgets the request's data; its end is the sign to answer."""
        self.discard()
        if self.recv_closed and self._head:
            core = self.core
            core.emit(fr.header_frames(self._head, self.sid, end_stream=False, max_frame=core.peer_max_frame))
            self._head = b""
            self.on_window()

    def on_window(self) -> None:
        """Sends what fits; the end of the text closes the stream."""
        core = self.core
        while not self._head and len(self._body):
            size = min(self.send_window, core.send_window, core.peer_max_frame, len(self._body))
            if size <= 0:
                return
            piece, self._body = self._body[:size], self._body[size:]
            self.send_window -= size
            core.send_window -= size
            last = not len(self._body)
            core.emit(fr.header(size, fr.DATA, fr.END_STREAM if last else 0, self.sid) + piece)
            core.sent_since_ping = True
            if last:
                self.send_closed = True
                core.close_if_done(self)

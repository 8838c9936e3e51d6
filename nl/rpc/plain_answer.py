"""The answer to a request that is HTTP/2 but not gRPC: a status and a line of text.

It goes out once the request is complete, or is a long one: nothing opens the stream's window for more.
"""

from __future__ import annotations

from collections.abc import Callable

from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.frames import ErrorCode
from nl.rpc.h2.protocol import H2Connection
from nl.rpc.h2.stream import Stream

PATIENCE = 64 * 1024
"""Bytes of a request after which the answer does not wait for its end, which may never come."""


class PlainAnswer(Stream):
    """A stream that takes its request without keeping it, and answers as the client's windows allow."""

    __slots__ = ("_body", "_head", "_on_over", "_taken")

    def __init__(
        self, h2: H2Connection, sid: int, *, status: int, text: str, head_only: bool, on_over: Callable[[], None]
    ) -> None:
        """`on_over` is called when the stream is gone, answered or reset."""
        super().__init__(h2, sid)
        self._on_over = on_over
        self._taken = 0
        body = f"{text}\n".encode()
        fields = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
        if status == 405:
            fields.append((b"allow", b"POST"))
        self._head = hpack.encode_status(status) + hpack.encode(fields)
        self._body = memoryview(b"" if head_only else body)

    def on_data(self) -> None:
        """Forgets the request's data; its end is the sign to answer, or that it is a long one."""
        self._taken += self.held
        self.discard()
        if self.headers_sent or not (self.recv_closed or self._taken > PATIENCE):
            return
        self.headers_sent = True
        h2, ended = self.h2, not len(self._body)
        h2.emit(fr.header_frames(self._head, self.sid, end_stream=ended, max_frame=h2.peer_max_frame))
        if ended:
            self._end()
        else:
            self.on_window()

    def on_window(self) -> None:
        """Sends what fits; the end of the text closes the stream."""
        h2 = self.h2
        while len(self._body):
            size = min(self.send_credit, h2.peer_max_frame, len(self._body))
            if size <= 0:
                h2.wait_for_credit(self)
                h2.wake_next()
                return
            piece, self._body = self._body[:size], self._body[size:]
            self.charge(size)
            last = not len(self._body)
            h2.emit(fr.header(size, fr.DATA, fr.END_STREAM if last else 0, self.sid) + piece)
        self._end()

    def on_reset(self, code: int) -> None:
        """Nothing is left to say."""
        self.h2.wake_next()
        self._on_over()

    def _end(self) -> None:
        self.send_closed = True
        if self.recv_closed:
            self.h2.close_if_done(self)
        else:
            self.h2.reset_stream(self.sid, ErrorCode.NO_ERROR)
        self.h2.wake_next()
        self._on_over()

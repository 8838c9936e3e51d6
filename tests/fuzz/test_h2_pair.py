"""Both roles of the HTTP/2 core wired together through memory, at random: however the bytes are cut, whatever is
reset, refused or resized, lawful peers keep their connection, every byte that is not given up arrives in order, and
when all is done no credit is lost or made.

The machine is the application of both sides. It keeps to the rules itself (it sends within its credit, consumes what it
gets, answers requests), so that everything that goes wrong is the core's doing.
"""

from __future__ import annotations

from collections import deque

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.frames import ErrorCode, Setting
from nl.rpc.h2.limits import Limits
from nl.rpc.h2.protocol import H2Connection, NoRole
from nl.rpc.h2.reader import FrameReader
from nl.rpc.h2.stream import Stream
from nl.rpc.hpack import Field

PATTERN = bytes(range(251)) * 2000
REQUEST = hpack.METHOD_POST + hpack.SCHEME_HTTP + hpack.encode_path(b"/t.S/M")
SIDES = st.sampled_from(["client", "server"])
SIZES = st.one_of(st.integers(1, 300), st.sampled_from([16_383, 16_384, 16_385]), st.integers(40_000, 200_000))
WINDOWS = st.one_of(st.integers(0, 3000), st.sampled_from([0, 1, 16_384, 65_535, 200_000]))
MAX_STREAMS = 4


class Pipe(Stream):
    """One side of a stream: it sends PATTERN over and over, as far as it is told to and has credit for."""

    def __init__(self, side: Side, sid: int) -> None:
        super().__init__(side.h2, sid)
        self.side = side
        self.backlog = 0
        self.sent = self.got = 0
        self.ends = False
        """The backlog is the last of it."""
        self.aborted = False
        """Given up by either side: what was on its way need not arrive."""
        self.cut_short = False
        """Answered before all of the request was here, which need not arrive, then."""

    def push(self) -> None:
        """Sends what there is credit for; asks to be called again for the rest."""
        h2 = self.h2
        while self.backlog and not self.send_closed:
            size = min(self.send_credit, h2.peer_max_frame, self.backlog)
            if size <= 0:
                h2.wait_for_credit(self)
                return
            self.charge(size)
            self.backlog -= size
            payload = PATTERN[self.sent % 251 : self.sent % 251 + size]
            self.sent += size
            last = self.ends and not self.backlog
            h2.emit(fr.frame(fr.DATA, fr.END_STREAM if last else 0, self.sid, payload))
            if last:
                self.finish()
        h2.wake_next()

    def end(self, *, trailers: bool = False) -> None:
        """No more than the backlog; with trailers, if there is none."""
        if self.ends or self.send_closed:
            return
        self.ends = True
        if not self.backlog:
            if trailers:
                self.h2.emit(fr.frame(fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, self.sid, hpack.TRAILERS_OK))
            else:
                self.h2.emit(fr.frame(fr.DATA, fr.END_STREAM, self.sid))
            self.finish()

    def finish(self) -> None:
        self.send_closed = True
        self.h2.close_if_done(self)

    def abort(self) -> None:
        """Gives the stream up from this side."""
        self.aborted = True
        self.h2.reset_stream(self.sid, ErrorCode.CANCEL)
        self.h2.wake_next()

    def take(self, count: int) -> None:
        """Consumes so much of what has arrived, which must be what was sent."""
        taken = 0
        while self.chunks and taken < count:
            view, owner = self.chunks.popleft()
            size = min(len(view), count - taken)
            if size < len(view):
                self.chunks.appendleft((view[size:], owner))
            at = self.got % 251
            assert view[:size] == PATTERN[at : at + size], f"stream {self.sid} is garbled at {self.got}"
            self.got += size
            taken += size
            if owner is not None:
                owner.release(size)
        self.consumed(taken)

    def on_window(self) -> None:
        self.push()

    def on_reset(self, code: int) -> None:
        self.aborted = code != ErrorCode.NO_ERROR
        self.h2.stop_waiting(self)
        self.h2.wake_next()


class Side(NoRole):
    """One end of the connection, with the bytes that are on their way from it."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.wire = bytearray()
        self.written = self.delivered = 0
        self.acknowledgements: deque[int] = deque()
        """Where on the wire this side's acknowledgements of SETTINGS end."""
        self.pipes: dict[int, Pipe] = {}
        self.going_away = False
        self.h2 = H2Connection(limits, self, emit=self.emit, client=name == "client")
        self.pending = deque([self.h2.stream_window])
        """Windows that this side has announced and that are not acknowledged yet."""
        self.reader = FrameReader(self.h2)
        self._unread = bytearray()
        self.h2.preface()
        if name == "client":  # whoever reads the preface is not the core
            del self.wire[: len(fr.PREFACE)]
            self.written -= len(fr.PREFACE)

    def emit(self, data: bytes) -> None:
        if data[3] == fr.RST_STREAM:
            code = fr.U32.unpack_from(data, fr.HEADER_SIZE)[0]
            assert code in (ErrorCode.CANCEL, ErrorCode.NO_ERROR), f"{self.name} resets with {code} what is lawful"
        self.wire += data
        self.written += len(data)
        if data == fr.SETTINGS_ACK:
            self.acknowledgements.append(self.written)

    def receive(self, data: bytes) -> None:
        self._unread += data
        view = memoryview(bytes(self._unread))
        at = 0
        while True:
            at = self.reader.receive(view, start=at, end=len(view))
            if not self.reader.paused:
                break
        del self._unread[:at]

    # -- what the core says

    def on_request(self, sid: int, fields: list[Field], *, ended: bool) -> Stream | None:
        assert [field[1] for field in fields[:3]] == [b"POST", b"http", b"/t.S/M"]
        pipe = self.pipes[sid] = Pipe(self, sid)
        self.emit(fr.frame(fr.HEADERS, fr.END_HEADERS, sid, hpack.RESPONSE))
        return pipe

    def on_goaway(self, last_sid: int, code: int) -> None:
        """Calls above the last one that will be looked at have not happened; the client forgets them."""
        assert code == ErrorCode.NO_ERROR
        self.going_away = True
        for sid in [sid for sid in self.h2.streams if sid > last_sid]:
            pipe = self.pipes[sid]
            pipe.abort()

    # -- what the application does

    def open(self, *, ended: bool) -> None:
        sid = self.h2.take_sid()
        pipe = self.pipes[sid] = Pipe(self, sid)
        self.h2.streams[sid] = pipe
        flags = fr.END_HEADERS | (fr.END_STREAM if ended else 0)
        self.emit(fr.frame(fr.HEADERS, flags, sid, REQUEST))
        if ended:
            pipe.ends = True
            pipe.finish()

    def resize(self, size: int) -> None:
        """Announces another window for streams."""
        self.emit(fr.settings({Setting.INITIAL_WINDOW_SIZE: size}))
        self.pending.append(size)

    def acknowledged(self) -> None:
        """The other side has taken the settings: from here on they hold for what it sends."""
        size = self.pending.popleft()
        change = size - self.h2.stream_window
        self.h2.stream_window = size
        for stream in self.h2.streams.values():
            window = stream.recv_window
            window.size += change
            window.left += change
            window.announce = window.size // 2
            increment = window.give_back(0)
            if increment and not stream.recv_closed:
                self.emit(fr.window_update(stream.sid, increment))


class Pair(RuleBasedStateMachine):
    @initialize(
        stream_window=st.sampled_from([65_535, 300_000]),
        connection_window=st.sampled_from([65_535, 100_000]),
        requests=st.integers(0, 3),
    )
    def connect(self, stream_window: int, connection_window: int, requests: int) -> None:
        limits = Limits(stream_window=stream_window, connection_window=connection_window, max_concurrent_streams=100)
        self.sides = {name: Side(name, limits) for name in ("client", "server")}
        self.clock = 0.0
        for _ in range(requests):
            self.client.open(ended=False)
        self.deliver_everything()

    @property
    def client(self) -> Side:
        return self.sides["client"]

    @property
    def server(self) -> Side:
        return self.sides["server"]

    def other(self, name: str) -> Side:
        return self.server if name == "client" else self.client

    def pick(self, name: str, index: int) -> Pipe | None:
        """One of the live streams of a side."""
        streams = list(self.sides[name].h2.streams.values())
        return streams[index % len(streams)] if streams else None  # type: ignore[return-value]

    @rule(ended=st.booleans())
    def request(self, ended: bool) -> None:
        client = self.client
        if not client.going_away and len(client.h2.streams) < MAX_STREAMS:
            client.open(ended=ended)

    @rule(name=SIDES, index=st.integers(0, 5), size=SIZES, ends=st.booleans())
    def send(self, name: str, index: int, size: int, ends: bool) -> None:
        pipe = self.pick(name, index)
        if pipe is not None and not pipe.ends and not pipe.send_closed:
            waits = pipe.backlog > 0
            pipe.backlog += size
            if ends:
                pipe.ends = True
            if not waits:
                pipe.push()

    @rule(name=SIDES, index=st.integers(0, 5), trailers=st.booleans())
    def end(self, name: str, index: int, trailers: bool) -> None:
        pipe = self.pick(name, index)
        if pipe is not None:
            pipe.end(trailers=trailers)

    @rule(index=st.integers(0, 5))
    def answer_early(self, index: int) -> None:
        """The server has said everything and needs no more of the request (RFC 9113, section 8.1)."""
        pipe = self.pick("server", index)
        if pipe is not None and not pipe.recv_closed and not pipe.backlog:
            pipe.end()
            self.server.h2.reset_stream(pipe.sid, ErrorCode.NO_ERROR)
            pipe.cut_short = True

    @rule(name=SIDES, index=st.integers(0, 5), padding=st.integers(0, 255))
    def send_padding(self, name: str, index: int, padding: int) -> None:
        """It counts as DATA, and nobody consumes it."""
        pipe = self.pick(name, index)
        if pipe is not None and not pipe.send_closed and not pipe.backlog and pipe.send_credit >= padding + 1:
            pipe.charge(padding + 1)
            pipe.h2.emit(fr.frame(fr.DATA, fr.PADDED, pipe.sid, bytes([padding]) + bytes(padding)))

    @rule(name=SIDES, count=st.one_of(st.integers(1, 50), st.integers(1, 100_000)))
    def deliver(self, name: str, count: int) -> None:
        """Bytes arrive from that side."""
        sender, receiver = self.sides[name], self.other(name)
        count = min(count, len(sender.wire))
        while count:
            mark = sender.acknowledgements[0] - sender.delivered if sender.acknowledgements else count
            piece = min(count, mark)
            data = bytes(sender.wire[:piece])
            del sender.wire[:piece]
            sender.delivered += piece
            receiver.receive(data)
            if sender.acknowledgements and sender.acknowledgements[0] == sender.delivered:
                sender.acknowledgements.popleft()
                receiver.acknowledged()
            count -= piece

    @rule()
    def deliver_everything(self) -> None:
        for name in ("client", "server"):
            self.deliver(name, len(self.sides[name].wire))

    @rule(name=SIDES, index=st.integers(0, 5), count=st.one_of(st.integers(1, 2000), st.just(1 << 20)))
    def consume(self, name: str, index: int, count: int) -> None:
        """Also of streams that are over and not read to their end."""
        unread = [pipe for pipe in self.sides[name].pipes.values() if pipe.held]
        if unread:
            unread[index % len(unread)].take(count)

    @rule(name=SIDES, index=st.integers(0, 5))
    def reset(self, name: str, index: int) -> None:
        pipe = self.pick(name, index)
        if pipe is not None:
            pipe.abort()

    @rule(name=SIDES, size=WINDOWS)
    def resize(self, name: str, size: int) -> None:
        self.sides[name].resize(size)

    @rule(name=SIDES)
    def ping(self, name: str) -> None:
        self.sides[name].emit(fr.ping(b"12345678"))

    @precondition(lambda self: not self.server.going_away)
    @rule(at_once=st.booleans())
    def go_away(self, at_once: bool) -> None:
        """In one step, or first without a last stream, as a server that drains does."""
        server = self.server
        if at_once:
            server.going_away = True
            server.h2.goaway(ErrorCode.NO_ERROR)
        else:
            server.h2.goaway(ErrorCode.NO_ERROR, last_sid=fr.MAX_STREAM_ID)

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds: float) -> None:
        self.clock += seconds
        for side in self.sides.values():
            side.h2.now = self.clock

    @invariant()
    def windows_hold(self) -> None:
        """What one may still send, with all that is on its way, is never more than the other takes."""
        for name, side in getattr(self, "sides", {}).items():
            window = side.h2.recv_window
            assert window.left >= 0
            assert self.other(name).h2.send_window >= 0
            held = sum(pipe.held for pipe in side.pipes.values())
            assert window.left + held + window.owed <= window.size

    def settle(self) -> None:
        """All bytes arrive, everything is consumed, until nothing moves any more."""
        for _ in range(10_000):
            for side in self.sides.values():
                for pipe in side.pipes.values():
                    pipe.take(1 << 30)
            if not self.client.wire and not self.server.wire:
                return
            for name in ("client", "server"):
                self.deliver(name, len(self.sides[name].wire))
        raise AssertionError("it never ends")

    def teardown(self) -> None:
        if not hasattr(self, "sides"):
            return
        for side in self.sides.values():  # with a window of 0 nothing would ever move
            side.resize(16_384)
        self.settle()
        self.everything_waiting_was_sent()
        self.both_sides_agree()
        for side in self.sides.values():
            for stream in list(side.h2.streams.values()):
                stream.end()  # type: ignore[attr-defined]
        self.settle()
        self.nothing_is_left()

    def everything_waiting_was_sent(self) -> None:
        for side in self.sides.values():
            for pipe in side.h2.streams.values():
                assert pipe.backlog == 0, f"{side.name}: stream {pipe.sid} still waits"  # type: ignore[attr-defined]
        for sid, pipe in self.client.pipes.items():
            twin = self.server.pipes.get(sid)
            if twin is not None and not pipe.aborted and not twin.aborted:
                assert pipe.got == twin.sent, f"stream {sid} has lost a part of its answer"
                assert twin.cut_short or twin.got == pipe.sent, f"stream {sid} has lost a part of its request"

    def both_sides_agree(self) -> None:
        for name, side in self.sides.items():
            other = self.other(name)
            window = side.h2.recv_window
            assert window.left == other.h2.send_window
            assert window.left + window.owed == window.size
            assert side.h2.streams.keys() == other.h2.streams.keys()
            for sid, stream in side.h2.streams.items():
                assert stream.held == 0
                if not stream.recv_closed:
                    assert stream.recv_window.left == other.h2.streams[sid].send_window
                    assert stream.recv_window.left + stream.recv_window.owed == stream.recv_window.size

    def nothing_is_left(self) -> None:
        for side in self.sides.values():
            assert not side.h2.streams
            assert not side.h2.blocked and not side.h2._starved, "who waits for credit is over"
            window = side.h2.recv_window
            assert window.left + window.owed == window.size
        self.both_sides_agree()


TestPair = Pair.TestCase
TestPair.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)  # fmt: skip

"""Hostile clients at full speed, one kind each.

`python -m tests.support.hostile KIND PORT SECONDS` is one such client: a process of its own, and a nice one, since on
the same machine it would else take from the server's processor time what a client elsewhere could not. All of them
speak through blocking sockets and keep to no rule but their own. Used by tests/integration/test_hostile_clients.py and
by `./dev bench hostile`.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from nl.pb import bytestream, reapi
from nl.pb.codec import encode
from nl.rpc import frames as fr
from nl.rpc import hpack

CAS = "/build.bazel.remote.execution.v2.ContentAddressableStorage/"
READ, WRITE = "/google.bytestream.ByteStream/Read", "/google.bytestream.ByteStream/Write"
WATCH = "/grpc.health.v1.Health/Watch"
WIDE = {fr.Setting.INITIAL_WINDOW_SIZE: fr.MAX_WINDOW}
WIDE_CONNECTION = fr.window_update(0, fr.MAX_WINDOW - fr.DEFAULT_WINDOW)
SMALL = random.Random(1).randbytes(15_000)
LARGE = random.Random(2).randbytes(3 << 20)
_TIMEOUT_S = 2
_RESET = b"\1\0\0\0\0\0\0\0"
"""struct linger: close() sends a reset."""
_GRPC = hpack.encode([(b":authority", b"x"), (b"te", b"trailers"), (b"content-type", b"application/grpc")])


class Gone(Exception):
    """The server has ended the connection, or takes nothing more."""


class Peer:
    """One connection that may break every rule."""

    def __init__(
        self, port: int, *, settings: dict[fr.Setting, int] | None = None, hello: bool = True, small: bool = False
    ) -> None:
        self._next = 1
        self.sock = socket.socket()
        if small:  # what it does not read stays with the server
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.settimeout(_TIMEOUT_S)
        try:
            self.sock.connect(("127.0.0.1", port))
        except OSError as exc:
            raise Gone(str(exc)) from exc
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hello:
            self.send(fr.PREFACE + fr.settings(settings or {}))

    def send(self, *parts: bytes) -> None:
        try:
            self.sock.sendall(b"".join(parts))
        except OSError as exc:
            self.sock.close()
            raise Gone(str(exc)) from exc

    def new_sid(self) -> int:
        self._next += 2
        return self._next - 2

    def drain(self) -> int:
        """Reads what is there; how much."""
        total = 0
        self.sock.setblocking(False)
        try:
            while data := self.sock.recv(1 << 20):
                total += len(data)
        except BlockingIOError:
            self.sock.settimeout(_TIMEOUT_S)
            return total
        except OSError as exc:
            raise Gone(str(exc)) from exc
        raise Gone("closed")

    def cut(self) -> None:
        """Ends it with a reset instead of a farewell."""
        with suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()


def head(sid: int, method: str, *, end: bool = False, extra: bytes = b"") -> bytes:
    block = hpack.METHOD_POST + hpack.SCHEME_HTTP + hpack.encode_path(method.encode()) + _GRPC + extra
    return fr.frame(fr.HEADERS, fr.END_HEADERS | (fr.END_STREAM if end else 0), sid, block)


def data(sid: int, message: bytes, *, end: bool = True) -> bytes:
    """One message in DATA frames."""
    whole = fr.PREFIX.pack(0, len(message)) + message
    pieces = [whole[at : at + fr.MIN_FRAME_SIZE] for at in range(0, len(whole), fr.MIN_FRAME_SIZE)]
    last = len(pieces) - 1
    return b"".join(fr.frame(fr.DATA, int(end and at == last), sid, piece) for at, piece in enumerate(pieces))


def call(sid: int, method: str, message: bytes, *, end: bool = True) -> bytes:
    return head(sid, method) + data(sid, message, end=end)


def digest(blob: bytes) -> reapi.Digest:
    return reapi.Digest(hash=hashlib.sha256(blob).hexdigest(), size_bytes=len(blob))


def update(*blobs: bytes) -> bytes:
    items = [reapi.BatchUpdateBlobsRequestRequest(digest=digest(blob), data=blob) for blob in blobs]
    return encode(reapi.BatchUpdateBlobsRequest(requests=items))


def read_request(blob: bytes) -> bytes:
    of = digest(blob)
    return encode(bytestream.ReadRequest(resource_name=f"blobs/{of.hash}/{of.size_bytes}"))


def write_request(name: str, chunk: bytes) -> bytes:
    of = digest(name.encode())
    return encode(bytestream.WriteRequest(resource_name=f"uploads/{name}/blobs/{of.hash}/{1 << 30}", data=chunk))


BATCH_READ = encode(reapi.BatchReadBlobsRequest(digests=[digest(SMALL)]))
READ_LARGE = read_request(LARGE)


# -- the kinds: each goes on until its time is over, and begins anew where it has been cut off -------------------------


class Attack:
    """What one hostile process has."""

    def __init__(self, port: int, seconds: float) -> None:
        self.port = port
        self.until = time.monotonic() + seconds
        self.made = 0
        self._kept: list[Peer] = []

    @property
    def on(self) -> bool:
        return time.monotonic() < self.until

    def peer(self, **how: Any) -> Peer:
        """A connection. It stays open, also unused, as long as not more than 2,000 do."""
        made = Peer(self.port, **how)
        self.made += 1
        self._kept = [*self._kept[-2000:], made]
        return made

    def repeat(self, begin: Callable[[], Peer], piece: Callable[[Peer], bytes], *, reads: bool = True) -> None:
        """Sends pieces, reading what comes, over one connection at a time."""
        while self.on:
            with suppress(Gone):
                peer = begin()
                while self.on:
                    peer.send(piece(peer))
                    if reads:
                        peer.drain()

    def hold(self, count: int, begin: Callable[[int], Peer]) -> None:
        """So many connections at a time, each made anew when the server has ended it."""
        held: list[Peer] = []
        while self.on:
            if len(held) == count:
                time.sleep(0.05)
                held = [peer for peer in held if not _gone(peer)]
                continue
            try:
                held.append(begin(self.made))
            except Gone:
                time.sleep(0.01)


def _gone(peer: Peer) -> bool:
    try:
        peer.drain()
    except Gone:
        peer.sock.close()
        return True
    return False


def settings_times_streams(attack: Attack) -> None:
    """1,000 streams, and SETTINGS frames with 2,730 entries that each move all of their windows."""
    entries = b"".join(fr.SETTING.pack(fr.Setting.INITIAL_WINDOW_SIZE, 65_535 + (k & 1)) for k in range(2730))
    frame = fr.frame(fr.SETTINGS, 0, 0, entries)

    def begin() -> Peer:
        peer = attack.peer()
        peer.send(*(call(sid, WATCH, b"", end=False) for sid in range(1, 2001, 2)))
        return peer

    attack.repeat(begin, lambda peer: frame)


def unread_replies(attack: Attack) -> None:
    """30 connections that ask for 15 MB each and read nothing, not even that they are over."""
    for _ in range(30):
        with suppress(Gone):
            peer = attack.peer(settings=WIDE, small=True)
            peer.send(WIDE_CONNECTION, *(call(sid, CAS + "BatchReadBlobs", BATCH_READ) for sid in range(1, 2001, 2)))
    time.sleep(max(0.0, attack.until - time.monotonic()))


def pinned_buffers(attack: Attack) -> None:
    """5,000 bytes that nobody reads, in front of an upload that keeps the connection's buffer going."""

    def begin(number: int) -> Peer:
        peer = attack.peer()
        chunk = write_request(f"pin-{os.getpid()}-{number}", bytes(60_000))
        unread = call(1, WATCH, b"", end=False) + fr.frame(fr.DATA, 0, 1, bytes(5000))
        peer.send(unread, call(3, WRITE, chunk, end=False))
        return peer

    attack.hold(300, begin)


def idle_connections(attack: Attack) -> None:
    """1,000 that say hello, and nothing more."""
    attack.hold(1000, lambda number: attack.peer())


def cut_reads_and_writes(attack: Attack) -> None:
    """Connections cut in the middle of a Read or a Write."""
    while attack.on:
        with suppress(Gone):
            peer = attack.peer(settings=WIDE)
            number = attack.made
            if number % 2:
                peer.send(WIDE_CONNECTION, call(1, READ, READ_LARGE))
                with suppress(OSError):
                    peer.sock.recv(65_536)
            else:
                peer.send(call(1, WRITE, write_request(f"cut-{os.getpid()}-{number}", bytes(150_000)), end=False)[:-9])
            peer.cut()


def zero_window_readers(attack: Attack) -> None:
    """Reads of a large blob whose client opens no window: 50 on each connection."""

    def begin(number: int) -> Peer:
        peer = attack.peer(settings={fr.Setting.INITIAL_WINDOW_SIZE: 0})
        peer.send(*(call(sid, READ, READ_LARGE) for sid in range(1, 101, 2)))
        return peer

    attack.hold(10, begin)


def stalled_uploads(attack: Attack) -> None:
    """Writes that begin and bring nothing more: 50 on each connection."""

    def begin(number: int) -> Peer:
        peer = attack.peer()
        name = f"stall-{os.getpid()}-{number}"
        begun = (write_request(f"{name}-{sid}", bytes(1000)) for sid in range(1, 101, 2))
        peer.send(*(call(peer.new_sid(), WRITE, each, end=False) for each in begun))
        return peer

    attack.hold(10, begin)


def handshake_hoarders(attack: Attack) -> None:
    """Connections that say nothing, or half of a hello."""

    def begin(number: int) -> Peer:
        peer = attack.peer(hello=False)
        peer.send((b"", fr.PREFACE[:10], b"\x16\x03\x01", fr.PREFACE)[number % 4])
        return peer

    attack.hold(500, begin)


def window_herd(attack: Attack) -> None:
    """1,000 Reads that wait for the connection's window, which opens by little."""

    def begin() -> Peer:
        peer = attack.peer(settings=WIDE)
        peer.send(*(call(sid, READ, READ_LARGE) for sid in range(1, 2001, 2)))
        return peer

    def piece(peer: Peer) -> bytes:
        got = peer.drain()
        return fr.window_update(0, got) if got >= 256 else b""

    attack.repeat(begin, piece, reads=False)


def reset_storm(attack: Attack) -> None:
    """Calls that are reset as soon as they are made."""

    def piece(peer: Peer) -> bytes:
        some = [peer.new_sid() for _ in range(50)]
        return b"".join(
            call(sid, CAS + "BatchReadBlobs", BATCH_READ) + fr.rst_stream(sid, fr.ErrorCode.CANCEL) for sid in some
        )

    attack.repeat(attack.peer, piece)


def _flood(frames: bytes, *, reads: bool = True) -> Callable[[Attack], None]:
    def run(attack: Attack) -> None:
        def begin() -> Peer:
            peer = attack.peer()
            peer.send(call(1, WATCH, b"", end=False))
            return peer

        attack.repeat(begin, lambda peer: frames, reads=reads)

    return run


def header_bombs(attack: Attack) -> None:
    """Requests with more headers than are taken."""
    extra = hpack.encode([(b"x-%d" % number, b"v" * 40) for number in range(190)])

    def piece(peer: Peer) -> bytes:
        return b"".join(head(peer.new_sid(), WATCH, end=True, extra=extra) for _ in range(20))

    attack.repeat(attack.peer, piece)


def continuation_floods(attack: Attack) -> None:
    """Header blocks that never end."""
    start = fr.frame(fr.HEADERS, 0, 1, hpack.METHOD_POST)
    rest = fr.frame(fr.CONTINUATION, 0, 1, b"") * 200
    more = fr.frame(fr.CONTINUATION, 0, 1, hpack.encode([(b"x", b"y" * 8000)])) * 4

    def begin() -> Peer:
        peer = attack.peer()
        peer.send(start)
        return peer

    attack.repeat(begin, lambda peer: rest if attack.made % 2 else more)


def hpack_bombs(attack: Attack) -> None:
    """A header of 4 KB goes into the table once, and is referred to 8,000 times."""
    bomb = b"\x40\x01a\x7f\x81\x1e" + b"v" * 3968 + b"\xbe" * 8000
    attack.repeat(attack.peer, lambda peer: head(peer.new_sid(), WATCH, end=True, extra=bomb))


def one_byte_frames(attack: Attack) -> None:
    """Messages in DATA frames of one byte each."""
    ones = fr.frame(fr.DATA, 0, 1, b"\0") * 2000

    def begin() -> Peer:
        peer = attack.peer()
        peer.send(head(1, WRITE), fr.frame(fr.DATA, 0, 1, fr.PREFIX.pack(0, 2 << 20)))
        return peer

    attack.repeat(begin, lambda peer: ones)


KINDS: dict[str, Callable[[Attack], None]] = {
    "settings_times_streams": settings_times_streams,
    "unread_replies": unread_replies,
    "pinned_buffers": pinned_buffers,
    "idle_connections": idle_connections,
    "cut_reads_and_writes": cut_reads_and_writes,
    "zero_window_readers": zero_window_readers,
    "stalled_uploads": stalled_uploads,
    "handshake_hoarders": handshake_hoarders,
    "window_herd": window_herd,
    "reset_storm": reset_storm,
    "ping_flood": _flood(fr.ping(b"12345678") * 500),
    "unread_ping_flood": _flood(fr.ping(b"12345678") * 500, reads=False),
    "settings_flood": _flood(fr.settings({}) * 500),
    "empty_data_flood": _flood(fr.frame(fr.DATA, 0, 1) * 500),
    "header_bombs": header_bombs,
    "continuation_floods": continuation_floods,
    "hpack_bombs": hpack_bombs,
    "one_byte_frames": one_byte_frames,
}


def main(kind: str, port: str, seconds: str) -> None:
    os.nice(10)
    attack = Attack(int(port), float(seconds))
    KINDS[kind](attack)
    print(attack.made)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A well-behaved client beside hostile ones: how long its calls take, and what the server needs meanwhile."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from nl.pb import reapi
from nl.pb.codec import encode
from nl.rpc import frames as fr
from tests.support import hostile
from tests.support.processes import ROOT, Server, cpu_seconds, descriptors, rss_mib

FIND = encode(reapi.FindMissingBlobsRequest(blob_digests=[hostile.digest(b"not there")]))
_CALLS_PER_CONNECTION = 50
_PAUSE_S = 0.002
"""Between two calls: this client is to wait for the server, not to load it."""
_PERIOD_S = 0.005
"""How often a client that does not wait for its own answers would call."""


class Caller:
    """One connection of its own, one unary call at a time."""

    def __init__(self, port: int) -> None:
        self._peer = hostile.Peer(port)
        self._peer.sock.settimeout(60)
        self._stream = self._peer.sock.makefile("rb")

    def call(self, method: str, message: bytes) -> None:
        """Waits for the answer, which must be OK."""
        sid = self._peer.new_sid()
        self._peer.send(hostile.call(sid, method, message))
        while True:
            high, low, kind, flags, of = fr.HEADER.unpack(self._stream.read(fr.HEADER_SIZE))
            payload = self._stream.read(high << 8 | low)
            if kind == fr.SETTINGS and not flags & fr.ACK:
                self._peer.send(fr.SETTINGS_ACK)
            if kind == fr.HEADERS and flags & fr.END_STREAM and of == sid:
                if b"grpc-status\x010" not in payload:
                    raise AssertionError(f"{method} was answered with {payload!r}")
                return

    def close(self) -> None:
        self._stream.close()
        self._peer.sock.close()


@dataclass
class Bystander:
    """Calls from a thread, over a new connection every now and then. Times in seconds."""

    port: int
    times: list[float] = field(default_factory=list)
    """Of calls over a connection that stands."""
    first_times: list[float] = field(default_factory=list)
    """Of those that had to connect."""
    errors: list[str] = field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            began = time.perf_counter()
            times, caller = self.first_times, None
            try:
                caller = Caller(self.port)
                for _ in range(_CALLS_PER_CONNECTION):
                    caller.call(hostile.CAS + "FindMissingBlobs", FIND)
                    times.append(time.perf_counter() - began)
                    times = self.times
                    if stop.wait(_PAUSE_S):
                        break
                    began = time.perf_counter()
            except Exception as error:  # noqa: BLE001 - any failure is a result
                self.errors.append(f"{type(error).__name__}: {error}")
                times.append(time.perf_counter() - began)
            finally:
                if caller is not None:
                    caller.close()


@contextmanager
def calling(port: int) -> Iterator[Bystander]:
    """A bystander at work for the length of a block."""
    bystander, stop = Bystander(port), threading.Event()
    thread = threading.Thread(target=bystander.run, args=(stop,))
    thread.start()
    try:
        yield bystander
    finally:
        stop.set()
        thread.join(70)


@dataclass(frozen=True)
class Outcome:
    """What one kind of hostile client has come to."""

    kind: str
    calls: int
    p50_ms: float
    p99_ms: float
    worst_ms: float
    connecting_ms: float
    """The longest that a call took which had to connect."""
    rss_before: float
    rss_peak: float
    rss_after: float
    """MiB; a second after the last hostile connection has gone."""
    descriptors_peak: int
    connections: int
    """How many the hostile client has made."""
    cpu_s: float
    errors: tuple[str, ...]


def _as_if_on_time(times: list[float]) -> list[float]:
    """Sorted, with the calls that were not made because one before them took so long: else a stall of a second would
    be one call of some hundreds, and no percentile would show it.
    """
    found = list(times)
    for each in times:
        found += [each - late * _PERIOD_S for late in range(1, int(each / _PERIOD_S))]
    return sorted(found)


def prepare(port: int) -> None:
    """Uploads what the hostile clients will ask for."""
    for blob in (hostile.SMALL, hostile.LARGE):
        caller = Caller(port)
        caller.call(hostile.CAS + "BatchUpdateBlobs", hostile.update(blob))
        caller.close()


def beside(kind: str | None, server: Server, *, seconds: float) -> Outcome:
    """A bystander's calls while a hostile client of that kind does its worst, or, with None, while nobody does."""
    prepare(server.port)
    before, cpu = rss_mib(server.pid), cpu_seconds(server.pid)
    rss, files = [before], [descriptors(server.pid)]
    with calling(server.port) as bystander:
        if kind is None:
            command = [sys.executable, "-c", f"import time; time.sleep({seconds}); print(0)"]
        else:
            command = [sys.executable, "-m", "tests.support.hostile", kind, str(server.port), str(seconds)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            try:
                while process.poll() is None:
                    rss.append(rss_mib(server.pid))
                    files.append(descriptors(server.pid))
                    time.sleep(0.02)
                assert process.stdout is not None
                made = int(process.stdout.read())
            finally:
                process.kill()
    time.sleep(1)
    times = _as_if_on_time(bystander.times)
    return Outcome(
        kind=kind or "nobody",
        calls=len(bystander.times) + len(bystander.first_times),
        p50_ms=times[len(times) // 2] * 1e3,
        p99_ms=times[len(times) * 99 // 100] * 1e3,
        worst_ms=times[-1] * 1e3,
        connecting_ms=max(bystander.first_times) * 1e3,
        rss_before=before,
        rss_peak=max(rss),
        rss_after=rss_mib(server.pid),
        descriptors_peak=max(files),
        connections=made,
        cpu_s=cpu_seconds(server.pid) - cpu,
        errors=tuple(bystander.errors[:3]),
    )

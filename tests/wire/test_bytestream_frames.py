"""Uploads in frames of any size, and what a client that goes away leaves behind."""

import contextlib
import gc
import os
import random
import socket
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
import trio

from nl.services.uploads import UploadSession
from tests.support.foreign import BYTES, BYTESTREAM, chunks, digest, read_name, upload_name
from tests.support.serving import Serving, memory_store, serving
from tests.support.stores import filesystem_store


@pytest.fixture(params=["memory", "filesystem"])
async def served(request, tmp_path):
    store = memory_store() if request.param == "memory" else filesystem_store(tmp_path / "cas")
    async with serving(store=store) as running:
        yield running


class Raw:
    """One Write on an HTTP/2 connection whose DATA frames are cut by the test."""

    def __init__(self, port: int) -> None:
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.connection.initiate_connection()
        self.connection.send_headers(1, [
            (":method", "POST"), (":scheme", "http"), (":path", BYTES + "Write"), (":authority", "x"),
            ("content-type", "application/grpc"), ("te", "trailers"),
        ])  # fmt: skip
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.events = []
        self.flush()

    def flush(self) -> None:
        self.sock.sendall(self.connection.data_to_send())

    def send(self, data: bytes, *, end: bool = False) -> None:
        self.connection.send_data(1, data, end_stream=end)
        self.flush()

    def receive(self) -> None:
        data = self.sock.recv(65536)
        assert data
        for event in self.connection.receive_data(data):
            self.events.append(event)
        self.flush()

    def finish(self) -> tuple[bytes, str]:
        """The reply's message and its grpc-status."""
        while not any(isinstance(event, h2.events.StreamEnded) for event in self.events):
            self.receive()
        body = b"".join(event.data for event in self.events if isinstance(event, h2.events.DataReceived))
        headers = [header for event in self.events for header in getattr(event, "headers", None) or []]
        self.sock.close()
        return body[5:], dict(headers)["grpc-status"]


def framed(messages) -> bytes:
    encoded = [message.SerializeToString() for message in messages]
    return b"".join(b"\0" + len(data).to_bytes(4, "big") + data for data in encoded)


@pytest.mark.parametrize("seed", range(12))
async def test_frames_may_be_cut_anywhere(served: Serving, seed):
    rng = random.Random(seed)
    data = rng.randbytes(rng.choice([0, 1, 300, 5000, 40_000]))
    messages = chunks(upload_name(digest(data)), data, size=rng.choice([7, 999, 1 << 20]) if data else 1)[:2000]
    if len(messages) == 2000:
        messages = chunks(upload_name(digest(data)), data, size=999)
    body = framed(messages)
    longest = rng.choice([1, 5, 100, 4000])

    def upload():
        raw = Raw(served.port)
        at = 0
        while at < len(body):
            size = rng.randint(1, longest) if at < 3000 else 4000
            raw.send(body[at : at + size], end=at + size >= len(body))
            at += size
        return raw.finish()

    reply, status = await trio.to_thread.run_sync(upload)
    assert status == "0"
    assert BYTESTREAM.WriteResponse.FromString(reply).committed_size == len(data)
    assert b"".join(await served.client.read(read_name(digest(data)))) == data


async def test_clients_that_go_away_in_the_middle_leave_nothing_behind(tmp_path):
    folder = tmp_path / "cas"
    async with serving(store=filesystem_store(folder), persist_s=0.05) as served:
        await served.client.put(b"warm")
        files, temporary = open_files(), temporary_files(folder)
        for count in range(30):
            data = os.urandom(60_000)
            body = framed(chunks(upload_name(digest(data)), data, size=20_000))

            def cut(body=body, count=count):
                raw = Raw(served.port)
                for at in range(0, 1 + count * 1000, 5000):
                    raw.send(body[at : at + 5000])
                raw.sock.close()

            await trio.to_thread.run_sync(cut)
        with trio.move_on_after(15):
            while left := leftovers(folder, files=files, temporary=temporary):
                await trio.sleep(0.02)
        assert not left
        assert b"".join(await served.client.read(read_name(digest(b"warm")))) == b"warm"


def open_files() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def temporary_files(folder) -> set[Path]:
    return {path for path in folder.with_name("cas.temp").rglob("*") if path.is_file()}


def leftovers(folder, *, files, temporary) -> list[object]:
    """Files open that were not before, temporary files, sessions that live."""
    gc.collect()
    sessions = [thing for thing in gc.get_objects() if isinstance(thing, UploadSession) and not thing.done]
    now = open_files()
    opened = [f"{fd} {path}" for fd, path in now.items() if fd not in files and len(now) > len(files)]
    return [*(temporary_files(folder) - temporary), *sessions, *opened]

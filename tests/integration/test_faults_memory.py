"""What clients cost: slow readers, large blobs, cut uploads, idle connections. Measured on the server's process."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio

from nl.rpc import frames as fr
from tests.integration.faults_site import dial, request, until
from tests.support.foreign import BYTES, BYTESTREAM, chunks, connect, digest, read_name, upload_name
from tests.support.processes import Server, all_in_one, descriptors, rss_mib

MIB = 1024 * 1024


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with all_in_one(tmp_path) as running:
        yield running


@contextmanager
def memory_watched(server: Server) -> Iterator[Callable[[], float]]:
    """The highest RSS of the server while the block runs: the kernel's own mark, reset at its start."""
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")

    def peak() -> float:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text())
        assert found
        return int(found[1]) / 1024

    yield peak


def receive_data(sock: socket.socket) -> int:
    """Reads frames until one of DATA has come; its length."""
    stream = sock.makefile("rb")
    while True:
        high, low, kind, _, _ = fr.HEADER.unpack(stream.read(fr.HEADER_SIZE))
        payload = stream.read(high << 8 | low)
        if kind == fr.DATA and payload:
            return len(payload)


def test_two_hundred_readers_with_tiny_windows_cost_little(server: Server) -> None:
    data = os.urandom(MIB) * 64
    of = digest(data)
    with grpc.insecure_channel(server.target) as channel:
        write = channel.stream_unary(BYTES + "Write", BYTESTREAM.WriteRequest.SerializeToString)
        write(iter(chunks(upload_name(of), data, size=MIB)), timeout=60)
    before = rss_mib(server.pid)
    read = request(1, BYTES + "Read", BYTESTREAM.ReadRequest(resource_name=read_name(of)).SerializeToString(), end=True)
    with ExitStack() as open_sockets:
        readers = [
            open_sockets.enter_context(dial(server, read, settings={fr.Setting.INITIAL_WINDOW_SIZE: 1024}))
            for _ in range(200)
        ]
        for reader in readers:
            assert 0 < receive_data(reader) <= 1024
        for reader in readers:  # and once more, so that each has waited for credit in the middle of the blob
            reader.sendall(fr.window_update(1, 1024))
        for reader in readers:
            assert 0 < receive_data(reader) <= 1024
        grown = rss_mib(server.pid) - before
    print(f"200 readers with windows of 1 KiB: {grown:.1f} MiB")
    assert grown < 50
    assert server.answers()


async def test_a_gibibyte_up_and_down_again_passes_through_little_memory(server: Server) -> None:
    """One stream, 1 GiB in messages of 1 MiB. The bound is on the kernel's high-water mark, so nothing is missed."""
    block = os.urandom(MIB)
    whole, size = hashlib.sha256(), 1024 * MIB
    for _ in range(1024):
        whole.update(block)
    name = f"{whole.hexdigest()}/{size}"

    def upload() -> Iterator[Any]:
        for at in range(1024):
            yield BYTESTREAM.WriteRequest(
                resource_name="" if at else f"uploads/one/blobs/{name}",
                write_offset=at * MIB,
                data=block,
                finish_write=at == 1023,
            )

    def download() -> str:
        read = client.channel.unary_stream(
            BYTES + "Read", BYTESTREAM.ReadRequest.SerializeToString, BYTESTREAM.ReadResponse.FromString
        )
        got = hashlib.sha256()
        for reply in read(BYTESTREAM.ReadRequest(resource_name=f"blobs/{name}"), timeout=60):
            got.update(reply.data)
        return got.hexdigest()

    async with connect(server.port) as client:
        await client.put(b"warm")
        idle = rss_mib(server.pid)
        with memory_watched(server) as peak:
            assert await client.write(upload()) == size
            up = peak()
            assert await trio.to_thread.run_sync(download) == whole.hexdigest()
            down = peak()
    print(f"idle {idle:.1f} MiB; at most {up:.1f} MiB after 1 GiB up, {down:.1f} MiB after it came down again")
    assert idle < 120
    assert max(up, down) - idle < 64


async def test_cut_uploads_and_downloads_give_their_descriptors_back(server: Server) -> None:
    data = os.urandom(8 * MIB)
    of, other = digest(data), digest(os.urandom(10))
    async with connect(server.port) as client:
        await client.put(b"warm")
        await client.write(chunks(upload_name(of), data, size=MIB))
    await until(lambda: not connected(server))
    idle = descriptors(server.pid)
    named = BYTESTREAM.WriteRequest(resource_name=f"uploads/cut/blobs/{other.hash}/{32 * MIB}", data=bytes(100_000))
    write = request(1, BYTES + "Write", named.SerializeToString(), end=False)
    read = request(1, BYTES + "Read", BYTESTREAM.ReadRequest(resource_name=read_name(of)).SerializeToString(), end=True)
    for sent in (write, write[:-50_000], read):
        sockets = [dial(server, sent) for _ in range(20)]
        await until(lambda: descriptors(server.pid) >= idle + 20)
        for sock in sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not a farewell
            sock.close()
        # A cut upload may be gone on with for a minute, so the file of each upload id is kept that long: here, one.
        await until(lambda: descriptors(server.pid) <= idle + 1)
    async with connect(server.port) as client:
        assert await client.missing([of]) == []


def connected(server: Server) -> int:
    """How many connections the server's public port has."""
    fields = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(each[1].endswith(f":{server.port:04X}") and each[3] == "01" for each in fields)


def test_a_thousand_idle_connections_cost_little(server: Server) -> None:
    with ExitStack() as open_sockets:
        warm = [open_sockets.enter_context(dial(server)) for _ in range(10)]
        for sock in warm:
            assert sock.recv(9)
        before = rss_mib(server.pid)
        sockets = [open_sockets.enter_context(dial(server)) for _ in range(1000)]
        for sock in sockets:
            assert sock.recv(9), "each has been answered"
        grown = rss_mib(server.pid) - before
        assert server.answers()
    print(f"1,000 idle connections: {grown:.1f} MiB")
    assert grown < 40


def test_a_freshly_started_server_is_small(server: Server) -> None:
    print(f"ready after {server.ready_after_s:.2f} s, RSS {rss_mib(server.pid):.1f} MiB")
    assert rss_mib(server.pid) < 120

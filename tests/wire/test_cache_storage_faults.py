"""What goes wrong below the services, attacked from outside: damaged files, full stores, clients that do not read."""

import os
import socket
from pathlib import Path

import grpc
import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
import trio

from nl.config.types import EvictionPolicy
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext
from tests.support.foreign import AC, BYTES, BYTESTREAM, REAPI, chunks, digest, read_name, upload_name
from tests.support.serving import Serving, serving
from tests.support.stores import filesystem_store

MIB = 1024 * 1024
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
DAMAGES = {
    "flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "cut": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "longer": lambda data: data + b"x",
}


def file_of(folder: Path, of) -> Path:
    [found] = [path for path in folder.rglob(f"*{of.hash}-{of.size_bytes}*") if path.is_file()]
    return found


def damage(path: Path, how) -> None:
    """Changes a file in place, as a disk or another program would."""
    data = how(path.read_bytes())
    path.chmod(0o644)
    path.write_bytes(data)


async def read_or_status(client, of):
    try:
        return b"".join(await client.read(read_name(of)))
    except grpc.RpcError as error:
        return error.code()


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("size", [3000, 200_000, 3 * MIB])
@pytest.mark.parametrize("how", list(DAMAGES))
async def test_damaged_blobs_are_never_served_and_an_upload_mends_them(tmp_path, how, size, restarted):
    folder, data = tmp_path / "cas", os.urandom(size)
    of = digest(data)
    async with serving(store=filesystem_store(folder)) as served:
        await served.client.write(chunks(upload_name(of), data, size=MIB))
        if not restarted:
            damage(file_of(folder, of), DAMAGES[how])
            await is_missing_until_mended(served, of, data)
    if restarted:
        damage(file_of(folder, of), DAMAGES[how])
        async with serving(store=filesystem_store(folder)) as served:
            await is_missing_until_mended(served, of, data)


async def is_missing_until_mended(served: Serving, of, data):
    client = served.client
    got = await read_or_status(client, of)
    assert got in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DATA_LOSS)
    assert await read_or_status(client, of) is grpc.StatusCode.NOT_FOUND
    assert await client.missing([of]) == [of]
    [response] = await client.batch_read([of])
    assert response.status.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert await client.write(chunks(upload_name(of), data, size=MIB)) == len(data)
    assert await read_or_status(client, of) == data


@pytest.mark.parametrize("how", list(DAMAGES))
async def test_a_damaged_action_result_is_a_miss_until_the_next_update(tmp_path, how):
    action = digest(b"action")
    result = REAPI.ActionResult(exit_code=1, stdout_raw=b"printed")
    get = REAPI.GetActionResultRequest(action_digest=action)
    update = REAPI.UpdateActionResultRequest(action_digest=action, action_result=result)
    async with serving(results=filesystem_store(tmp_path / "ac")) as served:
        await served.client.unary(AC + "UpdateActionResult", update, REAPI.ActionResult)
        damage(file_of(tmp_path / "ac", action), DAMAGES[how])
        with pytest.raises(grpc.RpcError) as caught:
            await served.client.unary(AC + "GetActionResult", get, REAPI.ActionResult)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        await served.client.unary(AC + "UpdateActionResult", update, REAPI.ActionResult)
        assert await served.client.unary(AC + "GetActionResult", get, REAPI.ActionResult) == result


async def test_a_full_store_is_resource_exhausted_and_goes_on_afterwards():
    store = MemoryStore(MemoryOptions(eviction_policy=EvictionPolicy(max_bytes=MIB)), BareContext())
    async with serving(store=store) as served:
        client, large, small = served.client, os.urandom(2 * MIB), b"small"
        fits, refused = await client.update((digest(small), small), (digest(large), large))
        assert (fits.status.code, refused.status.code) == (0, EXHAUSTED.value[0])
        for size in (MIB, 4 * MIB - 4096):
            with pytest.raises(grpc.RpcError) as caught:
                await client.write(chunks(upload_name(digest(large)), large, size=size))
            assert caught.value.code() is EXHAUSTED
        assert await client.missing([digest(small), digest(large)]) == [digest(large)]
        assert await client.put(b"goes on") == digest(b"goes on")


class SlowReader:
    """An HTTP/2 connection with windows of 1 KiB that asks for a blob and never gives credit back."""

    def __init__(self, port: int, name: str) -> None:
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.connection.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1024}
        )
        self.connection.initiate_connection()
        headers = [
            (":method", "POST"), (":scheme", "http"), (":path", BYTES + "Read"), (":authority", "x"),
            ("content-type", "application/grpc"), ("te", "trailers"),
        ]  # fmt: skip
        request = BYTESTREAM.ReadRequest(resource_name=name).SerializeToString()
        self.connection.send_headers(1, headers)
        self.connection.send_data(1, b"\0" + len(request).to_bytes(4, "big") + request, end_stream=True)
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.sendall(self.connection.data_to_send())
        self.received = 0

    def receive(self) -> None:
        """Until some data has come."""
        while not self.received:
            for event in self.connection.receive_data(self.sock.recv(65536)):
                if isinstance(event, h2.events.DataReceived):
                    self.received += len(event.data)
            self.sock.sendall(self.connection.data_to_send())


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


async def test_readers_that_do_not_read_cost_little_memory(tmp_path):
    data = os.urandom(MIB) * 64
    of = digest(data)
    async with serving(store=filesystem_store(tmp_path / "cas")) as served:
        await served.client.write(chunks(upload_name(of), data, size=MIB))
        before = resident_mib()

        def read_slowly() -> list[SlowReader]:
            readers = [SlowReader(served.port, read_name(of)) for _ in range(200)]
            for reader in readers:
                reader.receive()
            return readers

        readers = await trio.to_thread.run_sync(read_slowly)
        grown = resident_mib() - before
        assert all(0 < reader.received <= 1024 for reader in readers)
        for reader in readers:
            reader.sock.close()
        print(f"200 slow readers: {grown:.1f} MiB")
        assert grown < 64, f"200 slow readers cost {grown:.0f} MiB"  # the clients' own memory included

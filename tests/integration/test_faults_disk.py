"""A full disk: RESOURCE_EXHAUSTED, nothing acknowledged is lost, and writing goes on when there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.foreign import AC, REAPI, Foreign, chunks, connect, digest, read_name, upload_name
from tests.support.processes import all_in_one

MIB = 1024 * 1024
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "nl-test", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"FULL DISK NOT TESTED: mounting a tmpfs is not permitted here ({mounted.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def fails(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    code: grpc.StatusCode = caught.value.code()
    return code


async def fill(client: Foreign, size: int, *, streamed: bool) -> list[bytes]:
    """Uploads until one is refused; what was acknowledged. Whoever is refused is told that the disk is full."""
    stored: list[bytes] = []
    while True:
        data = os.urandom(size)
        of = digest(data)
        if streamed:
            try:
                await client.write(chunks(upload_name(of), data, size=256 * 1024))
            except grpc.RpcError as error:
                assert error.code() is EXHAUSTED, (error.code(), error.details())
                return stored
        else:
            [response] = await client.update((of, data))
            if response.status.code:
                assert response.status.code == EXHAUSTED.value[0], response
                return stored
        stored.append(data)
        assert len(stored) * size <= 16 * MIB


async def test_a_full_disk_is_told_as_such_and_costs_nothing_that_was_acknowledged(small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(8 * MIB))
    with all_in_one(small_disk) as server:
        async with connect(server.port) as client:
            stored = await fill(client, 3 * MIB, streamed=True)  # written in threads, in pieces
            stored += await fill(client, 300_000, streamed=False)
            stored += await fill(client, 9000, streamed=True)  # written inline
            result = REAPI.UpdateActionResultRequest(
                action_digest=digest(b"action"), action_result=REAPI.ActionResult(stdout_raw=os.urandom(60_000))
            )
            assert await fails(client.unary(AC + "UpdateActionResult", result, REAPI.ActionResult)) is EXHAUSTED
            assert len(stored) > 3
            for data in stored:
                assert b"".join(await client.read(read_name(digest(data)))) == data
            temporary = (small_disk / "data" / "cas.temp").rglob("*")
            left = [path for path in temporary if path.is_file() and path.suffix != ".session"]
            assert left == [], "what failed leaves nothing behind"

            filler.unlink()
            late = os.urandom(5 * MIB)
            assert await client.write(chunks(upload_name(digest(late)), late, size=MIB)) == len(late)
            await client.unary(AC + "UpdateActionResult", result, REAPI.ActionResult)
            stored.append(late)
            assert await client.missing(map(digest, stored)) == []
        assert server.stop() == 0
        server.start()
        async with connect(server.port) as client:
            for data in stored:
                assert b"".join(await client.read(read_name(digest(data)))) == data

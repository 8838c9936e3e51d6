"""Wrong bytes: files damaged behind a running server's back, or while it was down, and uploads that are not what they
say. Never served, missing afterwards, mended by the next upload."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.foreign import (
    AC,
    REAPI,
    Foreign,
    chunks,
    connect,
    digest,
    digest3,
    read_name,
    upload_name,
)
from tests.support.processes import Server, all_in_one

MIB = 1024 * 1024
NOT_FOUND, INVALID = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "cut": lambda data: data[:-1],
    "emptied": lambda data: b"",
}
SIZES = (1000, 100_000, 3 * MIB)


def file_of(server: Server, folder: str, of: Any) -> Path:
    return server.log.parent / "data" / folder / f"{of.hash}-{of.size_bytes}"


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(DAMAGES[how](data))


async def code_of(awaitable: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        await awaitable
    return caught.value.code()


async def read(client: Foreign, of: Any) -> bytes:
    return b"".join(await client.read(read_name(of)))


async def upload(client: Foreign, of: Any, data: bytes, *, streamed: bool, function: int = 0) -> None:
    if streamed:
        name = upload_name(of, function="blake3" if function else "")
        assert await client.write(chunks(name, data, size=MIB)) == len(data)
    else:
        [response] = await client.update((of, data), digest_function=function)
        assert response.status.code == 0, response


async def assert_missing_then_mended(client: Foreign, of: Any, data: bytes, *, streamed: bool) -> None:
    """Asked for in every way, in an order that differs from blob to blob; then uploaded again."""

    async def by_read() -> None:
        assert await code_of(read(client, of)) in (NOT_FOUND, grpc.StatusCode.DATA_LOSS)

    async def by_batch() -> None:
        [response] = await client.batch_read([of])
        assert response.status.code in (NOT_FOUND.value[0], grpc.StatusCode.DATA_LOSS.value[0])
        assert not response.data

    for ask in (by_read, by_batch) if streamed else (by_batch, by_read):
        await ask()
    assert await client.missing([of]) == [of]
    await upload(client, of, data, streamed=streamed)
    assert await client.missing([of]) == []
    assert await read(client, of) == data
    [response] = await client.batch_read([of])
    assert (response.status.code, response.data) == (0, data)


async def test_damaged_blobs_are_never_served_and_mended_by_the_next_upload(tmp_path: Path) -> None:
    cases = [(how, size, streamed) for how in DAMAGES for size in SIZES for streamed in (False, True)]
    blobs = [os.urandom(size) for _, size, _ in cases]
    with all_in_one(tmp_path) as server:
        async with connect(server.port) as client:
            for data in blobs:
                await client.put(data)
            for (how, _, streamed), data in zip(cases, blobs, strict=True):
                assert await read(client, digest(data)) == data  # known to be right, and served at full speed
                damage(file_of(server, "cas/d", digest(data)), how)
                await assert_missing_then_mended(client, digest(data), data, streamed=streamed)
        assert server.stop() == 0
        for (how, _, _), data in zip(cases, blobs, strict=True):
            damage(file_of(server, "cas/d", digest(data)), how)
        server.start()
        async with connect(server.port) as client:
            for (_, _, streamed), data in zip(cases, blobs, strict=True):
                await assert_missing_then_mended(client, digest(data), data, streamed=streamed)
        assert server.stop() == 0
        log = server.log_text()
        for (how, _, _), data in zip(cases, blobs, strict=True):
            reports = 0 if how == "emptied" else 2  # a power cut leaves empty files by the hundred
            assert log.count(f"{digest(data).hash}-{len(data)} is corrupt") == reports, "each damage is reported"


async def test_damaged_action_results_are_misses_and_mended_by_the_next_update(tmp_path: Path) -> None:
    result = REAPI.ActionResult(exit_code=0, stdout_raw=b"printed", stderr_raw=b"warned" * 100)
    actions = {how: digest(b"action " + how.encode()) for how in DAMAGES}

    async def update(client: Foreign, action: Any) -> None:
        request = REAPI.UpdateActionResultRequest(action_digest=action, action_result=result)
        await client.unary(AC + "UpdateActionResult", request, REAPI.ActionResult)

    async def get(client: Foreign, action: Any) -> Any:
        request = REAPI.GetActionResultRequest(action_digest=action)
        return await client.unary(AC + "GetActionResult", request, REAPI.ActionResult)

    with all_in_one(tmp_path) as server:
        for restarted in (False, True):
            async with connect(server.port) as client:
                for how, action in actions.items():
                    await update(client, action)
                    assert await get(client, action) == result
                    if not restarted:
                        damage(file_of(server, "ac/a", action), how)
                        assert await code_of(get(client, action)) is NOT_FOUND
                        await update(client, action)
                        assert await get(client, action) == result
            if not restarted:
                server.kill()
                for how, action in actions.items():
                    damage(file_of(server, "ac/a", action), how)
                server.start()
                async with connect(server.port) as client:
                    for action in actions.values():
                        assert await code_of(get(client, action)) is NOT_FOUND


@pytest.mark.parametrize("function", [0, 9])
async def test_an_upload_that_is_not_what_it_says_is_refused_and_nothing_of_it_is_kept(
    tmp_path: Path, function: int
) -> None:
    """The built-in config asks for no `verify` store: the services check whatever is configured."""
    make = digest3 if function else digest
    with all_in_one(tmp_path) as server:
        async with connect(server.port) as client:
            for size in SIZES:
                data, of = os.urandom(size), make(os.urandom(size))
                [response] = await client.update((of, data), digest_function=function)
                assert response.status.code == INVALID.value[0]
                for piece in (size, size // 3):
                    name = upload_name(of, function="blake3" if function else "")
                    assert await code_of(client.write(chunks(name, data, size=min(piece, MIB)))) is INVALID
                assert await client.missing([of], digest_function=function) == [of]
                right = make(data)
                await upload(client, right, data, streamed=True, function=function)
                assert await client.missing([right], digest_function=function) == []
        kept = [path.name for path in (tmp_path / "data" / "cas" / "d").iterdir()]
        assert len(kept) == len(SIZES)
        assert server.stop() == 0
        assert [path for path in (tmp_path / "data" / "cas.temp").rglob("*") if path.is_file()] == []

"""Trees and batches that would be too large for a message, or for patience, asked of a running server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import trio

from tests.support.foreign import CAS, REAPI, Foreign, connect, digest
from tests.support.processes import all_in_one

MIB = 1024 * 1024


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Foreign]:
    """grpcio's own limit of 4 MiB for a received message applies: a larger one fails the call."""
    with all_in_one(tmp_path) as server:
        async with connect(server.port) as connected:
            yield connected


async def test_a_tree_of_27_levels_with_two_equal_children_each_is_answered_at_once(client: Foreign) -> None:
    """Written out, it has 2 ** 27 directories; there are 28 different ones."""
    leaf = REAPI.Directory()
    leaf.files.add(name="file", digest=digest(b"x"))
    blobs = [leaf.SerializeToString()]
    for _ in range(27):
        directory = REAPI.Directory()
        for name in ("left", "right"):
            directory.directories.add(name=name, digest=digest(blobs[-1]))
        blobs.append(directory.SerializeToString())
    for response in await client.update(*((digest(data), data) for data in blobs)):
        assert response.status.code == 0
    with trio.fail_after(10):
        request = REAPI.GetTreeRequest(root_digest=digest(blobs[-1]))
        pages = await client.server_stream(CAS + "GetTree", request, REAPI.GetTreeResponse)
    assert [each.SerializeToString() for page in pages for each in page.directories] == blobs[::-1]


async def test_a_wide_tree_comes_in_messages_that_clients_accept(client: Foreign) -> None:
    """2,000 directories of 4 KiB: 8 MiB."""
    root, blobs = REAPI.Directory(), []
    for number in range(2000):
        directory = REAPI.Directory()
        directory.files.add(name=os.urandom(2000).hex(), digest=digest(b"x"))
        blobs.append(directory.SerializeToString())
        root.directories.add(name=f"{number:04}", digest=digest(blobs[-1]))
    blobs.append(root.SerializeToString())
    for start in range(0, len(blobs), 500):
        await client.update(*((digest(data), data) for data in blobs[start : start + 500]))
    request = REAPI.GetTreeRequest(root_digest=digest(blobs[-1]))
    pages = await client.server_stream(CAS + "GetTree", request, REAPI.GetTreeResponse)
    assert len(pages) > 2
    assert {each.SerializeToString() for page in pages for each in page.directories} == set(blobs)


async def test_a_batch_read_over_the_limit_answers_what_fits_and_says_so_of_the_rest(client: Foreign) -> None:
    blobs = [os.urandom(MIB) for _ in range(6)]
    for data in blobs:
        await client.put(data)
    responses = await client.batch_read(map(digest, blobs))
    codes = [response.status.code for response in responses]
    assert set(codes) == {grpc.StatusCode.OK.value[0], grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}
    for response, data in zip(responses, blobs, strict=True):
        assert response.data == (b"" if response.status.code else data)
        assert not response.status.code or digest(data).hash in response.status.message

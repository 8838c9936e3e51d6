"""A grpc store and a server that says frame by frame what a test wants, as no well-made server can be brought to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio

from nl.pb import bytestream
from nl.pb.codec import encode
from nl.plugin import CHUNK, Buffer, UnavailableError, digest_of
from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.stores.grpc import GrpcRetry
from nl.testing import PartsReader, make_blob, read, same, split, started
from tests.support.grpc_stores import grpc_store, remote_cas
from tests.wire.raw_server import only_trailers, raw_server, trailers

LARGE = 1_000_000
PIECE = 10_000
UNIMPLEMENTED = 12
NEVER = GrpcRetry(max_retries=0)


class WaitsBeforeSecond(PartsReader):
    """Gives its second piece when `go_on` is set."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        super().__init__(parts)
        self.go_on = trio.Event()

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if self.calls == 1:
            await self.go_on.wait()
        return await super().receive_parts(min(max_bytes, PIECE))


async def test_an_early_ok_for_as_much_as_was_sent_so_far_is_no_ok_for_the_blob() -> None:
    """It is for the last piece of the blob alone that a server may say how much was sent."""
    digest = digest_of(data := make_blob(LARGE))
    reader = WaitsBeforeSecond(split(data, PIECE))

    async def script(connection: Any) -> None:
        await connection.greet()
        await connection.send(only_trailers(await connection.request(), UNIMPLEMENTED))  # what it takes
        await connection.reply(await connection.request(), b"\x08\xa0\x9c\x01")  # committed_size: 20,000
        await connection.send(fr.ping(b"answered"))
        while (frame := await connection.frame()) is not None:
            if frame[0] == fr.PING and frame[1] & fr.ACK:
                reader.go_on.set()  # the answer is there, and stands before what is sent next

    says = f"took {2 * PIECE} of {LARGE} bytes and said OK"
    async with raw_server(script) as server, remote_cas(server.port, retry=NEVER) as store:
        with trio.fail_after(60), pytest.raises(UnavailableError, match=says):
            await store.write(digest, reader)


async def test_a_server_that_does_not_take_the_request_of_a_read_costs_the_time_limit_and_no_more() -> None:
    digest = digest_of(make_blob(LARGE))

    async def script(connection: Any) -> None:
        await connection.greet()
        sid = await connection.request()
        await connection.send(fr.settings({fr.Setting.INITIAL_WINDOW_SIZE: 0}))  # of all streams from now on
        await connection.reply(sid)
        await connection.to_the_end()

    async with (
        raw_server(script) as server, started(grpc_store(server.port, retry=NEVER, rpc_timeout_s=0)) as store,
    ):
        assert await store.has([digest]) == [LARGE]
        store._remote.timeout_s = 0.1
        with trio.fail_after(60), pytest.raises(UnavailableError, match="nothing moved for 0.1 s"):
            await read(store, digest)


async def test_a_blob_whose_message_comes_byte_by_byte_is_the_blob() -> None:
    digest = digest_of(data := make_blob(LARGE))
    message = encode(bytestream.ReadResponse(data=data))
    sent = fr.PREFIX.pack(0, len(message)) + message
    pieces = [sent[at : at + 1] for at in range(20)] + split(sent[20:], 16384)

    async def script(connection: Any) -> None:
        await connection.greet()
        sid = await connection.request()
        await connection.send(fr.header_frames(hpack.RESPONSE, sid, end_stream=False, max_frame=16384))
        for piece in pieces:
            await connection.send(fr.frame(fr.DATA, 0, sid, piece))
        await connection.send(trailers(sid, 0))
        await connection.to_the_end()

    async with raw_server(script) as server, remote_cas(server.port, retry=NEVER) as store:
        with trio.fail_after(60):
            assert same(await read(store, digest), data)

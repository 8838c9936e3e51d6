"""A blob sent as zstd, as fast as its client takes it: as the store keeps it, else packed on the way.

As for plain Reads (`nl.services.reads`), a file is open only for a client that is there. A blob that is passed through
goes on at its offset in the packed bytes; one that is packed here, at its offset in the blob, in the same frame.
What packing takes in memory is bounded: beyond MAX_PACKING Reads at once, frames of blocks that are not compressed are
sent, which take none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import trio

from nl.blob.coding import Encoder, Ready, code, gather
from nl.blob.reader import Buffer, Reader
from nl.blob.zstd import RawEncoder, ZstdEncoder
from nl.errors import UnavailableError
from nl.model.digest import Digest
from nl.model.encoding import Encoding
from nl.rpc.contract import ServerStream
from nl.services.packing import BOTH, PackedTarget, Packing
from nl.services.reads import MAX_PATIENT, PATIENCE_S, ReadSender, piece_size, response_head
from nl.storage.capabilities import EncodedBlobs
from nl.storage.contract import SMALL

MAX_PACKING: Final = 64
"""How many Reads may pack at once: each takes one to two MiB of memory."""


class PackedReadSender:
    """Sends packed blobs. Shares the bound of open files with the plain Reads of its service."""

    def __init__(self, reads: ReadSender, packing: Packing) -> None:
        self._reads = reads
        self._packing = packing
        self.packing = 0
        """How many Reads pack now."""

    async def send(self, stream: ServerStream[Any, Any], target: PackedTarget, digest: Digest, *, offset: int) -> None:
        """The blob from `offset` (in its own bytes) to its end. Raises what the store raises."""
        if not offset:
            if target.encoded is not None and await self._pass(stream, target.encoded, digest):
                return
            if digest.size <= SMALL:
                await _send(stream, [await self._packing.pack(await target.store.get(digest))])
                return
        size = digest.size - offset
        if self.packing >= MAX_PACKING:
            await _Packer(stream, RawEncoder(size=size), self._packing, self._reads).send(target, digest, offset)
            return
        self.packing += 1
        try:
            await _Packer(stream, ZstdEncoder(size=size), self._packing, self._reads).send(target, digest, offset)
        finally:
            self.packing -= 1

    async def _pass(self, stream: ServerStream[Any, Any], encoded: EncodedBlobs, digest: Digest) -> bool:
        """Sends what the store keeps; False if it does not keep this one packed."""
        reads = self._reads
        sent, whole = 0, -1
        while whole < 0 or sent < whole:
            room = await stream.wait_send_credit()
            reads.reopened += whole >= 0
            async with encoded.open_encoded(digest, BOTH, offset=sent) as opened:
                if whole < 0 and opened.encoding is Encoding.IDENTITY:
                    return False
                if opened.encoding is Encoding.IDENTITY or whole not in (-1, opened.encoded_size):
                    raise UnavailableError(f"{digest} has been replaced while it was read: read it again")
                whole = opened.encoded_size
                if reads.open < reads.max_open:
                    reads.open += 1
                    try:
                        sent += await _send_while_taken(stream, opened.reader, room=room, reads=reads)
                    finally:
                        reads.open -= 1
                    continue
                copied: list[Buffer] = [b"".join(await opened.reader.receive_parts(piece_size(room)))]
            await _send(stream, copied)
            sent += len(copied[0])
        return True


async def _send_while_taken(stream: ServerStream[Any, Any], reader: Reader, *, room: int, reads: ReadSender) -> int:
    """Sends until the end, or until credit is long in coming; how many bytes."""
    sent = 0
    while parts := await reader.receive_parts(piece_size(room)):
        await _send(stream, parts)
        sent += sum(map(len, parts))
        if not (room := await _wait_for_room(stream, reads)):
            break
    return sent


async def _wait_for_room(stream: ServerStream[Any, Any], reads: ReadSender) -> int:
    """How much may be sent; 0 if the client is long in saying."""
    room = stream.send_credit
    if room > 0:
        return room
    if reads.open > MAX_PATIENT:
        return 0
    with trio.CancelScope(deadline=trio.current_time() + PATIENCE_S):
        return await stream.wait_send_credit()
    return 0


class _Packer:
    """One Read that packs what it reads."""

    def __init__(self, stream: ServerStream[Any, Any], encoder: Encoder, packing: Packing, reads: ReadSender) -> None:
        self._stream = stream
        self._encoder = encoder
        self._threads = packing.threads
        self._reads = reads
        self._ready = Ready()

    async def send(self, target: PackedTarget, digest: Digest, offset: int) -> None:
        """Packs and sends everything from `offset` on."""
        reads = self._reads
        first = True
        while offset < digest.size or first:
            await self._send_ready()
            await self._stream.wait_send_credit()
            reads.reopened += not first
            first = False
            reads.open += 1
            try:
                async with target.store.open(digest, offset=offset) as reader:
                    offset += await self._pack_while_taken(reader)
            finally:
                reads.open -= 1
        self._ready.put(self._encoder.finish())
        await self._send_ready()

    async def _pack_while_taken(self, reader: Reader) -> int:
        """Packs until the end, or until credit is long in coming; how many bytes of the blob."""
        packed = 0
        while parts := await gather(reader):
            size = sum(map(len, parts))
            self._ready.put(await code(partial(self._encoder.encode, parts), size=size, threads=self._threads))
            packed += size
            while self._ready:
                room = await _wait_for_room(self._stream, self._reads)
                if not room or self._reads.open > self._reads.max_open:
                    self._ready.keep()
                    return packed
                await _send(self._stream, self._ready.take(piece_size(room)))
        return packed

    async def _send_ready(self) -> None:
        while self._ready:
            room = await self._stream.wait_send_credit()
            await _send(self._stream, self._ready.take(piece_size(room)))


async def _send(stream: ServerStream[Any, Any], parts: Sequence[Buffer]) -> None:
    await stream.send_parts([response_head(sum(map(len, parts))), *parts])

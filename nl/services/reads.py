"""A blob sent in pieces, as fast as its client takes them: and how many files that may hold open meanwhile.

A file is opened when the client has given credit for some of it, never before, and closed again when credit is long in
coming: a client that stops reading holds nothing of the disk's, however long it stays. What it may still hold is the
file of a piece that the connection has no room for. Those are counted: beyond `max_open` of them a piece is read,
copied and its file closed before it is sent, which costs some more and bounds the descriptors whatever clients do.

A blob that is evicted while its file is closed ends the Read with NOT_FOUND.
"""

from __future__ import annotations

from typing import Any, Final

import trio

from nl.model.digest import Digest
from nl.pb.codec import varint
from nl.rpc.contract import ServerStream
from nl.services.limits import READ_BYTES
from nl.storage.contract import Store

PATIENCE_S: Final = 2.0
"""How long a file stays open while its client gives no credit ..."""
MAX_PATIENT: Final = 64
"""... unless so many are open: each has a buffer of up to 256 KiB, and a client may have a thousand Reads."""
_DATA: Final = b"\x52"
"""Tag of ReadResponse.data: a reply is sent as that, a length and the store's own buffers."""
_OVERHEAD: Final = 5 + 1 + 3
"""Bytes of a ReadResponse that are not data: the gRPC prefix, a tag, a length of 16 KiB to 2 MiB."""
LEAST_BYTES: Final = 1024
"""A window with less room than that is not worth a smaller message."""


def response_head(size: int) -> bytes:
    """What stands before `size` bytes of data in an encoded ReadResponse."""
    return _DATA + varint(size)


class ReadSender:
    """Sends ranges of blobs. One for all Reads of a service, since it bounds their files together."""

    def __init__(self, max_open: int) -> None:
        self.max_open = max_open
        self.open = 0
        """How many files are open now while their clients are being served."""
        self.reopened = 0
        """How many times a file was opened again for a Read that was under way."""

    async def send(
        self, stream: ServerStream[Any, Any], store: Store, digest: Digest, *, offset: int, limit: int
    ) -> None:
        """Bytes [offset, offset + limit) of a blob, cut at its end; a limit of 0 is to the end.

        Raises BlobNotFoundError, and what else the store's reader raises.
        """
        end = min(digest.size, offset + limit) if limit else digest.size
        started = False
        while offset < end or not started:
            room = await stream.wait_send_credit() if offset < end else LEAST_BYTES
            self.reopened += started
            started = True
            if self.open < self.max_open:
                offset = await self._send_from_file(stream, store, digest, offset=offset, end=end, room=room)
            else:
                offset = await _send_copy(stream, store, digest, offset=offset, end=end, room=room)

    async def _send_from_file(
        self, stream: ServerStream[Any, Any], store: Store, digest: Digest, *, offset: int, end: int, room: int
    ) -> int:
        """Sends until the end, or until credit is long in coming; how far it came."""
        self.open += 1
        try:
            async with store.open(digest, offset=offset, length=end - offset) as reader:
                while parts := await reader.receive_parts(piece_size(room)):
                    size = sum(map(len, parts))
                    await stream.send_parts([response_head(size), *parts])
                    offset += size
                    if offset >= end:
                        return offset
                    room = stream.send_credit
                    if room > 0:
                        continue
                    if self.open > MAX_PATIENT:
                        return offset
                    with trio.CancelScope(deadline=trio.current_time() + PATIENCE_S) as patience:
                        room = await stream.wait_send_credit()
                    if patience.cancelled_caught:
                        return offset
                return end
        finally:
            self.open -= 1


async def _send_copy(
    stream: ServerStream[Any, Any], store: Store, digest: Digest, *, offset: int, end: int, room: int
) -> int:
    """Sends one piece with its file closed; how far it came."""
    async with store.open(digest, offset=offset, length=end - offset) as reader:
        data = b"".join(await reader.receive_parts(piece_size(room)))
    if not data:
        return end
    await stream.send_parts([response_head(len(data)), data])
    return offset + len(data)


def piece_size(room: int) -> int:
    """How much data to send when a message of `room` bytes can leave. It uses the room up, exactly but for one
    number: a few bytes of credit left over would be taken for credit.
    """
    data = room - _OVERHEAD
    if data < 1 << 14:
        data = min(data + 1, (1 << 14) - 1)  # the length takes two bytes then
    return min(READ_BYTES, max(data, LEAST_BYTES))

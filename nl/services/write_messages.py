"""The messages of one ByteStream.Write call, read as they arrive: heads are parsed, data is passed on undecoded.

A WriteRequest's data field comes last on the wire, as every known client writes it; then its bytes are handed out as
views of what the connection received, without being joined. A message that is written in another order is taken in
whole and decoded: the same meaning, at the price of a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nl.blob.reader import CHUNK, Buffer, BytesReader, Reader, read_all
from nl.errors import ExhaustedError, InvalidRequestError
from nl.pb import bytestream
from nl.pb.codec import DecodeError, decode
from nl.pb.hot import NotStreamableError, WriteHead, parse_write_head
from nl.rpc.contract import MessageBody, ServerStream
from nl.services.limits import REORDERED_WRITE_BYTES


class WriteMessage(Reader):
    """One WriteRequest; as a reader, its data. `size` is the length of that."""

    __slots__ = ("_first", "_rest", "finish", "offset", "resource_name", "size")

    def __init__(self, head: WriteHead, *, size: int, first: Sequence[Buffer], rest: Reader | None) -> None:
        self.resource_name = head.resource_name
        self.offset = head.write_offset
        self.finish = head.finish_write
        self.size = size
        self._first = first
        self._rest = rest

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        first = self._first
        if first:
            first, self._first = _split(first, max_bytes)
            return first
        if self._rest is None:
            return ()
        return await self._rest.receive_parts(max_bytes)


class WriteMessages:
    """The messages of a call, in order. Each must be read to its end before the next is asked for."""

    __slots__ = ("_name", "_stream")

    def __init__(self, stream: ServerStream[Any, Any]) -> None:
        self._stream = stream
        self._name = ""

    async def receive_message(self) -> WriteMessage | None:
        """The next message, None when the client has half-closed.

        Raises InvalidRequestError for a message that is no WriteRequest, and for one that names another resource than
        the first did; the first must name one.
        """
        body = await self._stream.receive_body()
        if body is None:
            return None
        message = await _read_message(body)
        name = message.resource_name
        if not self._name:
            if not name:
                raise InvalidRequestError("the first message of a Write must carry a resource_name")
            self._name = name
        elif name and name != self._name:
            raise InvalidRequestError(
                f"a Write's resource_name cannot change: {name[:200]!r} came after {self._name[:200]!r}"
            )
        return message


async def _read_message(body: MessageBody) -> WriteMessage:
    """Parses a message's head from its first bytes, which need not come in one piece."""
    size = body.size
    parts = await body.receive_parts()
    first: Buffer = parts[0] if parts else b""
    rest: Sequence[Buffer] = parts[1:]
    try:
        while (head := parse_write_head(first, size)) is None:
            # The head came in pieces. What is kept over a receive is copied: its buffer is reused.
            first = b"".join((first, *rest))
            rest = await body.receive_parts()
    except DecodeError as exc:
        raise InvalidRequestError(f"not a WriteRequest: {exc}") from exc
    except NotStreamableError:
        return await _read_whole(body, [first, *rest])
    data = memoryview(first)[head.data_start :]
    return WriteMessage(head, size=head.data_length, first=[data, *rest] if len(data) else rest, rest=body)


async def _read_whole(body: MessageBody, received: Sequence[Buffer]) -> WriteMessage:
    """Takes in and decodes a message whose data does not come last."""
    if body.size > REORDERED_WRITE_BYTES:
        raise ExhaustedError(f"a WriteRequest of {body.size} bytes whose data does not come last is too large")
    whole = b"".join(received)
    whole += await read_all(body)
    try:
        message = decode(bytestream.WriteRequest, whole)
    except DecodeError as exc:
        raise InvalidRequestError(f"not a WriteRequest: {exc}") from exc
    size = len(message.data)
    head = WriteHead(message.resource_name, message.write_offset, message.finish_write, 0, size)
    return WriteMessage(head, size=size, first=(), rest=BytesReader(message.data))


def _split(parts: Sequence[Buffer], max_bytes: int) -> tuple[Sequence[Buffer], Sequence[Buffer]]:
    """The first `max_bytes` of some buffers, and what is left."""
    taken = 0
    for at, part in enumerate(parts):
        taken += len(part)
        if taken > max_bytes:
            view, cut = memoryview(part), len(part) - (taken - max_bytes)
            head = [*parts[:at], view[:cut]] if cut else list(parts[:at])
            return head, [view[cut:], *parts[at + 1 :]]
    return parts, ()

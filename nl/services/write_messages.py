"""The messages of one ByteStream.Write call, read as they arrive: heads are parsed, data is passed on undecoded.

A WriteRequest's data field comes last on the wire, as every known client writes it; then its bytes are handed out as
views of what the connection received, without being joined. A message that is written in another order is taken in
whole and decoded: the same meaning, at the price of a copy.

What is copied of a message whose rest is still to come counts as held for the client.

Each wait for the client has an end: a client that sends nothing for `idle_s` is taken for gone, whatever its connection
says, because an upload under way holds a file. The server's own work (a slow disk) does not count.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from functools import partial
from math import inf
from typing import Any, TypeVar

import trio

from nl.blob.reader import CHUNK, Buffer, Reader, split_parts
from nl.cas.large import off_loop_if_large
from nl.errors import DeadlineError, ExhaustedError, InvalidRequestError
from nl.pb import bytestream
from nl.pb.codec import DecodeError, decode
from nl.pb.hot import NotStreamableError, WriteHead, parse_write_head
from nl.rpc.contract import MessageBody, ServerStream
from nl.services.limits import ENVELOPE_BYTES, REORDERED_WRITE_BYTES
from nl.storage.contract import SMALL

T = TypeVar("T")
_COPIED_BYTES = SMALL + ENVELOPE_BYTES
"""Messages of up to so many bytes are taken as one piece where they are one: copying them costs less than views do."""

_MAX_NAME = 64 * 1024
"""Characters of a resource name."""


class WriteMessage(Reader):
    """One WriteRequest; as a reader, its data. `size` is the length of that."""

    __slots__ = ("_first", "_messages", "_rest", "finish", "offset", "resource_name", "size")

    def __init__(
        self, head: WriteHead, messages: WriteMessages, *, size: int, first: Sequence[Buffer], rest: Reader | None
    ) -> None:
        self.resource_name = head.resource_name
        self.offset = head.write_offset
        self.finish = head.finish_write
        self.size = size
        self._first = first
        self._rest = rest
        self._messages = messages

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        first = self._first
        if first:
            first, self._first = split_parts(first, max_bytes)
            return first
        if self._rest is None:
            return ()
        return await self._messages.wait_for(self._rest.receive_parts, max_bytes)


class WriteStoppedError(Exception):  # an event rather than an error: whoever stops the messages knows why
    """`WriteMessages.stop` was called: nothing more is to be received."""


class WriteMessages:
    """The messages of a call, in order. Each must be read to its end before the next is asked for."""

    __slots__ = ("_is_stopped", "_kept", "_name", "_reason", "_scope", "_stream", "idle_s", "waiting_since")

    def __init__(self, stream: ServerStream[Any, Any], *, idle_s: float) -> None:
        self.waiting_since = inf
        """Since when the client is waited for, on trio's clock; infinity while it is not."""
        self._stream = stream
        self.idle_s = idle_s
        self._name = ""
        self._kept = 0
        self._scope: trio.CancelScope | None = None
        self._is_stopped = False
        self._reason: Exception | None = None

    def stop(self, reason: Exception | None = None) -> None:
        """Ends the wait for the client, and all that would follow, with `reason` (WriteStoppedError if not given)."""
        self._is_stopped = True
        self._reason = self._reason or reason
        if self._scope is not None:
            self._scope.cancel()

    async def wait_for(self, receive: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """`await receive(*args)`, which may have to wait for the client.

        Raises DeadlineError if nothing comes in time, and what `stop` was given.
        """
        if not self._is_stopped:
            receiving = receive(*args)
            try:
                trap = receiving.send(None)
            except StopIteration as at_once:  # nearly always; a cancel scope costs more than all that is read
                received: T = at_once.value
                return received
            self.waiting_since = now = trio.current_time()
            with trio.CancelScope(deadline=now + self.idle_s) as self._scope:
                received = await _go_on(receiving, trap)
                self.waiting_since, self._scope = inf, None
                return received
            self.waiting_since, self._scope = inf, None
        if self._is_stopped:
            reason, self._reason = self._reason, None  # kept here, it would keep the frames that it passes through
            raise reason or WriteStoppedError
        raise DeadlineError(
            f"the upload made no progress for {self.idle_s:g} s (idle_upload_timeout_s of the bytestream service)"
        )

    def keep(self, count: int) -> None:
        """So many bytes of the upload are in memory of our own until the next message is here, or the call's end."""
        if count != self._kept:
            self._kept = count
            self._stream.keep(count)

    async def receive_message(self) -> WriteMessage | None:
        """The next message, None when the client has half-closed.

        Raises InvalidRequestError for a message that is no WriteRequest, and for one that names another resource than
        the first did; the first must name one.
        """
        data = None if self._is_stopped else self._stream.take_body(_COPIED_BYTES)
        if data is None:
            message = await self.wait_for(self._receive)
        else:
            self.keep(0)
            message = await _read_whole(data, self)
        if message is None:
            return None
        name = message.resource_name
        if not self._name:
            if not name:
                raise InvalidRequestError("the first message of a Write must carry a resource_name")
            if len(name) > _MAX_NAME:  # it is kept as long as the upload takes
                raise InvalidRequestError(f"a resource_name of {len(name)} characters; expected at most {_MAX_NAME}")
            self._name = name
        elif name and name != self._name:
            raise InvalidRequestError(
                f"a Write's resource_name cannot change: {name[:200]!r} came after {self._name[:200]!r}"
            )
        return message

    async def _receive(self) -> WriteMessage | None:
        body = await self._stream.receive_body()
        self.keep(0)  # not before: whoever has been given the last message's bytes may have kept them until now
        return None if body is None else await _read_message(body, self)


@types.coroutine
def _go_on(receiving: Coroutine[Any, Any, T], trap: Any) -> Generator[Any, Any, T]:
    """The rest of a coroutine that has begun to wait."""
    try:
        while True:
            try:
                value = yield trap
            except BaseException as exc:  # noqa: BLE001, ASYNC103  # trio's Cancelled above all: it is the coroutine's
                trap = receiving.throw(exc)
            else:
                try:
                    trap = receiving.send(value)
                finally:
                    value = None  # as in nl.rpc.leader
    except StopIteration as done:
        received: T = done.value
        return received


async def _read_message(body: MessageBody, messages: WriteMessages) -> WriteMessage:
    """Parses a message's head from its first bytes, which need not come in one piece."""
    size = body.size
    parts = await body.receive_parts()
    first: Buffer = parts[0] if parts else b""
    rest: Sequence[Buffer] = parts[1:]
    try:
        while (head := parse_write_head(first, size)) is None:
            # The head came in pieces. What is kept over a receive is copied: its buffer is reused.
            first = b"".join((first, *rest))
            messages.keep(len(first))
            rest = await body.receive_parts()
    except DecodeError as exc:
        raise _malformed(exc) from exc
    except NotStreamableError:
        if size > REORDERED_WRITE_BYTES:
            raise ExhaustedError(
                f"a WriteRequest of {size} bytes whose data does not come last is too large"
            ) from None
        return await _read_reordered(await _join((first, *rest), body, messages), messages)
    data = memoryview(first)[head.data_start :]
    parts = [data, *rest] if len(data) else rest
    return WriteMessage(head, messages, size=head.data_length, first=parts, rest=body)


async def _join(parts: Sequence[Buffer], body: MessageBody, messages: WriteMessages) -> bytearray:
    """A message in one piece. Its parts are copied before more is received, which may overwrite them."""
    whole = bytearray()
    while parts:
        for part in parts:
            whole += part
        messages.keep(len(whole))
        parts = await body.receive_parts()
    return whole


async def _read_whole(data: bytes, messages: WriteMessages) -> WriteMessage:
    """Parses a message that is here as one piece."""
    try:
        head = parse_write_head(data, len(data))
    except DecodeError as exc:
        raise _malformed(exc) from exc
    except NotStreamableError:
        return await _read_reordered(data, messages)
    assert head is not None  # of a whole message, nothing is missing
    payload = memoryview(data)[head.data_start :]
    return WriteMessage(head, messages, size=len(payload), first=(payload,) if payload else (), rest=None)


async def _read_reordered(whole: Buffer, messages: WriteMessages) -> WriteMessage:
    """Decodes a message whose data does not come last."""
    try:
        message = await off_loop_if_large(partial(decode, bytestream.WriteRequest), whole)
    except DecodeError as exc:
        raise _malformed(exc) from exc
    size = len(message.data)
    head = WriteHead(message.resource_name, message.write_offset, message.finish_write, 0, size)
    return WriteMessage(head, messages, size=size, first=(message.data,) if size else (), rest=None)


def _malformed(error: DecodeError) -> InvalidRequestError:
    return InvalidRequestError(f"not a WriteRequest: {error}")

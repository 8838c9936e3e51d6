"""One blob as a stream: ByteStream.Read, resumed at the byte where it broke off.

The buffers are those of the connection, passed on as they are. Not here: small blobs (`jobs`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from nl.model.resource import ReadName
from nl.pb import bytestream, cas_calls
from nl.pb.codec import DecodeError, encode
from nl.plugin import CHUNK, Buffer, Digest, Reader, read_all, split_parts
from nl.rpc.client_stream import ClientStream
from nl.rpc.contract import MessageBody
from nl.stores.grpc.failures import Failure, Headers
from nl.stores.grpc.jobs import missing, wrong_size
from nl.stores.grpc.methods import READ
from nl.stores.grpc.remote import Remote, Retrying


class ReadCall:
    """One ByteStream.Read of the blob `name`. What goes wrong with it is raised as a Failure, and ends it."""

    __slots__ = ("_body", "_call", "_headers", "_in_message", "_name", "_remote", "_stream")

    def __init__(self, remote: Remote, name: str, headers: Headers) -> None:
        self._remote = remote
        self._name = name
        self._headers = headers
        self._call: AbstractAsyncContextManager[ClientStream] | None = None
        self._stream: ClientStream | None = None
        self._body: MessageBody | None = None
        self._in_message = 0
        """Bytes of the current message's data that have not come yet."""

    @property
    def is_open(self) -> bool:
        """Whether it has begun and not ended."""
        return self._stream is not None

    async def open(self, *, offset: int, limit: int) -> None:
        """Sends the request: the bytes from `offset` on, `limit` of them, or all for 0."""
        request = encode(bytestream.ReadRequest(resource_name=self._name, read_offset=offset, read_limit=limit))
        call = self._remote.calling(READ, self._headers)
        self._stream = await call.__aenter__()
        self._call = call
        try:
            with self._remote.progress():
                await self._stream.send_parts([request], end=True)
        except BaseException as exc:
            await self._leave(exc)  # noqa: ASYNC102  # nothing waits in there: the call is given up
            raise

    async def receive(self, max_bytes: int) -> Sequence[Buffer]:
        """What has arrived of the data; nothing at the end of the call."""
        try:
            with self._remote.progress():
                return await self._next(max_bytes)
        except BaseException as exc:
            await self._leave(exc)  # noqa: ASYNC102  # nothing waits in there: the call is given up
            raise

    async def aclose(self) -> None:
        """Gives the call up, if it is not over."""
        if self._stream is not None:
            await self._stream.cancel()
        await self._leave()

    async def _leave(self, error: BaseException | None = None) -> None:
        """Ends the call, if there is one. Raises a Failure where `error` is what the call came to."""
        call, self._call, self._stream = self._call, None, None
        self._body, self._in_message = None, 0
        if call is not None:
            await call.__aexit__(type(error) if error is not None else None, error, None)

    async def _next(self, max_bytes: int) -> Sequence[Buffer]:
        while True:
            if self._in_message and self._body is not None:
                parts = await self._body.receive_parts(min(max_bytes, self._in_message))
                self._in_message -= sum(map(len, parts))
                return parts
            assert self._stream is not None
            self._body = await self._stream.receive_body()
            if self._body is None:
                return ()
            if self._body.size and (parts := await self._begin(self._body, max_bytes)):
                return parts

    async def _begin(self, body: MessageBody, max_bytes: int) -> Sequence[Buffer]:
        """Reads a message's head; the data that came with it."""
        total = body.size
        parts: Sequence[Buffer] = await body.receive_parts(max(max_bytes, 16))
        while (start := cas_calls.read_head(parts[0] if parts else b"", total)) is None:
            begun = b"".join(parts)  # before more is received: that may overwrite what these are views of
            parts = [b"".join((begun, *await body.receive_parts()))]
        if start < 0:
            try:
                data = cas_calls.read_data(b"".join(parts) + await read_all(body))
            except DecodeError as exc:
                raise GRPCError(Status.INTERNAL, f"a ReadResponse cannot be decoded: {exc}") from exc
            return [data] if len(data) else []
        first = memoryview(parts[0])[start:]
        parts = [first, *parts[1:]] if len(first) else parts[1:]
        self._in_message = total - start - sum(map(len, parts))
        return parts


class RemoteReader(Reader):
    """Bytes [offset, offset + size) of a blob, of which there is at least one. `start` first, `aclose` at the end."""

    __slots__ = ("_at", "_call", "_digest", "_end", "_ready", "_remote", "_retrying", "_whole", "size")

    def __init__(
        self, remote: Remote, name: str, digest: Digest, *, offset: int, size: int, headers: Headers = ()
    ) -> None:
        self._remote = remote
        self._digest = digest
        self._at = offset
        self._end = offset + size
        self._whole = self._end == digest.size
        self._retrying = Retrying(remote, READ, str(digest))
        self._call = ReadCall(remote, name, headers)
        self._ready: Sequence[Buffer] = ()
        """Bytes that came with a message's head."""
        self.size = size

    async def start(self) -> None:
        """Waits for the first bytes. BlobNotFoundError if the server does not have the blob."""
        self._ready = await self._receive(CHUNK)

    async def aclose(self) -> None:
        """Gives the call up, if it is not over."""
        self._ready = ()
        await self._call.aclose()

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if not self._ready and self._at < self._end:
            self._ready = await self._receive(max_bytes)
        elif not self._ready:
            await self._finish()
            return ()
        parts, self._ready = split_parts(self._ready, max_bytes)
        self._at += sum(map(len, parts))
        return parts

    async def _receive(self, max_bytes: int) -> Sequence[Buffer]:
        """The next bytes, over as many calls as it takes; never none."""
        while True:
            try:
                if not self._call.is_open:
                    await self._call.open(offset=self._at, limit=0 if self._whole else self._end - self._at)
                parts = await self._call.receive(max_bytes)
            except Failure as failure:
                await self.aclose()
                if failure.status is Status.NOT_FOUND:
                    raise missing(self._remote, self._digest) from failure.error
                await self._retrying.failed(failure)
                continue
            if not parts:
                raise wrong_size(self._remote, self._digest, self._at)
            if sum(map(len, parts)) > self._end - self._at:
                raise wrong_size(self._remote, self._digest, self._at + sum(map(len, parts)))
            self._retrying.progressed()
            return parts

    async def _finish(self) -> None:
        """After the last byte: the server may have more to say, that the blob is wrong after all."""
        if not self._call.is_open:
            return
        try:
            surplus = await self._call.receive(CHUNK)
        except Failure as failure:
            if failure.status is Status.DATA_LOSS:
                raise self._retrying.error_of(failure) from failure.error
            return  # all bytes are here
        if surplus:
            raise wrong_size(self._remote, self._digest, self._at + sum(map(len, surplus)))
        await self.aclose()


@asynccontextmanager
async def reading(
    remote: Remote, name: str, digest: Digest, *, offset: int, size: int, headers: Headers = ()
) -> AsyncIterator[Reader]:
    """A reader over bytes [offset, offset + size) of a blob, with at least one byte. Entering raises as `Store.open`.
    """
    reader = RemoteReader(remote, name, digest, offset=offset, size=size, headers=headers)
    try:
        await reader.start()
        yield reader
    finally:
        await reader.aclose()


def read_name(instance: str, digest: Digest, compressor: str = "") -> str:
    """The resource name of a blob."""
    return str(ReadName(instance, digest, compressor))

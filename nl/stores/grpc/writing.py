"""One blob as an upload: ByteStream.Write, resumed where the server says that it has come to (QueryWriteStatus).

To go on, the bytes from there must be had again: from a reader that can be rewound, or from the copy of its first
bytes that `SpoolBudget` allows. The message that ends the upload is sent when the reader has come to its end well, so
that a reader that raises there leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final
from uuid import uuid4

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from nl.model.resource import WriteName
from nl.pb import bytestream, cas_calls
from nl.pb.codec import encode
from nl.plugin import CHUNK, Buffer, Digest, EncodingReader, Reader, SpoolingReader, UploadMismatchError, ZstdEncoder
from nl.rpc.client_stream import ClientStream
from nl.stores.grpc.failures import Failure, Headers
from nl.stores.grpc.methods import QUERY_WRITE, WRITE
from nl.stores.grpc.packing import COMPRESSOR, Packing, before_plain
from nl.stores.grpc.remote import Remote, Retrying

SPOOL_BYTES: Final = 4 * 1024 * 1024
"""How much of a reader that cannot be rewound is kept: an upload that breaks off later fails."""
SPOOLS: Final = 16
"""For how many uploads at once: 64 MiB in all."""


class SpoolBudget:
    """Who may keep what has been read. Uploads beyond it go without, and are not tried again once they have begun."""

    def __init__(self) -> None:
        self._left = SPOOLS

    @contextmanager
    def rewindable(self, reader: Reader) -> Iterator[Reader]:
        """The reader, able to be rewound if there is a way."""
        if reader.can_rewind or not self._left:
            yield reader
            return
        self._left -= 1
        try:
            yield SpoolingReader(reader, limit=SPOOL_BYTES)
        finally:
            self._left += 1


class Upload:
    """One upload, over as many calls as it takes; the first one packed, if `packing` has memory for it."""

    def __init__(
        self, remote: Remote, digest: Digest, reader: Reader, *, name: Digest, headers: Headers,
        packing: Packing | None = None,
    ) -> None:
        self._remote = remote
        self._digest = digest
        self._reader = reader
        self._headers = headers
        self._name = name
        self._packing = packing
        self._resource = str(WriteName(remote.instance, str(uuid4()), name))
        self._retrying = Retrying(remote, WRITE, str(digest))
        self._at = 0
        """Bytes taken from the reader."""

    async def run(self) -> None:
        """Returns when the server has the blob and the reader has come to its end."""
        if self._packing is None or not await self._send_packed(self._packing):
            await self._send_plain()
        await self._drain()

    async def _send_packed(self, packing: Packing) -> bool:
        """One call; False if the blob is to be sent plain, and the reader stands at its start."""
        with packing.memory_for_upload() as granted:
            if not granted:
                return False
            resource = str(WriteName(self._remote.instance, str(uuid4()), self._name, COMPRESSOR))
            packed = EncodingReader(_Source(self), ZstdEncoder(size=self._digest.size), threads=packing.threads)
            try:
                await self._send(resource, packed, offset=0)
            except Failure as failure:
                await before_plain(failure, self._retrying)
                await self._go_back_to(0, failure)
                return False
        packing.uploads += 1
        return True

    async def _send_plain(self) -> None:
        while True:
            begun = self._at
            try:
                return await self._send(self._resource, _Source(self), offset=begun)
            except Failure as failure:
                await self._retrying.failed(failure)
                committed, complete = await self._committed()
                if complete:
                    return
                if committed > begun:
                    self._retrying.progressed()
                await self._go_back_to(committed, failure)

    async def _send(self, resource: str, reader: Reader, *, offset: int) -> None:
        """One call with all that `reader` has. Raises Failure."""
        finished = False
        async with self._remote.calling(WRITE, self._headers) as stream:
            while not (finished or stream.is_answered):
                parts = await reader.receive_parts(CHUNK)
                length = sum(map(len, parts))
                head = cas_calls.write_head(resource, offset=offset, size=length, finish=not parts)
                with self._remote.progress():
                    await stream.send_parts([head, *parts], end=not parts)
                offset += length
                resource = ""
                finished = not parts
            await self._receive_answer(stream, sent=offset if finished else -1)

    async def receive(self, max_bytes: int) -> Sequence[Buffer]:
        """The next bytes of the blob, of which there have to be as many as its digest says: UploadMismatchError."""
        size = self._digest.size
        parts = await self._reader.receive_parts(max_bytes)
        self._at += sum(map(len, parts))
        if self._at > size:
            raise UploadMismatchError(f"{self._digest}: the upload has more bytes than its digest says")
        if not parts and self._at != size:
            raise UploadMismatchError(
                f"{self._digest}: the upload ended after {self._at} bytes, its digest says {size}"
            )
        return parts

    async def _receive_answer(self, stream: ClientStream, *, sent: int) -> None:
        """`sent`: how many bytes were, packed or not, if all were; else -1."""
        with self._remote.progress():
            reply: bytestream.WriteResponse = await stream.recv_message()
        if reply.committed_size not in (self._digest.size, sent, -1):
            raise GRPCError(
                Status.ABORTED, f"the server took {reply.committed_size} of {self._digest.size} bytes and said OK"
            )

    async def _committed(self) -> tuple[int, bool]:
        """How far the server has come, and whether it has the blob; (0, False) if it does not know."""
        request = encode(bytestream.QueryWriteStatusRequest(resource_name=self._resource))
        while True:
            try:
                reply: bytestream.QueryWriteStatusResponse = await self._remote.ask_once(
                    QUERY_WRITE, [request], self._headers
                )
            except Failure as failure:
                if failure.status in (Status.NOT_FOUND, Status.UNIMPLEMENTED, Status.INVALID_ARGUMENT):
                    return 0, False
                await self._retrying.failed(failure)
                continue
            if reply.complete:  # maybe further than this upload has come: by another one
                return (self._digest.size, True) if reply.committed_size == self._digest.size else (0, False)
            return (reply.committed_size if 0 <= reply.committed_size <= self._at else 0), False

    async def _go_back_to(self, committed: int, failure: Failure) -> None:
        """Has the reader continue at `committed`; raises the failure if it cannot."""
        if committed == self._at:
            return
        if not self._reader.can_rewind:
            raise self._retrying.error_of(failure) from failure.error
        await self._reader.rewind()
        self._at = 0
        while self._at < committed:
            parts = await self._reader.receive_parts(min(CHUNK, committed - self._at))
            if not parts:
                raise UploadMismatchError(f"{self._digest}: the upload ended after {self._at} bytes when resumed")
            self._at += sum(map(len, parts))

    async def _drain(self) -> None:
        """The rest, of a blob that the server had already: what is wrong with it is still told."""
        while parts := await self._reader.receive_parts(CHUNK):
            self._at += sum(map(len, parts))
            if self._at > self._digest.size:
                raise UploadMismatchError(f"{self._digest}: the upload has more bytes than its digest says")


class _Source(Reader):
    """What an upload has to send, from where it stands."""

    __slots__ = ("_upload", "size")

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self.size = -1

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        return await self._upload.receive(max_bytes)

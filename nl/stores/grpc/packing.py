"""Blobs as zstd on the wire, where the server offers it: with which memory and threads, and how one is read.

Packing is an offer and never in the way: what fails packed is done plain, from the byte that has been reached if it is
a read. Only whole blobs that travel by themselves are packed; ranges and batches go as they are.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Final

import trio
from grpclib.const import Status

from nl.plugin import (
    CHUNK,
    Buffer,
    CoderMemory,
    CorruptBlobError,
    DecodingReader,
    Digest,
    NlError,
    Reader,
    ZstdDecoder,
    split_parts,
)
from nl.stores.grpc.failures import Failure, Headers
from nl.stores.grpc.jobs import missing
from nl.stores.grpc.methods import READ
from nl.stores.grpc.reading import ReadCall, RemoteReader, read_name
from nl.stores.grpc.remote import Remote, Retrying

COMPRESSOR: Final = "zstd"
"""Its name in resource names."""
LEAST_PACKED: Final = 64 * 1024
"""Smaller blobs are not worth it; NativeLink's bound."""
_ENCODER_BYTES: Final = 3 * 1024 * 1024
"""What an encoder of level 1 takes, with what goes in and comes out."""
_HISTORY_BYTES: Final = 8 * 1024 * 1024
"""What a decoder may hold of what it has unpacked: `ZstdDecoder` refuses frames that need more."""
_BUFFERS_BYTES: Final = 1024 * 1024
"""What goes into a decoder and comes out."""
_THREADS: Final = 4
_NOT_PACKED: Final = (Status.UNIMPLEMENTED, Status.INVALID_ARGUMENT, Status.FAILED_PRECONDITION)
"""What a server says that does not do what it, or another one of the store, has announced."""
_log = logging.getLogger(__name__)


class Packing:
    """How one store packs: where the memory and the threads for it come from. Blobs that get no memory go plain."""

    def __init__(self, memory: CoderMemory) -> None:
        self.threads = trio.CapacityLimiter(_THREADS)
        self.reads = 0
        """Blobs that came packed."""
        self.uploads = 0
        """Blobs that went packed."""
        self._memory = memory

    def memory_for_upload(self) -> AbstractContextManager[bool]:
        """Whether there is memory to pack one, which is held while the block lasts."""
        return self._memory.spare(_ENCODER_BYTES)

    def memory_for_read(self, digest: Digest) -> AbstractContextManager[bool]:
        """The same to unpack one."""
        return self._memory.spare(min(_HISTORY_BYTES, digest.size) + _BUFFERS_BYTES)


class UnpackingReader(Reader):
    """A whole blob that comes packed; from the byte where that fails on, plain. `start` first, `aclose` at the end."""

    __slots__ = (
        "_at", "_call", "_digest", "_headers", "_named", "_packing", "_plain", "_ready", "_remote", "_unpacked", "size",
    )  # fmt: skip

    def __init__(
        self, remote: Remote, packing: Packing, digest: Digest, *, named: Digest, headers: Headers = ()
    ) -> None:
        self._remote = remote
        self._packing = packing
        self._digest = digest
        self._named = named
        self._headers = headers
        self._at = 0
        self._call = ReadCall(remote, read_name(remote.instance, named, COMPRESSOR), headers)
        self._unpacked = DecodingReader(
            _Packed(self._call), ZstdDecoder(), size=digest.size, failure=self._broken, threads=packing.threads
        )
        self._plain: RemoteReader | None = None
        self._ready: Sequence[Buffer] = ()
        self.size = digest.size

    async def start(self) -> None:
        """Waits for the first bytes. BlobNotFoundError if the server does not have the blob."""
        self._ready = await self._receive(CHUNK)
        self._packing.reads += self._plain is None

    async def aclose(self) -> None:
        """Gives the call up, if it is not over."""
        self._ready = ()
        await self._call.aclose()
        if self._plain is not None:
            await self._plain.aclose()

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if not self._ready:
            self._ready = await self._receive(max_bytes)
        parts, self._ready = split_parts(self._ready, max_bytes)
        self._at += sum(map(len, parts))
        return parts

    async def _receive(self, max_bytes: int) -> Sequence[Buffer]:
        if self._plain is None:
            try:
                return await self._unpacked.receive_parts(max_bytes)
            except Failure as failure:
                await self._call.aclose()
                if failure.status is Status.NOT_FOUND:
                    raise missing(self._remote, self._digest) from failure.error
                await before_plain(failure, Retrying(self._remote, READ, str(self._digest)))
            except CorruptBlobError as error:
                await self._call.aclose()
                if self._at:
                    raise  # what has been delivered may be wrong, too
                _log.warning("%s; it is asked for plain", error.message)
            self._plain = RemoteReader(
                self._remote, read_name(self._remote.instance, self._named), self._digest,
                offset=self._at, size=self.size - self._at, headers=self._headers,
            )  # fmt: skip
        return await self._plain.receive_parts(max_bytes)

    def _broken(self, why: str) -> NlError:
        remote = self._remote
        return CorruptBlobError(
            f"the grpc store {remote.name!r} ({remote.where}): what came packed for {self._digest} is wrong: {why}"
        )


class _Packed(Reader):
    """What comes of a call, from the first byte on; it begins when it is asked for. Raises Failure."""

    __slots__ = ("_begun", "_call", "size")

    def __init__(self, call: ReadCall) -> None:
        self._call = call
        self._begun = False
        self.size = -1

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if not self._begun:
            self._begun = True
            await self._call.open(offset=0, limit=0)
        return await self._call.receive(max_bytes) if self._call.is_open else ()


@asynccontextmanager
async def unpacking(
    remote: Remote, packing: Packing, digest: Digest, *, named: Digest, headers: Headers = ()
) -> AsyncIterator[Reader]:
    """A reader over a whole blob that comes packed. Entering raises as `Store.open`."""
    reader = UnpackingReader(remote, packing, digest, named=named, headers=headers)
    try:
        await reader.start()
        yield reader
    finally:
        await reader.aclose()


async def before_plain(failure: Failure, retrying: Retrying) -> None:
    """Returns when what has failed packed may be done plain; raises the failure as an NlError if that is in vain."""
    if failure.status not in _NOT_PACKED:
        await retrying.failed(failure)

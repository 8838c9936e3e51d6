"""Blobs that clients send or take as zstd: checked against their digests while they pass, and packed where nobody has.

What a client sends packed is unpacked to be checked, never beyond what its digest says; a store that keeps zstd gets it
as it came. What a client takes packed comes from such a store as it lies there, else it is packed on the way. The work
is done in threads of its own limiter, in batches (`nl.blob.coding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from nl.blob.coding import INLINE, OUTPUT, CodingError, DecodingReader, code, gather
from nl.blob.hashing import new_hasher
from nl.blob.reader import CHUNK, Buffer, BytesReader, Reader, read_all
from nl.blob.verify import VerifyingReader, check_bytes
from nl.blob.zstd import WINDOW_LOG, ZstdDecoder, compress, decompress
from nl.errors import InvalidRequestError, NlError, UploadMismatchError
from nl.model.digest import Digest
from nl.model.encoding import Encoding
from nl.services.write_messages import WriteMessage, WriteMessages
from nl.storage.capabilities import EncodedBlobs
from nl.storage.contract import Store

COMPRESSOR: Final = Encoding.ZSTD.value
"""Its name in resource names."""
BOTH: Final = (Encoding.ZSTD, Encoding.IDENTITY)
LEAST_PACKED: Final = 256
"""Smaller blobs of a batch are not worth packing."""
_UNPACKED_AT_ONCE: Final = 8 * OUTPUT
"""How much is unpacked in one stay in a thread: some milliseconds, after which a cancelled caller is let go."""
_THREADS: Final = 4
_FREE_BYTES: Final = 64 * 1024


def most_packed(digest: Digest) -> int:
    """How long a packed form may be, in bytes. What cannot be packed grows by a thousandth; beyond this are frames that
    stand for nothing, which a store would keep and send to everybody who asks for the blob.
    """
    return 2 * digest.size + _FREE_BYTES


def unpacking_bytes(digest: Digest) -> int:
    """What an upload takes that is unpacked: its history, whatever it sends, and what goes in and comes out."""
    return min(1 << WINDOW_LOG, digest.size) + 2 * OUTPUT


class Packing:
    """The threads of one service."""

    def __init__(self) -> None:
        self.threads = trio.CapacityLimiter(_THREADS)

    async def pack(self, data: Buffer) -> bytes:
        """A whole blob as one frame."""
        return await code(partial(compress, data), size=len(data), threads=self.threads)

    async def unpack(self, data: Buffer, digest: Digest) -> bytes:
        """What a client sent packed, unpacked and checked. Raises InvalidRequestError, UploadMismatchError."""

        def unpack_and_check() -> bytes:
            if len(data) > most_packed(digest):
                raise _far_too_large(digest)
            try:
                blob = decompress(data, digest.size)
            except CodingError as error:
                raise _wrong_upload(digest, str(error)) from None
            check_bytes(blob, digest)
            return blob

        return await code(unpack_and_check, size=max(len(data), digest.size), threads=self.threads)

    async def store(self, target: PackedTarget, digest: Digest, data: Buffer) -> None:
        """Stores a whole blob that a client sent packed."""
        blob = await self.unpack(data, digest)
        if target.encoded is not None:
            await target.encoded.write_encoded(digest, BytesReader(data), Encoding.ZSTD)
        else:
            await target.store.put(digest, blob)

    async def write(self, target: PackedTarget, digest: Digest, upload: Reader) -> None:
        """Stores a blob whose packed form comes in pieces. Takes `unpacking_bytes` of memory meanwhile."""
        if target.encoded is not None:
            await target.encoded.write_encoded(
                digest, CheckedUpload(upload, digest, threads=self.threads), Encoding.ZSTD
            )
            return
        unpacked = DecodingReader(
            upload, ZstdDecoder(), size=digest.size, failure=partial(_wrong_upload, digest), threads=self.threads
        )
        await target.store.write(digest, VerifyingReader(unpacked, digest))

    async def read(self, target: PackedTarget, digest: Digest) -> tuple[Buffer, bool]:
        """A blob of a batch, and whether it comes packed: where that makes it smaller."""
        if target.encoded is not None:
            async with target.encoded.open_encoded(digest, BOTH) as opened:
                if opened.encoding is Encoding.ZSTD and 0 <= opened.reader.size < digest.size:
                    return await read_all(opened.reader), True
        data = await target.store.get(digest)
        if target.encoded is None and len(data) >= LEAST_PACKED:
            packed = await self.pack(data)
            if len(packed) < len(data):
                return packed, True
        return data, False


@dataclass(frozen=True, slots=True)
class PackedTarget:
    """A store, and what it offers for packed blobs."""

    store: Store
    encoded: EncodedBlobs | None

    @classmethod
    def of(cls, store: Store) -> PackedTarget:
        """Asks the store. Once, when the server starts."""
        return cls(store, store.capability(EncodedBlobs))


class CheckedUpload(Reader):
    """Delivers what a client sends packed as it comes, and raises UploadMismatchError or InvalidRequestError at the
    latest at its end, unless it unpacks to the blob that `digest` names.
    """

    __slots__ = ("_decoder", "_digest", "_hasher", "_left", "_reader", "_threads", "size")

    def __init__(self, reader: Reader, digest: Digest, *, threads: trio.CapacityLimiter) -> None:
        self.size = -1
        self._reader = reader
        self._digest = digest
        self._decoder = ZstdDecoder()
        self._hasher = new_hasher(digest.function)
        self._left = digest.size
        self._threads = threads

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        parts = await gather(_Limited(self._reader, max_bytes), least=max_bytes)
        digest = self._digest
        if not parts:
            try:
                self._decoder.finish()
            except CodingError as error:
                raise _wrong_upload(digest, str(error)) from None
            if self._left:
                raise UploadMismatchError(
                    f"{digest}: the upload unpacks to {digest.size - self._left} bytes, its digest says {digest.size}"
                )
            got = self._hasher.hexdigest()
            if got != digest.hash:
                raise UploadMismatchError(f"{digest}: the uploaded bytes have the {digest.function.name} hash {got}")
            return parts
        self._decoder.feed(parts)
        size = 0 if digest.size <= INLINE and sum(map(len, parts)) <= INLINE else CHUNK
        while not self._decoder.needs_input:
            try:
                await code(self._check, size=size, threads=self._threads)
            except CodingError as error:
                raise _wrong_upload(digest, str(error)) from None
            if self._left < 0:
                raise UploadMismatchError(f"{digest}: the upload unpacks to more bytes than its digest says")
        return parts

    def _check(self) -> None:
        most = _UNPACKED_AT_ONCE
        while most > 0 and self._left >= 0 and not self._decoder.needs_input:
            for part in self._decoder.decode(OUTPUT):
                most -= len(part)
                self._left -= len(part)
                self._hasher.update(part)


class _Limited(Reader):
    """A reader of which no more than `left` bytes are taken."""

    __slots__ = ("_left", "_reader", "size")

    def __init__(self, reader: Reader, left: int) -> None:
        self.size = -1
        self._reader = reader
        self._left = left

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if not self._left:
            return ()
        parts = await self._reader.receive_parts(min(max_bytes, self._left))
        self._left -= sum(map(len, parts))
        return parts


class PackedUpload(Reader):
    """The data of a Write's messages, one after the other: an upload that comes packed.

    It cannot be resumed, so offsets begin at 0, and count packed bytes from there (REAPI, Write of compressed blobs).
    """

    __slots__ = ("_digest", "_message", "_messages", "committed", "size")

    def __init__(self, digest: Digest, messages: WriteMessages, first: WriteMessage) -> None:
        self.size = first.size if first.finish else -1
        self.committed = 0
        """How many packed bytes have been taken."""
        self._digest = digest
        self._messages = messages
        self._message: WriteMessage | None = first
        self._check_offset(first)

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        message = self._message
        while True:
            if message is None:
                self._message = None  # and what it has of the client's bytes, while the next is waited for
                message = self._message = await self._messages.receive_message()
                if message is None:
                    raise InvalidRequestError(
                        f"{self._digest}: the Write ended after {self.committed} packed bytes without finish_write"
                    )
                self._check_offset(message)
            parts = await message.receive_parts(max_bytes)
            if parts:
                self.committed += sum(map(len, parts))
                if self.committed > most_packed(self._digest):
                    raise _far_too_large(self._digest)
                return parts
            if message.finish:
                return ()
            message = None

    def _check_offset(self, message: WriteMessage) -> None:
        if message.offset != self.committed:
            raise InvalidRequestError(
                f"{self._digest}: write_offset {message.offset} came after {self.committed} packed bytes; a packed "
                "upload cannot be resumed"
            )


def _far_too_large(digest: Digest) -> NlError:
    return _wrong_upload(digest, f"its packed form has more than {most_packed(digest)} bytes")


def _wrong_upload(digest: Digest, problem: str) -> NlError:
    return InvalidRequestError(f"{digest}: the upload is wrong: {problem}")

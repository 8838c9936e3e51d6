"""The `verify` kind: refuses uploads that are not what their digest says.

The server's services check every upload anyway; this kind is for configs that ask for it, and for stores that are
written to by something else. Reads are not checked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from nl.plugin import (
    CHUNK,
    BlobSizeLimit,
    Buffer,
    Deletes,
    Digest,
    Flag,
    Key,
    NlError,
    Options,
    Pins,
    Reader,
    Removals,
    Scans,
    StoreContext,
    StoreSpec,
    StoreWrapper,
    UploadMismatchError,
    VerifyingReader,
    hash_bytes,
    new_hasher,
)

C = TypeVar("C")
_PASSED_ON = (BlobSizeLimit, Deletes, Removals, Scans, Pins)


class VerifyOptions(Options):
    """Checks size or hash of what is uploaded to the store behind it."""

    EXAMPLE = "{ verify: { backend: { memory: {} }, verify_size: true, verify_hash: true } }"

    backend: StoreSpec
    """Takes what passes."""
    verify_size: Flag = False
    """Refuse an upload that has more or fewer bytes than its digest says."""
    verify_hash: Flag = False
    """Refuse an upload whose hash is not its digest's."""


class VerifyStore(StoreWrapper):
    """Checks on the way in. Keys that are not digests name no content, so nothing is checked for them."""

    Options = VerifyOptions

    def __init__(self, options: VerifyOptions, context: StoreContext) -> None:
        super().__init__(context.child(options.backend))
        self._size = options.verify_size
        self._hash = options.verify_hash
        self._size_failures = 0
        self._hash_failures = 0

    async def put(self, key: Key, data: Buffer) -> None:
        self._check(key, data)
        await self._backend.put(key, data)

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        failed: list[NlError | None] = [None] * len(blobs)
        right: list[int] = []
        for at, (key, data) in enumerate(blobs):
            try:
                self._check(key, data)
            except UploadMismatchError as error:
                failed[at] = error
            else:
                right.append(at)
        results = await self._backend.put_many([blobs[at] for at in right])
        for at, result in zip(right, results, strict=True):
            failed[at] = result
        return failed

    def _check(self, key: Key, data: Buffer) -> None:
        if isinstance(key, Digest):
            if self._size and len(data) != key.size:
                raise self.size_error(key, f"got {len(data)} bytes")
            if self._hash and hash_bytes(key.function, data) != key.hash:
                raise self.hash_error(key)

    async def write(self, key: Key, reader: Reader) -> None:
        if isinstance(key, Digest) and not (isinstance(reader, VerifyingReader) and reader.digest == key):
            if self._size and reader.size not in (-1, key.size):
                raise self.size_error(key, f"got {reader.size} bytes")
            reader = _Checking(reader, key, self, size=self._size, hash=self._hash)
        await self._backend.write(key, reader)

    def capability(self, kind: type[C]) -> C | None:
        # None for local files: what is adopted would get past the check.
        return self._backend.capability(kind) if kind in _PASSED_ON else None

    def statistics(self) -> Mapping[str, int | float | str]:
        return {
            "size_verification_failures": self._size_failures,
            "hash_verification_failures": self._hash_failures,
        }

    def size_error(self, digest: Digest, got: str) -> UploadMismatchError:
        """The error for a wrong size, counted."""
        self._size_failures += 1
        return UploadMismatchError(f"{digest}: expected {digest.size} bytes as its digest says, {got}")

    def hash_error(self, digest: Digest) -> UploadMismatchError:
        """The error for a wrong hash, counted."""
        self._hash_failures += 1
        return UploadMismatchError(f"{digest}: the uploaded bytes have another hash")


class _Checking(Reader):
    """What the options ask for, checked while the bytes pass."""

    __slots__ = ("_count", "_digest", "_hasher", "_reader", "_size", "_store", "size")

    def __init__(self, reader: Reader, digest: Digest, store: VerifyStore, *, size: bool, hash: bool) -> None:
        self._reader = reader
        self._digest = digest
        self._store = store
        self._size = size
        self._hasher = new_hasher(digest.function) if hash else None
        self._count = 0
        self.size = reader.size

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        parts = await self._reader.receive_parts(max_bytes)
        if not parts:
            if self._size and self._count != self._digest.size:
                raise self._store.size_error(self._digest, f"got {self._count} bytes")
            if self._hasher is not None and self._hasher.hexdigest() != self._digest.hash:
                raise self._store.hash_error(self._digest)
            return parts
        for part in parts:
            self._count += len(part)
            if self._hasher is not None:
                self._hasher.update(part)
        if self._size and self._count > self._digest.size:
            raise self._store.size_error(self._digest, f"got {self._count} bytes already")
        return parts

"""A reader that checks bytes against their digest while they pass. Called by services and by the `verify` kind.

Hashing is done inline, part by part, on the buffers as they come: a chunk of 256 KiB costs less than handing it to a
thread would, and the two hash libraries release the interpreter lock for large buffers anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

from nl.blob.hashing import hash_bytes, new_hasher
from nl.blob.reader import CHUNK, Buffer, Reader
from nl.errors import UploadMismatchError
from nl.model.digest import Digest, Key


class VerifyingReader(Reader):
    """Delivers `reader`'s bytes and raises UploadMismatchError if they are not what `digest` says.

    The bytes are wrong as soon as more of them come than `digest.size`, when the source ends early, or when the hash
    differs; the hash is compared as soon as the last byte is there, before it is handed out.
    """

    __slots__ = ("_hasher", "_left", "_reader", "digest", "size")

    def __init__(self, reader: Reader, digest: Digest) -> None:
        if reader.size not in (-1, digest.size):
            raise UploadMismatchError(f"{digest}: the upload has {reader.size} bytes, its digest says {digest.size}")
        self._reader = reader
        self._hasher = new_hasher(digest.function)
        self._left = digest.size
        self.digest = digest
        self.size = digest.size
        if not digest.size:
            self._compare()

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        parts = await self._reader.receive_parts(max_bytes)
        left = self._left
        if not parts:
            if left:
                digest = self.digest
                raise UploadMismatchError(
                    f"{digest}: the upload ended after {digest.size - left} bytes, its digest says {digest.size}"
                )
            return parts
        update = self._hasher.update
        for part in parts:
            left -= len(part)
            if left < 0:
                raise UploadMismatchError(f"{self.digest}: the upload has more bytes than its digest says")
            update(part)
        self._left = left
        if not left:
            self._compare()
        return parts

    @property
    def can_rewind(self) -> bool:
        return self._reader.can_rewind

    async def rewind(self) -> None:
        await self._reader.rewind()
        self._hasher = new_hasher(self.digest.function)
        self._left = self.digest.size

    def _compare(self) -> None:
        got = self._hasher.hexdigest()
        if got != self.digest.hash:
            function = self.digest.function.name
            raise UploadMismatchError(f"{self.digest}: the uploaded bytes have the {function} hash {got}")


def check_size(key: Key, size: int) -> None:
    """Raises UploadMismatchError if `key` is a digest that says another size. Of action results it says nothing."""
    if isinstance(key, Digest) and size != key.size:
        raise UploadMismatchError(f"{key}: the upload has {size} bytes, its digest says {key.size}")


def check_bytes(data: Buffer, digest: Digest) -> None:
    """Raises UploadMismatchError unless `data` is the whole blob that `digest` names."""
    check_size(digest, len(data))
    if (got := hash_bytes(digest.function, data)) != digest.hash:
        raise UploadMismatchError(f"{digest}: the uploaded bytes have the {digest.function.name} hash {got}")

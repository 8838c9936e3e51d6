"""BLAKE3 blobs whose names do not tell their function: put there by others, or by versions before 0.2.

Their names are those of SHA-256 digests. What has not been hashed yet may be either; when a BLAKE3 digest of such a
name is asked for, the file is hashed, and gets its full name if it is that blob. If it is neither, it is set aside, or
`has` would go on saying that it may be there, and nobody would upload it.
"""

from __future__ import annotations

import os
import time

from nl.plugin import Digest, DigestFunction
from nl.stores.filesystem.commit import Committer
from nl.stores.filesystem.layout import Folder
from nl.stores.filesystem.names import index_key, name_of, unmarked_key
from nl.stores.filesystem.oserrors import translate
from nl.stores.filesystem.quarantine import Quarantine
from nl.stores.filesystem.verify import Verifier

_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class UnmarkedBlobs:
    """Finds them, and gives them their names."""

    def __init__(self, committer: Committer, verifier: Verifier, quarantine: Quarantine) -> None:
        self._committer = committer
        self._verifier = verifier
        self._quarantine = quarantine

    def size_of(self, digest: Digest) -> int | None:
        """The size of a file that may be this blob, None if there is none; a use of it."""
        index = self._committer.mirror.index
        key = unmarked_key(digest)
        slot = None if key is None else index.slots.get(key)
        if slot is None or index.sizes[slot] != digest.size or index.is_known(slot):
            return None  # known to be right, it is the SHA-256 blob
        index.touch(slot, time.monotonic())
        return digest.size

    async def mark(self, digest: Digest) -> bool:
        """Gives the blob its full name if it is there without; whether that was so. Raises UnavailableError and such.
        """
        if self.size_of(digest) is None:
            return False
        layout = self._committer.mirror.layout
        other = Digest(digest.hash, digest.size, DigestFunction.SHA256)
        try:
            return await self._mark(layout.blobs, other, digest)
        except OSError as error:
            path = f"{layout.blobs.path}/{name_of(other)}"
            raise translate(error, store=layout.name, path=path, doing="check") from error

    async def _mark(self, folder: Folder, other: Digest, digest: Digest) -> bool:
        try:
            fd = os.open(name_of(other), _READ_FLAGS, dir_fd=folder.fd)
        except FileNotFoundError:
            return False
        try:
            if await self._verifier.hashed(fd, digest) is None:
                # If it is the SHA-256 blob, that is remembered: it is not hashed for the next who asks.
                if await self._verifier.is_right(fd, other) is None:
                    await self._quarantine.set_aside(folder, other, fd)
                return False
            await self._committer.rename(fd, other, digest, key=index_key(digest))
        finally:
            os.close(fd)
        return True

"""The opener: an open file that has the right bytes, or BlobNotFoundError. Whoever reads or links goes through it.

What is not known to be right is hashed first (verify.py); what is wrong is set aside (quarantine.py) and is missing.
"""

from __future__ import annotations

import os
import stat
import time
from types import TracebackType

from nl.plugin import (
    EMPTY_DIGESTS,
    MAX_WHOLE,
    ActionKey,
    BlobNotFoundError,
    Buffer,
    BytesReader,
    Digest,
    Key,
    NlError,
    Reader,
    clamp,
    must_be_streamed,
)
from nl.stores.filesystem.layout import Folder
from nl.stores.filesystem.mirror import Mirror
from nl.stores.filesystem.names import IndexKey, legacy_action_key, name_of, wrong_size_key
from nl.stores.filesystem.oserrors import translate
from nl.stores.filesystem.presence import Presence
from nl.stores.filesystem.quarantine import Quarantine
from nl.stores.filesystem.readers import FileAccess, FileReader
from nl.stores.filesystem.unmarked import UnmarkedBlobs
from nl.stores.filesystem.verify import Verifier

_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Opener:
    """Opens blobs. Each opening is a use."""

    def __init__(
        self, mirror: Mirror, presence: Presence, access: FileAccess, *, verifier: Verifier, quarantine: Quarantine,
        unmarked: UnmarkedBlobs,
    ) -> None:
        self._mirror = mirror
        self._layout = mirror.layout
        self._index = mirror.index
        self._presence = presence
        self._unmarked = unmarked
        self._verifier = verifier
        self._quarantine = quarantine
        self._access = access
        self.hits = 0
        self.misses = 0

    async def opened(self, key: Key) -> tuple[int, os.stat_result]:
        """A descriptor, which is then the caller's, and its stat.

        Raises BlobNotFoundError, also for what was found wrong and set aside.
        """
        await self._mirror.catch_up()
        folder, name, index_key = self._layout.locate(key)
        slot = self._slot(key, index_key)
        if slot is None or self._presence.max_age_s:
            folder, index_key = await self._look_harder(key)
        try:
            fd = os.open(name, _READ_FLAGS, dir_fd=folder.fd)
        except FileNotFoundError:
            self._layout.require_open()
            self._mirror.removed(folder, name)
            raise self._missing(key) from None
        except OSError as error:
            self._layout.require_open()
            raise self._translated(error, folder, name, "open") from error
        try:
            facts = os.fstat(fd)
            if type(key) is not Digest and not stat.S_ISREG(facts.st_mode):  # no hash tells that a pipe is no value
                self._mirror.removed(folder, name)
                raise self._missing(key)
            slot = self._index.slots.get(index_key)
            if slot is None or self._index.sizes[slot] != facts.st_size:
                slot = self._mirror.add(folder, index_key, facts.st_size)
            if type(key) is Digest and not self._index.is_known_as(
                slot, inode=facts.st_ino, mtime_ns=facts.st_mtime_ns, size=facts.st_size
            ):
                facts = await self._verified(key, fd)
                slot = self._index.slots.get(index_key)
            if slot is not None:
                self._index.touch(slot, time.monotonic())
        except OSError as error:
            os.close(fd)
            raise self._translated(error, folder, name, "check") from error
        except BaseException:
            os.close(fd)
            raise
        self.hits += 1
        return fd, facts

    async def read_whole(self, key: Key) -> Buffer:
        """All bytes of a blob of up to MAX_WHOLE. Raises TooLargeError if there are more."""
        if key in EMPTY_DIGESTS:
            return b""
        fd, facts = await self.opened(key)
        try:
            size = facts.st_size
            if size > MAX_WHOLE:
                raise must_be_streamed(key, size)
            return await self._access.read_whole(fd, size)
        except EOFError:
            raise BlobNotFoundError(key, self._layout.where) from None
        except OSError as error:
            folder, name, _ = self._layout.locate(key)
            raise self._translated(error, folder, name, "read") from error
        finally:
            os.close(fd)

    def reading(self, key: Key, offset: int, length: int | None) -> Opening:
        """A context in which a part of a blob can be read."""
        return Opening(self, key, offset, length)

    async def reader(self, key: Key, offset: int, length: int | None) -> FileReader:
        """A reader of a part of a blob, which the caller closes."""
        fd, facts = await self.opened(key)
        try:
            size = clamp(facts.st_size, offset, length)
        except BaseException:
            os.close(fd)
            raise
        return FileReader(
            self._access, fd, offset=offset, size=size, mtime_ns=facts.st_mtime_ns,
            what=f"{key} in {self._layout.where}",
        )  # fmt: skip

    async def _verified(self, digest: Digest, fd: int) -> os.stat_result:
        """The stat of a file whose bytes are right; a wrong one is set aside and missing."""
        facts = await self._verifier.is_right(fd, digest)
        if facts is None:
            await self._quarantine.set_aside(self._layout.blobs, digest, fd)
            raise self._missing(digest)
        return facts

    def _slot(self, key: Key, index_key: IndexKey) -> int | None:
        return self._index.blob(key) if type(key) is Digest else self._index.slots.get(index_key)

    async def _look_harder(self, key: Key) -> tuple[Folder, IndexKey]:
        """Where a key that is not simply in the index may be found. Raises BlobNotFoundError if nowhere."""
        folder, name, index_key = self._layout.locate(key)
        slot = self._slot(key, index_key)
        if slot is None and isinstance(key, ActionKey):
            legacy = legacy_action_key(key)
            if (other := self._index.slots.get(legacy)) is not None:
                folder, index_key, slot = self._layout.blobs, legacy, other
        elif slot is None and isinstance(key, Digest):
            if wrong_size_key(name) in self._index.slots:
                await self._set_wrong_size_aside(key)
            elif await self._unmarked.mark(key):
                slot = self._slot(key, index_key)
        if slot is None and self._mirror.is_exact:
            raise self._missing(key)
        if slot is not None and self._presence.is_expired(slot):
            raise self._missing(key)
        return folder, index_key

    async def _set_wrong_size_aside(self, digest: Digest) -> None:
        """A blob is asked for whose file has another size than its name says: cut short or written to by somebody."""
        folder, name = self._layout.blobs, name_of(digest)
        try:
            fd = os.open(name, _READ_FLAGS, dir_fd=folder.fd)
            try:
                if os.fstat(fd).st_size != digest.size:
                    await self._quarantine.set_aside(folder, digest, fd)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._translated(error, folder, name, "check") from error

    def _missing(self, key: Key) -> BlobNotFoundError:
        self.misses += 1
        self._layout.require_open()
        return BlobNotFoundError(key, self._layout.where)

    def _translated(self, error: OSError, folder: Folder, name: str, doing: str) -> NlError:
        return translate(error, store=self._layout.name, path=f"{folder.path}/{name}", doing=doing)


class Opening:
    """What `FilesystemStore.open` returns: the file is open while the context is entered."""

    __slots__ = ("_key", "_length", "_offset", "_opener", "_reader")

    def __init__(self, opener: Opener, key: Key, offset: int, length: int | None) -> None:
        self._opener = opener
        self._key = key
        self._offset = offset
        self._length = length
        self._reader: FileReader | None = None

    async def __aenter__(self) -> Reader:
        if self._key in EMPTY_DIGESTS:
            clamp(0, self._offset, self._length)
            return BytesReader(b"")
        self._reader = await self._opener.reader(self._key, self._offset, self._length)
        return self._reader

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._reader is not None:
            self._reader.close()

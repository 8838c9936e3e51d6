"""The slow store as the fast one is filled from it: nothing that it gives is believed before it has been hashed.

Who fills a store from another checks what it fills: the fast store takes a blob for right because it came this way, and
would keep a wrong one when the backend is long mended. Blobs that are read past the fast store are checked likewise;
only ranges are not, as no digest speaks of them.

A wrong blob is reported once, is missing from then on until somebody uploads it, and is taken out of the slow store if
that can be (`Deletes`).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AsyncExitStack

import trio

from nl.plugin import (
    CHUNK,
    BlobNotFoundError,
    Buffer,
    CorruptBlobError,
    Deletes,
    Digest,
    Key,
    NlError,
    NotFoundError,
    Reader,
    Store,
    UploadMismatchError,
    VerifyingReader,
    check_bytes,
)
from nl.stores.fast_slow.uploads import Uploads

MAX_WRONG = 50_000
"""Wrong blobs remembered; beyond, the oldest are found, and reported, anew."""
_log = logging.getLogger(__name__)


class Source:
    """Checked reading of one slow store."""

    def __init__(self, store: Store, *, uploads: Uploads, name: str) -> None:
        self._store = store
        self._uploads = uploads
        self._name = name
        self._wrong: OrderedDict[Key, None] = OrderedDict()
        self._deleting: dict[Key, trio.Event] = {}
        self.wrong_blobs = 0
        """How many were found in all."""

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        """See `Store.has`; what was found wrong is not there."""
        sizes = await self._store.has(keys)
        if self._wrong:
            return [None if key in self._wrong else size for key, size in zip(keys, sizes, strict=True)]
        return sizes

    async def get(self, key: Key) -> Buffer:
        """See `Store.get`; BlobNotFoundError if the bytes are wrong."""
        began = self._uploads.now
        try:
            data = await self._store.get(key)
        except NotFoundError as error:
            raise found_nowhere(key) from error
        return await self._right(key, data, began)

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        """See `Store.get_many`, and `get`."""
        began = self._uploads.now
        found = list(await self._store.get_many(keys))
        for at, (key, data) in enumerate(zip(keys, found, strict=True)):
            try:
                if isinstance(data, NotFoundError):
                    raise found_nowhere(key) from data
                if not isinstance(data, NlError):
                    await self._right(key, data, began)
            except BlobNotFoundError as error:
                found[at] = error
        return found

    async def open(
        self, key: Key, stack: AsyncExitStack, *, offset: int = 0, length: int | None = None
    ) -> Reader:
        """A reader as `Store.open` gives it, closed by `stack`.

        A whole blob is hashed while it passes: if it is wrong, the reader raises CorruptBlobError in place of its last
        bytes.
        """
        began = self._uploads.now
        try:
            reader = await stack.enter_async_context(self._store.open(key, offset=offset, length=length))
        except NotFoundError as error:
            raise found_nowhere(key) from error
        if not isinstance(key, Digest) or offset or (length is not None and length < key.size):
            return reader
        try:
            return _Checked(VerifyingReader(reader, key), self, began)
        except UploadMismatchError as error:
            raise await self.found_wrong(key, error, began) from error

    async def found_wrong(self, key: Key, error: NlError, began: int) -> BlobNotFoundError:
        """Reports a blob, takes it out, and gives the error that says it is not there.

        `began` is when reading it did: nothing is done to what has been uploaded since.
        """
        missing = BlobNotFoundError(key, message=f"{self._name}: the slow store has wrong bytes: {error.message}")
        if key in self._uploads or self._uploads.replaced_since(key, began) or key in self._deleting:
            return missing
        if key not in self._wrong:
            self.wrong_blobs += 1
            self._wrong[key] = None
            if len(self._wrong) > MAX_WRONG:
                self._wrong.popitem(last=False)
            _log.error(
                "%s: the slow store has wrong bytes under %s; it is missing until it is uploaded again: %s",
                self._name, key, error.message,
            )  # fmt: skip
        if (deletes := self._store.capability(Deletes)) is not None:
            done = self._deleting[key] = trio.Event()
            try:
                await deletes.delete([key])
            except NlError as failure:
                _log.warning("%s: the slow store could not delete %s: %s", self._name, key, failure.message)
            finally:
                del self._deleting[key]
                done.set()
        return missing

    async def wait_for_deletion(self, key: Key) -> None:
        """Before an upload, which is under way already: a deletion that has begun must not meet the new blob."""
        while (done := self._deleting.get(key)) is not None:
            await done.wait()

    def replaced(self, key: Key) -> None:
        """An upload of `key` has reached the slow store."""
        if self._wrong:
            self._wrong.pop(key, None)

    async def _right(self, key: Key, data: Buffer, began: int) -> Buffer:
        if isinstance(key, Digest):
            try:
                check_bytes(data, key)
            except UploadMismatchError as error:
                raise await self.found_wrong(key, error, began) from error
        return data


class _Checked(Reader):
    """A whole blob of the slow store."""

    __slots__ = ("_began", "_reader", "_source", "size")

    def __init__(self, reader: VerifyingReader, source: Source, began: int) -> None:
        self._reader = reader
        self._source = source
        self._began = began
        self.size = reader.size

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        try:
            return await self._reader.receive_parts(max_bytes)
        except UploadMismatchError as error:
            missing = await self._source.found_wrong(self._reader.digest, error, self._began)
            raise CorruptBlobError(missing.message) from error


def found_nowhere(key: Key) -> BlobNotFoundError:
    """What a reader is told of a blob that neither store has."""
    return BlobNotFoundError(
        key,
        message=f"Object {key} not found in either fast or slow store. If using multiple workers, ensure all workers "
        "share the same CAS storage path.",
    )

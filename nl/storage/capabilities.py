"""What some stores can do beyond the contract, as Protocols that `Store.capability` is asked for.

A caller asks once, when it starts, and has another way where the answer is None. A wrapper answers for itself: None
unless it can stand in for what it wraps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import NamedTuple, Protocol, runtime_checkable

from nl.blob.reader import Reader
from nl.model.digest import Digest, Key
from nl.model.encoding import Encoding
from nl.storage.removals import RemovalFeed


class Link(NamedTuple):
    """One input file of an action: the blob `digest` is to appear at `path` (absolute, its parent exists)."""

    digest: Digest
    path: str
    executable: bool


@runtime_checkable
class LocalFiles(Protocol):
    """Capability: the store can hand out blobs as local files and take local files over."""

    async def link_files(self, links: Sequence[Link]) -> list[Digest]:
        """Makes each blob appear at its path as a read-only file (0444, or 0555 if executable).

        Hard links where possible: never chmod or write to them. Bytes are verified like any others. Returns the
        digests that are missing (deduplicated, in order); the other links are made all the same. Zero-size blobs are
        created as fresh empty files.
        """
        ...

    async def adopt_file(self, digest: Digest, path: str) -> None:
        """Takes over a regular file, by rename or link where possible, else by copying. Whoever adopts verifies: a
        file that is not what `digest` says is an UploadMismatchError, and reaches no store.

        The file may or may not be at `path` afterwards; its mode may change. If the blob is there already, nothing is
        stored.
        """
        ...


@runtime_checkable
class BlobSizeLimit(Protocol):
    """Capability: blobs above a size are refused, however empty the store is."""

    def max_blob_bytes(self) -> int:
        """The largest blob that can be kept."""
        ...


@runtime_checkable
class Discards(Protocol):
    """Capability: the store keeps nothing. Writes to it succeed and are gone, so a caller may spare them."""

    def discards_everything(self) -> bool:
        """True."""
        ...


@runtime_checkable
class ChecksCompleteness(Protocol):
    """Capability: an action result is only there while all is that it refers to, so nobody needs to look again."""

    def checks_completeness(self) -> bool:
        """True."""
        ...


@runtime_checkable
class Deletes(Protocol):
    """Capability: blobs can be taken out."""

    async def delete(self, keys: Sequence[Key]) -> None:
        """Takes them out; those that are not there are no error. Readers that are open go on. The empty blob stays."""
        ...


@runtime_checkable
class Removals(Protocol):
    """Capability: the store says what leaves it: evicted, deleted, expired, found wrong, or removed by others."""

    def watch_removals(self) -> RemovalFeed:
        """A new feed of what is removed from now on. It lives as long as somebody holds it."""
        ...


class EncodedReader(NamedTuple):
    """An open blob in the encoding that the store has chosen among the accepted ones."""

    encoding: Encoding
    reader: Reader
    """`size` is that of the encoded bytes from where it was opened, -1 if it is not known beforehand."""
    encoded_size: int = -1
    """Of the whole encoded form. Whoever goes on at an offset compares it: the blob may have been replaced by one that
    was encoded in another way."""


@runtime_checkable
class EncodedBlobs(Protocol):
    """Capability: blobs are taken and given in encoded form, so that nobody unpacks what both ends want packed."""

    def open_encoded(
        self, key: Key, accept: Collection[Encoding], *, offset: int = 0
    ) -> AbstractAsyncContextManager[EncodedReader]:
        """The whole blob, encoded as it is kept if that is in `accept`, else with IDENTITY; from `offset` in those
        bytes. Raises as `Store.open`.
        """
        ...

    async def write_encoded(self, key: Key, reader: Reader, encoding: Encoding) -> None:
        """Stores a blob that comes encoded.

        Who makes the reader has it raise at its end unless the bytes decode to what the key says, as for `write`.
        """
        ...


class ScanPage(NamedTuple):
    """Some of the keys of a store, and where to go on: an empty cursor is the end."""

    entries: Sequence[tuple[Key, int]]
    """Each key with the bytes that it takes."""
    cursor: str


@runtime_checkable
class Scans(Protocol):
    """Capability: what the store holds can be listed."""

    async def scan(self, cursor: str = "", *, limit: int = 1000) -> ScanPage:
        """The next keys, at most `limit`, from where `cursor` of an earlier page says.

        What is there for as long as a whole walk lasts is in one of its pages; what comes or goes may be. Raises
        InvalidRequestError for a cursor that is not of this store.
        """
        ...


@runtime_checkable
class Pins(Protocol):
    """Capability: blobs can be kept from eviction for a while."""

    def pin(self, digests: Collection[Digest]) -> AbstractContextManager[None]:
        """While the block lasts, none of these is evicted. Whoever pins has bounded how much, and for how long: what
        finds no room for pinned blobs is refused.
        """
        ...


@runtime_checkable
class ForwardsHeaders(Protocol):
    """Capability: the store passes headers of the request that causes its work on to its backend.

    Only what some store names here is shown to stores at all (`caller_headers`).
    """

    def forwarded_headers(self) -> Collection[str]:
        """Lower-case names."""
        ...

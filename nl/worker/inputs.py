"""The input root: from a Directory digest to files an action can use.

The graph of Directory messages is fetched level by level, each directory once however often it occurs, checked, and
only then written: directories first, then every file in one `link_files`, then links. Nothing is written through a
symbolic link, since names are single segments, unique in their directory, and links are made last.

Rules: files are 0444 or 0555 and shared with the store, so nobody may chmod or write to them here; a file with
node properties (mtime, unix_mode) is a private copy. Directories are writable. Links are kept as they are, absolute
ones as well (announced as ALLOWED).
"""

from __future__ import annotations

import os
import shutil
import stat
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import trio

from nl.blob.reader import Buffer
from nl.cas.digests import parse_digest
from nl.cas.directories import decode_directory
from nl.errors import BlobNotFoundError, CorruptBlobError, ExhaustedError, InvalidRequestError
from nl.model.digest import EMPTY_DIGESTS, Digest, DigestFunction
from nl.pb import reapi
from nl.storage.capabilities import BlobSizeLimit, Link, LocalFiles
from nl.storage.contract import MAX_WHOLE, Store
from nl.worker.failures import missing_blobs, os_errors
from nl.worker.files import CONCURRENT
from nl.worker.tasks import run_tasks

MAX_ENTRIES = 1_000_000
"""Files, directories and links of one input root, shared ones counted as often as they appear."""
MAX_DEPTH = 256
MAX_LISTING_BYTES = 256 * 1024 * 1024
"""Encoded Directory messages of one input root, each counted once."""
MAX_NAME_BYTES = 255
INLINE_ENTRIES = 64
"""Up to this many are made without a thread: a thread costs as much as ten of them."""
CACHE_BYTES = 16 * 1024 * 1024


class Attributes(NamedTuple):
    """What NodeProperties ask for; None where they ask for nothing."""

    mtime_ns: int | None
    mode: int | None


class InputFile(NamedTuple):
    """A FileNode."""

    name: str
    digest: Digest
    executable: bool
    attributes: Attributes | None


class Listing(NamedTuple):
    """A Directory, decoded and checked."""

    files: tuple[InputFile, ...]
    directories: tuple[tuple[str, Digest], ...]
    symlinks: tuple[tuple[str, str, Attributes | None], ...]
    attributes: Attributes | None
    weight: int
    """Encoded size in bytes."""

    @property
    def entries(self) -> int:
        return len(self.files) + len(self.directories) + len(self.symlinks)


EMPTY_LISTING = Listing((), (), (), None, 0)


def _attributes(properties: reapi.NodeProperties | None) -> Attributes | None:
    if properties is None:
        return None
    mtime, mode = properties.mtime, properties.unix_mode
    if mtime is None and mode is None:
        return None
    return Attributes(
        None if mtime is None else mtime.seconds * 1_000_000_000 + mtime.nanos,
        None if mode is None else mode & 0o777,
    )


def read_listing(digest: Digest, encoded: Buffer) -> Listing:
    """Decodes and checks one Directory; InvalidRequestError names the directory and the entry at fault."""
    directory = decode_directory(digest, encoded)
    for nodes in (directory.files, directory.directories, directory.symlinks):
        for node in nodes:
            if len(node.name) > MAX_NAME_BYTES // 4 and len(os.fsencode(node.name)) > MAX_NAME_BYTES:
                raise InvalidRequestError(f"directory {digest}: the name {node.name[:80]!r}... is too long for a file")
    for link in directory.symlinks:
        if not link.target or "\0" in link.target:
            raise InvalidRequestError(f"directory {digest}: {link.name!r} has the invalid target {link.target[:80]!r}")
    return Listing(
        tuple(
            InputFile(
                node.name,
                parse_digest(node.digest, digest.function, f"directory {digest}: {node.name!r}"),
                node.is_executable,
                _attributes(node.node_properties),
            )
            for node in directory.files
        ),
        tuple(
            (node.name, parse_digest(node.digest, digest.function, f"directory {digest}: {node.name!r}"))
            for node in directory.directories
        ),
        tuple((node.name, node.target, _attributes(node.node_properties)) for node in directory.symlinks),
        _attributes(directory.node_properties),
        len(encoded),
    )


class Listings:
    """Checked directories by digest, the least recently used forgotten first. One per worker: inputs repeat."""

    def __init__(self, store: Store, *, max_bytes: int = CACHE_BYTES) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._bytes = 0
        self._known: OrderedDict[Digest, Listing] = OrderedDict()

    def statistics(self) -> dict[str, int]:
        """What is kept."""
        return {"listings": len(self._known), "listing_bytes": self._bytes}

    def _find(self, digest: Digest) -> Listing | None:
        if digest in EMPTY_DIGESTS:
            return EMPTY_LISTING
        found = self._known.get(digest)
        if found is not None:
            self._known.move_to_end(digest)
        return found

    async def load(self, digest: Digest) -> Listing | None:
        """One directory, None if it is missing."""
        if (found := self._find(digest)) is not None:
            return found
        if digest.size > MAX_WHOLE:
            raise InvalidRequestError(f"directory {digest} is larger than the limit of {MAX_WHOLE} bytes")
        try:
            encoded = await self._store.get(digest)
        except (BlobNotFoundError, CorruptBlobError):  # an upload mends both
            return None
        listing = read_listing(digest, encoded)
        if digest not in self._known:
            self._known[digest] = listing
            self._bytes += listing.weight
            while self._bytes > self._max_bytes:
                self._bytes -= self._known.popitem(last=False)[1].weight
        return listing

    async def closure(self, root: Digest) -> tuple[dict[Digest, Listing], list[Digest]]:
        """Every directory below `root`, and those that are missing."""
        found: dict[Digest, Listing] = {}
        missing: dict[Digest, None] = {}
        level, depth, weight = [root], 0, 0
        while level:
            if depth > MAX_DEPTH:
                raise InvalidRequestError(f"the input root {root} is deeper than {MAX_DEPTH} directories")
            for digest, listing in zip(level, await self._load_all(level), strict=True):
                if listing is None:
                    missing[digest] = None
                else:
                    found[digest] = listing
                    weight += listing.weight
            if weight > MAX_LISTING_BYTES:
                raise InvalidRequestError(f"the directories of the input root {root} exceed {MAX_LISTING_BYTES} bytes")
            level = [
                child
                for child in dict.fromkeys(
                    child for digest in level if digest in found for _name, child in found[digest].directories
                )
                if child not in found and child not in missing
            ]
            depth += 1
        return found, list(missing)

    async def _load_all(self, digests: list[Digest]) -> list[Listing | None]:
        results = [self._find(digest) for digest in digests]
        absent = [at for at, listing in enumerate(results) if listing is None]
        if len(absent) <= 2:
            for at in absent:
                results[at] = await self.load(digests[at])
            return results
        order = iter(absent)

        async def fetch() -> None:
            for at in order:
                results[at] = await self.load(digests[at])

        await run_tasks(min(CONCURRENT, len(absent)), fetch)
        return results


class Layout:
    """Where everything of an input root goes: absolute paths, parents first."""

    __slots__ = ("directories", "directories_with_properties", "files_with_properties", "links", "symlinks")

    def __init__(self) -> None:
        self.directories: list[str] = []
        self.links: list[Link] = []
        self.symlinks: list[tuple[str, str, Attributes | None]] = []
        self.files_with_properties: list[tuple[str, Attributes]] = []
        """They get copies of their own."""
        self.directories_with_properties: list[tuple[str, Attributes]] = []

    @property
    def entries(self) -> int:
        return len(self.directories) + len(self.links) + len(self.symlinks)


def lay_out(root: Digest, path: str, listings: dict[Digest, Listing]) -> Layout:
    """Expands the graph into paths. Raises InvalidRequestError beyond MAX_ENTRIES or MAX_DEPTH."""
    layout = Layout()
    left = MAX_ENTRIES
    stack = [(path, root, 0)]
    while stack:
        here, digest, depth = stack.pop()
        listing = listings[digest]
        left -= listing.entries
        if left < 0:
            raise InvalidRequestError(f"the input root {root} has more than {MAX_ENTRIES} entries")
        if depth > MAX_DEPTH:
            raise InvalidRequestError(f"the input root {root} is deeper than {MAX_DEPTH} directories")
        if listing.attributes is not None:
            layout.directories_with_properties.append((here, listing.attributes))
        for file in listing.files:
            target = f"{here}/{file.name}"
            layout.links.append(Link(file.digest, target, file.executable))
            if file.attributes is not None:
                layout.files_with_properties.append((target, file.attributes))
        for name, target, attributes in listing.symlinks:
            layout.symlinks.append((f"{here}/{name}", target, attributes))
        for name, child in listing.directories:
            layout.directories.append(f"{here}/{name}")
            stack.append((f"{here}/{name}", child, depth + 1))
    return layout


def make_directories(paths: Iterable[str]) -> None:
    """Makes directories that do not exist, parents first. Blocks."""
    for path in paths:
        os.mkdir(path, 0o755)


def finish(layout: Layout) -> None:
    """Links and node properties, after the files. Blocks."""
    for path, target, attributes in layout.symlinks:
        os.symlink(target, path)
        if attributes is not None and attributes.mtime_ns is not None:
            os.utime(path, ns=(attributes.mtime_ns, attributes.mtime_ns), follow_symlinks=False)
    for path, attributes in layout.files_with_properties:
        _make_private(path, attributes)
    # Children first: making them has changed the parent's mtime.
    for path, attributes in reversed(layout.directories_with_properties):
        if attributes.mode is not None:
            os.chmod(path, attributes.mode | stat.S_IRWXU)
        if attributes.mtime_ns is not None:
            os.utime(path, ns=(attributes.mtime_ns, attributes.mtime_ns))


def _make_private(path: str, attributes: Attributes) -> None:
    """Replaces a file shared with the store by a copy with attributes of its own."""
    copy = f"{path}.{os.getpid():x}.nl"
    if len(os.fsencode(os.path.basename(copy))) > MAX_NAME_BYTES:
        copy = os.path.join(os.path.dirname(path), f".{os.getpid():x}.nl")
    mode = attributes.mode if attributes.mode is not None else stat.S_IMODE(os.stat(path).st_mode)
    with open(path, "rb") as source, open(copy, "xb") as sink:
        shutil.copyfileobj(source, sink, 1024 * 1024)
        os.fchmod(sink.fileno(), mode)
    os.replace(copy, path)
    if attributes.mtime_ns is not None:
        os.utime(path, ns=(attributes.mtime_ns, attributes.mtime_ns))


def _all_files(listings: Iterable[Listing]) -> Iterator[Digest]:
    for listing in listings:
        for file in listing.files:
            yield file.digest


def _refuse_too_large(root: Digest, found: Mapping[Digest, Listing], store: Store) -> None:
    """Where something is missing: ExhaustedError if uploading it again could not help."""
    bound = store.capability(BlobSizeLimit)
    if bound is None:
        return
    limit = bound.max_blob_bytes()
    size = sum(digest.size for digest in set(_all_files(found.values())) | set(found))
    if size > limit:
        raise ExhaustedError(
            f"the input root {root} has {size} bytes, of which some are missing: its store, the worker's "
            f"cas_fast_slow_store, keeps no more than {limit}; set its eviction_policy.max_bytes to several times that"
        )


async def materialise(
    root: Digest, path: str, *, listings: Listings, store: Store, files: LocalFiles, function: DigestFunction
) -> bool:
    """Makes the input root at `path`, a directory that exists and is empty. Whether there are symbolic links in it.

    Raises PreconditionError listing every missing blob, InvalidRequestError for a malformed tree or one that is too
    large, ExhaustedError if the disk is full. What has been written by then is left for the caller to remove.
    """
    found, missing = await listings.closure(root)
    if missing:
        _refuse_too_large(root, found, store)
        wanted = list(dict.fromkeys(_all_files(found.values())))
        sizes = await store.has(wanted)
        raise missing_blobs(
            [*missing, *(digest for digest, size in zip(wanted, sizes, strict=True) if size is None)], function
        )
    size = sum(listing.entries for listing in found.values())
    large = size > INLINE_ENTRIES or len(found) > INLINE_ENTRIES
    if large:
        layout = await trio.to_thread.run_sync(lay_out, root, path, found)
    else:
        layout = lay_out(root, path, found)
        large = layout.entries > INLINE_ENTRIES
    with os_errors("cannot make the input root", full="the worker's work_directory needs a larger disk"):
        if large:
            await trio.to_thread.run_sync(make_directories, layout.directories)
        else:
            make_directories(layout.directories)
        if layout.links and (absent := await files.link_files(layout.links)):
            _refuse_too_large(root, found, store)
            raise missing_blobs(absent, function)
        if large or layout.files_with_properties:
            await trio.to_thread.run_sync(finish, layout)
        else:
            finish(layout)
    return bool(layout.symlinks)

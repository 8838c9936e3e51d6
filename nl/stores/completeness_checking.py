"""The `completeness_checking` kind: an action cache whose hits are worth something.

A result is only there if everything that it refers to is in the CAS: output files, stdout, stderr, Trees and the files
in them (REAPI: a hit whose blobs are gone breaks the build that trusts it). Asking also makes those blobs recent, so
that they live on. What a result refers to is parsed once and remembered as long as the stored bytes are the same; that
it still exists is asked every time.

Only values under an ActionKey are results. Other keys pass through unchecked.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import NamedTuple

from nl.cas.action_results import read_value, unseal
from nl.cas.digests import parse_digest
from nl.cas.directories import decode_directory, walk
from nl.cas.large import off_loop_if_large
from nl.cas.references import direct_references, tree_digests, tree_references
from nl.pb import reapi
from nl.pb.codec import DecodeError, decode
from nl.plugin import (
    ActionKey,
    BlobNotFoundError,
    Buffer,
    CorruptBlobError,
    Digest,
    DigestFunction,
    EvictionPolicy,
    ExhaustedError,
    InvalidRequestError,
    Key,
    LruIndex,
    NotFoundError,
    Options,
    Reader,
    Store,
    StoreContext,
    StoreSpec,
    read_all,
    slice_bytes,
)

REMEMBERED_BYTES = 32 * 1024 * 1024
"""Memory for what results refer to."""
REFERENCE_BYTES = 320
"""What one remembered digest costs, roughly."""
MAX_TREE_BYTES = 64 * 1024 * 1024
"""Larger Trees are not read; a result with one counts as incomplete."""
_log = logging.getLogger(__name__)


class CompletenessCheckingOptions(Options):
    """An action cache that does not report results whose outputs are gone from the CAS."""

    EXAMPLE = '{ completeness_checking: { backend: { memory: {} }, cas_store: { ref_store: { name: "CAS" } } } }'

    backend: StoreSpec
    """The action cache."""
    cas_store: StoreSpec
    """Where the outputs have to be."""


class _Known(NamedTuple):
    value: Buffer
    references: tuple[Digest, ...]


class _Named(NamedTuple):
    """What a result names: blobs, and among them the Trees and root directories that have to be looked into."""

    direct: list[Digest]
    trees: list[Digest]
    roots: list[Digest]


def _named_in(value: Buffer, function: DigestFunction) -> _Named:
    result = decode(reapi.ActionResult, unseal(value))
    roots = [
        parse_digest(directory.root_directory_digest, function, "root directory")
        for directory in result.output_directories
        if directory.tree_digest is None
    ]
    return _Named(direct_references(result, function), tree_digests(result, function), roots)


class _IncompleteError(Exception):
    """A result does not count as a hit; the text says why."""


class CompletenessCheckingStore(Store):
    """Checks when asked or read; what is written passes straight through.

    A CAS that cannot be reached is an UnavailableError, not a miss: a miss would have everything built again.
    """

    Options = CompletenessCheckingOptions

    def __init__(self, options: CompletenessCheckingOptions, context: StoreContext) -> None:
        self._name = context.name
        self._backend = context.child(options.backend)
        self._cas = context.child(options.cas_store)
        self._known: LruIndex[ActionKey, _Known] = LruIndex(EvictionPolicy(max_bytes=REMEMBERED_BYTES))
        self._complete = 0
        self._incomplete = 0

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        sizes = await self._backend.has(keys)
        for index, key in enumerate(keys):
            if isinstance(key, ActionKey) and sizes[index] is not None:
                try:
                    sizes[index] = len(await self._checked(key, await self._read(key)))
                except NotFoundError:
                    sizes[index] = None
        return sizes

    async def get(self, key: Key) -> Buffer:
        value = await self._backend.get(key)
        return await self._checked(key, value) if isinstance(key, ActionKey) else value

    async def _read(self, key: ActionKey) -> Buffer:
        """The stored value; one that is larger than any result can be is none."""
        try:
            return await read_value(self._backend, key)
        except CorruptBlobError as error:
            self._incomplete += 1
            _log.warning("%s: the result of %s counts as a miss: %s", self._name, key, error)
            raise BlobNotFoundError(key, message=f"{key}: {error.message}") from None

    async def _checked(self, key: ActionKey, value: Buffer) -> Buffer:
        """The value, if everything that it refers to is there; BlobNotFoundError if not."""
        known = self._known.get(key)
        try:
            if known is not None and (known.value is value or known.value == value):
                references = known.references
            else:
                references = await self._learn(key, value)
            if None in await self._cas.has(references):
                raise _IncompleteError("a blob that it refers to is not in the CAS")
        except _IncompleteError as reason:
            self._incomplete += 1
            _log.debug("%s: the result of %s is incomplete: %s", self._name, key, reason)
            raise BlobNotFoundError(
                key, message=f"{key}: found, but not everything that the action result refers to is in the CAS"
            ) from None
        self._complete += 1
        return value

    @asynccontextmanager
    async def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AsyncIterator[Reader]:
        if isinstance(key, ActionKey):
            value = await self._checked(key, await self._read(key))
            yield slice_bytes(value, offset=offset, length=length)
        else:
            async with self._backend.open(key, offset=offset, length=length) as reader:
                yield reader

    async def put(self, key: Key, data: Buffer) -> None:
        await self._backend.put(key, data)

    async def write(self, key: Key, reader: Reader) -> None:
        await self._backend.write(key, reader)

    def statistics(self) -> Mapping[str, int | float | str]:
        return {
            "complete": self._complete,
            "incomplete": self._incomplete,
            "remembered_results": len(self._known),
            "remembered_bytes": self._known.total_bytes,
        }

    async def _learn(self, key: ActionKey, value: Buffer) -> tuple[Digest, ...]:
        """What a stored result refers to, Trees read and unfolded; remembered for the next time."""
        try:
            named = await off_loop_if_large(partial(_named_in, function=key.function), value)
            found = dict.fromkeys(named.direct)
            for digest in named.trees:
                found.update(dict.fromkeys(await self._read_tree(digest)))
            for root in named.roots:
                found.update(dict.fromkeys(await self._walk(root)))
        except (CorruptBlobError, DecodeError, ExhaustedError, InvalidRequestError) as error:
            _log.warning("%s: the result of %s counts as a miss: %s", self._name, key, error)
            raise _IncompleteError(str(error)) from None
        except NotFoundError as error:
            raise _IncompleteError(error.message) from None
        references = tuple(found)
        size = len(value) + REFERENCE_BYTES * (len(references) + 2)
        if self._known.fits(size):
            self._known.insert(key, _Known(bytes(value), references), size=size)
        return references

    async def _read_tree(self, digest: Digest) -> list[Digest]:
        """The files in a Tree."""
        if digest.size > MAX_TREE_BYTES:
            raise _IncompleteError(f"its tree {digest} is too large to look into")
        async with self._cas.open(digest) as reader:
            return await off_loop_if_large(partial(tree_references, digest), await read_all(reader))

    async def _walk(self, root: Digest) -> list[Digest]:
        """The directories and files under a root directory. All directories must be there, or files would go unseen."""
        directories: set[Digest] = set()
        wanted: set[Digest] = {root}
        files: dict[Digest, None] = {}
        async with aclosing(walk(self._cas, root)) as walking:
            async for loaded in walking:
                directories.add(loaded.digest)
                wanted.update(loaded.children)
                for file in decode_directory(loaded.digest, loaded.encoded).files:
                    files[parse_digest(file.digest, root.function, file.name)] = None
        if wanted - directories:
            raise _IncompleteError(f"a directory under {root} is not in the CAS")
        return [*directories, *files]

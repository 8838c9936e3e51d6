"""Whether an action result is worth anything: whether all that it refers to is in the CAS.

REAPI: a hit whose blobs are gone breaks the build that trusts it. Output files, stdout, stderr, Trees and the files in
them, root directories and all below them have to be there. Asking also makes those blobs recent, so that they live on.

What a result refers to is read once and remembered as long as the stored bytes are the same; what is in a Tree, or
below a root directory, is remembered by its digest, and can never change. That it is all still there is asked every
time: in one trip, or in slices of a few milliseconds where it is very much.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from itertools import chain, islice
from typing import Final, Literal, NamedTuple

import trio

from nl.blob.reader import Buffer
from nl.cas.action_results import unseal
from nl.cas.directories import LoadedDirectory, walk
from nl.cas.file_digests import PART_BYTES, FileDigests
from nl.cas.large import off_loop_if_large
from nl.cas.packed import PackedDigests
from nl.cas.references import direct_references, root_digests, tree_digests
from nl.config.types import EvictionPolicy
from nl.errors import CorruptBlobError, ExhaustedError, InvalidRequestError, NotFoundError
from nl.model.digest import ActionKey, Digest, DigestFunction
from nl.pb import reapi
from nl.pb.codec import DecodeError, decode
from nl.storage.contract import Store
from nl.storage.eviction import LruIndex

REMEMBERED_BYTES: Final = 32 * 1024 * 1024
"""Memory for what results refer to, and as much again for what is in their directories."""
MAX_TREE_BYTES: Final = 64 * 1024 * 1024
"""Larger Trees are not read; a result with one counts as incomplete."""
_REFERENCE_BYTES: Final = 320
"""What a remembered Digest costs, roughly."""
_FEW: Final = 100
"""References that are kept as they are; more are packed."""
_SLICE: Final = 2048
"""Keys asked for at once: a few milliseconds in a store on this machine."""
_LARGE_AT_ONCE: Final = 4
"""Results with large directories, or more than a slice of references, that are looked into at once: each takes a slice
of every turn of the loop, and one that is read for the first time up to 32 MiB of memory."""
_Kind = Literal["tree", "root"]
_log = logging.getLogger(__name__)


class IncompleteError(NotFoundError):
    """A result does not count as a hit; the message says why."""


class _Known(NamedTuple):
    value: Buffer
    direct: Sequence[Digest] | PackedDigests
    trees: Sequence[Digest]
    roots: Sequence[Digest]


class Completeness:
    """Asks one CAS about action results. `name` is for logs."""

    def __init__(self, cas: Store, *, name: str) -> None:
        self._cas = cas
        self._name = name
        self._results: LruIndex[ActionKey, _Known] = LruIndex(EvictionPolicy(max_bytes=REMEMBERED_BYTES))
        self._directories: LruIndex[tuple[_Kind, Digest], PackedDigests] = LruIndex(
            EvictionPolicy(max_bytes=REMEMBERED_BYTES)
        )
        self._large = trio.CapacityLimiter(_LARGE_AT_ONCE)
        self._complete = 0
        self._incomplete = 0

    async def require(self, key: ActionKey, value: Buffer, *, sealed: bool = False) -> None:
        """Raises IncompleteError unless everything is there that the result `value` refers to.

        `sealed`: it is as it is stored, else as it goes to clients.
        A CAS that cannot be reached is its UnavailableError, not a miss: a miss would have everything built again.
        """
        try:
            known = self._results.get(key)
            if known is None or not (known.value is value or known.value == value):
                known = await self._learn(key, value, sealed=sealed)
            if known.trees or known.roots or isinstance(known.direct, PackedDigests):
                await self._require_all(known)
            elif known.direct:
                await self._require_few(known.direct)
        except IncompleteError as reason:
            self._incomplete += 1
            _log.debug("%s: the result of %s is incomplete: %s", self._name, key, reason.message)
            raise
        self._complete += 1

    async def _require_few(self, direct: Sequence[Digest]) -> None:
        if None in await self._cas.has(direct):
            raise _gone()

    async def _require_all(self, known: _Known) -> None:
        """Direct references and what is in directories, in as few trips as may be.

        However many directories a result has, no more than two slices of references are held besides its own.
        """
        held: list[Iterable[Digest]] = [known.direct]
        count = len(known.direct)
        directories: list[tuple[_Kind, Digest]] = [("tree", tree) for tree in known.trees]
        directories += [("root", root) for root in known.roots]
        for kind, digest in directories:
            if count > _SLICE:
                await self._ask_in_turn(held)
                held, count = [], 0
            few = await self._few_inside(kind, digest, held)
            if few is None:
                held, count = [], 0
            else:
                held.append(few)
                count += len(few)
        await (self._ask_in_turn(held) if count > _SLICE else self._ask(chain(*held)))

    async def _ask_in_turn(self, held: Sequence[Iterable[Digest]]) -> None:
        async with self._large:
            await self._ask(chain(*held))

    async def _ask(self, digests: Iterable[Digest]) -> None:
        source = iter(digests)
        while some := list(islice(source, _SLICE)):
            if None in await self._cas.has(some):
                raise _gone()
            if len(some) == _SLICE:
                await trio.lowlevel.checkpoint()

    async def _learn(self, key: ActionKey, value: Buffer, *, sealed: bool) -> _Known:
        try:
            known = await off_loop_if_large(partial(_read_result, function=key.function, sealed=sealed), value)
        except (CorruptBlobError, DecodeError, InvalidRequestError) as error:
            raise self._unreadable(key, error) from None
        size = len(value) + _REFERENCE_BYTES * (2 + len(known.trees) + len(known.roots))
        size += known.direct.bytes_kept if isinstance(known.direct, PackedDigests) else (
            _REFERENCE_BYTES * len(known.direct)
        )
        if self._results.fits(size):
            self._results.insert(key, known, size=size)
        return known

    async def _few_inside(
        self, kind: _Kind, digest: Digest, held: Sequence[Iterable[Digest]]
    ) -> PackedDigests | None:
        """What is in a Tree, or below a root directory, if it is few. What is many is asked about here, together with
        `held`, and None returned: whoever waits for its turn holds none of it, and nobody keeps it who has had it.
        """
        found = self._directories.get((kind, digest))
        if found is None and kind == "tree" and digest.size <= PART_BYTES:
            found = await self._read(kind, digest)
        if found is not None and len(found) <= _SLICE:
            return found
        del found
        async with self._large:
            found = self._directories.get((kind, digest))
            if found is None:
                found = await self._read(kind, digest)
            if len(found) <= _SLICE:
                return found
            await self._ask(chain(*held, found))
        return None

    async def _read(self, kind: _Kind, digest: Digest) -> PackedDigests:
        """What is in it; remembered."""
        try:
            found = await (self._read_tree(digest) if kind == "tree" else self._walk(digest))
        except (CorruptBlobError, ExhaustedError, InvalidRequestError) as error:
            raise self._unreadable(digest, error) from None
        except IncompleteError:
            raise
        except NotFoundError as error:
            raise IncompleteError(error.message) from None
        if self._directories.fits(found.bytes_kept):
            self._directories.insert((kind, digest), found, size=found.bytes_kept)
        return found

    async def _read_tree(self, digest: Digest) -> PackedDigests:
        """The files in a Tree."""
        if digest.size > MAX_TREE_BYTES:
            raise IncompleteError(f"its tree {digest} is too large to look into")
        files = FileDigests(digest, is_tree=True)
        async with self._cas.open(digest) as reader:
            while parts := await reader.receive_parts(PART_BYTES):
                for part in parts:
                    files.feed(part)
                if digest.size > PART_BYTES:
                    await trio.lowlevel.checkpoint()
        return files.finish()

    async def _walk(self, root: Digest) -> PackedDigests:
        """The directories and files under a root directory. All directories must be there, or files would go unseen."""
        directories: set[Digest] = set()
        wanted: set[Digest] = {root}
        records = bytearray()
        async with aclosing(walk(self._cas, root)) as walking:
            async for loaded in walking:
                directories.add(loaded.digest)
                wanted.update(loaded.children)
                records += await _files_of(loaded)
        if wanted - directories:
            raise IncompleteError(f"a directory under {root} is not in the CAS")
        records += PackedDigests.of(list(directories), root.function).records
        return PackedDigests(records, root.function)

    def _unreadable(self, what: object, error: Exception) -> IncompleteError:
        _log.warning("%s: a result counts as a miss: %s: %s", self._name, what, error)
        return IncompleteError(f"{what}: {error}")

    def statistics(self) -> Mapping[str, int | float | str]:
        """Counters and what is remembered."""
        return {
            "complete": self._complete,
            "incomplete": self._incomplete,
            "remembered_results": len(self._results),
            "remembered_directories": len(self._directories),
            "remembered_bytes": self._results.total_bytes + self._directories.total_bytes,
        }


def _read_result(value: Buffer, *, function: DigestFunction, sealed: bool) -> _Known:
    result = decode(reapi.ActionResult, unseal(value) if sealed else value)
    direct = direct_references(result, function)
    return _Known(
        bytes(value),
        tuple(direct) if len(direct) <= _FEW else PackedDigests.of(direct, function),
        tuple(tree_digests(result, function)),
        tuple(root_digests(result, function)),
    )


async def _files_of(loaded: LoadedDirectory) -> memoryview:
    """Records of the files in one directory."""
    files = FileDigests(loaded.digest, is_tree=False)
    encoded = memoryview(loaded.encoded)
    for at in range(0, len(encoded), PART_BYTES):
        files.feed(encoded[at : at + PART_BYTES])
        await trio.lowlevel.checkpoint()
    return files.finish().records


def _gone() -> IncompleteError:
    return IncompleteError("found, but not everything that the action result refers to is in the CAS")

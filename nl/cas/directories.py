"""Directory messages in a store: decoded, validated, and walked as the graph that they are.

Directories form a DAG: equal subtrees have equal digests, and a graph of n levels may stand for 2^n paths. Everything
here visits a digest once. Not here: GetTree's pages (`nl.services.cas`), writing trees to disk (the worker).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Collection, Sequence
from functools import partial
from typing import NamedTuple

from nl.blob.reader import Buffer
from nl.cas.digests import parse_digest
from nl.cas.large import off_loop_if_large
from nl.errors import BlobNotFoundError, ExhaustedError, InvalidRequestError, NlError
from nl.model.digest import Digest
from nl.pb import reapi
from nl.pb.codec import DecodeError, decode
from nl.pb.codec.wire import skip_field
from nl.storage.contract import Store

MAX_DIRECTORIES = 250_000
"""A walk that meets more distinct directories ends in ExhaustedError: some 100 bytes of memory each."""
Node = reapi.FileNode | reapi.DirectoryNode | reapi.SymlinkNode
_DIRECTORIES_TAG = 0x12
"""Tag of Directory.directories."""
_WINDOW_BLOBS = 256
_WINDOW_BYTES = 4 * 1024 * 1024
"""How much of a tree is in memory at once."""


class LoadedDirectory(NamedTuple):
    """One directory met on a walk: `encoded` is what the store holds, `children` the subdirectories it names, `known`
    how many directories the walk knows of so far.
    """

    digest: Digest
    encoded: Buffer
    children: Sequence[Digest]
    known: int = 0


def decode_directory(digest: Digest, encoded: Buffer) -> reapi.Directory:
    """Decodes a Directory and checks every name in it.

    Raises InvalidRequestError naming the directory and what is wrong: undecodable bytes, a child without digest, a
    name that is empty, `.`, `..`, has a slash or a NUL, or occurs twice. Order is not checked (REAPI leaves that to
    the server), names are: nothing may ever leave its directory (REAPI, Directory).
    """
    directory = _decode(digest, encoded)
    check_names(digest, [node.name for kind in _kinds(directory) for node in kind])
    for nodes in (directory.files, directory.directories):
        for node in nodes:
            if node.digest is None:
                raise InvalidRequestError(f"directory {digest}: {node.name!r} has no digest")
    return directory


def check_names(where: object, names: Collection[str]) -> None:
    """Raises InvalidRequestError unless all are single, distinct path segments."""
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise InvalidRequestError(f"directory {where}: invalid name {name[:200]!r}")
    if len(set(names)) != len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise InvalidRequestError(f"directory {where}: the name {twice[:200]!r} occurs twice")


def child_digests(digest: Digest, encoded: Buffer) -> list[Digest]:
    """The digests of the subdirectories that an encoded Directory names, in its order.

    Raises InvalidRequestError if it is no Directory or names a malformed digest. Its files, of which there are more,
    are stepped over and not decoded.
    """
    whole = bytes(encoded)
    records: list[bytes] = []
    at, end = 0, len(whole)
    try:
        while at < end:
            start = at
            at = skip_field(whole, at, end)
            if whole[start] == _DIRECTORIES_TAG:
                records.append(whole[start:at])
    except IndexError:
        raise InvalidRequestError(f"{digest} is not a Directory: truncated") from None
    except DecodeError as exc:
        raise InvalidRequestError(f"{digest} is not a Directory: {exc}") from exc
    if not records:
        return []
    nodes = _decode(digest, b"".join(records)).directories
    return [parse_digest(node.digest, digest.function, f"directory {digest}: {node.name!r}") for node in nodes]


async def walk(store: Store, root: Digest, *, limit: int = MAX_DIRECTORIES) -> AsyncGenerator[LoadedDirectory, None]:
    """All distinct directories reachable from `root`, breadth first, parents' order kept, each once.

    Missing children are left out (REAPI GetTree). Raises BlobNotFoundError if the root is missing, ExhaustedError
    after `limit` directories or if one is larger than a store's `get` allows, InvalidRequestError if a blob is no
    Directory. No nursery stays open across a `yield`; close it with `contextlib.aclosing`.
    """
    seen = {root}
    queue = [root]
    while queue:
        found: list[Digest] = []
        at = 0
        while at < len(queue):
            window = _window(queue, at)
            at += len(window)
            for digest, encoded in zip(window, await _load(store, window), strict=True):
                if encoded is None:
                    if digest == root:
                        raise BlobNotFoundError(root)
                    continue
                children = await off_loop_if_large(partial(child_digests, digest), encoded)
                for child in children:
                    if child not in seen:
                        seen.add(child)
                        found.append(child)
                if len(seen) > limit:
                    raise ExhaustedError(f"the tree {root} has more than {limit} distinct directories")
                yield LoadedDirectory(digest, encoded, children, len(seen))
        queue = found


def _window(queue: Sequence[Digest], start: int) -> Sequence[Digest]:
    end, total = start, 0
    while end < len(queue) and end - start < _WINDOW_BLOBS:
        total += queue[end].size
        if total > _WINDOW_BYTES and end > start:
            break
        end += 1
    return queue[start:end]


async def _load(store: Store, digests: Sequence[Digest]) -> list[Buffer | None]:
    """The blobs in order, None where missing; asked for at once, as a store far away takes its time for each trip."""
    loaded: list[Buffer | None] = []
    for found in await store.get_many(digests):
        if isinstance(found, NlError) and not isinstance(found, BlobNotFoundError):
            raise found
        loaded.append(None if isinstance(found, BlobNotFoundError) else found)
    return loaded


def _decode(digest: Digest, encoded: Buffer) -> reapi.Directory:
    try:
        return decode(reapi.Directory, bytes(encoded))
    except DecodeError as exc:
        raise InvalidRequestError(f"{digest} is not a Directory: {exc}") from exc


def _kinds(directory: reapi.Directory) -> tuple[Sequence[Node], ...]:
    return (directory.files, directory.directories, directory.symlinks)

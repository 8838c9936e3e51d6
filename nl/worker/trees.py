"""One output directory as Directory messages and as a Tree.

A Tree is written record by record: the root, then every distinct directory below it once, parents before children
(`is_topologically_sorted`). Names are sorted by their UTF-8 bytes. The same content gives the same bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from nl.blob.hashing import digest_of
from nl.errors import InvalidRequestError
from nl.model.digest import Digest, DigestFunction
from nl.pb import reapi, wkt
from nl.pb.codec import encode
from nl.worker.files import Hashed

MAX_ENTRIES = 1_000_000
"""Files, directories and links of one output directory."""


class DirectoryBlobs(NamedTuple):
    """A directory and all below it."""

    root: Digest
    blobs: dict[Digest, bytes]
    """Encoded Directory messages, parents before children, the root first."""


def message_of(digest: Digest) -> reapi.Digest:
    """The digest as a message."""
    return reapi.Digest(hash=digest.hash, size_bytes=digest.size)


def node_properties(wanted: frozenset[str], status: os.stat_result) -> reapi.NodeProperties | None:
    """The properties that Command.output_node_properties asks for."""
    if not wanted:
        return None
    properties = reapi.NodeProperties()
    if "mtime" in wanted:
        seconds, nanos = divmod(status.st_mtime_ns, 1_000_000_000)
        properties.mtime = wkt.Timestamp(seconds=seconds, nanos=nanos)
    if "unix_mode" in wanted:
        properties.unix_mode = stat.S_IMODE(status.st_mode)
    return properties


def checked_text(name: str, where: str) -> str:
    """A file name as protobuf can carry it. InvalidRequestError if it is not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(f"{where!r} has a name that is not UTF-8") from None
    return name


def link_target(path: str, root: str) -> str:
    """What a link says; an absolute way into the input root, which ends with the action, is made relative."""
    target = os.readlink(path)
    if target == root or target.startswith(root + "/"):
        target = os.path.relpath(target, os.path.dirname(path))
    return checked_text(target, os.path.relpath(path, root))


class DirectoryScanner:
    """Turns directories into messages. Blocks. `hash_path` hashes a regular file and notes it for upload."""

    def __init__(
        self,
        root: str,
        *,
        function: DigestFunction,
        properties: frozenset[str],
        hash_path: Callable[[str], Hashed],
    ) -> None:
        self._root = root
        self._function = function
        self._properties = properties
        self._hash_path = hash_path

    def scan(self, path: str) -> DirectoryBlobs:
        """Reads the directory `path` and all below it; links are not followed."""
        digests: dict[str, Digest] = {}
        blobs: dict[Digest, bytes] = {}
        children: dict[Digest, list[Digest]] = {}
        for directory, entries in reversed(self._walk(path)):  # children before their parents
            message = self._directory(directory, entries, digests)
            data = encode(message)
            digest = digest_of(data, self._function)
            digests[directory] = digest
            blobs[digest] = data
            children[digest] = [digests[f"{directory}/{node.name}"] for node in message.directories]
        root = digests[path]
        return DirectoryBlobs(root, {digest: blobs[digest] for digest in _parents_first(root, children)})

    def _walk(self, path: str) -> list[tuple[str, list[tuple[str, os.stat_result]]]]:
        """Every directory with its entries sorted by name, parents first."""
        walked = []
        left = MAX_ENTRIES
        stack = [path]
        while stack:
            here = stack.pop()
            entries = sorted(_list(here), key=lambda entry: entry[0].encode("utf-8", "surrogateescape"))
            left -= len(entries)
            if left < 0:
                raise InvalidRequestError(f"an output directory has more than {MAX_ENTRIES} entries")
            walked.append((here, entries))
            stack.extend(f"{here}/{name}" for name, status in reversed(entries) if stat.S_ISDIR(status.st_mode))
        return walked

    def _directory(
        self, path: str, entries: list[tuple[str, os.stat_result]], digests: dict[str, Digest]
    ) -> reapi.Directory:
        directory = reapi.Directory()
        for name, status in entries:
            where = f"{path}/{name}"
            checked_text(name, os.path.relpath(where, self._root))
            properties = node_properties(self._properties, status)
            if stat.S_ISREG(status.st_mode):
                directory.files.append(
                    reapi.FileNode(
                        name=name,
                        digest=message_of(self._hash_path(where).digest),
                        is_executable=bool(status.st_mode & 0o111),
                        node_properties=properties,
                    )
                )
            elif stat.S_ISDIR(status.st_mode):
                directory.directories.append(reapi.DirectoryNode(name=name, digest=message_of(digests[where])))
            elif stat.S_ISLNK(status.st_mode):
                directory.symlinks.append(
                    reapi.SymlinkNode(name=name, target=link_target(where, self._root), node_properties=properties)
                )
            else:
                raise InvalidRequestError(
                    f"{os.path.relpath(where, self._root)!r} is no file, directory or symbolic link"
                )
        if self._properties:
            directory.node_properties = node_properties(self._properties, os.lstat(path))
        return directory


def _list(path: str) -> list[tuple[str, os.stat_result]]:
    try:
        with os.scandir(path) as entries:
            return [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    except PermissionError:
        os.chmod(path, stat.S_IRWXU)
        with os.scandir(path) as entries:
            return [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]


def _parents_first(root: Digest, children: dict[Digest, list[Digest]]) -> list[Digest]:
    """The digests below `root`, each once, every one after all that contain it: reverse postorder."""
    order: list[Digest] = []
    seen = {root}
    stack = [(root, iter(reversed(children[root])))]
    while stack:
        digest, rest = stack[-1]
        for child in rest:
            if child not in seen:
                seen.add(child)
                stack.append((child, iter(reversed(children[child]))))
                break
        else:
            order.append(digest)
            stack.pop()
    order.reverse()
    return order


def _record(tag: int, data: bytes) -> bytes:
    length, head = len(data), bytearray([tag])
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return bytes(head) + data


def tree_bytes(found: DirectoryBlobs) -> bytes:
    """The Tree message: tag 0x0a once for the root, then 0x12 for each other directory (REAPI, OutputDirectory)."""
    return b"".join(
        _record(0x0A if digest == found.root else 0x12, data) for digest, data in found.blobs.items()
    )

"""The outputs of an action: found, hashed, and handed to the store.

Runs when no process of the action is left, so what is looked at stays as it is. Two steps: `scan` looks at the files
and builds the messages (it blocks: larger outputs go to a thread), then the blobs go to the store, each once.

Rules: nothing outside of the input root is ever read, whatever links the action has made: a path is followed link by
link only as long as it stays inside, and files are opened without following links. Files that have other names
(`st_nlink` > 1) are copied, never taken over. Absent outputs are left out (REAPI, ActionResult.output_files).
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from nl.blob.hashing import digest_of
from nl.blob.reader import BytesReader
from nl.errors import InvalidRequestError
from nl.model.digest import EMPTY_DIGESTS, Digest, DigestFunction
from nl.pb import reapi
from nl.storage.capabilities import LocalFiles
from nl.storage.contract import SMALL, Store
from nl.worker.command import CommandPlan, Output
from nl.worker.containment import Inside
from nl.worker.crew import run_crew
from nl.worker.failures import os_errors
from nl.worker.files import CONCURRENT, Hashed, hash_file
from nl.worker.trees import DirectoryScanner, link_target, message_of, node_properties, tree_bytes

INLINE_BYTES = 128 * 1024
INLINE_OUTPUTS = 16
"""Fewer and smaller outputs are hashed without a thread."""


class Found(NamedTuple):
    """A regular file to be stored."""

    path: str
    shared: bool
    """It has other names, so it must not be moved away."""


@dataclass(slots=True)
class Outputs:
    """What was found: the messages, and the blobs behind them."""

    files: list[reapi.OutputFile] = field(default_factory=list)
    directories: list[reapi.OutputDirectory] = field(default_factory=list)
    symlinks: list[reapi.OutputSymlink] = field(default_factory=list)
    file_symlinks: list[reapi.OutputSymlink] = field(default_factory=list)
    directory_symlinks: list[reapi.OutputSymlink] = field(default_factory=list)
    local: dict[Digest, Found] = field(default_factory=dict)
    """Blobs that are files."""
    made: dict[Digest, bytes] = field(default_factory=dict)
    """Blobs made here: Trees and Directories."""

    def add_file(self, path: str, hashed: Hashed) -> None:
        """A file that the store is to have."""
        if hashed.digest not in EMPTY_DIGESTS:
            self.local.setdefault(hashed.digest, Found(path, hashed.status.st_nlink > 1))

    def fill(self, result: reapi.ActionResult) -> None:
        """Puts the messages into a result."""
        result.output_files = self.files
        result.output_directories = self.directories
        result.output_symlinks = self.symlinks
        # Clients before REAPI 2.1 read the two older lists only.
        result.output_file_symlinks = self.file_symlinks
        result.output_directory_symlinks = self.directory_symlinks


class Scanner:
    """Looks at the outputs of one action. Blocks: `collect` decides where it runs."""

    def __init__(self, root: str, plan: CommandPlan, function: DigestFunction) -> None:
        self._root = root
        self._plan = plan
        self._function = function
        self.outputs = Outputs()

    def look(self) -> list[tuple[Output, os.stat_result]]:
        """The declared outputs that exist, with their lstat."""
        inside = Inside(self._root)
        found = []
        for output in self._plan.outputs:
            if not inside.parent(output.path):
                continue
            try:
                found.append((output, os.lstat(f"{self._root}/{output.path}")))
            except (FileNotFoundError, NotADirectoryError):
                continue
        return found

    def scan(self, found: Sequence[tuple[Output, os.stat_result]]) -> None:
        """Builds the messages for what `look` has found."""
        for output, status in found:
            path = f"{self._root}/{output.path}" if output.path else self._root
            if stat.S_ISREG(status.st_mode):
                self.outputs.files.append(
                    reapi.OutputFile(
                        path=output.declared,
                        digest=message_of(self._hash(path).digest),
                        is_executable=bool(status.st_mode & 0o111),
                        node_properties=node_properties(self._plan.node_properties, status),
                    )
                )
            elif stat.S_ISDIR(status.st_mode):
                self._add_directory(output, path)
            elif stat.S_ISLNK(status.st_mode):
                self._add_symlink(output, path, status)
            else:
                raise InvalidRequestError(f"the output {output.declared!r} is no file, directory or symbolic link")

    def scan_stream(self, path: str) -> Digest:
        """Hashes what the command printed."""
        return self._hash(path).digest

    def _hash(self, path: str) -> Hashed:
        try:
            hashed = hash_file(path, self._function)
        except PermissionError:
            status = os.lstat(path)
            if status.st_nlink > 1:
                raise
            os.chmod(path, stat.S_IMODE(status.st_mode) | stat.S_IRUSR)
            hashed = hash_file(path, self._function)
        self.outputs.add_file(path, hashed)
        return hashed

    def _add_symlink(self, output: Output, path: str, status: os.stat_result) -> None:
        outputs = self.outputs
        link = reapi.OutputSymlink(
            path=output.declared,
            target=link_target(path, self._root),
            node_properties=node_properties(self._plan.node_properties & {"mtime"}, status),
        )
        outputs.symlinks.append(link)
        (outputs.directory_symlinks if os.path.isdir(path) else outputs.file_symlinks).append(link)

    def _add_directory(self, output: Output, path: str) -> None:
        plan, outputs = self._plan, self.outputs
        scanner = DirectoryScanner(
            self._root, function=self._function, properties=plan.node_properties, hash_path=self._hash
        )
        found = scanner.scan(path)
        message = reapi.OutputDirectory(path=output.declared)
        if plan.trees:
            tree = tree_bytes(found)
            digest = digest_of(tree, self._function)
            outputs.made[digest] = tree
            message.tree_digest = message_of(digest)
            message.is_topologically_sorted = True
        if plan.directories:
            outputs.made.update(found.blobs)
            message.root_directory_digest = message_of(found.root)
        outputs.directories.append(message)


class Collected(NamedTuple):
    """The outputs, scanned; not stored yet."""

    outputs: Outputs
    streams: tuple[Digest, ...]


async def scan(
    root: str, plan: CommandPlan, *, streams: Sequence[tuple[str, int]], function: DigestFunction
) -> Collected:
    """Finds and hashes all outputs. `streams` are the files with what was printed, and their sizes.

    Raises InvalidRequestError for an output that leads outside of the root, that no message can express or that is
    too large.
    """
    scanner = Scanner(root, plan, function)

    def work() -> tuple[Digest, ...]:
        scanner.scan(found)
        return tuple(scanner.scan_stream(path) for path, _size in streams)

    with os_errors("cannot read the outputs"):
        found = scanner.look() if len(plan.outputs) <= INLINE_OUTPUTS else await trio.to_thread.run_sync(scanner.look)
        size = sum(status.st_size for _output, status in found) + sum(size for _path, size in streams)
        small = (
            len(found) <= INLINE_OUTPUTS
            and size <= INLINE_BYTES
            and not any(stat.S_ISDIR(status.st_mode) for _output, status in found)
        )
        digests = work() if small else await trio.to_thread.run_sync(work)
    return Collected(scanner.outputs, digests)


async def upload(outputs: Outputs, *, scratch: str, store: Store, files: LocalFiles) -> None:
    """Hands all blobs to the store; afterwards the files may be gone. `scratch` is a directory for copies."""
    local = iter(outputs.local.items())
    made = iter(outputs.made.items())

    async def feed() -> None:
        for digest, data in made:
            if len(data) <= SMALL:
                await store.put(digest, data)
            else:
                await store.write(digest, BytesReader(data))
        for digest, found in local:
            path = found.path
            if found.shared:
                path = f"{scratch}/{digest.hash}"
                await trio.to_thread.run_sync(shutil.copyfile, found.path, path)
            await files.adopt_file(digest, path)

    count = len(outputs.local) + len(outputs.made)
    with os_errors("cannot store the outputs"):
        await run_crew(1 if count <= 2 else min(CONCURRENT, count), feed)

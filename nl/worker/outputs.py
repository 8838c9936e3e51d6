"""The outputs of an action: found, hashed, and handed to the store.

Runs when no process of the action is left, so what is looked at stays as it is. Two steps: `scan` looks at the files
and builds the messages (it blocks: larger outputs go to a thread), then the blobs go to the store, each once.

Rules: nothing outside of the input root is ever read, whatever links the action has made: a path is followed link by
link only as long as it stays inside, and files are opened without following links. Files that have other names
(`st_nlink` > 1) are copied, never taken over. Absent outputs are left out (REAPI, ActionResult.output_files). An
output that cannot be had is told, and hides none of the others: that the action has made it so (a special file, a
name that no message can hold) is one of the things that its author wants to know, beside the exit code.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import trio

from nl.blob.hashing import digest_of
from nl.blob.reader import BytesReader
from nl.errors import Code, InvalidRequestError, NlError
from nl.model.digest import EMPTY, EMPTY_DIGESTS, Digest, DigestFunction
from nl.pb import reapi
from nl.storage.capabilities import LocalFiles
from nl.storage.contract import SMALL, Store
from nl.worker.command import CommandPlan, Output
from nl.worker.containment import Inside, unlock
from nl.worker.failures import os_errors
from nl.worker.files import CONCURRENT, Hashed, copy_file, hash_file
from nl.worker.tasks import run_tasks
from nl.worker.trees import DirectoryScanner, link_target, message_of, node_properties, tree_bytes

INLINE_BYTES = 128 * 1024
INLINE_OUTPUTS = 16
"""Fewer and smaller outputs are hashed without a thread."""
_OF_THE_ACTION = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ENXIO}
)
"""What a path can be made to fail with. All others are the machine's."""


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
    problems: list[str] = field(default_factory=list)
    """Outputs that the action has made so that they cannot be had, and why."""

    @contextmanager
    def kept_apart(self, what: str) -> Iterator[None]:
        """What fails in the block by the action's doing becomes a problem; blobs found in it by then are dropped."""
        files, made = len(self.local), len(self.made)
        try:
            yield
        except (InvalidRequestError, OSError) as exc:
            if isinstance(exc, OSError) and exc.errno not in _OF_THE_ACTION:
                raise
            why = (exc.strerror or str(exc)) if isinstance(exc, OSError) else exc.message
            self.problems.append(f"{what}: {why}")
            for blobs, count in ((self.local, files), (self.made, made)):
                while len(blobs) > count:
                    blobs.popitem()

    def drop(self, failed: Mapping[Digest, NlError]) -> None:
        """Forgets the outputs whose blobs could not be stored: files one by one, directories all."""
        hashes = {digest.hash for digest in failed}
        self.files = [file for file in self.files if file.digest is None or file.digest.hash not in hashes]
        if failed:
            self.directories = []

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
        if not stat.S_ISDIR(_mode(self._root)):
            return []  # whatever is there instead is not to be followed
        inside = Inside(self._root)
        found = []
        for output in self._plan.outputs:
            with self.outputs.kept_apart(f"the output {_shown(output.declared)}"):
                try:
                    status = self._look_at(output, inside)
                except PermissionError:
                    if not unlock(_directories_to(self._root, output.path)):
                        raise
                    inside = Inside(self._root)
                    status = self._look_at(output, inside)
                if status is not None:
                    found.append((output, status))
        return found

    def _look_at(self, output: Output, inside: Inside) -> os.stat_result | None:
        if not inside.has_directory_of(output.path):
            return None
        try:
            return os.lstat(f"{self._root}/{output.path}")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def scan(self, found: Sequence[tuple[Output, os.stat_result]]) -> None:
        """Builds the messages for what `look` has found."""
        for output, status in found:
            with self.outputs.kept_apart(f"the output {_shown(output.declared)}"):
                self._add(output, f"{self._root}/{output.path}" if output.path else self._root, status)

    def _add(self, output: Output, path: str, status: os.stat_result) -> None:
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
            raise InvalidRequestError("it is no file, directory or symbolic link")

    def scan_stream(self, path: str, name: str) -> Digest:
        """Hashes what the command printed; the empty digest if the action has taken the file away."""
        with self.outputs.kept_apart(f"what the command printed on {name}"):
            return self._hash(path).digest
        return EMPTY[self._function]

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


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _shown(path: str) -> str:
    return repr(path if len(path) <= 200 else f"{path[:200]}...")


def _directories_to(root: str, path: str) -> Iterator[str]:
    """The directories on the way from `root` to `path`, both without `path` itself."""
    yield root
    here = root
    for segment in os.path.dirname(path).split("/"):
        here = f"{here}/{segment}"
        yield here


class Collected(NamedTuple):
    """The outputs, scanned; not stored yet."""

    outputs: Outputs
    streams: tuple[Digest, ...]


async def scan(
    root: str, plan: CommandPlan, *, streams: Sequence[tuple[str, str, int]], function: DigestFunction
) -> Collected:
    """Finds and hashes all outputs. `streams` are what was printed: names, files and their sizes.

    What the action has made so that it cannot be had is in `Outputs.problems`. Raises NlError for the rest.
    """
    scanner = Scanner(root, plan, function)

    def work() -> tuple[Digest, ...]:
        printed = tuple(scanner.scan_stream(path, name) for name, path, _size in streams)
        scanner.scan(found)
        return printed

    with os_errors("cannot read the outputs"):
        unlock([os.path.dirname(root), root])
        found = scanner.look() if len(plan.outputs) <= INLINE_OUTPUTS else await trio.to_thread.run_sync(scanner.look)
        size = sum(status.st_size for _output, status in found) + sum(size for _name, _path, size in streams)
        small = (
            len(found) <= INLINE_OUTPUTS
            and size <= INLINE_BYTES
            and not any(stat.S_ISDIR(status.st_mode) for _output, status in found)
        )
        digests = work() if small else await trio.to_thread.run_sync(work)
    return Collected(scanner.outputs, digests)


async def upload(outputs: Outputs, *, scratch: str, store: Store, files: LocalFiles) -> dict[Digest, NlError]:
    """Hands all blobs to the store; afterwards the files may be gone. `scratch` is a directory for copies.

    Returns those for which there is no room, with the reasons; all other trouble is raised.
    """
    known = await _known(store, [digest for digest, found in outputs.local.items() if found.shared])
    local = ((digest, found) for digest, found in outputs.local.items() if digest not in known)
    made = iter(outputs.made.items())
    refused: dict[Digest, NlError] = {}

    async def feed() -> None:
        for digest, data in made:
            with _noted(refused, digest):
                if len(data) <= SMALL:
                    await store.put(digest, data)
                else:
                    await store.write(digest, BytesReader(data))
        for digest, found in local:
            with _noted(refused, digest):
                path = found.path
                if found.shared:
                    path = f"{scratch}/{os.urandom(8).hex()}"  # no name that the action could have known
                    await trio.to_thread.run_sync(partial(copy_file, found.path, path, mode=0o444))
                await files.adopt_file(digest, path)

    count = len(outputs.local) + len(outputs.made)
    await run_tasks(1 if count <= 2 else min(CONCURRENT, count), feed)
    return refused


async def _known(store: Store, digests: Sequence[Digest]) -> set[Digest]:
    """Those that the store has: what has other names, and would be copied, is an input as a rule."""
    if not digests:
        return set()
    return {digest for digest, size in zip(digests, await store.has(digests), strict=True) if size is not None}


@contextmanager
def _noted(refused: dict[Digest, NlError], digest: Digest) -> Iterator[None]:
    try:
        with os_errors("cannot store the outputs"):
            yield
    except NlError as exc:
        if exc.code is not Code.RESOURCE_EXHAUSTED:
            raise
        refused[digest] = exc

"""Input files for actions that run as this process's own user, with nothing between them and their inputs.

Such an action can write to whatever it is given. So it never gets a file of the store: the worker keeps files of its
own (copies; where the file system can, the kernel shares their blocks) and links those into input roots. Whatever
happens to them, the store's bytes stay as they are. A file that was changed is dropped, and everybody whose input it
was is told so when he asks, at the end of his action (`Borrowed.changed`): his result is worth nothing then.

Rules for this file: a file that is lent was right when it was made, and has passed the check of each action that had
it since, or counts as unsure, so that the next one compares its bytes. What is lent is never deleted for room.
"""

from __future__ import annotations

import enum
import errno
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

import trio

from nl.errors import ExhaustedError
from nl.model.digest import EMPTY_DIGESTS, Digest
from nl.storage.capabilities import Link, LocalFiles
from nl.worker.files import copy_file, hash_file
from nl.worker.input_changes import Identity, Verdict, identity_of, judge

log = logging.getLogger("nl.worker.lending")
T = TypeVar("T")
R = TypeVar("R")

_BATCH = 512
"""Files that one stay in a thread makes, links or compares: some 30 ms, after which a cancellation is seen."""
_INLINE = 8
"""So many are linked or looked at without a thread."""
_FOLDERS = 64
"""Many files made in one folder of ext4 are slow: see the filesystem store."""
_THREADS = 4
RESERVED_SHARE = 20
"""One part in so many of the disk is left to others: stores refuse uploads on a full disk rather than evict."""
LOOK_S = 10.0
_ATTEMPTS = 2
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_CLOCK_REALTIME_COARSE = 5
"""Linux's number (time(7)): the clock that file times are taken from."""
_MODES = {False: 0o444, True: 0o555}


class _Key(NamedTuple):
    digest: Digest
    executable: bool


class _File:
    """A file of the worker's own, that actions have links to."""

    __slots__ = ("identity", "key", "path", "spoiled", "unsure", "users")

    def __init__(self, key: _Key, path: str, identity: Identity) -> None:
        self.key = key
        self.path = path
        self.identity = identity
        self.users = 0
        self.unsure = False
        """An action had it that nobody has looked after: its bytes are to be compared."""
        self.spoiled = False
        """Found changed, and no longer lent."""


class _Linked(enum.Enum):
    DONE = enum.auto()
    CHANGED = enum.auto()
    """The file is not what it was."""
    TOO_OFTEN = enum.auto()
    """It has as many links as its file system allows."""


class _Loan(NamedTuple):
    """A file as it was before the action began."""

    file: _File
    ctime_ns: int
    alone: bool
    """Nobody else could write to it at that time."""


class Lender:
    """The files of one worker. *Concurrency*: any number of actions. *Ownership*: its files in `folder`.

    `max_bytes` bounds what is kept for later; what running actions have is kept anyhow, by their links.
    """

    def __init__(self, files: LocalFiles, folder: str, *, max_bytes: int) -> None:
        self.store = files
        self._folder = folder
        self._max_bytes = max_bytes
        self._files: dict[_Key, _File] = {}
        self._idle: OrderedDict[_Key, _File] = OrderedDict()
        """Those that no action has, the least recently used first."""
        self._making: dict[_Key, trio.Event] = {}
        self._bytes = 0
        self._serial = 0
        self._prefix = os.urandom(4).hex()
        self._threads = trio.CapacityLimiter(_THREADS)
        self._made = self._spoiled = 0
        self.compared = 0
        self._has_folders = False

    def statistics(self) -> dict[str, int]:
        """Counters and levels for logs and metrics."""
        return {
            "input_files": len(self._files),
            "input_bytes": self._bytes,
            "input_files_made": self._made,
            "input_files_compared": self.compared,
            "input_files_changed_by_actions": self._spoiled,
        }

    async def run(self) -> None:
        """Leaves room on the disk, whoever fills it, until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            self.shrink()

    def shrink(self) -> None:
        """Drops what is too much, or has no place on the disk, of what no action has."""
        limit = self._max_bytes
        if self._has_folders:
            facts = os.statvfs(self._folder)
            missing = facts.f_blocks * facts.f_frsize // RESERVED_SHARE - facts.f_bavail * facts.f_frsize
            if missing > 0:
                limit = min(limit, self._bytes - missing)
        self._drop_idle(limit)

    def borrow(self) -> Borrowed:
        """What one action borrows; to be given back by `release`."""
        return Borrowed(self)

    # What `Borrowed` asks for

    async def in_batches(self, work: Callable[[Sequence[T]], list[R]], items: Sequence[T]) -> list[R]:
        """What `work` says of each item, from a thread if there are many. Raises what it raises."""
        if len(items) <= _INLINE:
            return work(items)
        found: list[R] = []
        for start in range(0, len(items), _BATCH):
            found += await trio.to_thread.run_sync(work, items[start : start + _BATCH], limiter=self._threads)
        return found

    async def acquire(self, keys: Iterable[_Key], held: dict[_Key, _File]) -> set[Digest]:
        """Puts a file for each key into `held`, made if there is none yet; returns the digests that are missing."""
        missing: set[Digest] = set()
        wanted = dict.fromkeys(keys)
        while True:
            left = [key for key in wanted if key not in held and key.digest not in missing]
            for key in left:
                if (file := self._files.get(key)) is not None:
                    self._hold(file, held)
            left = [key for key in left if key not in held]
            if not left:
                return missing
            mine = [key for key in left if key not in self._making]
            if mine:
                missing |= await self._make(mine, held)
            else:
                await self._making[left[0]].wait()

    def give_back(self, file: _File, *, checked: bool) -> None:
        """An action has ended that had this file."""
        file.users -= 1
        if not checked:
            file.unsure = True
        if not file.users and not file.spoiled:
            self._idle[file.key] = file

    def spoil(self, file: _File) -> None:
        """A file was found changed: it is lent no more."""
        if file.spoiled:
            return
        file.spoiled = True
        self._spoiled += 1
        self._idle.pop(file.key, None)
        self._forget(file)

    async def copy_out(self, links: Sequence[Link]) -> list[Digest]:
        """Makes each blob a file of its own at its path, which nobody shares. Returns the digests that are missing."""
        missing: dict[Digest, None] = {}
        self._make_folders()
        for start in range(0, len(links), _BATCH):
            batch = links[start : start + _BATCH]
            staged = [Link(link.digest, self._staging(), False) for link in batch]
            try:
                absent = set(await self.store.link_files(staged))
                missing.update((link.digest, None) for link in batch if link.digest in absent)
                pairs = [
                    (source.path, link) for source, link in zip(staged, batch, strict=True)
                    if link.digest not in absent
                ]  # fmt: skip
                await trio.to_thread.run_sync(_make_own, pairs, limiter=self._threads)
            finally:
                for link in staged:
                    with suppress(FileNotFoundError):
                        os.unlink(link.path)
        return list(missing)

    # Making and forgetting

    def _make_folders(self) -> None:
        if self._has_folders:
            return
        for name in ("new", *(f"{number:02x}" for number in range(_FOLDERS))):
            os.makedirs(f"{self._folder}/{name}", exist_ok=True)
        self._has_folders = True

    async def _make(self, keys: Sequence[_Key], held: dict[_Key, _File]) -> set[Digest]:
        made = trio.Event()
        self._making.update(dict.fromkeys(keys, made))
        try:
            links = [Link(key.digest, self._new_path(), key.executable) for key in keys]
            try:
                missing = set(await self.copy_out(links))
            except (OSError, ExhaustedError) as exc:
                if (isinstance(exc, OSError) and exc.errno not in _FULL) or not self._idle:
                    raise
                self._drop_idle(0)  # what fills the disk is ours, or some of it
                missing = set(await self.copy_out(links))
            for key, link in zip(keys, links, strict=True):
                if key.digest not in missing:
                    self._hold(self._add(key, link.path), held)
            return missing
        finally:
            for key in keys:
                del self._making[key]
            made.set()

    def _add(self, key: _Key, path: str) -> _File:
        file = self._files[key] = _File(key, path, identity_of(os.lstat(path)))
        self._bytes += key.digest.size
        self._made += 1
        return file

    def _hold(self, file: _File, held: dict[_Key, _File]) -> None:
        held[file.key] = file
        file.users += 1
        self._idle.pop(file.key, None)

    def _drop_idle(self, limit: int) -> None:
        while self._bytes > limit and self._idle:
            self._forget(self._idle.popitem(last=False)[1])

    def _forget(self, file: _File) -> None:
        if self._files.get(file.key) is file:
            del self._files[file.key]
        self._bytes -= file.key.digest.size
        try:
            os.unlink(file.path)
        except FileNotFoundError:
            pass
        except OSError as exc:
            log.error("cannot remove %s, and its bytes: %s", file.path, exc.strerror)

    def _new_path(self) -> str:
        self._serial += 1
        return f"{self._folder}/{self._serial % _FOLDERS:02x}/{self._prefix}-{self._serial}"

    def _staging(self) -> str:
        self._serial += 1
        return f"{self._folder}/new/{self._prefix}-{self._serial}"


class Borrowed:
    """The input files of one action: a `LocalFiles` whose files are lent, and looked at when the action has ended."""

    def __init__(self, lender: Lender) -> None:
        self._lender = lender
        self._held: dict[_Key, _File] = {}
        self._loans: list[_Loan] = []
        self._checked = False

    async def link_files(self, links: Sequence[Link]) -> list[Digest]:
        """See `LocalFiles.link_files`. Called once."""
        wanted: dict[_Key, list[str]] = {}
        for link in links:
            wanted.setdefault(_Key(link.digest, link.executable), []).append(link.path)
        for key in [key for key in wanted if key.digest in EMPTY_DIGESTS]:
            _make_empty(wanted.pop(key), _MODES[key.executable])
        missing: set[Digest] = set()
        crowded: dict[_Key, list[str]] = {}
        for _ in range(_ATTEMPTS):
            missing |= await self._lender.acquire((key for key in wanted if key.digest not in missing), self._held)
            jobs = [(self._held[key], paths) for key, paths in wanted.items() if key.digest not in missing]
            wanted = {}
            for (file, paths), outcome in zip(jobs, await self._lender.in_batches(self._link_all, jobs), strict=True):
                if outcome is _Linked.CHANGED:
                    self._drop(file)
                    wanted[file.key] = paths
                elif outcome is _Linked.TOO_OFTEN:
                    crowded[file.key] = paths
        left = {**wanted, **crowded}
        copies = [Link(key.digest, path, key.executable) for key, paths in left.items() for path in paths]
        missing.update(await self._lender.copy_out(copies))
        return [digest for digest in dict.fromkeys(link.digest for link in links) if digest in missing]

    async def adopt_file(self, digest: Digest, path: str) -> None:
        """See `LocalFiles.adopt_file`."""
        await self._lender.store.adopt_file(digest, path)

    async def settle(self) -> None:
        """Waits until a change of the files would show in their times: a tick of the kernel's clock, 1 to 10 ms."""
        newest = max((loan.ctime_ns for loan in self._loans if loan.alone), default=0)
        # It is the kernel's clock that is waited for: no event comes from there.
        while 0 <= newest - time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) < 1_000_000_000:  # noqa: ASYNC110
            await trio.sleep(0.001)

    async def changed(self) -> list[Digest]:
        """The inputs that are no longer what they were, by this action or another that had them. Raises OSError."""
        checked = await self._lender.in_batches(_check_all, self._loans)
        self._lender.compared += sum(each.was_compared for each in checked)
        spoiled = []
        for loan, (is_right, _was_compared) in zip(self._loans, checked, strict=True):
            if not is_right:
                self._lender.spoil(loan.file)
                spoiled.append(loan.file.key.digest)
            elif loan.file.users == 1:
                loan.file.unsure = False
        self._checked = True
        return spoiled

    def release(self) -> None:
        """Gives everything back. May be called more than once."""
        self._loans.clear()
        while self._held:
            self._lender.give_back(self._held.popitem()[1], checked=self._checked)
        self._lender.shrink()

    def _drop(self, file: _File) -> None:
        del self._held[file.key]
        self._lender.spoil(file)
        self._lender.give_back(file, checked=False)

    def _link_all(self, jobs: Sequence[tuple[_File, list[str]]]) -> list[_Linked]:
        """Links each file to its paths, or to none. May run in a thread. Raises OSError."""
        return [self._link(file, paths) for file, paths in jobs]

    def _link(self, file: _File, paths: list[str]) -> _Linked:
        made = 0
        outcome = _Linked.CHANGED
        try:
            for path in paths:
                os.link(file.path, path)
                made += 1
            now = os.lstat(file.path)
            if identity_of(now) == file.identity:
                outcome = _Linked.DONE
        except FileNotFoundError:
            pass
        except OSError as exc:
            if exc.errno != errno.EMLINK:
                raise
            outcome = _Linked.TOO_OFTEN
        if outcome is not _Linked.DONE:
            for path in paths[:made]:
                os.unlink(path)
            return outcome
        exact = now.st_ctime_ns % 1_000_000_000 != 0  # a file system that keeps seconds only could hide a change
        alone = exact and not file.unsure and file.users == 1
        self._loans.append(_Loan(file, now.st_ctime_ns, alone))
        return outcome


class _Checked(NamedTuple):
    is_right: bool
    was_compared: bool
    """Its bytes were read for that."""


def _check_all(loans: Sequence[_Loan]) -> list[_Checked]:
    """Whether each file is what it was. May run in a thread."""
    return [_check(loan) for loan in loans]


def _check(loan: _Loan) -> _Checked:
    file = loan.file
    try:
        verdict = judge(file.identity, loan.ctime_ns, os.lstat(file.path), alone=loan.alone)
        if verdict is not Verdict.UNSURE:
            return _Checked(verdict is Verdict.SAME, was_compared=False)
        found = hash_file(file.path, file.key.digest.function)
    except OSError:  # found changed by another and dropped, or an action's doing, whichever it was
        return _Checked(is_right=False, was_compared=False)
    return _Checked(found.digest == file.key.digest and identity_of(found.status) == file.identity, was_compared=True)


def _make_own(pairs: Sequence[tuple[str, Link]]) -> None:
    """Makes files nobody else has a link to. May run in a thread. Raises OSError."""
    for source, link in pairs:
        mode = _MODES[link.executable]
        if os.lstat(source).st_nlink == 1:
            os.chmod(source, mode)
            os.rename(source, link.path)
        else:
            copy_file(source, link.path, mode=mode)


def _make_empty(paths: Iterable[str], mode: int) -> None:
    for path in paths:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        try:
            os.fchmod(fd, mode)
        finally:
            os.close(fd)


class Copies:
    """A `LocalFiles` that shares nothing with anybody: for an action that has changed its inputs."""

    def __init__(self, lender: Lender) -> None:
        self.link_files = lender.copy_out
        self.adopt_file = lender.store.adopt_file

"""The mirror: keeps the index equal to the folders, whoever changes them.

An event only says *which name* to look at; what is true of it is asked of the file system. So events may come late,
doubled or in any order, and the index still ends up right: the last event of a name is read after its last change.

Rules for this file: all of it runs on the loop, except what `_list_piece` does in a thread. While `is_exact` is
False (no inotify, or a scan is under way) the index is a memory of identities and order only, and callers ask the file
system for presence.
"""

from __future__ import annotations

import heapq
import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping
from itertools import islice

import trio

from nl.plugin import Digest
from nl.stores.filesystem.index import Entry, Index
from nl.stores.filesystem.layout import Folder, Layout
from nl.stores.filesystem.names import LEGACY, IndexKey, name_of, plain, wrong_size_key
from nl.stores.filesystem.watch import (
    FOLDER_GONE,
    GONE,
    IN_MOVED_TO,
    IN_Q_OVERFLOW,
    Event,
    Watch,
    WatchUnavailableError,
    remote_file_system,
)

_log = logging.getLogger(__name__)

_PIECE = 2000
"""Entries that a scan adds to the index before it lets others run: about 3 ms."""
_SORT_PIECE = 8192

Found = tuple[float, Folder, str, int]
"""What a scan finds: atime, folder, name, size."""


class Mirror:
    """The index, and what keeps it true."""

    def __init__(self, layout: Layout, index: Index) -> None:
        self.layout = layout
        self.index = index
        self.is_exact = False
        self.scanned = trio.Event()
        """Set when the index is complete; a new, unset one takes its place when events or the folders are lost."""
        self.scan_wanted = True
        self.folder_lost = False
        self.why_inexact = ""
        self.scans = 0
        self._watch: Watch | None = None
        self._folders: dict[int, Folder] = {}
        self._expected: dict[tuple[int, str], int] = {}
        self._changed_during_scan: set[tuple[Folder, str]] | None = None
        self._events_lost = False
        self._foreign = 0

    def start(self) -> None:
        """Starts watching. Before the first scan, so that nothing falls between."""
        remote = remote_file_system(self.layout.content_path)
        try:
            if remote is not None:
                raise WatchUnavailableError(f"it is on a network file system ({remote})")
            self._watch = Watch()
            for folder in self.layout.indexed_folders:
                folder.watch = self._watch.add(folder.path)
                self._folders[folder.watch] = folder
        except WatchUnavailableError as error:
            self.stop()
            self.why_inexact = str(error)
            _log.warning(
                "store %s: cannot watch %s: %s. The store works all the same, but asks the file system about every "
                "blob, and max_bytes is kept only roughly when several processes share the folder",
                self.layout.name, self.layout.content_path, error,
            )  # fmt: skip

    def stop(self) -> None:
        """Stops watching; the index is not to be relied on from now on."""
        self.is_exact = False
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._folders.clear()
        self._expected.clear()

    @property
    def is_watching(self) -> bool:
        """Whether changes are reported at all."""
        return self._watch is not None

    def refresh(self) -> None:
        """Makes the index say what the folders hold now. Half a microsecond when nothing has changed."""
        watch = self._watch
        if watch is None or not watch.is_pending():
            return
        dirty: dict[tuple[Folder, str], bool] = {}
        while events := watch.read():
            for event in events:
                self._note(event, dirty)
        changed = self._changed_during_scan
        for (folder, name), may_exist in dirty.items():
            if changed is not None:
                changed.add((folder, name))
            self._reconcile(folder, name, may_exist=may_exist)

    def placed(self, folder: Folder, name: str, *, key: IndexKey, entry: Entry) -> None:
        """Notes that this process has just renamed a file into a folder, while the lock was held."""
        if self._watch is not None:
            expected = (folder.watch, name)
            self._expected[expected] = self._expected.get(expected, 0) + 1
        if self._changed_during_scan is not None:
            self._changed_during_scan.add((folder, name))
        if folder is self.layout.executables:
            self.index.add_executable(key, entry)
        else:
            self._forget(folder, key)
            self.index.add(key, entry)

    def removed(self, folder: Folder, name: str, *, key: IndexKey) -> None:
        """Notes that this process has just removed a file, or found it gone."""
        if self._changed_during_scan is not None:
            self._changed_during_scan.add((folder, name))
        self._forget(folder, key)

    def lose(self) -> None:
        """Forgets everything: the folders have been deleted or replaced under the store."""
        self.stop()
        self.index.clear()
        self._want_scan()
        self.folder_lost = False

    async def scan(self) -> None:
        """Lists the folders and brings the index up to them. A new index is then ordered by atime.

        *Cancellation*: safe; the scan is wanted until it has come to its end.
        """
        self.is_exact = False
        self._events_lost = False
        self._changed_during_scan = set()
        try:
            self.refresh()
            was_empty = not self.index.blobs
            seen: set[IndexKey] = set()
            executables: set[IndexKey] = set()
            ordered = heapq.merge(*await self._list(), key=_by_atime, reverse=True)
            while piece := await trio.to_thread.run_sync(_take, ordered):
                self.refresh()
                self._merge(piece, seen=seen, executables=executables, oldest_last=was_empty)
            await self._drop_unseen(seen, executables)
            await self._delete_orphans()
            self.refresh()
            if self.folder_lost or self._events_lost:
                return  # What was seen proves nothing; the scan stays wanted.
            self.scan_wanted = False
            self.is_exact = self._watch is not None
            self.scans += 1
            self.scanned.set()
        finally:
            self._changed_during_scan = None

    def _want_scan(self) -> None:
        self.scan_wanted = True
        if self.scanned.is_set():
            self.scanned = trio.Event()

    def _note(self, event: Event, dirty: dict[tuple[Folder, str], bool]) -> None:
        """Sorts one event: the folder's own fate, a file we placed ourselves, or a name to look at."""
        if event.mask & IN_Q_OVERFLOW:
            _log.warning(
                "store %s: more changes than the kernel keeps (fs.inotify.max_queued_events); listing %s anew",
                self.layout.name, self.layout.content_path,
            )  # fmt: skip
            self._events_lost = True
            self._expected.clear()
            self.is_exact = False
            self._want_scan()
            return
        folder = self._folders.get(event.watch)
        if folder is None:
            return
        if event.mask & FOLDER_GONE:
            self.folder_lost = True
            self.is_exact = False
            return
        item = (folder, event.name)
        if event.mask & IN_MOVED_TO:
            left = self._expected.pop((event.watch, event.name), 0)
            if left:
                if left > 1:
                    self._expected[event.watch, event.name] = left - 1
                return
        # What was deleted and has no later event of another kind need not be looked at where nothing is known of it.
        dirty[item] = bool(dirty.get(item)) or not event.mask & GONE

    def _reconcile(self, folder: Folder, name: str, *, may_exist: bool) -> None:
        """Makes the index say of one name what the file system says."""
        known = self._known(folder, name)
        if known is None and not may_exist:
            return
        try:
            facts = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        except OSError:
            facts = None
        if facts is None or not stat.S_ISREG(facts.st_mode):
            if known is not None:
                self._forget(folder, known[0])
            return
        key = folder.key_of(name, facts.st_size)
        if known is not None:
            if known[0] == key and known[1].is_known_as(facts.st_ino, facts.st_mtime_ns, facts.st_size):
                return
            self._forget(folder, known[0])
        if key is None:
            self._report_foreign(folder, name)
            return
        entry = Entry(facts.st_size, used=-time.time())
        if folder is self.layout.executables:
            self.index.add_executable(key, entry)
        else:
            self.index.add(key, entry)

    def _known(self, folder: Folder, name: str) -> tuple[IndexKey, Entry] | None:
        """What the index has for a file name."""
        entries: Mapping[IndexKey, Entry] = self.index.blobs
        if folder is self.layout.blobs or folder is self.layout.executables:
            digest = Digest.parse_name(name)
            candidates: tuple[IndexKey, ...] = () if digest is None else (digest, wrong_size_key(digest))
            if folder is self.layout.executables:
                entries = self.index.executables
        else:
            key = folder.key_of(name, -1)
            candidates = () if key is None else (key,)
        for key in candidates:
            if (entry := entries.get(key)) is not None:
                return key, entry
        return None

    def _forget(self, folder: Folder, key: IndexKey) -> None:
        if folder is self.layout.executables:
            self.index.remove_executable(key)
            return
        self.index.remove(key)
        if not isinstance(key, str) and len(key) == 3 and folder is self.layout.blobs:
            self.index.remove((*key, LEGACY))  # One file, two keys: which of them depends on its size.

    def _merge(self, piece: list[Found], *, seen: set[IndexKey], executables: set[IndexKey], oldest_last: bool) -> None:
        """Adds what a scan found, latest first; names that have changed since then speak for themselves."""
        changed = self._changed_during_scan
        assert changed is not None
        index = self.index
        for atime, folder, name, size in piece:
            key = folder.key_of(name, size)
            if key is None:
                self._report_foreign(folder, name)
            elif folder is self.layout.executables:
                executables.add(key)
                if key not in index.executables and (folder, name) not in changed:
                    index.add_executable(key, Entry(size, used=-atime))
            else:
                seen.add(key)
                if (folder, name) in changed:
                    continue
                known = index.blobs.get(key)
                if known is None:
                    index.add(key, Entry(size, used=-atime), oldest=oldest_last)
                elif known.size != size:
                    index.remove(key)
                    index.add(key, Entry(size, used=-atime))

    async def _list(self) -> list[list[Found]]:
        """All files, in pieces that are each sorted by atime, latest first."""
        pieces: list[list[Found]] = []
        for folder in self.layout.indexed_folders:
            with os.scandir(folder.fd) as items:
                more = True
                while more:
                    piece, more = await trio.to_thread.run_sync(_list_piece, folder, items)
                    pieces.append(piece)
                    self.refresh()  # So that the kernel's queue does not run over meanwhile.
        return pieces

    async def _drop_unseen(self, seen: set[IndexKey], executables: set[IndexKey]) -> None:
        """Forgets what a scan did not find, unless it came after the scan had passed."""
        changed = self._changed_during_scan
        assert changed is not None
        settled: set[IndexKey | None] = {folder.key_of(name, -1) for folder, name in changed}
        names = [name for folder, name in changed if folder is not self.layout.texts]
        settled.update(plain(digest) for digest in map(Digest.parse_name, names) if digest is not None)
        for number, key in enumerate(list(self.index.blobs)):
            if key not in seen and key not in settled:
                self.index.remove(key)
            if number % _PIECE == 0:
                await trio.lowlevel.checkpoint()
        for digest in list(self.index.executables):
            if digest not in executables and digest not in settled:
                self.index.remove_executable(digest)

    async def _delete_orphans(self) -> None:
        """Deletes executable variants whose blob is gone: a process died between the two."""
        folder = self.layout.executables
        for digest in [digest for digest in self.index.executables if digest not in self.index.blobs]:
            await trio.lowlevel.checkpoint()
            self.refresh()
            if digest in self.index.blobs or digest not in self.index.executables:
                continue
            assert not isinstance(digest, str)
            try:
                os.unlink(name_of(digest), dir_fd=folder.fd)
            except FileNotFoundError:
                pass
            self.index.remove_executable(digest)

    def _report_foreign(self, folder: Folder, name: str) -> None:
        self._foreign += 1
        if self._foreign == 1:
            _log.warning(
                "store %s: %s/%s is not a file of this cache; it and others like it are left alone and not counted",
                self.layout.name, folder.path, name,
            )  # fmt: skip

    def __repr__(self) -> str:
        state = "exact" if self.is_exact else self.why_inexact or "scanning"
        return f"<Mirror of {self.layout.content_path}: {state}, {self.index!r}>"


def _by_atime(found: Found) -> float:
    return found[0]


def _take(ordered: Iterator[Found]) -> list[Found]:
    return list(islice(ordered, _PIECE))


def _list_piece(folder: Folder, items: Iterator[os.DirEntry[str]]) -> tuple[list[Found], bool]:
    """The next regular files of a folder, sorted by atime, latest first, and whether there may be more. In a thread."""
    piece: list[Found] = []
    some = list(islice(items, _SORT_PIECE))
    for item in some:
        try:
            facts = item.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(facts.st_mode):
            piece.append((facts.st_atime, folder, item.name, facts.st_size))
    piece.sort(key=_by_atime, reverse=True)
    return piece, len(some) == _SORT_PIECE

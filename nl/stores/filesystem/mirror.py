"""The mirror: keeps the index equal to the folders, whoever changes them.

An event only says *which name* to look at; what is true of it is asked of the file system. So events may come late,
doubled or in any order, and the index still ends up right: the last event of a name is read after its last change.

Without inotify it learns from the journal what other processes have done, as often as it has the folder's lock.

Rules for this file: all of it runs on the loop. While `is_exact` is False (no inotify, or a scan is under way) the
index is a memory of identities and order only, and callers ask the file system for presence.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Sequence

import trio

from nl.plugin import Digest, RemovalFeeds
from nl.stores.filesystem.clock import Clock
from nl.stores.filesystem.index import Index
from nl.stores.filesystem.journal import Change
from nl.stores.filesystem.layout import Folder, Layout
from nl.stores.filesystem.names import IndexKey, file_name, index_key, is_blob, wrong_size_key
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

_STEPS = 200
"""Of one `catch_up` with checkpoints: twice what the kernel keeps events for. Who is still behind then runs through."""


class Mirror:
    """The index, and what keeps it true."""

    def __init__(self, layout: Layout, index: Index, clock: Clock) -> None:
        self.layout = layout
        self.index = index
        self._clock = clock
        self.is_exact = False
        self.scanned = trio.Event()
        """Set when the index is complete; a new, unset one takes its place when events or the folders are lost."""
        self.scan_wanted = True
        self.changed_during_scan: set[tuple[Folder, str]] | None = None
        """While a scan is under way: names that speak for themselves, whatever the scan has found."""
        self.folder_lost = False
        self.events_lost = False
        self.why_inexact = ""
        self.removals = RemovalFeeds()
        self._watch: Watch | None = None
        self._folders: dict[int, Folder] = {}
        self._expected: dict[tuple[int, str], int] = {}
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
                "blob, and lists the folder now and then to learn which ones other processes have written",
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

    @property
    def is_complete(self) -> bool:
        """Whether the index has all files that processes on the folder have placed: true while the lock is held."""
        return self.is_exact if self._watch is not None else self.scanned.is_set()

    def refresh(self) -> bool:
        """Makes the index say what the folders hold now: whether anything had changed. Half a microsecond if not."""
        if not self._step():
            return False
        while self._step():
            pass
        return True

    async def catch_up(self) -> None:
        """`refresh` for those who may wait: in steps of a millisecond between which others run, where other processes
        have changed thousands of files meanwhile. No checkpoint if there is nothing to do, nor after the last step.
        """
        steps = 0
        while self._step():
            if self._watch is None or not self._watch.pending():  # nearly always: it was this process's own upload
                return
            steps += 1
            if steps < _STEPS:
                await trio.lowlevel.checkpoint()

    def _step(self) -> bool:
        """Brings the index up to some of the events, a millisecond of work; False if there were none."""
        events = self._watch.read() if self._watch is not None else ()
        if not events:
            return False
        dirty: dict[tuple[Folder, str], bool] = {}
        for event in events:
            self._note(event, dirty)
        changed = self.changed_during_scan
        for (folder, name), may_exist in dirty.items():
            if changed is not None:
                changed.add((folder, name))
            self._reconcile(folder, name, may_exist=may_exist)
        return True

    def placed(self, folder: Folder, name: str, *, key: IndexKey, size: int, inode: int, mtime_ns: int) -> None:
        """Notes that this process has just renamed a file into a folder, while the lock was held.

        `inode` and `mtime_ns` are its identity if its bytes are known to be right, else 0.
        """
        if self._watch is not None:
            expected = (folder.watch, name)
            self._expected[expected] = self._expected.get(expected, 0) + 1
        if self._watch is None or not self.index.is_alone:  # the others learn of it later
            self.index.tell_keys((key,), time.monotonic())
        if self.changed_during_scan is not None:
            self.changed_during_scan.add((folder, name))
        index = self.index
        if key in index.slots or wrong_size_key(name) in index.slots or folder is self.layout.executables:
            self.forget(folder, name)  # a look-up of both keys is cheaper than to find out which one the name has
            slot = self.add(folder, key, size)
        else:
            slot = index.add(key, size, used=time.monotonic())
        index.know(slot, inode=inode, mtime_ns=mtime_ns)

    def removed(self, folder: Folder, name: str) -> None:
        """Notes that this process has just removed a file, or found it gone."""
        if self.changed_during_scan is not None:
            self.changed_during_scan.add((folder, name))
        self.forget(folder, name)

    def follow(self, changes: Sequence[Change]) -> None:
        """Brings the index up to what other processes have done, where no inotify tells. Under the lock."""
        for folder, name, size in changes:
            if self.changed_during_scan is not None:
                self.changed_during_scan.add((folder, name))
            self.forget(folder, name)
            key = None if size is None else self.key_for(folder, name, size)
            if key is not None and size is not None:
                self.add(folder, key, size, used=self.index.shared.last(self.index.shared.cell_of(key)))

    def lose_track(self) -> None:
        """What has changed cannot be told any more: the index may not be relied on until it is listed anew."""
        self.events_lost = True
        self._expected.clear()
        self.is_exact = False
        self.want_scan()

    def add(self, folder: Folder, key: IndexKey, size: int, *, used: float | None = None) -> int:
        """Adds a file that has just come, or that was used at a time that others have told. Returns its slot."""
        if folder is self.layout.executables:
            return self.index.add_executable(key, size)
        other = self.index.slots.get(key) if is_blob(key) else None
        if other is not None and self.index.sizes[other] != size:
            # A file of the same hash and another size: it stays, and stays counted, but cannot be right.
            left = self.index.sizes[other]
            self.index.add_late(wrong_size_key(file_name(key, left)), left, used=self.index.used[other])
        if used is not None and used > 0.0:
            return self.index.add_late(key, size, used=used)
        return self.index.add(key, size, used=time.monotonic())

    def key_for(self, folder: Folder, name: str, size: int) -> IndexKey | None:
        """The index key of a file; None if it is not one of ours."""
        key = folder.key_of(name, size)
        if folder is not self.layout.blobs or key is None or not is_blob(key):
            return key
        other = self.index.slots.get(key)
        if other is None or self.index.sizes[other] == size:
            return key
        # Two files of one hash, each as large as its name says: at most one is right, and both are counted.
        return wrong_size_key(name)

    def known_as(self, folder: Folder, name: str) -> tuple[IndexKey, int] | None:
        """Key and slot of what the index has under a file name."""
        index = self.index
        if folder is self.layout.blobs or folder is self.layout.executables:
            digest = Digest.parse_name(name)
            if digest is None:
                return None
            entries = index.slots if folder is self.layout.blobs else index.executables
            key = index_key(digest)
            slot = entries.get(key)
            if slot is not None and index.sizes[slot] == digest.size:
                return key, slot
            key = wrong_size_key(name)
            slot = entries.get(key)
        else:
            found = folder.key_of(name, -1)
            if found is None:
                return None
            key, entries = found, index.slots
            slot = entries.get(key)
        return None if slot is None else (key, slot)

    def forget(self, folder: Folder, name: str) -> None:
        """Takes a file out of the index, whichever key it has."""
        if self.removals:
            self._tell_removed(folder, name)
        while (known := self.known_as(folder, name)) is not None:
            if folder is self.layout.executables:
                self.index.remove_executable(known[0])
            else:
                self.index.remove(known[0])

    def lose(self) -> None:
        """Forgets everything: the folders have been deleted or replaced under the store."""
        self.stop()
        self.index.clear()
        self.want_scan()

    def watch_anew(self) -> None:
        """The folders are those that were there, but were moved or unmounted meanwhile: what happened then is unknown.
        """
        self.stop()
        self.want_scan()
        self.start()

    def want_scan(self) -> None:
        """The index may not be relied on until a scan has come to its end."""
        self.scan_wanted = True
        self.removals.lost_track()
        if self.scanned.is_set():
            self.scanned = trio.Event()

    def _tell_removed(self, folder: Folder, name: str) -> None:
        keys = folder.asked_as(name)
        if keys is None:
            self.removals.lost_track()
        else:
            for key in keys:
                self.removals.removed(key)

    def report_foreign(self, folder: Folder, name: str) -> None:
        """A file that is not of a cache is left alone; the first one is logged."""
        self._foreign += 1
        if self._foreign == 1:
            _log.warning(
                "store %s: %s/%s is not a file of this cache; it and others like it are left alone and not counted",
                self.layout.name, folder.path, name,
            )  # fmt: skip

    def _note(self, event: Event, dirty: dict[tuple[Folder, str], bool]) -> None:
        """Sorts one event: the folder's own fate, a file we placed ourselves, or a name to look at."""
        if event.mask & IN_Q_OVERFLOW:
            _log.warning(
                "store %s: more changes than the kernel keeps (fs.inotify.max_queued_events); listing %s anew",
                self.layout.name, self.layout.content_path,
            )  # fmt: skip
            self.lose_track()
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
        known = self.known_as(folder, name)
        if known is None and not may_exist:
            return
        try:
            facts = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        except OSError:
            facts = None
        if facts is None or not stat.S_ISREG(facts.st_mode):
            self.forget(folder, name)
            return
        if known is not None:
            slot = known[1]
            size, inode, mtime_ns = facts.st_size, facts.st_ino, facts.st_mtime_ns
            if self.index.is_known_as(slot, inode=inode, mtime_ns=mtime_ns, size=size):
                self.index.see(slot)
                return
            self.forget(folder, name)
        key = self.key_for(folder, name, facts.st_size)
        if key is None:
            self.report_foreign(folder, name)
            return
        # It came before this look, perhaps long before: later uses of other files must not be taken for earlier ones.
        told = self.index.shared.last(self.index.shared.cell_of(key))
        self.add(folder, key, facts.st_size, used=max(told, self._clock.of_file(facts.st_ctime)))

    def __repr__(self) -> str:
        state = "exact" if self.is_exact else self.why_inexact or "scanning"
        return f"<Mirror of {self.layout.content_path}: {state}, {self.index!r}>"

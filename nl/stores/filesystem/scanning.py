"""Scans: the folders are listed and the index brought up to them, while everything else goes on.

Rules for this file: what waits for the disk is done in a thread, a piece at a time; the index is changed on the loop,
in slices of a few milliseconds. Memory is that of one piece, however many files there are.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import trio

from nl.stores.filesystem.clock import Clock
from nl.stores.filesystem.layout import Folder
from nl.stores.filesystem.mirror import Mirror

_log = logging.getLogger(__name__)

_PIECE = 1000
"""Entries that are looked at in one stay in a thread: 3 ms if they are in memory. The first ones are the sample by
which a process that does not know more evicts: the oldest of so many is nearly always among the oldest hundredth."""
_SLICE = 1000
"""Entries that are added to the index before others have their turn: 3 ms."""

Found = tuple[float, str, int]
"""atime, name, size."""


class Piece(NamedTuple):
    """What one stay in a thread has found."""

    files: list[Found]
    unreadable: list[tuple[str, OSError]]
    is_last: bool


class Scanner:
    """Lists folders. One scan at a time."""

    def __init__(self, mirror: Mirror, clock: Clock) -> None:
        self._mirror = mirror
        self._clock = clock
        self._progress = trio.lowlevel.ParkingLot()
        self._unreadable = 0
        self.began_at = -1.0
        """When the scan that is under way began (trio's clock); -1 if there is none."""
        self.empty: list[tuple[Folder, str]] = []
        """Files without a byte whose names say that they have some, as the last scan found them."""
        self.scans = 0
        self.asked = trio.Event()
        """Set when somebody waits for a scan to begin."""
        self.began = 0.0
        """When the last scan began, on the clock of time.monotonic()."""
        self.has_sample = False
        """Whether a first piece of these folders was found, or all of them."""

    async def scan(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Lists the folders and brings the index up to them; `meanwhile` is called after each piece.

        *Cancellation*: safe; the scan is wanted until it has come to its end.
        """
        mirror = self._mirror
        mirror.is_exact = False
        mirror.events_lost = False
        mirror.changed_during_scan = set()
        self.began_at = trio.current_time()
        self.asked = trio.Event()
        self.began = time.monotonic()
        if mirror.index.is_empty:
            self.has_sample = False
        self.empty = []
        self._unreadable = 0
        try:
            mirror.refresh()
            mirror.index.begin_round()
            for folder in mirror.layout.indexed_folders:
                await self._list(folder, meanwhile)
            await self._drop_unseen()
            mirror.refresh()
            if mirror.folder_lost or mirror.events_lost:
                return  # What was seen proves nothing; the scan stays wanted.
            mirror.scan_wanted = False
            mirror.is_exact = mirror.is_watching
            self.scans += 1
            mirror.scanned.set()
        finally:
            mirror.changed_during_scan = None
            self.began_at = -1.0
            self._progress.unpark_all()

    async def progress(self, *, patience_s: float) -> bool:
        """Waits until a scan has found more; one is wanted if none is under way.

        False if it has been under way for `patience_s`, or does not begin that soon.
        """
        left = patience_s
        if self.began_at >= 0:
            left += self.began_at - trio.current_time()
        else:
            self._mirror.scan_wanted = True
            self.asked.set()
        if left <= 0:
            return False
        with trio.move_on_after(left) as scope:
            await self._progress.park()
        return not scope.cancelled_caught

    async def _list(self, folder: Folder, meanwhile: Callable[[], None]) -> None:
        with os.scandir(folder.fd) as items:
            while True:
                piece = await trio.to_thread.run_sync(_list_piece, folder, items)
                for start in range(0, len(piece.files), _SLICE):
                    self._mirror.refresh()  # So that the kernel's queue does not run over meanwhile.
                    self._merge(folder, piece.files[start : start + _SLICE])
                    await trio.lowlevel.checkpoint()
                meanwhile()
                self._report_unreadable(folder, piece.unreadable)
                self.has_sample = True
                self._progress.unpark_all()
                if piece.is_last:
                    return

    def _merge(self, folder: Folder, files: list[Found]) -> None:
        """Adds what was found; names that have changed since then speak for themselves."""
        mirror = self._mirror
        index, changed = mirror.index, mirror.changed_during_scan
        assert changed is not None
        order: list[tuple[float, int]] = []
        for atime, name, size in files:
            if (folder, name) in changed:
                continue
            known = mirror.known_as(folder, name)
            if known is not None and index.sizes[known[1]] == size:
                index.see(known[1])
                continue
            if known is not None:
                mirror.forget(folder, name)
            key = mirror.key_for(folder, name, size)
            if key is None:
                mirror.report_foreign(folder, name)
                continue
            if not size and folder is mirror.layout.blobs:
                self.empty.append((folder, name))
            if folder is mirror.layout.executables:
                index.add_executable(key, size)
            else:
                used = self._clock.of_file(atime)
                order.append((used, index.add_found(key, size, used=used)))
        index.order.add_found(order)

    async def _drop_unseen(self) -> None:
        """Forgets what the scan did not find and nobody has seen since it began."""
        index = self._mirror.index
        for group in index.unseen():
            for key, is_executable in group:
                if is_executable:
                    index.remove_executable(key)
                else:
                    index.remove(key)
            await trio.lowlevel.checkpoint()

    def _report_unreadable(self, folder: Folder, unreadable: list[tuple[str, OSError]]) -> None:
        for name, error in unreadable:
            self._unreadable += 1
            if self._unreadable == 1:
                _log.error(
                    "store %s: cannot look at %s/%s: %s; it and others like it are left alone and not counted",
                    self._mirror.layout.name, folder.path, name, error.strerror,
                )  # fmt: skip


def _list_piece(folder: Folder, items: Iterator[os.DirEntry[str]]) -> Piece:
    """The next regular files of a folder. In a thread."""
    files: list[Found] = []
    unreadable: list[tuple[str, OSError]] = []
    some = list(islice(items, _PIECE))
    for item in some:
        try:
            facts = item.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        except OSError as error:
            unreadable.append((item.name, error))
            continue
        if stat.S_ISREG(facts.st_mode):
            files.append((facts.st_atime, item.name, facts.st_size))
    return Piece(files, unreadable, is_last=len(some) < _PIECE)

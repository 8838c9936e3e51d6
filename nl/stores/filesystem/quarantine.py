"""Wrong blobs are set aside, not served and not lost: an operator may want to see what the disk has done.

The folder of such files is bounded; the oldest go first. It does not count against `max_bytes`, but takes no more than
a twentieth of that. What is larger than all of it may be is deleted, and so is an empty file, which tells nobody
anything: a power cut leaves such.
"""

from __future__ import annotations

import logging
import os
import time

from nl.plugin import Digest
from nl.stores.filesystem.commit import Committer
from nl.stores.filesystem.layout import Folder
from nl.stores.filesystem.names import index_key, name_of
from nl.stores.filesystem.verify import describe_content

_log = logging.getLogger(__name__)

MAX_FILES = 64
MAX_BYTES = 256 * 1024 * 1024
_SHARE = 20


class Quarantine:
    """Sets files aside in `{content_path}.corrupt`."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        limit = committer.policy.max_bytes
        self._max_bytes = min(MAX_BYTES, limit // _SHARE) if limit else MAX_BYTES
        self.corrupt_blobs = 0

    async def set_aside(self, folder: Folder, digest: Digest, fd: int) -> None:
        """Moves the file that `fd` is open on out of `folder`, unless it has been replaced or mended meanwhile."""
        layout = self._committer.mirror.layout
        name = name_of(digest)
        await self._committer.lock.acquire()
        with self._committer.locked():
            ours = os.fstat(fd)
            try:
                there = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            except FileNotFoundError:
                return
            if (there.st_ino, there.st_dev) != (ours.st_ino, ours.st_dev):
                return
            aside = f"{name}.{time.time_ns():x}" if 0 < ours.st_size <= self._max_bytes else ""
            if aside:
                os.rename(name, aside, src_dir_fd=folder.fd, dst_dir_fd=layout.corrupt.fd)
            else:
                os.unlink(name, dir_fd=folder.fd)
            self._committer.moved_away(folder, name, key=index_key(digest), size=ours.st_size)
        if not ours.st_size:
            return
        self.corrupt_blobs += 1
        _log.error(
            "store %s: %s/%s is corrupt: it has %s. It was %s and counts as missing until it is uploaded "
            "again. If this happens often, check the disk, and who else writes to the folder",
            layout.name, folder.path, name, describe_content(fd, ours.st_size),
            f"moved to {layout.corrupt.path}/{aside}" if aside else f"deleted, too large for {layout.corrupt.path},",
        )  # fmt: skip
        self._prune(layout.corrupt)

    def _prune(self, folder: Folder) -> None:
        """Deletes the oldest until the bounds hold."""
        found = []
        with os.scandir(folder.fd) as items:
            for item in items:
                try:
                    facts = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                # A file system's clock ticks some hundred times a second: then the time in the name tells.
                found.append((facts.st_ctime_ns, item.name.rpartition(".")[2], item.name, facts.st_size))
        found.sort(reverse=True)
        total = 0
        for count, (_, _, name, size) in enumerate(found, 1):
            total += size
            if count > MAX_FILES or (total > self._max_bytes):
                try:
                    os.unlink(name, dir_fd=folder.fd)
                except FileNotFoundError:
                    continue

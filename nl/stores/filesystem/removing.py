"""What leaves the folder: on request (`Deletes`), and news of all that goes for whatever reason (`Removals`).

News are exact because they are asked for: the feed first lets the mirror read what the kernel has reported, so that it
has what other processes removed a moment ago, too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import trio

from nl.plugin import EMPTY_DIGESTS, ActionKey, Digest, Key, RemovalFeed
from nl.stores.filesystem.commit import Committer
from nl.stores.filesystem.layout import Folder
from nl.stores.filesystem.mirror import Mirror
from nl.stores.filesystem.names import legacy_action_key
from nl.stores.filesystem.oserrors import translate
from nl.stores.filesystem.unmarked import UnmarkedBlobs

_SLICE = 64
"""Files that are deleted under one lock: one of a GiB takes some 50 ms, the usual ones 20 us."""


class Remover:
    """A Deletes: what `FilesystemStore.capability(Deletes)` returns."""

    def __init__(self, committer: Committer, unmarked: UnmarkedBlobs) -> None:
        self._committer = committer
        self._unmarked = unmarked

    async def delete(self, keys: Sequence[Key]) -> None:
        """See Deletes. *Cancellation*: some are deleted then."""
        committer = self._committer
        committer.mirror.layout.require_open()
        for digest in keys:
            if isinstance(digest, Digest) and digest not in EMPTY_DIGESTS:
                await self._unmarked.mark(digest)
        for start in range(0, len(keys), _SLICE):
            await committer.lock.acquire()
            with committer.locked():
                for key in keys[start : start + _SLICE]:
                    if key not in EMPTY_DIGESTS:
                        self._delete(key)
            await trio.lowlevel.checkpoint()

    def _delete(self, key: Key) -> None:
        """Deletes the file of a key, wherever it lies. Under the lock."""
        layout, index = self._committer.mirror.layout, self._committer.mirror.index
        folder, name, index_key = layout.locate(key)
        self._unlink(folder, name)
        if isinstance(key, Digest):
            self._committer.delete_executable(index_key)
        elif isinstance(key, ActionKey):
            legacy = index.slots.get(legacy_action_key(key))
            if legacy is not None:
                self._unlink(*layout.place_of(legacy_action_key(key), index.sizes[legacy]))

    def _unlink(self, folder: Folder, name: str) -> None:
        try:
            size = os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_size
            self._committer.unlink(folder, name, size)
        except FileNotFoundError:
            self._committer.mirror.removed(folder, name)
        except OSError as error:
            path = f"{folder.path}/{name}"
            raise translate(error, store=self._committer.mirror.layout.name, path=path, doing="delete") from error


class RemovalNews:
    """A Removals: what `FilesystemStore.capability(Removals)` returns."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def watch_removals(self) -> RemovalFeed:
        """See Removals."""
        return self._mirror.removals.watch(_Feed(self._mirror))


class _Feed(RemovalFeed):
    """Up to date when it is asked."""

    __slots__ = ("_mirror",)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__()
        self._mirror = mirror

    def take(self) -> Sequence[Key] | None:
        self._mirror.refresh()
        gone = super().take()
        return gone if self._mirror.is_exact else None

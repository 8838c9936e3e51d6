"""The `filesystem` store: what the Store contract asks, put together from the parts beside this module.

Layout and names: layout.py, names.py. Who has what: presence.py, mirror.py, index.py, watch.py. Writing: uploading.py,
writing.py, commit.py. Reading: opening.py, readers.py, verify.py, quarantine.py. Local files: links.py,
executables.py, adopting.py. Memory of use: recency.py. What leaves: removing.py. What processes tell each
other: uses.py, journal.py.

What it promises beyond the contract: never a wrong byte (what is not known to be right is hashed before it is served);
several processes on one folder see the same blobs and together stay under `max_bytes`. What it does not: survive a
power cut with everything acknowledged (only action results are fsynced, and only with `durability`; what is torn is
found by its hash). On a disk that others have filled it refuses uploads rather than delete what it has acknowledged
(disk_space.py).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar, cast

import trio

from nl.plugin import (
    MAX_WHOLE,
    SMALL,
    BlobSizeLimit,
    Buffer,
    Deletes,
    Digest,
    Key,
    LocalFiles,
    NlError,
    Reader,
    Removals,
    Store,
    StoreContext,
    UnavailableError,
)
from nl.stores.filesystem.adopting import Adopter
from nl.stores.filesystem.clock import Clock
from nl.stores.filesystem.commit import Committer
from nl.stores.filesystem.disk_space import DiskSpace
from nl.stores.filesystem.executables import Executables
from nl.stores.filesystem.index import Index
from nl.stores.filesystem.layout import Layout
from nl.stores.filesystem.links import Linker
from nl.stores.filesystem.local_files import StoredFiles
from nl.stores.filesystem.mirror import Mirror
from nl.stores.filesystem.opening import Opener
from nl.stores.filesystem.options import FilesystemOptions
from nl.stores.filesystem.oserrors import translate
from nl.stores.filesystem.presence import Presence
from nl.stores.filesystem.quarantine import Quarantine
from nl.stores.filesystem.readers import FileAccess
from nl.stores.filesystem.recency import Recency
from nl.stores.filesystem.removing import RemovalNews, Remover
from nl.stores.filesystem.scanning import Scanner
from nl.stores.filesystem.unmarked import UnmarkedBlobs
from nl.stores.filesystem.uploading import Uploader
from nl.stores.filesystem.uses import UseTable
from nl.stores.filesystem.verify import Verifier

_log = logging.getLogger(__name__)

C = TypeVar("C")

_READ_THREADS = 8
_WRITE_THREADS = 8
_TICK_S = 0.25
"""How often the background work looks around: the kernel keeps 16384 events by default, so 65,000 changes a second."""
_FLUSH_S = 5.0
_TRIM_S = 5.0
_RESCAN_S = 60.0
"""Without inotify, the folder is listed so often to learn what other processes did."""


class FilesystemStore(Store):
    """Blobs as files. See the module for the promises, the options for the settings.

    Usable while `run` runs.
    """

    Options = FilesystemOptions

    def __init__(self, options: FilesystemOptions, context: StoreContext) -> None:
        self.name = context.name
        self._options = options
        self._layout = Layout(content_path=options.content_path, temp_path=options.temp_path, name=self.name)
        self._clock = Clock()
        self._uses = UseTable()
        self._index = Index(options.block_size, self._uses)
        self._mirror = Mirror(self._layout, self._index, self._clock)
        self._scanner = Scanner(self._mirror, self._clock)
        self._committer = Committer(self._mirror, self._scanner, options.eviction_policy)
        read_threads = trio.CapacityLimiter(_READ_THREADS)
        write_threads = trio.CapacityLimiter(options.max_concurrent_writes or _WRITE_THREADS)
        self._verifier = Verifier(self._index, threads=read_threads)
        self._quarantine = Quarantine(self._committer)
        buffer_size = min(max(options.read_buffer_size, 4096), MAX_WHOLE)
        self._access = FileAccess(buffer_size=buffer_size, threads=read_threads)
        self._recency = Recency(self._mirror, self._uses, self._clock)
        unmarked = UnmarkedBlobs(self._committer, self._verifier, self._quarantine)
        self._presence = Presence(self._mirror, unmarked, self._clock, max_age_s=options.eviction_policy.max_seconds)
        self._opener = Opener(
            self._mirror, self._presence, self._access, verifier=self._verifier, quarantine=self._quarantine,
            unmarked=unmarked,
        )
        self._space = DiskSpace(self._committer, min_free=options.min_free)
        self._uploader = Uploader(
            self._committer, self._space, threads=write_threads, flushes=options.evict_page_cache,
            durable=options.durability == "fsync",
        )  # fmt: skip
        executables = Executables(self._committer, self._verifier, self._quarantine, threads=write_threads)
        self._local_files = StoredFiles(
            Linker(self._committer, executables, self._opener.opened, threads=write_threads),
            Adopter(self._committer, self._verifier, self._space, threads=write_threads),
        )
        self._offered: dict[type, object] = {
            LocalFiles: self._local_files,
            Deletes: Remover(self._committer, unmarked),
            Removals: RemovalNews(self._mirror),
        }

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        return await self._presence.sizes(keys)

    async def get(self, key: Key) -> Buffer:
        return await self._opener.read_whole(key)

    def open(
        self, key: Key, *, offset: int = 0, length: int | None = None
    ) -> AbstractAsyncContextManager[Reader]:
        return self._opener.reading(key, offset, length)

    async def put(self, key: Key, data: Buffer) -> None:
        await self._uploader.put(key, data)

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        small = [at for at, (key, data) in enumerate(blobs) if type(key) is Digest and len(data) <= SMALL]
        if len(small) < 2:
            return await super().put_many(blobs)
        failed: list[NlError | None] = [None] * len(blobs)
        together = [(cast("Digest", blobs[at][0]), blobs[at][1]) for at in small]
        for at, error in zip(small, await self._uploader.put_small(together), strict=True):
            failed[at] = error
        others = sorted(set(range(len(blobs))).difference(small))
        for at, error in zip(others, await super().put_many([blobs[at] for at in others]), strict=True):
            failed[at] = error
        return failed

    async def write(self, key: Key, reader: Reader) -> None:
        await self._uploader.write(key, reader)

    def capability(self, kind: type[C]) -> C | None:
        if kind is BlobSizeLimit and self._options.eviction_policy.max_bytes:
            return cast("C", self)
        if kind is Removals and self._options.eviction_policy.max_seconds:
            return None  # what is too old is gone when it is asked for, and not before
        return cast("C | None", self._offered.get(kind))

    def max_blob_bytes(self) -> int:
        """See `BlobSizeLimit`."""
        return self._index.most_that_costs(self._options.eviction_policy.max_bytes)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Opens the folders (ConfigError if they cannot be used), then lists, watches and keeps them in bounds."""
        await trio.to_thread.run_sync(self._layout.open)
        try:
            await self._share_uses()
            self._mirror.start()
            async with trio.open_nursery() as nursery:
                await nursery.start(self._verifier.run)
                nursery.start_soon(self._recency.keep_company, self._committer.tell_sum)
                task_status.started()
                await self._maintain()
        finally:
            with trio.move_on_after(5, shield=True):
                await self._tell_at_the_end()
            self._mirror.stop()
            self._committer.close()
            self._uses.close()
            self._layout.close()

    async def _share_uses(self) -> None:
        """Joins the other processes on the folder in remembering what was used."""
        try:
            await self._committer.lock.acquire()
        except UnavailableError as error:
            _log.error("%s", error.message)
            return
        try:
            self._uses.open(self._layout.content_path, store=self.name)
        finally:
            self._committer.lock.unlock()
        await self._recency.wait_for_others()

    async def _maintain(self) -> None:
        flush_at = trim_at = rescan_at = 0.0
        while True:
            now = trio.current_time()
            try:
                self._clock.watch()
                await self._mirror.catch_up()
                if self._mirror.folder_lost:
                    await self._repair()
                await self._committer.follow()  # the first time, before the folder is listed
                if not self._mirror.is_watching and now >= rescan_at:
                    rescan_at = now + _RESCAN_S
                    self._mirror.scan_wanted = True
                if self._mirror.scan_wanted:
                    await self._scan()
                if now >= trim_at:
                    trim_at = now + _TRIM_S
                    if self._presence.max_age_s:
                        await self._committer.trim()
                await self._space.keep_reserve()
                await self._committer.free_large()
                if now >= flush_at:
                    flush_at = now + _FLUSH_S
                    await self._recency.flush()
                    await self._committer.tell_sum()
            except OSError as error:
                _log.error("%s", translate(error, store=self.name, path=self._layout.content_path, doing="look after"))
                if error.errno == errno.ENOENT:
                    self._mirror.folder_lost = True  # no event says so while the folder is open here
                await trio.sleep(_FLUSH_S)
            except UnavailableError as error:
                _log.error("%s; eviction is tried again", error.message)
            with trio.move_on_after(_TICK_S):
                await self._scanner.asked.wait()

    async def _tell_at_the_end(self) -> None:
        """Tells what was used, and what there is; if that fails, the store ends all the same."""
        try:
            await self._recency.flush()
            await self._committer.tell_sum()
        except (OSError, UnavailableError) as error:
            _log.warning("store %s: what was used last may not be known after a restart: %s", self.name, error)

    async def _scan(self) -> None:
        await self._scanner.scan(self._committer.follow_if_free)
        if not self._mirror.scanned.is_set():
            return
        await self._committer.delete_orphans()
        if count := await self._committer.delete_empty(self._scanner.empty):
            _log.info("store %s: deleted %d empty files, as a power cut leaves them", self.name, count)
        await self._committer.trim()

    async def _repair(self) -> None:
        """Somebody deleted or moved folders: make them anew; know nothing, and list them, if files were in them."""
        _log.error(
            "store %s: a folder of %s was deleted or moved while in use; the store goes on with what is there now",
            self.name, self._layout.content_path,
        )  # fmt: skip
        if await trio.to_thread.run_sync(self._layout.is_in_place):
            await trio.to_thread.run_sync(self._layout.reopen)
            self._mirror.folder_lost = False
            if not self._mirror.is_exact:
                self._mirror.watch_anew()
            return
        self._mirror.lose()
        await trio.to_thread.run_sync(self._layout.reopen)
        self._uses.close()
        await self._share_uses()
        self._mirror.start()
        self._mirror.folder_lost = False  # not before: what failed is tried again

    def statistics(self) -> Mapping[str, int | float | str]:
        committer, verifier = self._committer, self._verifier
        return {
            "blobs": len(self._index),
            "executables": len(self._index.executables),
            "bytes": self._index.bytes,
            "max_bytes": self._options.eviction_policy.max_bytes,
            "hits": self._opener.hits,
            "misses": self._opener.misses,
            "written_blobs": self._uploader.written_blobs,
            "written_bytes": self._uploader.written_bytes,
            "evicted_blobs": committer.evicted_blobs,
            "evicted_bytes": committer.evicted_bytes,
            "kept_for_others": self._index.moved,
            "made_room_on_disk": self._space.made_room,
            "hashed_blobs": verifier.hashed_blobs,
            "hashed_bytes": verifier.hashed_bytes,
            "corrupt_blobs": self._quarantine.corrupt_blobs,
            "linked_files": self._local_files.linker.linked,
            "copied_files": self._local_files.linker.copied,
            "adopted_files": self._local_files.adopter.adopted,
            "cold_reads": self._access.cold_reads,
            "lock_waits": committer.lock.waits,
            "state": self._state(),
        }

    def __repr__(self) -> str:
        return f"<FilesystemStore {self.name!r} at {self._layout.content_path}: {self._index!r}>"

    def _state(self) -> str:
        if not self._layout.is_open:
            return "not running"
        return "exact" if self._mirror.is_exact else self._mirror.why_inexact or "scanning"

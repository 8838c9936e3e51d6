"""The `filesystem` store: what the Store contract asks, put together from the parts beside this module.

Layout and names: layout.py, names.py. Who has what: mirror.py, index.py, watch.py. Writing: writing.py, commit.py.
Reading: readers.py, verify.py, quarantine.py. Local files: links.py, executables.py. Memory of use: recency.py.

What it promises beyond the contract: never a wrong byte (what is not known to be right is hashed before it is served);
several processes on one folder see the same blobs and together stay under `max_bytes`. What it does not: survive a
power cut with everything acknowledged (nothing is fsynced; what is torn is found by its hash). On a full disk it
refuses uploads rather than delete what it has acknowledged.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from operator import attrgetter
from types import TracebackType
from typing import TypeVar, cast

import trio

from nl.plugin import (
    EMPTY_DIGESTS,
    MAX_WHOLE,
    SMALL,
    ActionKey,
    BlobNotFoundError,
    BlobSizeLimit,
    Buffer,
    BytesReader,
    Digest,
    ExhaustedError,
    InternalError,
    Key,
    LocalFiles,
    Reader,
    Store,
    StoreContext,
    UnavailableError,
    UploadMismatchError,
    clamp,
)
from nl.stores.filesystem.adopting import Adopter
from nl.stores.filesystem.commit import Committer
from nl.stores.filesystem.executables import Executables
from nl.stores.filesystem.index import Entry, Index
from nl.stores.filesystem.layout import Folder, Layout
from nl.stores.filesystem.links import Linker
from nl.stores.filesystem.local_files import StoredFiles
from nl.stores.filesystem.mirror import Mirror
from nl.stores.filesystem.names import (
    IndexKey,
    legacy_action_key,
    name_of,
    name_of_text,
    wrong_size_key,
)
from nl.stores.filesystem.options import FilesystemOptions
from nl.stores.filesystem.oserrors import translate
from nl.stores.filesystem.quarantine import Quarantine
from nl.stores.filesystem.readers import FileAccess, FileReader
from nl.stores.filesystem.recency import Recency
from nl.stores.filesystem.unmarked import UnmarkedBlobs
from nl.stores.filesystem.verify import Verifier
from nl.stores.filesystem.writing import DiskPace, Gatherer, TempFile, drain

_log = logging.getLogger(__name__)

C = TypeVar("C")
_SIZE_OF = attrgetter("size")

_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_READ_THREADS = 8
_WRITE_THREADS = 8
_TICK_S = 0.25
"""How often the background work looks around: the kernel keeps 16384 events by default, so 65,000 changes a second."""
_FLUSH_S = 5.0
_TRIM_S = 5.0
_RESCAN_S = 60.0
"""Without inotify, the folder is listed so often to learn what other processes did."""
_INLINE_STATS = 32


class FilesystemStore(Store):
    """Blobs as files. See the module for the promises, the options for the settings.

    Usable while `run` runs.
    """

    Options = FilesystemOptions

    def __init__(self, options: FilesystemOptions, context: StoreContext) -> None:
        self.name = context.name
        self._options = options
        self._layout = Layout(content_path=options.content_path, temp_path=options.temp_path, name=self.name)
        self._index = Index(options.block_size)
        self._mirror = Mirror(self._layout, self._index)
        self._committer = Committer(self._mirror, options.eviction_policy)
        read_threads = trio.CapacityLimiter(_READ_THREADS)
        self._pace = DiskPace()
        self._write_threads = trio.CapacityLimiter(options.max_concurrent_writes or _WRITE_THREADS)
        self._verifier = Verifier(self._index, threads=read_threads)
        self._quarantine = Quarantine(self._committer)
        buffer_size = min(max(options.read_buffer_size, 4096), MAX_WHOLE)
        self._access = FileAccess(buffer_size=buffer_size, threads=read_threads)
        self._unmarked = UnmarkedBlobs(self._committer, self._verifier)
        self._recency = Recency(self._committer)
        executables = Executables(self._committer, self._verifier, self._quarantine, threads=self._write_threads)
        self._local_files = StoredFiles(
            Linker(self._committer, executables, self._opened, threads=self._write_threads),
            Adopter(self._committer, self._verifier, threads=self._write_threads),
        )
        self._max_age_s = options.eviction_policy.max_seconds
        self._running = False
        self._hits = 0
        self._misses = 0
        self._written_blobs = 0
        self._written_bytes = 0

    # Presence

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        mirror = self._mirror
        mirror.refresh()
        if not mirror.is_exact:
            return await self._has_slowly(keys)
        now = time.time()
        max_age = self._max_age_s
        blobs = self._index.blobs
        if not max_age and str not in set(map(type, keys)):
            found = list(map(blobs.get, keys))
            if None not in found:  # the common case, a step for all keys at a time: half the time of the loop below
                entries = cast(list[Entry], found)
                deque(map(blobs.move_to_end, keys), 0)
                for present in entries:
                    present.used = now
                return list(map(_SIZE_OF, entries))
        get, touch = blobs.get, blobs.move_to_end
        sizes: list[int | None] = []
        append = sizes.append
        for key in keys:
            if type(key) is str:
                key = name_of_text(key)
            entry = get(key)
            if entry is None:
                append(self._size_without_entry(key, now))
            elif max_age and self._is_expired(key, entry, now - max_age):
                append(None)
            else:
                entry.used = now
                touch(key)
                append(entry.size)
        return sizes

    def _size_without_entry(self, key: Key, now: float) -> int | None:
        """For keys that are not in the index under their own name."""
        if key in EMPTY_DIGESTS:
            return 0
        if isinstance(key, ActionKey):
            legacy = legacy_action_key(key)
            entry = self._index.blobs.get(legacy)
            if entry is not None:
                self._index.touch(legacy, entry, now)
                return entry.size
        return self._unmarked.size_of(key) if isinstance(key, Digest) else None

    async def _has_slowly(self, keys: Sequence[Key]) -> list[int | None]:
        """Asks the file system, because the index may be wrong."""
        self._require_running()
        places = [self._place(key) for key in keys]
        if len(places) <= _INLINE_STATS:
            sizes = self._stat_all(places)
        else:
            sizes = await trio.to_thread.run_sync(self._stat_all, places)
        now = time.time()
        for number, (_, _, index_key) in enumerate(places):
            if sizes[number] is None:
                sizes[number] = self._size_without_entry(keys[number], now)
            elif (entry := self._index.blobs.get(index_key)) is not None:
                self._index.touch(index_key, entry, now)
        return sizes

    def _stat_all(self, places: Sequence[tuple[Folder, str, IndexKey]]) -> list[int | None]:
        """In a thread, too: reads nothing but the file system."""
        sizes: list[int | None] = []
        horizon = time.time() - self._max_age_s if self._max_age_s else 0
        for folder, name, key in places:
            try:
                facts = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            except FileNotFoundError:
                sizes.append(None)
                continue
            except OSError as error:
                raise self._translated(error, folder, name, "look at") from error
            wrong = len(key) == 3 and folder is self._layout.blobs and facts.st_size != key[1]
            sizes.append(None if wrong or facts.st_atime < horizon else facts.st_size)
        return sizes

    # Reading

    async def get(self, key: Key) -> Buffer:
        if key in EMPTY_DIGESTS:
            return b""
        fd, facts = await self._opened(key)
        try:
            size = facts.st_size
            if size > MAX_WHOLE:
                raise ExhaustedError(f"{key} has {size} bytes; more than {MAX_WHOLE} must be streamed")
            return await self._access.read_whole(fd, size)
        except EOFError:
            raise BlobNotFoundError(key, self._where()) from None
        except OSError as error:
            raise self._translated_key(error, key, "read") from error
        finally:
            os.close(fd)

    def open(
        self, key: Key, *, offset: int = 0, length: int | None = None
    ) -> AbstractAsyncContextManager[Reader]:
        return _Opening(self, key, offset, length)

    async def _opened(self, key: Key) -> tuple[int, os.stat_result]:
        """An open file that has the right bytes, and its stat; it is the most recently used then.

        Raises BlobNotFoundError, also for what was found wrong and set aside.
        """
        self._mirror.refresh()
        folder, name, index_key = self._place(key)
        entry = self._index.blobs.get(index_key)
        if entry is None or self._max_age_s:
            folder, index_key, entry = await self._look_harder(key)
        try:
            fd = os.open(name, _READ_FLAGS, dir_fd=folder.fd)
        except FileNotFoundError:
            self._require_running()
            self._mirror.removed(folder, name, key=index_key)
            raise self._missing(key) from None
        except OSError as error:
            self._require_running()
            raise self._translated(error, folder, name, "open") from error
        try:
            facts = os.fstat(fd)
            if entry is None or entry.size != facts.st_size:
                entry = Entry(facts.st_size, used=0.0)
                self._index.add(index_key, entry)
            if type(key) is Digest and not entry.is_known_as(facts.st_ino, facts.st_mtime_ns, facts.st_size):
                facts = await self._verified(key, fd)
            self._index.touch(index_key, entry, time.time())
        except OSError as error:
            os.close(fd)
            raise self._translated(error, folder, name, "check") from error
        except BaseException:
            os.close(fd)
            raise
        self._hits += 1
        return fd, facts

    async def _verified(self, digest: Digest, fd: int) -> os.stat_result:
        """The stat of a file whose bytes are right; a wrong one is set aside and missing."""
        facts = await self._verifier.is_right(fd, digest)
        if facts is None:
            await self._quarantine.set_aside(self._layout.blobs, digest, fd)
            raise self._missing(digest)
        return facts

    async def _look_harder(self, key: Key) -> tuple[Folder, IndexKey, Entry | None]:
        """Where a key that is not simply in the index may be found. Raises BlobNotFoundError if nowhere."""
        folder, _, index_key = self._place(key)
        entry = self._index.blobs.get(index_key)
        if entry is None and isinstance(key, ActionKey):
            legacy = legacy_action_key(key)
            if (other := self._index.blobs.get(legacy)) is not None:
                folder, index_key, entry = self._layout.blobs, legacy, other
        elif entry is None and isinstance(key, Digest):
            if wrong_size_key(key) in self._index.blobs:
                await self._set_misfit_aside(key)
            elif await self._unmarked.mark(key):
                entry = self._index.blobs.get(index_key)
        if entry is None and self._mirror.is_exact:
            raise self._missing(key)
        if entry is not None and self._max_age_s and self._is_expired(index_key, entry, time.time() - self._max_age_s):
            raise self._missing(key)
        return folder, index_key, entry

    async def _set_misfit_aside(self, digest: Digest) -> None:
        """A blob is asked for whose file has another size than its name says: cut short or written to by somebody."""
        try:
            fd = os.open(name_of(digest), _READ_FLAGS, dir_fd=self._layout.blobs.fd)
        except FileNotFoundError:
            return
        try:
            if os.fstat(fd).st_size != digest.size:
                await self._quarantine.set_aside(self._layout.blobs, digest, fd)
        finally:
            os.close(fd)

    # Writing

    async def put(self, key: Key, data: Buffer) -> None:
        if key in EMPTY_DIGESTS:
            return
        self._mirror.refresh()
        size = len(data)
        folder, name, index_key = self._place(key)
        if type(key) is Digest:
            if size != key.size:
                raise UploadMismatchError(f"{key}: the upload has {size} bytes, its digest says {key.size}")
            if self._committer.is_intact(key):
                return
        self._committer.refuse_too_large(key, size)
        try:
            with TempFile(self._layout) as file:
                if size <= SMALL:
                    file.append((data,))
                else:
                    await trio.to_thread.run_sync(file.append, (data,), limiter=self._write_threads)
                await self._commit(file, folder, name, index_key)
        except OSError as error:
            raise self._write_failed(error, folder, name) from error

    async def write(self, key: Key, reader: Reader) -> None:
        if key in EMPTY_DIGESTS:
            await drain(reader)
            return
        self._mirror.refresh()
        folder, name, index_key = self._place(key)
        expected = key.size if type(key) is Digest else reader.size
        self._committer.refuse_too_large(key, expected)
        if type(key) is Digest and self._committer.is_intact(key):
            self._require_size(key, await drain(reader))
            return
        try:
            with TempFile(self._layout, expected=expected) as file:
                await self._receive(reader, file)
                if type(key) is Digest:
                    self._require_size(key, file.size)
                await self._commit(file, folder, name, index_key)
        except OSError as error:
            raise self._write_failed(error, folder, name) from error

    async def _receive(self, reader: Reader, file: TempFile) -> None:
        gatherer = Gatherer(file, pace=self._pace, threads=self._write_threads)
        limit = self._options.eviction_policy.max_bytes
        try:
            while parts := await reader.receive_parts(gatherer.wants):
                await gatherer.add(parts)
                if limit and file.size > limit:
                    self._committer.refuse_too_large("an upload of unknown size", file.size)
            await gatherer.flush()
        finally:
            gatherer.forget()
        if self._options.evict_page_cache and file.size > SMALL:
            await trio.to_thread.run_sync(file.flush_and_drop, limiter=self._write_threads)

    async def _commit(self, file: TempFile, folder: Folder, name: str, index_key: IndexKey) -> None:
        facts = file.finish()
        await self._committer.commit(file.name, folder, name, key=index_key, facts=facts)
        file.committed = True
        self._written_blobs += 1
        self._written_bytes += facts.st_size

    def _require_size(self, digest: Digest, size: int) -> None:
        if size != digest.size:
            raise UploadMismatchError(f"{digest}: the upload has {size} bytes, its digest says {digest.size}")

    # The rest of the contract

    def capability(self, kind: type[C]) -> C | None:
        if kind is BlobSizeLimit and self._options.eviction_policy.max_bytes:
            return cast("C", self)
        return cast("C", self._local_files) if kind is LocalFiles else None

    def max_blob_bytes(self) -> int:
        """See `BlobSizeLimit`."""
        return self._index.most_that_costs(self._options.eviction_policy.max_bytes)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Opens the folders (ConfigError if they cannot be used), then lists, watches and keeps them in bounds."""
        await trio.to_thread.run_sync(self._layout.open)
        self._mirror.start()
        self._running = True
        try:
            task_status.started()
            await self._maintain()
        finally:
            with trio.move_on_after(5, shield=True):
                await self._recency.flush()
            self._running = False
            self._mirror.stop()
            self._committer.close()
            self._layout.close()

    async def _maintain(self) -> None:
        flush_at = trim_at = rescan_at = 0.0
        while True:
            now = trio.current_time()
            try:
                self._mirror.refresh()
                if self._mirror.folder_lost:
                    await self._repair()
                if not self._mirror.is_watching and now >= rescan_at:
                    rescan_at = now + _RESCAN_S
                    self._mirror.scan_wanted = True
                if self._mirror.scan_wanted:
                    await self._mirror.scan()
                    await self._committer.trim()
                if now >= trim_at:
                    trim_at = now + _TRIM_S
                    if self._max_age_s:
                        await self._committer.trim()
                await self._committer.free_large()
                if now >= flush_at:
                    flush_at = now + _FLUSH_S
                    await self._recency.flush()
            except OSError as error:
                _log.error("%s", translate(error, store=self.name, path=self._layout.content_path, doing="look after"))
                await trio.sleep(_FLUSH_S)
            except UnavailableError as error:
                _log.error("%s; eviction is tried again", error.message)
            await trio.sleep(_TICK_S)

    async def _repair(self) -> None:
        """Somebody deleted or moved the folders: make them anew, know nothing, list them again."""
        _log.error(
            "store %s: a folder of %s was deleted or moved while in use; the store goes on with what is there now",
            self.name, self._layout.content_path,
        )  # fmt: skip
        self._mirror.lose()
        await trio.to_thread.run_sync(self._layout.reopen)
        self._mirror.start()

    def statistics(self) -> Mapping[str, int | float | str]:
        committer, verifier = self._committer, self._verifier
        return {
            "blobs": len(self._index),
            "executables": len(self._index.executables),
            "bytes": self._index.bytes,
            "max_bytes": self._options.eviction_policy.max_bytes,
            "hits": self._hits,
            "misses": self._misses,
            "written_blobs": self._written_blobs,
            "written_bytes": self._written_bytes,
            "evicted_blobs": committer.evicted_blobs,
            "evicted_bytes": committer.evicted_bytes,
            "spared_blobs": committer.spared_blobs,
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

    # Small parts

    def _state(self) -> str:
        if not self._running:
            return "not running"
        return "exact" if self._mirror.is_exact else self._mirror.why_inexact or "scanning"

    def _place(self, key: Key) -> tuple[Folder, str, IndexKey]:
        """Folder, file name and index key of a key."""
        if type(key) is Digest:
            return self._layout.blobs, name_of(key), key
        if type(key) is ActionKey:
            return self._layout.actions, name_of(key), key
        name = name_of_text(str(key))
        return self._layout.texts, name, name

    def _is_expired(self, key: IndexKey, entry: Entry, horizon: float) -> bool:
        """Whether nobody, in any process, has used a blob since `horizon`."""
        if abs(entry.used) >= horizon:
            return False
        folder, name = self._committer.place_of(key)
        try:
            facts = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        except OSError:
            return True
        return facts.st_atime < horizon

    def _missing(self, key: Key) -> BlobNotFoundError:
        self._misses += 1
        self._require_running()
        return BlobNotFoundError(key, self._where())

    def _where(self) -> str:
        return f"the filesystem store {self.name!r}"

    def _translated(self, error: OSError, folder: Folder, name: str, doing: str) -> Exception:
        return translate(error, store=self.name, path=f"{folder.path}/{name}", doing=doing)

    def _write_failed(self, error: OSError, folder: Folder, name: str) -> Exception:
        self._require_running()
        if error.errno == errno.ENOENT:
            self._mirror.folder_lost = True  # `temp_path` is not watched; the next tick makes it anew.
        return self._translated(error, folder, name, "write")

    def _translated_key(self, error: OSError, key: Key, doing: str) -> Exception:
        folder, name, _ = self._place(key)
        return self._translated(error, folder, name, doing)

    def _require_running(self) -> None:
        if not self._running:
            raise InternalError(f"the filesystem store {self.name!r} is used while it is not running")


class _Opening:
    """What `FilesystemStore.open` returns: the file is open while the context is entered."""

    __slots__ = ("_key", "_length", "_offset", "_reader", "_store")

    def __init__(self, store: FilesystemStore, key: Key, offset: int, length: int | None) -> None:
        self._store = store
        self._key = key
        self._offset = offset
        self._length = length
        self._reader: FileReader | None = None

    async def __aenter__(self) -> Reader:
        store, key = self._store, self._key
        if key in EMPTY_DIGESTS:
            clamp(0, self._offset, self._length)
            return BytesReader(b"")
        fd, facts = await store._opened(key)
        try:
            size = clamp(facts.st_size, self._offset, self._length)
        except BaseException:
            os.close(fd)
            raise
        self._reader = FileReader(
            store._access, fd, offset=self._offset, size=size, mtime_ns=facts.st_mtime_ns,
            what=f"{key} in {store._where()}",
        )  # fmt: skip
        return self._reader

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._reader is not None:
            self._reader.close()

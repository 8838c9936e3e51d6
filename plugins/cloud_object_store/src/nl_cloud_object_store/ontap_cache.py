"""The `ontap_s3_existence_cache` kind: an ONTAP bucket, and in memory which blobs it has.

The bucket is listed at the start and then every `sync_interval_seconds`; a lookup of what was there costs no request.
What was not is asked for, since another server may have written it. Only a yes is remembered, so what somebody deletes
is reported as there for one interval at most, or until it is read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Literal, TypeVar, cast

import trio

from nl.plugin import (
    EMPTY_DIGESTS,
    BlobNotFoundError,
    Buffer,
    ConfigError,
    Count,
    Deletes,
    Digest,
    ForeignKey,
    Key,
    NlError,
    Options,
    Reader,
    Scans,
    StoreContext,
    StoreWrapper,
    Text,
    Traits,
    UnavailableError,
)
from nl_cloud_object_store.digest_set import DigestSet
from nl_cloud_object_store.index_file import IndexFile, Listing
from nl_cloud_object_store.options import CloudObjectStoreOptions
from nl_cloud_object_store.store import CloudObjectStore

C = TypeVar("C")
log = logging.getLogger("nl.stores.ontap_s3_existence_cache")

MOST_GONE = 100_000
"""Blobs that may go during a listing: beyond, it is not used."""
AGAIN_S = 30.0
"""Until a listing that failed is tried again."""
SLICE = 64
"""Keys of a page that are looked at before others have their turn: a tenth of a millisecond."""


class OntapBackend(CloudObjectStoreOptions):
    """The bucket of an `ontap_s3_existence_cache`: what `experimental_cloud_object_store` takes for `ontap`."""

    provider: Literal["ontap"] = "ontap"
    """Whose object store it is."""


class OntapExistenceCacheOptions(Options):
    """A bucket on NetApp ONTAP, and in memory which blobs it has, as the last listing found them."""

    EXAMPLE = """{
  ontap_s3_existence_cache: {
    index_path: "/var/cache/nl/ontap-index.json",
    sync_interval_seconds: 300,
    backend: {
      endpoint: "https://s3.ontap.example.com",
      vserver_name: "build-cache",
      bucket: "my-build-cache",
      key_prefix: "cas/",
    },
  },
}"""

    index_path: Text = ""
    """A file that keeps the index over a restart. Without one the bucket is listed at every start."""
    sync_interval_seconds: Count
    """How often the bucket is listed, in the background. For so long a blob that was there is taken to be there."""
    max_count: Count = 10_000_000
    """Digests that are kept, at 40 bytes each. What finds no place is asked for each time."""
    backend: OntapBackend
    """The bucket."""

    def check(self) -> None:
        """Refuses a listing that never ends."""
        if self.sync_interval_seconds == 0:
            raise ConfigError("sync_interval_seconds", "0 would list the bucket without end; expected 1 or more")


class OntapExistenceCacheStore(StoreWrapper):
    """See the module. Values under keys that are not digests can change, and are not remembered."""

    Options = OntapExistenceCacheOptions

    def __init__(self, options: OntapExistenceCacheOptions, context: StoreContext) -> None:
        super().__init__(backend := CloudObjectStore(options.backend, context))
        self._bucket = backend
        self._options = options
        self._name = context.name
        bucket = options.backend
        source = f"{bucket.endpoint}/{bucket.bucket}/{bucket.key_prefix}"
        self._file = IndexFile(options.index_path, source) if options.index_path else None
        self._known = DigestSet()
        self._new: DigestSet | None = None
        """What a listing under way has found so far."""
        self._gone: set[Digest] = set()
        """What has gone since it began: it may be listed all the same."""
        self._forgotten = 0
        self._due = 0.0
        self._counts = dict.fromkeys(("hits", "misses", "listings"), 0)

    @property
    def traits(self) -> Traits:
        return replace(self.backend.traits, authoritative=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Runs the bucket's store, and lists what is in it. Raises ConfigError as that does."""
        failure: ConfigError | None = None
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(self._run_backend)
            except ConfigError as error:
                failure = ConfigError(f"backend.{error.path}" if error.path else "backend", error.problem)
            else:
                await self._load()
                task_status.started()
                await self._keep_listing()
        if failure is not None:  # raised here, outside of the nursery that would wrap it
            raise failure

    async def _run_backend(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self.backend.run(task_status=task_status)

    async def check(self) -> None:
        await self.backend.check()

    def capability(self, kind: type[C]) -> C | None:
        """That of the bucket."""
        return cast("C", self) if kind is Deletes else self.backend.capability(kind) if kind is Scans else None

    def statistics(self) -> Mapping[str, int | float | str]:
        return {**self.backend.statistics(), "indexed": len(self._known), **self._counts}

    # ------------------------------------------------------------------------------------------------------- the index

    async def _load(self) -> None:
        """Takes the file's word, if it is no older than a listing may be."""
        options, file = self._options, self._file
        if file is None:
            return
        interval = float(options.sync_interval_seconds)
        try:
            listing = await trio.to_thread.run_sync(lambda: file.read(max_age=interval, most=options.max_count))
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.info("store %s: %s is not used: %s", self._name, options.index_path, error)
            return
        self._known = listing.digests
        self._due = trio.current_time() + interval - (time.time() - listing.listed_at)

    async def _keep_listing(self) -> None:
        while True:
            await trio.sleep_until(self._due)
            interval = float(self._options.sync_interval_seconds)
            self._due = trio.current_time() + interval
            try:
                await self._list()
            except NlError as error:
                self._due = trio.current_time() + min(AGAIN_S, interval)
                log.warning("store %s: the bucket cannot be listed: %s", self._name, error)

    async def _list(self) -> None:
        """Lists the bucket anew, and keeps what it found."""
        listed_at, cursor = time.time(), ""
        self._new, self._gone = new, gone = DigestSet(), set[Digest]()
        try:
            while True:
                page = await self._bucket.scan(cursor, lasting=2.0 * self._options.sync_interval_seconds)
                for number, (key, _) in enumerate(page.entries):
                    if isinstance(key, Digest) and key not in gone:
                        self._put_into(new, key)
                    if number % SLICE == 0:
                        await trio.lowlevel.checkpoint()
                if not (cursor := page.cursor):
                    break
            if len(gone) > MOST_GONE:
                raise UnavailableError("too much of it has gone meanwhile")
            self._known = new
        finally:
            self._new, self._gone = None, set()
        self._counts["listings"] += 1
        await self._save(Listing(new.copy(), listed_at))

    async def _save(self, listing: Listing) -> None:
        if self._file is None:
            return
        try:
            await trio.to_thread.run_sync(self._file.write, listing, self._file.outdated)
        except OSError as error:
            log.warning("store %s: the index cannot be kept: %s", self._name, error)

    async def _withdraw(self) -> None:
        """Something has been deleted: a restart that took the file's word would find it there again."""
        if self._file is None:
            return
        self._file.outdated += 1
        if not self._file.may_exist:
            return
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._file.remove)
        except OSError as error:
            log.warning("store %s: the index of before a deletion cannot be removed: %s", self._name, error)

    def _put_into(self, digests: DigestSet, digest: Digest) -> None:
        if len(digests) < self._options.max_count:
            digests.add(digest)

    def _learn(self, key: Key, since: int) -> None:
        """A blob is there, unless it has been found missing `since` the question was asked.

        Where objects expire, only a listing says for how long one stays.
        """
        if not isinstance(key, Digest) or key in EMPTY_DIGESTS or since != self._forgotten:
            return
        if not self._options.backend.consider_expired_after_s:
            for digests in (self._known, self._new):
                if digests is not None:
                    self._put_into(digests, key)
        self._gone.discard(key)

    def _forget(self, keys: Sequence[Key]) -> None:
        for key in keys:
            if isinstance(key, ForeignKey):
                key = Digest(key.hash, key.size)  # an object by its other name
            if not isinstance(key, Digest):
                continue
            self._forgotten += 1
            self._known.discard(key)
            if self._new is not None:
                self._new.discard(key)
                if len(self._gone) <= MOST_GONE:
                    self._gone.add(key)

    @contextmanager
    def _learning_of_absence(self, key: Key) -> Iterator[None]:
        try:
            yield
        except BlobNotFoundError:
            self._forget([key])
            raise

    # ------------------------------------------------------------------------------------------------- the operations

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        known = self._known
        sizes = [key.size if isinstance(key, Digest) and key in known else None for key in keys]
        unknown = [at for at, size in enumerate(sizes) if size is None]
        self._counts["hits"] += len(keys) - len(unknown)
        self._counts["misses"] += len(unknown)
        if unknown:
            since = self._forgotten
            for at, size in zip(unknown, await self.backend.has([keys[at] for at in unknown]), strict=True):
                sizes[at] = size
                if size is not None:
                    self._learn(keys[at], since)
        return sizes

    async def get(self, key: Key) -> Buffer:
        with self._learning_of_absence(key):
            return await self.backend.get(key)

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        found = await self.backend.get_many(keys)
        if missing := [key for key, data in zip(keys, found, strict=True) if isinstance(data, BlobNotFoundError)]:
            self._forget(missing)
        return found

    @asynccontextmanager
    async def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AsyncIterator[Reader]:
        with self._learning_of_absence(key):
            async with self.backend.open(key, offset=offset, length=length) as reader:
                yield reader

    async def put(self, key: Key, data: Buffer) -> None:
        since = self._forgotten
        await self.backend.put(key, data)
        self._learn(key, since)

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        since = self._forgotten
        failed = await self.backend.put_many(blobs)
        for (key, _), error in zip(blobs, failed, strict=True):
            if error is None:
                self._learn(key, since)
        return failed

    async def write(self, key: Key, reader: Reader) -> None:
        since = self._forgotten
        await self.backend.write(key, reader)
        self._learn(key, since)

    async def delete(self, keys: Sequence[Key]) -> None:
        """See `Deletes`."""
        self._forget(keys)
        try:
            await self._bucket.delete(keys)
        finally:
            self._forget(keys)  # those that a lookup found there meanwhile
            await self._withdraw()

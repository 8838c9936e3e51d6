"""The `dedup` store: a list of chunks for each blob in one store, the chunks in another.

A blob is there if its list is and all its chunks are: the chunks belong to nobody, and their store evicts those that
have not been used for the longest time. Asking for a blob is a use of its chunks. Chunks are written before the list
that names them, so no list ever names what has not been there. There is no collection of chunks that no list names:
whether one does can only be known by whoever knows all lists and all uploads under way, and several servers may write
to both stores; eviction does the same without knowing.

What is kept under a blob's name is not the blob, so lists have keys of their own (as `compression` has).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar, cast

import trio

from nl.plugin import (
    CHUNK,
    EMPTY_DIGESTS,
    MAX_WHOLE,
    BlobNotFoundError,
    Buffer,
    BytesReader,
    CodingError,
    CorruptBlobError,
    Deletes,
    Digest,
    DigestFunction,
    EvictionPolicy,
    ExhaustedError,
    ForeignKey,
    InternalError,
    Key,
    LruIndex,
    NlError,
    Reader,
    Store,
    StoreContext,
    TooLargeError,
    Traits,
    UnavailableError,
    Writes,
    clamp,
    code,
    digest_of,
    hash_bytes,
    key_text,
    must_be_streamed,
    read_all,
)
from nl.stores.dedup.ahead import Ahead
from nl.stores.dedup.chunk_index import ChunkIndex
from nl.stores.dedup.chunk_reader import WINDOW_BYTES, ChunkReader
from nl.stores.dedup.chunker import BATCH, Chunk, Chunker, buffer_bytes
from nl.stores.dedup.options import DedupOptions

C = TypeVar("C")
THREADS = 4
SUFFIX = ".chunks"
REMEMBERED_BYTES = 32 * 1024 * 1024
"""Memory for the lists of blobs that were asked about last."""
CHUNK_COST = 300
"""What one chunk in a remembered list costs, roughly."""
_LISTS_AT_ONCE = 500
_TURN_BYTES = 512 * 1024
"""So much is hashed where it is, in one turn of the loop: BLAKE3 takes some 70 us for it, and a hop to a thread costs
no less than the usual chunk does. Only a larger chunk goes to a thread."""
_MAX_SPOILED = 10_000
"""How many chunks that were found wrong are remembered where their store cannot delete them."""
_log = logging.getLogger(__name__)


class DedupStore(Store):
    """Cuts on the way in, joins on the way out; each chunk is checked against its digest when it is read."""

    Options = DedupOptions

    def __init__(self, options: DedupOptions, context: StoreContext) -> None:
        self._name = context.name
        self._lists = context.child(options.index_store)
        self._content = context.child(options.content_store)
        self._options = options
        self._threads = trio.CapacityLimiter(THREADS)
        self._ahead = Ahead()
        self._memory = context.coder_memory
        self._known: LruIndex[Digest, ChunkIndex] = LruIndex(EvictionPolicy(max_bytes=REMEMBERED_BYTES))
        self._spoiled: dict[Digest, None] = {}
        self._writes = Writes()
        self._cut_bytes = 0
        self._stored_bytes = 0
        self._corrupt_chunks = 0

    @property
    def traits(self) -> Traits:
        lists, content = self._lists.traits, self._content.traits
        return Traits(
            authoritative=lists.authoritative and content.authoritative,
            tracks_use=lists.tracks_use and content.tracks_use,
        )

    # -- what is there

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        found = await self._find(keys)
        chunks = list(dict.fromkeys(chunk for index in found if index is not None for chunk in index.chunks))
        there = await self._content.has(chunks) if chunks else []
        missing = {chunk for chunk, size in zip(chunks, there, strict=True) if size is None}
        if self._spoiled:
            missing.update(self._spoiled)
        sizes: list[int | None] = []
        for key, index in zip(keys, found, strict=True):
            if key in EMPTY_DIGESTS:
                sizes.append(0)
            elif index is None or (missing and not missing.isdisjoint(index.chunks)):
                sizes.append(None)
            else:
                sizes.append(index.size)
        return sizes

    async def _find(self, keys: Sequence[Key]) -> list[ChunkIndex | None]:
        """The list of each key's chunks, None where there is none that can be used."""
        count = len(keys)
        places = [*map(_place_of, keys), *map(_foreign, keys)]
        sizes = await self._lists.has(places)
        found: list[ChunkIndex | None] = [None] * count
        unread: list[tuple[int, Key]] = []
        for at, key in enumerate(keys):
            known = self._known.get(key) if isinstance(key, Digest) else None
            if sizes[at] is not None and known is not None and known.encoded_size == sizes[at]:
                found[at] = known
            elif sizes[at] is not None:
                unread.append((at, places[at]))
            elif sizes[count + at] is not None:
                unread.append((at, places[count + at]))
        for start in range(0, len(unread), _LISTS_AT_ONCE):
            some = unread[start : start + _LISTS_AT_ONCE]
            for (at, _), data in zip(some, await self._read_lists([place for _, place in some]), strict=True):
                if not isinstance(data, NlError):
                    found[at] = self._decoded(keys[at], data)
                elif not isinstance(data, BlobNotFoundError):
                    raise data
        return found

    async def _read_lists(self, places: Sequence[Key]) -> list[Buffer | NlError]:
        """The stored lists; long ones are streamed."""
        lists = await self._lists.get_many(places)
        for at, data in enumerate(lists):
            if isinstance(data, TooLargeError):
                async with self._lists.open(places[at]) as reader:
                    lists[at] = await read_all(reader)
        return lists

    def _decoded(self, key: Key, data: Buffer) -> ChunkIndex | None:
        try:
            index = ChunkIndex.decode(data)
            if isinstance(key, Digest) and index.size != key.size:
                raise CodingError(f"its chunks have {index.size} bytes together")
        except CodingError as error:
            _log.warning("%s: the list of the chunks of %s counts as missing: %s", self._name, key, error)
            return None
        if isinstance(key, Digest):
            size = CHUNK_COST * (1 + len(index.chunks))
            if self._known.fits(size):
                self._known.insert(key, index, size=size)
        return index

    # -- reading

    async def get(self, key: Key) -> Buffer:
        if key in EMPTY_DIGESTS:
            return b""
        index = await self._index_of(key)
        if index.size > MAX_WHOLE:
            raise must_be_streamed(key, index.size)
        parts = await self._fetch(key, index.chunks)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @asynccontextmanager
    async def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AsyncIterator[Reader]:
        if key in EMPTY_DIGESTS:
            clamp(0, offset, length)
            yield BytesReader(b"")
            return
        index = await self._index_of(key)
        size = clamp(index.size, offset, length)
        reader = ChunkReader(
            index, partial(self._fetch, key), offset=offset, size=size,
            at_once=self._options.max_concurrent_fetch_per_get, ahead=self._ahead,
        )  # fmt: skip
        async with self._memory.reading(min(size, 2 * WINDOW_BYTES)):
            try:
                await reader.begin()  # what is not all there is noticed here, as far as can be
                yield reader
            finally:
                reader.close()

    async def _index_of(self, key: Key) -> ChunkIndex:
        """The list of a blob that is there: all its chunks are. Raises BlobNotFoundError."""
        (index,) = await self._find([key])
        if index is None:
            raise self._missing(key)
        in_one_trip = len(index.chunks) == 1 and index.size <= MAX_WHOLE  # whoever fetches it finds out
        if not in_one_trip and None in await self._content.has(index.chunks):
            raise self._missing(key, "some of its chunks are gone")
        return index

    async def _fetch(self, key: Key, chunks: Sequence[Digest]) -> list[Buffer]:
        """Some chunks, each checked. Raises BlobNotFoundError, CorruptBlobError."""
        fetched: list[Buffer] = []
        began = self._writes.now
        doubted = self._spoiled.keys() & set(chunks) if self._spoiled else ()
        for data in await self._content.get_many(chunks):
            if isinstance(data, BlobNotFoundError):
                raise self._missing(key, "some of its chunks are gone")
            if isinstance(data, NlError):
                raise data
            fetched.append(data)

        wrong = await self._first_wrong(chunks, fetched)
        if wrong is not None:
            await self._spoil(wrong, began)
            raise CorruptBlobError(f"{key}: its chunk {wrong} is wrong in the content store of {self._name!r}")
        for chunk in doubted:  # another server has stored it anew
            self._spoiled.pop(chunk, None)
        return fetched

    async def _first_wrong(self, chunks: Sequence[Digest], fetched: Sequence[Buffer]) -> Digest | None:
        """The first chunk that is not what its digest says. Others get a turn of the loop after each `_TURN_BYTES`."""
        hashed = 0
        for chunk, data in zip(chunks, fetched, strict=True):
            if len(data) != chunk.size:
                return chunk
            hashed += chunk.size
            if hashed > _TURN_BYTES:
                if hashed > chunk.size:
                    await trio.lowlevel.checkpoint()
                hashed = chunk.size
            if hashed > _TURN_BYTES:
                found = await trio.to_thread.run_sync(hash_bytes, chunk.function, data, limiter=self._threads)
            else:
                found = hash_bytes(chunk.function, data)
            if found != chunk.hash:
                return chunk
        return None

    async def _spoil(self, chunk: Digest, began: int) -> None:
        """A chunk that was read from `began` on was found wrong: it is deleted, or counts as missing, so that the next
        upload mends it. Nothing is done to one that was stored anew since, and none is deleted that is being stored.
        """
        self._corrupt_chunks += 1
        _log.warning("%s: the stored chunk %s is wrong", self._name, chunk)
        if self._writes.replaced_since(chunk, began):
            return
        self._spoiled[chunk] = None
        if len(self._spoiled) > _MAX_SPOILED:
            del self._spoiled[next(iter(self._spoiled))]
        deletes = self._content.capability(Deletes)
        if deletes is not None and self._writes.may_delete(chunk):
            with self._writes.deleting(chunk):
                try:
                    await deletes.delete([chunk])
                except NlError as error:
                    _log.warning("%s: the chunk %s could not be deleted: %s", self._name, chunk, error.message)
                else:
                    self._spoiled.pop(chunk, None)

    def _missing(self, key: Key, why: str = "") -> BlobNotFoundError:
        where = f"the dedup store {self._name!r}"
        return BlobNotFoundError(key, where, message=f"{key} not found in {where}: {why}" if why else "")

    # -- writing

    async def put(self, key: Key, data: Buffer) -> None:
        if key in EMPTY_DIGESTS:
            return
        if len(data) > self._options.min_size:
            await self.write(key, BytesReader(data))
            return
        found_wrong = self._corrupt_chunks
        view = memoryview(data)
        digests = await self._store([(digest_of(view, DigestFunction.BLAKE3), view)] if view else [])
        await self._finish(key, digests, found_wrong=found_wrong)

    async def write(self, key: Key, reader: Reader) -> None:
        if key in EMPTY_DIGESTS:
            while await reader.receive_parts():
                pass
            return
        liked, least = (
            buffer_bytes(self._options.max_size, batch=batch, size=reader.size) for batch in (BATCH, 0)
        )  # fmt: skip
        async with self._memory.uploading((liked, least)) as held:
            await self._write(key, held.watched(reader), batch=BATCH if held.count >= liked else 0)

    async def _write(self, key: Key, reader: Reader, *, batch: int) -> None:
        found_wrong = self._corrupt_chunks
        options = self._options
        chunker = Chunker(
            min_size=options.min_size, normal_size=options.normal_size, max_size=options.max_size,
            batch=batch, size=reader.size,
        )  # fmt: skip
        digests: list[Digest] = []
        batches = 0
        while True:
            parts = await reader.receive_parts(CHUNK)
            chunker.feed(parts)
            if parts and not chunker.is_full:
                continue
            cut = partial(chunker.cut, is_last=not parts)
            digests += await self._store(await code(cut, size=chunker.waiting, threads=self._threads))
            if not parts:
                break
            chunker.drop()
            batches += 1
        if batches and None in await self._content.has(digests):
            raise ExhaustedError(f"{key}: the content store of {self._name!r} has evicted chunks while they came in")
        await self._finish(key, digests, found_wrong=found_wrong)

    async def _finish(self, key: Key, digests: Sequence[Digest], *, found_wrong: int) -> None:
        """All chunks are there: now the blob is. `found_wrong`: how many chunks had been found wrong when it began."""
        await self._lists.put(_place_of(key), ChunkIndex(digests).encode())
        if isinstance(key, Digest):
            self._known.discard(key)
        if self._corrupt_chunks != found_wrong:
            gone = None in await self._content.has(digests) or not self._spoiled.keys().isdisjoint(digests)
            if gone:  # a reader has found wrong, and deleted, what this upload had found there
                raise UnavailableError(f"{key}: a chunk of it was found wrong in {self._name!r} while it came in")

    async def _store(self, chunks: Sequence[Chunk]) -> list[Digest]:
        """Stores the chunks that are not there; the digests of all."""
        digests = [digest for digest, _ in chunks]
        self._cut_bytes += sum(digest.size for digest in digests)
        new = dict(chunks)
        if self._content.traits.authoritative and new:
            asked = list(new)
            for digest, size in zip(asked, await self._content.has(asked), strict=True):
                if size is not None and digest not in self._spoiled:
                    del new[digest]
        if not new:
            return digests
        async with self._writes.under_way(list(new)):
            for digest, error in zip(new, await self._content.put_many(list(new.items())), strict=True):
                if error is not None:
                    raise error
                self._spoiled.pop(digest, None)
                self._stored_bytes += digest.size
        return digests

    # -- the rest

    def capability(self, kind: type[C]) -> C | None:
        return cast("C", self) if kind is Deletes and self._lists.capability(Deletes) is not None else None

    async def delete(self, keys: Sequence[Key]) -> None:
        """See `Deletes`. The chunks stay: other blobs may have them, too."""
        deletes = self._lists.capability(Deletes)
        if deletes is None:
            raise InternalError(f"{self._name}: its index store cannot delete")
        await deletes.delete([place for key in keys for place in (_place_of(key), _foreign(key))])

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Owns the fetches that run ahead of readers."""
        await self._ahead.run(task_status=task_status)

    def statistics(self) -> Mapping[str, int | float | str]:
        return {
            "cut_bytes": self._cut_bytes,
            "stored_bytes": self._stored_bytes,
            "corrupt_chunks": self._corrupt_chunks,
            "remembered_lists": len(self._known),
            "remembered_bytes": self._known.total_bytes,
        }

    def __repr__(self) -> str:
        return f"<DedupStore {self._name!r}: lists in {self._lists!r}, chunks in {self._content!r}>"


def _place_of(key: Key) -> Key:
    return key_text(key) + SUFFIX


def _foreign(key: Key) -> Key:
    """Where NativeLink has the list of a blob. Names are not looked for there: they have one place."""
    return _place_of(key) if isinstance(key, str) else ForeignKey(key.hash, key.size)

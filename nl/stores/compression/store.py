"""The `compression` store: keys, errors and the way from the Store contract to what is kept in the backend.

What is kept is not what its digest names, so it is kept under keys of its own, strings: a backend that checks blobs
must not take it for one, and a config that uses one backend with and without compression finds two different things.
What NativeLink has compressed lies under the names of the digests; it is found as well (ForeignKey), never overwritten.

An object that is found wrong is deleted where the backend can do that, and counts as missing, so that the next upload
mends it. Forms: formats.py, lz4_format.py, sealing.py.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TypeVar, cast

import trio

from nl.plugin import (
    CHUNK,
    EMPTY_DIGESTS,
    MAX_WHOLE,
    SMALL,
    BlobNotFoundError,
    Buffer,
    BytesReader,
    CodingError,
    CorruptBlobError,
    DecodingReader,
    Deletes,
    Digest,
    DigestFunction,
    EncodedBlobs,
    EncodedReader,
    Encoding,
    ForeignKey,
    InternalError,
    InvalidRequestError,
    Key,
    NlError,
    NotFoundError,
    Reader,
    Removals,
    StoreContext,
    StoreWrapper,
    TooLargeError,
    Writes,
    ZstdDecoder,
    clamp,
    code,
    key_text,
    must_be_streamed,
    read_all,
    slice_bytes,
)
from nl.stores.compression.formats import Form, Lz4Form, ZstdForm
from nl.stores.compression.lz4_format import BlocksDecoder
from nl.stores.compression.options import CompressionOptions
from nl.stores.compression.ranges import open_range
from nl.stores.compression.removals import DecodedRemovals
from nl.stores.compression.sealing import SealingReader, UnsealingReader, seal

C = TypeVar("C")
THREADS = 4
_CLEAN_UP_S = 10.0
_WORTH_SKIPPING = 512 * 1024
"""From so many bytes on that are not wanted it is worth asking where those are that are."""
_SHA256 = DigestFunction.SHA256
_NOWHERE = ForeignKey("0" * 64, 0)
_IN_D = _NOWHERE.tag
_new = tuple.__new__
"""Named tuples built through their own constructor cost twice as much."""
_MAX_SPOILED = 10_000
"""How many objects that were found wrong are remembered where the backend cannot delete them."""
_log = logging.getLogger(__name__)


class CompressionStore(StoreWrapper):
    """Compresses on the way in, decompresses on the way out, in threads where it takes long.

    Never holds more of a blob than a batch and a block on either side, but for `get` and `put`.
    """

    Options = CompressionOptions

    def __init__(self, options: CompressionOptions, context: StoreContext) -> None:
        super().__init__(context.child(options.backend))
        self._name = context.name
        lz4, zstd = options.compression_algorithm.lz4, options.compression_algorithm.zstd
        self._form: Form = Lz4Form(lz4) if lz4 is not None else ZstdForm(zstd.level if zstd is not None else 3)
        self._finds_foreign = lz4 is not None and lz4.find_nativelink_blobs
        self._threads = trio.CapacityLimiter(THREADS)
        self._memory = context.coder_memory
        self._spoiled: dict[Key, None] = {}
        self._writes = Writes()
        self._stored = 0
        self._corrupt_blobs = 0
        self._passed_in = 0
        self._passed_out = 0

    # -- what is there

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        suffix, count = self._form.suffix, len(keys)
        asked: list[Key] = [
            f"{key[0]}-{key[1]}{suffix}" if type(key) is Digest and key[2] is _SHA256 else self._key_of(key)
            for key in keys
        ]  # what `_key_of` says, at a third of its price: clients ask for thousands
        if self._finds_foreign:
            found = await self._backend.has(asked + list(map(_foreign, keys)))
            for at in range(count):
                size = found[count + at]
                if found[at] is None and size is not None:
                    foreign = _foreign(keys[at])
                    if not _is_blob_itself(foreign, size):
                        found[at], asked[at] = size, foreign
            del found[count:]
        else:
            found = await self._backend.has(asked)
        spoiled = self._spoiled
        for at, key in enumerate(keys):
            size = found[at]
            if type(key) is Digest:
                found[at] = key[1] if (size is not None and asked[at] not in spoiled) or key in EMPTY_DIGESTS else None
            elif size is not None:
                found[at] = None if asked[at] in spoiled else await self._decoded_size(asked[at], size)
        return found

    async def touch(self, keys: Sequence[Key]) -> None:
        await self._backend.touch([place for key in keys for place in self._places_of(key)])

    async def _decoded_size(self, place: Key, stored: int) -> int | None:
        """The size of a value whose key does not tell it: what the end of its object says."""
        try:
            async with self._backend.open(place, offset=max(stored - self._form.tail_bytes, 0)) as reader:
                return self._form.decoded_size(await read_all(reader))
        except (NotFoundError, CodingError):
            return None

    # -- reading

    async def get(self, key: Key) -> Buffer:
        if key in EMPTY_DIGESTS:
            return b""
        if isinstance(key, Digest) and key.size > MAX_WHOLE:
            if (await self.has([key]))[0] is None:
                raise BlobNotFoundError(key, self._where)
            raise must_be_streamed(key, key.size)
        began = self._writes.now
        for place in self._places_of(key):
            try:
                data = await self._backend.get(place)
            except BlobNotFoundError:
                continue
            except TooLargeError:  # what does not shrink grows a little
                return await self._get_streamed(key)
            if _is_blob_itself(place, len(data)):
                continue
            return await self._decode(key, place, data, began)
        raise BlobNotFoundError(key, self._where)

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        began = self._writes.now
        places = [self._key_of(key) for key in keys]
        found = await self._backend.get_many(places)
        for at, (key, data) in enumerate(zip(keys, found, strict=True)):
            try:
                if isinstance(data, BlobNotFoundError) and not self._finds_foreign and key not in EMPTY_DIGESTS:
                    found[at] = BlobNotFoundError(key, self._where)
                elif isinstance(data, NlError) or (isinstance(key, Digest) and key.size > MAX_WHOLE):
                    found[at] = await self.get(key)
                else:
                    found[at] = await self._decode(key, places[at], data, began)
            except NlError as error:
                found[at] = error
        return found

    async def _decode(self, key: Key, place: Key, data: Buffer, began: int) -> Buffer:
        """The blob of an object in memory, which was read from `began` on."""
        digest = key if isinstance(key, Digest) else None
        size = max(len(data), digest.size if digest is not None else 0)
        decode = partial(self._form.decode, data, digest, most=MAX_WHOLE)
        try:
            whole = await code(decode, size=size, threads=self._threads)
        except CodingError as error:
            await self._spoil(place, began)
            raise self._corrupt(key, str(error)) from None
        if whole is None:
            raise must_be_streamed(key, MAX_WHOLE + 1, at_least=True)
        self._spoiled.pop(place, None)
        return whole

    async def _get_streamed(self, key: Key) -> Buffer:
        """The same for an object that the backend does not give whole."""
        parts: list[bytes] = []
        total = 0
        async with self.open(key) as reader:
            while got := await reader.receive_parts():
                total += sum(map(len, got))
                if total > MAX_WHOLE:
                    raise must_be_streamed(key, total, at_least=True)
                parts.extend(map(bytes, got))
        return b"".join(parts)

    @asynccontextmanager
    async def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AsyncIterator[Reader]:
        digest = key if isinstance(key, Digest) else None
        if digest is not None and digest.size <= SMALL:
            yield slice_bytes(await self.get(key), offset=offset, length=length)
            return
        size = digest.size if digest is not None else -1
        async with self._memory.reading(self._form.decoder_bytes(size)):
            if digest is not None and (count := clamp(digest.size, offset, length)) < digest.size - _WORTH_SKIPPING:
                async with self._open_blocks(digest, offset, count) as part:
                    if part is not None:
                        yield part
                        return
            async with self._open_whole(key, digest, offset, length) as whole:
                yield whole

    @asynccontextmanager
    async def _open_whole(
        self, key: Key, digest: Digest | None, offset: int, length: int | None
    ) -> AsyncIterator[Reader]:
        """A range of an object that is decoded from its start, and checked to its end."""
        async with self._reading(key) as source:
            reader = self._form.decoding(
                source.reader, digest, stored_size=source.size, failure=source.failure, threads=self._threads
            )
            if source.place in self._spoiled:
                reader = _Doubted(reader, partial(self._spoiled.pop, source.place, None))
            yield await open_range(reader, offset=offset, length=length)

    @asynccontextmanager
    async def _open_blocks(self, digest: Digest, offset: int, count: int) -> AsyncIterator[Reader | None]:
        """A range of an object that tells where its blocks are, and what each has to be: only those are read.

        None where it does not tell, or is not there by that name.
        """
        async with AsyncExitStack() as stack:
            try:
                opened = await self._find_blocks(stack, digest, offset, count)
            except (BlobNotFoundError, CodingError):
                opened = None  # whoever reads it from its start finds out what there is
            yield opened

    async def _find_blocks(self, stack: AsyncExitStack, digest: Digest, offset: int, count: int) -> Reader | None:
        place, began, map_bytes = self._key_of(digest), self._writes.now, self._form.map_bytes(digest.size)
        stored = (await self._backend.has([place]))[0] if map_bytes else None
        if stored is None:
            return None
        if not count:
            return BytesReader(b"")
        async with self._backend.open(place, offset=max(stored - map_bytes, 0)) as tail:
            blocks = self._form.blocks(await read_all(tail), stored_size=stored)
        if blocks.size != digest.size:
            return None
        numbers = blocks.around(offset, count)
        start = blocks.start(numbers.start)
        source = _Source(self, digest, place, BytesReader(b""), stored)
        stack.push_async_callback(self._end_source, source, began)
        reader = await stack.enter_async_context(
            self._backend.open(place, offset=start, length=blocks.start(numbers.stop) - start)
        )
        decoded = DecodingReader(
            reader, BlocksDecoder(blocks, numbers), size=blocks.decoded(numbers), failure=source.failure,
            threads=self._threads,
        )  # fmt: skip
        return await open_range(decoded, offset=offset - numbers.start * blocks.block_size, length=count)

    @asynccontextmanager
    async def _reading(self, key: Key, *, offset: int = 0) -> AsyncIterator[_Source]:
        """The object of a key, from `offset`. Once its `failure` has been asked for, it counts as spoiled."""
        began = self._writes.now
        async with AsyncExitStack() as stack:
            for place in self._places_of(key):
                try:
                    reader = await stack.enter_async_context(self._backend.open(place, offset=offset))
                except BlobNotFoundError:
                    continue
                break
            else:
                raise BlobNotFoundError(key, self._where)
            size = reader.size + offset if reader.size >= 0 else (await self._backend.has([place]))[0]
            if size is None or _is_blob_itself(place, size):
                raise BlobNotFoundError(key, self._where)
            source = _Source(self, key, place, reader, size)
            try:
                yield source
            finally:
                await self._end_source(source, began)  # noqa: ASYNC102  # shields itself

    async def _end_source(self, source: _Source, began: int) -> None:
        """No more is read of an object that was read from `began` on."""
        if source.failed:
            with trio.move_on_after(_CLEAN_UP_S, shield=True):
                await self._spoil(source.place, began)

    # -- writing

    async def put(self, key: Key, data: Buffer) -> None:
        if key in EMPTY_DIGESTS:
            return
        encoded = await code(partial(self._form.encode, data), size=len(data), threads=self._threads)
        place = self._key_of(key)
        async with self._writes.under_way((place,)):
            await self._backend.put(place, encoded)
            self._has_stored(place)

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        def encode_all() -> list[tuple[Key, Buffer]]:
            return [(self._key_of(key), self._form.encode(data)) for key, data in blobs]

        total = sum(len(data) for _, data in blobs)
        encoded = await code(encode_all, size=total, threads=self._threads)
        stored = [at for at, (key, _) in enumerate(blobs) if key not in EMPTY_DIGESTS]
        results: list[NlError | None] = [None] * len(blobs)
        async with self._writes.under_way([encoded[at][0] for at in stored]):
            outcomes = await self._backend.put_many([encoded[at] for at in stored])
            for at, outcome in zip(stored, outcomes, strict=True):
                results[at] = outcome
                if outcome is None:
                    self._has_stored(encoded[at][0])
        return results

    async def write(self, key: Key, reader: Reader) -> None:
        if key in EMPTY_DIGESTS:
            await _drain(reader)
        elif 0 <= reader.size <= SMALL:
            await self.put(key, await read_all(reader))
        else:
            place, liked = self._key_of(key), self._form.encoder_bytes(reader.size)
            async with self._memory.uploading(liked) as held, self._writes.under_way((place,)):
                encoded = self._form.encoding(
                    held.watched(reader), size=reader.size, crowded=held.count < liked[0], threads=self._threads
                )
                await self._backend.write(place, encoded)
                self._has_stored(place)

    # -- capabilities

    def capability(self, kind: type[C]) -> C | None:
        if kind is EncodedBlobs and isinstance(self._form, ZstdForm):
            return cast("C", self)
        if kind is Deletes and self._backend.capability(Deletes) is not None:
            return cast("C", self)
        if kind is Removals and (removals := self._backend.capability(Removals)) is not None:
            return cast("C", DecodedRemovals(removals, self._form.suffix))
        return None

    async def delete(self, keys: Sequence[Key]) -> None:
        """See `Deletes`. What NativeLink has compressed is no longer there afterwards; a blob that is not compressed,
        under the same name, stays: it was never here.
        """
        deletes = self._backend.capability(Deletes)
        if deletes is None:
            raise InternalError(f"{self._name}: its backend cannot delete")
        places = [place for key in keys for place in self._places_of(key)]
        foreign = [place for place in places if type(place) is ForeignKey]
        sizes = await self._backend.has(foreign) if foreign else []
        kept = {place for place, size in zip(foreign, sizes, strict=True)
                if size is not None and _is_blob_itself(place, size)}
        await deletes.delete([place for place in places if place not in kept])

    @asynccontextmanager
    async def open_encoded(
        self, key: Key, accept: Collection[Encoding], *, offset: int = 0
    ) -> AsyncIterator[EncodedReader]:
        """See `EncodedBlobs`."""
        if Encoding.ZSTD not in accept or key in EMPTY_DIGESTS:
            async with self.open(key, offset=offset) as reader:
                yield EncodedReader(Encoding.IDENTITY, reader, reader.size + offset if reader.size >= 0 else -1)
            return
        async with self._reading(key, offset=offset) as source:
            size = key.size if isinstance(key, Digest) else -1
            frames = UnsealingReader(
                source.reader, stored_size=source.size, decoded_size=size, offset=offset, failure=source.failure
            )
            self._passed_out += 1
            yield EncodedReader(Encoding.ZSTD, frames, frames.size + offset)

    async def write_encoded(self, key: Key, reader: Reader, encoding: Encoding) -> None:
        """See `EncodedBlobs`."""
        if encoding is Encoding.IDENTITY:
            await self.write(key, reader)
        elif key in EMPTY_DIGESTS:
            await _drain(reader)
        elif not isinstance(key, Digest):  # its size is known when it has been unpacked
            await self.write(
                key, DecodingReader(reader, ZstdDecoder(), size=-1, failure=InvalidRequestError, threads=self._threads)
            )
        else:
            place, size = self._key_of(key), key.size
            async with self._writes.under_way((place,)):
                if 0 <= reader.size <= SMALL:
                    await self._backend.put(place, seal(await read_all(reader), size))
                else:
                    await self._backend.write(place, SealingReader(reader, lambda: size))
                self._passed_in += 1
                self._has_stored(place)

    def statistics(self) -> Mapping[str, int | float | str]:
        return {
            "stored_blobs": self._stored,
            "corrupt_blobs": self._corrupt_blobs,
            "passed_in_packed": self._passed_in,
            "passed_out_packed": self._passed_out,
        }

    def __repr__(self) -> str:
        return f"<CompressionStore {self._name!r}: {self._form.suffix[1:]} over {self._backend!r}>"

    # -- keys and objects

    @property
    def _where(self) -> str:
        return f"the compression store {self._name!r}"

    def _key_of(self, key: Key) -> Key:
        """Where the backend has what this store writes."""
        return key_text(key) + self._form.suffix

    def _places_of(self, key: Key) -> tuple[Key, ...]:
        """Where the backend may have it, in the order in which they are looked at."""
        own = self._key_of(key)
        return (own, _foreign(key)) if self._finds_foreign and not isinstance(key, str) else (own,)

    def _has_stored(self, place: Key) -> None:
        self._stored += 1
        self._spoiled.pop(place, None)

    def _corrupt(self, key: Key, problem: str) -> CorruptBlobError:
        self._corrupt_blobs += 1
        _log.warning("%s: the stored object of %s is wrong: %s", self._name, key, problem)
        return CorruptBlobError(f"{key}: what {self._where} has stored is wrong: {problem}")

    async def _spoil(self, place: Key, began: int) -> None:
        """An object that was read from `began` on was found wrong: it is deleted, or counts as missing from now on.

        Nothing is done to one that has been written since, and none is deleted that is being written.
        """
        if self._writes.replaced_since(place, began):
            return
        self._spoiled[place] = None
        if len(self._spoiled) > _MAX_SPOILED:
            del self._spoiled[next(iter(self._spoiled))]
        deletes = self._backend.capability(Deletes)
        if deletes is not None and self._writes.may_delete(place):
            with self._writes.deleting(place):
                try:
                    await deletes.delete([place])
                except NlError as error:
                    _log.warning("%s: the object %s could not be deleted: %s", self._name, place, error.message)
                else:
                    self._spoiled.pop(place, None)


class _Source:
    """An object that is being read."""

    __slots__ = ("_key", "_store", "failed", "place", "reader", "size")

    def __init__(self, store: CompressionStore, key: Key, place: Key, reader: Reader, size: int) -> None:
        self._store = store
        self._key = key
        self.place = place
        self.reader = reader
        self.size = size
        """Of the whole object."""
        self.failed = False

    def failure(self, problem: str) -> NlError:
        """The error that says what is wrong with it."""
        self.failed = True
        return self._store._corrupt(self._key, problem)


class _Doubted(Reader):
    """What an object decodes to that was found wrong before. `trust` is called when all has come and was right: another
    server has stored it anew.
    """

    __slots__ = ("_reader", "_trust", "size")

    def __init__(self, reader: Reader, trust: Callable[[], object]) -> None:
        self._reader = reader
        self._trust = trust
        self.size = reader.size

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        parts = await self._reader.receive_parts(max_bytes)
        if not parts:
            self._trust()
        return parts


def _foreign(key: Key) -> Key:
    """Where NativeLink has what it has compressed. Names are not looked for there: nothing is under this one."""
    return _NOWHERE if isinstance(key, str) else _new(ForeignKey, (key[0], key[1], _SHA256, _IN_D))


def _is_blob_itself(place: Key, size: int) -> bool:
    """Whether what lies under a digest's name is not compressed, but the blob that a store without compression has
    put there: it is as long as the blob. It is nothing to be read, and above all nothing to be deleted, here.
    """
    return type(place) is ForeignKey and size == place.size


async def _drain(reader: Reader) -> None:
    while await reader.receive_parts():
        pass

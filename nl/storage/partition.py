"""A store made of several, each of which has its own part of all keys: the base of `shard` and `size_partitioning`.

Which part a key belongs to is all that a kind decides. What is asked of many keys at once goes to the parts at once,
one trip each.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from typing import TypeVar, cast

from nl.blob.reader import Buffer, Reader
from nl.errors import InvalidRequestError, NlError
from nl.model.digest import Digest, Key
from nl.storage.capabilities import BlobSizeLimit, Deletes, Link, LocalFiles, Pins, Removals, ScanPage, Scans
from nl.storage.concurrent import for_each
from nl.storage.contract import Store, Traits
from nl.storage.removals import RemovalFeed

C = TypeVar("C")
T = TypeVar("T")


class PartitionedStore(Store):
    """`parts` in a fixed order; `part_of` says which of them has a key."""

    def __init__(self, parts: Sequence[Store]) -> None:
        self.parts = tuple(parts)

    @abstractmethod
    def part_of(self, key: Key) -> int:
        """The number of the part that a key belongs to: always the same."""

    @property
    def traits(self) -> Traits:
        all_traits = [part.traits for part in self.parts]
        return Traits(
            authoritative=all(each.authoritative for each in all_traits),
            tracks_use=any(each.tracks_use for each in all_traits),  # for them touching is not in vain
        )

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        sizes: list[int | None] = [None] * len(keys)
        groups = self._grouped(keys)

        async def ask(number: int) -> None:
            part, at = groups[number]
            _spread(sizes, at, await part.has([keys[index] for index in at]))

        await for_each(len(groups), ask)
        return sizes

    async def touch(self, keys: Sequence[Key]) -> None:
        groups = self._grouped(keys)

        async def touch(number: int) -> None:
            part, at = groups[number]
            await part.touch([keys[index] for index in at])

        await for_each(len(groups), touch)

    async def get(self, key: Key) -> Buffer:
        return await self.parts[self.part_of(key)].get(key)

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        found: list[Buffer | NlError] = [b""] * len(keys)
        groups = self._grouped(keys)

        async def get(number: int) -> None:
            part, at = groups[number]
            _spread(found, at, await part.get_many([keys[index] for index in at]))

        await for_each(len(groups), get)
        return found

    def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AbstractAsyncContextManager[Reader]:
        return self.parts[self.part_of(key)].open(key, offset=offset, length=length)

    async def put(self, key: Key, data: Buffer) -> None:
        await self.parts[self.part_of(key)].put(key, data)

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        failed: list[NlError | None] = [None] * len(blobs)
        groups = self._grouped([key for key, _ in blobs])

        async def put(number: int) -> None:
            part, at = groups[number]
            _spread(failed, at, await part.put_many([blobs[index] for index in at]))

        await for_each(len(groups), put)
        return failed

    async def write(self, key: Key, reader: Reader) -> None:
        await self.parts[self.part_of(key)].write(key, reader)

    def capability(self, kind: type[C]) -> C | None:
        offered = [part.capability(kind) for part in self.parts]
        if kind is BlobSizeLimit:
            return cast("C", _Limit(found)) if (found := self._limits()) else None
        if kind not in _COMBINED or None in offered:
            return None
        return cast("C", _COMBINED[kind](self, offered))

    def statistics(self) -> Mapping[str, int | float | str]:
        return {"parts": len(self.parts)}

    def _limits(self) -> list[int]:
        """The largest blob that each part which has a limit can keep."""
        limits = [part.capability(BlobSizeLimit) for part in self.parts]
        return [limit.max_blob_bytes() for limit in limits if limit is not None]

    def _grouped(self, keys: Sequence[Key]) -> list[tuple[Store, list[int]]]:
        """Each part that is concerned, with the positions of its keys."""
        groups: dict[int, list[int]] = {}
        part_of = self.part_of
        for at, key in enumerate(keys):
            groups.setdefault(part_of(key), []).append(at)
        return [(self.parts[number], at) for number, at in groups.items()]


def _spread(target: list[T], at: Sequence[int], values: Sequence[T]) -> None:
    for index, value in zip(at, values, strict=True):
        target[index] = value


class _Limit:
    """What every part takes."""

    def __init__(self, limits: Sequence[int]) -> None:
        self._limits = limits

    def max_blob_bytes(self) -> int:
        return min(self._limits)


class _Deletes:
    def __init__(self, store: PartitionedStore, offered: Sequence[Deletes]) -> None:
        self._store, self._offered = store, offered

    async def delete(self, keys: Sequence[Key]) -> None:
        groups: dict[int, list[Key]] = {}
        for key in keys:
            groups.setdefault(self._store.part_of(key), []).append(key)
        parts = list(groups.items())

        async def delete(number: int) -> None:
            part, its_keys = parts[number]
            await self._offered[part].delete(its_keys)

        await for_each(len(parts), delete)


class _Removals:
    def __init__(self, store: PartitionedStore, offered: Sequence[Removals]) -> None:
        self._offered = offered

    def watch_removals(self) -> RemovalFeed:
        return _MergedFeed([part.watch_removals() for part in self._offered])


class _MergedFeed(RemovalFeed):
    __slots__ = ("_feeds",)

    def __init__(self, feeds: Sequence[RemovalFeed]) -> None:
        super().__init__()
        self._feeds = feeds

    def take(self) -> Sequence[Key] | None:
        gone: list[Key] | None = []
        for keys in [feed.take() for feed in self._feeds]:
            gone = None if gone is None or keys is None else [*gone, *keys]
        return () if gone == [] else gone


class _Scans:
    """A cursor is `{part}:{cursor of the part}`."""

    def __init__(self, store: PartitionedStore, offered: Sequence[Scans]) -> None:
        self._offered = offered

    async def scan(self, cursor: str = "", *, limit: int = 1000) -> ScanPage:
        number, colon, inner = cursor.partition(":")
        if cursor and not (colon and number.isdecimal() and int(number) < len(self._offered)):
            raise InvalidRequestError(f"{cursor[:100]!r} is no cursor of this store")
        part = int(number) if cursor else 0
        page = await self._offered[part].scan(inner, limit=limit)
        if page.cursor:
            return ScanPage(page.entries, f"{part}:{page.cursor}")
        return ScanPage(page.entries, f"{part + 1}:" if part + 1 < len(self._offered) else "")


class _Pins:
    def __init__(self, store: PartitionedStore, offered: Sequence[Pins]) -> None:
        self._store, self._offered = store, offered

    @contextmanager
    def pin(self, digests: Collection[Digest]) -> Iterator[None]:
        with ExitStack() as stack:
            for number, part in enumerate(self._offered):
                stack.enter_context(part.pin([each for each in digests if self._store.part_of(each) == number]))
            yield


class _LocalFiles:
    def __init__(self, store: PartitionedStore, offered: Sequence[LocalFiles]) -> None:
        self._store, self._offered = store, offered

    async def link_files(self, links: Sequence[Link]) -> list[Digest]:
        missing: set[Digest] = set()
        for number, part in enumerate(self._offered):
            wanted = [link for link in links if self._store.part_of(link.digest) == number]
            if wanted:
                missing.update(await part.link_files(wanted))
        return list(dict.fromkeys(link.digest for link in links if link.digest in missing))

    async def adopt_file(self, digest: Digest, path: str) -> None:
        await self._offered[self._store.part_of(digest)].adopt_file(digest, path)


_COMBINED = {Deletes: _Deletes, Removals: _Removals, Scans: _Scans, Pins: _Pins, LocalFiles: _LocalFiles}
